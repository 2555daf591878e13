//! HTTP long-polling, the way from the client: a POST brings packets.

use std::{sync::Arc, time::Duration};

use axum::body::{Body, HttpBody};
use engineioxide_core::Packet;
use http::{Response, StatusCode};
use http_body_util::BodyExt;
use scopeguard::defer;
use tokio::time::timeout;

use super::{
    CloseReason, Engine, Handler, Session,
    http::{Refusal, respond},
    packet::parse_payload,
};
use crate::websocket::{Allowance, Budget, Buffer, Exhausted};

/// A client closes while its GET is under way. As the two have connections of their own, the close may arrive first: it
/// then waits at most this long for the GET, so that the GET ends as it should.
const OVERTAKE: Duration = Duration::from_millis(50);

impl<H: Handler> Engine<H> {
    /// A POST: packets from the client. A session has one POST at a time.
    pub(super) async fn post(&self, session: &Arc<Session<H>>, body: Body) -> Result<Response<Body>, Refusal> {
        if !session.begin_post() {
            session.close(CloseReason::TransportError);
            return Err(Refusal::BadRequest);
        }
        defer! { session.end_post() }
        self.receive_all(session, body).await.or_else(|reason| {
            session.close(reason);
            match reason {
                CloseReason::ClientClose => Ok(done()),
                CloseReason::Exhausted => Err(Refusal::Busy),
                _ => Err(Refusal::BadRequest),
            }
        })
    }

    /// Handles the packets in order. A body that is too large does not close the session.
    async fn receive_all(&self, session: &Arc<Session<H>>, body: Body) -> Result<Response<Body>, CloseReason> {
        let Allowance { max, patience } = self.allowance(session);
        let packets = timeout(patience, packets(body, max, &self.shared.budget)).await;
        let Some(packets) = packets.map_err(|_| CloseReason::Late)?? else {
            return Ok(respond(StatusCode::PAYLOAD_TOO_LARGE, "text/html", Body::empty()));
        };
        for packet in packets {
            if packet == Packet::Close
                && let Some(get) = session.next_get()
            {
                let _ = timeout(OVERTAKE, get).await;
            }
            self.receive(session, packet)?;
        }
        Ok(done())
    }
}

fn done() -> Response<Body> {
    respond(StatusCode::OK, "text/html", "ok")
}

/// All packets of a POST, read before any is handled; `None` when the body has more than `max` bytes.
async fn packets(mut body: Body, max: usize, budget: &Budget) -> Result<Option<Vec<Packet>>, CloseReason> {
    let announced = body.size_hint();
    // Announced, so that it need not arrive.
    if announced.lower() > max as u64 {
        return Ok(None);
    }
    let whole = announced.upper().and_then(|length| usize::try_from(length).ok()).map_or(max, |length| length.min(max));
    let mut read = Buffer::default();
    while let Some(frame) = body.frame().await {
        // Trailers mean nothing here.
        let Ok(data) = frame.map_err(|_| CloseReason::ParseError)?.into_data() else { continue };
        if read.bytes().len() + data.len() > max {
            return Ok(None);
        }
        read.extend(budget, &data, whole).map_err(|Exhausted| CloseReason::Exhausted)?;
    }
    parse_payload(read.bytes()).map(Some).ok_or(CloseReason::ParseError)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_has_bounds() {
        let budget = Budget::of(10_000);
        let read = async |length: usize| {
            packets(Body::from("4".repeat(length)), 20_000, &budget).await.map(|packets| packets.map(|all| all.len()))
        };
        assert_eq!(read(10_000).await, Ok(Some(1)));
        assert_eq!(read(20_000).await, Err(CloseReason::Exhausted));
        assert_eq!(read(20_001).await, Ok(None));
    }
}
