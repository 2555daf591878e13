//! A map that never holds more than it may: when it is full, the oldest entry goes.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
};

/// Entries in the order in which they were last set.
#[derive(Debug)]
pub(super) struct Aging<K, V> {
    /// With the number of the setting.
    entries: HashMap<K, (u64, V)>,
    /// All settings that count, and superseded ones, as many as there may be entries at most.
    order: VecDeque<(u64, K)>,
    newest: u64,
    most: usize,
}

impl<K: Copy + Eq + Hash, V> Aging<K, V> {
    /// An empty map of at most `most` entries, at least 1.
    pub(super) fn new(most: usize) -> Self {
        Self { entries: HashMap::new(), order: VecDeque::new(), newest: 0, most }
    }

    pub(super) fn get(&self, key: &K) -> Option<&V> {
        self.entries.get(key).map(|(_, value)| value)
    }

    /// Sets a key's value. Old entries that are `stale` go, and the oldest if there is no room.
    pub(super) fn insert(&mut self, key: K, value: V, stale: impl Fn(&V) -> bool) {
        self.newest += 1;
        let renewed = self.entries.insert(key, (self.newest, value)).is_some();
        self.order.push_back((self.newest, key));
        while let Some((number, oldest)) = self.order.front() {
            match self.entries.get(oldest) {
                Some((newer, _)) if newer != number => {}
                Some((_, value)) if self.entries.len() > self.most || (*number != self.newest && stale(value)) => {
                    self.entries.remove(oldest);
                }
                _ => break,
            }
            self.order.pop_front();
        }
        // Only who renews leaves a setting behind that does not count. The cost is spread over as many renewals.
        if renewed && self.order.len() > self.most * 2 {
            self.order.retain(|(number, key)| self.entries.get(key).is_some_and(|(newest, _)| newest == number));
        }
    }

    pub(super) fn clear(&mut self) {
        // Its memory as well.
        (self.entries, self.order) = (HashMap::new(), VecDeque::new());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_goes_when_there_is_no_room() {
        let mut map = Aging::new(3);
        for key in [1, 2, 3, 1, 4] {
            map.insert(key, key, |_| false);
        }
        assert_eq!([1, 2, 3, 4].map(|key| map.get(&key).copied()), [Some(1), None, Some(3), Some(4)]);
        assert_eq!(map.order.len(), map.entries.len());
    }

    #[test]
    fn renewals_take_no_room() {
        let mut map = Aging::new(3);
        for value in 0..1_000 {
            // The first is never renewed and keeps its place at the front.
            map.insert(value.min(1 + value % 2), value, |_| false);
            assert!(map.order.len() <= 6, "{}", map.order.len());
        }
        assert_eq!([0, 1, 2].map(|key| map.get(&key).copied()), [Some(0), Some(998), Some(999)]);
    }

    #[test]
    fn stale_entries_go_as_new_ones_come() {
        let mut map = Aging::new(100);
        for key in 0..50 {
            map.insert(key, key, |_| false);
        }
        map.insert(50, 50, |&value| value < 40);
        assert_eq!((map.entries.len(), map.order.len()), (11, 11));
        map.clear();
        assert_eq!((map.entries.len(), map.get(&50)), (0, None));
    }
}
