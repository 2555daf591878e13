//! One message on the wire, built once and shared by all who receive it.

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::{BufMut, Bytes, BytesMut};
use engineioxide_core::Packet;

pub(super) const OPCODE_TEXT: u8 = 0x1;
pub(super) const OPCODE_BINARY: u8 = 0x2;
pub(super) const OPCODE_CLOSE: u8 = 0x8;
pub(super) const OPCODE_PONG: u8 = 0xa;

/// First byte of a frame that is its message's last.
const FIN: u8 = 0x80;

/// A whole unmasked WebSocket frame (RFC 6455, section 5.2). Polling sends the same bytes without the header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame(Bytes);

impl Frame {
    /// An Engine.IO message packet with text: `4` and the parts, one after the other.
    pub fn message(parts: &[&[u8]]) -> Self {
        let length = 1 + parts.iter().map(|part| part.len()).sum::<usize>();
        let mut frame = header(OPCODE_TEXT, length);
        frame.put_u8(b'4');
        for part in parts {
            frame.put_slice(part);
        }
        Self(frame.freeze())
    }

    /// An Engine.IO message packet with binary data.
    pub fn binary(data: &[u8]) -> Self {
        Self::whole(OPCODE_BINARY, data)
    }

    pub(super) fn packet(packet: Packet) -> Self {
        Self::whole(OPCODE_TEXT, String::from(packet).as_bytes())
    }

    pub(super) fn pong(data: &[u8]) -> Self {
        Self::whole(OPCODE_PONG, data)
    }

    /// A close frame; without a code the peer sees 1005, as from Node.
    pub(super) fn close(code: Option<u16>) -> Self {
        let code = code.map(u16::to_be_bytes);
        Self::whole(OPCODE_CLOSE, code.as_ref().map_or(&[], <[u8; 2]>::as_slice))
    }

    /// The frame with bytes before it that are no part of it; for a WebSocket only.
    pub(super) fn preceded_by(&self, bytes: Vec<u8>) -> Self {
        let mut whole = bytes;
        whole.extend_from_slice(&self.0);
        Self(whole.into())
    }

    fn whole(opcode: u8, data: &[u8]) -> Self {
        let mut frame = header(opcode, data.len());
        frame.put_slice(data);
        Self(frame.freeze())
    }

    /// The frame with its header.
    pub(super) fn wire(&self) -> &[u8] {
        &self.0
    }

    /// The packet, if it is text.
    pub fn text(&self) -> Option<&str> {
        let text = (self.0[0] & 0xf == OPCODE_TEXT).then(|| &self.0[header_length(self.0[1])..]);
        text.and_then(|text| str::from_utf8(text).ok())
    }

    /// The packet in a polling payload: text as it is and shared, binary as `b` and base64; `None` for other frames.
    pub fn polled(&self) -> Option<Bytes> {
        let data = self.0.slice(header_length(self.0[1])..);
        match self.0[0] & 0xf {
            OPCODE_TEXT => Some(data),
            OPCODE_BINARY => Some(format!("b{}", STANDARD.encode(&data)).into()),
            _ => None,
        }
    }

    /// Whether the two are control frames of the same kind, so that the later one does for both.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        self == other || (self.0[0] == other.0[0] && self.0[0] & 0xf > OPCODE_BINARY)
    }

    /// Length with header, in bytes.
    #[expect(clippy::len_without_is_empty, reason = "a frame is never empty")]
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

/// Between the packets of a polling payload (Engine.IO protocol 4, "HTTP long-polling").
pub(super) const SEPARATOR: &[u8] = b"\x1e";

#[expect(clippy::cast_possible_truncation, reason = "each arm holds what its test lets through")]
fn header(opcode: u8, length: usize) -> BytesMut {
    let marker = match length {
        0..126 => length as u8,
        126..=0xffff => 126,
        _ => 127,
    };
    // Exactly as long as the frame: shared as it is, with no block of memory beside it.
    let mut frame = BytesMut::with_capacity(header_length(marker) + length);
    frame.put_slice(&[FIN | opcode, marker]);
    match marker {
        126 => frame.put_u16(length as u16),
        127 => frame.put_u64(length as u64),
        _ => {}
    }
    frame
}

fn header_length(length: u8) -> usize {
    match length & 0x7f {
        126 => 4,
        127 => 10,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_carries_its_packet_type_and_parts() {
        assert_eq!(Frame::message(&[b"2[\"a\"", b"]"]).wire(), b"\x81\x0742[\"a\"]");
    }

    #[test]
    fn headers_fit_their_lengths() {
        for (length, expected) in [(0, 2), (125, 2), (126, 4), (0xffff, 4), (0x1_0000, 10)] {
            let frame = Frame::binary(&vec![7; length]);
            assert_eq!(frame.len(), expected + length);
            let payload = frame.polled().unwrap();
            assert_eq!(payload[0], b'b');
            assert_eq!(STANDARD.decode(&payload[1..]).unwrap(), vec![7; length]);
        }
    }

    #[test]
    fn polling_shares_text_encodes_binary_and_leaves_out_websocket_control() {
        let text = Frame::message(&[b"a"]);
        let packet = text.polled().unwrap();
        assert_eq!((&packet[..], packet.as_ptr()), (&b"4a"[..], text.wire()[2..].as_ptr()));
        assert_eq!(Frame::binary(&[1, 2, 3, 4]).polled().unwrap(), "bAQIDBA==");
        assert_eq!([Frame::pong(b"x"), Frame::close(None)].map(|frame| frame.polled()), [None, None]);
    }
}
