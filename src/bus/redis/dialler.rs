//! Dials until there is a subscription.

use std::{pin::Pin, sync::Arc, time::Duration};

use rand::RngExt;
use tokio::time::{Instant, sleep_until, timeout};

use super::subscription::{Subscription, SubscriptionError};
use crate::{
    redis_client::{CONNECT_TIMEOUT, ConnectionError, Connector},
    telemetry::chain,
};

/// Pause after a dial that failed, doubled up to the longest, each with a random part.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The same after a dial at which nothing listened: it costs next to nothing, and a Redis that came and went between two
/// dials would be taken for one that was never there.
const LONGEST_REFUSED_PAUSE: Duration = Duration::from_millis(100);

/// Longest time between the loss and a dial that failed, or between two of these, in which no Redis can have come and
/// gone unnoticed: it would have to start, be found by Rails, take a message and end.
const UNWATCHED: Duration = Duration::from_secs(1);

/// A subscription that was cut after less than this is not dialled again before a short pause, so that a Redis that
/// cuts every subscription at once is not dialled as fast as it can answer. What is published in the pause is missed.
const SHORT_LIFE: Duration = Duration::from_millis(100);
const SHORT_PAUSE: Duration = Duration::from_millis(20);

/// How often a log line says that Redis is still away.
const REMINDER: Duration = Duration::from_secs(30);

type Dial = Pin<Box<dyn Future<Output = Result<Subscription, SubscriptionError>> + Send>>;

/// One dial at a time.
///
/// A stopped Redis keeps dials that were given up in its accept queue until it goes on: one for each
/// [`CONNECT_TIMEOUT`], and as many as the queue holds, 511 unless it is configured otherwise. The system connects none
/// beyond these.
pub(super) struct Dialler {
    connector: Arc<Connector>,
    /// The dial under way.
    dial: Option<Dial>,
    /// When the next one begins.
    at: Instant,
    /// After the next one, when it fails.
    pause: Duration,
    /// Since when there is no subscription.
    started: Instant,
    reminded: Option<Instant>,
    /// When the last dial failed; before the first one, when the subscription was lost.
    looked: Instant,
    /// Whether nothing listened at any dial since then, and these were never far apart. `None` when none failed.
    absent: Option<bool>,
}

impl Dialler {
    /// One that dials at once.
    pub(super) fn new(connector: Connector) -> Self {
        let now = Instant::now();
        let connector = Arc::new(connector);
        Self {
            connector,
            dial: None,
            at: now,
            pause: FIRST_PAUSE,
            started: now,
            reminded: None,
            looked: now,
            absent: None,
        }
    }

    /// Begins anew, after a subscription that lasted for `lived`: the first dial fails or succeeds without a pause.
    pub(super) fn restart(&mut self, lived: Duration) {
        let now = Instant::now();
        let pause = if lived < SHORT_LIFE { SHORT_PAUSE } else { Duration::ZERO };
        (self.dial, self.at, self.pause) = (None, now + pause, FIRST_PAUSE);
        (self.started, self.reminded, self.looked, self.absent) = (now, None, now, None);
    }

    /// Gives up the dial under way.
    pub(super) fn cancel(&mut self) {
        self.dial = None;
    }

    /// How long it took so far.
    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Whether nothing listened from the first dial to the last that failed, of which there was one at least.
    pub(super) fn found_nothing(&self) -> bool {
        self.absent == Some(true)
    }

    /// A subscription. When this is cancelled, the dial under way is kept for the next call.
    pub(super) async fn next(&mut self) -> Subscription {
        loop {
            if self.dial.is_none() {
                sleep_until(self.at).await;
                self.watch();
            }
            let dial = self.dial.get_or_insert_with(|| dial(Arc::clone(&self.connector)));
            let dialled = dial.await;
            self.dial = None;
            match dialled {
                Ok(subscription) => return subscription,
                Err(error) => self.failed(&error),
            }
        }
    }

    /// To be called when a dial begins and when it has failed: notes when the last look was too long ago.
    fn watch(&mut self) {
        if self.looked.elapsed() > UNWATCHED {
            self.absent = Some(false);
        }
    }

    fn failed(&mut self, error: &SubscriptionError) {
        if self.reminded.is_none_or(|at| at.elapsed() >= REMINDER) {
            self.reminded = Some(Instant::now());
            let error = chain(error);
            tracing::warn!("cannot subscribe, trying on; is REDIS_URL right? {error}");
        }
        self.watch();
        let now = Instant::now();
        let refused = error.is_refused_dial();
        self.absent = Some(self.absent.unwrap_or(true) && refused);
        self.looked = now;
        let longest = if refused { LONGEST_REFUSED_PAUSE } else { LONGEST_PAUSE };
        let part = rand::rng().random_range(0.75..1.25);
        self.at = now + self.pause.min(longest).mul_f64(part);
        self.pause = (self.pause * 2).min(longest);
    }
}

fn dial(connector: Arc<Connector>) -> Dial {
    Box::pin(async move {
        let dialled = timeout(CONNECT_TIMEOUT, Subscription::dial(&connector)).await;
        dialled.unwrap_or(Err(SubscriptionError::Connection(ConnectionError::Timeout)))
    })
}
