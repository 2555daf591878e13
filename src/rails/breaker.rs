//! Whether Rails is taken to be up, and when it is to be tried again if not.
//!
//! Pure: time and chance are passed in.

use std::time::Duration;

use tokio::time::Instant;

/// Shortest and longest pause between two tries. In between it is a quarter of the outage so far: who waits out a
/// restart waits little longer than it takes.
const PAUSES: std::ops::RangeInclusive<Duration> = Duration::from_millis(250)..=Duration::from_secs(5);
const PART: u32 = 4;

/// Failures without an answer in between that are an outage. One could be a matter of the document asked for, and more
/// than these would leave many to find out.
const FAILURES: u32 = 3;

/// Longest pause that Rails can ask for: five minutes are the period of its own limit.
const LONGEST_ASKED: Duration = Duration::from_mins(5);

/// Up or down, by what the last requests brought.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    outage: Option<Outage>,
    /// When Rails last answered.
    answered: Option<Instant>,
    /// Failures since then, while Rails is taken to be up.
    failures: u32,
}

#[derive(Clone, Copy, Debug)]
struct Outage {
    since: Instant,
    last_failure: Instant,
    next_try: Instant,
}

/// What a failed request tells of Rails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Symptom {
    /// Any other request would have failed as well.
    pub(super) concerns_all: bool,
    /// When Rails wants to be asked again.
    pub(super) retry_after: Option<Duration>,
}

/// What a failure means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failed {
    /// Rails is down, as of now.
    Opened,
    /// Rails is down, as was known.
    StillDown,
    /// Rails is not taken to be down: it has answered others meanwhile, or too little has failed.
    Alone,
}

impl Breaker {
    /// When Rails is to be tried again; `None` when it is up.
    pub(super) fn next_try(&self) -> Option<Instant> {
        self.outage.map(|outage| outage.next_try)
    }

    /// Whether who waits for so long would wait in vain as far as one can tell: Rails is tried no sooner, or has been
    /// down for longer already. It is not known to be when nobody has tried for that long.
    pub(super) fn is_hopeless(&self, hold: Duration, now: Instant) -> bool {
        self.outage.is_some_and(|outage| {
            let known = now.saturating_duration_since(outage.last_failure) <= hold;
            outage.next_try.saturating_duration_since(now) >= hold
                || (known && now.saturating_duration_since(outage.since) >= hold)
        })
    }

    /// Rails answered. While it is down, only the answer to a probe counts: others may have been on their way since
    /// before. Returns how long the outage was that ends.
    pub(super) fn answered(&mut self, probe: bool, now: Instant) -> Option<Duration> {
        self.answered = Some(now);
        self.failures = 0;
        let ends = self.outage.filter(|_| probe)?;
        self.outage = None;
        Some(now.saturating_duration_since(ends.since))
    }

    /// Rails could not answer a request made at `asked`. `chance` is from 0 to 1.
    pub(super) fn failed(
        &mut self,
        asked: Instant,
        probe: bool,
        symptom: Symptom,
        chance: f64,
        now: Instant,
    ) -> Failed {
        let asked_for = symptom.retry_after.unwrap_or_default().min(LONGEST_ASKED);
        match &mut self.outage {
            None if self.answered.is_some_and(|answered| answered > asked) => Failed::Alone,
            None => {
                self.failures += 1;
                if self.failures < FAILURES && !symptom.concerns_all {
                    return Failed::Alone;
                }
                let next_try = now + spread(*PAUSES.start(), chance).max(asked_for);
                self.outage = Some(Outage { since: now, last_failure: now, next_try });
                Failed::Opened
            }
            Some(outage) => {
                outage.last_failure = now;
                let pause = if probe { pause(now.saturating_duration_since(outage.since), chance) } else { asked_for };
                outage.next_try = outage.next_try.max(now + pause.max(asked_for));
                Failed::StillDown
            }
        }
    }
}

/// The pause before the next try of something that has failed for so long.
fn pause(so_far: Duration, chance: f64) -> Duration {
    spread((so_far / PART).clamp(*PAUSES.start(), *PAUSES.end()), chance)
}

/// The pause before a request that failed alone is made again.
pub(super) fn pause_after(failures: u32, retry_after: Option<Duration>, chance: f64) -> Duration {
    let doubled = *PAUSES.start() * 2_u32.saturating_pow(failures.saturating_sub(1).min(10));
    spread(doubled.min(*PAUSES.end()), chance).max(retry_after.unwrap_or_default().min(LONGEST_ASKED))
}

/// 75 to 125 %, so that several nodes do not knock at the same time.
fn spread(pause: Duration, chance: f64) -> Duration {
    pause.mul_f64(0.75 + chance / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIDDLE: f64 = 0.5;

    struct Story(Breaker, Instant);

    impl Story {
        fn new() -> Self {
            Self(Breaker::default(), Instant::now())
        }

        fn at(&self, millis: u64) -> Instant {
            self.1 + Duration::from_millis(millis)
        }

        fn failed(&mut self, asked: u64, probe: bool, retry_after: Option<u64>, now: u64) -> Failed {
            let (asked, now) = (self.at(asked), self.at(now));
            let symptom = Symptom { concerns_all: true, retry_after: retry_after.map(Duration::from_secs) };
            self.0.failed(asked, probe, symptom, MIDDLE, now)
        }

        /// A failure that may be a matter of the question.
        fn failed_alone(&mut self, at: u64) -> Failed {
            let at = self.at(at);
            self.0.failed(at, false, Symptom::default(), MIDDLE, at)
        }

        fn answered(&mut self, probe: bool, now: u64) -> Option<u128> {
            let now = self.at(now);
            self.0.answered(probe, now).map(|outage| outage.as_millis())
        }

        fn next_try(&self) -> Option<u128> {
            self.0.next_try().map(|at| (at - self.1).as_millis())
        }
    }

    #[test]
    fn failures_that_may_be_a_matter_of_the_question_open_when_nothing_else_is_heard() {
        let mut story = Story::new();
        assert_eq!([1, 2].map(|at| story.failed_alone(at)), [Failed::Alone; 2]);
        story.answered(false, 3);
        assert_eq!([4, 5, 6].map(|at| story.failed_alone(at)), [Failed::Alone, Failed::Alone, Failed::Opened]);
        assert_eq!(story.failed_alone(7), Failed::StillDown);
        story.answered(true, 8);
        assert_eq!(story.failed_alone(9), Failed::Alone, "after an outage they count anew");
    }

    #[test]
    fn it_is_hopeless_to_wait_for_what_has_been_down_for_longer() {
        let mut story = Story::new();
        let hopeless = |story: &Story, at| story.0.is_hopeless(Duration::from_secs(10), story.at(at));
        assert!(!hopeless(&story, 0));
        story.failed(0, false, None, 0);
        story.failed(8_000, true, None, 8_000);
        assert_eq!([9_999, 10_000, 18_000].map(|at| hopeless(&story, at)), [false, true, true]);
        assert!(!hopeless(&story, 18_001), "nobody knows any more");
        story.failed(20_000, true, Some(30), 20_000);
        assert_eq!([40_000, 40_001].map(|at| hopeless(&story, at)), [true, false]);
    }

    #[test]
    fn the_first_failure_that_concerns_all_opens_and_a_probes_answer_closes() {
        let mut story = Story::new();
        assert_eq!(story.next_try(), None);
        assert_eq!(story.failed(0, false, None, 10), Failed::Opened);
        assert_eq!(story.next_try(), Some(260));
        assert_eq!(story.answered(true, 270), Some(260));
        assert_eq!(story.next_try(), None);
    }

    #[test]
    fn answers_to_older_requests_do_not_close() {
        let mut story = Story::new();
        story.failed(0, false, None, 10);
        assert_eq!(story.answered(false, 20), None);
        assert_eq!(story.next_try(), Some(260));
    }

    #[test]
    fn one_failure_among_answers_is_no_outage() {
        let mut story = Story::new();
        story.answered(false, 5_000);
        assert_eq!(story.failed(0, false, None, 10_000), Failed::Alone);
        assert_eq!(story.next_try(), None);
        assert_eq!(story.failed(5_001, false, None, 15_001), Failed::Opened);
    }

    #[test]
    fn pauses_grow_with_the_outage() {
        let mut story = Story::new();
        story.failed(0, false, None, 0);
        for (now, next) in [(250, 500), (2_000, 2_500), (8_000, 10_000), (60_000, 65_000), (600_000, 605_000)] {
            assert_eq!(story.failed(now, true, None, now), Failed::StillDown);
            assert_eq!(story.next_try(), Some(next), "{now}");
        }
        // Requests that had been on their way do not hasten or delay it.
        assert_eq!(story.failed(0, false, None, 600_001), Failed::StillDown);
        assert_eq!(story.next_try(), Some(605_000));
    }

    #[test]
    fn rails_may_ask_for_more_time_but_not_for_ever() {
        let mut story = Story::new();
        story.failed(0, false, Some(7), 0);
        assert_eq!(story.next_try(), Some(7_000));
        story.failed(0, false, Some(9), 100);
        assert_eq!(story.next_try(), Some(9_100));
        story.failed(9_100, true, Some(86_400), 9_100);
        assert_eq!(story.next_try(), Some(309_100));
    }

    #[test]
    fn chance_spreads_within_bounds() {
        for chance in [0.0, 0.25, 1.0] {
            for pause in [pause(Duration::from_secs(4), chance), pause_after(3, None, chance)] {
                assert!((750..=1_250).contains(&pause.as_millis()), "{pause:?}");
            }
        }
        assert_eq!(pause_after(u32::MAX, None, MIDDLE), Duration::from_secs(5));
        assert_eq!(pause_after(1, Some(Duration::from_secs(2)), MIDDLE), Duration::from_secs(2));
    }
}
