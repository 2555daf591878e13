//! Which question is put to Rails when.
//!
//! A flight is a question without an answer yet; identical questions share it. It waits in the queue, makes a request, or
//! pauses before the next request. Without callers a flight ends, but never during a request: Rails works on it all the
//! same, so it keeps its place, and its answer is cached.

use std::{
    future::pending,
    ops::ControlFlow,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use hashlink::LruCache;
use http::StatusCode;
use rand::RngExt;
use tokio::{
    sync::{OwnedSemaphorePermit, oneshot},
    time::{Instant, sleep, timeout_at},
};

use super::{
    Outcome, Rails, Reason,
    breaker::{CircuitBreaker, Permit, backoff},
    check::{Check, HashedKey},
    client::{Answer, Failure},
};
use crate::{
    metrics::{Counter, Timing},
    telemetry::Throttle,
};

/// How long a grant is cached: a user who loses a right keeps it for so long at most.
const GRANT_TTL: Duration = Duration::from_secs(5);

/// How long a denial is cached. Enough for a burst; a user who was just given a right must not wait for it.
const DENIAL_TTL: Duration = Duration::from_secs(1);

/// Questions remembered, each in about 200 bytes: more than callers can wait, and than users open documents
/// within [`GRANT_TTL`]. Of the least recently asked, the next caller makes a request of its own.
const MAX_RECENT: usize = 4_096;

/// What decides about a question. Behind one short lock.
pub(super) struct Decisions {
    pub(super) breaker: CircuitBreaker,
    recent: LruCache<HashedKey, Recent>,
}

/// A question that was asked.
enum Recent {
    Flight(Weak<Flight>),
    /// Holds until a time, and not across an outage.
    Answer(StatusCode, Instant),
}

/// Held by its callers, and by a request while it is under way.
pub(super) struct Flight {
    key: HashedKey,
    check: Check,
    /// Begun when only a probe could be made: ends with it if Rails is still down.
    only_probe: bool,
    /// Requests so far.
    pub(super) attempts: AtomicU32,
    /// Rails has answered with 500.
    server_error: AtomicBool,
    /// Goes on while a caller polls it.
    pub(super) outcome: Shared<BoxFuture<'static, Outcome>>,
}

/// A place among the concurrent requests, and the breaker's leave.
type Turn = (OwnedSemaphorePermit, Permit);

/// The outcome of a flight, or the pause before its next request.
type Learnt = ControlFlow<Outcome, Duration>;

impl Decisions {
    pub(super) fn new() -> Self {
        Self { breaker: CircuitBreaker::default(), recent: LruCache::new(MAX_RECENT) }
    }

    /// The status of a recent answer.
    pub(super) fn cached(&mut self, key: &HashedKey, now: Instant) -> Option<StatusCode> {
        match self.recent.get(key) {
            Some(Recent::Answer(status, until)) if now < *until => Some(*status),
            _ => None,
        }
    }
}

impl Rails {
    /// The flight with this question, or a new one. `None` if the caller would only time out: then a question is refused,
    /// unless it can be the probe.
    pub(super) fn join(self: &Arc<Self>, key: HashedKey, check: Check) -> Option<Arc<Flight>> {
        let now = Instant::now();
        let mut state = self.state.lock();
        let only_probe = state.breaker.is_hopeless(self.hold, now);
        if only_probe {
            if self.places.available_permits() == 0 || !state.breaker.may_probe(now) {
                return None;
            }
        } else if let Some(Recent::Flight(flight)) = state.recent.get(&key)
            && let Some(flight) = flight.upgrade()
        {
            self.metrics.count(Counter::ChecksJoined);
            return Some(flight);
        }
        let flight = Arc::new_cyclic(|flight| Flight {
            key,
            check,
            only_probe,
            attempts: AtomicU32::new(0),
            server_error: AtomicBool::new(false),
            outcome: Arc::clone(self).fly(Weak::clone(flight)).boxed().shared(),
        });
        state.recent.insert(key, Recent::Flight(Arc::downgrade(&flight)));
        Some(flight)
    }

    /// Makes requests until Rails answers or the callers would only time out.
    async fn fly(self: Arc<Self>, flight: Weak<Flight>) -> Outcome {
        loop {
            let turn = self.turn().await;
            // The caller that polls this holds the flight.
            let Some(flight) = flight.upgrade() else { return Err(Reason::Stopping) };
            let (sender, learnt) = oneshot::channel();
            let request = Arc::clone(&self).request(flight, turn).map(|learnt| sender.send(learnt));
            let stop = self.lifecycle.stop().clone();
            self.lifecycle.tasks().spawn(async move {
                stop.run_until_cancelled(request).await;
            });
            match learnt.await {
                Ok(ControlFlow::Break(outcome)) => return outcome,
                Ok(ControlFlow::Continue(pause)) => sleep(pause).await,
                Err(_) => return Err(Reason::Stopping),
            }
        }
    }

    /// Makes one request. The client's timeout is the bound.
    async fn request(self: Arc<Self>, flight: Arc<Flight>, (_place, permit): Turn) -> Learnt {
        let Some(client) = &self.client else { return ControlFlow::Break(Err(Reason::NotConfigured)) };
        flight.attempts.fetch_add(1, Ordering::Relaxed);
        self.metrics.count(Counter::RailsRequests);
        let learnt = self.learn(&flight, permit, client.ask(&flight.check).await);
        self.ended.notify_waiters();
        learnt
    }

    /// Waits for a place, and then for the breaker.
    async fn turn(&self) -> Turn {
        // The semaphore is never closed.
        let Ok(place) = Arc::clone(&self.places).acquire_owned().await else { return pending().await };
        loop {
            // From before the look at the breaker, so that no change is missed.
            let ended = self.ended.notified();
            let permit = self.state.lock().breaker.permit(Instant::now());
            match permit {
                Ok(permit) => return (place, permit),
                Err(Some(next_probe)) => drop(timeout_at(next_probe, ended).await),
                Err(None) => ended.await,
            }
        }
    }

    /// Tells breaker and cache how a request ended.
    fn learn(&self, flight: &Flight, permit: Permit, answer: Answer) -> Learnt {
        static FAILURES: Throttle = Throttle::new();
        static RECOVERIES: Throttle = Throttle::new();
        let (asked, now, jitter) = (permit.asked, Instant::now(), rand::rng().random_range(0.0..=1.0));
        let mut pause = backoff(flight.attempts.load(Ordering::Relaxed), jitter);
        let mut state = self.state.lock();
        match answer {
            Ok(status) => {
                self.metrics.time(Timing::RailsRequest, now.saturating_duration_since(asked));
                if status == StatusCode::INTERNAL_SERVER_ERROR {
                    // It shows Rails neither to be up nor to be down.
                    if !state.breaker.is_closed() {
                        state.breaker.failed(permit, None, jitter, now);
                    }
                } else if let Some(outage) = state.breaker.answered(permit, now)
                    && let Some(more_since_last) = RECOVERIES.allow(std::time::Instant::now())
                {
                    tracing::info!(seconds = outage.as_secs(), more_since_last, "rails answers again");
                }
                if status.is_redirection() {
                    self.metrics.count(Counter::RailsRedirects);
                    return ControlFlow::Break(Err(Reason::Redirected));
                }
                // The first 500 may have been bad luck; Rails also fails this way over a type of document that it does not
                // know.
                if status != StatusCode::INTERNAL_SERVER_ERROR || flight.server_error.swap(true, Ordering::Relaxed) {
                    if state.breaker.is_closed() {
                        let until = asked + if status == StatusCode::OK { GRANT_TTL } else { DENIAL_TTL };
                        state.recent.insert(flight.key, Recent::Answer(status, until));
                    }
                    return ControlFlow::Break(Ok(status));
                }
            }
            Err(Failure { reason, retry_after }) => {
                self.metrics.count(Counter::RailsFailures);
                if let Some(more_since_last) = FAILURES.allow(std::time::Instant::now()) {
                    let hold = self.hold.as_secs();
                    tracing::warn!(more_since_last, "cannot ask rails; checks wait up to {hold} s: {reason}");
                }
                if state.breaker.failed(permit, retry_after, jitter, now) {
                    self.metrics.count(Counter::RailsOutages);
                    state.recent.retain(|_, recent| matches!(recent, Recent::Flight(_)));
                }
                pause = pause.max(retry_after.unwrap_or_default());
            }
        }
        let is_open = !state.breaker.is_closed();
        if is_open {
            // Its own pauses and the queue are enough.
            pause = Duration::ZERO;
        }
        let too_late = pause.max(state.breaker.next_probe_in(now)) >= self.hold;
        if too_late || (flight.only_probe && is_open) {
            ControlFlow::Break(Err(Reason::Down))
        } else {
            ControlFlow::Continue(pause)
        }
    }
}

#[cfg(test)]
mod tests;
