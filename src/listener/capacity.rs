//! How many connections the limit of open files allows.

use super::places::OVERFLOW;

/// File descriptors for everything that is no connection of a browser: standard streams, the runtime, the port, Redis,
/// its sentinels, the log, a database; and connections that have to go, but have not gone yet.
const RESERVED: usize = 64;

/// Most connections where nothing else is said: at 2.4 kB each, 240 MB.
const DEFAULT_MOST: usize = 100_000;

/// Fewest connections. Below that there is no use in starting, and a wrong limit should show itself in the log.
const LEAST: usize = 16;

/// How many connections are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Connections at a time.
    pub connections: usize,
    /// The limit of open files that is missing, if there are fewer than were asked for or could be of use.
    pub needs_open_files: Option<usize>,
}

/// What a limit of `open_files` allows of the `wanted` connections, when `others` connect to other servers.
pub fn capacity(open_files: u64, wanted: Option<usize>, others: usize) -> Capacity {
    let reserve = RESERVED + OVERFLOW + others;
    let allowed = usize::try_from(open_files).unwrap_or(usize::MAX).saturating_sub(reserve);
    let asked = wanted.unwrap_or(allowed.clamp(LEAST, DEFAULT_MOST));
    let connections = asked.min(allowed.max(LEAST));
    Capacity { connections, needs_open_files: (asked > allowed).then(|| asked + reserve) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_fit_below_the_limit_of_open_files() {
        let of = |open_files, wanted| {
            let Capacity { connections, needs_open_files } = capacity(open_files, wanted, 16);
            (connections, needs_open_files)
        };
        assert_eq!(of(1_024, None), (912, None));
        assert_eq!(of(u64::MAX, None), (DEFAULT_MOST, None));
        assert_eq!(of(1_024, Some(100)), (100, None));
        assert_eq!(of(1 << 30, Some(500_000)), (500_000, None));
        assert_eq!(of(1_024, Some(2_000)), (912, Some(2_112)));
        assert_eq!(of(20, None), (LEAST, Some(128)));
        assert_eq!(of(20, Some(5)), (5, Some(117)));
    }
}
