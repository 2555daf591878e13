//! Who may be connected: a place for each connection, and which connection has to go when there is none left.
//!
//! Without I/O. A connection that has not made a request is silent. Silent connections cost a stranger nothing, so they
//! are the first to go, the oldest first. Beyond the regular places a few more are kept for the overflow: requests that
//! are refused properly, and questions about health, which must be answered while strangers hold everything else.

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
pub(super) const OVERFLOW: usize = 32;

/// Which places a connection has taken one of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Zone {
    /// Served.
    Regular,
    /// Refused, but for questions about health.
    Overflow,
}

/// All places.
#[derive(Debug)]
pub(super) struct Places {
    regular: usize,
    metrics: Metrics,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    /// Number of the last connection; the first is 1.
    last: u64,
    regular: Occupied,
    overflow: Occupied,
}

#[derive(Debug, Default)]
struct Occupied {
    /// Descriptors in use. A displaced connection counts until it is closed.
    places: usize,
    /// Silent connections by their numbers: the oldest first.
    silent: BTreeMap<u64, AbortHandle>,
}

impl Occupied {
    /// Ends the connection that has been silent for longest.
    fn displace(&mut self) -> bool {
        let Some((_, oldest)) = self.silent.pop_first() else { return false };
        oldest.abort();
        true
    }
}

impl Places {
    pub(super) fn new(regular: usize, metrics: Metrics) -> Arc<Self> {
        Arc::new(Self { regular, metrics, taken: Mutex::default() })
    }

    /// Takes a place for a connection, which `handle` can end. `None` when there is none, not even in the overflow.
    pub(super) fn take(self: &Arc<Self>, handle: AbortHandle) -> Option<Accepted> {
        let mut taken = self.lock();
        let full = taken.regular.places >= self.regular;
        let mut displaced = (full || taken.regular.silent.len() >= MAX_SILENT) && taken.regular.displace();
        let zone = if full && !displaced { Zone::Overflow } else { Zone::Regular };
        if zone == Zone::Overflow && taken.overflow.places >= OVERFLOW {
            displaced = taken.overflow.displace();
            if !displaced {
                return None;
            }
        }
        taken.last += 1;
        let number = taken.last;
        let occupied = taken.of(zone);
        occupied.places += 1;
        occupied.silent.insert(number, handle);
        drop(taken);
        if displaced {
            self.metrics.count(Counter::SilentDropped);
        }
        let place = Place { places: Arc::clone(self), zone };
        let silent = Silent { places: Arc::clone(self), zone, number, heard: AtomicBool::new(false) };
        Some(Accepted { place, silent, displaced })
    }

    /// Ends the connection that has been silent for longest; `false` when none is silent.
    pub(super) fn displace(&self) -> bool {
        let displaced = {
            let mut taken = self.lock();
            taken.regular.displace() || taken.overflow.displace()
        };
        if displaced {
            self.metrics.count(Counter::SilentDropped);
        }
        displaced
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    fn of(&mut self, zone: Zone) -> &mut Occupied {
        match zone {
            Zone::Regular => &mut self.regular,
            Zone::Overflow => &mut self.overflow,
        }
    }
}

/// What a new connection is given.
#[derive(Debug)]
pub(super) struct Accepted {
    pub(super) place: Place,
    pub(super) silent: Silent,
    /// Another connection has to go for it; until that has happened there is one descriptor too many.
    pub(super) displaced: bool,
}

/// A place that is taken. Kept for as long as the connection's descriptor is open.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
    zone: Zone,
}

impl Place {
    pub(super) fn zone(&self) -> Zone {
        self.zone
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.lock().of(self.zone).places -= 1;
    }
}

/// A connection that is silent until its first request.
#[derive(Debug)]
pub(super) struct Silent {
    places: Arc<Places>,
    zone: Zone,
    number: u64,
    heard: AtomicBool,
}

impl Silent {
    /// The number of the connection, which no other ever has.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// The connection has made a request; returns whether it is the first.
    pub(super) fn heard(&self) -> bool {
        let is_first = !self.heard.swap(true, Ordering::Relaxed);
        if is_first {
            self.places.lock().of(self.zone).silent.remove(&self.number);
        }
        is_first
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        self.heard();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One connection, and the handle that shows whether it has to go.
    fn connect(places: &Arc<Places>) -> Option<(Accepted, AbortHandle)> {
        let (handle, _) = AbortHandle::new_pair();
        places.take(handle.clone()).map(|entry| (entry, handle))
    }

    fn zone(connection: &(Accepted, AbortHandle)) -> Zone {
        connection.0.place.zone()
    }

    #[test]
    fn a_newcomer_takes_the_place_of_the_oldest_silent_one() {
        let metrics = Metrics::new();
        let places = Places::new(3, metrics.clone());
        let [first, second, third] = [(); 3].map(|()| connect(&places).unwrap());
        first.0.silent.heard();
        let newcomer = connect(&places).unwrap();
        assert_eq!((zone(&newcomer), newcomer.0.displaced), (Zone::Regular, true));
        assert_eq!([&first, &second, &third].map(|(_, handle)| handle.is_aborted()), [false, true, false]);
        assert_eq!(metrics.get(Counter::SilentDropped), 1);
    }

    #[test]
    fn beyond_the_places_the_overflow_refuses_and_has_a_bound_of_its_own() {
        let places = Places::new(1, Metrics::new());
        let served = connect(&places).unwrap();
        served.0.silent.heard();
        let overflow: Vec<_> = (0..OVERFLOW).map(|_| connect(&places).unwrap()).collect();
        assert!(overflow.iter().all(|connection| zone(connection) == Zone::Overflow));
        let one_more = connect(&places).unwrap();
        assert!(one_more.0.displaced && overflow[0].1.is_aborted() && !overflow[1].1.is_aborted());
        for (entry, _) in overflow.iter().chain([&one_more]) {
            entry.silent.heard();
        }
        assert!(connect(&places).is_none());
        drop(overflow);
        assert_eq!(zone(&connect(&places).unwrap()), Zone::Overflow);
        drop(served);
        assert_eq!(zone(&connect(&places).unwrap()), Zone::Regular);
    }

    #[test]
    fn silent_connections_have_a_bound_of_their_own() {
        let places = Places::new(MAX_SILENT * 2, Metrics::new());
        let silent: Vec<_> = (0..MAX_SILENT).map(|_| connect(&places).unwrap()).collect();
        assert!(connect(&places).unwrap().0.displaced && silent[0].1.is_aborted());
        silent[1].0.silent.heard();
        assert!(!connect(&places).unwrap().0.displaced);
    }

    #[test]
    fn what_has_ended_leaves_nothing_behind() {
        let places = Places::new(2, Metrics::new());
        drop([(); 2].map(|()| connect(&places).unwrap()));
        assert!(!places.displace());
        assert!((0..2).all(|_| zone(&connect(&places).unwrap()) == Zone::Regular));
    }
}
