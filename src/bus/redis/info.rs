//! What Redis says of itself in answer to `INFO`, as far as it helps to tell whether messages were missed.
//!
//! Pure. See <https://redis.io/docs/latest/commands/info/>.

use std::time::Duration;

/// From `INFO commandstats`: what was called since Redis was started, or since its statistics were reset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CommandStats {
    /// Calls of `PUBLISH`, on whatever channel, direct, in `MULTI` or from scripts.
    pub(super) publishes: u64,
    /// What is said of `CONFIG RESETSTAT`, which sets all of this to zero and then counts itself: two answers that say
    /// the same have no reset between them. Before Redis 7 it is part of what is said of `CONFIG`.
    resets: Option<Box<str>>,
}

impl CommandStats {
    /// Reads the section; `None` when the text has no such section.
    ///
    /// Commands that were never called are not named. The subscriber that asks has called `SUBSCRIBE`, so this must be
    /// named, or a reset.
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        let (mut publishes, mut resets, mut complete) = (0, None, false);
        for (name, value) in fields(text) {
            match name {
                "cmdstat_publish" => publishes = value.strip_prefix("calls=")?.split(',').next()?.parse().ok()?,
                "cmdstat_config|resetstat" | "cmdstat_config" => resets = Some(value.into()),
                "cmdstat_subscribe" => {}
                _ => continue,
            }
            complete = true;
        }
        complete.then_some(Self { publishes, resets })
    }

    /// Whether everything since the start of the process is counted.
    pub(super) fn were_never_reset(&self) -> bool {
        self.resets.is_none()
    }

    /// Whether `later`, of the same process, counts from the same zero.
    pub(super) fn continues_as(&self, later: &Self) -> bool {
        self.resets == later.resets
    }
}

/// From `INFO server`: which process answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Process {
    /// Another one after each start.
    pub(super) run_id: Box<str>,
    /// In whole seconds, at most one more than it is.
    pub(super) uptime: Duration,
    /// Whether messages also come from other nodes, which count them.
    pub(super) cluster: bool,
}

impl Process {
    /// Reads the section; `None` when the text has no such section.
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
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
mod tests {
    use super::*;

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
        assert!(never.continues_as(&never) && once.continues_as(&once));
        assert!(!never.continues_as(&once) && !once.continues_as(&again) && !once.continues_as(&never));
    }

    #[test]
    fn the_process_is_known_by_its_run_id() {
        let text = "# Server\r\nredis_mode:standalone\r\nrun_id:6a63\r\nuptime_in_seconds:61\r\nhz:10\r\n";
        let expected = Process { run_id: "6a63".into(), uptime: Duration::from_secs(61), cluster: false };
        assert_eq!(Process::parse(text.as_bytes()), Some(expected));
        assert!(Process::parse(text.replace("standalone", "cluster").as_bytes()).unwrap().cluster);
        for text in ["", "run_id:6a63\r\n", "run_id:\r\nuptime_in_seconds:1\r\n", "run_id:a\r\nuptime_in_seconds:-\r\n"]
        {
            assert_eq!(Process::parse(text.as_bytes()), None, "{text}");
        }
    }
}
