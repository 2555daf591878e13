//! The WebSocket transport: a session that begins on one, the move of a polling session to one, and the task that reads.

use std::{net::Shutdown, ops::ControlFlow, sync::Arc};

use axum::body::Body;
use bytes::Bytes;
use engineioxide_core::Packet;
use http::{Request, Response};
use scopeguard::defer;
use tokio::time::timeout;

use super::{CloseReason, Engine, Frame, Handler, Handshake, Session, http::Refusal, packet::parse, session::Socket};
use crate::{
    listener::{Place, Upgrade, Upgraded},
    websocket::{Allowance, Connection, Decoder, Disconnect, Received, Violation, handshake},
};

/// Longest message of a probe in bytes, which is `2probe`.
const PROBE_BYTES: usize = 64;

impl<H: Handler> Engine<H> {
    /// Opens a session over a WebSocket.
    pub(super) fn accept(self: &Arc<Self>, request: Request<Body>) -> Result<Response<Body>, Refusal> {
        let mut response = handshake::accept(&request).map_err(|_| Refusal::BadRequest)?;
        let permit = self.admit(&request, true)?;
        let engine = Arc::clone(self);
        response.extensions_mut().insert(Upgrade::to(move |Upgraded { stream, head, read, place }| {
            let socket = Connection::new(stream, &engine.shared);
            let query = request.uri().query().unwrap_or_default();
            let handshake = Handshake { query, headers: request.headers() };
            let session = engine.open(&handshake, Some(Arc::clone(&socket)), permit);
            let open = Frame::packet(engine.open_packet(session.engine_sid(), false));
            session.send(&[&Frame::verbatim([&head, open.wire()].concat())]);
            engine.attend(session, socket, Decoder::with(&read), place);
        }));
        Ok(response)
    }

    /// Moves a polling session to a WebSocket, if that proves to work.
    pub(super) fn upgrade(
        self: &Arc<Self>,
        request: &Request<Body>,
        session: Arc<Session<H>>,
    ) -> Result<Response<Body>, Refusal> {
        let mut response = handshake::accept(request).map_err(|_| Refusal::BadRequest)?;
        let engine = Arc::clone(self);
        response.extensions_mut().insert(Upgrade::to(move |Upgraded { stream, head, read, place }| {
            let socket = Connection::new(stream, &engine.shared);
            let tasks = engine.shared.tasks.clone();
            tasks.spawn(async move {
                if !head.is_empty() && socket.send(&[&Frame::verbatim(head)], 0).is_err() {
                    return;
                }
                let mut decoder = Decoder::with(&read);
                let probe = timeout(engine.options.upgrade_timeout, engine.probe(&session, &socket, &mut decoder));
                if matches!(probe.await, Ok(true)) {
                    engine.attend(session, socket, decoder, place);
                }
            });
        }));
        Ok(response)
    }

    /// Reads `2probe` and `5`; returns whether both came and the session has moved. A session is probed by a single
    /// WebSocket at a time.
    async fn probe(&self, session: &Arc<Session<H>>, socket: &Socket, decoder: &mut Decoder) -> bool {
        if !session.may_upgrade() {
            return false;
        }
        let packet = |received: Received<'_>| match received {
            Received::Text(text) => ControlFlow::Break(parse(text)),
            Received::Pong(_) => ControlFlow::Continue(()),
            _ => ControlFlow::Break(None),
        };
        let allowance = || Allowance { max: PROBE_BYTES, patience: self.options.upgrade_timeout };
        if !matches!(socket.read(decoder, allowance, packet).await, Ok(Some(Packet::PingUpgrade)))
            || !session.begin_upgrade()
        {
            return false;
        }
        // Unless the session has moved in the end, polling goes on.
        defer! { session.abort_upgrade() }
        if socket.send(&[&Frame::packet(Packet::PongUpgrade)], 0).is_err() {
            return false;
        }
        matches!(socket.read(decoder, allowance, packet).await, Ok(Some(Packet::Upgrade)))
            && session.finish_upgrade(socket)
    }

    /// Reads the client's messages until the session ends, in a task of its own, which keeps nothing of the handshake: a
    /// task is as large as the largest thing it ever did. The place is given back when the socket is closed.
    fn attend(self: &Arc<Self>, session: Arc<Session<H>>, socket: Socket, mut decoder: Decoder, place: Place) {
        let engine = Arc::clone(self);
        self.shared.tasks.spawn(async move {
            // Also when the handler panics: nothing else would notice that this client is no longer read.
            defer! { session.close(CloseReason::TransportError) }
            let received = |received: Received<'_>| engine.received(&session, received);
            let (reason, code) = match socket.read(&mut decoder, || session.allowance(), received).await {
                Ok(reason) => (reason, reason.code()),
                Err(disconnect) => (disconnect.into(), disconnect.code()),
            };
            session.close_with(reason, code, Shutdown::Write);
            drop(decoder);
            // Boxed, or the task of a connection that lives has room for it.
            Box::pin(socket.linger()).await;
            drop((socket, place));
        });
    }

    fn received(&self, session: &Arc<Session<H>>, received: Received<'_>) -> ControlFlow<CloseReason> {
        let packet = match received {
            Received::Text(text) => parse(text).ok_or(CloseReason::ParseError),
            Received::Binary(data) => Ok(Packet::Binary(Bytes::copy_from_slice(data))),
            Received::Ping(_) | Received::Pong(_) | Received::Close(_) => return ControlFlow::Continue(()),
        };
        let received = packet.and_then(|packet| self.receive(session, packet));
        received.map_or_else(ControlFlow::Break, ControlFlow::Continue)
    }
}

impl From<Disconnect> for CloseReason {
    fn from(disconnect: Disconnect) -> Self {
        match disconnect {
            Disconnect::Closed(_) | Disconnect::Lost => Self::TransportClose,
            Disconnect::Failed => Self::TransportError,
            Disconnect::Late => Self::Late,
            Disconnect::Violated(Violation::Exhausted(_)) => Self::Exhausted,
            Disconnect::Violated(violation) => Self::Violation(violation.code()),
        }
    }
}
