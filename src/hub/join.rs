//! What a subscriber asks for when it joins, what it is told, and the search for what it missed.

use std::sync::Arc;

use super::{
    Event, HubState, Offset,
    log::{ENTRY_OVERHEAD, EventLog, SKEW},
    rooms::RoomId,
};

/// Rooms that are entered or left in one hold of the log's lock: some microseconds.
const ROOMS_PER_LOCK: usize = 64;

/// Events that are looked up in one hold of the log's lock, likewise.
const EVENTS_PER_LOCK: usize = 256;

/// The rooms of a subscriber.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rooms {
    /// Those its session had when it was last served.
    pub had: Vec<String>,
    /// Those its session has gained since then; it was not served them yet.
    pub gained: Vec<String>,
}

impl Rooms {
    /// Rooms that the session had all along, as a new session has.
    pub fn all(rooms: Vec<String>) -> Self {
        Self { had: rooms, gained: Vec::new() }
    }
}

/// From where a newcomer wants to be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    /// What is published from now on.
    Now,
    /// The subscriber comes back.
    Return(Return),
}

/// Where a subscriber that comes back has been.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Return {
    /// Where its session began. Without it the hub cannot say whether the subscriber missed something.
    pub started: Option<Offset>,
    /// Up to where it was served; if that is not known, from where its session began.
    pub served: Option<Offset>,
}

/// How a newcomer starts.
#[derive(Debug)]
pub struct Joined {
    /// Everything up to here is in `missed` or was seen before; all after it will be delivered.
    pub at: Offset,
    /// Oldest first.
    pub missed: Vec<Arc<Event>>,
    /// Whether nothing is known to be lost since its session began.
    pub complete: bool,
}

/// Sequences after which a subscriber needs the events of its rooms, and what it knows of gaps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bases {
    /// Of rooms it had.
    pub(super) served: u64,
    /// Of rooms it gained: where its session began.
    pub(super) started: u64,
    /// Whether nothing else is known to be lost since then.
    pub(super) whole: bool,
    /// Whether it comes back to a known session and may have lost something since it was last served, of which it was not
    /// told.
    pub(super) has_hole: bool,
    /// When the newest gap was that need not be told to it any more.
    pub(super) gap: u32,
}

impl Bases {
    /// Of a subscriber that needs only what comes after the sequence `cursor`.
    pub(super) fn at(cursor: u64, log: &EventLog) -> Self {
        Self { served: cursor, started: cursor, whole: true, has_hole: false, gap: log.gap_at }
    }

    /// Of a subscriber that joins at the sequence `cursor`.
    pub(super) fn new(since: Since, cursor: u64, shared: &HubState) -> Self {
        let Since::Return(Return { started, served }) = since else { return Self::at(cursor, &shared.log.lock()) };
        // That it was served after a gap does not say what it missed in the gap, of whichever log.
        let is_continuous = started
            .zip(served)
            .is_some_and(|(started, served)| started.gap == served.gap || served.gap.saturating_add(SKEW) < started.at);
        let known = |offset: Option<Offset>| offset.and_then(|offset| shared.index.known(&offset, &shared.log));
        let (first, last) = (known(started), known(served));
        let log = shared.log.lock();
        let is_whole_since = |offset: Option<Offset>, place: Option<u64>| {
            offset.zip(place).is_some_and(|(offset, place)| log.is_whole_since(&offset, place))
        };
        let has_all = if last.is_some() { is_whole_since(served, last) } else { is_whole_since(started, first) };
        let (served, whole) = match (first, last) {
            (_, Some(last)) if is_continuous && has_all => (last.max(first.unwrap_or(0)), true),
            (Some(first), None) if has_all => (first, true),
            _ => (last.max(first).unwrap_or(0), false),
        };
        // An interruption is told when it has ended. Before the beginning the log may lack what is restored.
        let has_hole = started.is_some() && !(has_all && log.is_begun);
        let gap = started.filter(|_| has_all && !whole).map_or(log.gap_at, |started| started.gap);
        Self { served, started: first.unwrap_or(0), whole: whole && !log.interrupted, has_hole, gap }
    }
}

impl HubState {
    /// From now on `shard` listens to these rooms. Returns their numbers, each with the sequence after which the room is
    /// wanted, sorted and without repetitions.
    pub(super) fn listen(&self, rooms: &Rooms, bases: Bases, shard: usize) -> Vec<(RoomId, u64)> {
        let mut entered = Vec::with_capacity(rooms.had.len() + rooms.gained.len());
        for (names, since) in [(&rooms.had, bases.served), (&rooms.gained, bases.started)] {
            for names in names.chunks(ROOMS_PER_LOCK) {
                let mut log = self.log.lock();
                entered.extend(names.iter().map(|name| (log.rooms.listen(name, shard), since)));
            }
        }
        // Of a room that is named twice the smaller sequence stays, which comes first.
        entered.sort_unstable();
        entered.dedup_by_key(|&mut (room, _)| room);
        entered
    }

    /// `shard` has no member in these rooms any more.
    pub(super) fn unlisten(&self, rooms: &[RoomId], shard: usize) {
        for rooms in rooms.chunks(ROOMS_PER_LOCK) {
            let mut log = self.log.lock();
            for &room in rooms {
                log.rooms.unlisten(room, shard);
            }
        }
    }

    /// Those of the rooms that lost events after the sequence `since`.
    pub(super) fn lossy(&self, rooms: &[RoomId], since: u64) -> Vec<RoomId> {
        let mut lossy = Vec::new();
        for rooms in rooms.chunks(ROOMS_PER_LOCK) {
            let log = self.log.lock();
            lossy.extend(rooms.iter().copied().filter(|&room| log.rooms.dropped(room) > since));
        }
        lossy
    }

    /// What was published up to the sequence `until` in rooms that the shard listens to, each with the sequence after which
    /// it is wanted: the events, oldest first, and whether these are all. `None` when they are more than one subscriber is
    /// given.
    pub(super) fn missed(&self, rooms: &[(RoomId, u64)], until: u64) -> Option<(Vec<Arc<Event>>, bool)> {
        let (mut complete, mut sequences) = (true, Vec::new());
        let most = self.log.lock().bounds.replay;
        for rooms in rooms.chunks(ROOMS_PER_LOCK) {
            let log = self.log.lock();
            for &(room, since) in rooms {
                complete &= log.rooms.dropped(room) <= since;
                let after = log.rooms.after(room, since).take_while(|&sequence| sequence <= until);
                // One more than may be given shows that these are too many.
                sequences.extend(after.take((most / ENTRY_OVERHEAD + 1).saturating_sub(sequences.len())));
            }
        }
        if sequences.len() > most / ENTRY_OVERHEAD {
            return None;
        }
        sequences.sort_unstable();
        let (mut events, mut bytes) = (Vec::with_capacity(sequences.len()), 0);
        for sequences in sequences.chunks(EVENTS_PER_LOCK) {
            let log = self.log.lock();
            for kept in sequences.iter().filter_map(|&sequence| log.kept(sequence)) {
                bytes += kept.weight;
                events.push(Arc::clone(&kept.event));
            }
            drop(log);
            if bytes > most {
                return None;
            }
        }
        complete &= events.len() == sequences.len();
        Some((events, complete))
    }
}
