//! Rails' recent answers, for those who ask the same again at once: a browser that reconnects, several documents of one
//! page.
//!
//! Time is passed in. Must not be asked across an outage: whoever knows of one calls [`Cache::clear`].

use std::time::Duration;

use tokio::time::Instant;

use super::{aging::Aging, document::Key};

/// How long a grant holds. A person who loses a right keeps it so long at most.
const GRANT: Duration = Duration::from_secs(5);

/// How long a denial holds. Long enough for a burst; a person who was just given a right must not wait for it.
const DENIAL: Duration = Duration::from_secs(1);

/// Answers kept at a time. Each takes about 120 bytes, and for as long as one is kept, more people than this do not
/// open a document. When there are more, the oldest goes, and is asked again.
const MOST: usize = 4_096;

/// Recent answers.
pub(super) struct Cache(Aging<Key, Answer>);

struct Answer {
    status: u16,
    until: Instant,
}

/// The one status that grants.
const GRANTED: u16 = 200;

impl Cache {
    pub(super) fn new() -> Self {
        Self(Aging::new(MOST))
    }

    /// The status Rails answered with, if that is known.
    pub(super) fn get(&self, key: &Key, now: Instant) -> Option<u16> {
        self.0.get(key).filter(|answer| now < answer.until).map(|answer| answer.status)
    }

    /// Keeps the answer to what was asked at `asked` for its time since then, as Rails may have decided at once and
    /// answered late; any status but 200 is a denial.
    pub(super) fn insert(&mut self, key: Key, status: u16, asked: Instant) {
        let until = asked + if status == GRANTED { GRANT } else { DENIAL };
        self.0.insert(key, Answer { status, until }, |old| old.until <= asked);
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::document::{Check, Names},
        *,
    };

    fn key(name: &str) -> Key {
        Check::new("1,a".to_owned(), name.to_owned(), Names::Any).unwrap().key()
    }

    #[test]
    fn grants_hold_longer_than_denials() {
        let (mut cache, start) = (Cache::new(), Instant::now());
        cache.insert(key("granted"), 200, start);
        cache.insert(key("denied"), 404, start);
        let known = |name, millis| cache.get(&key(name), start + Duration::from_millis(millis));
        assert_eq!([0, 4_999, 5_000].map(|millis| known("granted", millis)), [Some(200), Some(200), None]);
        assert_eq!([0, 999, 1_000].map(|millis| known("denied", millis)), [Some(404), Some(404), None]);
        assert_eq!(known("another", 0), None);
    }

    #[test]
    fn the_newest_answer_counts_and_none_survives_an_outage() {
        let (mut cache, start) = (Cache::new(), Instant::now());
        cache.insert(key("a"), 200, start);
        cache.insert(key("a"), 401, start);
        assert_eq!(cache.get(&key("a"), start), Some(401));
        cache.clear();
        assert_eq!(cache.get(&key("a"), start), None);
    }
}
