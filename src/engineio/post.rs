//! HTTP long-polling, the way from the client: a POST brings packets.

use std::{sync::Arc, time::Duration};

use axum::body::{Body, HttpBody};
use engineioxide_core::Packet;
use http::{Response, StatusCode};
use http_body_util::BodyExt;
use tokio::time::timeout;

use super::{
    CloseReason, Engine, Handler, Session,
    http::{Refusal, respond},
    packet::{NotAPayload, parse_payload},
};
use crate::{
    metrics::Counter,
    websocket::{Budget, Buffer, Exhausted},
};

/// A client closes while its GET is under way. As the two have connections of their own, the close may arrive first: it
/// then waits at most this long for the GET, so that the GET ends as it should.
const OVERTAKE: Duration = Duration::from_millis(50);

/// Why a POST cannot be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum PostError {
    #[error("body is too large")]
    TooLarge,
    #[error("body did not arrive as a whole")]
    Broken,
    #[error(transparent)]
    NotAPayload(#[from] NotAPayload),
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
        let packets = timeout(allowance.patience, packets(body, allowance.max, &self.shared.budget)).await;
        let packets = match packets {
            Ok(Ok(packets)) => packets,
            Ok(Err(PostError::TooLarge)) => {
                return Ok(respond(StatusCode::PAYLOAD_TOO_LARGE, "text/html", Vec::new()));
            }
            Ok(Err(PostError::Broken | PostError::NotAPayload(_))) => {
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
            if packet == Packet::Close
                && let Some(get) = session.next_get()
            {
                let _ = timeout(OVERTAKE, get).await;
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

/// A POST under way; a session has one at a time.
struct Posting<'a, H: Handler>(&'a Session<H>);

impl<H: Handler> Drop for Posting<'_, H> {
    fn drop(&mut self) {
        self.0.end_post();
    }
}

/// All packets of a POST, read before any is handled.
async fn packets(body: Body, max: usize, budget: &Budget) -> Result<Vec<Packet>, PostError> {
    Ok(parse_payload(read(body, max, budget).await?.bytes())?)
}

/// The whole body.
async fn read(mut body: Body, max: usize, budget: &Budget) -> Result<Buffer, PostError> {
    let announced = body.size_hint();
    // Announced, so that it need not arrive.
    if announced.lower() > max as u64 {
        return Err(PostError::TooLarge);
    }
    let whole = announced.upper().and_then(|length| usize::try_from(length).ok()).map_or(max, |length| length.min(max));
    let mut read = Buffer::default();
    while let Some(frame) = body.frame().await {
        // Trailers mean nothing here.
        let Ok(data) = frame.map_err(|_| PostError::Broken)?.into_data() else { continue };
        if read.bytes().len() + data.len() > max {
            return Err(PostError::TooLarge);
        }
        read.extend(budget, &data, whole)?;
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_has_bounds() {
        let budget = Budget::of(10_000);
        let read = async |length: usize| {
            read(Body::from("4".repeat(length)), 20_000, &budget).await.map(|body| body.bytes().len())
        };
        assert_eq!(read(10_000).await, Ok(10_000));
        assert_eq!(read(20_000).await, Err(PostError::Exhausted(Exhausted)));
        assert_eq!(read(20_001).await, Err(PostError::TooLarge));
    }
}
