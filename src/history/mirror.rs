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
use crate::{
    bus::Position,
    hub::{Hub, Past, Tail},
};

/// Payload bytes of a batch, at most, unless a single event has more.
const BATCH: usize = 256 << 10;

/// How long events wait for others to be written with. Written one by one, a message to a single user would cost twice as
/// much.
const LINGER: Duration = Duration::from_millis(10);

/// Least time between two writes, unless the last one had half a batch or more. Events that wait are lost of the mirror when
/// the node is killed; if it was the only node, browsers are then told of a gap. With 500 messages a second to one user
/// each, a pause of 50 ms takes 13 % more processor time than this one, as measured by `schedstat`.
const PAUSE: Duration = Duration::from_millis(100);

/// Estimated memory of a batch in Redis: what the allocator rounds up to beside it, and what an entry takes.
const fn memory(bytes: usize) -> usize {
    bytes + bytes / 8 + ENTRY_OVERHEAD
}
const ENTRY_OVERHEAD: usize = 128;

/// How often the lease is renewed.
const TICK: Duration = Duration::from_secs(1);

/// How often the other nodes try for it. After a gap of the holder its live updates wait for that.
pub(super) const ATTEMPT: Duration = Duration::from_millis(250);

/// A batch in the stream.
struct Written {
    id: EntryId,
    bytes: usize,
    /// Of its newest entry, in seconds since 1970; when it was written if it has none.
    at: u32,
    is_empty: bool,
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
    position: Option<Position>,
}

impl Mirror<'_> {
    /// Writes until `stop`, and then what is left. When Redis `was_full`, only while it has room for all and, when another
    /// node takes over, for all once more.
    ///
    /// # Errors
    /// When it cannot go on; a new generation must begin.
    pub(super) async fn run(&self, stop: &CancellationToken, was_full: bool) -> Result<(), StreamError> {
        let waiting = Instant::now();
        loop {
            match self.stream.hold().await {
                Ok(true) => break,
                // A holder that is refused gives the lease back.
                Ok(false) if waiting.elapsed() > 2 * LEASE => self.told.kept(),
                // The link may have broken with the subscription of the holder.
                Ok(false) | Err(StreamError::Redis(_)) => {}
                Err(error) => return Err(error),
            }
            if stop.run_until_cancelled(sleep(ATTEMPT)).await.is_none() {
                return Ok(());
            }
        }
        if was_full && !self.stream.has_room(2 * self.bytes).await? {
            return Err(StreamError::Full { refused: false });
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
                self.expire(&mut generation).await?;
            }
            let news = async {
                tokio::select! {
                    () = generation.tail.changed() => {}
                    () = self.progress.moved.notified() => {}
                }
            };
            if stop.run_until_cancelled(timeout(TICK, news)).await.is_some_and(|news| news.is_ok()) {
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
        let (id, batch) = self.number(&mut generation, Vec::new());
        self.stream.prepare(id, &batch).await?;
        let mut renewed = Instant::now();
        while let Some((id, bytes)) = self.next(&mut generation)? {
            self.stream.prepare(id, &bytes).await?;
            if renewed.elapsed() >= LEASE / 3 {
                renewed = Instant::now();
                self.stream.hold().await?;
            }
        }
        self.stream.replace().await?;
        self.stream.keep(2 * self.window).await?;
        Ok(generation)
    }

    /// Appends what is new; returns its size in bytes.
    async fn write(&self, generation: &mut Generation) -> Result<usize, StreamError> {
        let mut written = 0;
        while let Some((id, bytes)) = self.next(generation)? {
            self.stream.append(id, self.oldest(generation), &bytes).await?;
            written += bytes.len();
        }
        Ok(written)
    }

    /// Drops what is too old, when nothing is appended. The newest batch says how far the log reaches, so that an empty one
    /// takes its place.
    async fn expire(&self, generation: &mut Generation) -> Result<(), StreamError> {
        let first = generation.written.front().map(|first| first.id);
        if generation.written.back().is_some_and(|newest| !newest.is_empty && self.is_old(newest)) {
            let (id, batch) = self.number(generation, Vec::new());
            return self.stream.append(id, self.oldest(generation), &batch).await;
        }
        let oldest = self.oldest(generation);
        if first == Some(oldest) { Ok(()) } else { self.stream.trim(oldest).await }
    }

    /// The next batch with its id. `None` when nothing is new.
    fn next(&self, generation: &mut Generation) -> Result<Option<(EntryId, Vec<u8>)>, StreamError> {
        // What is published and not noted yet waits: where that is on the bus is not known.
        let Some((until, position)) = self.progress.get() else { return Ok(None) };
        let entries = generation.tail.take(BATCH, until).ok_or(StreamError::Changed)?;
        let position = position.filter(|_| generation.tail.sequence() >= until);
        if entries.is_empty() && (position.is_none() || position == generation.position) {
            return Ok(None);
        }
        generation.position = position.or(generation.position);
        Ok(Some(self.number(generation, entries)))
    }

    /// These entries as the next batch, with its id.
    fn number(&self, generation: &mut Generation, entries: Vec<Past>) -> (EntryId, Vec<u8>) {
        let id = generation.next;
        let (is_empty, at) = (entries.is_empty(), entries.last().map_or_else(|| self.hub.unix(), Past::at));
        let batch = Batch { entries, position: generation.position, gap: generation.tail.gap() }.encode();
        let bytes = memory(batch.len());
        generation.next.number += 1;
        generation.held += bytes;
        generation.written.push_back(Written { id, bytes, at, is_empty });
        (id, batch)
    }

    fn is_old(&self, written: &Written) -> bool {
        u64::from(self.hub.unix().saturating_sub(written.at)) > self.window.as_secs()
    }

    /// The oldest batch that fits the bounds. The newest always stays.
    fn oldest(&self, generation: &mut Generation) -> EntryId {
        let mut oldest = generation.next;
        while let Some(first) = generation.written.front() {
            oldest = first.id;
            if generation.written.len() == 1 || (generation.held <= self.bytes && !self.is_old(first)) {
                break;
            }
            generation.held -= first.bytes;
            generation.written.pop_front();
        }
        oldest
    }
}
