//! Which question is put to Rails when.
//!
//! A flight is the task of a question without an answer yet; identical questions share it. It waits in the queue, makes
//! a request, or pauses before the next request. Without callers a flight ends, but never during a request: Rails works
//! on it all the same, so it keeps its place, and its answer is cached.

use std::{collections::HashMap, future::pending, sync::Arc, time::Duration};

use hashlink::LruCache;
use rand::RngExt;
use tokio::{
    select,
    sync::{OwnedSemaphorePermit, watch},
    time::{Instant, sleep, timeout_at},
};

use super::{
    GRANTED, Outcome, Rails, Reason, SERVER_ERROR,
    breaker::{CircuitBreaker, Permit, backoff},
    check::{Check, HashedKey},
    client::{Client, Failure},
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
pub(super) struct Decisions {
    pub(super) breaker: CircuitBreaker,
    cache: LruCache<HashedKey, Cached>,
    flights: HashMap<HashedKey, watch::Sender<Progress>>,
}

/// An answer of Rails. It holds until a time, and not across an outage.
struct Cached {
    status: u16,
    until: Instant,
    outages: u64,
}

/// What callers learn of their flight.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Progress {
    /// Requests so far.
    pub(super) attempts: u32,
    pub(super) outcome: Option<Outcome>,
}

struct Flight {
    client: Arc<Client>,
    key: HashedKey,
    check: Check,
    progress: watch::Sender<Progress>,
    attempts: u32,
    server_errors: u32,
}

/// A place among the concurrent requests, and the breaker's leave.
type Turn = (OwnedSemaphorePermit, Permit);

impl Decisions {
    pub(super) fn new() -> Self {
        Self { breaker: CircuitBreaker::default(), cache: LruCache::new(MAX_CACHED), flights: HashMap::new() }
    }

    /// The status of a recent answer.
    pub(super) fn cached(&mut self, key: &HashedKey, now: Instant) -> Option<u16> {
        let outages = self.breaker.closed()?;
        let cached = self.cache.get(key).filter(|cached| now < cached.until && cached.outages == outages)?;
        Some(cached.status)
    }
}

impl Rails {
    /// The progress of the flight with this question, or of a new one. `None` if the caller would only time out: then a
    /// question is refused, unless it can be the probe.
    pub(super) fn join(
        self: &Arc<Self>,
        client: &Arc<Client>,
        key: HashedKey,
        check: Check,
        now: Instant,
    ) -> Option<watch::Receiver<Progress>> {
        let mut state = self.state();
        let hopeless = state.breaker.is_hopeless(self.hold, now);
        if let Some(progress) = state.flights.get(&key).filter(|_| !hopeless) {
            self.metrics.count(Counter::ChecksJoined);
            return Some(progress.subscribe());
        }
        let probe = if hopeless {
            Some((Arc::clone(&self.places).try_acquire_owned().ok()?, state.breaker.permit(now)?))
        } else {
            None
        };
        let (progress, receiver) = watch::channel(Progress::default());
        state.flights.insert(key, progress.clone());
        let flight = Flight { client: Arc::clone(client), key, check, progress, attempts: 0, server_errors: 0 };
        let (rails, stop) = (Arc::clone(self), self.lifecycle.stop().clone());
        self.lifecycle.tasks().spawn(async move {
            stop.run_until_cancelled(rails.fly(flight, probe)).await;
        });
        Some(receiver)
    }

    /// Makes requests until Rails answers or the callers would only time out. A flight that begins as a probe ends with
    /// it if Rails is still down.
    async fn fly(&self, mut flight: Flight, mut probe: Option<Turn>) {
        let only_once = probe.is_some();
        let outcome = loop {
            let turn = if probe.is_some() { probe.take() } else { self.turn(&flight).await };
            let Some((place, permit)) = turn else { return };
            flight.attempts += 1;
            flight.progress.send_modify(|progress| progress.attempts = flight.attempts);
            self.metrics.count(Counter::RailsRequests);
            let asked = Instant::now();
            // The client's timeout is the bound.
            let answer = flight.client.ask(&flight.check).await;
            let learnt = self.learn(&mut flight, permit, asked, answer, Instant::now());
            drop(place);
            self.ended.notify_waiters();
            let pause = match learnt {
                Ok(outcome) => break outcome,
                Err(pause) => pause,
            };
            let (is_open, next_probe_in) = {
                let breaker = &self.state().breaker;
                (breaker.closed().is_none(), breaker.next_probe_in(Instant::now()))
            };
            let retry_after = pause.max(next_probe_in);
            if retry_after >= self.hold || (only_once && is_open) {
                break Err((Reason::Down, retry_after));
            }
            select! {
                () = sleep(pause) => {}
                () = flight.progress.closed() => {}
            }
        };
        self.end(&flight, Some(outcome));
    }

    /// Ends a flight with an outcome, or without if it has no callers; returns whether it has ended.
    fn end(&self, flight: &Flight, outcome: Option<Outcome>) -> bool {
        // Under the lock, as a caller may be about to join.
        let mut state = self.state();
        if outcome.is_none() && flight.progress.receiver_count() > 0 {
            return false;
        }
        if state.flights.get(&flight.key).is_some_and(|current| current.same_channel(&flight.progress)) {
            state.flights.remove(&flight.key);
        }
        flight.progress.send_modify(|progress| progress.outcome = outcome);
        true
    }

    /// The flight's turn to make a request. `None` when all its callers have left, and with them the flight has ended.
    async fn turn(&self, flight: &Flight) -> Option<Turn> {
        loop {
            select! {
                biased;
                () = flight.progress.closed() => if self.end(flight, None) { return None },
                turn = self.permitted() => return Some(turn),
            }
        }
    }

    /// Waits for a place, and then for the breaker.
    async fn permitted(&self) -> Turn {
        // The semaphore is never closed.
        let Ok(place) = Arc::clone(&self.places).acquire_owned().await else { return pending().await };
        loop {
            // From before the look at the breaker, so that no change is missed.
            let ended = self.ended.notified();
            let next_probe = {
                let breaker = &mut self.state().breaker;
                if let Some(permit) = breaker.permit(Instant::now()) {
                    return (place, permit);
                }
                breaker.next_probe()
            };
            match next_probe {
                Some(at) => drop(timeout_at(at, ended).await),
                None => ended.await,
            }
        }
    }

    /// Tells breaker and cache how a request ended.
    ///
    /// # Errors
    /// The pause before the next request, if there is to be one.
    fn learn(
        &self,
        flight: &mut Flight,
        permit: Permit,
        asked: Instant,
        answer: Result<u16, Failure>,
        now: Instant,
    ) -> Result<Outcome, Duration> {
        static RECOVERIES: Throttle = Throttle::new();
        let mut state = self.state();
        if answer.is_ok() {
            self.metrics.time(Timing::RailsRequest, now.saturating_duration_since(asked));
        }
        let status = match answer {
            Ok(SERVER_ERROR) => {
                state.breaker.undecided(permit, jitter(), now);
                flight.server_errors += 1;
                if flight.server_errors < MAX_SERVER_ERRORS {
                    return Err(backoff(flight.attempts, None, jitter()));
                }
                SERVER_ERROR
            }
            Ok(status) => {
                if let Some(outage) = state.breaker.answered(permit, now)
                    && let Some(more_since_last) = RECOVERIES.allow(std::time::Instant::now())
                {
                    tracing::info!(seconds = outage.as_secs(), more_since_last, "rails answers again");
                }
                if (300..400).contains(&status) {
                    self.metrics.count(Counter::RailsRedirects);
                    return Ok(Err((Reason::Redirected, Duration::ZERO)));
                }
                status
            }
            Err(Failure { reason, symptom }) => {
                self.metrics.count(Counter::RailsFailures);
                report_failure(&reason, self.hold);
                if state.breaker.failed(permit, asked, symptom, jitter(), now) {
                    self.metrics.count(Counter::RailsOutages);
                }
                // While the breaker is open, its own pauses and the queue are enough.
                let is_open = state.breaker.closed().is_none();
                return Err(if is_open {
                    Duration::ZERO
                } else {
                    backoff(flight.attempts, symptom.retry_after, jitter())
                });
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

#[cfg(test)]
mod tests;
