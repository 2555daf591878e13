//! Compresses each polled message once, whatever the number of clients that get it.
//!
//! The first request for a message starts the job, all others wait for the same one (single-flight), and the result is
//! cached for a while. Jobs run on threads of their own; a client that goes away does not cancel the job for the others.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use futures_util::{
    FutureExt,
    future::{OptionFuture, Shared},
};
use hashlink::LinkedHashMap;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, oneshot};

use super::gzip::{Gzip, Segment};
use crate::{
    lifecycle::Tasks,
    metrics::{Counter, Metrics},
};

/// Messages shorter than this are not worth their own segment: deflate finds nothing in them.
const SHORTEST: usize = 256;

/// Jobs at a time. Compression must never take all processors from delivery, and a small machine has two.
const JOBS: usize = 1;

/// Jobs that wait for their turn, each with at most one payload of messages. When the queue is full, messages go out
/// uncompressed.
const QUEUE: usize = 64;

/// Bytes of cached messages, not counting their compressed forms, which are smaller; a single message may be larger. This
/// holds a burst to a room, in which every client is at another place.
const KEPT_BYTES: usize = 8 << 20;

/// What a cached message is counted with beside its bytes.
const OVERHEAD: usize = 256;

/// How long a message is cached, in milliseconds. A client that polls comes back for the next message within seconds.
const KEPT_MS: u64 = 10_000;

type Job = Shared<oneshot::Receiver<Arc<Segment>>>;

struct CachedSegment {
    message: Bytes,
    job: Job,
    /// When the message was first asked for.
    at: u64,
}

#[derive(Default)]
struct SegmentCache {
    /// By where the bytes of the message are, which stay there as long as it is cached; the oldest first.
    kept: LinkedHashMap<(usize, usize), CachedSegment>,
    bytes: usize,
}

/// Compressed messages, done and under way.
pub(super) struct Compressor {
    cache: Mutex<SegmentCache>,
    queue: Arc<Semaphore>,
    jobs: Arc<Semaphore>,
    tasks: Tasks,
    metrics: Metrics,
}

impl Compressor {
    pub(super) fn new(tasks: Tasks, metrics: Metrics) -> Self {
        let (queue, jobs) = (Arc::new(Semaphore::new(QUEUE)), Arc::new(Semaphore::new(JOBS)));
        Self { cache: Mutex::default(), queue, jobs, tasks, metrics }
    }

    /// The messages as one gzip stream, in pieces.
    pub(super) async fn gzip(&self, messages: Vec<Bytes>, now: u64) -> VecDeque<Bytes> {
        let jobs = self.jobs(&messages, now);
        let mut gzip = Gzip::new();
        for (message, job) in messages.into_iter().zip(jobs) {
            match OptionFuture::from(job).await {
                Some(Ok(segment)) => gzip.append(&segment),
                _ => gzip.store(message),
            }
        }
        gzip.finish()
    }

    /// Drops messages that have been cached for long enough.
    pub(super) fn forget(&self, now: u64) {
        self.cache.lock().trim(now);
    }

    /// The jobs of these messages; all that are not cached become one new job together.
    fn jobs(&self, messages: &[Bytes], now: u64) -> Vec<Option<Job>> {
        let (mut new, mut place) = (Vec::new(), None);
        let mut cache = self.cache.lock();
        let job = |message: &Bytes| {
            if message.len() < SHORTEST {
                return None;
            }
            let location = (message.as_ptr().addr(), message.len());
            if let Some(kept) = cache.kept.get(&location) {
                return Some(kept.job.clone());
            }
            place = place.take().or_else(|| Arc::clone(&self.queue).try_acquire_owned().ok());
            place.as_ref()?;
            let (sender, receiver) = oneshot::channel();
            let (message, job) = (message.clone(), receiver.shared());
            new.push((message.clone(), sender));
            cache.bytes += message.len() + OVERHEAD;
            cache.kept.insert(location, CachedSegment { message, job: job.clone(), at: now });
            Some(job)
        };
        let jobs = messages.iter().map(job).collect();
        cache.trim(now);
        drop(cache);
        if let Some(place) = place {
            let (turns, tasks, metrics) = (Arc::clone(&self.jobs), self.tasks.clone(), self.metrics.clone());
            self.tasks.spawn(async move {
                let turn = turns.acquire_owned().await;
                tasks.spawn_blocking(move || {
                    let _until_done = (turn, place);
                    for (message, sender) in new {
                        if let Ok(segment) = Segment::new(&message) {
                            metrics.count(Counter::Compressed);
                            // The clients that waited may be gone.
                            let _ = sender.send(Arc::new(segment));
                        }
                    }
                });
            });
        }
        jobs
    }
}

impl SegmentCache {
    /// Drops the oldest messages that are past their time or the bound.
    fn trim(&mut self, now: u64) {
        while let Some((_, oldest)) = self.kept.front()
            && (oldest.at + KEPT_MS <= now || (self.bytes > KEPT_BYTES && self.kept.len() > 1))
        {
            self.bytes -= oldest.message.len() + OVERHEAD;
            self.kept.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;

    use super::*;

    fn compressor() -> (Compressor, Metrics) {
        let metrics = Metrics::default();
        (Compressor::new(Tasks::current(), metrics.clone()), metrics)
    }

    fn message(length: usize) -> Bytes {
        vec![b'x'; length].into()
    }

    async fn is_compressed(compressor: &Compressor, message: &Bytes, now: u64) -> bool {
        let pieces = compressor.gzip(vec![message.clone()], now).await;
        pieces.iter().map(Bytes::len).sum::<usize>() < message.len()
    }

    #[tokio::test]
    async fn a_message_is_compressed_once_for_all_who_ask_for_it() {
        let (compressor, metrics) = compressor();
        let (message, other) = (message(300_000), message(300_000));
        // The first to ask goes away at once.
        assert!(compressor.gzip(vec![message.clone()], 0).now_or_never().is_none());
        let all = join_all((0..100).map(|_| compressor.gzip(vec![message.clone(), other.clone()], 0))).await;
        assert!(all.iter().all(|pieces| pieces == &all[0]));
        assert_eq!(metrics.get(Counter::Compressed), 2);
    }

    #[tokio::test]
    async fn short_messages_stay_as_they_are() {
        let (compressor, metrics) = compressor();
        assert!(!is_compressed(&compressor, &message(SHORTEST - 1), 0).await);
        assert!(is_compressed(&compressor, &message(SHORTEST), 0).await);
        assert_eq!(metrics.get(Counter::Compressed), 1);
    }

    #[tokio::test]
    async fn messages_are_forgotten_in_time() {
        let (compressor, metrics) = compressor();
        let message = message(1_000);
        for (now, times) in [(0, 1), (KEPT_MS - 1, 1), (KEPT_MS, 2)] {
            compressor.forget(now);
            assert!(is_compressed(&compressor, &message, now).await);
            assert_eq!(metrics.get(Counter::Compressed), times, "{now}");
        }
        compressor.forget(2 * KEPT_MS);
        let cache = compressor.cache.lock();
        assert_eq!((cache.bytes, cache.kept.len()), (0, 0));
    }

    #[tokio::test]
    async fn what_is_kept_is_bounded() {
        let (compressor, metrics) = compressor();
        let messages: Vec<Bytes> = (0..20).map(|_| message(1 << 20)).collect();
        for message in &messages {
            assert!(is_compressed(&compressor, message, 0).await);
        }
        let (bytes, kept) = {
            let cache = compressor.cache.lock();
            (cache.bytes, cache.kept.len())
        };
        assert!(bytes <= KEPT_BYTES, "{bytes}");
        assert!(is_compressed(&compressor, &messages[20 - kept], 0).await);
        assert_eq!(metrics.get(Counter::Compressed), 20, "still kept");
        let large = message(2 * KEPT_BYTES);
        assert!(is_compressed(&compressor, &large, 0).await && is_compressed(&compressor, &large, 0).await);
        assert_eq!(metrics.get(Counter::Compressed), 21, "a single message may be larger");
    }

    #[tokio::test]
    async fn past_the_bound_of_the_queue_messages_go_out_as_they_are() {
        let (compressor, metrics) = compressor();
        let turns = compressor.jobs.acquire_many(u32::try_from(JOBS).unwrap()).await.unwrap();
        let messages: Vec<Bytes> = (0..QUEUE).map(|_| message(1_000)).collect();
        let mut waiting: Vec<_> =
            messages.iter().map(|message| Box::pin(is_compressed(&compressor, message, 0))).collect();
        assert!(waiting.iter_mut().all(|job| job.now_or_never().is_none()));
        assert!(!is_compressed(&compressor, &message(1_000), 0).await);
        drop(turns);
        assert!(join_all(waiting).await.into_iter().all(|compressed| compressed));
        assert_eq!(metrics.get(Counter::Compressed), QUEUE as u64);
        assert!(is_compressed(&compressor, &message(1_000), 0).await);
    }
}
