//! Places for connections, and the choice of the connection that is displaced when all are taken.
//!
//! Without I/O. A connection that has not made a request is silent. Silent connections cost a stranger nothing, so they
//! are the first to go, the oldest first. Beyond the regular places a few are kept for the overflow: requests that are
//! refused properly, and questions about health, which must be answered while strangers hold everything else.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use futures_util::future::AbortHandle;

use crate::metrics::{Counter, Metrics};
use parking_lot::Mutex;

/// Silent connections at a time. A browser sends its request right after the handshake of TCP. When 19,400 returned within
/// a second (the benchmark's `failover`), more than 4,096 requests were late at a time, and that bound cut off the oldest.
/// At 3.4 kB each these are 56 MB.
const MAX_SILENT: usize = 16_384;

/// Places beyond the regular ones. Each is taken for a moment: the answer is short, and then the connection ends.
pub(super) const OVERFLOW: usize = 32;

/// File descriptors for everything that is no connection of a browser: standard streams, the runtime, the port, Redis,
/// its sentinels, the log, a database; and displaced connections that are not closed yet.
const RESERVED_FILES: usize = 64;

/// Most connections unless a number is asked for: at 2.4 kB each, 240 MB.
const DEFAULT_MOST: usize = 100_000;

/// Fewest connections. Below that there is no use in starting, and a wrong limit should show itself in the log.
const LEAST: usize = 16;

/// How many connections are served: what a limit of `open_files` allows of the `wanted` ones, when `others` connect to
/// other servers. Beside it the limit that is missing, if these are fewer than were asked for or could be of use.
pub fn capacity(open_files: u64, wanted: Option<usize>, others: usize) -> (usize, Option<usize>) {
    let reserve = RESERVED_FILES + OVERFLOW + others;
    let allowed = usize::try_from(open_files).unwrap_or(usize::MAX).saturating_sub(reserve);
    let asked = wanted.unwrap_or(allowed.clamp(LEAST, DEFAULT_MOST));
    (asked.min(allowed.max(LEAST)), (asked > allowed).then(|| asked + reserve))
}

/// Places of one kind.
#[derive(Debug)]
pub(super) struct Places {
    most: usize,
    metrics: Metrics,
    occupied: Mutex<Occupied>,
}

#[derive(Debug, Default)]
struct Occupied {
    /// Descriptors in use. A displaced connection counts until it is closed.
    places: usize,
    /// Silent connections by their numbers: the oldest first.
    silent: BTreeMap<u64, AbortHandle>,
}

impl Places {
    pub(super) fn new(most: usize, metrics: Metrics) -> Arc<Self> {
        Arc::new(Self { most, metrics, occupied: Mutex::default() })
    }

    /// Takes a place for a connection, which `handle` can end, and says whether another connection has to go for it:
    /// until that has happened there is one descriptor too many. `None` when all are taken and none is silent.
    pub(super) fn take(self: &Arc<Self>, number: u64, handle: &AbortHandle) -> Option<(Place, bool)> {
        let mut occupied = self.occupied.lock();
        let is_full = occupied.places >= self.most;
        let displaces = (is_full || occupied.silent.len() >= MAX_SILENT) && self.end_oldest(&mut occupied);
        if is_full && !displaces {
            return None;
        }
        occupied.places += 1;
        occupied.silent.insert(number, handle.clone());
        Some((Place { places: Arc::clone(self), number, is_silent: AtomicBool::new(true) }, displaces))
    }

    /// Ends the connection that has been silent for longest; `false` when none is silent.
    pub(super) fn displace(&self) -> bool {
        self.end_oldest(&mut self.occupied.lock())
    }

    fn end_oldest(&self, occupied: &mut Occupied) -> bool {
        let Some((_, oldest)) = occupied.silent.pop_first() else { return false };
        oldest.abort();
        self.metrics.count(Counter::SilentDropped);
        true
    }
}

/// A place that is taken. To be kept for as long as the connection's descriptor is open.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
    number: u64,
    is_silent: AtomicBool,
}

impl Place {
    /// The connection has made a request; returns whether it is the first.
    pub(super) fn heard(&self) -> bool {
        let is_first = self.is_silent.swap(false, Ordering::Relaxed);
        if is_first {
            self.places.occupied.lock().silent.remove(&self.number);
        }
        is_first
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.heard();
        self.places.occupied.lock().places -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One connection, and the handle that shows whether it has to go.
    struct Connected {
        place: Place,
        displaces: bool,
        handle: AbortHandle,
    }

    fn connect(places: &Arc<Places>, number: u64) -> Option<Connected> {
        let (handle, _) = AbortHandle::new_pair();
        places.take(number, &handle).map(|(place, displaces)| Connected { place, displaces, handle })
    }

    #[test]
    fn a_newcomer_takes_the_place_of_the_oldest_silent_one() {
        let metrics = Metrics::default();
        let places = Places::new(3, metrics.clone());
        let [first, second, third] = [1, 2, 3].map(|number| connect(&places, number).unwrap());
        first.place.heard();
        let newcomer = connect(&places, 4).unwrap();
        assert!(newcomer.displaces);
        assert_eq!([&first, &second, &third].map(|connection| connection.handle.is_aborted()), [false, true, false]);
        assert_eq!(metrics.get(Counter::SilentDropped), 1);
    }

    #[test]
    fn when_none_is_silent_the_places_have_a_bound() {
        let places = Places::new(2, Metrics::default());
        let connected = [1, 2].map(|number| connect(&places, number).unwrap());
        for connection in &connected {
            connection.place.heard();
        }
        assert!(connect(&places, 3).is_none());
        drop(connected);
        assert!(!connect(&places, 4).unwrap().displaces);
    }

    #[test]
    fn silent_connections_have_a_bound_of_their_own() {
        let places = Places::new(MAX_SILENT * 2, Metrics::default());
        let silent: Vec<_> = (0..MAX_SILENT as u64).map(|number| connect(&places, number).unwrap()).collect();
        let [late, later] = [1, 2].map(|more| MAX_SILENT as u64 + more);
        assert!(connect(&places, late).unwrap().displaces && silent[0].handle.is_aborted());
        silent[1].place.heard();
        assert!(!connect(&places, later).unwrap().displaces);
    }

    #[test]
    fn what_has_ended_leaves_nothing_behind() {
        let places = Places::new(2, Metrics::default());
        drop([1, 2].map(|number| connect(&places, number).unwrap()));
        assert!(!places.displace());
        assert!((3..5).all(|number| connect(&places, number).is_some_and(|connection| !connection.displaces)));
    }

    #[test]
    fn connections_fit_below_the_limit_of_open_files() {
        let of = |open_files, wanted| capacity(open_files, wanted, 16);
        assert_eq!(of(1_024, None), (912, None));
        assert_eq!(of(u64::MAX, None), (DEFAULT_MOST, None));
        assert_eq!(of(1_024, Some(100)), (100, None));
        assert_eq!(of(1 << 30, Some(500_000)), (500_000, None));
        assert_eq!(of(1_024, Some(2_000)), (912, Some(2_112)));
        assert_eq!(of(20, None), (LEAST, Some(128)));
        assert_eq!(of(20, Some(5)), (5, Some(117)));
    }
}
