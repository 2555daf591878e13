//! The WebSocket transport: the handshake, the probe of an upgrade, and one small task that reads.
//!
//! Once the handshake is done the socket is taken from the HTTP server with all its buffers gone. Writing is the
//! session's; this reads into one scratch buffer per thread.

use std::{cell::RefCell, io::ErrorKind, ops::ControlFlow, sync::Arc, time::Duration};

use axum::body::Body;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use engineioxide_core::{Packet, ProtocolVersion};
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode,
    header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE},
};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use sha1::{Digest, Sha1};
use tokio::{
    net::TcpStream,
    task::yield_now,
    time::{Instant, timeout, timeout_at},
};

use super::{
    CloseReason, Engine, Frame, Handler, Handshake, Message, Session,
    budget::Budget,
    census::Seat,
    decoder::{Bounds, Decoder, Event, Violation},
    http::Refusal,
    options::Allowance,
};
use crate::{
    listener::{Place, Stream},
    metrics::Counter,
};

/// Appended to the client's key in the handshake (RFC 6455, section 1.3).
const ACCEPT_SUFFIX: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Bytes read at a time.
const SCRATCH: usize = 16 * 1024;

/// Longest message of a probe in bytes, which is `2probe`.
const PROBE_BYTES: usize = 64;

/// How long a closed connection is read on, so that the client gets the close frame and not a reset.
const LINGER: Duration = Duration::from_secs(2);

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into_boxed_slice());
}

impl<H: Handler> Engine<H> {
    /// Opens a session over a WebSocket.
    pub(super) fn accept(self: &Arc<Self>, mut request: Request<Body>) -> Result<Response<Body>, Refusal> {
        let response = switch_protocols(&request)?;
        let seat = self.admit(&request, true)?;
        let upgrade = hyper::upgrade::on(&mut request);
        let engine = Arc::clone(self);
        self.tasks.spawn(async move {
            if let Some(taken) = Taken::after(upgrade, &engine.budget).await {
                let session = engine.open_on(&request, &taken.stream, taken.answer, seat);
                engine.attend(session, taken.stream, taken.decoder, taken.place);
            }
        });
        Ok(response)
    }

    fn open_on(
        self: &Arc<Self>,
        request: &Request<Body>,
        stream: &Arc<TcpStream>,
        answer: Vec<u8>,
        seat: Seat<Session<H>>,
    ) -> Arc<Session<H>> {
        let handshake = Handshake { query: request.uri().query().unwrap_or_default(), headers: request.headers() };
        let session = self.open(&handshake, Some(Arc::clone(stream)), seat);
        let open = Frame::packet(self.open_packet(session.sid(), false));
        session.send(&[&open.preceded_by(answer)]);
        session
    }

    /// Moves a polling session to a WebSocket, if that proves to work.
    pub(super) fn upgrade(
        self: &Arc<Self>,
        mut request: Request<Body>,
        session: Arc<Session<H>>,
    ) -> Result<Response<Body>, Refusal> {
        let response = switch_protocols(&request)?;
        let upgrade = hyper::upgrade::on(&mut request);
        drop(request);
        let engine = Arc::clone(self);
        self.tasks.spawn(async move {
            let taken = Taken::after(upgrade, &engine.budget).await;
            let Some(Taken { stream, mut decoder, answer, place }) = taken else { return };
            // Nothing was sent on this socket yet, so it takes it all.
            if stream.try_write(&answer).is_err() {
                return;
            }
            let probe = timeout(engine.options.upgrade_timeout, engine.probe(&session, &stream, &mut decoder));
            if matches!(probe.await, Ok(true)) && session.finish_upgrade(&stream) {
                engine.attend(session, stream, decoder, place);
            }
        });
        Ok(response)
    }

    /// Reads `2probe` and `5`; returns whether both came. A session takes one WebSocket at a time.
    async fn probe(&self, session: &Session<H>, stream: &TcpStream, decoder: &mut Decoder) -> bool {
        if !session.may_upgrade() {
            return false;
        }
        let packet = |event: Event<'_>| match event {
            Event::Text(text) => ControlFlow::Break(Packet::parse(ProtocolVersion::V4, text.to_owned()).ok()),
            _ => ControlFlow::Break(None),
        };
        let patience = self.options.upgrade_timeout;
        let allowance = || Allowance { max: PROBE_BYTES, patience };
        let inbound = Inbound { stream, budget: &self.budget, allowance };
        if !matches!(inbound.read(decoder, |_| (), packet).await, Ok(Some(Packet::PingUpgrade)))
            || !session.begin_upgrade()
        {
            return false;
        }
        let mut upgrading = Upgrading(session, false);
        if stream.try_write(Frame::packet(Packet::PongUpgrade).wire()).is_err() {
            return false;
        }
        upgrading.1 = matches!(inbound.read(decoder, |_| (), packet).await, Ok(Some(Packet::Upgrade)));
        upgrading.1
    }

    /// Leaves the connection to a task of its own, which keeps nothing of the handshake: a task is as large as the
    /// largest thing it ever did.
    fn attend(self: Arc<Self>, session: Arc<Session<H>>, stream: Arc<TcpStream>, decoder: Decoder, place: Place) {
        let tasks = self.tasks.clone();
        tasks.spawn(self.converse(place, session, stream, decoder));
    }

    /// Reads the client's messages until the session ends. The place is given back last, when the stream is closed.
    async fn converse(
        self: Arc<Self>,
        _place: Place,
        session: Arc<Session<H>>,
        stream: Arc<TcpStream>,
        mut decoder: Decoder,
    ) {
        // Also when the handler panics: nobody else would notice that this client is no longer read.
        let _closer = Closer(&session);
        let pong = |data: &[u8]| session.send_first(&Frame::pong(data));
        let inbound = Inbound { stream: &stream, budget: &self.budget, allowance: || self.allowance(&session) };
        let reason = inbound.read(&mut decoder, pong, |event| self.event(&session, &event)).await;
        session.close_from_reader(reason.unwrap_or_else(|end| self.reason(&end)));
        decoder = Decoder::default();
        let ignore = |_: Event<'_>| ControlFlow::<()>::Continue(());
        let allowance = || Allowance { max: SCRATCH, patience: LINGER };
        let inbound = Inbound { stream: &stream, budget: &self.budget, allowance };
        // Boxed, or the task of a connection that lives has room for it.
        let _ = Box::pin(timeout(LINGER, inbound.read(&mut decoder, |_| (), ignore))).await;
    }

    fn reason(&self, end: &End) -> CloseReason {
        match end {
            End::Closed => CloseReason::TransportClose,
            End::Failed => CloseReason::TransportError,
            End::Late => {
                self.metrics.count(Counter::InboundLate);
                CloseReason::Late
            }
            End::Violated(Violation::Exhausted(_)) => {
                self.metrics.count(Counter::InboundRefused);
                CloseReason::Exhausted
            }
            End::Violated(violation) => CloseReason::Violation(violation.code()),
        }
    }

    fn event(&self, session: &Arc<Session<H>>, event: &Event<'_>) -> ControlFlow<CloseReason> {
        let received = match event {
            Event::Text(text) => Packet::parse(ProtocolVersion::V4, (*text).to_owned())
                .map_err(|_| CloseReason::ParseError)
                .and_then(|packet| self.receive(session, packet)),
            Event::Binary(data) => self.message(session, Message::Binary(Bytes::copy_from_slice(data))),
            Event::Ping(_) => Ok(()),
            Event::Close(_) => Err(CloseReason::TransportClose),
        };
        received.map_or_else(ControlFlow::Break, ControlFlow::Continue)
    }
}

/// An upgrade under way; unless it is marked as done, polling goes on.
struct Upgrading<'a, H: Handler>(&'a Session<H>, bool);

impl<H: Handler> Drop for Upgrading<'_, H> {
    fn drop(&mut self) {
        if !self.1 {
            self.0.abort_upgrade();
        }
    }
}

struct Closer<'a, H: Handler>(&'a Arc<Session<H>>);

impl<H: Handler> Drop for Closer<'_, H> {
    fn drop(&mut self) {
        self.0.close(CloseReason::TransportError);
    }
}

/// Why there is nothing more to read.
#[derive(Debug)]
enum End {
    Closed,
    Failed,
    /// A message was not finished in time.
    Late,
    Violated(Violation),
}

/// What a client sends, as far as it is allowed.
struct Inbound<'a, A> {
    stream: &'a TcpStream,
    budget: &'a Budget,
    allowance: A,
}

impl<A: Fn() -> Allowance> Inbound<'_, A> {
    /// Reads until `on` breaks. Of the pings that come in one read, `answer` gets the last to answer (RFC 6455,
    /// section 5.5.3).
    async fn read<B>(
        &self,
        decoder: &mut Decoder,
        answer: impl Fn(&[u8]),
        mut on: impl FnMut(Event<'_>) -> ControlFlow<B>,
    ) -> Result<B, End> {
        // The first round, without input, handles what the decoder has left.
        let mut first = true;
        loop {
            let (mut ping, mut full) = (None, false);
            let mut on = |event: Event<'_>| match event {
                Event::Ping(data) => {
                    ping = Some(data.to_vec());
                    ControlFlow::Continue(())
                }
                event => on(event),
            };
            let Allowance { max, patience } = (self.allowance)();
            let bounds = Bounds { max, budget: self.budget };
            let flow = BUFFER.with_borrow_mut(|buffer| {
                let read = if first { None } else { Some(self.stream.try_read(buffer)) };
                let length = match read {
                    None => 0,
                    Some(Ok(0)) => return Err(End::Closed),
                    Some(Ok(length)) => length,
                    Some(Err(error)) if error.kind() == ErrorKind::WouldBlock => return Ok(ControlFlow::Continue(())),
                    Some(Err(_)) => return Err(End::Failed),
                };
                full = length == buffer.len();
                decoder.feed(&mut buffer[..length], bounds, &mut on).map_err(End::Violated)
            })?;
            if let ControlFlow::Break(value) = flow {
                return Ok(value);
            }
            if let Some(data) = ping {
                answer(&data);
            }
            if full {
                // There is more, and it may be thousands of tiny frames: others first.
                yield_now().await;
            }
            first = false;
            match decoder.deadline(|| Instant::now() + patience) {
                None => self.stream.readable().await,
                // Boxed, or the task of a connection that has nothing unfinished has room for it.
                Some(deadline) => {
                    Box::pin(timeout_at(deadline, self.stream.readable())).await.map_err(|_| End::Late)?
                }
            }
            .map_err(|_| End::Failed)?;
        }
    }
}

/// The socket below a finished handshake.
struct Taken {
    stream: Arc<TcpStream>,
    /// Has what was read beyond the handshake.
    decoder: Decoder,
    /// What is still to be sent of the answer.
    answer: Vec<u8>,
    place: Place,
}

impl Taken {
    async fn after(upgrade: OnUpgrade, budget: &Budget) -> Option<Self> {
        let parts = upgrade.await.ok()?.downcast::<TokioIo<Stream>>().ok()?;
        let (stream, answer, place) = parts.io.into_inner().into_parts();
        let decoder = Decoder::with(&parts.read_buf, budget).ok()?;
        Some(Self { stream: Arc::new(stream), decoder, answer, place })
    }
}

fn switch_protocols(request: &Request<Body>) -> Result<Response<Body>, Refusal> {
    let headers = request.headers();
    let key = headers.get(SEC_WEBSOCKET_KEY).filter(|key| STANDARD.decode(key).is_ok_and(|key| key.len() == 16));
    let version = headers.get(SEC_WEBSOCKET_VERSION);
    let (Some(key), true) = (key, version.is_some_and(|version| version == "13")) else {
        return Err(Refusal::BadRequest);
    };
    if request.method() != Method::GET
        || !has_token(headers, UPGRADE, "websocket")
        || !has_token(headers, CONNECTION, "upgrade")
    {
        return Err(Refusal::BadRequest);
    }
    let accept = HeaderValue::try_from(accept_key(key.as_bytes())).map_err(|_| Refusal::BadRequest)?;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static("websocket"));
    response.headers_mut().insert(SEC_WEBSOCKET_ACCEPT, accept);
    Ok(response)
}

fn accept_key(key: &[u8]) -> String {
    STANDARD.encode(Sha1::new().chain_update(key).chain_update(ACCEPT_SUFFIX).finalize())
}

fn has_token(headers: &HeaderMap, name: http::HeaderName, token: &str) -> bool {
    let values = headers.get_all(name);
    values
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.split(',').any(|part| part.trim().eq_ignore_ascii_case(token)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accept_key_is_that_of_the_rfc() {
        assert_eq!(accept_key(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn a_handshake_needs_all_its_headers() {
        let headers = [
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "WebSocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        let request = |without: Option<&str>| {
            let mut request = Request::new(Body::empty());
            for (name, value) in headers.into_iter().filter(|(name, _)| Some(*name) != without) {
                request.headers_mut().insert(name, HeaderValue::from_static(value));
            }
            request
        };
        assert!(switch_protocols(&request(None)).is_ok());
        for (name, _) in headers {
            assert!(switch_protocols(&request(Some(name))).is_err(), "{name}");
        }
    }
}
