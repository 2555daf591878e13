//! A circuit breaker: bounds how often a Redis that fails is asked, however many browsers wait for its answer.
//!
//! Pure; the time is passed in. Closed, every attempt is admitted. Open, none is until a pause has passed. Half-open, one
//! attempt is admitted in each pause; its success closes the breaker.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// How long an open breaker refuses attempts, so that a Redis that fails is asked four times a second.
const PAUSE: Duration = Duration::from_millis(250);

/// See the module. Closed at first. Holds when the next attempt is admitted; `None` while closed.
#[derive(Debug, Default)]
pub(super) struct Breaker(Mutex<Option<Instant>>);

impl Breaker {
    /// Whether an attempt may be made now. If so, the caller makes one.
    pub(super) fn admit(&self, now: Instant) -> bool {
        let mut next = self.next();
        let admitted = next.is_none_or(|next| now >= next);
        if admitted && next.is_some() {
            *next = Some(now + PAUSE);
        }
        admitted
    }

    /// Redis answered.
    pub(super) fn succeeded(&self) {
        *self.next() = None;
    }

    /// Redis could not be reached, or said that it cannot answer now.
    pub(super) fn failed(&self, now: Instant) {
        *self.next() = Some(now + PAUSE);
    }

    /// A connection broke. When it was a good one until now, one attempt may follow at once.
    pub(super) fn lost(&self, now: Instant) {
        let mut next = self.next();
        *next = Some(if next.is_none() { now } else { now + PAUSE });
    }

    /// Whole after each step, so that a panic elsewhere cannot have spoilt it.
    fn next(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether each of several attempts at these many milliseconds after the start is admitted.
    fn admitted(breaker: &Breaker, start: Instant, at: &[u64]) -> Vec<bool> {
        at.iter().map(|&millis| breaker.admit(start + Duration::from_millis(millis))).collect()
    }

    #[test]
    fn a_failure_lets_one_attempt_through_in_each_pause_until_a_success() {
        let (breaker, start) = (Breaker::default(), Instant::now());
        assert_eq!(admitted(&breaker, start, &[0, 0, 0]), [true; 3]);
        breaker.failed(start);
        assert_eq!(
            admitted(&breaker, start, &[0, 249, 250, 250, 499, 500, 501]),
            [false, false, true, false, false, true, false]
        );
        breaker.failed(start + Duration::from_millis(600));
        assert_eq!(admitted(&breaker, start, &[849, 850, 850]), [false, true, false]);
        breaker.succeeded();
        assert_eq!(admitted(&breaker, start, &[850, 850]), [true; 2]);
    }

    #[test]
    fn after_the_loss_of_a_good_connection_one_attempt_follows_at_once() {
        let (breaker, start) = (Breaker::default(), Instant::now());
        breaker.lost(start);
        assert_eq!(admitted(&breaker, start, &[0, 0]), [true, false]);
        breaker.lost(start);
        assert_eq!(admitted(&breaker, start, &[0, 249, 250]), [false, false, true]);
    }
}
