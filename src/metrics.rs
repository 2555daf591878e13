//! What is counted. Names are an enum, so that none is misspelt; nothing is ever labelled by room, user or message.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
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
    /// Browsers closed since they read too slowly.
    SlowClosed,
    /// Browsers closed since they broke a protocol.
    MalformedClosed,
}

/// All counters; clones count together.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<[AtomicU64]>);

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        Self(Counter::ALL.iter().map(|_| AtomicU64::new(0)).collect())
    }

    /// Counts one.
    pub fn count(&self, counter: Counter) {
        self.add(counter, 1);
    }

    /// Counts several.
    pub fn add(&self, counter: Counter, number: u64) {
        self.0[counter as usize].fetch_add(number, Ordering::Relaxed);
    }

    /// How many were counted.
    pub fn get(&self, counter: Counter) -> u64 {
        self.0[counter as usize].load(Ordering::Relaxed)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
