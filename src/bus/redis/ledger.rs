//! Whether something was published while no connection was subscribed: told from Redis' own count of `PUBLISH` calls.
//!
//! Pure: knows no connection and no clock. On one connection Redis sends answers and messages in the order in which it
//! executed what caused them. So when an answer says that `PUBLISH` was called N times, every message of these N that
//! was meant for this connection has been read from it. Channels and patterns that are subscribed must be disjoint: a
//! call brings at most one message.
//!
//! At the last answer on a connection the count was C, and m messages came after it, of any channel. On the next
//! connection to the same process, r messages came before the first answer, which says N. Then N - r - (C + m) calls
//! were made of which no connection got a message. Some of these may have been on channels that are not subscribed;
//! when the number is 0, nothing was missed.

use std::time::Duration;

use super::info::{CommandStats, Process};
use crate::bus::Gap;

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
    /// Redis delivers what it does not count, so that its counts prove nothing.
    wrong: bool,
}

impl Ledger {
    /// A message came.
    pub(super) fn message(&mut self) {
        self.since = self.since.saturating_add(1);
    }

    /// Redis said which process it is.
    pub(super) fn process(&mut self, process: Option<Process>) {
        self.process = process;
    }

    /// Redis said what it has counted. An answer without counts changes nothing.
    pub(super) fn counted(&mut self, stats: Option<CommandStats>) {
        let Some(stats) = stats else { return };
        match &self.counted {
            None => self.early = self.since,
            Some(last) => {
                let received = last.publishes.checked_add(self.since);
                self.wrong |= last.continues_as(&stats) && received.is_none_or(|received| received > stats.publishes);
            }
        }
        self.since = 0;
        self.counted = Some(stats);
    }

    /// What a gap before or after this connection may be proved empty with. `Err` says why it cannot, for the log.
    pub(super) fn proof(&self) -> Result<(&Process, &CommandStats), &'static str> {
        match (&self.process, &self.counted) {
            // What is published at any node is delivered at each.
            (Some(Process { cluster: true, .. }), _) => {
                Err("redis is a cluster, whose nodes count apart; use a single Redis")
            }
            (Some(process), Some(stats)) if !self.wrong => Ok((process, stats)),
            _ => Err("redis does not count PUBLISH in INFO commandstats"),
        }
    }

    /// What the gap between `before` and this connection was. To be called once, right after the first answers.
    ///
    /// `exited` is how long before these Redis closed the connection `before`, if it did so between two replies, all of
    /// it was read, and nothing has listened from then on until this connection. Otherwise something that was sent may
    /// be lost, or Redis went on without the connection.
    pub(super) fn gap_after(&mut self, before: &Ledger, exited: Option<Duration>) -> Gap {
        self.wrong |= before.wrong;
        if self.is_complete_after(before, exited) == Some(true) { Gap::Empty } else { Gap::Possible }
    }

    fn is_complete_after(&self, before: &Ledger, exited: Option<Duration>) -> Option<bool> {
        let ((process, stats), (last_process, last_stats)) = (self.proof().ok()?, before.proof().ok()?);
        let missed_or_known = stats.publishes.checked_sub(self.early)?;
        Some(if process.run_id == last_process.run_id {
            last_stats.continues_as(stats) && Some(missed_or_known) == last_stats.publishes.checked_add(before.since)
        } else {
            // No Redis ran between the two, unless this one ran before the other had ended: then it is not the same one
            // restarted, and what was published on the other may not have come here.
            let restarted = process.uptime <= exited? + UPTIME_PRECISION;
            restarted && stats.were_never_reset() && missed_or_known == 0
        })
    }
}

#[cfg(test)]
mod tests;
