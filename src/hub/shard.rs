//! A shard: one thread that owns its subscribers and its own table of which of them are in which room.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering, mpsc::Receiver},
    thread,
    time::Instant,
};

use slab::Slab;

use super::{
    Event, HubState, Joined, Kind, LossNotice, MemberId, Return, Rooms, Since, Subscriber, join::Bases, rooms::RoomId,
};

/// Events taken from the log at a time: enough to coalesce a burst into one write per subscriber, few enough that they
/// stay in the processor's cache.
const BATCH: usize = 256;

/// Commands taken between two looks at the log, so that a storm of joins does not hold up delivery.
const COMMANDS_PER_TURN: usize = 64;

/// Subscribers whose memory is fetched together: the kernel's work for those before has pushed it out of the cache.
/// 2 % less processor time for each delivery of 1 kB to 5,000 browsers, in the benchmark's fan-out.
const PREFETCHED: usize = 16;

/// Deliveries that memory is kept for between batches, 12 bytes each.
const DUE_KEPT: usize = 1 << 14;

pub(super) enum ShardCommand {
    Join(Newcomer),
    SetRooms { id: MemberId, rooms: Rooms, now: Instant },
    Leave { id: MemberId },
    Remind { part: usize, of: usize, now: Instant },
    Stop,
}

pub(super) struct Newcomer {
    pub(super) id: MemberId,
    pub(super) subscriber: Box<dyn Subscriber>,
    pub(super) rooms: Rooms,
    pub(super) since: Since,
    pub(super) now: Instant,
    /// Called in the shard, before anything live is delivered.
    pub(super) welcome: Box<dyn FnOnce(Joined) + Send>,
}

/// Index of a member in its shard's slab; indices are used again.
type Slot = u32;

struct Member {
    subscriber: Box<dyn Subscriber>,
    /// Sorted.
    rooms: Vec<RoomId>,
    /// From where on it needs the events of rooms it gets later.
    bases: Bases,
    /// Whether it was told that it missed nothing.
    complete: bool,
    /// When the newest gap was that it knows of: it is told of others.
    gap: u32,
    /// Index in [`Shard::due`] of the last event it gets from the current batch.
    due: Option<u32>,
}

/// An event of the current batch that a member gets, by index, and the index of the one before.
struct Due {
    event: u32,
    previous: Option<u32>,
}

pub(super) struct Shard {
    index: usize,
    shared: Arc<HubState>,
    commands: Receiver<ShardCommand>,
    cursor: u64,
    members: Slab<Member>,
    by_id: HashMap<MemberId, Slot>,
    /// The members of each room, sorted, so that a batch visits them in the order of their memory.
    rooms: HashMap<RoomId, Vec<Slot>>,
    batch: Vec<(RoomId, Arc<Event>)>,
    /// A list for each member that gets something from the batch, from its last event to its first.
    due: Vec<Due>,
    /// These members.
    served: Vec<Slot>,
}

impl Shard {
    pub(super) fn new(index: usize, shared: Arc<HubState>, commands: Receiver<ShardCommand>) -> Self {
        Self {
            index,
            shared,
            commands,
            cursor: 0,
            members: Slab::new(),
            by_id: HashMap::new(),
            rooms: HashMap::new(),
            batch: Vec::new(),
            due: Vec::new(),
            served: Vec::new(),
        }
    }

    /// Works until told to stop. What gives it work unparks its thread.
    pub(super) fn run(mut self) {
        loop {
            let mut worked = false;
            for _ in 0..COMMANDS_PER_TURN {
                let Ok(command) = self.commands.try_recv() else { break };
                worked = true;
                match command {
                    ShardCommand::Join(newcomer) => self.join(newcomer),
                    ShardCommand::SetRooms { id, rooms, now } => self.set_rooms(id, &rooms, now),
                    ShardCommand::Leave { id } => self.leave(id),
                    ShardCommand::Remind { part, of, now } => self.remind(part, of, now),
                    ShardCommand::Stop => return,
                }
            }
            worked |= self.deliver();
            if !worked {
                thread::park();
            }
        }
    }

    /// The newcomer gets what it missed up to the cursor; what comes after that is delivered to it with the next batches.
    fn join(&mut self, newcomer: Newcomer) {
        let Newcomer { id, subscriber, rooms, since, now, welcome } = newcomer;
        let is_known = matches!(since, Since::Return(Return { started: Some(_), .. }));
        // All that is published by now counts as missed. What comes during this does not, or a flood would never end it.
        let head = self.shared.log.lock().head();
        while self.cursor < head {
            self.deliver();
        }
        let mut bases = Bases::new(since, self.cursor, &self.shared);
        let rooms = self.shared.listen(&rooms, bases, self.index);
        let missed = self.shared.missed(&rooms, self.cursor);
        if missed.is_none() {
            // It starts over from here, also in rooms that it gets later.
            bases = Bases { served: self.cursor, started: self.cursor, whole: false, ..bases };
        }
        let (mut missed, has_all) = missed.unwrap_or_default();
        let complete = has_all && bases.whole;
        let is_lost = bases.has_hole || (!has_all && is_known);
        if complete || is_lost {
            // They tell of gaps before its session, or of what it is told below.
            missed.retain(|event| event.kind != Kind::GapNotice);
        }
        let log = self.shared.log.lock();
        let at = log.offset(self.cursor, self.shared.unix(now));
        let gap = if is_lost { log.gap_at } else { bases.gap };
        drop(log);
        if let Some(LossNotice { room, payload }) = self.shared.notice.clone().filter(|_| is_lost) {
            missed.push(Arc::new(Event::new(Kind::GapNotice, room.into(), at, payload)));
        }
        #[expect(clippy::cast_possible_truncation, reason = "members are bounded by the caller")]
        let slot =
            self.members.insert(Member { subscriber, rooms: Vec::new(), bases, complete, gap, due: None }) as Slot;
        self.by_id.insert(id, slot);
        self.enter(slot, rooms.into_iter().map(|(room, _)| room));
        welcome(Joined { at, missed, complete });
    }

    /// Gives a member other rooms. Of those it did not have, it gets what it would have got had it joined with them.
    fn set_rooms(&mut self, id: MemberId, rooms: &Rooms, now: Instant) {
        let Some(&slot) = self.by_id.get(&id) else { return };
        let Some(member) = self.members.get(slot as usize) else { return };
        let rooms = self.shared.listen(rooms, member.bases, self.index);
        let is_gone = |room: &&RoomId| rooms.binary_search_by_key(*room, |&(room, _)| room).is_err();
        let gone: Vec<RoomId> = member.rooms.iter().filter(is_gone).copied().collect();
        let new: Vec<_> = rooms.into_iter().filter(|(room, _)| member.rooms.binary_search(room).is_err()).collect();
        let (missed, complete) = self.shared.missed(&new, self.cursor).unwrap_or_default();
        self.enter(slot, new.into_iter().map(|(room, _)| room));
        self.exit(slot, gone);
        let Some(member) = self.members.get(slot as usize) else { return };
        if member.complete && !complete {
            // It believes to have all, and what is left would only take its offset past the hole.
            member.subscriber.lagged();
        } else if !missed.is_empty() {
            member.subscriber.deliver(&missed.iter().map(|event| &**event).collect::<Vec<_>>());
            // The last of these is older than what it got before, and it would come back as if it had not got that.
            let at = self.shared.log.lock().offset(self.cursor, self.shared.unix(now));
            member.subscriber.remind(&self.shared.key.seal(&at));
        }
    }

    fn leave(&mut self, id: MemberId) {
        let Some(slot) = self.by_id.remove(&id) else { return };
        let rooms = self.members.get(slot as usize).map(|member| member.rooms.clone());
        self.exit(slot, rooms.unwrap_or_default());
        self.members.try_remove(slot as usize);
    }

    /// Tells members how far they have been served, which is what they come back with.
    fn remind(&self, part: usize, of: usize, now: Instant) {
        let at = self.shared.log.lock().offset(self.cursor, self.shared.unix(now));
        let offset = self.shared.key.seal(&at);
        for slot in (part..self.members.capacity()).step_by(of) {
            if let Some(member) = self.members.get(slot) {
                member.subscriber.remind(&offset);
            }
        }
    }

    /// The member is in these rooms too, which it was not in; the shard listens to them.
    fn enter(&mut self, slot: Slot, rooms: impl Iterator<Item = RoomId>) {
        let Some(member) = self.members.get_mut(slot as usize) else { return };
        for room in rooms {
            member.rooms.push(room);
            insert(self.rooms.entry(room).or_default(), slot);
        }
        member.rooms.sort();
    }

    /// The member is in these rooms, which are sorted, no more.
    fn exit(&mut self, slot: Slot, mut rooms: Vec<RoomId>) {
        let Some(member) = self.members.get_mut(slot as usize) else { return };
        member.rooms.retain(|room| rooms.binary_search(room).is_err());
        member.rooms.shrink_to_fit();
        rooms.retain(|room| {
            let Some(members) = self.rooms.get_mut(room) else { return false };
            remove(members, &slot);
            let emptied = members.is_empty();
            if emptied {
                self.rooms.remove(room);
            }
            emptied
        });
        self.shared.unlisten(&rooms, self.index);
    }

    /// Delivers one batch from the log; returns whether the cursor moved.
    fn deliver(&mut self) -> bool {
        let log = self.shared.log.lock();
        let (dropped, restored) = (log.dropped(), log.restored);
        if restored > self.cursor {
            // What was published before this node listened is for those that come back.
            self.cursor = restored;
            for (_, Member { bases, .. }) in &mut self.members {
                *bases = Bases { served: bases.served.max(restored), started: bases.started.max(restored), ..*bases };
            }
        }
        let cursor = log.read(self.cursor.max(dropped), self.index, BATCH, &mut self.batch);
        drop(log);
        if dropped > self.cursor {
            self.cut_lagging();
        }
        let worked = std::mem::replace(&mut self.cursor, cursor) != cursor;
        for (event, (room, published)) in (0..).zip(&self.batch) {
            let known_gap = (published.kind == Kind::GapNotice).then_some(published.offset.gap);
            for &slot in self.rooms.get(room).into_iter().flatten() {
                let Some(member) = self.members.get_mut(slot as usize) else { continue };
                if known_gap == Some(member.gap) {
                    continue;
                }
                #[expect(clippy::cast_possible_truncation, reason = "at most BATCH times the members")]
                let previous = member.due.replace(self.due.len() as u32);
                self.due.push(Due { event, previous });
                if previous.is_none() {
                    self.served.push(slot);
                }
            }
        }
        let mut events = Vec::new();
        for slots in self.served.chunks(PREFETCHED) {
            for member in slots.iter().filter_map(|&slot| self.members.get(slot as usize)) {
                member.subscriber.prefetch();
            }
            for &slot in slots {
                let Some(member) = self.members.get_mut(slot as usize) else { continue };
                let mut next = member.due.take();
                while let Some(due) = next.and_then(|next| self.due.get(next as usize)) {
                    events.extend(self.batch.get(due.event as usize).map(|(_, event)| &**event));
                    next = due.previous;
                }
                events.reverse();
                member.subscriber.deliver(&events);
                events.clear();
            }
        }
        self.served.clear();
        self.due.clear();
        self.due.shrink_to(DUE_KEPT);
        self.batch.clear();
        self.shared.delivered[self.index].store(cursor, Ordering::Release);
        worked
    }

    /// The log dropped something after the cursor before this shard looked at it. Members whose rooms lost something by
    /// that have a hole and must come again.
    fn cut_lagging(&self) {
        let rooms: Vec<RoomId> = self.rooms.keys().copied().collect();
        for room in self.shared.lossy(&rooms, self.cursor) {
            let slots = self.rooms.get(&room).into_iter().flatten();
            for member in slots.filter_map(|&slot| self.members.get(slot as usize)) {
                member.subscriber.lagged();
            }
        }
    }
}

/// Adds to a sorted list without repetitions.
fn insert<T: Ord>(list: &mut Vec<T>, item: T) {
    if let Err(index) = list.binary_search(&item) {
        list.insert(index, item);
    }
}

/// Removes from a sorted list without repetitions, and gives memory back that it does not need for long.
fn remove<T: Ord>(list: &mut Vec<T>, item: &T) {
    if let Ok(index) = list.binary_search(item) {
        list.remove(index);
        if list.len() < list.capacity() / 4 {
            list.shrink_to_fit();
        }
    }
}
