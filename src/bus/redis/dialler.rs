//! The way to a subscription: dials with backoff.

use std::{io::ErrorKind, pin::Pin, sync::Arc, time::Duration};

use rand::RngExt;
use tokio::time::{Instant, sleep, timeout};

use super::subscription::{Subscription, SubscriptionError};
use crate::{
    redis_client::{ConnectionError, Connector, DIAL_TIMEOUT},
    telemetry::chain,
};

/// Backoff after a dial that failed, doubled up to the longest, each with jitter.
const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const LONGEST_BACKOFF: Duration = Duration::from_secs(2);

/// Longest backoff after a dial at which nothing listened, so that no Redis comes and goes between two dials unnoticed.
const LONGEST_REFUSED_BACKOFF: Duration = Duration::from_millis(100);

/// Longest time between the loss and a dial that failed, or between two of these, in which no Redis can have come and
/// gone unnoticed: it would have to start, be found by Rails, take a message and end.
const UNWATCHED: Duration = Duration::from_secs(1);

/// After a subscription shorter than this the first dial waits a little, for a Redis that cuts every one at once.
const SHORT_LIFE: Duration = Duration::from_millis(100);
const SHORT_LIFE_BACKOFF: Duration = Duration::from_millis(20);

/// How often a log line says that Redis is still away.
const REMINDER: Duration = Duration::from_secs(30);

/// What dials have come to.
pub(super) struct Dialled {
    pub(super) subscription: Subscription,
    /// When the dials began.
    pub(super) started: Instant,
    /// Whether nothing listened from the first dial to the last that failed, of which there was one at least.
    pub(super) found_nothing: bool,
}

/// Dials under way. A wait for them may be given up and taken up again.
pub(super) type Dials = Pin<Box<dyn Future<Output = Dialled> + Send>>;

/// Dials until there is a subscription, one at a time; the last one has just ended, and lasted for `lived`.
///
/// A Redis that stands still keeps dials that were given up in its accept queue: one for each [`DIAL_TIMEOUT`], and as
/// many as the queue holds, 511 unless it is configured otherwise. The system connects none beyond these.
pub(super) fn dial(connector: &Arc<Connector>, lived: Duration) -> Dials {
    let (connector, started) = (Arc::clone(connector), Instant::now());
    Box::pin(async move {
        if lived < SHORT_LIFE {
            sleep(SHORT_LIFE_BACKOFF).await;
        }
        let (mut backoff, mut reminded) = (FIRST_BACKOFF, None::<Instant>);
        // When the last dial failed; whether nothing listened at any dial, and they were never far apart.
        let (mut looked, mut found_nothing) = (started, true);
        loop {
            found_nothing &= looked.elapsed() <= UNWATCHED;
            let subscribe = async {
                let (connection, ends) = connector.dial_raw().await?;
                Subscription::over(connection, ends).await
            };
            let error = match timeout(DIAL_TIMEOUT, subscribe).await {
                Ok(Ok(subscription)) => {
                    return Dialled { subscription, started, found_nothing: found_nothing && reminded.is_some() };
                }
                Ok(Err(error)) => error,
                Err(_) => ConnectionError::Timeout.into(),
            };
            if reminded.is_none_or(|at| at.elapsed() >= REMINDER) {
                reminded = Some(Instant::now());
                let error = chain(&error);
                tracing::warn!("cannot subscribe, trying on; is REDIS_URL right? {error}");
            }
            // A Unix socket is removed when its Redis ends.
            let refused = matches!(&error, SubscriptionError::Connection(ConnectionError::Io(error))
                if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound));
            found_nothing &= refused && looked.elapsed() <= UNWATCHED;
            looked = Instant::now();
            let longest = if refused { LONGEST_REFUSED_BACKOFF } else { LONGEST_BACKOFF };
            let jittered = backoff.min(longest).mul_f64(rand::rng().random_range(0.75..1.25));
            sleep(jittered).await;
            backoff = (backoff * 2).min(longest);
        }
    })
}
