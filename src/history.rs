//! The recovery log's copy in a Redis Stream, for nodes that start: what was published before they listened. A node that
//! lost its subscription reads there what it missed.
//!
//! Every node hears every message from the bus and keeps its own log; live updates wait for the stream only at the start,
//! and after such a gap for 1.5 seconds at most. One node, the holder of a lease, writes its log to the stream in batches,
//! each with the position on the bus that it reaches: Redis' own count of `PUBLISH` calls. A starting node subscribes first
//! and then reads the stream. When the stream reaches the position of the subscription, nothing is missing between the two,
//! however the nodes before it ended.
//!
//! After any error, and after a change of the stream that is not its own, the holder writes its whole log anew and puts it
//! in place of the stream at once. So the first start, the death of a holder, eviction, truncation and a failover that
//! lost something are one case. Must not know any wire.

mod batch;
mod load;
mod mirror;
mod stream;

use std::{
    pin::pin,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

pub use self::load::Loaded;
use self::{
    mirror::Mirror,
    stream::{Stream, StreamError},
};
use crate::{bus::Position, hub::Hub, redis_client::Link};

/// Pause after the holder could not go on, doubled up to the longest while that repeats.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How long the last write may take after the stop.
const LAST_WRITE: Duration = Duration::from_millis(500);

/// How long a gap may wait for the node that writes the stream, or takes that over. Live updates wait as long.
const FILL_PATIENCE: Duration = Duration::from_millis(1_500);

/// How often Redis is asked again meanwhile, when it did not answer.
const FILL_PAUSE: Duration = Duration::from_millis(25);

/// Up to where the log reaches on the bus: the sequence of its last entry, and the position if that is known.
#[derive(Debug, Default)]
struct Progress {
    noted: Mutex<Option<(u64, Option<Position>)>>,
    /// The position has changed, and the log has not.
    moved: Notify,
}

impl Progress {
    fn get(&self) -> Option<(u64, Option<Position>)> {
        *self.noted.lock()
    }
}

/// What the log said last of the stream. A state that stays the same is said once.
#[derive(Debug, Default)]
struct Told(Mutex<Option<String>>);

impl Told {
    /// Says what has to be changed. An outage is told by the subscription.
    fn failed(&self, error: &StreamError) {
        let (StreamError::Refused(_) | StreamError::Full { .. }) = error else { return };
        let mend = error.to_string();
        if self.0.lock().replace(mend.clone()).as_ref() != Some(&mend) {
            tracing::warn!(
                "the recovery log is not kept in redis, so that it ends with this process; live updates are not concerned: \
                 {mend}"
            );
        }
    }

    /// The stream is written, by this node or another.
    fn kept(&self) {
        if self.0.lock().take().is_some() {
            tracing::info!("the recovery log is kept in redis again");
        }
    }
}

/// The stream of the recovery log.
pub struct History {
    stream: Stream,
    hub: Hub,
    progress: Progress,
    /// Cancelled once the log may be written.
    restored: CancellationToken,
    told: Told,
    bytes: usize,
    window: Duration,
}

impl History {
    /// The stream at `key`, which keeps at most `bytes` of what `hub` published within `window`. The link is for the stream
    /// alone, so that nothing waits behind a batch.
    pub fn new(link: Link, key: String, hub: Hub, bytes: usize, window: Duration) -> Self {
        let (stream, progress, restored) = (Stream::new(link, key), Progress::default(), CancellationToken::new());
        Self { stream, hub, progress, restored, told: Told::default(), bytes, window }
    }

    /// What was published up to `before`, where the subscription begins, as far as the stream has it and Redis lets this
    /// node read it. Takes some seconds where another node still has to write it, and some more for a long log.
    pub async fn load(&self, before: Option<Position>) -> Loaded {
        let (loaded, read) = load::load(&self.stream, before, self.bytes, self.hub.unix()).await;
        if let Err(error) = read {
            self.told.failed(&error);
        }
        loaded
    }

    /// What other nodes heard up to `before` after the newest event of this node, for a gap that ends there. This node
    /// leaves the stream to them, so that one which heard everything writes it. Incomplete at once when that cannot be, and
    /// after 1.5 seconds in any case.
    pub async fn fill(&self, before: Position) -> Loaded {
        let is_same_run = |(_, position): (u64, Option<Position>)| position.is_some_and(|last| last.run == before.run);
        if !self.progress.get().is_some_and(is_same_run) || !self.hub.has_place() {
            return Loaded::default();
        }
        let fill = async {
            loop {
                match self.catch_up(before).await {
                    Ok(loaded) => return loaded,
                    // The link may have broken with the subscription.
                    Err(StreamError::Redis(_)) => sleep(FILL_PAUSE).await,
                    Err(error) => {
                        self.told.failed(&error);
                        return Loaded::default();
                    }
                }
            }
        };
        let loaded = timeout(FILL_PATIENCE, fill).await.unwrap_or_default();
        // Another node may have a gap next, and wait for this one to write.
        self.stream.compete();
        loaded
    }

    async fn catch_up(&self, before: Position) -> Result<Loaded, StreamError> {
        if !self.stream.cede().await? {
            return Ok(Loaded::default());
        }
        load::catch_up(&self.stream, before, |entries, are_all| self.hub.place_in(entries, are_all)).await
    }

    /// The log has what was loaded. Before that it is not written, as the stream would lose what it has.
    pub fn restored(&self) {
        self.restored.cancel();
    }

    /// The log reaches `position`, if that is known, with the entry of this sequence. To be called after each publication:
    /// what is beyond the sequence is not written.
    pub fn note(&self, sequence: u64, position: Option<Position>) {
        let last = self.progress.noted.lock().replace((sequence, position));
        if last.is_some_and(|(last, _)| last == sequence) {
            self.progress.moved.notify_one();
        }
    }

    /// Writes the stream while this node has the lease, until `stop`, and then what is left.
    pub async fn run(&self, stop: CancellationToken) {
        let Self { stream, hub, progress, restored, told, bytes, window } = self;
        if stop.run_until_cancelled(restored.cancelled()).await.is_none() {
            return;
        }
        let mirror = Mirror { stream, hub, progress, told, bytes: *bytes, window: *window };
        let (mut pause, mut was_full) = (FIRST_PAUSE, false);
        let late = async {
            stop.cancelled().await;
            sleep(LAST_WRITE).await;
        };
        let mut late = pin!(late);
        loop {
            let begun = Instant::now();
            let error = tokio::select! {
                written = mirror.run(&stop, was_full) => match written {
                    Ok(()) => return,
                    Err(error) => error,
                },
                () = &mut late => return,
            };
            let is_full = matches!(error, StreamError::Full { .. });
            let is_refused = is_full || matches!(error, StreamError::Refused(_));
            was_full = is_full || was_full && begun.elapsed() < LONGEST_PAUSE;
            // Only what a person has to change is not tried again soon: another node may wait for this one to write.
            if begun.elapsed() > LONGEST_PAUSE || !is_refused {
                pause = FIRST_PAUSE;
            }
            told.failed(&error);
            let rest = async {
                if is_refused {
                    stream.abandon(matches!(error, StreamError::Full { refused: true })).await;
                }
                sleep(pause).await;
            };
            if stop.run_until_cancelled(rest).await.is_none() {
                return;
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}
