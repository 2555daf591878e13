//! A circuit breaker: bounds how often a Redis that fails is asked, however many browsers wait for its answer.
//!
//! Pure; the time is passed in. Closed, every attempt is admitted. Open, none is until a pause has passed. Half-open, one
//! attempt is admitted in each pause; its success closes the breaker.

use std::time::{Duration, Instant};

/// How long an open breaker refuses attempts, so that a Redis that fails is asked four times a second.
pub(super) const PAUSE: Duration = Duration::from_millis(250);

/// See the module. Closed at first.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    /// When the next attempt is admitted; `None` while closed.
    next: Option<Instant>,
}

impl Breaker {
    /// Whether an attempt may be made now. If so, the caller makes one.
    pub(super) fn admit(&mut self, now: Instant) -> bool {
        match self.next {
            None => true,
            Some(next) if now < next => false,
            Some(_) => {
                self.next = Some(now + PAUSE);
                true
            }
        }
    }

    /// Redis answered.
    pub(super) fn succeeded(&mut self) {
        self.next = None;
    }

    /// Redis could not be reached, or said that it cannot answer now.
    pub(super) fn failed(&mut self, now: Instant) {
        self.next = Some(now + PAUSE);
    }

    /// A connection broke. When it was a good one until now, one attempt may follow at once.
    pub(super) fn lost(&mut self, now: Instant) {
        self.next = Some(if self.next.is_none() { now } else { now + PAUSE });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether each of several attempts at these many milliseconds after the start is admitted.
    fn admitted(breaker: &mut Breaker, start: Instant, at: &[u64]) -> Vec<bool> {
        at.iter().map(|&millis| breaker.admit(start + Duration::from_millis(millis))).collect()
    }

    #[test]
    fn a_failure_lets_one_attempt_through_in_each_pause_until_a_success() {
        let (mut breaker, start) = (Breaker::default(), Instant::now());
        assert_eq!(admitted(&mut breaker, start, &[0, 0, 0]), [true; 3]);
        breaker.failed(start);
        assert_eq!(
            admitted(&mut breaker, start, &[0, 249, 250, 250, 499, 500, 501]),
            [false, false, true, false, false, true, false]
        );
        breaker.failed(start + Duration::from_millis(600));
        assert_eq!(admitted(&mut breaker, start, &[849, 850, 850]), [false, true, false]);
        breaker.succeeded();
        assert_eq!(admitted(&mut breaker, start, &[850, 850]), [true; 2]);
    }

    #[test]
    fn after_the_loss_of_a_good_connection_one_attempt_follows_at_once() {
        let (mut breaker, start) = (Breaker::default(), Instant::now());
        breaker.lost(start);
        assert_eq!(admitted(&mut breaker, start, &[0, 0]), [true, false]);
        breaker.lost(start);
        assert_eq!(admitted(&mut breaker, start, &[0, 249, 250]), [false, false, true]);
    }
}
