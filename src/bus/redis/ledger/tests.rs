//! The arithmetic beside a small model of Redis that knows what was really missed.

use proptest::{collection::vec, prelude::*};

use super::*;

fn counts(publishes: u64, resets: u64) -> Vec<u8> {
    let resets = match resets {
        0 => String::new(),
        times => format!("cmdstat_config|resetstat:calls=1,usec={times}\r\n"),
    };
    format!("cmdstat_publish:calls={publishes},usec=1\r\n{resets}").into_bytes()
}

fn stats(publishes: u64, resets: u64) -> Option<CommandStats> {
    CommandStats::parse(&counts(publishes, resets))
}

fn process(run_id: u64, uptime: u64) -> Process {
    Process { run_id: run_id.to_string().into(), uptime: Duration::from_secs(uptime), cluster: false }
}

/// A connection to process 1 whose first answer says `publishes`, with `early` messages before it and `since` after.
fn ledger(early: u64, publishes: u64, since: u64) -> Ledger {
    let mut ledger = Ledger::default();
    (0..early).for_each(|_| ledger.message());
    ledger.counted(&counts(publishes, 0));
    ledger.process = Some(process(1, 1_000));
    ledger.direct = true;
    (0..since).for_each(|_| ledger.message());
    ledger
}

fn restarted(early: u64, publishes: u64, uptime: u64) -> Ledger {
    let mut ledger = ledger(early, publishes, 0);
    ledger.process = Some(process(2, uptime));
    ledger
}

/// How the connection before ended.
const EXITED: Option<Duration> = Some(Duration::from_secs(10));
const CUT: Option<Duration> = None;

#[test]
fn a_position_counts_what_was_yielded() {
    let count = |ledger: &Ledger, waiting| ledger.position(waiting).map(|position| position.count);
    assert_eq!(count(&ledger(3, 5, 0), 3), Some(2), "before the first message");
    assert_eq!(count(&ledger(3, 5, 0), 0), Some(5));
    assert_eq!(count(&ledger(3, 5, 2), 0), Some(7));
    assert_eq!(count(&Ledger::default(), 0), None);
    let run = |run_id: &str, resets| {
        let mut ledger = ledger(0, 5, 0);
        ledger.process(format!("run_id:{run_id}\r\nuptime_in_seconds:1\r\n").as_bytes());
        ledger.counted(&counts(5, resets));
        ledger.position(0).unwrap().run
    };
    assert_eq!(run("a", 0), run("a", 0));
    assert!(run("a", 0) != run("b", 0) && run("a", 0) != run("a", 1) && run("a", 1) != run("a", 2));
}

#[test]
fn a_gap_is_empty_when_every_call_is_accounted_for() {
    for (before, mut after, gap) in [
        (ledger(0, 5, 0), ledger(0, 5, 0), Gap::Empty),
        (ledger(0, 5, 2), ledger(0, 7, 0), Gap::Empty),
        (ledger(3, 5, 2), ledger(1, 8, 0), Gap::Empty),
        (ledger(0, 5, 2), ledger(0, 8, 0), Gap::Possible),
        (ledger(0, 5, 2), ledger(2, 8, 0), Gap::Possible),
        (ledger(0, 5, 2), ledger(0, 6, 0), Gap::Possible),
        (ledger(0, 0, 0), ledger(1, 0, 0), Gap::Possible),
        (ledger(0, u64::MAX, 1), ledger(0, u64::MAX, 0), Gap::Possible),
    ] {
        for ended in [EXITED, CUT] {
            assert_eq!(after.gap_after(&before, ended), gap, "{before:?}, {after:?}");
        }
    }
}

#[test]
fn a_restarted_redis_is_complete_when_nothing_was_published_before_the_subscription() {
    let before = ledger(0, 5, 2);
    for (mut after, ended, gap) in [
        (restarted(0, 0, 9), EXITED, Gap::Empty),
        (restarted(2, 2, 11), EXITED, Gap::Empty),
        (restarted(0, 1, 9), EXITED, Gap::Possible),
        (restarted(0, 7, 9), EXITED, Gap::Possible),
        (restarted(0, 0, 9), CUT, Gap::Possible),
        // It ran beside the other one: a replica that was promoted, or another server at the same address.
        (restarted(0, 0, 12), EXITED, Gap::Possible),
    ] {
        assert_eq!(after.gap_after(&before, ended), gap, "{after:?}, {ended:?}");
    }
}

#[test]
fn counts_that_were_reset_prove_nothing_even_where_they_agree() {
    let (before, mut after) = (ledger(0, 5, 0), ledger(0, 5, 0));
    after.counted = stats(5, 1);
    assert_eq!(after.gap_after(&before, EXITED), Gap::Possible);
    let mut after = restarted(0, 0, 9);
    after.counted = stats(0, 1);
    assert_eq!(after.gap_after(&before, EXITED), Gap::Possible);
    // On a connection that lives, it is only another zero to count from.
    let mut before = ledger(0, 5, 1);
    before.counted(&counts(0, 1));
    let mut after = ledger(0, 0, 0);
    after.counted = stats(0, 1);
    assert_eq!(after.gap_after(&before, EXITED), Gap::Empty);
}

#[test]
fn answers_that_are_missing_prove_nothing() {
    let nothing = Ledger::default();
    let mut no_process = ledger(0, 5, 0);
    no_process.process(b"");
    let mut cluster = ledger(0, 5, 0);
    cluster.process.as_mut().unwrap().cluster = true;
    let no_count = Ledger { process: Some(process(1, 1)), ..Ledger::default() };
    for (unproved, reason) in [
        (nothing, "does not count"),
        (no_process, "does not count"),
        (no_count, "does not count"),
        (cluster, "cluster"),
    ] {
        assert!(unproved.proof().unwrap_err().contains(reason));
        assert_eq!(unproved.clone().gap_after(&ledger(0, 5, 0), EXITED), Gap::Possible);
        assert_eq!(ledger(0, 5, 0).gap_after(&unproved, EXITED), Gap::Possible);
    }
}

#[test]
fn an_answer_without_counts_leaves_what_is_known() {
    let mut before = ledger(0, 5, 2);
    before.counted(b"");
    assert_eq!(ledger(0, 7, 0).gap_after(&before, EXITED), Gap::Empty);
}

#[test]
fn a_redis_that_delivers_what_it_does_not_count_is_not_believed_again() {
    let mut before = ledger(0, 5, 2);
    before.counted(&counts(6, 0));
    assert!(before.proof().is_err());
    let mut after = ledger(0, 6, 0);
    assert_eq!(after.gap_after(&before, EXITED), Gap::Possible);
    assert_eq!(ledger(0, 6, 0).gap_after(&after, EXITED), Gap::Possible);
}

/// What happens to the model, in turn.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// On a channel that is subscribed.
    Publish,
    /// On another one.
    PublishElsewhere,
    /// The subscriber asks for the count.
    Ask,
    /// The subscription ends, and the last messages that were sent on it are lost.
    Cut {
        lost: usize,
    },
    /// A new connection is subscribed; its first answer comes after some messages.
    Subscribe {
        early: usize,
    },
    Reset,
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => Just(Step::Publish),
        1 => Just(Step::PublishElsewhere),
        2 => Just(Step::Ask),
        2 => (0_usize..3).prop_map(|lost| Step::Cut { lost }),
        3 => (0_usize..3).prop_map(|early| Step::Subscribe { early }),
        1 => Just(Step::Reset),
        1 => Just(Step::Restart),
    ];
    vec(step, 0..40)
}

struct Model {
    run_id: u64,
    publishes: u64,
    resets: u64,
    /// The subscriber's side, with the messages it has been sent and has not read.
    live: Option<(Ledger, usize)>,
    before: Option<(Ledger, Option<Duration>)>,
    /// Messages for the subscriber that it did not get, and calls on other channels, since the last subscription.
    missed: usize,
    elsewhere: usize,
    /// Statistics were set to zero, or Redis ended, since the last answer on the last connection.
    reset: bool,
    restarted: bool,
}

impl Model {
    /// The subscriber reads `unread` messages.
    fn read(&mut self) {
        if let Some((ledger, unread)) = &mut self.live {
            (0..std::mem::take(unread)).for_each(|_| ledger.message());
        }
    }

    fn publish(&mut self, elsewhere: bool) {
        self.publishes += 1;
        match &mut self.live {
            _ if elsewhere => self.elsewhere += 1,
            Some((_, unread)) => *unread += 1,
            None => self.missed += 1,
        }
    }

    fn ask(&mut self) {
        self.read();
        if let Some((ledger, _)) = &mut self.live {
            ledger.counted(&counts(self.publishes, self.resets));
            (self.reset, self.restarted, self.elsewhere) = (false, false, 0);
        }
    }

    fn cut(&mut self, lost: usize) {
        let Some((_, unread)) = &mut self.live else { return };
        let lost = lost.min(*unread);
        *unread -= lost;
        self.read();
        self.missed += lost;
        self.before = self.live.take().map(|(ledger, _)| (ledger, CUT));
    }

    /// What the gap is taken for, if there was one, and whether more than was missed speaks against its being empty.
    fn subscribe(&mut self, early: usize) -> Option<(Gap, usize, bool)> {
        if self.live.is_some() {
            return None;
        }
        self.live = Some((Ledger { direct: true, ..Ledger::default() }, 0));
        (0..early).for_each(|_| self.publish(false));
        self.read();
        let (ledger, _) = self.live.as_mut()?;
        ledger.counted(&counts(self.publishes, self.resets));
        ledger.process = Some(process(self.run_id, 1));
        let missed = std::mem::take(&mut self.missed);
        let blurred = self.reset || self.elsewhere > 0;
        let gap = self.before.take().map(|(before, end)| {
            let blurred = blurred || self.restarted && end == CUT;
            (ledger.gap_after(&before, end), missed, blurred)
        });
        (self.reset, self.restarted, self.elsewhere) = (false, false, 0);
        gap
    }
}

proptest! {
    #[test]
    fn a_gap_that_is_taken_for_empty_was_empty(steps in steps()) {
        let mut model = Model {
            run_id: 1, publishes: 0, resets: 0, live: None, before: None, missed: 0, elsewhere: 0, reset: false,
            restarted: false,
        };
        for step in steps {
            match step {
                Step::Publish => model.publish(false),
                Step::PublishElsewhere => model.publish(true),
                Step::Ask => model.ask(),
                Step::Cut { lost } => model.cut(lost),
                Step::Reset => {
                    model.publishes = 0;
                    model.resets += 1;
                    model.reset = true;
                }
                Step::Restart => {
                    let was_live = model.live.is_some();
                    model.cut(0);
                    if let Some((_, end)) = &mut model.before {
                        // Dials in between have met a Redis that was started after the subscription had ended.
                        *end = if was_live { EXITED } else { CUT };
                    }
                    // What is published while it is down fails at the publisher.
                    (model.run_id, model.publishes, model.resets) = (model.run_id + 1, 0, 0);
                    model.restarted = true;
                }
                Step::Subscribe { early } => {
                    if let Some((gap, missed, blurred)) = model.subscribe(early) {
                        match gap {
                            Gap::Empty => prop_assert_eq!(missed, 0),
                            gap => {
                                prop_assert_eq!(gap, Gap::Possible);
                                prop_assert!(missed > 0 || blurred, "a gap is taken for not empty without a reason");
                            }
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn publishes_are_read_and_a_command_that_was_never_called_is_zero() {
    let stats = |text: &str| CommandStats::parse(text.as_bytes()).map(|stats| stats.publishes);
    let publish = "cmdstat_publish:calls=12,usec=7,usec_per_call=7.00,rejected_calls=0,failed_calls=0\r\n";
    assert_eq!(stats(&format!("# Commandstats\r\n{publish}cmdstat_spublish:calls=3,usec=1\r\n")), Some(12));
    assert_eq!(stats("# Commandstats\r\ncmdstat_subscribe:calls=1,usec=4\r\n"), Some(0));
    assert_eq!(stats("# Commandstats\r\ncmdstat_config|resetstat:calls=1,usec=4\r\n"), Some(0));
    for text in ["", "# Commandstats\r\n", "redis_version:7.0.15\r\n", "cmdstat_PUBLISH:calls=1,\r\n"] {
        assert_eq!(stats(text), None, "{text}");
    }
    for calls in ["", "-1", "x", "18446744073709551616"] {
        assert_eq!(stats(&format!("cmdstat_subscribe:calls=1,\r\ncmdstat_publish:calls={calls},usec=1\r\n")), None);
    }
}

#[test]
fn a_reset_shows_even_where_counts_agree() {
    let stats = |text: &str| CommandStats::parse(text.as_bytes()).unwrap();
    let publish = "cmdstat_publish:calls=1,usec=7\r\n";
    let never = stats(publish);
    let once = stats(&format!("{publish}cmdstat_config|resetstat:calls=1,usec=156\r\n"));
    let again = stats(&format!("{publish}cmdstat_config|resetstat:calls=1,usec=49\r\n"));
    let [demoted, older] = ["replicaof", "slaveof"].map(|name| stats(&format!("{publish}cmdstat_{name}:calls=1\r\n")));
    assert!([&demoted, &older].iter().all(|stats| stats.resets.is_some()) && demoted.resets != older.resets);
    assert_eq!(never.resets, None);
    assert!(never.resets != once.resets && once.resets != again.resets);
}

#[test]
fn the_process_is_known_by_its_run_id() {
    let text = "# Server\r\nredis_mode:standalone\r\nrun_id:6a63\r\nuptime_in_seconds:61\r\nhz:10\r\n";
    let expected = Process { run_id: "6a63".into(), uptime: Duration::from_secs(61), cluster: false };
    assert_eq!(Process::parse(text.as_bytes()), Some(expected));
    assert!(Process::parse(text.replace("standalone", "cluster").as_bytes()).unwrap().cluster);
    for text in ["", "run_id:6a63\r\n", "run_id:\r\nuptime_in_seconds:1\r\n", "run_id:a\r\nuptime_in_seconds:-\r\n"] {
        assert_eq!(Process::parse(text.as_bytes()), None, "{text}");
    }
}
