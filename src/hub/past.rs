//! The log as it leaves the hub, to be kept elsewhere, and comes back after a restart.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{Hub, HubState, Kind, log::ENTRY_OVERHEAD};

/// Events by which the place of one log in another is found. As many are the same only where the place does not matter.
const PLACE_EVENTS: usize = 64;

/// Entries that are read in one hold of the log's lock: some microseconds.
pub(super) const ENTRIES_PER_LOCK: usize = 256;

/// An entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Past {
    /// A message.
    Event {
        /// What it is about.
        kind: Kind,
        /// The room it was published to.
        room: Arc<str>,
        /// As it was published.
        payload: Bytes,
        /// When, in seconds since 1970.
        at: u32,
    },
    /// Messages may have been lost.
    Gap {
        /// By which nodes recognise this place in the log.
        fingerprint: u64,
        /// When, in seconds since 1970.
        at: u32,
    },
}

impl Past {
    /// When it came, in seconds since 1970.
    pub fn at(&self) -> u32 {
        let (Self::Event { at, .. } | Self::Gap { at, .. }) = self;
        *at
    }

    /// What it counts against the bounds of the log, in bytes.
    pub fn weight(&self) -> usize {
        match self {
            Self::Event { payload, .. } => payload.len() + ENTRY_OVERHEAD,
            Self::Gap { .. } => ENTRY_OVERHEAD,
        }
    }
}

impl Hub {
    /// Appends what was published before this node listened. No subscriber is delivered it, only those that come back get
    /// what they missed of it. `gap` is when the newest gap was, in seconds since 1970; 0 if that is not
    /// known. Returns the sequence of the last entry. To be called before [`Hub::resume`].
    pub fn restore(&self, entries: impl IntoIterator<Item = Past>, gap: u32, now: Instant) -> u64 {
        for entry in entries {
            let published = self.published(&entry);
            match entry {
                Past::Event { kind, room, payload, at } => {
                    let fingerprint = self.fingerprint(&payload);
                    let mut log = self.shared.log.lock();
                    log.append(kind, &room, payload, fingerprint, published, at);
                    log.restored = log.head();
                }
                Past::Gap { fingerprint, at } => {
                    let mut log = self.shared.log.lock();
                    log.append_gap(fingerprint, published, at);
                    log.restored = log.head();
                }
            }
        }
        if gap > 0 {
            self.shared.log.lock().gap_at = gap;
        }
        self.expire(now);
        self.shared.log.lock().head()
    }

    /// When an entry of another log was published.
    pub fn published(&self, entry: &Past) -> Instant {
        let now = Instant::now();
        let age = Duration::from_secs(self.shared.unix(now).saturating_sub(entry.at()).into());
        now.checked_sub(age).unwrap_or(now)
    }

    /// Whether this log has an event since its newest gap, by which its place in another log may be found.
    pub fn has_place(&self) -> bool {
        let log = self.shared.log.lock();
        let mut newest = (0..=log.head()).rev().map_while(|sequence| log.kept(sequence));
        newest.any(|kept| kept.event.kind != Kind::GapNotice)
    }

    /// Of the newest `entries` of another node's log, or all of them, the number of those up to the newest event of this log:
    /// those after it are what this log lacks. `None` when they do not have that event with what came before it, or this
    /// log has none since its newest gap. Where the place is ambiguous it is the first one, as what is sent twice does no
    /// harm.
    pub fn place_in(&self, entries: &VecDeque<Past>, are_all: bool) -> Option<usize> {
        // Notices of gaps are each node's own.
        let theirs: Vec<_> = (1..)
            .zip(entries)
            .filter_map(|(number, entry)| match entry {
                Past::Event { kind: Kind::GapNotice, .. } => None,
                Past::Event { payload, .. } => Some((number, Some(self.fingerprint(payload)))),
                Past::Gap { .. } => Some((number, None)),
            })
            .collect();
        let log = self.shared.log.lock();
        let newest = (0..=log.head()).rev().map_while(|sequence| log.kept(sequence));
        let newest = newest.filter(|kept| kept.event.kind != Kind::GapNotice).take(PLACE_EVENTS);
        let ours: Vec<u64> = newest.map(|kept| kept.event.offset.fingerprint).collect();
        drop(log);
        let last = ours.first()?;
        let is_place = |index: &usize| {
            let before = theirs[..=*index].iter().rev().map_while(|&(_, fingerprint)| fingerprint);
            let same = before.zip(&ours).take_while(|(theirs, ours)| theirs == *ours).count();
            let until_gap = theirs[..=*index].iter().rev().take_while(|(_, fingerprint)| fingerprint.is_some()).count();
            let most = until_gap.min(ours.len());
            theirs[*index].1 == Some(*last) && same == most && (are_all || same == PLACE_EVENTS)
        };
        (0..theirs.len()).find(is_place).map(|index| theirs[index].0)
    }

    /// The time of day, in seconds since 1970.
    pub fn unix(&self) -> u32 {
        self.shared.unix(Instant::now())
    }

    /// By which nodes recognise a message.
    pub fn fingerprint(&self, payload: &[u8]) -> u64 {
        self.shared.key.fingerprint(payload)
    }

    /// A reader of the log that begins with its oldest entry.
    pub fn tail(&self) -> Tail {
        let sequence = self.shared.log.lock().dropped();
        Tail { shared: Arc::clone(&self.shared), sequence }
    }
}

/// Follows the log.
pub struct Tail {
    shared: Arc<HubState>,
    sequence: u64,
}

impl Tail {
    /// Sequence of the last entry that was taken.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// When the log last had a gap, in seconds since 1970.
    pub fn gap(&self) -> u32 {
        self.shared.log.lock().gap_at
    }

    /// The next entries up to the sequence `until`, oldest first: of up to `bytes`, and at least one if there is one. `None`
    /// when the log dropped entries that were not taken.
    pub fn take(&mut self, bytes: usize, until: u64) -> Option<Vec<Past>> {
        let (mut entries, mut weight) = (Vec::new(), 0);
        loop {
            let log = self.shared.log.lock();
            if self.sequence < log.dropped() {
                return None;
            }
            for _ in 0..ENTRIES_PER_LOCK {
                let next = (self.sequence < until).then(|| log.past(self.sequence + 1));
                let Some(entry) = next.flatten() else { return Some(entries) };
                weight += entry.weight();
                if weight > bytes && !entries.is_empty() {
                    return Some(entries);
                }
                entries.push(entry);
                self.sequence += 1;
            }
        }
    }

    /// Waits until there is an entry to take.
    pub async fn changed(&self) {
        let news = self.shared.news.notified();
        // Set before the log is looked at: a publisher that appends after that sees it.
        self.shared.is_followed.store(true, Ordering::Relaxed);
        if self.shared.log.lock().head() == self.sequence {
            news.await;
        }
    }
}

impl HubState {
    /// Wakes the tail that sleeps, if there is one. To be called after an entry was appended.
    pub(super) fn wake_tail(&self) {
        if self.is_followed.load(Ordering::Relaxed) && self.is_followed.swap(false, Ordering::Relaxed) {
            self.news.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::{Clock, Epoch, HubOptions, LogBounds, OffsetKey, Shards};

    /// A hub with a log of messages, one for each letter; `-` is a gap, and `!` its notice.
    fn hub(log: &str) -> (Hub, Shards) {
        let options = HubOptions {
            epoch: Epoch(1),
            key: OffsetKey::new(&[7; 32]),
            bounds: LogBounds { window: Duration::from_hours(1), bytes: 1 << 20, undelivered: 0, replay: 1 << 20 },
            shards: 1,
            notice: None,
            clock: Clock::now(),
        };
        let (hub, shards) = Hub::start(options, || ()).unwrap();
        for letter in log.chars() {
            match letter {
                '-' => _ = hub.resume(false),
                _ => _ = hub.publish(kind(letter), "a", letter.to_string().into(), Instant::now()),
            }
        }
        (hub, shards)
    }

    fn kind(letter: char) -> Kind {
        if letter == '!' { Kind::GapNotice } else { Kind::Records }
    }

    /// What `theirs` has after the newest event of `ours`.
    fn lacks(ours: &str, theirs: &str, are_all: bool) -> Option<String> {
        let entry = |letter: char| match letter {
            '-' => Past::Gap { fingerprint: 1, at: 0 },
            _ => Past::Event { kind: kind(letter), room: "a".into(), payload: letter.to_string().into(), at: 0 },
        };
        let place = hub(ours).0.place_in(&theirs.chars().map(entry).collect(), are_all)?;
        Some(theirs[place..].to_owned())
    }

    #[test]
    fn a_log_lacks_what_another_has_after_its_newest_event() {
        let lacks = |ours, theirs| lacks(ours, theirs, true);
        assert_eq!(lacks("abc", "abcde").as_deref(), Some("de"));
        assert_eq!(lacks("abc", "abc").as_deref(), Some(""));
        assert_eq!(lacks("abc", "c-de").as_deref(), Some("-de"), "the other log began later");
        assert_eq!(lacks("abc!", "ab!cd").as_deref(), Some("d"), "notices of gaps are each node's own");
        assert_eq!(lacks("a-bc", "abcd").as_deref(), Some("d"), "what is before a gap says nothing");
        for (ours, theirs) in [("abc", "abde"), ("abc", ""), ("", "abc"), ("ab-", "abc"), ("abc!-!", "abcd")] {
            assert_eq!(lacks(ours, theirs), None, "{ours} {theirs}");
        }
    }

    #[test]
    fn of_places_with_the_same_message_the_one_counts_that_has_the_same_before_it() {
        let lacks = |ours, theirs| lacks(ours, theirs, true);
        assert_eq!(lacks("abcb", "abcbd").as_deref(), Some("d"));
        assert_eq!(lacks("ab", "abcbd").as_deref(), Some("cbd"));
        assert_eq!(lacks("bb", "bbbd").as_deref(), Some("bbd"), "the first, where both may be it");
    }

    #[test]
    fn a_place_is_not_clear_while_less_is_known_before_it() {
        assert_eq!(lacks("aba", "axy", false), None);
        assert_eq!(lacks("-x", "xyzx", false), None);
        assert_eq!(lacks("abc", "q-cd", false), None);
        assert_eq!(lacks("aba", "axy", true).as_deref(), Some("xy"));
        let ours: String = ('a'..='z').cycle().take(PLACE_EVENTS).collect();
        assert_eq!(lacks(&ours, &format!("{ours}!-"), false).as_deref(), Some("!-"));
    }
}
