//! Places for connections, and the choice of the connection that is displaced when all are taken.
//!
//! Without I/O. A connection that has not made a request is silent. Silent connections cost a stranger nothing, so they
//! are the first to go, the oldest first. Beyond the regular places a few are kept for the overflow: requests that are
//! refused properly, and questions about health, which must be answered while strangers hold everything else.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use futures_util::future::AbortHandle;

use crate::metrics::{Counter, Metrics};

/// Silent connections at a time. A browser sends its request right after the handshake of TCP, so at any moment only a
/// few are silent; at 20,000 new connections a second each still has 200 ms.
const MAX_SILENT: usize = 4_096;

/// Places beyond the regular ones. Each is taken for a moment: the answer is short, and then the connection ends.
const OVERFLOW: usize = 32;

/// File descriptors for everything that is no connection of a browser: standard streams, the runtime, the port, Redis,
/// its sentinels, the log, a database; and displaced connections that are not closed yet.
const RESERVED_FILES: usize = 64;

/// Most connections unless a number is asked for: at 2.4 kB each, 240 MB.
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
    let reserve = RESERVED_FILES + OVERFLOW + others;
    let allowed = usize::try_from(open_files).unwrap_or(usize::MAX).saturating_sub(reserve);
    let asked = wanted.unwrap_or(allowed.clamp(LEAST, DEFAULT_MOST));
    let connections = asked.min(allowed.max(LEAST));
    Capacity { connections, needs_open_files: (asked > allowed).then(|| asked + reserve) }
}

/// All places.
#[derive(Debug)]
pub(super) struct Places {
    regular: usize,
    metrics: Metrics,
    occupied: Mutex<Occupied>,
}

#[derive(Debug, Default)]
struct Occupied {
    /// Number of the last connection; the first is 1.
    last: u64,
    regular: Zone,
    overflow: Zone,
}

#[derive(Debug, Default)]
struct Zone {
    /// Descriptors in use. A displaced connection counts until it is closed.
    places: usize,
    /// Silent connections by their numbers: the oldest first.
    silent: BTreeMap<u64, AbortHandle>,
}

impl Zone {
    /// Ends the connection that has been silent for longest; `false` when none is silent.
    fn displace(&mut self) -> bool {
        self.silent.pop_first().is_some_and(|(_, oldest)| {
            oldest.abort();
            true
        })
    }
}

impl Places {
    pub(super) fn new(regular: usize, metrics: Metrics) -> Arc<Self> {
        Arc::new(Self { regular, metrics, occupied: Mutex::default() })
    }

    /// Takes a place for a connection, which `handle` can end, and says whether another connection has to go for it:
    /// until that has happened there is one descriptor too many. `None` when even the overflow is full.
    pub(super) fn take(self: &Arc<Self>, handle: AbortHandle) -> Option<(Place, bool)> {
        let mut occupied = self.lock();
        let is_full = occupied.regular.places >= self.regular;
        let mut displaces = (is_full || occupied.regular.silent.len() >= MAX_SILENT) && occupied.regular.displace();
        let is_regular = !is_full || displaces;
        if !is_regular && occupied.overflow.places >= OVERFLOW {
            displaces = occupied.overflow.displace();
            if !displaces {
                return None;
            }
        }
        occupied.last += 1;
        let number = occupied.last;
        let zone = occupied.zone(is_regular);
        zone.places += 1;
        zone.silent.insert(number, handle);
        drop(occupied);
        self.count(displaces);
        Some((Place { places: Arc::clone(self), is_regular, number, is_silent: AtomicBool::new(true) }, displaces))
    }

    /// Ends the connection that has been silent for longest; `false` when none is silent.
    pub(super) fn displace(&self) -> bool {
        let displaces = {
            let mut occupied = self.lock();
            occupied.regular.displace() || occupied.overflow.displace()
        };
        self.count(displaces);
        displaces
    }

    fn count(&self, displaces: bool) {
        if displaces {
            self.metrics.count(Counter::SilentDropped);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Occupied> {
        self.occupied.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Occupied {
    fn zone(&mut self, is_regular: bool) -> &mut Zone {
        if is_regular { &mut self.regular } else { &mut self.overflow }
    }
}

/// A place that is taken. To be kept for as long as the connection's descriptor is open.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
    is_regular: bool,
    number: u64,
    is_silent: AtomicBool,
}

impl Place {
    /// Whether the connection is served; otherwise it is refused, but for questions about health.
    pub(super) fn is_regular(&self) -> bool {
        self.is_regular
    }

    /// The number of the connection, which no other ever has.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// The connection has made a request; returns whether it is the first.
    pub(super) fn heard(&self) -> bool {
        let is_first = self.is_silent.swap(false, Ordering::Relaxed);
        if is_first {
            self.places.lock().zone(self.is_regular).silent.remove(&self.number);
        }
        is_first
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.heard();
        self.places.lock().zone(self.is_regular).places -= 1;
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

    fn connect(places: &Arc<Places>) -> Option<Connected> {
        let (handle, _) = AbortHandle::new_pair();
        places.take(handle.clone()).map(|(place, displaces)| Connected { place, displaces, handle })
    }

    #[test]
    fn a_newcomer_takes_the_place_of_the_oldest_silent_one() {
        let metrics = Metrics::new();
        let places = Places::new(3, metrics.clone());
        let [first, second, third] = [(); 3].map(|()| connect(&places).unwrap());
        first.place.heard();
        let newcomer = connect(&places).unwrap();
        assert!(newcomer.place.is_regular() && newcomer.displaces);
        assert_eq!([&first, &second, &third].map(|connection| connection.handle.is_aborted()), [false, true, false]);
        assert_eq!(metrics.get(Counter::SilentDropped), 1);
    }

    #[test]
    fn beyond_the_places_the_overflow_refuses_and_has_a_bound_of_its_own() {
        let places = Places::new(1, Metrics::new());
        let served = connect(&places).unwrap();
        served.place.heard();
        let overflow: Vec<_> = (0..OVERFLOW).map(|_| connect(&places).unwrap()).collect();
        assert!(overflow.iter().all(|connection| !connection.place.is_regular()));
        let one_more = connect(&places).unwrap();
        assert!(one_more.displaces && overflow[0].handle.is_aborted() && !overflow[1].handle.is_aborted());
        for connection in overflow.iter().chain([&one_more]) {
            connection.place.heard();
        }
        assert!(connect(&places).is_none());
        drop(overflow);
        assert!(!connect(&places).unwrap().place.is_regular());
        drop(served);
        assert!(connect(&places).unwrap().place.is_regular());
    }

    #[test]
    fn silent_connections_have_a_bound_of_their_own() {
        let places = Places::new(MAX_SILENT * 2, Metrics::new());
        let silent: Vec<_> = (0..MAX_SILENT).map(|_| connect(&places).unwrap()).collect();
        assert!(connect(&places).unwrap().displaces && silent[0].handle.is_aborted());
        silent[1].place.heard();
        assert!(!connect(&places).unwrap().displaces);
    }

    #[test]
    fn what_has_ended_leaves_nothing_behind() {
        let places = Places::new(2, Metrics::new());
        drop([(); 2].map(|()| connect(&places).unwrap()));
        assert!(!places.displace());
        assert!((0..2).all(|_| connect(&places).unwrap().place.is_regular()));
    }

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
