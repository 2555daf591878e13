//! Packets of Engine.IO in WebSocket frames and in polling payloads. Without I/O.

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use engineioxide_core::{Packet, ProtocolVersion};

use crate::websocket::{Frame, Outbox};

/// Between the packets of a polling payload (Engine.IO protocol 4, "HTTP long-polling").
const SEPARATOR: &str = "\x1e";

/// Packets in one POST; a browser sends a handful. Each takes memory beyond its bytes until all are handled.
const MAX_PACKETS: usize = 1_000;

/// Bytes of one polling payload, unless a single message is larger. The client acknowledges a payload by asking for the
/// next, so a slow client gets ahead, and what it does not read is little.
const PAYLOAD: usize = 1 << 20;

impl Frame {
    /// A message packet with text: `4` and the parts, one after the other. A message packet with binary data is
    /// [`Frame::binary`].
    pub fn message(parts: &[&[u8]]) -> Self {
        Self::text(&[&[&b"4"[..]], parts].concat())
    }

    pub(super) fn packet(packet: Packet) -> Self {
        Self::text(&[String::from(packet).as_bytes()])
    }

    /// The packet in a polling payload: text as it is and shared, binary as `b` and base64; `None` for other frames.
    fn polled(&self) -> Option<Bytes> {
        self.text_data().or_else(|| Some(format!("b{}", STANDARD.encode(self.binary_data()?)).into()))
    }
}

/// The packets of the next payload from what waits, and the separators between them. Of a lot that waits, the rest stays
/// for later payloads.
pub(super) fn next_payload(outbox: &mut Outbox) -> Vec<Bytes> {
    let (mut packets, mut length) = (Vec::new(), 0);
    while outbox.front().is_some_and(|next| length == 0 || length + next.wire().len() <= PAYLOAD) {
        if let Some(packet) = outbox.pop().and_then(|frame| frame.polled()) {
            if !packets.is_empty() {
                packets.push(SEPARATOR.into());
            }
            length += packet.len() + SEPARATOR.len();
            packets.push(packet);
        }
    }
    packets
}

/// The packets of a POST: with separators between them, and perhaps another at the end.
pub(super) fn parse_payload(body: &[u8]) -> Option<Vec<Packet>> {
    let body = str::from_utf8(body).ok()?;
    let packets = body.strip_suffix(SEPARATOR).unwrap_or(body).split(SEPARATOR);
    if packets.clone().nth(MAX_PACKETS).is_some() {
        return None;
    }
    packets.map(parse).collect()
}

pub(super) fn parse(packet: &str) -> Option<Packet> {
    Packet::parse(ProtocolVersion::V4, packet.to_owned()).ok()
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use engineioxide_core::payload;
    use futures_util::{FutureExt, StreamExt};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_message_carries_its_packet_type_and_parts() {
        assert_eq!(Frame::message(&[b"2[\"a\"", b"]"]).wire(), b"\x81\x0742[\"a\"]");
    }

    #[test]
    fn polling_shares_text_encodes_binary_and_leaves_out_control_frames() {
        let text = Frame::message(&[b"a"]);
        let packet = text.polled().unwrap();
        assert_eq!((&packet[..], packet.as_ptr()), (&b"4a"[..], text.wire()[2..].as_ptr()));
        assert_eq!(Frame::binary(&[1, 2, 3, 4]).polled().unwrap(), "bAQIDBA==");
        assert_eq!(Frame::verbatim(b"\x89\x01x".to_vec()).polled(), None);
    }

    #[test]
    fn a_long_payload_comes_in_pieces_and_shares_its_bytes() {
        let mut outbox = Outbox::default();
        let frame = Frame::message(&[&vec![b'x'; 400_000]]);
        outbox.extend(&[&frame; 5], 0);
        let payloads: Vec<_> = std::iter::from_fn(|| (!outbox.is_empty()).then(|| next_payload(&mut outbox))).collect();
        let (packet, separator) = (frame.polled().unwrap(), Bytes::from_static(SEPARATOR.as_bytes()));
        let two = vec![packet.clone(), separator, packet.clone()];
        assert_eq!(payloads, [two.clone(), two, vec![packet.clone()]]);
        assert!(payloads.iter().all(|shared| shared[0].as_ptr() == packet.as_ptr()));
    }

    #[test]
    fn a_post_holds_packets_in_order() {
        let packets = parse_payload(b"4a\x1e3\x1ebAQIDBA==").unwrap();
        assert_eq!(packets, [Packet::Message("a".into()), Packet::Pong, Packet::Binary(vec![1, 2, 3, 4].into())]);
        assert_eq!(parse_payload(b"4a\x1e").unwrap().len(), 1);
        for malformed in ["", "abc", "\x1e", "4a\x1e\x1e", "\x1e4a", "b!!", "x"] {
            assert_eq!(parse_payload(malformed.as_bytes()), None, "{malformed:?}");
        }
        assert_eq!(parse_payload(&b"3\x1e".repeat(MAX_PACKETS)).unwrap().len(), MAX_PACKETS);
        assert_eq!(parse_payload(&b"3\x1e".repeat(MAX_PACKETS + 1)), None);
    }

    proptest! {
        /// The reader of the codec crate, which reads what an official client may send.
        #[test]
        fn packets_are_those_of_the_codec(body in "[0-6b\u{1e}a=é]{0,12}") {
            let theirs = payload::decoder(Body::from(body.clone()), None, ProtocolVersion::V4, 1_000);
            let theirs: Option<Vec<_>> =
                theirs.collect::<Vec<_>>().now_or_never().unwrap().into_iter().map(Result::ok).collect();
            prop_assert_eq!(parse_payload(body.as_bytes()), theirs.filter(|packets| !packets.is_empty()));
        }
    }
}
