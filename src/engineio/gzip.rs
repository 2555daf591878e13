//! Gzip streams put together from parts that are compressed independently of each other.
//!
//! A [`Segment`] is raw deflate (RFC 1951) that ends at a byte boundary and refers to nothing before it, so segments
//! in any order, and stored blocks between them, are one valid deflate stream. A [`Gzip`] puts the header and the
//! checksum of gzip (RFC 1952) around them. Without I/O.

use std::{
    collections::VecDeque,
    io::{self, Write},
};

use bytes::Bytes;
use flate2::{Compression, Crc, write::DeflateEncoder};

/// Deflate, no name, no time, the fastest algorithm, an unknown system (RFC 1952, section 2.3).
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 4, 255];

/// A last block without data (RFC 1951, section 3.2.6).
const LAST_BLOCK: [u8; 2] = [3, 0];

/// Most bytes that a stored block holds (RFC 1951, section 3.2.4).
const STORED: usize = 0xffff;

/// Pieces shorter than this are copied together: a body of thousands of tiny ones costs more than the copy.
const COPIED: usize = 4_096;

/// The parts of a body as they are, in order: the short ones joined, the long ones shared.
pub(super) fn joined(parts: Vec<Bytes>) -> VecDeque<Bytes> {
    let mut pieces = Pieces::default();
    for part in parts {
        pieces.push(part);
    }
    pieces.finish()
}

/// Bytes in order, the long ones shared with their other holders.
#[derive(Default)]
struct Pieces {
    pieces: VecDeque<Bytes>,
    tail: Vec<u8>,
}

impl Pieces {
    fn push(&mut self, bytes: Bytes) {
        if bytes.len() < COPIED {
            self.copy(&bytes);
        } else {
            self.cut();
            self.pieces.push_back(bytes);
        }
    }

    fn copy(&mut self, bytes: &[u8]) {
        self.tail.extend_from_slice(bytes);
    }

    fn finish(mut self) -> VecDeque<Bytes> {
        self.cut();
        self.pieces
    }

    fn cut(&mut self) {
        if !self.tail.is_empty() {
            self.pieces.push_back(std::mem::take(&mut self.tail).into());
        }
    }
}

/// A part of a [`Gzip`], compressed.
pub(super) struct Segment {
    deflated: Bytes,
    /// Checksum and length of what was compressed.
    crc: Crc,
}

impl Segment {
    pub(super) fn new(data: &[u8]) -> io::Result<Self> {
        let mut encoder = DeflateEncoder::new(Vec::with_capacity(data.len() / 4), Compression::fast());
        encoder.write_all(data)?;
        // A sync flush: ends at a byte boundary, without a last block.
        encoder.flush()?;
        let mut deflated = std::mem::take(encoder.get_mut());
        deflated.shrink_to_fit();
        let mut crc = Crc::new();
        crc.update(data);
        Ok(Self { deflated: deflated.into(), crc })
    }
}

/// A gzip stream in the making.
pub(super) struct Gzip {
    pieces: Pieces,
    crc: Crc,
}

impl Gzip {
    pub(super) fn new() -> Self {
        let mut pieces = Pieces::default();
        pieces.copy(&HEADER);
        Self { pieces, crc: Crc::new() }
    }

    pub(super) fn append(&mut self, segment: &Segment) {
        self.pieces.push(segment.deflated.clone());
        self.crc.combine(&segment.crc);
    }

    /// Appends bytes as they are.
    pub(super) fn store(&mut self, mut bytes: Bytes) {
        self.crc.update(&bytes);
        while !bytes.is_empty() {
            let block = bytes.split_to(bytes.len().min(STORED));
            let [low, high, ..] = block.len().to_le_bytes();
            self.pieces.copy(&[0, low, high, !low, !high]);
            self.pieces.push(block);
        }
    }

    pub(super) fn finish(mut self) -> VecDeque<Bytes> {
        self.pieces.copy(&LAST_BLOCK);
        self.pieces.copy(&self.crc.sum().to_le_bytes());
        self.pieces.copy(&self.crc.amount().to_le_bytes());
        self.pieces.finish()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::GzDecoder;
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn decoded(pieces: VecDeque<Bytes>) -> Vec<u8> {
        let (mut compressed, mut text) = (Vec::from(pieces).concat(), Vec::new());
        // What follows the stream must not be taken for a part of it.
        compressed.extend(b"rest");
        let mut rest = &compressed[..];
        GzDecoder::new(&mut rest).read_to_end(&mut text).unwrap();
        text
    }

    /// Text that compresses, and noise that does not.
    fn part() -> impl Strategy<Value = Vec<u8>> {
        let text = ("[a-e]{1,8}", 0..20_000usize).prop_map(|(word, times)| word.repeat(times).into_bytes());
        prop_oneof![vec(any::<u8>(), 0..3_000), text]
    }

    proptest! {
        #[test]
        fn any_sequence_of_segments_and_stored_bytes_decodes_to_itself(parts in vec((part(), any::<bool>()), 0..12)) {
            let mut member = Gzip::new();
            for (part, compressed) in &parts {
                if *compressed {
                    member.append(&Segment::new(part).unwrap());
                } else {
                    member.store(part.clone().into());
                }
            }
            let expected: Vec<u8> = parts.into_iter().flat_map(|(part, _)| part).collect();
            prop_assert_eq!(decoded(member.finish()), expected);
        }
    }

    #[test]
    fn a_segment_is_shared_and_small() {
        let data = vec![b'x'; 10_000_000];
        let segment = Segment::new(&data).unwrap();
        assert!((COPIED..100_000).contains(&segment.deflated.len()), "{}", segment.deflated.len());
        let mut member = Gzip::new();
        for _ in 0..3 {
            member.append(&segment);
        }
        let pieces = member.finish();
        assert_eq!(pieces.iter().filter(|piece| piece.as_ptr() == segment.deflated.as_ptr()).count(), 3);
        assert_eq!(decoded(pieces), data.repeat(3));
    }

    #[test]
    fn small_pieces_are_joined_and_large_ones_shared() {
        let large = Bytes::from(vec![1; COPIED]);
        let pieces = joined(vec![Bytes::from("a"), Bytes::from("b"), large.clone(), Bytes::from("c")]);
        assert_eq!(pieces, [Bytes::from_static(b"ab"), large.clone(), Bytes::from_static(b"c")]);
        assert_eq!(pieces[1].as_ptr(), large.as_ptr());
    }
}
