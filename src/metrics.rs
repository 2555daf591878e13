//! What is counted and timed. Names are enums, so that none is misspelt; nothing is ever labelled by room, user or
//! message.

use std::{sync::Arc, time::Duration};

use prometheus_client::{
    metrics::{counter::Counter as Count, histogram::Histogram},
    registry::{Registry, Unit},
};

/// Declares an enum from its variants and what each says in the registry, where its name is in snake case.
macro_rules! metrics {
    ($(#[$about:meta])+ $kind:ident { $($variant:ident: $help:literal,)+ }) => {
        $(#[$about])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $kind {
            $(#[doc = $help] $variant,)+
        }

        impl $kind {
            const REGISTERED: &'static [(&'static str, &'static str)] = &[$((stringify!($variant), $help),)+];
        }
    };
}

metrics! {
    /// Something that happens.
    Counter {
        MessagesReceived: "Messages taken from Redis, whatever became of them",
        MessagesRejected: "Messages from Redis that could not be used",
        Gaps: "Times the subscription was lost and messages may have been lost with it",
        GapsFilled: "Times the subscription was lost and another node's log had what was published meanwhile",
        GapsEmpty: "Times the subscription was lost and nothing was published before it was there again",
        Connects: "Browsers that joined",
        Recovered: "Returning browsers that were given all they had missed",
        NotRecovered: "Returning browsers that had missed something that is lost",
        Replayed: "Messages given to returning browsers",
        LookupsLate: "Token lookups that Redis did not answer in time",
        LookupsRefused: "Token lookups that the rights of the Redis user do not allow",
        Reauthorized: "Times the key of a connected user was read again",
        RoomsChanged: "Times the rooms of a connected browser changed",
        RoomsKept: "Times the key of a connected user could not be read or understood",
        Compressed: "Messages compressed for browsers that poll",
        SlowClosed: "Browsers closed because they read too slowly",
        MalformedClosed: "Browsers closed because they broke a protocol",
        ConnectionsRefused: "Connections refused because all places were taken",
        SilentDropped: "Connections closed before their first request to make room for others",
        SessionsRefused: "Sessions refused because there were too many",
        UnprovenClosed: "Sessions closed before CONNECT to make room for others or because too many waited",
        InboundRefused: "Messages of clients refused because all unfinished messages together were too large",
        InboundLate: "Messages of clients that were not finished in time",
        ChecksGranted: "Checks of the right to edit a document that ended with yes",
        ChecksDenied: "Checks of the right to edit a document that ended with no",
        ChecksUnavailable: "Checks of the right to edit a document that Rails did not answer",
        ChecksAbandoned: "Checks whose client left before the answer",
        ChecksMalformed: "Checks that were not JSON or of a wrong form",
        ChecksLimited: "Checks refused by the rate limit of their address or token",
        ChecksCached: "Checks answered from the cache",
        ChecksJoined: "Checks that waited for the answer to an identical check",
        RailsRequests: "Requests made to Rails",
        RailsFailures: "Requests that Rails could not answer",
        RailsRedirects: "Requests that were answered by a redirect",
        RailsOutages: "Times Rails was found to be down",
    }
}

metrics! {
    /// Something that takes time.
    Timing {
        Check: "Time from the question to the answer of a check of the right to edit a document",
        RailsRequest: "Time that Rails took for a request it answered",
    }
}

/// Upper bounds of a histogram's buckets in seconds, from an answer of the cache to the longest wait.
const BUCKETS: [f64; 13] = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// All counters and histograms; clones count together.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// In the order of [`Counter`], so that counting costs an index and a relaxed addition, and no lookup by name.
    counters: Arc<[Count]>,
    timings: Arc<[Histogram]>,
    registry: Arc<Registry>,
}

impl Metrics {
    /// Counts one.
    pub fn count(&self, counter: Counter) {
        self.add(counter, 1);
    }

    /// Counts several.
    pub fn add(&self, counter: Counter, number: u64) {
        self.counters[counter as usize].inc_by(number);
    }

    /// How many were counted.
    pub fn get(&self, counter: Counter) -> u64 {
        self.counters[counter as usize].get()
    }

    /// Notes how long something took. Takes a lock, so it is not for what happens once per message and browser.
    pub fn time(&self, timing: Timing, took: Duration) {
        self.timings[timing as usize].observe(took.as_secs_f64());
    }

    /// All metrics, to be encoded as text.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }
}

/// `MessagesReceived` as `messages_received`.
fn snake_case(variant: &str) -> String {
    let marked = variant.chars().flat_map(|c| c.is_uppercase().then_some('_').into_iter().chain(c.to_lowercase()));
    marked.skip(1).collect()
}

impl Default for Metrics {
    /// All at zero.
    fn default() -> Self {
        let mut registry = Registry::with_prefix("loomio_channels");
        let counters = Counter::REGISTERED.iter().map(|(variant, help)| {
            let counter = Count::default();
            registry.register(snake_case(variant), *help, counter.clone());
            counter
        });
        let counters = counters.collect();
        let timings = Timing::REGISTERED.iter().map(|(variant, help)| {
            let histogram = Histogram::new(BUCKETS);
            registry.register_with_unit(snake_case(variant), *help, Unit::Seconds, histogram.clone());
            histogram
        });
        let timings = timings.collect();
        Self { counters, timings, registry: Arc::new(registry) }
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
        let metrics = Metrics::default();
        metrics.count(Counter::MessagesReceived);
        metrics.add(Counter::RailsOutages, 2);
        let text = encoded(&metrics);
        let head = "# HELP loomio_channels_messages_received Messages taken from Redis, whatever became of them.\n\
                    # TYPE loomio_channels_messages_received counter\n\
                    loomio_channels_messages_received_total 1\n";
        assert!(text.starts_with(head) && text.ends_with("# EOF\n"), "{text}");
        assert!(text.contains("loomio_channels_rails_outages_total 2\n"), "{text}");
        for (variant, _) in Counter::REGISTERED {
            let name = snake_case(variant);
            assert_eq!(text.matches(&format!("\nloomio_channels_{name}_total ")).count(), 1, "{name}");
        }
        assert_eq!((metrics.get(Counter::RailsOutages), metrics.clone().get(Counter::MessagesReceived)), (2, 1));
    }

    #[test]
    fn durations_fall_into_the_bucket_that_bounds_them() {
        let metrics = Metrics::default();
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
        assert_eq!(Counter::REGISTERED[Counter::RailsOutages as usize].0, "RailsOutages");
        assert_eq!(Timing::REGISTERED[Timing::RailsRequest as usize].0, "RailsRequest");
    }
}
