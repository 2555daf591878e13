//! The subscription to Redis: comes back by itself, and says when it may have missed something.
//!
//! The bytes are read and cut up here and not by the client, so that a message is looked at where it lies, and no queue
//! stands between Redis and whoever calls [`Source::next`]. The caller must not wait for anything slow between two
//! calls: Redis cuts a subscriber that reads too slowly.

mod reply;
mod subscription;

use std::time::Duration;

use rand::RngExt;
use tokio::time::{Instant, sleep, timeout};

#[doc(hidden)]
pub use self::reply::fuzz_replies;
use self::{
    reply::Reply,
    subscription::{Subscription, SubscriptionError},
};
use super::Inbound;
use crate::{
    lifecycle::Readiness,
    redis_client::{CONNECT_TIMEOUT, ConnectionError, Connector},
    telemetry::chain,
};

/// Pause before the first new dial, doubled up to the longest, each with a random part.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// How often a log line says that Redis is still away.
const REMINDER: Duration = Duration::from_secs(30);

/// The messages of Rails, for ever.
pub struct Source {
    connector: Connector,
    readiness: Readiness,
    /// The connection that is subscribed, and since when.
    subscription: Option<(Subscription, Instant)>,
    /// Before the next dial.
    pause: Duration,
}

impl Source {
    /// A source that is `readiness` while it is subscribed.
    pub fn new(connector: Connector, readiness: Readiness) -> Self {
        Self { connector, readiness, subscription: None, pause: Duration::ZERO }
    }

    /// The next message or change. Waits, and dials again, as long as it takes.
    pub async fn next(&mut self) -> Inbound {
        let Some((subscription, since)) = &mut self.subscription else {
            self.subscription = Some((subscribe(&self.connector, self.pause).await, Instant::now()));
            return Inbound::Subscribed;
        };
        // Not before the caller knows of the subscription.
        self.readiness.set(true);
        let lost = loop {
            match subscription.next().await {
                Ok(Reply::Message { channel, payload }) => return Inbound::Message { channel, payload },
                Ok(Reply::TooLarge { channel }) => return Inbound::TooLarge { channel },
                // An error can only answer a ping, and is a sign of life as well.
                Ok(Reply::Subscribed | Reply::Error { .. } | Reply::Other) => {}
                Err(lost) => break lost,
            }
        };
        let lost = chain(&lost);
        tracing::warn!("lost the subscription to redis, dialling again; browsers stay connected: {lost}");
        // One that is cut at once must not be dialled again and again.
        self.pause = if since.elapsed() > LONGEST_PAUSE {
            Duration::ZERO
        } else {
            FIRST_PAUSE.max(self.pause * 2).min(LONGEST_PAUSE)
        };
        self.readiness.set(false);
        self.subscription = None;
        Inbound::Lost
    }
}

/// Dials until it is subscribed.
async fn subscribe(connector: &Connector, pause: Duration) -> Subscription {
    sleep(pause).await;
    let started = Instant::now();
    let (mut pause, mut reminded) = (FIRST_PAUSE, None::<Instant>);
    loop {
        let dial = timeout(CONNECT_TIMEOUT, Subscription::dial(connector)).await;
        match dial.unwrap_or(Err(SubscriptionError::Connection(ConnectionError::Timeout))) {
            Ok(subscription) => {
                tracing::info!(after_ms = started.elapsed().as_millis(), "subscribed to redis");
                return subscription;
            }
            Err(error) if reminded.is_none_or(|at| at.elapsed() >= REMINDER) => {
                reminded = Some(Instant::now());
                let error = chain(&error);
                tracing::warn!("cannot subscribe, trying on; is REDIS_URL right? {error}");
            }
            Err(_) => {}
        }
        let part = rand::rng().random_range(0.75..1.25);
        sleep(pause.mul_f64(part)).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}
