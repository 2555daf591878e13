//! What a subscriber asks for when it joins, what it is told, and the search for what it missed.

use super::{
    Message, Offset, Shared,
    log::{ENTRY_OVERHEAD, Log},
    rooms::RoomId,
};

/// Rooms that are entered or left in one hold of the log's lock: some microseconds.
const ROOMS_PER_LOCK: usize = 64;

/// Rooms and messages that are looked at in one hold of the log's lock, likewise.
const LOOKED_AT_PER_LOCK: usize = 256;

/// The rooms of a subscriber.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rooms {
    /// Those its session had when it was last served.
    pub had: Vec<String>,
    /// Those its session has got since then; of these it was served nothing yet.
    pub gained: Vec<String>,
}

impl Rooms {
    /// Rooms that the session had all along, as a new one has.
    pub fn all(rooms: Vec<String>) -> Self {
        Self { had: rooms, gained: Vec::new() }
    }
}

/// From where a newcomer wants to be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    /// Whatever comes from now on.
    Now,
    /// It comes back.
    Return(Return),
}

/// Where a subscriber that comes back has been.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Return {
    /// Where its session began. Without it nothing can be said of what it missed.
    pub started: Option<Offset>,
    /// Up to where it was served; if that is not known, since its session began.
    pub served: Option<Offset>,
}

/// How a newcomer starts.
#[derive(Debug, PartialEq, Eq)]
pub struct Joined<M> {
    /// Everything up to here is in `missed` or was seen before; all after it will be delivered.
    pub at: Offset,
    /// Oldest first.
    pub missed: Vec<M>,
    /// Whether nothing is known to be lost since its session began.
    pub complete: bool,
}

/// Sequences after which a subscriber needs the messages of its rooms.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bases {
    /// Of rooms it had.
    pub(super) served: u64,
    /// Of rooms it gained: where its session began.
    pub(super) started: u64,
    /// Whether nothing else is known to be lost since then.
    pub(super) whole: bool,
}

impl Bases {
    /// Of a subscriber that joins at the sequence `cursor`.
    pub(super) fn new<M: Message>(since: Since, cursor: u64, log: &Log<M>) -> Self {
        let Since::Return(Return { started, served }) = since else {
            return Self { served: cursor, started: cursor, whole: true };
        };
        let known = |offset: Option<Offset>| offset.and_then(|offset| log.known(&offset));
        let started = known(started);
        let served = known(served).max(started).unwrap_or(0);
        let whole = started.is_some_and(|started| log.is_whole_since(started));
        Self { served, started: started.unwrap_or(0), whole }
    }
}

/// What a subscriber missed.
pub(super) struct Missed<M> {
    /// Oldest first.
    pub(super) messages: Vec<M>,
    /// Whether that is all of it.
    pub(super) complete: bool,
    /// Whether there is more than one subscriber may be given, and `messages` has none of it.
    pub(super) too_much: bool,
}

impl<M> Missed<M> {
    fn too_much() -> Self {
        Self { messages: Vec::new(), complete: false, too_much: true }
    }
}

impl<M: Message> Shared<M> {
    /// From now on `shard` gets what comes for these rooms. Their numbers, each with the sequence after which the room is
    /// wanted, sorted and without repetitions.
    pub(super) fn listen(&self, rooms: &Rooms, bases: Bases, shard: usize) -> Vec<(RoomId, u64)> {
        let mut entered = Vec::with_capacity(rooms.had.len() + rooms.gained.len());
        for (names, since) in [(&rooms.had, bases.served), (&rooms.gained, bases.started)] {
            for names in names.chunks(ROOMS_PER_LOCK) {
                let mut log = self.lock();
                entered.extend(names.iter().map(|name| (log.rooms.listen(name, shard), since)));
            }
        }
        // Of a room that is named twice the smaller sequence stays, which comes first.
        entered.sort_unstable();
        entered.dedup_by_key(|&mut (room, _)| room);
        entered
    }

    /// `shard` has nobody in these rooms any more.
    pub(super) fn unlisten(&self, rooms: &[RoomId], shard: usize) {
        for rooms in rooms.chunks(ROOMS_PER_LOCK) {
            let mut log = self.lock();
            for &room in rooms {
                log.rooms.unlisten(room, shard);
            }
        }
    }

    /// Those of the rooms that lost messages after the sequence `since`.
    pub(super) fn lossy(&self, rooms: &[RoomId], since: u64) -> Vec<RoomId> {
        let mut lossy = Vec::new();
        for rooms in rooms.chunks(ROOMS_PER_LOCK) {
            let log = self.lock();
            lossy.extend(rooms.iter().copied().filter(|&room| log.rooms.dropped(room) > since));
        }
        lossy
    }

    /// What came up to the sequence `until` for rooms, each with the sequence after which it is wanted; nothing at all when
    /// that is more than one subscriber may be given. The shard listens to these rooms.
    pub(super) fn missed(&self, rooms: &[(RoomId, u64)], until: u64) -> Missed<M> {
        let (mut complete, mut sequences) = (true, Vec::new());
        let most = self.lock().replay_bytes();
        let mut wanted = rooms.iter().copied();
        let mut next = wanted.next();
        while next.is_some() {
            let (log, mut looked) = (self.lock(), 0);
            while let Some((room, since)) = next.filter(|_| looked < LOOKED_AT_PER_LOCK) {
                complete &= log.rooms.dropped(room) <= since;
                let before = sequences.len();
                let after = log.rooms.after(room, since).take_while(|&sequence| sequence <= until);
                sequences.extend(after.take(LOOKED_AT_PER_LOCK));
                let found = sequences.len() - before;
                looked += 1 + found;
                // A room with more than can be looked at is gone on with where this stopped.
                let rest = sequences.last().filter(|_| found == LOOKED_AT_PER_LOCK);
                next = rest.map_or_else(|| wanted.next(), |&last| Some((room, last)));
            }
            drop(log);
            if sequences.len() > most / ENTRY_OVERHEAD {
                return Missed::too_much();
            }
        }
        sequences.sort_unstable();
        sequences.dedup();
        let (mut messages, mut bytes) = (Vec::with_capacity(sequences.len()), 0_usize);
        for sequences in sequences.chunks(LOOKED_AT_PER_LOCK) {
            let log = self.lock();
            for &sequence in sequences {
                match log.message(sequence) {
                    Some(message) => {
                        bytes = bytes.saturating_add(message.weight() + ENTRY_OVERHEAD);
                        messages.push(message.clone());
                    }
                    None => complete = false,
                }
            }
            drop(log);
            if bytes > most {
                return Missed::too_much();
            }
        }
        Missed { messages, complete, too_much: false }
    }
}
