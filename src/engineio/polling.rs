//! HTTP long-polling: a GET waits for packets, a POST brings them.

use std::{io::Write, pin::pin, sync::Arc, time::Duration};

use axum::body::{Body, HttpBody};
use engineioxide_core::{Packet, PacketParseError, ProtocolVersion, payload};
use flate2::{Compression, write::GzEncoder};
use futures_util::StreamExt;
use http::{
    HeaderMap, HeaderValue, Response, StatusCode,
    header::{ACCEPT_ENCODING, CONTENT_ENCODING, VARY},
};
use tokio::time::{sleep, timeout};

use super::{
    CloseReason, Engine, Handler, Session,
    http::{Refusal, respond},
    session::Poll,
};

/// Answers at least this long are compressed for clients that take it, as by Node.
const COMPRESS_FROM: usize = 1_024;

/// Packets in one POST; a browser sends a handful.
const MAX_PACKETS: usize = 10_000;

impl<H: Handler> Engine<H> {
    /// A GET: what waits for the client, or the next thing to come.
    pub(super) async fn poll(&self, session: &Arc<Session<H>>, headers: &HeaderMap) -> Result<Response<Body>, Refusal> {
        let payload = match session.poll() {
            Poll::Now(payload) => payload,
            Poll::Later(payload) => {
                let mut pending = Pending(Some(session));
                let payload = payload.await.map_err(|_| Refusal::BadRequest)?;
                pending.0 = None;
                payload
            }
            Poll::Refused => return Err(Refusal::BadRequest),
        };
        Ok(answer(payload, headers))
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

/// A GET that waits. When its client goes away, the session ends, as what is sent from now on could be lost.
struct Pending<'a, H: Handler>(Option<&'a Arc<Session<H>>>);

impl<H: Handler> Drop for Pending<'_, H> {
    fn drop(&mut self) {
        if let Some(session) = self.0 {
            session.close(CloseReason::TransportClose);
        }
    }
}

/// An answer to a GET, compressed where that pays.
pub(super) fn answer(payload: Vec<u8>, request: &HeaderMap) -> Response<Body> {
    const TEXT: &str = "text/plain; charset=UTF-8";
    if payload.len() < COMPRESS_FROM || !accepts_gzip(request) {
        return respond(StatusCode::OK, TEXT, payload);
    }
    let mut encoder = GzEncoder::new(Vec::with_capacity(payload.len() / 2), Compression::fast());
    let compressed = encoder.write_all(&payload).and_then(|()| encoder.finish());
    match compressed {
        Ok(compressed) => {
            let mut response = respond(StatusCode::OK, TEXT, compressed);
            response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            response.headers_mut().append(VARY, HeaderValue::from_static("Accept-Encoding"));
            response
        }
        Err(_) => respond(StatusCode::OK, TEXT, payload),
    }
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

    #[test]
    fn short_answers_stay_as_they_are() {
        let encoded = |length| answer(vec![b'4'; length], &headers("gzip")).headers().contains_key(CONTENT_ENCODING);
        assert_eq!([encoded(COMPRESS_FROM - 1), encoded(COMPRESS_FROM)], [false, true]);
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
