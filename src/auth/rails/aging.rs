//! A map that never holds more than it may: when it is full, the oldest entry goes.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
};

/// Entries in the order in which their keys first came.
#[derive(Debug)]
pub(super) struct Aging<K, V> {
    entries: HashMap<K, V>,
    order: VecDeque<K>,
    most: usize,
}

impl<K: Copy + Eq + Hash, V> Aging<K, V> {
    /// An empty map of at most `most` entries, at least 1.
    pub(super) fn new(most: usize) -> Self {
        Self { entries: HashMap::new(), order: VecDeque::new(), most }
    }

    pub(super) fn get(&self, key: &K) -> Option<&V> {
        self.entries.get(key)
    }

    /// Sets a key's value. Old entries that are `stale` go, and the oldest if there is no room.
    pub(super) fn insert(&mut self, key: K, value: V, stale: impl Fn(&V) -> bool) {
        if let Some(entry) = self.entries.get_mut(&key) {
            *entry = value;
            return;
        }
        while let Some(oldest) = self.order.front()
            && (self.entries.len() >= self.most || self.entries.get(oldest).is_none_or(&stale))
        {
            self.entries.remove(oldest);
            self.order.pop_front();
        }
        self.entries.insert(key, value);
        self.order.push_back(key);
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
        assert_eq!([1, 2, 3, 4].map(|key| map.get(&key).copied()), [None, Some(2), Some(3), Some(4)]);
        assert_eq!(map.order.len(), map.entries.len());
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
