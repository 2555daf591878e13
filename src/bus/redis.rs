//! The subscription to Redis: comes back by itself, and says whether it may have missed something.
//!
//! The bytes are read and cut up here and not by the client, so that a message is looked at where it lies, and no queue
//! stands between Redis and whoever calls [`Source::next`]. The caller must not wait for anything slow between two
//! calls: Redis cuts a subscriber that reads too slowly.

mod dialler;
mod info;
mod ledger;
mod reply;
mod subscription;

use std::time::Duration;

use tokio::{
    task::consume_budget,
    time::{Instant, sleep_until},
};

#[doc(hidden)]
pub use self::reply::fuzz_replies;
use self::{
    dialler::Dialler,
    ledger::{End, Ledger},
    subscription::{Event, Subscription, SubscriptionError},
};
use super::{Gap, Inbound};
use crate::{
    lifecycle::Readiness,
    redis_client::Connector,
    telemetry::{Throttle, chain},
};

/// How long a connection that fell silent may still show a sign of life after another one beside it is subscribed. A
/// Redis that stood still answers both as soon as it goes on, and then the old one has all that the new one missed.
const GRACE: Duration = Duration::from_secs(1);

/// The messages of Rails, for ever.
pub struct Source {
    dialler: Dialler,
    readiness: Readiness,
    /// The connection whose messages are passed on.
    live: Option<Subscription>,
    /// Another one, dialled since that one fell silent, and how long it still waits. It is not read meanwhile: Redis
    /// and the system keep what comes on it.
    standby: Option<(Subscription, Instant)>,
    /// The connection before. `None` before the first one.
    before: Option<Before>,
    /// Whether [`Inbound::Drained`] is owed.
    draining: bool,
    /// Whether losses are logged: not each when one follows another.
    losses: Throttle,
    quiet: bool,
}

/// A connection that is no more.
struct Before {
    ledger: Ledger,
    /// Redis closed it, and all of it was read.
    orderly: bool,
    at: Instant,
}

impl Source {
    /// A source that is `readiness` while it is subscribed and Redis answers.
    pub fn new(connector: Connector, readiness: Readiness) -> Self {
        Self {
            dialler: Dialler::new(connector),
            readiness,
            live: None,
            standby: None,
            before: None,
            draining: false,
            losses: Throttle::new(),
            quiet: false,
        }
    }

    /// The next message or change. Waits, and dials again, as long as it takes.
    ///
    /// Loses nothing when it is cancelled, as in a `select!`: all that is under way is kept for the next call, and what
    /// was decoded is returned without another wait.
    pub async fn next(&mut self) -> Inbound {
        loop {
            // Decoding waits for nothing, and other tasks want this thread as well.
            consume_budget().await;
            let Some(live) = &mut self.live else {
                if std::mem::take(&mut self.draining) {
                    return Inbound::Drained;
                }
                let subscription = match self.standby.take() {
                    Some((standby, _)) => standby,
                    None => self.dialler.next().await,
                };
                return Inbound::Subscribed { gap: self.install(subscription) };
            };
            // Not before the caller knows of the subscription.
            self.readiness.set(!live.is_silent());
            let event = match live.decoded() {
                Ok(None) if live.is_silent() => self.read_silent().await,
                Ok(None) => live.read().await,
                decoded => decoded,
            };
            match event {
                Ok(Some(Event::Inbound(inbound))) => {
                    self.draining &= !matches!(inbound, Inbound::Drained);
                    return inbound;
                }
                Ok(Some(Event::Silent)) => {
                    tracing::warn!("redis does not answer; dialling beside the subscription, browsers stay connected");
                    self.dialler.restart(Duration::MAX);
                }
                Ok(Some(Event::Alive)) => {
                    tracing::info!("redis answers again; nothing was lost");
                    self.dialler.cancel();
                    self.standby = None;
                }
                Ok(None) => {}
                Err(error) => {
                    self.lose(&error);
                    return Inbound::Lost;
                }
            }
        }
    }

    /// Reads on from a connection that is silent, dials beside it, and gives it up when another one is subscribed and
    /// the grace is over.
    async fn read_silent(&mut self) -> Result<Option<Event>, SubscriptionError> {
        let Some(live) = &mut self.live else { return Ok(None) };
        let until = self.standby.as_ref().map(|(_, until)| *until);
        tokio::select! {
            // What the old connection has to say comes before what is decided without it.
            biased;
            event = live.read() => event,
            standby = self.dialler.next(), if until.is_none() => {
                self.standby = Some((standby, Instant::now() + GRACE));
                Ok(None)
            }
            () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => Err(SubscriptionError::Silent),
        }
    }

    /// Asks for [`Inbound::Drained`] once all has been yielded that Redis executed before it answers, or the
    /// subscription is lost, or at once when there is none. A Redis that stands still lets it wait.
    pub fn drain(&mut self) {
        self.draining = true;
        if let Some(live) = &mut self.live {
            live.drain();
        }
    }

    /// Makes a subscription the live one; returns what was before it.
    fn install(&mut self, mut subscription: Subscription) -> Gap {
        let gap = match self.before.take() {
            None => {
                if let Some(limit) = subscription.limit() {
                    tracing::warn!("{limit}");
                }
                Gap::Start
            }
            Some(Before { ledger, orderly, at }) => {
                let end = if orderly && self.dialler.found_nothing() { End::Exited } else { End::Cut };
                let ago = subscription.since().saturating_duration_since(at);
                subscription.ledger().gap_after(&ledger, (end, ago))
            }
        };
        if !self.quiet {
            tracing::info!(after_ms = self.dialler.elapsed().as_millis(), gap = gap.name(), "subscribed to redis");
        }
        self.live = Some(subscription);
        gap
    }

    fn lose(&mut self, error: &SubscriptionError) {
        self.readiness.set(false);
        let Some(mut lost) = self.live.take() else { return };
        let more = self.losses.allow(std::time::Instant::now());
        self.quiet = more.is_none();
        if let Some(more) = more {
            let error = chain(error);
            tracing::warn!(
                more_since_last = more,
                "lost the subscription to redis, dialling again; browsers stay connected: {error}"
            );
        }
        // One that was silent has been dialled beside already.
        if !lost.is_silent() {
            self.dialler.restart(lost.since().elapsed());
        }
        let orderly = error.is_orderly_end() && !lost.is_silent();
        self.before = Some(Before { ledger: std::mem::take(lost.ledger()), orderly, at: Instant::now() });
    }
}
