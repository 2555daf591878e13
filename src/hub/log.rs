//! The recovery log: the last messages in order, by room, bounded in time and bytes.
//!
//! Without I/O, clock or locks. It does not know what a message says, only what it weighs. Each call is short: what
//! grows with the number of rooms or of missed messages is done by the caller in steps, so that the lock around the log
//! is held for microseconds.

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
pub(super) const ENTRY_OVERHEAD: usize = 128;

/// How much the log keeps; what exceeds `window` or `bytes` is dropped, oldest first.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Oldest age of a message.
    pub window: Duration,
    /// Bytes of all messages with their bookkeeping.
    pub bytes: usize,
    /// Bytes beyond that for messages that a shard has not delivered yet.
    pub undelivered: usize,
    /// Bytes of messages, with their bookkeeping, that one returning subscriber is given at most.
    pub replay: usize,
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

/// What became of the oldest entry.
pub(super) enum Oldest<M> {
    /// It is gone; its message is for the caller to free when the lock is not held.
    Dropped(Option<M>),
    /// The log is within its bounds.
    Stays,
    /// It would be dropped, but a shard has not delivered it yet.
    Undelivered,
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
    /// Whether messages may be getting lost at this moment.
    interrupted: bool,
    pub(super) rooms: Rooms,
}

impl<M: Message> Log<M> {
    /// An empty log that is interrupted until [`Log::resume`].
    pub(super) fn new(epoch: Epoch, bounds: Bounds) -> Self {
        let (entries, rooms) = (VecDeque::new(), Rooms::default());
        Self { epoch, bounds, entries, first: 1, bytes: 0, fingerprint: 0, gap: 0, interrupted: true, rooms }
    }

    /// Sequence of the newest entry, 0 when there was none yet.
    pub(super) fn head(&self) -> u64 {
        self.first + self.entries.len() as u64 - 1
    }

    /// The offset of a subscriber that has seen everything up to `sequence`, at the time `at`.
    pub(super) fn offset(&self, sequence: u64, at: u32) -> Offset {
        let fingerprint = self.entry(sequence).map_or(self.fingerprint, |entry| entry.fingerprint);
        Offset { epoch: self.epoch, sequence, fingerprint, at }
    }

    fn entry(&self, sequence: u64) -> Option<&Entry<M>> {
        self.entries.get(usize::try_from(sequence.checked_sub(self.first)?).ok()?)
    }

    /// The message with this sequence, unless it is gone.
    pub(super) fn message(&self, sequence: u64) -> Option<&M> {
        Some(&self.entry(sequence)?.kept.as_ref()?.message)
    }

    /// Appends the message with the sequence [`Log::head`] + 1; returns the shards that wait for the room.
    pub(super) fn append(&mut self, room: &str, fingerprint: u64, at: Instant, message: M) -> ShardSet {
        self.bytes += message.weight() + ENTRY_OVERHEAD;
        let (room, listeners) = self.rooms.keep(room, self.head() + 1);
        self.entries.push_back(Entry { fingerprint, kept: Some(Kept { room, at, message }) });
        listeners
    }

    /// Until [`Log::resume`], messages may be getting lost before they get here.
    pub(super) fn interrupt(&mut self) {
        self.interrupted = true;
    }

    /// Messages come again; unless it is known that none was lost meanwhile, that was a gap.
    pub(super) fn resume(&mut self, lost_nothing: bool) {
        self.interrupted = false;
        if !lost_nothing {
            let fingerprint = self.offset(self.head(), 0).fingerprint;
            self.entries.push_back(Entry { fingerprint, kept: None });
            self.gap = self.head();
        }
    }

    /// Whether no gap is known since `sequence`.
    pub(super) fn is_whole_since(&self, sequence: u64) -> bool {
        sequence >= self.gap && !self.interrupted
    }

    /// Drops the oldest entry if it is too old or there is too much; the newest always stays. `delivered` is the sequence
    /// up to which every shard has delivered.
    pub(super) fn expire_oldest(&mut self, now: Instant, delivered: u64) -> Oldest<M> {
        let Some(oldest) = self.entries.front().filter(|_| self.entries.len() > 1) else { return Oldest::Stays };
        let Bounds { window, bytes, undelivered, .. } = self.bounds;
        let outdated = oldest.kept.as_ref().is_none_or(|kept| now.saturating_duration_since(kept.at) > window);
        if !outdated && self.bytes <= bytes {
            return Oldest::Stays;
        }
        if self.first > delivered && self.bytes <= bytes.saturating_add(undelivered) {
            return Oldest::Undelivered;
        }
        self.first += 1;
        let Some(oldest) = self.entries.pop_front() else { return Oldest::Stays };
        self.fingerprint = oldest.fingerprint;
        Oldest::Dropped(oldest.kept.map(|kept| {
            self.bytes -= kept.message.weight() + ENTRY_OVERHEAD;
            self.rooms.drop_oldest(kept.room);
            kept.message
        }))
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

    /// Bytes that one returning subscriber is given at most.
    pub(super) fn replay_bytes(&self) -> usize {
        self.bounds.replay
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

    const WEIGHT: usize = 1_000 + ENTRY_OVERHEAD;

    fn log(bytes: usize, undelivered: usize) -> Log<u32> {
        let bounds = Bounds { window: Duration::from_mins(1), bytes, undelivered, replay: usize::MAX };
        let mut log = Log::new(Epoch::new(7), bounds);
        log.resume(true);
        log
    }

    /// Appends, and drops what is not needed by who has delivered up to `delivered`.
    fn append(log: &mut Log<u32>, room: &str, message: u32, now: Instant, delivered: u64) {
        log.append(room, u64::from(message), now, message);
        while let Oldest::Dropped(_) = log.expire_oldest(now, delivered) {}
    }

    fn kept(log: &Log<u32>) -> Vec<u32> {
        (0..=log.head()).filter_map(|sequence| log.message(sequence).copied()).collect()
    }

    #[test]
    fn what_is_too_much_is_dropped_and_remembered_by_room() {
        let (mut log, now) = (log(10 * WEIGHT, 0), Instant::now());
        append(&mut log, "quiet", 0, now, u64::MAX);
        for message in 1..100 {
            append(&mut log, "busy", message, now, u64::MAX);
        }
        assert_eq!((kept(&log), log.bytes(), log.dropped()), ((90..100).collect(), 10 * WEIGHT, 90));
        let (quiet, busy) = (log.rooms.listen("quiet", 0), log.rooms.listen("busy", 0));
        assert_eq!((log.rooms.dropped(quiet), log.rooms.dropped(busy)), (1, 90));
        assert_eq!(log.offset(90, 5), Offset { epoch: Epoch::new(7), sequence: 90, fingerprint: 89, at: 5 });
    }

    #[test]
    fn what_is_not_delivered_stays_up_to_a_bound_of_its_own() {
        let (mut log, now) = (log(2 * WEIGHT, 3 * WEIGHT), Instant::now());
        for message in 1..=5 {
            append(&mut log, "a", message, now, 1);
        }
        assert_eq!(kept(&log), [2, 3, 4, 5]);
        assert!(matches!(log.expire_oldest(now, 1), Oldest::Undelivered));
        append(&mut log, "a", 6, now, 1);
        append(&mut log, "a", 7, now, 1);
        assert_eq!(kept(&log), [3, 4, 5, 6, 7], "more than both bounds together is too much");
        append(&mut log, "a", 8, now, 8);
        assert_eq!(kept(&log), [7, 8]);
    }

    #[test]
    fn drops_by_age_but_never_the_newest() {
        let (mut log, start) = (log(1 << 20, 0), Instant::now());
        append(&mut log, "a", 1, start, u64::MAX);
        append(&mut log, "a", 2, start + Duration::from_secs(50), u64::MAX);
        let expire = |log: &mut Log<u32>, seconds| {
            while let Oldest::Dropped(_) = log.expire_oldest(start + Duration::from_secs(seconds), u64::MAX) {}
        };
        expire(&mut log, 61);
        assert_eq!(kept(&log), [2]);
        expire(&mut log, 500);
        assert_eq!(kept(&log), [2]);
    }

    #[test]
    fn offsets_of_another_log_or_the_future_are_not_known() {
        let (mut log, now) = (log(1 << 20, 0), Instant::now());
        append(&mut log, "a", 1, now, 0);
        let own = log.offset(1, 0);
        assert_eq!(log.known(&own), Some(1));
        assert_eq!(log.known(&Offset { epoch: Epoch::new(8), ..own }), None);
        assert_eq!(log.known(&Offset { sequence: 2, ..own }), None);
    }

    #[test]
    fn a_gap_ends_what_is_whole_unless_nothing_was_lost_in_it() {
        let (mut log, now) = (log(1 << 20, 0), Instant::now());
        append(&mut log, "a", 1, now, 0);
        assert!(log.is_whole_since(1));
        log.interrupt();
        assert!(!log.is_whole_since(1), "nobody knows yet");
        log.resume(true);
        assert!(log.is_whole_since(0));
        log.interrupt();
        log.resume(false);
        assert!(!log.is_whole_since(1) && log.is_whole_since(2));
    }

    #[test]
    fn a_reader_gets_what_it_listens_to_in_batches() {
        let (mut log, now) = (log(1 << 20, 0), Instant::now());
        let room = log.rooms.listen("a", 5);
        for (room, message) in [("a", 1), ("b", 2), ("a", 3), ("a", 4)] {
            append(&mut log, room, message, now, 0);
        }
        let mut batch = Vec::new();
        assert_eq!(log.read(0, 5, 3, &mut batch), 3);
        assert_eq!(batch, [(room, 1), (room, 3)]);
        assert_eq!(log.read(3, 5, 3, &mut batch), 4);
        assert_eq!(log.read(4, 5, 3, &mut batch), 4);
        assert_eq!((batch.len(), log.read(0, 6, 9, &mut batch)), (3, 4));
    }
}
