//! The circuit breaker before Rails. Closed: every request may be made. Open: no request may. Half-open: one request is
//! made, the probe; its answer closes the breaker, its failure is followed by a longer pause.
//!
//! Pure: time and randomness are passed in.

use std::time::Duration;

use tokio::time::Instant;

/// Shortest and longest pause before a probe. In between it is a quarter of the outage so far, so that a question waits
/// little longer than Rails takes to restart.
const MIN_PAUSE: Duration = Duration::from_millis(250);
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// Failures in a row that open the breaker. Fewer may be a matter of the document; more would leave many questions to
/// find out.
const MAX_FAILURES: u32 = 3;

#[derive(Default)]
pub(super) struct CircuitBreaker {
    /// While open or half-open.
    outage: Option<Outage>,
    last_answer: Option<Instant>,
    /// Failures since the last answer, while closed.
    failures: u32,
}

struct Outage {
    since: Instant,
    last_failure: Instant,
    /// `None` while half-open.
    next_probe: Option<Instant>,
}

/// Leave to make one request now.
#[derive(Clone, Copy)]
pub(super) struct Permit {
    probe: bool,
    pub(super) asked: Instant,
}

impl CircuitBreaker {
    pub(super) fn is_closed(&self) -> bool {
        self.outage.is_none()
    }

    /// The time until the next probe; zero while closed or half-open.
    pub(super) fn next_probe_in(&self, now: Instant) -> Duration {
        let next_probe = self.outage.as_ref().and_then(|outage| outage.next_probe);
        next_probe.unwrap_or(now).saturating_duration_since(now)
    }

    /// Whether a request would be the probe.
    pub(super) fn may_probe(&self, now: Instant) -> bool {
        self.outage.as_ref().is_some_and(|outage| outage.next_probe.is_some_and(|at| at <= now))
    }

    /// Leave to make a request. Its end must be told to [`Self::answered`] or [`Self::failed`].
    ///
    /// # Errors
    /// When the next probe may be made; `None` while half-open.
    pub(super) fn permit(&mut self, now: Instant) -> Result<Permit, Option<Instant>> {
        let probe = self.may_probe(now);
        match &mut self.outage {
            Some(outage) if !probe => return Err(outage.next_probe),
            Some(outage) => outage.next_probe = None,
            None => {}
        }
        Ok(Permit { probe, asked: now })
    }

    /// Whether a question that may wait for `hold` would only time out, as far as is known: the next probe comes too late,
    /// or the outage is longer already. The latter is not known when the last request was made longer ago.
    pub(super) fn is_hopeless(&self, hold: Duration, now: Instant) -> bool {
        let too_long = self.outage.as_ref().is_some_and(|outage| {
            let [last_failure, so_far] =
                [outage.last_failure, outage.since].map(|at| now.saturating_duration_since(at));
            last_failure <= hold && so_far >= hold
        });
        too_long || self.next_probe_in(now) >= hold
    }

    /// Rails answered. While open, only the answer to a probe counts: other requests may have been made before the
    /// outage. Returns the length of the outage that this ends.
    pub(super) fn answered(&mut self, permit: Permit, now: Instant) -> Option<Duration> {
        self.last_answer = Some(now);
        self.failures = 0;
        self.outage.take_if(|_| permit.probe).map(|outage| now.saturating_duration_since(outage.since))
    }

    /// Rails could not answer. `retry_after` is for all requests, and `None` if the failure may be a matter of this one.
    /// `jitter` is from 0 to 1. Returns whether this opens the breaker.
    pub(super) fn failed(&mut self, permit: Permit, retry_after: Option<Duration>, jitter: f64, now: Instant) -> bool {
        let mut pause = retry_after.unwrap_or_default();
        if let Some(outage) = &mut self.outage {
            outage.last_failure = now;
            if permit.probe {
                let so_far = now.saturating_duration_since(outage.since);
                pause = pause.max(spread((so_far / 4).clamp(MIN_PAUSE, MAX_PAUSE), jitter));
                outage.next_probe = Some(now + pause);
            }
            outage.next_probe = outage.next_probe.map(|at| at.max(now + pause));
            return false;
        }
        if self.last_answer.is_some_and(|answered| answered > permit.asked) {
            return false;
        }
        self.failures += 1;
        if self.failures < MAX_FAILURES && retry_after.is_none() {
            return false;
        }
        let next_probe = Some(now + pause.max(spread(MIN_PAUSE, jitter)));
        self.outage = Some(Outage { since: now, last_failure: now, next_probe });
        true
    }
}

/// The pause before a request that failed alone is made again.
pub(super) fn backoff(failures: u32, jitter: f64) -> Duration {
    spread((MIN_PAUSE * 2_u32.saturating_pow(failures.saturating_sub(1).min(10))).min(MAX_PAUSE), jitter)
}

/// 75 to 125 %, so that several nodes do not ask at the same time.
fn spread(pause: Duration, jitter: f64) -> Duration {
    pause.mul_f64(0.75 + jitter / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIDDLE: f64 = 0.5;

    struct Story(CircuitBreaker, Instant);

    impl Story {
        fn new() -> Self {
            Self(CircuitBreaker::default(), Instant::now())
        }

        fn at(&self, millis: u64) -> Instant {
            self.1 + Duration::from_millis(millis)
        }

        fn failed(&mut self, asked: u64, probe: bool, retry_after: Option<u64>, now: u64) -> bool {
            let (asked, now) = (self.at(asked), self.at(now));
            let retry_after = Some(Duration::from_secs(retry_after.unwrap_or(0)));
            self.0.failed(Permit { probe, asked }, retry_after, MIDDLE, now)
        }

        /// A failure that may be a matter of the question.
        fn failed_alone(&mut self, at: u64) -> bool {
            let at = self.at(at);
            self.0.failed(Permit { probe: false, asked: at }, None, MIDDLE, at)
        }

        fn answered(&mut self, probe: bool, now: u64) -> Option<u128> {
            let now = self.at(now);
            self.0.answered(Permit { probe, asked: now }, now).map(|outage| outage.as_millis())
        }

        /// Whether it is for a probe.
        fn permit(&mut self, now: u64) -> Option<bool> {
            let now = self.at(now);
            self.0.permit(now).ok().map(|permit| permit.probe)
        }

        fn next_probe(&self) -> Option<u128> {
            self.0.outage.as_ref()?.next_probe.map(|at| (at - self.1).as_millis())
        }
    }

    #[test]
    fn failures_that_may_be_a_matter_of_the_question_open_when_nothing_else_is_heard() {
        let mut story = Story::new();
        assert_eq!([1, 2].map(|at| story.failed_alone(at)), [false; 2]);
        story.answered(false, 3);
        assert_eq!([4, 5, 6].map(|at| story.failed_alone(at)), [false, false, true]);
        assert!(!story.failed_alone(7));
        story.answered(true, 8);
        assert!(!story.failed_alone(9), "after an outage they count anew");
    }

    #[test]
    fn it_is_hopeless_to_wait_for_what_has_been_down_for_longer() {
        let mut story = Story::new();
        let hopeless = |story: &Story, at| story.0.is_hopeless(Duration::from_secs(10), story.at(at));
        assert!(!hopeless(&story, 0));
        story.failed(0, false, None, 0);
        story.failed(8_000, true, None, 8_000);
        assert_eq!([9_999, 10_000, 18_000].map(|at| hopeless(&story, at)), [false, true, true]);
        assert!(!hopeless(&story, 18_001), "not known any more");
        story.failed(20_000, true, Some(30), 20_000);
        assert_eq!([40_000, 40_001].map(|at| hopeless(&story, at)), [true, false]);
    }

    #[test]
    fn the_first_failure_that_concerns_all_opens_and_a_probes_answer_closes() {
        let mut story = Story::new();
        assert_eq!(story.next_probe(), None);
        assert!(story.failed(0, false, None, 10));
        assert_eq!(story.next_probe(), Some(260));
        assert_eq!(story.answered(true, 270), Some(260));
        assert_eq!(story.next_probe(), None);
    }

    #[test]
    fn answers_to_older_requests_do_not_close() {
        let mut story = Story::new();
        story.failed(0, false, None, 10);
        assert_eq!(story.answered(false, 20), None);
        assert_eq!(story.next_probe(), Some(260));
    }

    #[test]
    fn one_failure_among_answers_is_no_outage() {
        let mut story = Story::new();
        story.answered(false, 5_000);
        assert!(!story.failed(0, false, None, 10_000));
        assert_eq!(story.next_probe(), None);
        assert!(story.failed(5_001, false, None, 15_001));
    }

    #[test]
    fn pauses_grow_with_the_outage() {
        let mut story = Story::new();
        story.failed(0, false, None, 0);
        for (now, next) in [(250, 500), (2_000, 2_500), (8_000, 10_000), (60_000, 65_000), (600_000, 605_000)] {
            assert!(!story.failed(now, true, None, now));
            assert_eq!(story.next_probe(), Some(next), "{now}");
        }
        // Requests that had been on their way do not hasten or delay it.
        assert!(!story.failed(0, false, None, 600_001));
        assert_eq!(story.next_probe(), Some(605_000));
    }

    #[test]
    fn rails_may_ask_for_more_time() {
        let mut story = Story::new();
        story.failed(0, false, Some(7), 0);
        assert_eq!(story.next_probe(), Some(7_000));
        story.failed(0, false, Some(9), 100);
        assert_eq!(story.next_probe(), Some(9_100));
        story.failed(9_100, true, Some(300), 9_100);
        assert_eq!(story.next_probe(), Some(309_100));
    }

    #[test]
    fn half_open_lets_one_request_through_until_it_ends() {
        let mut story = Story::new();
        assert_eq!(story.permit(0), Some(false));
        story.failed(0, false, None, 0);
        assert_eq!([249, 250, 300].map(|now| story.permit(now)), [None, Some(true), None]);
        story.failed(250, true, None, 300);
        assert_eq!([549, 550].map(|now| story.permit(now)), [None, Some(true)]);
        story.answered(true, 900);
        assert_eq!([900, 900].map(|now| story.permit(now)), [Some(false); 2]);
    }

    #[test]
    fn jitter_spreads_within_bounds() {
        for jitter in [0.0, 0.25, 1.0] {
            for pause in [spread(Duration::from_secs(1), jitter), backoff(3, jitter)] {
                assert!((750..=1_250).contains(&pause.as_millis()), "{pause:?}");
            }
        }
        assert_eq!(backoff(u32::MAX, MIDDLE), Duration::from_secs(5));
    }
}
