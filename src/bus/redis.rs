//! The subscription to Redis: dials again by itself, and tells whether it may have missed something.
//!
//! Reads the bytes itself in place of the client, so that no queue stands between Redis and the caller of
//! [`RedisSource::next`]. Redis cuts a subscriber that reads too slowly.

mod dialler;
mod ledger;
pub mod resp;
mod subscription;

use std::{sync::Arc, time::Duration};

use futures_util::future::OptionFuture;
use tokio::time::{Instant, sleep_until};

use self::{
    dialler::{Dialled, Dials, dial},
    ledger::Ledger,
    subscription::{Heard, Subscription, SubscriptionError},
};
use super::{Gap, Inbound, Source};
use crate::{
    lifecycle::Readiness,
    redis_client::Connector,
    telemetry::{Throttle, chain},
};

/// How long a silent connection may still show a sign of life after a standby beside it is subscribed. A Redis that
/// stood still answers both as soon as it goes on, and then the old connection has all that the new one missed.
const GRACE: Duration = Duration::from_secs(1);

/// The messages of Rails, from Redis.
pub struct RedisSource {
    connector: Arc<Connector>,
    readiness: Readiness,
    /// Dials under way; `None` while the live connection is well or a standby is there.
    dials: Option<Dials>,
    /// The connection whose messages are yielded.
    live: Option<Subscription>,
    /// A connection that was dialled since the live one fell silent, and when it takes its place. It is not read until
    /// then: Redis and the system keep what comes on it.
    standby: Option<(Dialled, Instant)>,
    /// What the connection before had received, and when it ended if Redis closed it and all of it was read. `None`
    /// before the first one.
    before: Option<(Ledger, Option<Instant>)>,
    /// Whether [`Inbound::Drained`] is owed.
    draining: bool,
    losses: Throttle,
    /// Whether the last loss was not logged, so that its end is not logged either.
    quiet: bool,
}

impl RedisSource {
    /// A source that is `readiness` while it is subscribed and Redis answers.
    pub fn new(connector: Connector, readiness: Readiness) -> Self {
        Self {
            connector: Arc::new(connector),
            readiness,
            dials: None,
            live: None,
            standby: None,
            before: None,
            draining: false,
            losses: Throttle::new(),
            quiet: false,
        }
    }

    /// Makes a subscription the live one, and tells what was before it.
    fn install(&mut self, Dialled { mut subscription, started, found_nothing }: Dialled) -> Inbound {
        let gap = match self.before.take() {
            None => {
                if let Some(limit) = subscription.limit() {
                    tracing::warn!("gaps cannot be proved empty: {limit}");
                }
                Gap::Start
            }
            Some((before, closed)) => {
                let exited =
                    closed.filter(|_| found_nothing).map(|at| subscription.since.saturating_duration_since(at));
                subscription.ledger.gap_after(&before, exited)
            }
        };
        if !self.quiet {
            let kind = format!("{gap:?}").to_lowercase();
            tracing::info!(after_ms = started.elapsed().as_millis(), gap = kind, "subscribed to redis");
        }
        let before = subscription.before();
        self.live = Some(subscription);
        Inbound::Subscribed { gap, before }
    }

    fn lose(&mut self, error: &SubscriptionError) {
        self.readiness.set(false);
        let Some(lost) = self.live.take() else { return };
        let more = self.losses.allow(std::time::Instant::now());
        self.quiet = more.is_none();
        if let Some(more) = more {
            let error = chain(error);
            tracing::warn!(
                more_since_last = more,
                "lost the subscription to redis, dialling again; browsers stay connected: {error}"
            );
        }
        // A standby for a silent connection is dialled already.
        if !lost.silent {
            self.dials = Some(dial(&self.connector, lost.since.elapsed()));
        }
        let orderly = matches!(error, SubscriptionError::Closed) && !lost.silent;
        self.before = Some((lost.ledger, orderly.then(Instant::now)));
    }
}

impl Source for RedisSource {
    async fn next(&mut self) -> Inbound {
        loop {
            let Some(live) = &mut self.live else {
                if std::mem::take(&mut self.draining) {
                    return Inbound::Drained;
                }
                let dialled = match self.standby.take() {
                    Some((standby, _)) => standby,
                    None => self.dials.get_or_insert_with(|| dial(&self.connector, Duration::MAX)).await,
                };
                self.dials = None;
                return self.install(dialled);
            };
            // Only now does the caller know of the subscription.
            self.readiness.set(!live.silent);
            let grace_is_over = self.standby.as_ref().map(|(_, until)| sleep_until(*until));
            let heard = tokio::select! {
                // What a silent connection has to say comes before what is decided without it.
                biased;
                heard = live.next() => heard,
                Some(standby) = OptionFuture::from(self.dials.as_mut()) => {
                    (self.dials, self.standby) = (None, Some((standby, Instant::now() + GRACE)));
                    continue;
                }
                Some(()) = OptionFuture::from(grace_is_over) => Err(SubscriptionError::Silent),
            };
            match heard {
                Ok(Heard::Inbound(inbound)) => {
                    self.draining &= inbound != Inbound::Drained;
                    return inbound;
                }
                Ok(Heard::Silent) => {
                    tracing::warn!("redis does not answer; dialling beside the subscription, browsers stay connected");
                    self.dials = Some(dial(&self.connector, Duration::MAX));
                }
                Ok(Heard::Alive) => {
                    tracing::info!("redis answers again; nothing was lost");
                    (self.dials, self.standby) = (None, None);
                }
                Err(error) => {
                    self.lose(&error);
                    return Inbound::Lost;
                }
            }
        }
    }

    /// [`Inbound::Drained`] follows what Redis executed before it answers, or the loss of the subscription; without a
    /// subscription it follows at once. A silent Redis delays it.
    fn drain(&mut self) {
        self.draining = true;
        if let Some(live) = &mut self.live {
            live.drain();
        }
    }
}
