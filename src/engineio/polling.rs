//! HTTP long-polling: a GET waits for packets to the client, a POST brings packets from it.

use std::{
    collections::VecDeque,
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use engineioxide_core::Packet;
use http::{
    HeaderMap, HeaderValue, Response, StatusCode,
    header::{ACCEPT_ENCODING, CONTENT_ENCODING, VARY},
};
use http_body_util::BodyExt;
use hyper::body::{Frame as BodyFrame, SizeHint};
use scopeguard::defer;
use tokio::time::timeout;

use super::{
    CloseReason, Engine, Handler, Session,
    gzip::joined,
    http::{Refusal, respond},
    packet::parse_payload,
    session::Polled,
};
use crate::websocket::{Allowance, Budget, Buffer, Exhausted};

/// Type of a payload.
pub(super) const TEXT: &str = "text/plain; charset=UTF-8";

/// Payloads at least this long are compressed for clients that take it, as by Node.
const COMPRESS_FROM: usize = 1_024;

/// Bytes given to the HTTP server at a time, so that what has left is known while a long answer is on its way, and that
/// hundreds of such answers do not hold up other tasks: the kernel may take megabytes at once.
const CHUNK: usize = 64 * 1024;

/// A client closes while its GET is under way. As the two have connections of their own, the close may arrive first: it
/// then waits at most this long for the GET, so that the GET ends as it should.
const OVERTAKE: Duration = Duration::from_millis(50);

impl<H: Handler> Engine<H> {
    /// A GET: what waits for the client, or the next thing to come.
    pub(super) async fn poll(&self, session: &Arc<Session<H>>, headers: &HeaderMap) -> Result<Response<Body>, Refusal> {
        let polled = session.poll().ok_or(Refusal::BadRequest)?;
        // From here on the session ends when its client goes away, as what is sent to it could be lost.
        let delivery = Delivery { session: Arc::clone(session), pieces: None, yields: false };
        let packets = match polled {
            Polled::Now(packets) => packets,
            Polled::Later(packets) => packets.await.map_err(|_| Refusal::BadRequest)?,
        };
        if packets.iter().map(Bytes::len).sum::<usize>() < COMPRESS_FROM || !accepts_gzip(headers) {
            return Ok(respond(StatusCode::OK, TEXT, Body::new(delivery.of(joined(packets)))));
        }
        let pieces = self.compressor.gzip(packets, self.now()).await;
        let mut response = respond(StatusCode::OK, TEXT, Body::new(delivery.of(pieces)));
        response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        response.headers_mut().append(VARY, HeaderValue::from_static("Accept-Encoding"));
        Ok(response)
    }

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
                CloseReason::ClientClose => Ok(respond(StatusCode::OK, "text/html", "ok")),
                CloseReason::Exhausted => Err(Refusal::Busy),
                _ => Err(Refusal::BadRequest),
            }
        })
    }

    /// Handles the packets in order. A body that is too large does not close the session.
    async fn receive_all(&self, session: &Arc<Session<H>>, body: Body) -> Result<Response<Body>, CloseReason> {
        let Allowance { max, patience } = session.allowance();
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
        Ok(respond(StatusCode::OK, "text/html", "ok"))
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

/// A response to a GET, complete or still waited for. Its messages have left the outbox: if the client goes away before
/// all of it was taken, the session ends, as they could be lost.
struct Delivery<H: Handler> {
    session: Arc<Session<H>>,
    /// `None` while the packets are not known yet.
    pieces: Option<VecDeque<Bytes>>,
    /// Others run before the next chunk.
    yields: bool,
}

impl<H: Handler> Delivery<H> {
    fn of(mut self, pieces: VecDeque<Bytes>) -> Self {
        if pieces.is_empty() {
            self.session.answered();
        }
        self.pieces = Some(pieces);
        self
    }
}

impl<H: Handler> HttpBody for Delivery<H> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<BodyFrame<Bytes>, Infallible>>> {
        if std::mem::take(&mut self.yields) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let Some(pieces) = &mut self.pieces else { return Poll::Ready(None) };
        let Some(first) = pieces.front_mut() else { return Poll::Ready(None) };
        let chunk = first.split_to(first.len().min(CHUNK));
        if first.is_empty() {
            pieces.pop_front();
            if pieces.is_empty() {
                // Before the last bytes leave, as the client may then ask again at once.
                self.session.answered();
            }
        }
        self.yields = chunk.len() == CHUNK;
        self.session.progress(chunk.len());
        Poll::Ready(Some(Ok(BodyFrame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.as_ref().is_some_and(VecDeque::is_empty)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.pieces.iter().flatten().map(|piece| piece.len() as u64).sum())
    }
}

impl<H: Handler> Drop for Delivery<H> {
    fn drop(&mut self) {
        if !self.is_end_stream() {
            self.session.close(CloseReason::TransportClose);
        }
    }
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
