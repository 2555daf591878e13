//! What is counted and timed. Names are enums, so that none is misspelt; nothing is ever labelled by room, user or
//! message.

use std::{sync::Arc, time::Duration};

use prometheus_client::{
    metrics::{counter::Counter as Count, histogram::Histogram},
    registry::{Registry, Unit},
};

/// Declares an enum: what each metric says, the variant, and its name in the registry.
macro_rules! metrics {
    ($(#[$about:meta])+ $kind:ident { $(#[doc = $help:literal] $variant:ident = $name:literal,)+ }) => {
        $(#[$about])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $kind {
            $(#[doc = $help] $variant,)+
        }

        impl $kind {
            /// Names and help, in the order of the variants.
            const REGISTERED: &'static [(&'static str, &'static str)] = &[$(($name, $help),)+];
        }
    };
}

metrics! {
    /// Something that happens.
    Counter {
        /// Messages taken from Redis, whatever became of them.
        MessagesReceived = "messages_received",
        /// Messages from Redis that could not be used.
        MessagesRejected = "messages_rejected",
        /// Times the subscription was lost and messages may have been lost with it.
        Gaps = "gaps",
        /// Times the subscription was lost and nothing was published before it was there again.
        GapsEmpty = "gaps_empty",
        /// Browsers that joined.
        Connects = "connects",
        /// Returning browsers that were given all they had missed.
        Recovered = "recovered",
        /// Returning browsers that had missed something that is lost.
        NotRecovered = "not_recovered",
        /// Messages given to returning browsers.
        Replayed = "replayed",
        /// Token lookups that Redis did not answer in time.
        LookupsLate = "lookups_late",
        /// Token lookups that the rights of the Redis user do not allow.
        LookupsRefused = "lookups_refused",
        /// Messages compressed for browsers that poll.
        Compressed = "compressed",
        /// Browsers closed because they read too slowly.
        SlowClosed = "slow_closed",
        /// Browsers closed because they broke a protocol.
        MalformedClosed = "malformed_closed",
        /// Connections refused because all places were taken.
        ConnectionsRefused = "connections_refused",
        /// Connections closed before their first request to make room for others.
        SilentDropped = "silent_dropped",
        /// Sessions refused because there were too many.
        SessionsRefused = "sessions_refused",
        /// Sessions closed before CONNECT to make room for others or because too many waited.
        UnprovenClosed = "unproven_closed",
        /// Messages of clients refused because all unfinished messages together were too large.
        InboundRefused = "inbound_refused",
        /// Messages of clients that were not finished in time.
        InboundLate = "inbound_late",
        /// Checks of the right to edit a document that ended with yes.
        ChecksGranted = "checks_granted",
        /// Checks of the right to edit a document that ended with no.
        ChecksDenied = "checks_denied",
        /// Checks of the right to edit a document that Rails did not answer.
        ChecksUnavailable = "checks_unavailable",
        /// Checks whose client left before the answer.
        ChecksAbandoned = "checks_abandoned",
        /// Checks that were not JSON or of a wrong form.
        ChecksMalformed = "checks_malformed",
        /// Checks refused by the rate limit of their address or token.
        ChecksLimited = "checks_limited",
        /// Checks answered from the cache.
        ChecksCached = "checks_cached",
        /// Checks that waited for the answer to an identical check.
        ChecksJoined = "checks_joined",
        /// Requests made to Rails.
        RailsRequests = "rails_requests",
        /// Requests that Rails could not answer.
        RailsFailures = "rails_failures",
        /// Requests that were answered by a redirect.
        RailsRedirects = "rails_redirects",
        /// Times Rails was found to be down.
        RailsOutages = "rails_outages",
    }
}

metrics! {
    /// Something that takes time.
    Timing {
        /// Time from the question to the answer of a check of the right to edit a document.
        Check = "check",
        /// Time that Rails took for a request it answered.
        RailsRequest = "rails_request",
    }
}

/// Upper bounds of a histogram's buckets in seconds, from an answer of the cache to the longest wait.
const BUCKETS: [f64; 13] = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// All counters and histograms; clones count together.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Instruments>);

#[derive(Debug)]
struct Instruments {
    /// In the order of [`Counter`], so that counting costs an index and a relaxed addition, and no lookup by name.
    counters: Box<[Count]>,
    timings: Box<[Histogram]>,
    registry: Registry,
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("loomio_channels");
        // The registry ends each help with a full stop of its own.
        let text = |help: &str| help.trim_matches([' ', '.']).to_owned();
        let counters = Counter::REGISTERED.iter().map(|(name, help)| {
            let counter = Count::default();
            registry.register(*name, text(help), counter.clone());
            counter
        });
        let counters = counters.collect();
        let timings = Timing::REGISTERED.iter().map(|(name, help)| {
            let histogram = Histogram::new(BUCKETS);
            registry.register_with_unit(*name, text(help), Unit::Seconds, histogram.clone());
            histogram
        });
        let timings = timings.collect();
        Self(Arc::new(Instruments { counters, timings, registry }))
    }

    /// Counts one.
    pub fn count(&self, counter: Counter) {
        self.add(counter, 1);
    }

    /// Counts several.
    pub fn add(&self, counter: Counter, number: u64) {
        self.0.counters[counter as usize].inc_by(number);
    }

    /// How many were counted.
    pub fn get(&self, counter: Counter) -> u64 {
        self.0.counters[counter as usize].get()
    }

    /// Notes how long something took. Takes a lock, so it is not for what happens once per message and browser.
    pub fn time(&self, timing: Timing, took: Duration) {
        self.0.timings[timing as usize].observe(took.as_secs_f64());
    }

    /// All metrics, to be encoded as text.
    pub fn registry(&self) -> &Registry {
        &self.0.registry
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;

    use super::*;

    fn encoded(metrics: &Metrics) -> String {
        let mut text = String::new();
        encode(&mut text, metrics.registry()).unwrap();
        text
    }

    #[test]
    fn the_registry_has_every_counter() {
        let metrics = Metrics::new();
        metrics.count(Counter::MessagesReceived);
        metrics.add(Counter::RailsOutages, 2);
        let text = encoded(&metrics);
        let head = "# HELP loomio_channels_messages_received Messages taken from Redis, whatever became of them.\n\
                    # TYPE loomio_channels_messages_received counter\n\
                    loomio_channels_messages_received_total 1\n";
        assert!(text.starts_with(head) && text.ends_with("# EOF\n"), "{text}");
        assert!(text.contains("loomio_channels_rails_outages_total 2\n"), "{text}");
        for (name, _) in Counter::REGISTERED {
            assert_eq!(text.matches(&format!("\nloomio_channels_{name}_total ")).count(), 1, "{name}");
        }
        assert_eq!((metrics.get(Counter::RailsOutages), metrics.clone().get(Counter::MessagesReceived)), (2, 1));
    }

    #[test]
    fn durations_fall_into_the_bucket_that_bounds_them() {
        let metrics = Metrics::new();
        // Each bucket counts the smaller ones as well.
        for (micros, bound, expected) in [
            (0, "0.001", 1),
            (1_000, "0.001", 2),
            (1_001, "0.001", 2),
            (5_000, "0.005", 4),
            (30_000_000, "30.0", 5),
            (30_000_001, "30.0", 5),
            (30_000_002, "+Inf", 7),
        ] {
            metrics.time(Timing::Check, Duration::from_micros(micros));
            let text = encoded(&metrics);
            let line = format!("loomio_channels_check_seconds_bucket{{le=\"{bound}\"}} {expected}\n");
            assert!(text.contains(&line), "{micros}: {text}");
        }
        let text = encoded(&metrics);
        assert!(text.contains("loomio_channels_check_seconds_count 7\n"), "{text}");
        assert!(text.contains("loomio_channels_check_seconds_sum 90.00700"), "{text}");
        assert!(text.contains("loomio_channels_rails_request_seconds_count 0\n"), "{text}");
    }

    #[test]
    fn names_are_in_the_order_of_the_variants() {
        assert_eq!(Counter::REGISTERED[Counter::RailsOutages as usize].0, "rails_outages");
        assert_eq!(Timing::REGISTERED[Timing::RailsRequest as usize].0, "rails_request");
    }
}
