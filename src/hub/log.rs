//! The recovery log: the last events in order, by room, bounded in time and bytes.
//!
//! Without I/O, clock or locks. Each call is short: the caller does in steps what grows with the number of rooms or of
//! missed events, so that the lock around the log is held for microseconds.

use std::{
    collections::VecDeque,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{
    Event, Kind, Offset, Past,
    offset::Epoch,
    rooms::{RoomId, RoomTable, ShardSet},
};

/// Estimated memory of one entry beside its payload, in bytes: the event, its form for one wire and the log's own
/// bookkeeping. It counts against the bound, so that many tiny events are bounded too.
pub(super) const ENTRY_OVERHEAD: usize = 320;

/// By how many seconds the clocks of nodes may differ.
pub(super) const SKEW: u32 = 2;

/// How much the log keeps; what exceeds `window` or `bytes` is dropped, oldest first. A form that does not share its
/// event's payload comes on top.
#[derive(Clone, Copy, Debug)]
pub struct LogBounds {
    /// Oldest age of an event.
    pub window: Duration,
    /// Bytes of all payloads with the overhead of their events.
    pub bytes: usize,
    /// Bytes beyond that for events that a shard has not delivered yet.
    pub undelivered: usize,
    /// Bytes of events, counted likewise, that one returning subscriber is given at most.
    pub replay: usize,
}

struct LogEntry {
    fingerprint: u64,
    published: Instant,
    /// The same, in seconds since 1970.
    at: u32,
    /// `None` marks a gap: a moment in which messages may have been lost before they reached the hub.
    kept: Option<Kept>,
}

/// An event in the log.
pub(super) struct Kept {
    room: RoomId,
    /// What it counts against the bounds.
    pub(super) weight: usize,
    pub(super) event: Arc<Event>,
}

/// What became of the oldest entry.
pub(super) enum Oldest {
    /// The log dropped it. The caller frees its event after it has released the lock.
    Dropped(Option<Kept>),
    /// The log is within its bounds.
    Stays,
    /// The log would drop it, but a shard has not delivered it yet.
    Undelivered,
}

pub(super) struct EventLog {
    pub(super) epoch: Epoch,
    pub(super) bounds: LogBounds,
    entries: VecDeque<LogEntry>,
    /// Sequence of the oldest entry.
    first: u64,
    /// What all entries together count against the bounds.
    pub(super) bytes: usize,
    /// Fingerprint of the newest entry that was dropped.
    fingerprint: u64,
    /// Sequence of the newest gap, 0 for none.
    gap: u64,
    /// When that was, in seconds since 1970. No two gaps have the same time.
    pub(super) gap_at: u32,
    /// Whether that is a gap of this node after messages that it had heard, which other nodes do not share.
    pub(super) gap_is_own: bool,
    /// Sequence of the newest entry that was restored: it was published before this node listened.
    pub(super) restored: u64,
    /// Whether messages have ever come: until then, entries may still be restored.
    pub(super) is_begun: bool,
    /// Whether messages may be lost at this moment before they reach the hub.
    pub(super) interrupted: bool,
    pub(super) rooms: RoomTable,
}

impl EventLog {
    /// An empty log, begun at this time in seconds since 1970, that is interrupted until [`EventLog::resume`].
    pub(super) fn new(epoch: Epoch, bounds: LogBounds, at: u32) -> Self {
        Self {
            epoch,
            bounds,
            entries: VecDeque::new(),
            first: 1,
            bytes: 0,
            fingerprint: 0,
            gap: 0,
            gap_at: at,
            gap_is_own: false,
            restored: 0,
            is_begun: false,
            interrupted: true,
            rooms: RoomTable::default(),
        }
    }

    /// Sequence of the newest entry, 0 before the first.
    pub(super) fn head(&self) -> u64 {
        self.first + self.entries.len() as u64 - 1
    }

    /// The offset of a subscriber that has seen everything up to `sequence`, at the time `at`.
    pub(super) fn offset(&self, sequence: u64, at: u32) -> Offset {
        let fingerprint = self.entry(sequence).map_or(self.fingerprint, |entry| entry.fingerprint);
        Offset { epoch: self.epoch, sequence, fingerprint, at, gap: self.gap_at }
    }

    fn entry(&self, sequence: u64) -> Option<&LogEntry> {
        self.entries.get(usize::try_from(sequence.checked_sub(self.first)?).ok()?)
    }

    /// The event with this sequence, unless it was dropped.
    pub(super) fn kept(&self, sequence: u64) -> Option<&Kept> {
        self.entry(sequence)?.kept.as_ref()
    }

    /// Appends an event with the next sequence; returns its offset and the shards that listen to the room. Each node has its
    /// own notices of gaps, which are all alike: such a notice is no place, and is told as the entry before it.
    pub(super) fn append(
        &mut self,
        kind: Kind,
        room: &str,
        payload: Bytes,
        fingerprint: u64,
        published: Instant,
        at: u32,
    ) -> (Offset, ShardSet) {
        let fingerprint = if kind == Kind::GapNotice { self.offset(self.head(), at).fingerprint } else { fingerprint };
        let offset = Offset { epoch: self.epoch, sequence: self.head() + 1, fingerprint, at, gap: self.gap_at };
        let weight = payload.len() + ENTRY_OVERHEAD;
        self.bytes += weight;
        let (room, name, listeners) = self.rooms.keep(room, offset.sequence);
        // Until a form is made of it, it may stay where the bus has read it.
        let payload = if listeners == 0 { Bytes::copy_from_slice(&payload) } else { payload };
        let event = Arc::new(Event::new(kind, name, offset, payload));
        let kept = Some(Kept { room, weight, event });
        self.entries.push_back(LogEntry { fingerprint, published, at, kept });
        (offset, listeners)
    }

    /// Appends a gap. By its fingerprint, which nothing else has, other logs recognise the place after it.
    pub(super) fn append_gap(&mut self, fingerprint: u64, published: Instant, at: u32) {
        self.entries.push_back(LogEntry { fingerprint, published, at, kept: None });
        self.gap = self.head();
        self.gap_at = at.max(self.gap_at.saturating_add(1));
    }

    /// Whether no gap is known since `offset`, of which `sequence` is the place in this log.
    ///
    /// What another node published at about the time of the gap may have been lost in it, and an equal message that came
    /// after the gap would pass for it. That is excluded if both nodes have the same gap, or the offset is of the gap itself.
    pub(super) fn is_whole_since(&self, offset: &Offset, sequence: u64) -> bool {
        let is_gap = || self.entry(self.gap).is_some_and(|gap| gap.fingerprint == offset.fingerprint);
        let is_shared = !self.gap_is_own && offset.gap == self.gap_at;
        let is_later = offset.at > self.gap_at.saturating_add(SKEW);
        sequence >= self.gap && (offset.epoch == self.epoch || is_later || is_shared || is_gap())
    }

    /// Drops the oldest entry if it is too old or the log too large; the newest always stays. `delivered` is the sequence
    /// up to which every shard has delivered.
    pub(super) fn expire_oldest(&mut self, now: Instant, delivered: u64) -> Oldest {
        let Some(oldest) = self.entries.front().filter(|_| self.entries.len() > 1) else { return Oldest::Stays };
        let LogBounds { window, bytes, undelivered, .. } = self.bounds;
        let outdated = now.saturating_duration_since(oldest.published) > window;
        if !outdated && self.bytes <= bytes {
            return Oldest::Stays;
        }
        if self.first > delivered && self.bytes <= bytes.saturating_add(undelivered) {
            return Oldest::Undelivered;
        }
        let Some(LogEntry { fingerprint, kept, .. }) = self.entries.pop_front() else { return Oldest::Stays };
        self.fingerprint = fingerprint;
        self.first += 1;
        if let Some(kept) = &kept {
            self.bytes -= kept.weight;
            self.rooms.drop_oldest(kept.room);
        }
        Oldest::Dropped(kept)
    }

    /// Indices of up to `most` entries after the sequence `cursor`.
    fn range(&self, cursor: u64, most: usize) -> Range<usize> {
        let start =
            usize::try_from((cursor + 1).saturating_sub(self.first)).unwrap_or(usize::MAX).min(self.entries.len());
        start..self.entries.len().min(start.saturating_add(most))
    }

    /// Sequence of the newest entry that was dropped.
    pub(super) fn dropped(&self) -> u64 {
        self.first - 1
    }

    /// Looks at up to `most` entries after the sequence `cursor`, which must not be dropped yet, and adds to `batch` the
    /// events that `shard` listens to; returns the new cursor.
    pub(super) fn read(&self, cursor: u64, shard: usize, most: usize, batch: &mut Vec<(RoomId, Arc<Event>)>) -> u64 {
        let range = self.range(cursor, most);
        let end = range.end;
        let kept = self.entries.range(range).filter_map(|entry| entry.kept.as_ref());
        let wanted = kept.filter(|kept| self.rooms.listeners(kept.room) & (1 << shard) != 0);
        batch.extend(wanted.map(|kept| (kept.room, Arc::clone(&kept.event))));
        self.first + end as u64 - 1
    }

    /// Fingerprints and sequences of up to `most` entries after the sequence `cursor`, or after what was dropped.
    pub(super) fn fingerprints(&self, cursor: u64, most: usize) -> Vec<(u64, u64)> {
        let entries = self.entries.range(self.range(cursor, most));
        let sequences = cursor.max(self.dropped()) + 1..;
        entries.map(|entry| entry.fingerprint).zip(sequences).collect()
    }

    /// When the entry with this sequence was published, in seconds since 1970.
    pub(super) fn published(&self, sequence: u64) -> Option<u32> {
        Some(self.entry(sequence)?.at)
    }

    /// The entry with this sequence, as it is kept elsewhere.
    pub(super) fn past(&self, sequence: u64) -> Option<Past> {
        let &LogEntry { fingerprint, at, ref kept, .. } = self.entry(sequence)?;
        let Some(Kept { event, .. }) = kept else { return Some(Past::Gap { fingerprint, at }) };
        Some(Past::Event { kind: event.kind, room: Arc::clone(&event.room), payload: event.payload(), at })
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::{super::index::FingerprintIndex, *};

    const WEIGHT: usize = 1_000 + ENTRY_OVERHEAD;

    fn log(bytes: usize, undelivered: usize) -> EventLog {
        let bounds = LogBounds { window: Duration::from_mins(1), bytes, undelivered, replay: usize::MAX };
        let mut log = EventLog::new(Epoch(7), bounds, 100);
        log.interrupted = false;
        log
    }

    /// Appends an event that its fingerprint tells apart, and drops what may go when all is delivered up to `delivered`.
    fn append(log: &mut EventLog, room: &str, number: u64, now: Instant, delivered: u64) {
        log.append(Kind::Records, room, vec![0; 1_000].into(), number, now, 0);
        while let Oldest::Dropped(_) = log.expire_oldest(now, delivered) {}
    }

    fn kept(log: &EventLog) -> Vec<u64> {
        (0..=log.head()).filter_map(|sequence| Some(log.kept(sequence)?.event.offset.fingerprint)).collect()
    }

    #[test]
    fn what_is_too_much_is_dropped_and_remembered_by_room() {
        let (mut log, now) = (log(10 * WEIGHT, 0), Instant::now());
        append(&mut log, "quiet", 0, now, u64::MAX);
        for number in 1..100 {
            append(&mut log, "busy", number, now, u64::MAX);
        }
        assert_eq!((kept(&log), log.bytes, log.dropped()), ((90..100).collect(), 10 * WEIGHT, 90));
        let (quiet, busy) = (log.rooms.listen("quiet", 0), log.rooms.listen("busy", 0));
        assert_eq!((log.rooms.dropped(quiet), log.rooms.dropped(busy)), (1, 90));
        assert_eq!(log.offset(90, 5), Offset { epoch: Epoch(7), sequence: 90, fingerprint: 89, at: 5, gap: 100 });
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
        let expire = |log: &mut EventLog, seconds| {
            while let Oldest::Dropped(_) = log.expire_oldest(start + Duration::from_secs(seconds), u64::MAX) {}
        };
        expire(&mut log, 61);
        assert_eq!(kept(&log), [2]);
        expire(&mut log, 500);
        assert_eq!(kept(&log), [2]);
    }

    #[test]
    fn no_two_gaps_have_the_same_time() {
        let (mut log, now) = (log(1 << 20, 0), Instant::now());
        log.append_gap(1, now, 200);
        log.append_gap(2, now, 200);
        assert_eq!((log.gap, log.gap_at), (2, 201));
    }

    #[test]
    fn a_gap_ends_what_is_whole() {
        let (mut log, now) = (log(1 << 20, 0), Instant::now());
        append(&mut log, "a", 1, now, 0);
        let is_whole = |log: &EventLog, sequence| log.is_whole_since(&log.offset(sequence, 0), sequence);
        assert!(is_whole(&log, 0) && is_whole(&log, 1));
        log.append_gap(9, now, 0);
        assert!(!is_whole(&log, 1) && is_whole(&log, 2));
    }

    #[test]
    fn a_place_that_another_node_told_at_the_time_of_a_gap_may_be_in_the_gap() {
        let (mut log, now) = (log(1 << 20, 0), Instant::now());
        log.append_gap(9, now, 200);
        append(&mut log, "a", 1, now, 0);
        let own = log.offset(2, 200);
        let other = Offset { epoch: Epoch(8), gap: 199, ..own };
        let is_whole = |log: &EventLog, offset| log.is_whole_since(&offset, 2);
        let later = Offset { at: 200 + SKEW + 1, ..other };
        let of_the_gap = Offset { fingerprint: 9, ..other };
        for is_own in [false, true] {
            log.gap_is_own = is_own;
            assert_eq!([own, other, later, of_the_gap].map(|at| is_whole(&log, at)), [true, false, true, true]);
            assert_eq!(is_whole(&log, Offset { gap: 200, ..other }), !is_own, "the same gap, or another one by chance");
        }
    }

    #[test]
    fn a_notice_of_a_gap_is_no_place() {
        let (mut log, now) = (log(1 << 20, 0), Instant::now());
        log.append_gap(9, now, 0);
        let (notice, _) = log.append(Kind::GapNotice, "a", "{}".into(), 7, now, 0);
        assert_eq!((notice.sequence, notice.fingerprint), (2, 9));
        append(&mut log, "a", 1, now, 0);
        let (log, index) = (Mutex::new(log), FingerprintIndex::default());
        let at = |fingerprint| index.known(&Offset { epoch: Epoch(8), sequence: 0, fingerprint, at: 0, gap: 0 }, &log);
        assert_eq!([at(7), at(9), at(1)], [None, Some(1), Some(3)], "what other nodes tell with theirs");
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
        let numbers: Vec<_> = batch.iter().map(|(room, event)| (*room, event.offset.fingerprint)).collect();
        assert_eq!(numbers, [(room, 1), (room, 3)]);
        assert_eq!(log.read(3, 5, 3, &mut batch), 4);
        assert_eq!(log.read(4, 5, 3, &mut batch), 4);
        assert_eq!((batch.len(), log.read(0, 6, 9, &mut batch)), (3, 4));
    }
}
