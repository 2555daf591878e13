//! The subscription to Redis: comes back by itself, and says when it may have missed something.
//!
//! The client hands messages over through a queue that drops none. That queue has no bound of its own, so whoever
//! calls [`Source::next`] must not wait for anything slow between two calls.

use std::{pin::Pin, time::Duration};

use futures_util::StreamExt;
use rand::RngExt;
use redis::{
    Msg,
    aio::{PubSubSink, PubSubStream},
};
use tokio::time::{Instant, sleep, timeout};

use super::{Inbound, RECORDS, SYSTEM_NOTICE};
use crate::{
    lifecycle::Readiness,
    redis_client::{CONNECT_TIMEOUT, ConnectionError, Connector},
    telemetry::chain,
};

/// How often an idle subscription is asked whether it is alive, and how long it may take to answer.
const PING_INTERVAL: Duration = Duration::from_secs(5);
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// Pause before the first new dial, doubled up to the longest, each with a random part.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// How often a log line says that Redis is still away.
const REMINDER: Duration = Duration::from_secs(30);

/// One message as it came.
#[derive(Debug)]
pub struct Envelope(Msg);

impl Envelope {
    /// The channel it came on.
    pub fn channel(&self) -> &str {
        self.0.get_channel_name()
    }

    /// Its bytes.
    pub fn payload(&self) -> &[u8] {
        self.0.get_payload_bytes()
    }
}

struct Subscription {
    messages: PubSubStream,
    sink: PubSubSink,
    /// Ends when a ping is not answered.
    unanswered: Pin<Box<dyn Future<Output = ()> + Send>>,
    since: Instant,
    /// When the last message came.
    heard: Instant,
}

/// The messages of Rails, for ever.
pub struct Source {
    connector: Connector,
    readiness: Readiness,
    subscription: Option<Subscription>,
    /// Before the next dial.
    pause: Duration,
}

impl Source {
    /// A source that is `readiness` while it is subscribed.
    pub fn new(connector: Connector, readiness: Readiness) -> Self {
        Self { connector, readiness, subscription: None, pause: Duration::ZERO }
    }

    /// The next message or change. Waits, and dials again, as long as it takes. Nothing is lost when it is cancelled.
    pub async fn next(&mut self) -> Inbound {
        let Some(Subscription { messages, sink, unanswered, since, heard }) = &mut self.subscription else {
            self.subscription = Some(subscribe(&self.connector, self.pause).await);
            return Inbound::Subscribed;
        };
        // Not before the caller knows of the subscription.
        self.readiness.set(true);
        loop {
            tokio::select! {
                biased;
                message = messages.next() => {
                    if let Some(message) = message {
                        *heard = Instant::now();
                        return Inbound::Message(Envelope(message));
                    }
                    tracing::warn!("lost the subscription to redis; browsers stay connected");
                }
                () = &mut *unanswered => {
                    // The answer may be behind a lot of messages; as long as those come, nothing hangs.
                    if heard.elapsed() < PING_TIMEOUT {
                        *unanswered = Box::pin(pings(sink.clone()));
                        continue;
                    }
                    tracing::warn!("the subscription to redis hangs; dialling again, browsers stay connected");
                }
            }
            break;
        }
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
        let attempt = timeout(CONNECT_TIMEOUT, dial(connector)).await.unwrap_or(Err(ConnectionError::Timeout));
        match attempt {
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

async fn dial(connector: &Connector) -> Result<Subscription, ConnectionError> {
    let client = connector.client().await?;
    let (mut sink, messages) = client.get_async_pubsub().await?.split();
    sink.subscribe(&[RECORDS, SYSTEM_NOTICE]).await?;
    let (unanswered, now) = (Box::pin(pings(sink.clone())), Instant::now());
    Ok(Subscription { messages, sink, unanswered, since: now, heard: now })
}

/// Ends when a ping is not answered.
async fn pings(mut sink: PubSubSink) {
    loop {
        sleep(PING_INTERVAL).await;
        if !matches!(timeout(PING_TIMEOUT, sink.ping::<redis::Value>()).await, Ok(Ok(_))) {
            return;
        }
    }
}
