//! A shard: one thread that owns its subscribers and its own table of who is in which room.
//!
//! It follows the log with a cursor of its own. Nothing is queued for it, so there is no queue to overflow, and a
//! newcomer joins exactly between two messages.

use std::{
    collections::HashMap,
    sync::{Arc, mpsc::Receiver},
    thread,
};

use slab::Slab;

use super::{
    Joined, MemberId, Message, Shared, Since, Subscriber,
    log::{Log, Missed},
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
    Join { id: MemberId, subscriber: S, rooms: Vec<String>, since: Since, welcome: Welcome<S::Message> },
    SetRooms { id: MemberId, rooms: Vec<String> },
    Leave { id: MemberId },
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
    /// Up to where it had been served when it joined: of rooms it gets later it needs all after this.
    since: u64,
    /// Whether it was told that it missed nothing.
    complete: bool,
    /// First and last link of what it gets from the current batch.
    first: u32,
    last: u32,
}

impl<S> Member<S> {
    fn new(subscriber: S, since: u64, complete: bool) -> Self {
        Self { subscriber, seats: Vec::new(), since, complete, first: NO_LINK, last: NO_LINK }
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
            Command::Join { id, subscriber, rooms, since, welcome } => {
                self.join(id, subscriber, &rooms, since, welcome);
            }
            Command::SetRooms { id, rooms } => self.set_rooms(id, &rooms),
            Command::Leave { id } => self.leave(id),
            Command::Stop => {}
        }
    }

    /// The newcomer gets what it missed up to now; what comes after that is delivered to it with the next batches.
    fn join(&mut self, id: MemberId, subscriber: S, rooms: &[String], since: Since, welcome: Welcome<S::Message>) {
        let shared = Arc::clone(&self.shared);
        let mut log = shared.lock();
        let known = match since {
            Since::Offset(offset) => log.known(&offset),
            Since::Now | Since::Unknown => None,
        };
        // All there is by now counts as missed. Not what comes while this catches up, or a flood could keep it at that.
        let head = log.head();
        while self.cursor < head {
            drop(log);
            self.deliver();
            log = shared.lock();
        }
        let known = if since == Since::Now { Some(self.cursor) } else { known };
        let rooms = enter_all(&mut log, rooms);
        let Missed { messages, complete } = log.missed(&rooms, known, self.cursor);
        let complete = complete || since == Since::Now;
        #[expect(clippy::cast_possible_truncation, reason = "members are bounded by file descriptors")]
        let key = self.members.insert(Member::new(subscriber, known.unwrap_or(0), complete)) as u32;
        self.by_id.insert(id, key);
        for room in rooms {
            self.seat(&mut log, key, room);
        }
        let joined = Joined { at: log.offset(self.cursor), missed: messages, complete };
        drop(log);
        welcome(joined);
    }

    /// Gives a member other rooms; of those it did not have it gets what it would have got had it joined with them.
    fn set_rooms(&mut self, id: MemberId, rooms: &[String]) {
        let Some(&key) = self.by_id.get(&id) else { return };
        let shared = Arc::clone(&self.shared);
        let mut log = shared.lock();
        let rooms = enter_all(&mut log, rooms);
        let Some(member) = self.members.get(key as usize) else { return };
        let present: Vec<RoomId> = member.seats.iter().map(|seat| seat.room).collect();
        let new: Vec<RoomId> = rooms.iter().copied().filter(|room| present.binary_search(room).is_err()).collect();
        let messages = log.missed(&new, Some(member.since), self.cursor).messages;
        let complete = new.iter().all(|&room| log.rooms.dropped(room) <= member.since);
        for room in new {
            self.seat(&mut log, key, room);
        }
        for room in present.into_iter().rev().filter(|room| rooms.binary_search(room).is_err()) {
            self.unseat(&mut log, key, room);
        }
        drop(log);
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
        let shared = Arc::clone(&self.shared);
        let mut log = shared.lock();
        while let Some(room) =
            self.members.get(key as usize).and_then(|member| member.seats.last()).map(|seat| seat.room)
        {
            self.unseat(&mut log, key, room);
        }
        // What goes with the subscriber is not ours to know, so not under the lock.
        drop(log);
        self.members.try_remove(key as usize);
    }

    fn seat(&mut self, log: &mut Log<S::Message>, key: u32, room: RoomId) {
        let Some(member) = self.members.get_mut(key as usize) else { return };
        let seated = self.rooms.entry(room).or_default();
        if seated.is_empty() {
            log.rooms.listen(room, self.index);
        }
        #[expect(clippy::cast_possible_truncation, reason = "members are bounded by file descriptors")]
        let position = seated.len() as u32;
        if let Err(index) = member.seat(room) {
            member.seats.insert(index, Seat { room, position });
            seated.push(key);
        }
    }

    fn unseat(&mut self, log: &mut Log<S::Message>, key: u32, room: RoomId) {
        let Some(member) = self.members.get_mut(key as usize) else { return };
        let Ok(index) = member.seat(room) else { return };
        let position = member.seats.remove(index).position;
        let Some(seated) = self.rooms.get_mut(&room) else { return };
        seated.swap_remove(position as usize);
        let moved = seated.get(position as usize).copied();
        if seated.is_empty() {
            self.rooms.remove(&room);
            log.rooms.unlisten(room, self.index);
        } else if seated.len() < seated.capacity() / 4 {
            seated.shrink_to_fit();
        }
        let Some(moved) = moved.and_then(|key| self.members.get_mut(key as usize)) else { return };
        if let Ok(index) = moved.seat(room) {
            moved.seats[index].position = position;
        }
    }

    /// Delivers one batch from the log; returns whether there was any.
    fn deliver(&mut self) -> bool {
        let mut batch = std::mem::take(&mut self.batch);
        let shared = Arc::clone(&self.shared);
        let log = shared.lock();
        let lagging = self.skip_dropped(&log);
        let cursor = log.read(self.cursor, self.index, BATCH, &mut batch);
        drop(log);
        for key in lagging {
            if let Some(member) = self.members.get(key as usize) {
                member.subscriber.lagged();
            }
        }
        let worked = std::mem::replace(&mut self.cursor, cursor) != cursor;
        self.link(&batch);
        self.hand_over(&batch);
        batch.clear();
        self.batch = batch;
        worked
    }

    /// Goes on behind what the log dropped before this shard looked at it. That is nothing, unless someone here waited
    /// for it: who did has a hole and must come again.
    fn skip_dropped(&mut self, log: &Log<S::Message>) -> Vec<u32> {
        if self.cursor >= log.dropped() {
            return Vec::new();
        }
        let cursor = std::mem::replace(&mut self.cursor, log.dropped());
        let lossy = self.rooms.iter().filter(|&(&room, _)| log.rooms.dropped(room) > cursor);
        lossy.flat_map(|(_, seated)| seated).copied().collect()
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

fn enter_all<M: Message>(log: &mut Log<M>, rooms: &[String]) -> Vec<RoomId> {
    let mut entered: Vec<RoomId> = rooms.iter().map(|room| log.rooms.enter(room)).collect();
    entered.sort_unstable();
    entered.dedup();
    entered
}

enum Turn {
    Worked,
    Idle,
    Stopped,
}
