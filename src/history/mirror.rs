//! The holder of the lease writes its log to the stream.

use std::{
    collections::VecDeque,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use tokio::time::{sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    Progress, Told,
    batch::Batch,
    stream::{EntryId, LEASE, Stream, StreamError},
};
use crate::hub::{Hub, Tail};

/// Payload bytes of a batch, at most, unless a single event has more.
const BATCH: usize = 256 << 10;

/// How long events wait for others to be written with. Written one by one, a message to a single user would cost twice as
/// much.
const LINGER: Duration = Duration::from_millis(10);

/// Least time between two writes, unless the last one had half a batch or more. Events that wait are lost of the mirror when
/// the node is killed; if it was the only node, browsers are then told of a gap. With 500 messages a second to one user
/// each, a pause of 50 ms takes 13 % more processor time than this one, as measured by `schedstat`.
const PAUSE: Duration = Duration::from_millis(100);

/// Estimated memory of an entry in Redis beside its batch.
const ENTRY_OVERHEAD: usize = 128;

/// How often the lease is renewed.
const TICK: Duration = Duration::from_secs(1);

/// How often the other nodes try for it. After a gap of the holder its live updates wait for that.
pub(super) const ATTEMPT: Duration = Duration::from_millis(250);

/// A batch in the stream.
struct Written {
    id: EntryId,
    bytes: usize,
    at: Instant,
}

/// Writes the log.
pub(super) struct Mirror<'a> {
    pub(super) stream: &'a Stream,
    pub(super) hub: &'a Hub,
    pub(super) progress: &'a Progress,
    pub(super) told: &'a Told,
    /// What the stream keeps at most.
    pub(super) bytes: usize,
    pub(super) window: Duration,
}

/// A generation of the stream.
struct Generation {
    tail: Tail,
    next: EntryId,
    /// Batches that the stream has, oldest first.
    written: VecDeque<Written>,
    held: usize,
    /// The position that was written last.
    position: Option<crate::bus::Position>,
}

impl Mirror<'_> {
    /// Writes until `stop`, and then what is left.
    ///
    /// # Errors
    /// When it cannot go on; a new generation must begin.
    pub(super) async fn run(&self, stop: &CancellationToken) -> Result<(), StreamError> {
        let waiting = Instant::now();
        loop {
            match self.stream.hold().await {
                Ok(true) => break,
                // The link may have broken with the subscription of the holder.
                Ok(false) | Err(StreamError::Redis(_)) => {}
                Err(error) => return Err(error),
            }
            // A holder that is refused gives the lease back.
            if waiting.elapsed() > 2 * LEASE {
                self.told.kept();
            }
            if stop.run_until_cancelled(sleep(ATTEMPT)).await.is_none() {
                return Ok(());
            }
        }
        let begun = Instant::now();
        let mut generation = self.begin().await?;
        tracing::debug!(after_ms = begun.elapsed().as_millis(), "this node writes the recovery log to redis");
        self.told.kept();
        let mut renewed = Instant::now();
        let mut next = renewed;
        while !stop.is_cancelled() {
            if renewed.elapsed() >= TICK {
                if !self.stream.hold().await? {
                    return Err(StreamError::Changed);
                }
                renewed = Instant::now();
                self.stream.keep(2 * self.window).await?;
            }
            // A position is noted right after its message.
            let is_behind = self.progress.get().is_some_and(|(_, position)| Some(position) != generation.position);
            let has_news = is_behind || {
                let news = timeout(TICK, generation.tail.changed());
                stop.run_until_cancelled(news).await.is_some_and(|news| news.is_ok())
            };
            if has_news {
                let due = next.max(Instant::now() + LINGER);
                let _ = stop.run_until_cancelled(sleep_until(due.into())).await;
            }
            let written = self.write(&mut generation).await?;
            if written > 0 {
                next = Instant::now() + if written < BATCH / 2 { PAUSE } else { LINGER };
            }
        }
        self.write(&mut generation).await?;
        self.stream.release().await
    }

    /// Writes the whole log as a new generation.
    async fn begin(&self) -> Result<Generation, StreamError> {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = u64::try_from(unix.as_millis()).unwrap_or_default();
        let number = now.max(self.stream.generation().await?.saturating_add(1));
        let mut generation = Generation {
            tail: self.hub.tail(),
            next: EntryId { generation: number, number: 1 },
            written: VecDeque::new(),
            held: 0,
            position: None,
        };
        // Empty: a Redis that does not know the command repeats the batch in its answer, which must be text to be read.
        let id = generation.take_id(ENTRY_OVERHEAD);
        self.stream.prepare(id, &Batch::default().encode()).await?;
        let mut renewed = Instant::now();
        while let Some((id, bytes, _)) = self.next(&mut generation)? {
            self.stream.prepare(id, &bytes).await?;
            if renewed.elapsed() >= LEASE / 3 {
                renewed = Instant::now();
                self.stream.hold().await?;
            }
        }
        self.stream.replace().await?;
        Ok(generation)
    }

    /// Appends what is new; returns its size in bytes.
    async fn write(&self, generation: &mut Generation) -> Result<usize, StreamError> {
        let mut written = 0;
        while let Some((id, bytes, oldest)) = self.next(generation)? {
            self.stream.append(id, oldest, &bytes).await?;
            written += bytes.len();
        }
        Ok(written)
    }

    /// The next batch with its id, and the id of the oldest batch to keep. `None` when nothing is new.
    fn next(&self, generation: &mut Generation) -> Result<Option<(EntryId, Vec<u8>, EntryId)>, StreamError> {
        // Noted after its message was published, so the log has that.
        let progress = self.progress.get();
        let entries = generation.tail.take(BATCH).ok_or(StreamError::Changed)?;
        let reached = progress.filter(|&(sequence, _)| sequence <= generation.tail.sequence());
        let position = reached.map(|(_, position)| position);
        if entries.is_empty() && (position.is_none() || position == generation.position) {
            return Ok(None);
        }
        if position.is_some() {
            generation.position = position;
        }
        let bytes = Batch { entries, position, gap: generation.tail.gap() }.encode();
        let id = generation.take_id(bytes.len() + ENTRY_OVERHEAD);
        Ok(Some((id, bytes, generation.oldest(self.bytes, self.window))))
    }
}

impl Generation {
    fn take_id(&mut self, bytes: usize) -> EntryId {
        let id = self.next;
        self.next.number += 1;
        self.held += bytes;
        self.written.push_back(Written { id, bytes, at: Instant::now() });
        id
    }

    /// The oldest batch that fits the bounds. The newest always stays.
    fn oldest(&mut self, bytes: usize, window: Duration) -> EntryId {
        let mut oldest = self.next;
        while let Some(first) = self.written.front() {
            oldest = first.id;
            if self.written.len() == 1 || (self.held <= bytes && first.at.elapsed() <= window) {
                break;
            }
            self.held -= first.bytes;
            self.written.pop_front();
        }
        oldest
    }
}
