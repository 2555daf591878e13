//! Questions to Rails over HTTP: may this user edit this document?
//!
//! All questions share one client, one bound on concurrent requests and one circuit breaker. Identical questions share
//! one request (single-flight), and an answer is cached for a few seconds. While Rails is down, questions wait for it.
//! Must not know the callers or their protocol.

mod breaker;
mod check;
mod client;
mod flight;
mod limits;

use std::{
    net::IpAddr,
    ops::RangeInclusive,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use http::StatusCode;
use parking_lot::Mutex;
use rand::RngExt;
use tokio::{
    sync::{Notify, Semaphore},
    time::{Instant, timeout},
};

pub use self::check::{Check, InvalidCheck};
use self::{
    client::Client,
    flight::Decisions,
    limits::{RateLimits, Subject},
};
use crate::{
    config::{Config, RAILS_VARIABLES},
    lifecycle::Lifecycle,
    metrics::{Counter, Metrics, Timing},
    telemetry::Throttle,
};

/// Callers that may wait at a time. All editors of a large installation come back at once after a restart, and a waiting
/// caller costs about 15 kB with its connection. Any further caller is refused.
const MAX_WAITING: usize = 2_048;

/// Added to the time after which to ask again, so that callers refused at the same time do not return together.
const RETRY_SPREAD: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(5);

/// The time after which to ask again when a setting has to be corrected first.
const RETRY_CONFIGURED: Duration = Duration::from_mins(1);

/// A question has no answer for now, and may be put again after a time.
pub enum NoAnswer {
    /// The allowance of the address or the token is used up.
    Limited(Duration),
    /// Rails gives no answer.
    Unavailable(Duration),
}

/// Why Rails gives no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Reason {
    #[error("nobody can edit together: set {RAILS_VARIABLES} to where rails is")]
    NotConfigured,
    #[error("too many checks wait for rails")]
    Overloaded,
    #[error("rails is down for longer than checks wait")]
    Down,
    #[error("rails did not answer in time")]
    TimedOut,
    /// A redirect is not followed. It is logged with its target where it is seen.
    #[error("rails redirects")]
    Redirected,
    #[error("this server stops")]
    Stopping,
}

/// The status of Rails' answer.
type Outcome = Result<StatusCode, Reason>;

/// Puts questions to Rails.
pub struct Rails {
    /// `None` without an address of Rails.
    client: Option<Client>,
    limits: RateLimits,
    /// How long a caller may wait.
    hold: Duration,
    /// Callers.
    waiting: Semaphore,
    /// Concurrent requests. Flights wait for a place in the order of their arrival: this is the queue.
    places: Arc<Semaphore>,
    state: Mutex<Decisions>,
    /// Notifies flights with a place when a request has ended, as the breaker may have changed.
    ended: Notify,
    metrics: Metrics,
    lifecycle: Lifecycle,
}

/// Counts the end of a check on drop: as abandoned, unless another counter was set.
struct EndCount<'a>(&'a Metrics, Counter);

impl Drop for EndCount<'_> {
    fn drop(&mut self) {
        self.0.count(self.1);
    }
}

impl Rails {
    /// Requests run in tasks of `lifecycle` and end with its stop. Connects with the first question.
    pub fn new(config: &Config, metrics: Metrics, lifecycle: Lifecycle) -> Arc<Self> {
        Arc::new(Self {
            client: config.rails.endpoint.clone().map(Client::new),
            limits: RateLimits::new(config.collab.auth_per_minute),
            hold: config.rails.hold,
            waiting: Semaphore::new(MAX_WAITING),
            places: Arc::new(Semaphore::new(config.rails.max_concurrency)),
            state: Mutex::new(Decisions::new()),
            ended: Notify::new(),
            metrics,
            lifecycle,
        })
    }

    /// Whether Rails grants what the client with the address `from` asks. When this future is dropped, the question leaves
    /// the queue; a request that is under way goes on, and other callers with the same question get its answer.
    ///
    /// # Errors
    /// [`NoAnswer::Limited`] at once. [`NoAnswer::Unavailable`] at once if no answer can be expected within the hold time of
    /// the settings, else after that time.
    pub async fn check(self: &Arc<Self>, check: Check, from: Option<IpAddr>) -> Result<bool, NoAnswer> {
        static LIMITED: Throttle = Throttle::new();
        let subjects = Subject::of(&check, from);
        if let Err(wait) = self.limits.admit(&subjects, Instant::now()) {
            self.metrics.count(Counter::ChecksLimited);
            if let Some(more_since_last) = LIMITED.allow(std::time::Instant::now()) {
                let client = from.map(tracing::field::display);
                tracing::warn!(more_since_last, client, "too many checks from one address or with one token");
            }
            return Err(NoAnswer::Limited(wait));
        }
        let (kind, user, started) = (check.kind(), check.user().to_owned(), Instant::now());
        let mut end = EndCount(&self.metrics, Counter::ChecksAbandoned);
        let (outcome, attempts) = self.outcome(check).await;
        let took = started.elapsed();
        self.metrics.time(Timing::Check, took);
        let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let status = outcome.map_err(|reason| {
            end.1 = Counter::ChecksUnavailable;
            match reason.may_be_logged() {
                // Only a setting mends this; the other reasons pass.
                Some(more_since_last) if reason == Reason::NotConfigured => {
                    tracing::error!(more_since_last, "{reason}");
                }
                Some(more_since_last) => {
                    tracing::warn!(kind, user, attempts, ms, more_since_last, "a check has no answer: {reason}");
                }
                None => {}
            }
            NoAnswer::Unavailable(match reason {
                Reason::NotConfigured | Reason::Redirected => RETRY_CONFIGURED,
                _ => self.state.lock().breaker.next_probe_in(Instant::now()) + rand::rng().random_range(RETRY_SPREAD),
            })
        })?;
        tracing::info!(kind, user, status = status.as_u16(), attempts, ms, "checked who may edit a document");
        let granted = status == StatusCode::OK;
        end.1 = if granted { Counter::ChecksGranted } else { Counter::ChecksDenied };
        // With 500 Rails has not said that the user may not, so this does not count as a wrong guess.
        if !granted && status != StatusCode::INTERNAL_SERVER_ERROR {
            self.limits.denied(&subjects, Instant::now());
        }
        Ok(granted)
    }

    /// The outcome for one caller, and the number of requests that were made for it.
    async fn outcome(self: &Arc<Self>, check: Check) -> (Outcome, u32) {
        let key = check.key();
        let cached = self.state.lock().cached(&key, Instant::now());
        if let Some(status) = cached {
            self.metrics.count(Counter::ChecksCached);
            return (Ok(status), 0);
        }
        let Ok(_waiting) = self.waiting.try_acquire() else { return (Err(Reason::Overloaded), 0) };
        let Some(flight) = self.join(key, check) else { return (Err(Reason::Down), 0) };
        let ended = timeout(self.hold, flight.outcome.clone());
        let outcome = match self.lifecycle.stop().run_until_cancelled(ended).await {
            Some(ended) => ended.unwrap_or(Err(Reason::TimedOut)),
            None => Err(Reason::Stopping),
        };
        (outcome, flight.attempts.load(Ordering::Relaxed))
    }
}

impl Reason {
    /// Once a minute for each reason, as each concerns many checks at a time; with the number not logged since.
    fn may_be_logged(self) -> Option<u64> {
        static THROTTLES: [Throttle; 4] = [const { Throttle::new() }; 4];
        THROTTLES.get(self as usize)?.allow(std::time::Instant::now())
    }
}
