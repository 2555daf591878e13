//! A shard: one thread that owns its subscribers and its own table of who is in which room.
//!
//! It follows the log with a cursor of its own. Nothing is queued for it, so there is no queue to overflow, and a
//! newcomer joins exactly between two messages.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering, mpsc::Receiver},
    thread,
    time::Instant,
};

use slab::Slab;

use super::{
    Joined, MemberId, Rooms, Shared, Since, Subscriber,
    join::{Bases, Missed},
    rooms::RoomId,
};

/// Messages taken from the log at a time: enough to coalesce a burst into one write per subscriber, few enough
/// that the copies of a batch stay in the processor's cache.
const BATCH: usize = 256;

/// Subscribers whose memory is fetched at once: enough to keep the processor busy, and few enough that it is still in
/// the cache when it is needed.
const PREFETCHED: usize = 16;

/// Commands taken between two looks at the log, so that a storm of joins does not hold up delivery.
const COMMANDS_PER_TURN: usize = 64;

/// Called in the shard, before anything live is delivered.
pub(super) type Welcome<M> = Box<dyn FnOnce(Joined<M>) + Send>;

pub(super) enum Command<S: Subscriber> {
    Join { id: MemberId, subscriber: S, rooms: Rooms, since: Since, now: Instant, welcome: Welcome<S::Message> },
    SetRooms { id: MemberId, rooms: Rooms },
    Leave { id: MemberId },
    Remind { part: usize, of: usize, now: Instant, encode: fn(&str) -> S::Message },
    Stop,
}

/// A place in a room's list of members.
struct Seat {
    room: RoomId,
    position: u32,
}

struct Member<S> {
    subscriber: S,
    /// Sorted by room.
    seats: Vec<Seat>,
    /// From where on it needs the messages of rooms it gets later.
    bases: Bases,
    /// Whether it was told that it missed nothing.
    complete: bool,
    /// First and last link of what it gets from the current batch.
    first: u32,
    last: u32,
}

impl<S> Member<S> {
    fn new(subscriber: S, bases: Bases, complete: bool) -> Self {
        Self { subscriber, seats: Vec::new(), bases, complete, first: NO_LINK, last: NO_LINK }
    }

    /// Index of the room's seat, or where it would be.
    fn seat(&self, room: RoomId) -> Result<usize, usize> {
        self.seats.binary_search_by_key(&room, |seat| seat.room)
    }
}

/// One message for one member; a member's links are a list in the order of the log.
struct Link {
    entry: u32,
    next: u32,
}

const NO_LINK: u32 = u32::MAX;

/// Links kept allocated between batches (8 bytes each).
const LINKS_KEPT: usize = 1 << 14;

pub(super) struct Shard<S: Subscriber> {
    index: usize,
    shared: Arc<Shared<S::Message>>,
    commands: Receiver<Command<S>>,
    cursor: u64,
    members: Slab<Member<S>>,
    by_id: HashMap<MemberId, u32>,
    rooms: HashMap<RoomId, Vec<u32>>,
    batch: Vec<(RoomId, S::Message)>,
    links: Vec<Link>,
    touched: Vec<u32>,
}

impl<S: Subscriber> Shard<S> {
    pub(super) fn new(index: usize, shared: Arc<Shared<S::Message>>, commands: Receiver<Command<S>>) -> Self {
        Self {
            index,
            shared,
            commands,
            cursor: 0,
            members: Slab::new(),
            by_id: HashMap::new(),
            rooms: HashMap::new(),
            batch: Vec::new(),
            links: Vec::new(),
            touched: Vec::new(),
        }
    }

    /// Works until told to stop. Whoever gives it work unparks its thread.
    pub(super) fn run(mut self) {
        loop {
            match self.turn() {
                Turn::Worked => {}
                Turn::Idle => thread::park(),
                Turn::Stopped => return,
            }
        }
    }

    fn turn(&mut self) -> Turn {
        let mut worked = false;
        for _ in 0..COMMANDS_PER_TURN {
            match self.commands.try_recv() {
                Ok(Command::Stop) => return Turn::Stopped,
                Ok(command) => self.execute(command),
                Err(_) => break,
            }
            worked = true;
        }
        worked |= self.deliver();
        if worked { Turn::Worked } else { Turn::Idle }
    }

    fn execute(&mut self, command: Command<S>) {
        match command {
            Command::Join { id, subscriber, rooms, since, now, welcome } => {
                self.join(id, subscriber, &rooms, since, now, welcome);
            }
            Command::SetRooms { id, rooms } => self.set_rooms(id, &rooms),
            Command::Leave { id } => self.leave(id),
            Command::Remind { part, of, now, encode } => self.remind(part, of, now, encode),
            Command::Stop => {}
        }
    }

    /// The newcomer gets what it missed up to the cursor; what comes after that is delivered to it with the next batches.
    fn join(
        &mut self,
        id: MemberId,
        subscriber: S,
        rooms: &Rooms,
        since: Since,
        now: Instant,
        welcome: Welcome<S::Message>,
    ) {
        let shared = Arc::clone(&self.shared);
        // All there is by now counts as missed. Not what comes while this catches up, or a flood could keep it at that.
        let head = shared.lock().head();
        while self.cursor < head {
            self.deliver();
        }
        let mut bases = Bases::new(since, self.cursor, &shared.lock());
        let rooms = shared.listen(rooms, bases, self.index);
        let Missed { messages, complete, too_much } = shared.missed(&rooms, self.cursor);
        let complete = complete && bases.whole;
        if too_much {
            // It starts over from here, and of rooms that it gets later too.
            bases = Bases { served: self.cursor, started: self.cursor, whole: false };
        }
        #[expect(clippy::cast_possible_truncation, reason = "members are bounded by the caller")]
        let key = self.members.insert(Member::new(subscriber, bases, complete)) as u32;
        self.by_id.insert(id, key);
        for (room, _) in rooms {
            self.seat(key, room);
        }
        let at = shared.lock().offset(self.cursor, shared.clock.unix(now));
        welcome(Joined { at, missed: messages, complete });
    }

    /// Gives a member other rooms; of those it did not have it gets what it would have got had it joined with them.
    fn set_rooms(&mut self, id: MemberId, rooms: &Rooms) {
        let Some(&key) = self.by_id.get(&id) else { return };
        let Some(member) = self.members.get(key as usize) else { return };
        let present: Vec<RoomId> = member.seats.iter().map(|seat| seat.room).collect();
        let shared = Arc::clone(&self.shared);
        let rooms = shared.listen(rooms, member.bases, self.index);
        let (had, new): (Vec<_>, Vec<_>) = rooms.into_iter().partition(|(room, _)| present.binary_search(room).is_ok());
        let Missed { messages, complete, .. } = shared.missed(&new, self.cursor);
        for (room, _) in new {
            self.seat(key, room);
        }
        let gone = present.into_iter().filter(|room| had.binary_search_by_key(room, |&(room, _)| room).is_err());
        self.unseat_all(key, gone.collect());
        let Some(member) = self.members.get(key as usize) else { return };
        if member.complete && !complete {
            // It believes to have all, and what is left would only take its offset past the hole.
            member.subscriber.lagged();
        } else if !messages.is_empty() {
            member.subscriber.deliver(&messages.iter().collect::<Vec<_>>());
        }
    }

    fn leave(&mut self, id: MemberId) {
        let Some(key) = self.by_id.remove(&id) else { return };
        let Some(member) = self.members.get(key as usize) else { return };
        let rooms = member.seats.iter().rev().map(|seat| seat.room).collect();
        self.unseat_all(key, rooms);
        self.members.try_remove(key as usize);
    }

    /// Tells members how far they have been served, which is what they come back with.
    fn remind(&mut self, part: usize, of: usize, now: Instant, encode: fn(&str) -> S::Message) {
        let at = self.shared.lock().offset(self.cursor, self.shared.clock.unix(now));
        let message = encode(&self.shared.key.seal(&at));
        for key in (part..self.members.capacity()).step_by(of) {
            if let Some(member) = self.members.get(key) {
                member.subscriber.remind(&message);
            }
        }
    }

    /// The room is one that this shard listens to.
    fn seat(&mut self, key: u32, room: RoomId) {
        let Some(member) = self.members.get_mut(key as usize) else { return };
        let seated = self.rooms.entry(room).or_default();
        #[expect(clippy::cast_possible_truncation, reason = "members are bounded by the caller")]
        let position = seated.len() as u32;
        if let Err(index) = member.seat(room) {
            member.seats.insert(index, Seat { room, position });
            seated.push(key);
        }
    }

    fn unseat_all(&mut self, key: u32, mut rooms: Vec<RoomId>) {
        rooms.retain(|&room| self.unseat(key, room));
        self.shared.unlisten(&rooms, self.index);
    }

    /// Returns whether nobody is in the room any more.
    fn unseat(&mut self, key: u32, room: RoomId) -> bool {
        let Some(member) = self.members.get_mut(key as usize) else { return false };
        let Ok(index) = member.seat(room) else { return false };
        let position = member.seats.remove(index).position;
        let Some(seated) = self.rooms.get_mut(&room) else { return false };
        seated.swap_remove(position as usize);
        let moved = seated.get(position as usize).copied();
        let emptied = seated.is_empty();
        if emptied {
            self.rooms.remove(&room);
        } else if seated.len() < seated.capacity() / 4 {
            seated.shrink_to_fit();
        }
        if let Some(moved) = moved.and_then(|key| self.members.get_mut(key as usize))
            && let Ok(index) = moved.seat(room)
        {
            moved.seats[index].position = position;
        }
        emptied
    }

    /// Delivers one batch from the log; returns whether there was any.
    fn deliver(&mut self) -> bool {
        let mut batch = std::mem::take(&mut self.batch);
        let shared = Arc::clone(&self.shared);
        let log = shared.lock();
        let dropped = log.dropped();
        let from = self.cursor.max(dropped);
        let cursor = log.read(from, self.index, BATCH, &mut batch);
        drop(log);
        if dropped > self.cursor {
            self.cut_lagging(self.cursor);
        }
        let worked = std::mem::replace(&mut self.cursor, cursor) != cursor;
        self.link(&batch);
        self.hand_over(&batch);
        batch.clear();
        self.batch = batch;
        shared.delivered[self.index].store(cursor, Ordering::Release);
        worked
    }

    /// The log dropped something after the sequence `since` before this shard looked at it. Members whose rooms lost
    /// something by that have a hole and must come again.
    fn cut_lagging(&self, since: u64) {
        let rooms: Vec<RoomId> = self.rooms.keys().copied().collect();
        for room in self.shared.lossy(&rooms, since) {
            for member in self.rooms.get(&room).into_iter().flatten().filter_map(|&key| self.members.get(key as usize))
            {
                member.subscriber.lagged();
            }
        }
    }

    /// Lists for every member which messages of the batch it gets.
    fn link(&mut self, batch: &[(RoomId, S::Message)]) {
        for (entry, (room, _)) in (0..).zip(batch) {
            for &key in self.rooms.get(room).into_iter().flatten() {
                let Some(member) = self.members.get_mut(key as usize) else { continue };
                #[expect(clippy::cast_possible_truncation, reason = "at most BATCH times the members")]
                let link = self.links.len() as u32;
                self.links.push(Link { entry, next: NO_LINK });
                if let Some(last) = self.links.get_mut(member.last as usize) {
                    last.next = link;
                } else {
                    member.first = link;
                    self.touched.push(key);
                }
                member.last = link;
            }
        }
    }

    /// Gives every listed member its messages in one call.
    fn hand_over(&mut self, batch: &[(RoomId, S::Message)]) {
        let mut messages: Vec<&S::Message> = Vec::new();
        for keys in self.touched.chunks(PREFETCHED) {
            for member in keys.iter().filter_map(|&key| self.members.get(key as usize)) {
                member.subscriber.prefetch();
            }
            for &key in keys {
                let Some(member) = self.members.get_mut(key as usize) else { continue };
                let mut next = member.first;
                while let Some(link) = self.links.get(next as usize) {
                    messages.extend(batch.get(link.entry as usize).map(|(_, message)| message));
                    next = link.next;
                }
                (member.first, member.last) = (NO_LINK, NO_LINK);
                member.subscriber.deliver(&messages);
                messages.clear();
            }
        }
        self.touched.clear();
        self.links.clear();
        self.links.shrink_to(LINKS_KEPT);
    }
}

enum Turn {
    Worked,
    Idle,
    Stopped,
}
