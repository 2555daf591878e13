//! HTTP long-polling, the way from the client: a POST brings packets.

use std::{sync::Arc, time::Duration};

use axum::body::{Body, HttpBody};
use engineioxide_core::{Packet, ProtocolVersion};
use http::{Response, StatusCode};
use http_body_util::BodyExt;
use tokio::time::{sleep, timeout};

use super::{
    CloseReason, Engine, Handler, Session,
    budget::{Budget, Buffer, Exhausted},
    frame::SEPARATOR,
    http::{Refusal, respond},
};
use crate::metrics::Counter;

/// Packets in one POST; a browser sends a handful. Each takes memory beyond its bytes until all are handled.
const MAX_PACKETS: usize = 1_000;

/// A client closes while its GET is under way; on its own connection the close may arrive first, and is then held back
/// for this long, so that the GET ends as it should.
const OVERTAKE: Duration = Duration::from_millis(50);

/// Why a POST cannot be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum PostError {
    #[error("body is too large")]
    TooLarge,
    #[error("body is not a payload")]
    Malformed,
    #[error(transparent)]
    Exhausted(#[from] Exhausted),
}

impl<H: Handler> Engine<H> {
    /// A POST: packets from the client, handled in order.
    pub(super) async fn post(&self, session: &Arc<Session<H>>, body: Body) -> Result<Response<Body>, Refusal> {
        if !session.begin_post() {
            session.close(CloseReason::TransportError);
            return Err(Refusal::BadRequest);
        }
        let _posting = Posting(session);
        let allowance = self.allowance(session);
        let packets = timeout(allowance.patience, packets(body, allowance.max, &self.budget)).await;
        let packets = match packets {
            Ok(Ok(packets)) => packets,
            Ok(Err(PostError::TooLarge)) => {
                return Ok(respond(StatusCode::PAYLOAD_TOO_LARGE, "text/html", Vec::new()));
            }
            Ok(Err(PostError::Malformed)) => {
                session.close(CloseReason::ParseError);
                return Err(Refusal::BadRequest);
            }
            Ok(Err(PostError::Exhausted(_))) => {
                self.metrics.count(Counter::InboundRefused);
                session.close(CloseReason::Exhausted);
                return Err(Refusal::Busy);
            }
            Err(_) => {
                self.metrics.count(Counter::InboundLate);
                session.close(CloseReason::Late);
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

/// All packets of a POST, read before any is handled.
pub(super) async fn packets(body: Body, max: usize, budget: &Budget) -> Result<Vec<Packet>, PostError> {
    parse(read(body, max, budget).await?.bytes())
}

/// The whole body.
async fn read(mut body: Body, max: usize, budget: &Budget) -> Result<Buffer, PostError> {
    let announced = body.size_hint();
    // Said beforehand, so nobody has to wait for it.
    if announced.lower() > max as u64 {
        return Err(PostError::TooLarge);
    }
    let whole = announced.upper().and_then(|length| usize::try_from(length).ok()).map_or(max, |length| length.min(max));
    let mut read = Buffer::default();
    while let Some(frame) = body.frame().await {
        // Trailers mean nothing here.
        let Ok(data) = frame.map_err(|_| PostError::Malformed)?.into_data() else { continue };
        if read.len() + data.len() > max {
            return Err(PostError::TooLarge);
        }
        read.extend(budget, &data, whole)?;
    }
    Ok(read)
}

/// Packets with separators between them; one at the end may be there as well.
fn parse(body: &[u8]) -> Result<Vec<Packet>, PostError> {
    let body = body.strip_suffix(SEPARATOR).unwrap_or(body);
    let mut packets = Vec::new();
    for packet in body.split(|byte| [*byte] == *SEPARATOR) {
        if packets.len() == MAX_PACKETS {
            return Err(PostError::Malformed);
        }
        let text = str::from_utf8(packet).map_err(|_| PostError::Malformed)?;
        let packet = Packet::parse(ProtocolVersion::V4, text.to_owned()).map_err(|_| PostError::Malformed)?;
        packets.push(packet);
    }
    Ok(packets)
}

#[cfg(test)]
mod tests {
    use engineioxide_core::payload;
    use futures_util::{FutureExt, StreamExt};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_post_holds_packets_in_order() {
        let packets = parse(b"4a\x1e3\x1ebAQIDBA==").unwrap();
        assert_eq!(packets, [Packet::Message("a".into()), Packet::Pong, Packet::Binary(vec![1, 2, 3, 4].into())]);
        assert_eq!(parse(b"4a\x1e").unwrap().len(), 1);
        for malformed in ["", "abc", "\x1e", "4a\x1e\x1e", "\x1e4a", "b!!", "x"] {
            assert_eq!(parse(malformed.as_bytes()), Err(PostError::Malformed), "{malformed:?}");
        }
        assert_eq!(parse(&b"3\x1e".repeat(MAX_PACKETS)).unwrap().len(), MAX_PACKETS);
        assert_eq!(parse(&b"3\x1e".repeat(MAX_PACKETS + 1)), Err(PostError::Malformed));
    }

    #[tokio::test]
    async fn a_body_has_bounds() {
        let budget = Budget::of(10_000);
        let read =
            async |length: usize| read(Body::from("4".repeat(length)), 20_000, &budget).await.map(|body| body.len());
        assert_eq!(read(10_000).await, Ok(10_000));
        assert_eq!(read(20_000).await, Err(PostError::Exhausted(Exhausted)));
        assert_eq!(read(20_001).await, Err(PostError::TooLarge));
    }

    proptest! {
        /// The reader of the codec crate, which reads what an official client may send.
        #[test]
        fn packets_are_those_of_the_codec(body in "[0-6b\u{1e}a=é]{0,12}") {
            let theirs = payload::decoder(Body::from(body.clone()), None, ProtocolVersion::V4, 1_000);
            let theirs: Option<Vec<_>> =
                theirs.collect::<Vec<_>>().now_or_never().unwrap().into_iter().map(Result::ok).collect();
            prop_assert_eq!(parse(body.as_bytes()).ok(), theirs.filter(|packets| !packets.is_empty()));
        }
    }
}
