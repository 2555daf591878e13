//! What clients saw, added up over all of them.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use hdrhistogram::Histogram;

/// Longest latency told apart from longer ones, in microseconds.
const LONGEST: u64 = 120_000_000;

/// Significant digits of a latency.
const DIGITS: u8 = 3;

/// Latencies in microseconds.
pub(crate) type Latencies = Histogram<u64>;

pub(crate) fn latencies() -> Latencies {
    #[expect(clippy::expect_used, reason = "the bounds are constants")]
    Histogram::new_with_bounds(1, LONGEST, DIGITS).expect("valid bounds")
}

/// Counts of one fleet.
pub(crate) struct Tally {
    /// Clients that are in their namespace at the moment.
    pub(crate) connected: AtomicUsize,
    /// Attempts to connect that nobody listened to.
    pub(crate) refused: AtomicU64,
    /// Attempts to connect that were answered with 503 and `Retry-After`.
    pub(crate) told_to_wait: AtomicU64,
    /// Attempts to connect that failed in any other way.
    pub(crate) failed: AtomicU64,
    /// Connections that ended without the client's doing.
    pub(crate) closed: AtomicU64,
    /// Messages, each counted once per client.
    pub(crate) delivered: AtomicU64,
    /// Messages that a client had seen already, or that came out of order.
    pub(crate) repeated: AtomicU64,
    /// Reconnects that the server took for the continuation of a session.
    pub(crate) recovered: AtomicU64,
    /// Reconnects.
    pub(crate) returned: AtomicU64,
    /// Notices, each counted once per client.
    pub(crate) notices: AtomicU64,
    /// A message's number, and clients that have had it or a later one.
    fence: AtomicU64,
    beyond: AtomicUsize,
    latency: Mutex<Latencies>,
    replay: Mutex<Latencies>,
    absences: Mutex<Latencies>,
    back: Mutex<Vec<Duration>>,
}

impl Tally {
    pub(super) fn new() -> Self {
        Self {
            connected: AtomicUsize::new(0),
            refused: AtomicU64::new(0),
            told_to_wait: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            closed: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            repeated: AtomicU64::new(0),
            recovered: AtomicU64::new(0),
            returned: AtomicU64::new(0),
            notices: AtomicU64::new(0),
            fence: AtomicU64::new(u64::MAX),
            beyond: AtomicUsize::new(0),
            latency: Mutex::new(latencies()),
            replay: Mutex::new(latencies()),
            absences: Mutex::new(latencies()),
            back: Mutex::default(),
        }
    }

    /// Forgets deliveries and latencies, for a new phase.
    pub(crate) fn reset(&self) {
        self.delivered.store(0, Relaxed);
        self.repeated.store(0, Relaxed);
        lock(&self.latency).reset();
        lock(&self.replay).reset();
    }

    pub(crate) fn delivered(&self) -> u64 {
        self.delivered.load(Relaxed)
    }

    pub(crate) fn connected(&self) -> usize {
        self.connected.load(Relaxed)
    }

    /// From now on clients are counted that get the message `number` or a later one. It must not have been published yet.
    pub(crate) fn raise_fence(&self, number: u64) {
        self.beyond.store(0, Relaxed);
        self.fence.store(number, Relaxed);
    }

    /// Clients beyond the fence.
    pub(crate) fn beyond_fence(&self) -> usize {
        self.beyond.load(Relaxed)
    }

    /// A client that had got as far as `last` got the message `number`.
    pub(super) fn note_progress(&self, last: u64, number: u64) {
        let fence = self.fence.load(Relaxed);
        if last < fence && fence <= number {
            self.beyond.fetch_add(1, Relaxed);
        }
    }

    pub(super) fn note_latency(&self, microseconds: u64) {
        lock(&self.latency).saturating_record(microseconds.max(1));
    }

    pub(super) fn note_replay(&self, microseconds: u64) {
        lock(&self.replay).saturating_record(microseconds.max(1));
    }

    /// A client was without a connection for this long.
    pub(super) fn note_absence(&self, away: Duration) {
        lock(&self.absences).saturating_record(away.as_micros() as u64);
    }

    /// A client is in its rooms again, this long after the restart.
    pub(super) fn note_back(&self, after: Duration) {
        lock(&self.back).push(after);
    }

    /// From publishing to receipt, of the sampled clients.
    pub(crate) fn latency(&self) -> Latencies {
        lock(&self.latency).clone()
    }

    /// From a client's dialling to the receipt of what it had missed.
    pub(crate) fn replay(&self) -> Latencies {
        lock(&self.replay).clone()
    }

    /// From the end of a client's connection to the answer to its next CONNECT, of all that came back.
    pub(crate) fn absences(&self) -> Latencies {
        lock(&self.absences).clone()
    }

    /// Returns that were noted so far.
    pub(crate) fn back_count(&self) -> usize {
        lock(&self.back).len()
    }

    /// When clients were back in their rooms, the earliest first.
    pub(crate) fn back(&self) -> Vec<Duration> {
        let mut back = lock(&self.back).clone();
        back.sort_unstable();
        back
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
