//! Identical questions under way are one.
//!
//! A flight is driven by all who wait for it: whoever leaves fails nobody else, and with the last the flight ends and
//! gives back what it holds. Knows nothing of what is flown.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicU32},
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared, WeakShared},
};

use super::document::Key;

/// Requests made so far by a flight.
pub(super) type Attempts = Arc<AtomicU32>;

/// The end of a flight, for one who waits for it.
pub(super) type Landing<T> = Shared<BoxFuture<'static, T>>;

/// Flights under way, by question. As many as there are who wait, at most.
pub(super) struct Flights<T>(Mutex<Table<T>>);

struct Table<T> {
    by_key: HashMap<Key, Flight<T>>,
    /// The number of the newest.
    newest: u64,
}

struct Flight<T> {
    number: u64,
    landing: WeakShared<BoxFuture<'static, T>>,
    attempts: Attempts,
}

/// Someone's part in a flight.
pub(super) struct Joined<T> {
    pub(super) landing: Landing<T>,
    pub(super) attempts: Attempts,
    /// Whether it was begun by others.
    pub(super) others: bool,
}

/// A flight's place in the table; given up when dropped.
struct Entry<T> {
    flights: Arc<Flights<T>>,
    key: Key,
    number: u64,
}

impl<T> Flights<T> {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(Table { by_key: HashMap::new(), newest: 0 })))
    }

    fn lock(&self) -> MutexGuard<'_, Table<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Clone + Send + Sync + 'static> Flights<T> {
    /// Joins the flight with this question, or begins one.
    pub(super) fn join<F>(self: &Arc<Self>, key: Key, begin: impl FnOnce(Attempts) -> F) -> Joined<T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut table = self.lock();
        // What is upgraded here leaves this function: if it were the last and dropped here, its entry would wait for
        // the lock that is held.
        if let Some(flight) = table.by_key.get(&key)
            && let Some(landing) = flight.landing.upgrade()
        {
            return Joined { landing, attempts: Arc::clone(&flight.attempts), others: true };
        }
        table.newest += 1;
        let entry = Entry { flights: Arc::clone(self), key, number: table.newest };
        let attempts = Attempts::default();
        let flight = begin(Arc::clone(&attempts));
        let landing = async move {
            let _entry = entry;
            flight.await
        };
        let landing = landing.boxed().shared();
        if let Some(weak) = landing.downgrade() {
            let flight = Flight { number: table.newest, landing: weak, attempts: Arc::clone(&attempts) };
            table.by_key.insert(key, flight);
        }
        Joined { landing, attempts, others: false }
    }
}

impl<T> Drop for Entry<T> {
    fn drop(&mut self) {
        let mut table = self.flights.lock();
        // There may be a newer flight with the same question, begun while this one was going away.
        if table.by_key.get(&self.key).is_some_and(|flight| flight.number == self.number) {
            table.by_key.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::{Semaphore, oneshot};

    use super::{
        super::document::{Check, Names},
        *,
    };

    fn key(name: &str) -> Key {
        Check::new("1,a".to_owned(), name.to_owned(), Names::Any).unwrap().key()
    }

    /// Joins or begins a flight that holds the one permit until `answer` comes.
    fn join(
        flights: &Arc<Flights<u32>>,
        name: &str,
        places: &Arc<Semaphore>,
        answer: oneshot::Receiver<u32>,
    ) -> Joined<u32> {
        let places = Arc::clone(places);
        flights.join(key(name), |_| async move {
            let _place = places.acquire_owned().await;
            answer.await.unwrap()
        })
    }

    #[tokio::test]
    async fn whoever_leaves_fails_nobody_else() {
        let (flights, places) = (Flights::new(), Arc::new(Semaphore::new(1)));
        let (sender, receiver) = oneshot::channel();
        let mut first = join(&flights, "a", &places, receiver);
        let others: Vec<_> = (0..10).map(|_| join(&flights, "a", &places, oneshot::channel().1)).collect();
        assert!(!first.others && others.iter().all(|joined| joined.others));
        assert_eq!((&mut first.landing).now_or_never(), None);
        drop(first);
        let mut others = others.into_iter();
        drop(others.next());
        sender.send(7).unwrap();
        for joined in others {
            assert_eq!(joined.landing.await, 7);
        }
        assert!(flights.lock().by_key.is_empty());
    }

    #[tokio::test]
    async fn the_last_to_leave_ends_it_and_gives_back_its_place() {
        let (flights, places) = (Flights::new(), Arc::new(Semaphore::new(1)));
        let (_sender, receiver) = oneshot::channel();
        let mut first = join(&flights, "a", &places, receiver);
        let second = join(&flights, "a", &places, oneshot::channel().1);
        assert_eq!((&mut first.landing).now_or_never(), None);
        assert_eq!(places.available_permits(), 0);
        drop(first);
        assert_eq!(places.available_permits(), 0);
        drop(second);
        assert_eq!(places.available_permits(), 1);
        assert!(flights.lock().by_key.is_empty());
        assert!(!join(&flights, "a", &places, oneshot::channel().1).others, "the next begins anew");
    }

    #[tokio::test]
    async fn an_old_flight_takes_no_newer_one_with_it() {
        let (flights, places) = (Flights::new(), Arc::new(Semaphore::new(1)));
        let old = Entry { flights: Arc::clone(&flights), key: key("a"), number: 0 };
        let new = join(&flights, "a", &places, oneshot::channel().1);
        drop(old);
        assert!(join(&flights, "a", &places, oneshot::channel().1).others);
        assert!(!join(&flights, "b", &places, oneshot::channel().1).others);
        drop(new);
    }
}
