//! Sets up the log once, and keeps repeated warnings from flooding it. Must not know what is logged.

use std::{
    io::{self, IsTerminal},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt, util::TryInitError};

use crate::config::{LogConfig, LogFormat};

/// Sends events to standard output from now on, until the process ends. Both forms go there, as with the Node server:
/// collectors find the log in the same place. Colours only on a terminal. The configuration has checked the filter. Fails
/// when something else in this process already logs.
pub fn init(log: &LogConfig) -> Result<(), TryInitError> {
    let registry = tracing_subscriber::registry().with(EnvFilter::builder().parse_lossy(&log.filter));
    match log.format {
        LogFormat::Text => registry.with(fmt::layer().with_ansi(io::stdout().is_terminal())).try_init(),
        LogFormat::Json => registry.with(fmt::layer().json().flatten_event(true)).try_init(),
    }
}

/// An error with all its causes, on one line. A cause that the line names already is not repeated.
pub fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(error.source(), |cause| cause.source())
        .map(ToString::to_string)
        .fold(error.to_string(), |line, cause| if line.contains(&cause) { line } else { format!("{line}: {cause}") })
}

/// Often enough to be seen, rarely enough to leave the log to other events.
const PERIOD: Duration = Duration::from_mins(1);

/// Rate limit of one event per minute for one kind of event; counts the others. May be a `static`.
#[derive(Debug, Default)]
pub struct Throttle {
    /// When the last event was reported, and how many were suppressed since.
    state: Mutex<(Option<Instant>, u64)>,
}

impl Throttle {
    /// A limit that lets the first event through.
    pub const fn new() -> Self {
        Self { state: Mutex::new((None, 0)) }
    }

    /// If the event of this moment may be reported: the number of events suppressed since the last report.
    pub fn allow(&self, now: Instant) -> Option<u64> {
        // The state is whole after every statement, so a poisoned lock is as good as any.
        let mut state = self.state.lock();
        let (last, suppressed) = &mut *state;
        if last.is_some_and(|last| now.saturating_duration_since(last) < PERIOD) {
            *suppressed = suppressed.saturating_add(1);
            return None;
        }
        *last = Some(now);
        Some(std::mem::take(suppressed))
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn the_log_is_set_up_once() {
        let log = LogConfig { format: LogFormat::Json, filter: "off".to_owned() };
        assert!(init(&log).is_ok());
        assert!(init(&log).is_err());
    }

    #[test]
    fn one_a_minute_and_the_rest_is_counted() {
        let (throttle, start) = (Throttle::new(), Instant::now());
        let at = |seconds| throttle.allow(start + Duration::from_secs(seconds));
        assert_eq!([at(0), at(0), at(59), at(60)], [Some(0), None, None, Some(2)]);
        assert_eq!([at(61), at(300), at(301), at(299)], [None, Some(1), None, None]);
    }

    #[test]
    fn threads_share_the_one_event() {
        static THROTTLE: Throttle = Throttle::new();
        let now = Instant::now();
        let workers = (0..8).map(|_| thread::spawn(move || (0..100).filter_map(|_| THROTTLE.allow(now)).count()));
        let workers = workers.collect::<Vec<_>>();
        assert_eq!(workers.into_iter().map(|worker| worker.join().unwrap()).sum::<usize>(), 1);
        assert_eq!(THROTTLE.allow(now + PERIOD), Some(799));
    }
}
