//! Which question is put to Rails when.
//!
//! A flight is a question without an answer yet, and all its callers: it waits in the queue, is a request, or pauses
//! before the next request. A flight whose callers have all left leaves the queue, but a request goes on: Rails works on
//! it all the same, so it keeps its place, and its answer is cached.

use std::{
    collections::HashMap,
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared, WeakShared},
};
use hashlink::LruCache;
use rand::RngExt;
use tokio::{
    sync::{OwnedSemaphorePermit, oneshot},
    time::{Instant, sleep, timeout_at},
};

use super::{
    GRANTED, MAX_WAITING, Outcome, Rails, Reason, SERVER_ERROR,
    breaker::{Breaker, Permit, backoff},
    check::{Check, Key},
    client::{Client, Failure, Head},
};
use crate::{
    metrics::{Counter, Timing},
    telemetry::Throttle,
};

/// How long a grant is cached: a user who loses a right keeps it for so long at most.
const GRANT_TTL: Duration = Duration::from_secs(5);

/// How long a denial is cached. Enough for a burst; a user who was just given a right must not wait for it.
const DENIAL_TTL: Duration = Duration::from_secs(1);

/// Cached answers, each of about 120 bytes: more than there are users who open a document within [`GRANT_TTL`].
const MAX_CACHED: usize = 4_096;

/// Requests for one question that Rails may answer with 500. The first may have been bad luck; Rails also fails this way
/// over a type of document that it does not know.
const MAX_SERVER_ERRORS: u32 = 2;

/// What decides about a question. Behind one short lock.
pub(super) struct State {
    pub(super) breaker: Breaker,
    cache: LruCache<Key, Cached>,
    /// Up to [`MAX_WAITING`] with callers, and as many without.
    flights: HashMap<Key, (Arc<Flight>, WeakShared<BoxFuture<'static, Outcome>>)>,
}

/// An answer of Rails. It holds until a time, and not across an outage.
struct Cached {
    status: u16,
    until: Instant,
    outages: u64,
}

pub(super) struct Flight {
    client: Arc<Client>,
    key: Key,
    check: Check,
    /// Requests so far.
    pub(super) attempts: AtomicU32,
    server_errors: AtomicU32,
}

/// The end of a request: the outcome of its flight, or the pause before the next request. Without either after the stop.
type End = oneshot::Receiver<Result<Outcome, Duration>>;

impl State {
    pub(super) fn new() -> Self {
        Self { breaker: Breaker::default(), cache: LruCache::new(MAX_CACHED), flights: HashMap::new() }
    }

    /// The status of a recent answer.
    pub(super) fn cached(&mut self, key: &Key, now: Instant) -> Option<u16> {
        let outages = self.breaker.closed()?;
        let cached = self.cache.get(key).filter(|cached| now < cached.until && cached.outages == outages)?;
        Some(cached.status)
    }
}

impl Rails {
    /// The caller's share in the flight with this question, or in a new one; a flight makes progress while any of its
    /// callers polls. `None` if the caller would only time out: then a question is refused, unless it can be the probe.
    pub(super) fn join(
        self: &Arc<Self>,
        client: &Arc<Client>,
        key: Key,
        check: Check,
        now: Instant,
    ) -> Option<(Arc<Flight>, Shared<BoxFuture<'static, Outcome>>)> {
        let mut state = self.state();
        let hopeless = state.breaker.is_hopeless(self.hold, now);
        let existing = state.flights.get(&key).filter(|_| !hopeless);
        if let Some((flight, outcome)) = existing.and_then(|(flight, weak)| Some((flight, weak.upgrade()?))) {
            self.metrics.count(Counter::ChecksJoined);
            return Some((Arc::clone(flight), outcome));
        }
        let (attempts, server_errors) = (AtomicU32::new(0), AtomicU32::new(0));
        let flight = Arc::new(Flight { client: Arc::clone(client), key, check, attempts, server_errors });
        let probe = if hopeless {
            let place = Arc::clone(&self.places).try_acquire_owned().ok()?;
            let permit = state.breaker.permit(now)?;
            Some(self.request(&flight, place, permit))
        } else {
            None
        };
        let outcome = Arc::clone(self).fly(Arc::clone(&flight), probe).boxed().shared();
        if state.flights.len() >= 2 * MAX_WAITING {
            state.flights.retain(|_, (_, outcome)| outcome.upgrade().is_some());
        }
        state.flights.insert(key, (Arc::clone(&flight), outcome.downgrade()?));
        Some((flight, outcome))
    }

    /// Makes requests until Rails answers or the callers would only time out. A flight that begins as a probe ends with
    /// it if Rails is still down.
    async fn fly(self: Arc<Self>, flight: Arc<Flight>, mut probe: Option<End>) -> Outcome {
        let only_once = probe.is_some();
        loop {
            let end = match probe.take() {
                Some(end) => end,
                None => self.request_in_turn(&flight).await,
            };
            let pause = match end.await {
                Ok(Ok(outcome)) => return outcome,
                Ok(Err(pause)) => pause,
                Err(_) => return self.unavailable(Reason::Stopping),
            };
            let (is_open, next_probe_in) = {
                let breaker = &self.state().breaker;
                (breaker.closed().is_none(), breaker.next_probe_in(Instant::now()))
            };
            let retry_after = pause.max(next_probe_in);
            if retry_after >= self.hold || (only_once && is_open) {
                return Err((Reason::Down, retry_after));
            }
            sleep(pause).await;
        }
    }

    /// Makes a request as soon as there is a place and the breaker permits it.
    async fn request_in_turn(self: &Arc<Self>, flight: &Arc<Flight>) -> End {
        // The semaphore is never closed.
        let Ok(place) = Arc::clone(&self.places).acquire_owned().await else { return pending().await };
        loop {
            // From before the look at the breaker, so that no change is missed.
            let ended = self.ended.notified();
            let next_probe = {
                let breaker = &mut self.state().breaker;
                if let Some(permit) = breaker.permit(Instant::now()) {
                    return self.request(flight, place, permit);
                }
                breaker.next_probe()
            };
            match next_probe {
                Some(at) => drop(timeout_at(at, ended).await),
                None => ended.await,
            }
        }
    }

    /// Makes a request in a task of its own, which outlasts the callers. The client's timeout is its bound.
    fn request(self: &Arc<Self>, flight: &Arc<Flight>, place: OwnedSemaphorePermit, permit: Permit) -> End {
        let (sender, end) = oneshot::channel();
        let (rails, flight, asked) = (Arc::clone(self), Arc::clone(flight), Instant::now());
        flight.attempts.fetch_add(1, Ordering::Relaxed);
        self.metrics.count(Counter::RailsRequests);
        self.lifecycle.tasks().spawn(async move {
            let head = rails.lifecycle.stop().run_until_cancelled(flight.client.ask(&flight.check)).await;
            let Some(head) = head else { return };
            let end = rails.learn(&flight, permit, asked, head, Instant::now());
            rails.ended.notify_waiters();
            drop(place);
            // All callers may have left.
            let _ = sender.send(end);
        });
        end
    }

    /// Tells breaker and cache how a request ended.
    ///
    /// # Errors
    /// The pause before the next request, if there is to be one.
    fn learn(
        &self,
        flight: &Flight,
        permit: Permit,
        asked: Instant,
        head: Result<Head, Failure>,
        now: Instant,
    ) -> Result<Outcome, Duration> {
        static RECOVERIES: Throttle = Throttle::new();
        let (mut state, attempts) = (self.state(), flight.attempts.load(Ordering::Relaxed));
        if head.is_ok() {
            self.metrics.time(Timing::RailsRequest, now.saturating_duration_since(asked));
        }
        let status = match head {
            Ok(Head::Status(SERVER_ERROR)) => {
                state.breaker.undecided(permit, jitter(), now);
                if flight.server_errors.fetch_add(1, Ordering::Relaxed) + 1 < MAX_SERVER_ERRORS {
                    return Err(backoff(attempts, None, jitter()));
                }
                SERVER_ERROR
            }
            Ok(head) => {
                if let Some(outage) = state.breaker.answered(permit, now)
                    && let Some(more_since_last) = RECOVERIES.allow(std::time::Instant::now())
                {
                    tracing::info!(seconds = outage.as_secs(), more_since_last, "rails answers again");
                }
                match head {
                    Head::Status(status) => status,
                    Head::Redirect { status, origin } => {
                        self.metrics.count(Counter::RailsRedirects);
                        report_redirect(flight.client.variable(), status, origin.as_deref());
                        return Ok(Err((Reason::Redirected, Duration::ZERO)));
                    }
                }
            }
            Err(Failure { reason, symptom }) => {
                self.metrics.count(Counter::RailsFailures);
                report_failure(&reason, self.hold);
                if state.breaker.failed(permit, asked, symptom, jitter(), now) {
                    self.metrics.count(Counter::RailsOutages);
                }
                // While the breaker is open, its own pauses and the queue are enough.
                let is_open = state.breaker.closed().is_none();
                return Err(if is_open { Duration::ZERO } else { backoff(attempts, symptom.retry_after, jitter()) });
            }
        };
        let until = asked + if status == GRANTED { GRANT_TTL } else { DENIAL_TTL };
        state.cache.insert(flight.key, Cached { status, until, outages: permit.outages });
        Ok(Ok(status))
    }
}

/// From 0 to 1.
fn jitter() -> f64 {
    rand::rng().random_range(0.0..=1.0)
}

fn report_failure(reason: &str, hold: Duration) {
    static FAILURES: Throttle = Throttle::new();
    if let Some(more_since_last) = FAILURES.allow(std::time::Instant::now()) {
        let hold = hold.as_secs();
        tracing::warn!(more_since_last, "cannot ask rails, trying again; checks wait up to {hold} s: {reason}");
    }
}

/// A redirect is a wrong setting: if followed, the question would become a GET, and any page would grant.
fn report_redirect(variable: &str, status: u16, origin: Option<&str>) {
    static REDIRECTS: Throttle = Throttle::new();
    if let Some(more_since_last) = REDIRECTS.allow(std::time::Instant::now()) {
        let to = origin.unwrap_or("nowhere");
        tracing::error!(
            status,
            more_since_last,
            "nobody can edit together: rails redirects to {to}; set {variable} to an address that answers itself"
        );
    }
}

#[cfg(test)]
mod tests;
