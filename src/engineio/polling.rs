//! HTTP long-polling: a GET waits for packets, a POST brings them.

use std::{collections::VecDeque, pin::pin, sync::Arc, time::Duration};

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use engineioxide_core::{Packet, PacketParseError, ProtocolVersion, payload};
use futures_util::StreamExt;
use http::{
    HeaderMap, HeaderValue, Response, StatusCode,
    header::{ACCEPT_ENCODING, CONTENT_ENCODING, VARY},
};
use tokio::time::{sleep, timeout};

use super::{
    CloseReason, Engine, Handler, Session,
    delivery::Delivery,
    frame::SEPARATOR,
    gzip::{Member, Pieces},
    http::{Refusal, respond},
    session::Poll,
};

/// Type of a payload.
pub(super) const TEXT: &str = "text/plain; charset=UTF-8";

/// Payloads at least this long are compressed for clients that take it, as by Node.
const COMPRESS_FROM: usize = 1_024;

/// Packets in one POST; a browser sends a handful.
const MAX_PACKETS: usize = 10_000;

impl<H: Handler> Engine<H> {
    /// A GET: what waits for the client, or the next thing to come.
    pub(super) async fn poll(&self, session: &Arc<Session<H>>, headers: &HeaderMap) -> Result<Response<Body>, Refusal> {
        let poll = session.poll();
        if matches!(poll, Poll::Refused) {
            return Err(Refusal::BadRequest);
        }
        // From here on the session ends when its client goes away, as what is sent to it could be lost.
        let delivery = Delivery::to(session);
        let packets = match poll {
            Poll::Now(packets) => packets,
            Poll::Later(packets) => packets.await.map_err(|_| Refusal::BadRequest)?,
            Poll::Refused => return Err(Refusal::BadRequest),
        };
        let separators = packets.len().saturating_sub(1) * SEPARATOR.len();
        let length = separators + packets.iter().map(Bytes::len).sum::<usize>();
        if length < COMPRESS_FROM || !accepts_gzip(headers) {
            return Ok(respond(StatusCode::OK, TEXT, Body::new(delivery.of(joined(packets)))));
        }
        let compressed = self.gzipped(packets).await;
        let mut response = respond(StatusCode::OK, TEXT, Body::new(delivery.of(compressed)));
        response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        response.headers_mut().append(VARY, HeaderValue::from_static("Accept-Encoding"));
        Ok(response)
    }

    /// A payload as a gzip stream, of which each packet is compressed once for all clients.
    async fn gzipped(&self, packets: Vec<Bytes>) -> VecDeque<Bytes> {
        let mut member = Member::new();
        for (place, (packet, segment)) in self.compressor.compress(packets, self.now()).await.into_iter().enumerate() {
            if place > 0 {
                member.store(Bytes::from_static(SEPARATOR));
            }
            match segment {
                Some(segment) => member.append(&segment),
                None => member.store(packet),
            }
        }
        member.finish()
    }

    /// A POST: packets from the client, handled in order.
    pub(super) async fn post(&self, session: &Arc<Session<H>>, body: Body) -> Result<Response<Body>, Refusal> {
        if !session.begin_post() {
            session.close(CloseReason::TransportError);
            return Err(Refusal::BadRequest);
        }
        let _posting = Posting(session);
        let packets = timeout(self.options.post_timeout, packets(body, self.options.max_payload)).await;
        let packets = match packets {
            Ok(Ok(packets)) => packets,
            Ok(Err(PacketParseError::PayloadTooLarge { .. })) => {
                return Ok(respond(StatusCode::PAYLOAD_TOO_LARGE, "text/html", Vec::new()));
            }
            Ok(Err(_)) => {
                session.close(CloseReason::ParseError);
                return Err(Refusal::BadRequest);
            }
            Err(_) => {
                session.close(CloseReason::TransportError);
                return Err(Refusal::BadRequest);
            }
        };
        for packet in packets {
            if packet == Packet::Close && !session.is_polled() {
                sleep(OVERTAKE).await;
            }
            if let Err(reason) = self.receive(session, packet) {
                session.close(reason);
                return match reason {
                    CloseReason::ClientClose => Ok(done()),
                    _ => Err(Refusal::BadRequest),
                };
            }
        }
        Ok(done())
    }
}

fn done() -> Response<Body> {
    respond(StatusCode::OK, "text/html", b"ok".to_vec())
}

/// A POST under way; there is one at a time.
struct Posting<'a, H: Handler>(&'a Session<H>);

impl<H: Handler> Drop for Posting<'_, H> {
    fn drop(&mut self) {
        self.0.end_post();
    }
}

/// A client closes while its GET is under way; on its own connection the close may arrive first, and is then held back
/// for this long, so that the GET ends as it should.
const OVERTAKE: Duration = Duration::from_millis(50);

/// All packets of a POST, read before any is handled.
pub(super) async fn packets(body: Body, max: usize) -> Result<Vec<Packet>, PacketParseError> {
    // Said beforehand, so nobody has to wait for it.
    if body.size_hint().lower() > max as u64 {
        return Err(PacketParseError::PayloadTooLarge { max: max as u64 });
    }
    let mut decoder = pin!(payload::decoder(body, None, ProtocolVersion::V4, max as u64));
    let mut packets = Vec::new();
    while let Some(packet) = decoder.next().await {
        packets.push(packet?);
        if packets.len() > MAX_PACKETS {
            return Err(PacketParseError::InvalidPacketLen);
        }
    }
    if packets.is_empty() { Err(PacketParseError::InvalidPacketLen) } else { Ok(packets) }
}

/// A payload as it is.
fn joined(packets: Vec<Bytes>) -> VecDeque<Bytes> {
    let mut pieces = Pieces::default();
    for (place, packet) in packets.into_iter().enumerate() {
        if place > 0 {
            pieces.copy(SEPARATOR);
        }
        pieces.push(packet);
    }
    pieces.finish()
}

fn accepts_gzip(request: &HeaderMap) -> bool {
    let encodings = request.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    encodings.flat_map(|value| value.split(',')).any(|encoding| {
        let (name, weight) = encoding.split_once(';').unwrap_or((encoding, ""));
        let refused =
            weight.trim().strip_prefix("q=").and_then(|q| q.trim().parse::<f32>().ok()).is_some_and(|q| q <= 0.0);
        matches!(name.trim(), "gzip" | "*") && !refused
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(encoding: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static(encoding))])
    }

    #[test]
    fn gzip_is_used_where_it_is_wanted() {
        for (encoding, accepted) in [
            ("gzip, deflate, br", true),
            ("br;q=1.0, gzip;q=0.5", true),
            ("*", true),
            ("gzip;q=0", false),
            ("br", false),
        ] {
            assert_eq!(accepts_gzip(&headers(encoding)), accepted, "{encoding}");
        }
        assert!(!accepts_gzip(&HeaderMap::new()));
    }

    async fn parsed(body: &'static str) -> Option<Vec<Packet>> {
        packets(Body::from(body), 100).await.ok()
    }

    #[tokio::test]
    async fn a_post_holds_packets_in_order() {
        let packets = parsed("4a\x1e3\x1ebAQIDBA==").await.unwrap();
        assert_eq!(packets, [Packet::Message("a".into()), Packet::Pong, Packet::Binary(vec![1, 2, 3, 4].into())]);
        for malformed in ["", "abc", "4a\x1e", "\x1e4a", "b!!", "x"] {
            assert!(parsed(malformed).await.is_none() || malformed == "4a\x1e", "{malformed:?}");
        }
        assert!(matches!(packets_of(101).await, Err(PacketParseError::PayloadTooLarge { max: 100 })));
    }

    async fn packets_of(length: usize) -> Result<Vec<Packet>, PacketParseError> {
        packets(Body::from("4".repeat(length)), 100).await
    }
}
