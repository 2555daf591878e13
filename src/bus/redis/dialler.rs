//! Dials until there is a subscription, with backoff.

use std::{pin::Pin, sync::Arc, time::Duration};

use rand::RngExt;
use tokio::time::{Instant, sleep_until, timeout};

use super::subscription::{Subscription, SubscriptionError};
use crate::{
    redis_client::{ConnectionError, Connector, DIAL_TIMEOUT},
    telemetry::chain,
};

/// Backoff after a dial that failed, doubled up to the longest, each with jitter.
const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const LONGEST_BACKOFF: Duration = Duration::from_secs(2);

/// Longest backoff after a dial at which nothing listened: such a dial costs next to nothing, and a Redis that came and
/// went between two dials would be taken for one that was never there.
const LONGEST_REFUSED_BACKOFF: Duration = Duration::from_millis(100);

/// Longest time between the loss and a dial that failed, or between two of these, in which no Redis can have come and
/// gone unnoticed: it would have to start, be found by Rails, take a message and end.
const UNWATCHED: Duration = Duration::from_secs(1);

/// After a subscription that lasted less than this the first dial waits a little, so that a Redis that cuts every
/// subscription at once is not dialled as fast as it can answer. What is published meanwhile is missed.
const SHORT_LIFE: Duration = Duration::from_millis(100);
const SHORT_LIFE_BACKOFF: Duration = Duration::from_millis(20);

/// How often a log line says that Redis is still away.
const REMINDER: Duration = Duration::from_secs(30);

type Dial = Pin<Box<dyn Future<Output = Result<Subscription, SubscriptionError>> + Send>>;

/// One dial at a time.
///
/// A Redis that stands still keeps dials that were given up in its accept queue: one for each [`DIAL_TIMEOUT`], and as
/// many as the queue holds, 511 unless it is configured otherwise. The system connects none beyond these.
pub(super) struct Dialler {
    connector: Arc<Connector>,
    /// The dial under way.
    dial: Option<Dial>,
    /// When the next dial begins.
    at: Instant,
    /// The backoff if the next dial fails.
    backoff: Duration,
    /// Since when there is no subscription.
    pub(super) started: Instant,
    reminded: Option<Instant>,
    /// When the last dial failed; before the first one, when the subscription was lost.
    looked: Instant,
    /// Whether nothing listened at any dial since then, and these were never far apart. `None` before one failed.
    absent: Option<bool>,
}

impl Dialler {
    /// A dialler that dials at once.
    pub(super) fn new(connector: Connector) -> Self {
        let now = Instant::now();
        Self {
            connector: Arc::new(connector),
            dial: None,
            at: now,
            backoff: FIRST_BACKOFF,
            started: now,
            reminded: None,
            looked: now,
            absent: None,
        }
    }

    /// Begins anew, after a subscription that lasted for `lived`.
    pub(super) fn restart(&mut self, lived: Duration) {
        let now = Instant::now();
        let wait = if lived < SHORT_LIFE { SHORT_LIFE_BACKOFF } else { Duration::ZERO };
        (self.dial, self.at, self.backoff) = (None, now + wait, FIRST_BACKOFF);
        (self.started, self.reminded, self.looked, self.absent) = (now, None, now, None);
    }

    /// Gives up the dial under way.
    pub(super) fn cancel(&mut self) {
        self.dial = None;
    }

    /// Whether nothing listened from the first dial to the last that failed, of which there was one at least.
    pub(super) fn found_nothing(&self) -> bool {
        self.absent == Some(true)
    }

    /// A subscription. Cancel safe: the dial under way is kept for the next call.
    pub(super) async fn next(&mut self) -> Subscription {
        loop {
            if self.dial.is_none() {
                sleep_until(self.at).await;
                self.watch();
            }
            let dialled = self.dial.get_or_insert_with(|| dial(Arc::clone(&self.connector))).await;
            self.dial = None;
            match dialled {
                Ok(subscription) => return subscription,
                Err(error) => self.failed(&error),
            }
        }
    }

    /// Notes when the last look was too long ago. To be called when a dial begins and when it has failed.
    fn watch(&mut self) {
        if self.looked.elapsed() > UNWATCHED {
            self.absent = Some(false);
        }
    }

    fn failed(&mut self, error: &SubscriptionError) {
        let now = Instant::now();
        if self.reminded.is_none_or(|at| now - at >= REMINDER) {
            self.reminded = Some(now);
            let error = chain(error);
            tracing::warn!("cannot subscribe, trying on; is REDIS_URL right? {error}");
        }
        self.watch();
        let refused = error.is_refused_dial();
        self.absent = Some(self.absent.unwrap_or(true) && refused);
        self.looked = now;
        let longest = if refused { LONGEST_REFUSED_BACKOFF } else { LONGEST_BACKOFF };
        self.at = now + self.backoff.min(longest).mul_f64(rand::rng().random_range(0.75..1.25));
        self.backoff = (self.backoff * 2).min(longest);
    }
}

fn dial(connector: Arc<Connector>) -> Dial {
    Box::pin(async move {
        let dialled = timeout(DIAL_TIMEOUT, Subscription::dial(&connector)).await;
        dialled.unwrap_or(Err(ConnectionError::Timeout.into()))
    })
}
