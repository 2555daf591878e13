//! The rooms the log knows: which of their events it keeps, and what it dropped of them.
//!
//! Knows sequences, not events. Each call is short, as the log's lock is held meanwhile: none looks at all rooms.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::Arc,
};

use slab::Slab;

/// A room's number while the log knows it; numbers are used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct RoomId(u32);

/// Shards that listen to a room, one bit each.
pub(super) type ShardSet = u64;

/// Rooms without listeners and events that are remembered only for what was dropped of them. Each takes about 200 bytes.
/// Past this number the room that lost its events first is forgotten. Subscribers that were away since before then are no
/// longer told that they missed nothing; they lose no event by that.
const MAX_QUIET_ROOMS: usize = 1 << 16;

struct Room {
    name: Arc<str>,
    /// Sequences of its events in the log, ascending.
    kept: VecDeque<u64>,
    /// Newest sequence of this room that the log dropped; 0 for none.
    dropped: u64,
    listeners: ShardSet,
}

impl Room {
    fn is_quiet(&self) -> bool {
        self.kept.is_empty() && self.listeners == 0
    }
}

/// All rooms with a listener, a kept event, or a remembered loss.
#[derive(Default)]
pub(super) struct RoomTable {
    slots: Slab<Room>,
    by_name: HashMap<Arc<str>, RoomId>,
    /// Quiet rooms by the newest sequence that was dropped of them.
    quiet: BTreeSet<(u64, RoomId)>,
    /// Rooms that are not remembered may have lost events up to here.
    floor: u64,
}

impl RoomTable {
    /// Notes a new event of the room; also returns the room's shared name and the shards that listen to it.
    pub(super) fn keep(&mut self, name: &str, sequence: u64) -> (RoomId, Arc<str>, ShardSet) {
        let id = self.enter(name);
        self.change(id, |room| room.kept.push_back(sequence));
        let name = self.room(id).map_or_else(|| name.into(), |room| Arc::clone(&room.name));
        (id, name, self.listeners(id))
    }

    /// From now on `shard` listens to the room.
    pub(super) fn listen(&mut self, name: &str, shard: usize) -> RoomId {
        let id = self.enter(name);
        self.change(id, |room| room.listeners |= 1 << shard);
        id
    }

    /// Undoes [`RoomTable::listen`].
    pub(super) fn unlisten(&mut self, id: RoomId, shard: usize) {
        self.change(id, |room| room.listeners &= !(1 << shard));
        let floor = self.floor;
        if self.room(id).is_some_and(|room| room.is_quiet() && room.dropped <= floor) {
            self.forget(id);
        }
    }

    /// The shards that listen to the room.
    pub(super) fn listeners(&self, id: RoomId) -> ShardSet {
        self.room(id).map_or(0, |room| room.listeners)
    }

    /// Whether any shard listens to the room.
    pub(super) fn is_listened_to(&self, name: &str) -> bool {
        self.by_name.get(name).is_some_and(|&id| self.listeners(id) != 0)
    }

    /// Notes that the log dropped the oldest event of a room.
    pub(super) fn drop_oldest(&mut self, id: RoomId) {
        self.change(id, |room| {
            if let Some(sequence) = room.kept.pop_front() {
                room.dropped = sequence;
            }
            if room.kept.is_empty() {
                room.kept = VecDeque::new();
            }
        });
        self.forget_if_over(MAX_QUIET_ROOMS);
    }

    /// Sequences after `since` that the log still has of the room.
    pub(super) fn after(&self, id: RoomId, since: u64) -> impl Iterator<Item = u64> + '_ {
        let kept = self.room(id).map(|room| &room.kept);
        let start = kept.map_or(0, |kept| kept.partition_point(|&sequence| sequence <= since));
        kept.into_iter().flat_map(move |kept| kept.range(start..).copied())
    }

    /// Newest sequence of the room that the log dropped.
    pub(super) fn dropped(&self, id: RoomId) -> u64 {
        self.room(id).map_or(self.floor, |room| room.dropped)
    }

    fn room(&self, id: RoomId) -> Option<&Room> {
        self.slots.get(id.0 as usize)
    }

    /// The room's number; a room that is not known yet gets one. The caller changes a new room at once, so it does not count
    /// as quiet.
    fn enter(&mut self, name: &str) -> RoomId {
        if let Some(&id) = self.by_name.get(name) {
            return id;
        }
        let name: Arc<str> = name.into();
        let room = Room { name: Arc::clone(&name), kept: VecDeque::new(), dropped: self.floor, listeners: 0 };
        #[expect(clippy::cast_possible_truncation, reason = "rooms are bounded by connections and log entries")]
        let id = RoomId(self.slots.insert(room) as u32);
        self.by_name.insert(name, id);
        id
    }

    /// Changes a room and updates the set of quiet rooms.
    fn change(&mut self, id: RoomId, change: impl FnOnce(&mut Room)) {
        let Some(room) = self.slots.get_mut(id.0 as usize) else { return };
        if room.is_quiet() {
            self.quiet.remove(&(room.dropped, id));
        }
        change(room);
        if room.is_quiet() {
            self.quiet.insert((room.dropped, id));
        }
    }

    fn forget(&mut self, id: RoomId) {
        if let Some(room) = self.slots.try_remove(id.0 as usize) {
            self.quiet.remove(&(room.dropped, id));
            self.by_name.remove(&room.name);
        }
    }

    fn forget_if_over(&mut self, most: usize) {
        if self.quiet.len() > most
            && let Some(&(dropped, id)) = self.quiet.first()
        {
            self.floor = self.floor.max(dropped);
            self.forget(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_room_without_listeners_and_history_is_forgotten() {
        let mut rooms = RoomTable::default();
        let id = rooms.listen("user-1", 3);
        assert_eq!(rooms.keep("user-1", 1), (id, "user-1".into(), 0b1000));
        rooms.unlisten(id, 3);
        assert_eq!(rooms.slots.len(), 1, "its event is still kept");
        let other = rooms.listen("user-2", 0);
        rooms.unlisten(other, 0);
        assert_eq!(rooms.slots.len(), 1);
    }

    #[test]
    fn what_was_dropped_is_remembered() {
        let mut rooms = RoomTable::default();
        let (id, ..) = rooms.keep("group-1", 4);
        rooms.keep("group-1", 9);
        rooms.drop_oldest(id);
        assert_eq!(rooms.dropped(id), 4);
        assert_eq!(rooms.after(id, 4).collect::<Vec<_>>(), [9]);
        assert_eq!(rooms.after(id, 9).count(), 0);
    }

    #[test]
    fn forgotten_rooms_count_as_lossy() {
        let mut rooms = RoomTable::default();
        for sequence in 1..=10 {
            let (id, ..) = rooms.keep(&format!("group-{sequence}"), sequence);
            rooms.drop_oldest(id);
        }
        for left in (5..10).rev() {
            rooms.forget_if_over(left);
            assert_eq!((rooms.slots.len(), rooms.quiet.len()), (left, left));
        }
        let (forgotten, remembered) = (rooms.listen("group-2", 0), rooms.listen("group-9", 0));
        assert_eq!((rooms.dropped(forgotten), rooms.dropped(remembered)), (5, 9));
        assert_eq!(rooms.quiet.len(), 4, "a room with a listener is not quiet");
        rooms.unlisten(forgotten, 0);
        rooms.unlisten(remembered, 0);
        assert_eq!((rooms.slots.len(), rooms.quiet.len()), (5, 5));
    }
}
