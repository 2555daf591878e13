//! What is counted and timed. Names are enums, so that none is misspelt; nothing is ever labelled by room, user or
//! message.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// Something that happens.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Counter {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Counter {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];
        }
    };
}

counters! {
    /// Messages taken from Redis, whatever became of them.
    MessagesReceived,
    /// Messages from Redis that could not be used.
    MessagesRejected,
    /// Times the subscription was lost, and with it perhaps messages.
    Gaps,
    /// Times the subscription was lost, and nothing was published before it was there again.
    GapsEmpty,
    /// Browsers that joined.
    Connects,
    /// Browsers that came back and had missed nothing that they were not given.
    Recovered,
    /// Browsers that came back to something lost.
    NotRecovered,
    /// Messages given to browsers that came back.
    Replayed,
    /// Tokens that Redis did not answer for in time.
    LookupsLate,
    /// Tokens that Redis does not let this server look up.
    LookupsRefused,
    /// Messages compressed for browsers that poll.
    Compressed,
    /// Browsers closed since they read too slowly.
    SlowClosed,
    /// Browsers closed since they broke a protocol.
    MalformedClosed,
    /// Connections that found no place.
    ConnectionsRefused,
    /// Connections that made no request and had to go, so that others had a place.
    SilentDropped,
    /// Sessions refused since there were too many.
    SessionsRefused,
    /// Sessions that nothing was heard from, closed so that others had room, or since so many waited.
    UnprovenClosed,
    /// Messages refused since the unfinished ones of all clients together were too large.
    InboundRefused,
    /// Messages that were not finished in time.
    InboundLate,
    /// Checks of who may edit a document that ended with yes.
    ChecksGranted,
    /// The same, with no.
    ChecksDenied,
    /// The same, without an answer of Rails.
    ChecksUnavailable,
    /// Checks whose asker left before the answer.
    ChecksAbandoned,
    /// Checks that are none: not JSON, or of a wrong form.
    ChecksMalformed,
    /// Checks refused since their address or token had asked too often.
    ChecksLimited,
    /// Checks answered from memory.
    ChecksCached,
    /// Checks that waited for the answer to an identical one.
    ChecksJoined,
    /// Requests made to Rails.
    RailsRequests,
    /// Requests that Rails could not answer.
    RailsFailures,
    /// Requests that were answered by a redirect.
    RailsRedirects,
    /// Times Rails was found to be down.
    RailsOutages,
}

/// Something that takes time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timing {
    /// A check of who may edit a document, from the question to the answer.
    Check,
    /// A request to Rails, as long as it was answered.
    RailsRequest,
}

impl Timing {
    /// All of them.
    pub const ALL: &'static [Self] = &[Self::Check, Self::RailsRequest];
}

/// Upper bounds of a histogram's buckets in milliseconds, from an answer of memory to the longest that is waited for;
/// one more bucket has no bound.
pub const BUCKETS_MS: [u64; 13] = [1, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000];

/// How long something took each time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// How often it took no longer than the bound of the same place in [`BUCKETS_MS`], and longer than the one before.
    pub buckets: [u64; BUCKETS_MS.len() + 1],
    /// Everything together.
    pub sum: Duration,
}

/// A histogram in the making.
#[derive(Debug, Default)]
struct Durations {
    buckets: [AtomicU64; BUCKETS_MS.len() + 1],
    micros: AtomicU64,
}

/// All counters and histograms; clones count together.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    counters: Box<[AtomicU64]>,
    timings: Box<[Durations]>,
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        Self(Arc::new(Inner {
            counters: Counter::ALL.iter().map(|_| AtomicU64::new(0)).collect(),
            timings: Timing::ALL.iter().map(|_| Durations::default()).collect(),
        }))
    }

    /// Counts one.
    pub fn count(&self, counter: Counter) {
        self.add(counter, 1);
    }

    /// Counts several.
    pub fn add(&self, counter: Counter, number: u64) {
        self.0.counters[counter as usize].fetch_add(number, Ordering::Relaxed);
    }

    /// How many were counted.
    pub fn get(&self, counter: Counter) -> u64 {
        self.0.counters[counter as usize].load(Ordering::Relaxed)
    }

    /// Notes how long something took.
    pub fn time(&self, timing: Timing, took: Duration) {
        let durations = &self.0.timings[timing as usize];
        let bucket = BUCKETS_MS.partition_point(|bound| took > Duration::from_millis(*bound));
        durations.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        durations.micros.fetch_add(micros, Ordering::Relaxed);
    }

    /// How long it took so far.
    pub fn histogram(&self, timing: Timing) -> Histogram {
        let durations = &self.0.timings[timing as usize];
        Histogram {
            buckets: std::array::from_fn(|bucket| durations.buckets[bucket].load(Ordering::Relaxed)),
            sum: Duration::from_micros(durations.micros.load(Ordering::Relaxed)),
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_fall_into_the_bucket_that_bounds_them() {
        let metrics = Metrics::new();
        let last = BUCKETS_MS[BUCKETS_MS.len() - 1];
        for (micros, bucket) in [(0, 0), (1_000, 0), (1_001, 1), (5_000, 1), (last * 1_000, 12), (last * 1_000 + 1, 13)]
        {
            let before = metrics.histogram(Timing::Check).buckets[bucket];
            metrics.time(Timing::Check, Duration::from_micros(micros));
            assert_eq!(metrics.histogram(Timing::Check).buckets[bucket], before + 1, "{micros}");
        }
        let histogram = metrics.histogram(Timing::Check);
        assert_eq!(histogram.buckets.iter().sum::<u64>(), 6);
        assert_eq!(histogram.sum, Duration::from_micros(7_002 + 2 * last * 1_000));
        assert_eq!(metrics.histogram(Timing::RailsRequest), Histogram::default());
    }

    #[test]
    fn lists_are_in_the_order_of_their_numbers() {
        assert!(Counter::ALL.iter().enumerate().all(|(place, counter)| *counter as usize == place));
        assert!(Timing::ALL.iter().enumerate().all(|(place, timing)| *timing as usize == place));
    }
}
