//! Frames from the server: built once, shared by all connections that send them.

use bytes::{BufMut, Bytes, BytesMut};

pub(super) const OPCODE_CONTINUATION: u8 = 0x0;
pub(super) const OPCODE_TEXT: u8 = 0x1;
pub(super) const OPCODE_BINARY: u8 = 0x2;
pub(super) const OPCODE_CLOSE: u8 = 0x8;
pub(super) const OPCODE_PING: u8 = 0x9;
pub(super) const OPCODE_PONG: u8 = 0xa;

/// In the first byte: the frame is the last of its message.
pub(super) const FIN: u8 = 0x80;

/// A whole message or control frame, unmasked (RFC 6455, section 5.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame(Bytes);

impl Frame {
    /// A text message: the parts, one after the other. They must be UTF-8 together.
    pub fn text(parts: &[&[u8]]) -> Self {
        Self::new(OPCODE_TEXT, parts)
    }

    /// A binary message.
    pub fn binary(data: &[u8]) -> Self {
        Self::new(OPCODE_BINARY, &[data])
    }

    pub(super) fn pong(data: &[u8]) -> Self {
        Self::new(OPCODE_PONG, &[data])
    }

    /// A close frame. Without a code the peer reports 1005.
    pub(super) fn close(code: Option<u16>) -> Self {
        let code = code.map(u16::to_be_bytes);
        Self::new(OPCODE_CLOSE, &[code.as_ref().map_or(&[], <[u8; 2]>::as_slice)])
    }

    /// Bytes that are sent as they are: the response to a handshake, alone or with the first frame.
    pub fn verbatim(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }

    #[expect(clippy::cast_possible_truncation, reason = "each arm holds what its test lets through")]
    fn new(opcode: u8, parts: &[&[u8]]) -> Self {
        let length = parts.iter().map(|part| part.len()).sum::<usize>();
        let marker = match length {
            0..126 => length as u8,
            126..=0xffff => 126,
            _ => 127,
        };
        // Exactly as long as the frame: the buffer is shared as it is, without a second allocation.
        let mut frame = BytesMut::with_capacity(header_length(marker) + length);
        frame.put_slice(&[FIN | opcode, marker]);
        match marker {
            126 => frame.put_u16(length as u16),
            127 => frame.put_u64(length as u64),
            _ => {}
        }
        for part in parts {
            frame.put_slice(part);
        }
        Self(frame.freeze())
    }

    /// The bytes on the wire.
    pub fn wire(&self) -> &[u8] {
        &self.0
    }

    /// The data of a text message; shares the frame's memory.
    pub fn text_data(&self) -> Option<Bytes> {
        self.data(OPCODE_TEXT)
    }

    /// The data of a binary message; shares the frame's memory.
    pub fn binary_data(&self) -> Option<Bytes> {
        self.data(OPCODE_BINARY)
    }

    fn data(&self, opcode: u8) -> Option<Bytes> {
        (self.opcode() == opcode).then(|| self.0.slice(header_length(self.0[1])..))
    }

    fn opcode(&self) -> u8 {
        self.0[0] & 0xf
    }

    /// Whether the two are control frames of the same kind, so that the later replaces the earlier.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        self == other || (self.opcode() == other.opcode() && self.opcode() >= OPCODE_CLOSE)
    }
}

/// Length of a header without its mask, by the length in its second byte.
pub(super) fn header_length(length: u8) -> usize {
    match length {
        126 => 4,
        127 => 10,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_its_parts() {
        assert_eq!(Frame::text(&[b"42[\"a\"", b"]"]).wire(), b"\x81\x0742[\"a\"]");
    }

    #[test]
    fn headers_fit_their_lengths() {
        for (length, expected) in [(0, 2), (125, 2), (126, 4), (0xffff, 4), (0x1_0000, 10)] {
            let frame = Frame::binary(&vec![7; length]);
            assert_eq!(frame.wire().len(), expected + length);
            assert_eq!(frame.binary_data().unwrap(), vec![7; length]);
        }
    }

    #[test]
    fn data_is_shared_and_of_messages_only() {
        let text = Frame::text(&[b"a"]);
        assert_eq!(text.text_data().unwrap().as_ptr(), text.wire()[2..].as_ptr());
        for frame in [Frame::pong(b"x"), Frame::close(None)] {
            assert_eq!((frame.text_data(), frame.binary_data()), (None, None));
        }
    }
}
