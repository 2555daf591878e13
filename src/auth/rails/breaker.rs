//! Whether Rails is taken to be up, and when it is to be tried again if not.
//!
//! Pure: time and chance are passed in.

use std::time::Duration;

use tokio::time::Instant;

/// Shortest and longest pause between two tries. In between it is a quarter of the outage so far: who waits out a
/// restart waits little longer than it takes.
const PAUSES: std::ops::RangeInclusive<Duration> = Duration::from_millis(250)..=Duration::from_secs(5);
const PART: u32 = 4;

/// Longest pause that Rails can ask for: five minutes are the period of its own limit.
const LONGEST_ASKED: Duration = Duration::from_mins(5);

/// Up or down, by what the last requests brought.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    outage: Option<Outage>,
    /// When Rails last answered.
    answered: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Outage {
    since: Instant,
    next_try: Instant,
}

/// What a failure means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failed {
    /// Rails is down, as of now.
    Opened,
    /// Rails is down, as was known.
    StillDown,
    /// Rails has answered others meanwhile.
    Alone,
}

impl Breaker {
    /// How long Rails has been down.
    pub(super) fn down_for(&self, now: Instant) -> Option<Duration> {
        self.outage.map(|outage| now.saturating_duration_since(outage.since))
    }

    /// When Rails is to be tried again; `None` when it is up.
    pub(super) fn next_try(&self) -> Option<Instant> {
        self.outage.map(|outage| outage.next_try)
    }

    /// Rails answered. While it is down, only the answer to a probe counts: others may have been on their way since
    /// before. Returns how long the outage was that ends.
    pub(super) fn answered(&mut self, probe: bool, now: Instant) -> Option<Duration> {
        self.answered = Some(now);
        let ends = self.outage.filter(|_| probe)?;
        self.outage = None;
        Some(now.saturating_duration_since(ends.since))
    }

    /// Rails could not answer a request made at `asked`. `chance` is from 0 to 1.
    pub(super) fn failed(
        &mut self,
        asked: Instant,
        probe: bool,
        retry_after: Option<Duration>,
        chance: f64,
        now: Instant,
    ) -> Failed {
        let asked_for = retry_after.unwrap_or_default().min(LONGEST_ASKED);
        match &mut self.outage {
            None if self.answered.is_some_and(|answered| answered > asked) => Failed::Alone,
            None => {
                let next_try = now + spread(*PAUSES.start(), chance).max(asked_for);
                self.outage = Some(Outage { since: now, next_try });
                Failed::Opened
            }
            Some(outage) => {
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
            self.0.failed(asked, probe, retry_after.map(Duration::from_secs), MIDDLE, now)
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
    fn the_first_failure_opens_and_a_probes_answer_closes() {
        let mut story = Story::new();
        assert_eq!(story.next_try(), None);
        assert_eq!(story.failed(0, false, None, 10), Failed::Opened);
        assert_eq!(story.next_try(), Some(260));
        assert_eq!(story.0.down_for(story.at(1_010)), Some(Duration::from_secs(1)));
        assert_eq!(story.answered(true, 270), Some(260));
        assert_eq!((story.next_try(), story.0.down_for(story.at(300))), (None, None));
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
