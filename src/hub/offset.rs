//! Where in the log a subscriber is: the opaque text that goes with every event.

use std::array;

use aes::{
    Aes128,
    cipher::{BlockCipherDecrypt, BlockCipherEncrypt, KeyInit},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

/// One life of the recovery log, a random number. Sequences of different epochs cannot be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Epoch(pub u32);

/// A position in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offset {
    /// The log this offset belongs to.
    pub epoch: Epoch,
    /// Number of the last event that was sent, less than 2⁴⁰; the first has number 1.
    pub sequence: u64,
    /// [`OffsetKey::fingerprint`] of that event's payload, 0 before the first. Another node, or this node after a restart,
    /// can find the place by it.
    pub fingerprint: u64,
    /// When the subscriber was there, in seconds since 1970.
    pub at: u32,
    /// When the log last had a gap before it was told, likewise.
    pub gap: u32,
}

const BLOCK: usize = 16;
const FINGERPRINT: usize = 8;

/// The time of a gap is told by its lower bits, in seconds: it is less than half a year before the offset's own, or after
/// it by less than [`AHEAD`]. An older gap counts as a newer one.
const GAP_MASK: u32 = (1 << 24) - 1;

/// By how much a gap may be ahead of its time, as no two gaps have the same.
const AHEAD: u32 = 3_600;

/// Characters of an offset's text.
const LENGTH: usize = 32;

/// Seals offsets. Nodes with the same key read each other's offsets and agree on fingerprints.
///
/// The text is base64url of 24 bytes: epoch, time, sequence and time of the gap, encrypted as one AES block, and the
/// fingerprint. It does not tell a browser how much is published on the site nor, since the fingerprint is keyed, whether
/// a guess of a payload is right. Any text of this length opens; a made-up one leads to no place in a log: one attempt of
/// 2³² would hit the epoch, and one of 2⁴⁰ the fingerprint of an event among millions.
#[derive(Clone)]
pub struct OffsetKey {
    place: Aes128,
    fingerprint: Aes128,
}

impl OffsetKey {
    /// The key made of 32 secret bytes.
    pub fn new(secret: &[u8; 2 * BLOCK]) -> Self {
        let cipher = |start: usize| Aes128::new(&array::from_fn::<_, BLOCK, _>(|i| secret[start + i]).into());
        Self { place: cipher(0), fingerprint: cipher(BLOCK) }
    }

    /// Equal for equal payloads on every node with this key, and of no use without the key.
    pub fn fingerprint(&self, payload: &[u8]) -> u64 {
        let mut block = xxhash_rust::xxh3::xxh3_128(payload).to_be_bytes().into();
        self.fingerprint.encrypt_block(&mut block);
        number(&block[..FINGERPRINT])
    }

    /// The offset as text of letters, digits, `-` and `_`.
    pub fn seal(&self, offset: &Offset) -> String {
        let (epoch, at) = (u128::from(offset.epoch.0) << 96, u128::from(offset.at) << 64);
        let gap = u64::from(offset.gap & GAP_MASK);
        let mut block = (epoch | at | u128::from(offset.sequence << 24 | gap)).to_be_bytes().into();
        self.place.encrypt_block(&mut block);
        let mut sealed = [0; BLOCK + FINGERPRINT];
        sealed[..BLOCK].copy_from_slice(&block);
        sealed[BLOCK..].copy_from_slice(&offset.fingerprint.to_be_bytes());
        URL_SAFE_NO_PAD.encode(sealed)
    }

    /// The offset in `text`; `None` when it was not sealed with this key.
    pub fn open(&self, text: &str) -> Option<Offset> {
        if text.len() != LENGTH {
            return None;
        }
        let sealed = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (block, fingerprint) = sealed.split_first_chunk::<BLOCK>()?;
        let mut block = (*block).into();
        self.place.decrypt_block(&mut block);
        let block = <[u8; BLOCK]>::from(block);
        let word = |range| u32::try_from(number(&block[range])).ok();
        let (epoch, at, sequence) = (Epoch(word(0..4)?), word(4..8)?, number(&block[8..13]));
        let latest = at.saturating_add(AHEAD);
        let gap = latest.saturating_sub(latest.wrapping_sub(word(13..16)?) & GAP_MASK);
        Some(Offset { epoch, sequence, fingerprint: number(fingerprint), at, gap })
    }
}

/// Up to eight bytes, the most significant first.
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(byte: u8) -> OffsetKey {
        OffsetKey::new(&[byte; 32])
    }

    proptest! {
        #[test]
        fn survives_the_way_through_a_browser(
            epoch: u32,
            sequence in 0..1_u64 << 40,
            fingerprint: u64,
            at in GAP_MASK..u32::MAX - AHEAD,
            age in 0..=GAP_MASK,
        ) {
            let gap = at + AHEAD - age;
            let offset = Offset { epoch: Epoch(epoch), sequence, fingerprint, at, gap };
            let text = key(1).seal(&offset);
            prop_assert_eq!(key(1).open(&text), Some(offset));
            prop_assert_eq!(text.len(), LENGTH);
            prop_assert_eq!(key(2).open(&text).filter(|other| other.epoch == offset.epoch), None);
        }

        #[test]
        fn any_text_is_no_offset_of_this_epoch(text in "[A-Za-z0-9_-]{32}|.*") {
            prop_assert_eq!(key(1).open(&text).filter(|offset| offset.epoch == Epoch(7)), None);
        }
    }

    #[test]
    fn an_old_gap_counts_as_a_newer_one() {
        let offset = Offset { epoch: Epoch(1), sequence: 2, fingerprint: 3, at: 1_700_000_000, gap: 4 };
        assert!(key(1).open(&key(1).seal(&offset)).unwrap().gap > 4);
    }

    #[test]
    fn fingerprints_are_keyed() {
        let of = |byte, payload: &str| key(byte).fingerprint(payload.as_bytes());
        assert_eq!(of(1, "a"), of(1, "a"));
        assert_ne!(of(1, "a"), of(1, "b"));
        assert_ne!(of(1, "a"), of(2, "a"));
        assert_ne!(of(1, "a"), xxhash_rust::xxh3::xxh3_64(b"a"));
    }
}
