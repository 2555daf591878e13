//! The rooms the log knows: their messages still kept, and what was dropped of them.
//!
//! Knows sequences, not messages.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use slab::Slab;

/// A room's number while the log knows it; numbers are used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct RoomId(u32);

/// Shards that want a room's messages, one bit each.
pub(super) type ShardSet = u64;

/// Rooms without listeners and messages that are remembered only for what was dropped of them. Each takes about
/// 150 bytes; past this number the older half is forgotten, which costs clients that were away since before then
/// their `recovered` flag, never a message.
const MAX_QUIET_ROOMS: usize = 1 << 16;

struct Room {
    name: Arc<str>,
    /// Sequences of its messages in the log, ascending.
    kept: VecDeque<u64>,
    /// Newest sequence of this room that the log no longer has; 0 for none.
    dropped: u64,
    listeners: ShardSet,
}

impl Room {
    fn is_quiet(&self) -> bool {
        self.kept.is_empty() && self.listeners == 0
    }
}

/// All rooms with a listener, a kept message, or a remembered loss.
#[derive(Default)]
pub(super) struct Rooms {
    slots: Slab<Room>,
    by_name: HashMap<Arc<str>, RoomId>,
    quiet: usize,
    /// Rooms that are not remembered may have lost messages up to here.
    floor: u64,
}

impl Rooms {
    /// The room's number, made if needed.
    pub(super) fn enter(&mut self, name: &str) -> RoomId {
        if let Some(&id) = self.by_name.get(name) {
            return id;
        }
        let name: Arc<str> = name.into();
        let room = Room { name: Arc::clone(&name), kept: VecDeque::new(), dropped: self.floor, listeners: 0 };
        #[expect(clippy::cast_possible_truncation, reason = "rooms are bounded by connections and log entries")]
        let id = RoomId(self.slots.insert(room) as u32);
        self.by_name.insert(name, id);
        self.quiet += 1;
        id
    }

    /// Notes a new message; returns the shards that wait for it.
    pub(super) fn keep(&mut self, id: RoomId, sequence: u64) -> ShardSet {
        self.change(id, |room| room.kept.push_back(sequence));
        self.listeners(id)
    }

    /// The shards that want the room's messages.
    pub(super) fn listeners(&self, id: RoomId) -> ShardSet {
        self.room(id).map_or(0, |room| room.listeners)
    }

    /// Notes that the log dropped the oldest message of a room.
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

    /// From now on `shard` wants this room's messages.
    pub(super) fn listen(&mut self, id: RoomId, shard: usize) {
        self.change(id, |room| room.listeners |= 1 << shard);
    }

    /// Undoes [`Rooms::listen`].
    pub(super) fn unlisten(&mut self, id: RoomId, shard: usize) {
        self.change(id, |room| room.listeners &= !(1 << shard));
        let floor = self.floor;
        if self.room(id).is_some_and(|room| room.is_quiet() && room.dropped <= floor) {
            self.forget(id);
        }
    }

    /// Sequences after `since` that the room still has.
    pub(super) fn after(&self, id: RoomId, since: u64) -> impl Iterator<Item = u64> + '_ {
        let kept = self.room(id).map(|room| &room.kept);
        let start = kept.map_or(0, |kept| kept.partition_point(|&sequence| sequence <= since));
        kept.into_iter().flat_map(move |kept| kept.range(start..).copied())
    }

    /// Newest sequence of the room that the log no longer has.
    pub(super) fn dropped(&self, id: RoomId) -> u64 {
        self.room(id).map_or(self.floor, |room| room.dropped)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    fn room(&self, id: RoomId) -> Option<&Room> {
        self.slots.get(id.0 as usize)
    }

    /// Changes a room and keeps the count of quiet ones.
    fn change(&mut self, id: RoomId, change: impl FnOnce(&mut Room)) {
        if let Some(room) = self.slots.get_mut(id.0 as usize) {
            let before = room.is_quiet();
            change(room);
            match (before, room.is_quiet()) {
                (false, true) => self.quiet += 1,
                (true, false) => self.quiet -= 1,
                _ => {}
            }
        }
    }

    fn forget(&mut self, id: RoomId) {
        if let Some(room) = self.slots.try_remove(id.0 as usize) {
            self.by_name.remove(&room.name);
            self.quiet -= usize::from(room.is_quiet());
        }
    }

    fn forget_if_over(&mut self, most: usize) {
        if self.quiet <= most {
            return;
        }
        let mut quiet: Vec<(u64, usize)> =
            self.slots.iter().filter(|(_, room)| room.is_quiet()).map(|(key, room)| (room.dropped, key)).collect();
        quiet.sort_unstable();
        for &(dropped, key) in &quiet[..quiet.len() / 2] {
            self.floor = self.floor.max(dropped);
            #[expect(clippy::cast_possible_truncation, reason = "keys come from RoomId")]
            self.forget(RoomId(key as u32));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_room_without_listeners_and_history_is_forgotten() {
        let mut rooms = Rooms::default();
        let id = rooms.enter("user-1");
        rooms.listen(id, 3);
        assert_eq!(rooms.keep(id, 1), 0b1000);
        rooms.unlisten(id, 3);
        assert_eq!(rooms.len(), 1, "its message is still kept");
        let other = rooms.enter("user-2");
        rooms.listen(other, 0);
        rooms.unlisten(other, 0);
        assert_eq!(rooms.len(), 1);
    }

    #[test]
    fn what_was_dropped_is_remembered() {
        let mut rooms = Rooms::default();
        let id = rooms.enter("group-1");
        rooms.keep(id, 4);
        rooms.keep(id, 9);
        rooms.drop_oldest(id);
        assert_eq!(rooms.dropped(id), 4);
        assert_eq!(rooms.after(id, 4).collect::<Vec<_>>(), [9]);
        assert_eq!(rooms.after(id, 9).count(), 0);
    }

    #[test]
    fn forgotten_rooms_count_as_lossy() {
        let mut rooms = Rooms::default();
        for sequence in 1..=10 {
            let id = rooms.enter(&format!("group-{sequence}"));
            rooms.keep(id, sequence);
            rooms.drop_oldest(id);
        }
        rooms.forget_if_over(9);
        assert_eq!((rooms.len(), rooms.quiet), (5, 5));
        let forgotten = rooms.enter("group-2");
        let remembered = rooms.enter("group-9");
        assert_eq!((rooms.dropped(forgotten), rooms.dropped(remembered)), (5, 9));
    }
}
