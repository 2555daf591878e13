//! Keys and their remaining time.
//!
//! Answers for: the key space, its bounds, and expiry seen from a moment that is passed in.
//! Must not know: the protocol, clients, the clock.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::command::{Condition, Expiry, SetCommand};

/// Most keys at a time.
pub(super) const MAX_KEYS: usize = 100_000;
/// Most bytes of keys and values together.
pub(super) const MAX_STORED_BYTES: usize = 256 * 1024 * 1024;

/// No room for another value. Redis says it in these words.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("OOM command not allowed when used memory > 'maxmemory'.")]
pub(super) struct Full;

/// What a `SET` did.
#[derive(Debug, PartialEq)]
pub(super) struct SetOutcome {
    pub(super) previous: Option<Bytes>,
    /// False when the condition did not hold.
    pub(super) written: bool,
}

/// How long a key will last.
#[derive(Debug, PartialEq)]
pub(super) enum Remaining {
    Absent,
    Unlimited,
    For(Duration),
}

/// The key space. Nothing in it moves by itself: what has expired is dropped when it is met, or when its
/// room is needed.
#[derive(Debug, Default)]
pub(super) struct Store {
    entries: HashMap<Bytes, Entry>,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    value: Bytes,
    expires: Option<Instant>,
}

impl Entry {
    fn is_live(&self, now: Instant) -> bool {
        self.expires.is_none_or(|expires| expires > now)
    }
}

impl Store {
    pub(super) fn get(&mut self, key: &[u8], now: Instant) -> Option<Bytes> {
        self.live(key, now).map(|entry| entry.value.clone())
    }

    pub(super) fn set(&mut self, command: &SetCommand, now: Instant) -> Result<SetOutcome, Full> {
        let SetCommand { key, value, expiry, condition, .. } = command;
        let (previous, kept) = match self.live(key, now) {
            Some(entry) => (Some(entry.value.clone()), entry.expires),
            None => (None, None),
        };
        let written = match condition {
            None => true,
            Some(Condition::IfAbsent) => previous.is_none(),
            Some(Condition::IfPresent) => previous.is_some(),
        };
        if written {
            let replaced = previous.as_ref().map(Bytes::len);
            self.make_room(key.len(), value.len(), replaced, now)?;
            let expires = match expiry {
                Expiry::Never => None,
                Expiry::Keep => kept,
                Expiry::After(after) => now.checked_add(*after),
            };
            // Copies: a stored slice would keep the whole read buffer it came in alive.
            let value = Bytes::copy_from_slice(value);
            self.bytes += value.len();
            if let Some(entry) = self.entries.get_mut(key) {
                self.bytes -= entry.value.len();
                *entry = Entry { value, expires };
            } else {
                self.bytes += key.len();
                self.entries.insert(Bytes::copy_from_slice(key), Entry { value, expires });
            }
        }
        Ok(SetOutcome { previous, written })
    }

    /// True when there was something to delete.
    pub(super) fn delete(&mut self, key: &[u8], now: Instant) -> bool {
        self.remove(key).is_some_and(|entry| entry.is_live(now))
    }

    pub(super) fn exists(&mut self, key: &[u8], now: Instant) -> bool {
        self.live(key, now).is_some()
    }

    /// Gives a key a time to live, or ends it at once; true when the key existed.
    pub(super) fn expire(&mut self, key: &[u8], after: Option<Duration>, now: Instant) -> bool {
        let Some(after) = after else {
            return self.delete(key, now);
        };
        let Some(entry) = self.live(key, now) else {
            return false;
        };
        entry.expires = now.checked_add(after);
        true
    }

    pub(super) fn remaining(&mut self, key: &[u8], now: Instant) -> Remaining {
        match self.live(key, now).map(|entry| entry.expires) {
            None => Remaining::Absent,
            Some(None) => Remaining::Unlimited,
            Some(Some(expires)) => Remaining::For(expires.saturating_duration_since(now)),
        }
    }

    /// Keys that are held, among them those that expired unnoticed.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    fn live(&mut self, key: &[u8], now: Instant) -> Option<&mut Entry> {
        if !self.entries.get(key)?.is_live(now) {
            self.remove(key);
        }
        self.entries.get_mut(key)
    }

    fn remove(&mut self, key: &[u8]) -> Option<Entry> {
        let entry = self.entries.remove(key)?;
        self.bytes -= key.len() + entry.value.len();
        Some(entry)
    }

    fn make_room(&mut self, key: usize, value: usize, replaced: Option<usize>, now: Instant) -> Result<(), Full> {
        let fits = |store: &Self| match replaced {
            Some(old) => store.bytes - old + value <= MAX_STORED_BYTES,
            None => store.entries.len() < MAX_KEYS && store.bytes + key + value <= MAX_STORED_BYTES,
        };
        if !fits(self) {
            self.entries.retain(|_, entry| entry.is_live(now));
            self.bytes = self.entries.iter().map(|(key, entry)| key.len() + entry.value.len()).sum();
        }
        if fits(self) { Ok(()) } else { Err(Full) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(key: &str, value: &str) -> SetCommand {
        SetCommand {
            key: key.to_owned().into(),
            value: value.to_owned().into(),
            expiry: Expiry::Never,
            condition: None,
            get: false,
        }
    }

    fn lasting(seconds: u64) -> Expiry {
        Expiry::After(Duration::from_secs(seconds))
    }

    #[test]
    fn a_key_ends_with_its_time() {
        let (mut store, start) = (Store::default(), Instant::now());
        store.set(&SetCommand { expiry: lasting(10), ..plain("k", "v") }, start).unwrap();
        let (before, after) = (start + Duration::from_millis(9_999), start + Duration::from_secs(10));
        assert_eq!(store.get(b"k", before), Some("v".into()));
        assert_eq!(store.remaining(b"k", before), Remaining::For(Duration::from_millis(1)));
        assert_eq!(store.get(b"k", after), None);
        assert_eq!((store.len(), store.bytes), (0, 0));
        assert_eq!(store.remaining(b"k", after), Remaining::Absent);
        assert!(!store.delete(b"k", after));
    }

    #[test]
    fn setting_again_ends_the_time_unless_it_is_kept() {
        let (mut store, now) = (Store::default(), Instant::now());
        store.set(&SetCommand { expiry: lasting(10), ..plain("k", "v") }, now).unwrap();
        store.set(&SetCommand { expiry: Expiry::Keep, ..plain("k", "w") }, now).unwrap();
        assert_eq!(store.remaining(b"k", now), Remaining::For(Duration::from_secs(10)));
        store.set(&plain("k", "x"), now).unwrap();
        assert_eq!(store.remaining(b"k", now), Remaining::Unlimited);
        assert!(store.expire(b"k", Some(Duration::from_secs(5)), now));
        assert_eq!(store.remaining(b"k", now), Remaining::For(Duration::from_secs(5)));
        assert!(store.expire(b"k", None, now));
        assert!(!store.expire(b"k", None, now));
        assert!(!store.exists(b"k", now));
    }

    #[test]
    fn conditions_look_at_what_is_alive() {
        let (mut store, now) = (Store::default(), Instant::now());
        let if_absent = SetCommand { condition: Some(Condition::IfAbsent), expiry: lasting(1), ..plain("k", "a") };
        let if_present = SetCommand { condition: Some(Condition::IfPresent), ..plain("k", "b") };
        assert!(!store.set(&if_present, now).unwrap().written);
        assert!(store.set(&if_absent, now).unwrap().written);
        assert_eq!(store.set(&if_absent, now), Ok(SetOutcome { previous: Some("a".into()), written: false }));
        let later = now + Duration::from_secs(2);
        assert!(!store.set(&if_present, later).unwrap().written);
        assert!(store.set(&if_absent, later).unwrap().written);
    }

    #[test]
    fn a_full_store_refuses_until_something_expires() {
        let (mut store, now) = (Store::default(), Instant::now());
        store.set(&SetCommand { expiry: lasting(1), ..plain("fleeting", "v") }, now).unwrap();
        for index in 1..MAX_KEYS {
            store.set(&plain(&index.to_string(), ""), now).unwrap();
        }
        assert_eq!(store.set(&plain("one more", ""), now), Err(Full));
        store.set(&plain("1", "replacing is fine"), now).unwrap();
        store.set(&plain("one more", ""), now + Duration::from_secs(1)).unwrap();
        assert_eq!(store.len(), MAX_KEYS);
        let counted: usize = store.entries.iter().map(|(key, entry)| key.len() + entry.value.len()).sum();
        assert_eq!(store.bytes, counted);
    }

    #[test]
    fn large_values_are_bounded_together() {
        let (mut store, now) = (Store::default(), Instant::now());
        let large = "x".repeat(16 * 1024 * 1024 - 1);
        for index in 0..16 {
            store.set(&plain(&index.to_string()[..1], &large), now).unwrap();
        }
        for index in 'a'..='f' {
            store.set(&plain(&index.to_string(), &large), now).unwrap();
        }
        assert_eq!(store.set(&plain("g", &large), now), Err(Full));
        assert!(store.delete(b"a", now));
        store.set(&plain("g", &large), now).unwrap();
    }
}
