//! What one entry of the stream holds: a stretch of the log, and how far it reaches on the bus. Pure.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize, Serializer};

use crate::{
    bus::Position,
    hub::{Kind, Past},
};

/// First byte of a batch. A batch of another version is not read.
const VERSION: u8 = 1;

/// A stretch of the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Batch {
    /// Oldest first.
    pub(super) entries: Vec<Past>,
    /// Everything that was published up to here is in this batch or an earlier one. `None` when that is not known.
    pub(super) position: Option<Position>,
    /// When the log last had a gap, in seconds since 1970.
    pub(super) gap: u32,
}

/// A batch as `postcard` writes it.
#[derive(Serialize, Deserialize)]
struct Stored<'a> {
    #[serde(borrow)]
    entries: Vec<StoredEntry<'a>>,
    position: Option<(u64, u64)>,
    gap: u32,
}

#[derive(Serialize, Deserialize)]
enum StoredEntry<'a> {
    Records(#[serde(borrow)] StoredEvent<'a>),
    Notice(#[serde(borrow)] StoredEvent<'a>),
    Gap { fingerprint: u64, at: u32 },
    GapNotice(#[serde(borrow)] StoredEvent<'a>),
}

#[derive(Serialize, Deserialize)]
struct StoredEvent<'a> {
    at: u32,
    room: &'a str,
    #[serde(serialize_with = "bytes")]
    payload: &'a [u8],
}

/// A slice in one piece; serde would write it byte by byte.
fn bytes<S: Serializer>(bytes: &&[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_bytes(bytes)
}

impl Batch {
    /// The batch as bytes.
    pub(super) fn encode(&self) -> Vec<u8> {
        let entries = self.entries.iter().map(|entry| match entry {
            Past::Event { kind, room, payload, at } => {
                let event = StoredEvent { at: *at, room, payload };
                match kind {
                    Kind::Records => StoredEntry::Records(event),
                    Kind::Notice => StoredEntry::Notice(event),
                    Kind::GapNotice => StoredEntry::GapNotice(event),
                }
            }
            &Past::Gap { fingerprint, at } => StoredEntry::Gap { fingerprint, at },
        });
        let position = self.position.map(|Position { run, count }| (run, count));
        let stored = Stored { entries: entries.collect(), position, gap: self.gap };
        // Numbers, texts and bytes can always be written.
        postcard::to_extend(&stored, vec![VERSION]).unwrap_or_default()
    }

    /// The batch in `bytes`; `None` when another program or version wrote them.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let stored: Stored<'_> = postcard::from_bytes(bytes.strip_prefix(&[VERSION])?).ok()?;
        let event = |kind, StoredEvent { at, room, payload }: StoredEvent<'_>| {
            let (room, payload): (Arc<str>, _) = (room.into(), Bytes::copy_from_slice(payload));
            Past::Event { kind, room, payload, at }
        };
        let entries = stored.entries.into_iter().map(|entry| match entry {
            StoredEntry::Records(stored) => event(Kind::Records, stored),
            StoredEntry::Notice(stored) => event(Kind::Notice, stored),
            StoredEntry::GapNotice(stored) => event(Kind::GapNotice, stored),
            StoredEntry::Gap { fingerprint, at } => Past::Gap { fingerprint, at },
        });
        let position = stored.position.map(|(run, count)| Position { run, count });
        Some(Self { entries: entries.collect(), position, gap: stored.gap })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn batch() -> Batch {
        let event = |kind, room: &str, payload: &'static str| Past::Event {
            kind,
            room: room.into(),
            payload: payload.into(),
            at: 1_700_000_000,
        };
        Batch {
            entries: vec![
                Past::Gap { fingerprint: u64::MAX, at: 1 },
                event(Kind::Records, "group-1", r#"{"room":"group-1"}"#),
                event(Kind::Notice, "notice", ""),
                event(Kind::GapNotice, "notice", "{}"),
            ],
            position: Some(Position { run: 7, count: 1 << 40 }),
            gap: 3,
        }
    }

    #[test]
    fn a_batch_is_read_as_it_was_written() {
        for batch in [batch(), Batch::default()] {
            assert_eq!(Batch::decode(&batch.encode()), Some(batch));
        }
    }

    #[test]
    fn another_version_is_not_read() {
        let mut bytes = batch().encode();
        bytes[0] += 1;
        assert_eq!(Batch::decode(&bytes), None);
        assert_eq!(Batch::decode(b""), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = Batch::decode(&[&[VERSION], &bytes[..]].concat());
        }

        #[test]
        fn a_batch_that_was_cut_is_refused(length in 0..batch().encode().len()) {
            prop_assert_eq!(Batch::decode(&batch().encode()[..length]), None);
        }
    }
}
