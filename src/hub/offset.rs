//! Where in the stream of messages a browser is: the string at the end of every event.

use std::{fmt, str::FromStr};

/// One life of the recovery log. Sequences of different epochs cannot be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Epoch(u32);

impl Epoch {
    /// A new epoch; `seed` comes from a random source.
    pub fn new(seed: u32) -> Self {
        Self(seed)
    }
}

/// A position in the log, written `<epoch>.<sequence>.<fingerprint>`: eight hexadecimal digits, a decimal
/// number, sixteen hexadecimal digits.
///
/// Within its epoch the sequence is exact. The fingerprint of the payload is what another node, or this one
/// after a restart, can find the place by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offset {
    /// The log this offset belongs to.
    pub epoch: Epoch,
    /// Number of the last message that was sent; the first has number 1.
    pub sequence: u64,
    /// [`fingerprint`] of that message's payload, 0 before the first.
    pub fingerprint: u64,
}

/// The same for the same payload on every node and in every version.
pub fn fingerprint(payload: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(payload)
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}.{}.{:016x}", self.epoch.0, self.sequence, self.fingerprint)
    }
}

/// The text is not an offset of ours.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not of the form <epoch>.<sequence>.<fingerprint>")]
pub struct InvalidOffset;

impl FromStr for Offset {
    type Err = InvalidOffset;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split('.');
        let mut part = || parts.next().ok_or(InvalidOffset);
        let (epoch, sequence, fingerprint) = (part()?, part()?, part()?);
        if parts.next().is_some() {
            return Err(InvalidOffset);
        }
        Ok(Self {
            epoch: Epoch(u32::try_from(hex(epoch, 8)?).map_err(|_| InvalidOffset)?),
            sequence: sequence.parse().map_err(|_| InvalidOffset)?,
            fingerprint: hex(fingerprint, 16)?,
        })
    }
}

fn hex(digits: &str, length: usize) -> Result<u64, InvalidOffset> {
    if digits.len() != length {
        return Err(InvalidOffset);
    }
    u64::from_str_radix(digits, 16).map_err(|_| InvalidOffset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn survives_the_way_through_a_browser(epoch: u32, sequence: u64, fingerprint: u64) {
            let offset = Offset { epoch: Epoch(epoch), sequence, fingerprint };
            prop_assert_eq!(offset.to_string().parse(), Ok(offset));
        }

        #[test]
        fn any_text_is_an_offset_or_an_error(text: String) {
            let _ = text.parse::<Offset>();
        }
    }

    #[test]
    fn foreign_offsets_are_refused() {
        for text in [
            "",
            "1",
            "a.b",
            "00000001.1",
            "00000001.1.0",
            "0000000z.1.0000000000000000",
            "00000001.1.0000000000000000.",
            "00000001.-1.0000000000000000",
        ] {
            assert_eq!(text.parse::<Offset>(), Err(InvalidOffset), "{text}");
        }
    }
}
