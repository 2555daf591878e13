//! The recovery log: the last messages in order, by room, bounded in time and bytes.
//!
//! Without I/O, clock or locks. It does not know what a message says, only what it weighs.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{
    Message, Offset,
    offset::Epoch,
    rooms::{RoomId, Rooms, ShardSet},
};

/// Estimated bookkeeping of one entry in bytes, counted against the bound so that many tiny messages are bounded too.
const ENTRY_OVERHEAD: usize = 128;

/// How much the log keeps; what exceeds either bound is dropped, oldest first.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Oldest age of a message.
    pub window: Duration,
    /// Bytes of all messages with their bookkeeping.
    pub bytes: usize,
}

struct Entry<M> {
    fingerprint: u64,
    /// `None` marks a gap: a moment in which messages may have been lost before they got here.
    kept: Option<Kept<M>>,
}

struct Kept<M> {
    room: RoomId,
    at: Instant,
    message: M,
}

/// What a subscriber missed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Missed<M> {
    /// Oldest first.
    pub(super) messages: Vec<M>,
    /// Whether nothing that was meant for it is known to be gone.
    pub(super) complete: bool,
}

pub(super) struct Log<M> {
    epoch: Epoch,
    bounds: Bounds,
    entries: VecDeque<Entry<M>>,
    /// Sequence of the oldest entry.
    first: u64,
    bytes: usize,
    /// Fingerprint of the newest entry that is gone.
    fingerprint: u64,
    /// Sequence of the newest gap, 0 for none.
    gap: u64,
    pub(super) rooms: Rooms,
}

impl<M: Message> Log<M> {
    pub(super) fn new(epoch: Epoch, bounds: Bounds) -> Self {
        let entries = VecDeque::new();
        Self { epoch, bounds, entries, first: 1, bytes: 0, fingerprint: 0, gap: 0, rooms: Rooms::default() }
    }

    /// Sequence of the newest entry, 0 when there was none yet.
    pub(super) fn head(&self) -> u64 {
        self.first + self.entries.len() as u64 - 1
    }

    /// The offset of a subscriber that has seen everything up to `sequence`.
    pub(super) fn offset(&self, sequence: u64) -> Offset {
        let fingerprint = self.entry(sequence).map_or(self.fingerprint, |entry| entry.fingerprint);
        Offset { epoch: self.epoch, sequence, fingerprint }
    }

    fn entry(&self, sequence: u64) -> Option<&Entry<M>> {
        self.entries.get(usize::try_from(sequence.checked_sub(self.first)?).ok()?)
    }

    /// Appends what `encode` makes of the new message's offset; returns the shards that wait for the room.
    pub(super) fn append(
        &mut self,
        room: &str,
        fingerprint: u64,
        now: Instant,
        encode: impl FnOnce(&Offset) -> M,
    ) -> ShardSet {
        let offset = Offset { epoch: self.epoch, sequence: self.head() + 1, fingerprint };
        let message = encode(&offset);
        self.bytes += message.weight() + ENTRY_OVERHEAD;
        let room = self.rooms.enter(room);
        self.entries.push_back(Entry { fingerprint, kept: Some(Kept { room, at: now, message }) });
        let shards = self.rooms.keep(room, offset.sequence);
        self.expire(now);
        shards
    }

    /// Notes that messages may have been lost right now.
    pub(super) fn note_gap(&mut self) {
        let fingerprint = self.offset(self.head()).fingerprint;
        self.entries.push_back(Entry { fingerprint, kept: None });
        self.gap = self.head();
    }

    /// Drops what is too old or too much; the newest message always stays.
    pub(super) fn expire(&mut self, now: Instant) {
        while self.entries.len() > 1 {
            let Some(oldest) = self.entries.front() else { return };
            let outdated =
                oldest.kept.as_ref().is_none_or(|kept| now.saturating_duration_since(kept.at) > self.bounds.window);
            if !outdated && self.bytes <= self.bounds.bytes {
                return;
            }
            self.first += 1;
            let Some(oldest) = self.entries.pop_front() else { return };
            self.fingerprint = oldest.fingerprint;
            if let Some(kept) = oldest.kept {
                self.bytes -= kept.message.weight() + ENTRY_OVERHEAD;
                self.rooms.drop_oldest(kept.room);
            }
        }
    }

    /// Sequence of the newest entry that is gone.
    pub(super) fn dropped(&self) -> u64 {
        self.first - 1
    }

    /// Looks at up to `most` entries after the sequence `cursor`, which must not be dropped yet, and copies what `shard`
    /// listens to; returns the new cursor.
    pub(super) fn read(&self, cursor: u64, shard: usize, most: usize, batch: &mut Vec<(RoomId, M)>) -> u64 {
        let start =
            usize::try_from((cursor + 1).saturating_sub(self.first)).unwrap_or(usize::MAX).min(self.entries.len());
        let end = self.entries.len().min(start.saturating_add(most));
        let kept = self.entries.range(start..end).filter_map(|entry| entry.kept.as_ref());
        let wanted = kept.filter(|kept| self.rooms.listeners(kept.room) & (1 << shard) != 0);
        batch.extend(wanted.map(|kept| (kept.room, kept.message.clone())));
        self.first + end as u64 - 1
    }

    /// The offset's sequence, if the offset is of this log.
    pub(super) fn known(&self, offset: &Offset) -> Option<u64> {
        (offset.epoch == self.epoch && offset.sequence <= self.head()).then_some(offset.sequence)
    }

    /// What a subscriber of `rooms` has missed up to the sequence `until`, when it was last at `since`; all there is when
    /// nobody knows where it was.
    pub(super) fn missed(&self, rooms: &[RoomId], since: Option<u64>, until: u64) -> Missed<M> {
        let complete =
            since.is_some_and(|since| since >= self.gap && rooms.iter().all(|&room| self.rooms.dropped(room) <= since));
        let after = |&room| self.rooms.after(room, since.unwrap_or(0));
        let mut sequences: Vec<u64> = rooms.iter().flat_map(after).filter(|&sequence| sequence <= until).collect();
        sequences.sort_unstable();
        sequences.dedup();
        let message = |sequence| Some(self.entry(sequence)?.kept.as_ref()?.message.clone());
        Missed { messages: sequences.into_iter().filter_map(message).collect(), complete }
    }

    /// Bytes counted against the bound.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Message for u32 {
        fn weight(&self) -> usize {
            1_000
        }
    }

    fn log(bytes: usize) -> Log<u32> {
        Log::new(Epoch::new(7), Bounds { window: Duration::from_mins(1), bytes })
    }

    /// What a subscriber with this offset has missed.
    fn missed(log: &Log<u32>, rooms: &[RoomId], since: &Offset) -> Missed<u32> {
        log.missed(rooms, log.known(since), log.head())
    }

    fn append(log: &mut Log<u32>, room: &str, message: u32, now: Instant) -> Offset {
        log.append(room, u64::from(message), now, |_| message);
        log.offset(log.head())
    }

    #[test]
    fn replays_the_rooms_of_a_subscriber_in_order() {
        let (mut log, now) = (log(1 << 20), Instant::now());
        let start = log.offset(log.head());
        for (room, message) in [("a", 1), ("b", 2), ("c", 3), ("a", 4)] {
            append(&mut log, room, message, now);
        }
        let rooms = [log.rooms.enter("b"), log.rooms.enter("a"), log.rooms.enter("a")];
        assert_eq!(missed(&log, &rooms, &start), Missed { messages: vec![1, 2, 4], complete: true });
        assert_eq!(missed(&log, &rooms, &log.offset(log.head())), Missed { messages: vec![], complete: true });
    }

    #[test]
    fn a_quiet_room_stays_complete_while_others_overflow() {
        let (mut log, now) = (log(10 * (1_000 + ENTRY_OVERHEAD)), Instant::now());
        append(&mut log, "quiet", 0, now);
        let offset = append(&mut log, "busy", 1, now);
        for message in 2..100 {
            append(&mut log, "busy", message, now);
        }
        let (quiet, busy) = (log.rooms.enter("quiet"), log.rooms.enter("busy"));
        assert_eq!(missed(&log, &[quiet], &offset), Missed { messages: vec![], complete: true });
        let missed = missed(&log, &[busy], &offset);
        assert_eq!((missed.messages, missed.complete), ((90..100).collect(), false));
        assert_eq!(log.bytes(), 10 * (1_000 + ENTRY_OVERHEAD));
    }

    #[test]
    fn drops_by_age_but_never_the_newest() {
        let (mut log, start) = (log(1 << 20), Instant::now());
        let offset = append(&mut log, "a", 1, start);
        append(&mut log, "a", 2, start + Duration::from_secs(50));
        log.expire(start + Duration::from_secs(61));
        let room = log.rooms.enter("a");
        assert_eq!(missed(&log, &[room], &offset), Missed { messages: vec![2], complete: true });
        log.expire(start + Duration::from_secs(500));
        assert_eq!(missed(&log, &[room], &offset).messages, [2]);
    }

    #[test]
    fn an_offset_from_elsewhere_gets_all_there_is() {
        let (mut log, now) = (log(1 << 20), Instant::now());
        let own = append(&mut log, "a", 1, now);
        let room = log.rooms.enter("a");
        for foreign in [Offset { epoch: Epoch::new(8), ..own }, Offset { sequence: 2, ..own }] {
            assert_eq!(missed(&log, &[room], &foreign), Missed { messages: vec![1], complete: false });
        }
    }

    #[test]
    fn across_a_gap_nothing_is_complete() {
        let (mut log, now) = (log(1 << 20), Instant::now());
        let before = append(&mut log, "a", 1, now);
        log.note_gap();
        let after = log.offset(log.head());
        append(&mut log, "a", 2, now);
        let room = log.rooms.enter("a");
        assert_eq!(missed(&log, &[room], &before), Missed { messages: vec![2], complete: false });
        assert_eq!(missed(&log, &[room], &after), Missed { messages: vec![2], complete: true });
    }

    #[test]
    fn a_reader_gets_what_it_listens_to_in_batches() {
        let (mut log, now) = (log(1 << 20), Instant::now());
        let room = log.rooms.enter("a");
        log.rooms.listen(room, 5);
        for (room, message) in [("a", 1), ("b", 2), ("a", 3), ("a", 4)] {
            append(&mut log, room, message, now);
        }
        let mut batch = Vec::new();
        assert_eq!(log.read(0, 5, 3, &mut batch), 3);
        assert_eq!(batch, [(room, 1), (room, 3)]);
        assert_eq!(log.read(3, 5, 3, &mut batch), 4);
        assert_eq!(log.read(4, 5, 3, &mut batch), 4);
        assert_eq!((batch.len(), log.read(0, 6, 9, &mut batch)), (3, 4));
    }
}
