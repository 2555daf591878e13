//! Whether something was published while no connection was subscribed: told from Redis' own count of `PUBLISH` calls.
//!
//! Pure. On one connection Redis sends answers and messages in the order in which it executed what caused them. So when
//! an answer to `INFO` (<https://redis.io/docs/latest/commands/info/>) says that `PUBLISH` was called N times, every
//! message of these N that was meant for this connection has been read from it. Channels and patterns that are
//! subscribed must be disjoint: a call brings at most one message.
//!
//! At the last answer on a connection the count was C, and m messages came after it, of any channel. On the next
//! connection to the same process, r messages came before the first answer, which says N. Then N - r - (C + m) calls
//! were made of which no connection got a message. Some of these may have been on channels that are not subscribed;
//! when the number is 0, nothing was missed.

use std::time::Duration;

use xxhash_rust::xxh3::xxh3_64;

use crate::bus::{Gap, Position};

/// Precision of the uptime of Redis: it is the difference of two times in whole seconds.
const UPTIME_PRECISION: Duration = Duration::from_secs(1);

/// What one connection has received, beside what Redis has counted.
#[derive(Clone, Debug, Default)]
pub(super) struct Ledger {
    process: Option<Process>,
    /// The last answer.
    counted: Option<CommandStats>,
    /// Messages since that answer, or since the beginning.
    since: u64,
    /// Messages before the first answer.
    early: u64,
    /// [`Position::run`].
    run: u64,
    /// Whether nothing stands between this process and Redis, so that what ended the connection was the end of Redis.
    pub(super) direct: bool,
    /// Redis delivers what it does not count, so that its counts prove nothing.
    wrong: bool,
}

impl Ledger {
    /// A message came.
    pub(super) fn message(&mut self) {
        self.since = self.since.saturating_add(1);
    }

    /// Redis said which process it is.
    pub(super) fn process(&mut self, text: &[u8]) {
        self.process = Process::parse(text);
        self.name_run();
    }

    /// Redis said what it has counted. An answer without counts changes nothing.
    pub(super) fn counted(&mut self, text: &[u8]) {
        let Some(stats) = CommandStats::parse(text) else { return };
        match &self.counted {
            None => self.early = self.since,
            Some(last) => {
                let received = last.publishes.checked_add(self.since);
                self.wrong |= last.resets == stats.resets && received.is_none_or(|received| received > stats.publishes);
            }
        }
        self.since = 0;
        self.counted = Some(stats);
        self.name_run();
    }

    fn name_run(&mut self) {
        if let (Some(process), Some(stats)) = (&self.process, &self.counted) {
            let reset = stats.resets.as_deref().unwrap_or_default();
            self.run = xxh3_64(format!("{} {reset}", process.run_id).as_bytes());
        }
    }

    /// The position when all messages have been yielded but the last `waiting`; `None` when the counts prove nothing.
    pub(super) fn position(&self, waiting: usize) -> Option<Position> {
        let (_, stats) = self.proof().ok()?;
        let count = stats.publishes.checked_add(self.since)?.checked_sub(waiting as u64)?;
        Some(Position { run: self.run, count })
    }

    /// What a gap before or after this connection may be proved empty with. `Err` says why it cannot, for the log.
    pub(super) fn proof(&self) -> Result<(&Process, &CommandStats), &'static str> {
        match (&self.process, &self.counted) {
            // What is published at any node is delivered at each.
            (Some(Process { cluster: true, .. }), _) => {
                Err("redis is a cluster, whose nodes count apart; use a single one")
            }
            (Some(process), Some(stats)) if !self.wrong => Ok((process, stats)),
            _ => Err("redis does not count PUBLISH in INFO commandstats"),
        }
    }

    /// What the gap between `before` and this connection was. To be called once, right after the first answers.
    ///
    /// `exited` is how long before these Redis closed the connection `before`, if it did so between two replies, all of
    /// it was read, and nothing has listened from then on until this connection. Otherwise something that was sent may
    /// be lost, or Redis went on without the connection; as behind a proxy, which may close and refuse connections while
    /// Redis lives.
    pub(super) fn gap_after(&mut self, before: &Ledger, exited: Option<Duration>) -> Gap {
        self.wrong |= before.wrong;
        let (Ok((process, stats)), Ok((last_process, last))) = (self.proof(), before.proof()) else {
            return Gap::Possible;
        };
        let Some(missed_or_known) = stats.publishes.checked_sub(self.early) else { return Gap::Possible };
        let empty = if process.run_id == last_process.run_id {
            last.resets == stats.resets && last.publishes.checked_add(before.since) == Some(missed_or_known)
        } else {
            // No Redis ran between the two, unless this one ran before the other had ended: then it is not the same one
            // restarted, and what was published on the other may not have come here.
            let restarted = exited.is_some_and(|ago| process.uptime <= ago + UPTIME_PRECISION);
            before.direct && restarted && stats.resets.is_none() && missed_or_known == 0
        };
        if empty { Gap::Empty } else { Gap::Possible }
    }
}

/// From `INFO commandstats`: what was called since Redis was started, or since its statistics were reset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CommandStats {
    /// Calls of `PUBLISH`, on whatever channel, direct, in `MULTI` or from scripts.
    publishes: u64,
    /// What is said of `CONFIG RESETSTAT`, which sets all of this to zero and then counts itself: two answers that say
    /// the same have no reset between them. Before Redis 7 it is part of what is said of `CONFIG`. And what is said of
    /// `REPLICAOF`: while Redis is a replica, messages may be lost on the way from its primary.
    resets: Option<Box<str>>,
}

impl CommandStats {
    /// `None` when the text has no such section. Commands that were never called are not named; the subscriber that
    /// asks has called `SUBSCRIBE`, so this must be named, or a reset.
    fn parse(text: &[u8]) -> Option<Self> {
        let (mut publishes, mut resets, mut complete) = (0, None, false);
        for (name, value) in fields(text) {
            match name {
                "cmdstat_publish" => publishes = value.strip_prefix("calls=")?.split(',').next()?.parse().ok()?,
                "cmdstat_config|resetstat" | "cmdstat_config" | "cmdstat_replicaof" | "cmdstat_slaveof" => {
                    resets = Some([resets.as_deref().unwrap_or_default(), name, value].concat().into());
                }
                "cmdstat_subscribe" => {}
                _ => continue,
            }
            complete = true;
        }
        complete.then_some(Self { publishes, resets })
    }
}

/// From `INFO server`: which process answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Process {
    /// Another one after each start.
    run_id: Box<str>,
    /// In whole seconds, at most one more than it is.
    uptime: Duration,
    /// Whether messages also come from other nodes, which count them.
    cluster: bool,
}

impl Process {
    /// `None` when the text has no such section.
    fn parse(text: &[u8]) -> Option<Self> {
        let value = |name| fields(text).find(|(known, _)| *known == name).map(|(_, value)| value);
        Some(Self {
            run_id: value("run_id").filter(|id| !id.is_empty())?.into(),
            uptime: Duration::from_secs(value("uptime_in_seconds")?.parse().ok()?),
            cluster: value("redis_mode") == Some("cluster"),
        })
    }
}

/// Names and values of the lines that have both. Redis writes them in ASCII.
fn fields(text: &[u8]) -> impl Iterator<Item = (&str, &str)> {
    str::from_utf8(text).unwrap_or_default().lines().filter_map(|line| line.split_once(':'))
}

#[cfg(test)]
mod tests;
