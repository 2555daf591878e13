//! The index by fingerprint, through which offsets of another log are found in this one.

use std::collections::BTreeSet;

use parking_lot::Mutex;

use super::{
    Offset,
    log::{EventLog, SKEW},
    past::ENTRIES_PER_LOCK,
};

/// The fingerprints in the log, brought up to date when an offset of another log comes: after a restart, or from another
/// node. Until then neither publishing nor expiry has work with it.
#[derive(Default)]
pub(super) struct FingerprintIndex(Mutex<Fingerprints>);

#[derive(Default)]
struct Fingerprints {
    /// Fingerprints with the sequences of their entries: at most twice as many as the log has entries, as those of entries
    /// that the log dropped are removed together.
    sorted: BTreeSet<(u64, u64)>,
    /// Sequence of the newest entry that is indexed.
    head: u64,
}

impl FingerprintIndex {
    /// The sequence of the offset, if `log` has the place. Where the same was published several times, the first that it
    /// may be: what is sent twice does no harm.
    pub(super) fn known(&self, offset: &Offset, log: &Mutex<EventLog>) -> Option<u64> {
        let Offset { epoch, sequence, fingerprint, at, .. } = *offset;
        let own = log.lock();
        if epoch == own.epoch {
            return (sequence <= own.head()).then_some(sequence);
        }
        drop(own);
        let sequence = self.0.lock().find(fingerprint, log)?;
        // When the subscriber was there before this was published, it was at an earlier place that the log has dropped.
        let published = log.lock().published(sequence)?;
        (published <= at.saturating_add(SKEW)).then_some(sequence)
    }
}

impl Fingerprints {
    /// The first place of the fingerprint.
    fn find(&mut self, fingerprint: u64, log: &Mutex<EventLog>) -> Option<u64> {
        loop {
            let entries = log.lock().fingerprints(self.head, ENTRIES_PER_LOCK);
            let Some(&(_, head)) = entries.last() else { break };
            self.head = head;
            self.sorted.extend(entries);
        }
        let dropped = log.lock().dropped();
        if self.sorted.len() as u64 > 2 * self.head.saturating_sub(dropped) {
            self.sorted.retain(|&(_, sequence)| sequence > dropped);
        }
        let &(found, sequence) = self.sorted.range((fingerprint, dropped + 1)..).next()?;
        (found == fingerprint).then_some(sequence)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::hub::{
        Epoch, Kind, LogBounds,
        log::{ENTRY_OVERHEAD, Oldest},
    };

    /// A log that keeps four events, and its index.
    struct Indexed(Mutex<EventLog>, FingerprintIndex);

    impl Indexed {
        fn new() -> Self {
            let bounds = LogBounds {
                window: Duration::from_mins(1),
                bytes: 4 * ENTRY_OVERHEAD,
                undelivered: 0,
                replay: usize::MAX,
            };
            Self(Mutex::new(EventLog::new(Epoch(7), bounds, 100)), FingerprintIndex::default())
        }

        fn add(&self, fingerprint: u64, at: u32) {
            let (mut log, now) = (self.0.lock(), Instant::now());
            log.append(Kind::Records, "a", "".into(), fingerprint, now, at);
            while let Oldest::Dropped(_) = log.expire_oldest(now, u64::MAX) {}
        }

        fn find(&self, fingerprint: u64, at: u32) -> Option<u64> {
            self.1.known(&Offset { epoch: Epoch(8), sequence: 70, fingerprint, at, gap: 0 }, &self.0)
        }
    }

    #[test]
    fn a_place_is_known_by_what_was_published_or_by_its_gap() {
        let log = Indexed::new();
        assert_eq!(log.find(1, 0), None);
        log.add(1, 0);
        let own = log.0.lock().offset(1, 0);
        assert_eq!(log.1.known(&own, &log.0), Some(1));
        assert_eq!(log.1.known(&Offset { sequence: 2, ..own }, &log.0), None, "in the future");
        assert_eq!([log.find(1, 0), log.find(2, 0), log.find(0, 0)], [Some(1), None, None]);
        log.0.lock().append_gap(2, Instant::now(), 0);
        assert_eq!(log.find(2, 0), Some(2), "a session began after the gap");
    }

    #[test]
    fn of_places_with_the_same_message_the_first_counts_and_none_that_came_later() {
        let log = Indexed::new();
        for (at, fingerprint) in [(10, 1), (11, 2), (20, 1), (30, 1)] {
            log.add(fingerprint, at);
        }
        assert_eq!([log.find(1, 10), log.find(1, 40)], [Some(1), Some(1)]);
        log.add(3, 40);
        assert_eq!(log.find(1, 40), Some(3), "the first was dropped");
        assert_eq!(log.find(1, 10), None, "it was at the first");
        for fingerprint in 4..8 {
            log.add(fingerprint, 50);
        }
        assert_eq!(log.find(1, 60), None);
        log.add(1, 60);
        assert_eq!([log.find(1, 30), log.find(1, 60)], [None, Some(10)]);
    }

    #[test]
    fn what_the_log_dropped_is_not_kept_for_long() {
        let log = Indexed::new();
        for fingerprint in 1..100 {
            log.add(fingerprint, 0);
            assert_eq!(log.find(fingerprint, 0), Some(fingerprint));
            assert!(log.1.0.lock().sorted.len() <= 2 * 4);
        }
        for fingerprint in 100..200 {
            log.add(fingerprint, 0);
        }
        assert_eq!(log.find(1, 0), None);
        assert!(log.1.0.lock().sorted.len() <= 2 * 4, "what was dropped before it was indexed is not read");
    }
}
