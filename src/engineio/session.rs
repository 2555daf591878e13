//! One client: its transport and its heartbeat.
//!
//! All changes happen under one short lock, and nothing is awaited or called back while it is held.

use std::{hint::black_box, net::Shutdown, sync::Arc};

use bytes::Bytes;
use engineioxide_core::{Packet, Sid};
use parking_lot::Mutex;
use tokio::{net::TcpStream, sync::oneshot};

use super::{
    CloseReason, Engine, Frame, Handler, Unproven,
    census::SessionPermit,
    heartbeat::{Beat, Heartbeat},
    packet::next_payload,
};
use crate::websocket::{Allowance, Connection, Outbox, SendError};

/// The WebSocket of a session.
pub(super) type Socket = Arc<Connection<TcpStream>>;

/// How a client is reached.
enum Transport {
    /// Boxed, so that a session with a WebSocket has no room for it.
    Polling(Box<Polling>),
    WebSocket(Socket),
    Closed,
}

#[derive(Default)]
struct Polling {
    outbox: Outbox,
    get: Get,
    /// A POST is being read.
    is_posting: bool,
    /// A WebSocket has sent its probe.
    is_probed: bool,
}

/// Where the GET of a polling client stands.
#[derive(Default)]
enum Get {
    #[default]
    None,
    /// A POST waits for the next GET.
    Awaited(oneshot::Sender<()>),
    Waiting(oneshot::Sender<Vec<Bytes>>),
    /// The response has not been given to the HTTP server in full. A client that asks again without reading would draw
    /// everything that waits out of the bound of the outbox.
    Answering,
}

impl Polling {
    /// Answers the GET that waits, if one does.
    fn answer(&mut self, packets: impl FnOnce(&mut Outbox) -> Vec<Bytes>) {
        match std::mem::take(&mut self.get) {
            // Without its receiver the request is gone, and the end of the request closes the session.
            Get::Waiting(get) => {
                self.get = Get::Answering;
                drop(get.send(packets(&mut self.outbox)));
            }
            other => self.get = other,
        }
    }
}

struct TransportState {
    transport: Transport,
    heartbeat: Heartbeat,
}

/// The payload that answers a GET of a polling client, in pieces.
pub(super) enum Polled {
    Now(Vec<Bytes>),
    Later(oneshot::Receiver<Vec<Bytes>>),
}

/// A connected client. [`Handler::State`] is the handler's own part.
pub struct Session<H: Handler> {
    engine: Arc<Engine<H>>,
    state: H::State,
    link: Mutex<TransportState>,
    pub(super) permit: SessionPermit,
}

impl<H: Handler> Session<H> {
    /// A session that polls unless it has a `socket`.
    pub(super) fn new(engine: Arc<Engine<H>>, state: H::State, socket: Option<Socket>, permit: SessionPermit) -> Self {
        let transport = socket.map_or_else(|| Transport::Polling(Box::default()), Transport::WebSocket);
        let heartbeat = Heartbeat::new(engine.now(), engine.intervals);
        Self { engine, state, link: Mutex::new(TransportState { transport, heartbeat }), permit }
    }

    /// Fetches the memory that sending needs: a read of any field brings what lies around it.
    pub fn fetch(&self) {
        black_box(self.link.is_locked());
    }

    /// The Engine.IO session id.
    pub fn engine_sid(&self) -> Sid {
        self.permit.sid
    }

    /// What the handler keeps for this client.
    pub fn state(&self) -> &H::State {
        &self.state
    }

    /// Vouches for the client: it has shown what the handler asks of a client. From now on the bounds for unproven
    /// sessions no longer hold for it. Must be called before anything is sent that lets the client rely on this.
    pub fn prove(&self) {
        self.permit.prove();
    }

    /// What the client may send at the moment.
    pub(super) fn allowance(&self) -> Allowance {
        let options = &self.engine.options;
        match options.unproven {
            Some(Unproven { message_timeout, max_payload, .. }) if !self.permit.is_proven() => {
                Allowance { max: max_payload, patience: message_timeout }
            }
            _ => Allowance { max: options.max_payload, patience: options.message_timeout },
        }
    }

    /// The handler.
    pub fn handler(&self) -> &H {
        &self.engine.handler
    }

    /// Sends frames in order: at once as far as the socket takes them, the rest as soon as it does. Never blocks.
    /// A client that leaves more than [`Options::outbox_bytes`](super::Options::outbox_bytes) waiting is closed.
    pub fn send(self: &Arc<Self>, frames: &[&Frame]) {
        self.send_excused(frames, 0);
    }

    /// As [`Session::send`], but the first `excused` frames, which are replayed, do not count against the bound. When
    /// some of an earlier replay still wait, they do.
    pub fn send_excused(self: &Arc<Self>, frames: &[&Frame], excused: usize) {
        self.write(|socket| socket.send(frames, excused), |outbox| outbox.extend(frames, excused));
    }

    /// Sends a frame that is of no use late, unless others wait.
    pub fn send_if_idle(self: &Arc<Self>, frame: &Frame) {
        if self.is_drained() {
            self.send(&[frame]);
        }
    }

    fn write(
        self: &Arc<Self>,
        socket: impl FnOnce(&Socket) -> Result<(), SendError>,
        outbox: impl FnOnce(&mut Outbox),
    ) {
        let sent = match &mut self.link.lock().transport {
            Transport::WebSocket(connection) => socket(connection),
            Transport::Polling(polling) => {
                outbox(&mut polling.outbox);
                polling.answer(next_payload);
                let is_slow = polling.outbox.exceeds(self.engine.options.outbox_bytes);
                if is_slow { Err(SendError::Slow) } else { Ok(()) }
            }
            Transport::Closed => Ok(()),
        };
        self.close_unless(sent);
    }

    fn close_unless(self: &Arc<Self>, sent: Result<(), SendError>) {
        if let Err(error) = sent {
            self.close(if error == SendError::Slow { CloseReason::Slow } else { CloseReason::TransportError });
        }
    }

    /// Closes the transport, so that the client notices and may come back. Does nothing when it is closed already.
    pub fn close(self: &Arc<Self>, reason: CloseReason) {
        self.close_with(reason, reason.code(), Shutdown::Both);
    }

    /// As [`Session::close`], with a close code and for one direction or both.
    pub(super) fn close_with(self: &Arc<Self>, reason: CloseReason, code: Option<u16>, how: Shutdown) {
        let transport = std::mem::replace(&mut self.link.lock().transport, Transport::Closed);
        self.end(transport, reason, code, how);
    }

    /// Closes the transport if all that was sent has left and the client learns of the close at once: one that polls
    /// does so when it waits for an answer. Returns whether the session is over.
    pub(super) fn close_if_settled(self: &Arc<Self>, reason: CloseReason) -> bool {
        let transport = {
            let mut link = self.link.lock();
            let is_settled = match &link.transport {
                Transport::Polling(polling) => matches!(polling.get, Get::Waiting(_)),
                Transport::WebSocket(socket) => socket.is_idle(),
                Transport::Closed => true,
            };
            if !is_settled {
                return false;
            }
            std::mem::replace(&mut link.transport, Transport::Closed)
        };
        self.end(transport, reason, reason.code(), Shutdown::Both);
        true
    }

    /// What follows once the transport has been taken out.
    fn end(self: &Arc<Self>, transport: Transport, reason: CloseReason, code: Option<u16>, how: Shutdown) {
        match transport {
            Transport::Closed => return,
            Transport::Polling(mut polling) => {
                let packet = if reason == CloseReason::ClientClose { Packet::Noop } else { Packet::Close };
                polling.answer(|_| vec![String::from(packet).into()]);
            }
            Transport::WebSocket(socket) => socket.close(code, how),
        }
        self.engine.registry.lock().sessions.remove(&self.engine_sid());
        if let Some(counter) = reason.counter() {
            self.engine.metrics.count(counter);
        }
        self.engine.handler.closed(self, reason);
    }

    /// Does what the heartbeat asks for; returns when to look again, `None` when the session is over.
    pub(super) fn beat(self: &Arc<Self>, now: u64) -> Option<u64> {
        let mut link = self.link.lock();
        let TransportState { transport, heartbeat } = &mut *link;
        match transport {
            Transport::Closed => return None,
            Transport::WebSocket(socket) => heartbeat.progress(socket.take_progress()),
            Transport::Polling(_) => {}
        }
        let beat = heartbeat.beat(now, self.engine.intervals);
        drop(link);
        match beat {
            Beat::Wait(due) => Some(due),
            Beat::Ping(due) => {
                let ping = &self.engine.ping;
                self.write(|socket| socket.send_first(ping), |outbox| outbox.put_first(ping));
                Some(due)
            }
            Beat::Dead => {
                self.close(CloseReason::PingTimeout);
                None
            }
        }
    }

    pub(super) fn pong(&self) {
        let heartbeat = Heartbeat::new(self.engine.now(), self.engine.intervals);
        self.link.lock().heartbeat = heartbeat;
    }

    /// Bytes that waited for a polling client have left.
    pub(super) fn progress(&self, bytes: usize) {
        self.link.lock().heartbeat.progress(bytes);
    }

    /// Whether nothing waits to be sent.
    pub(super) fn is_drained(&self) -> bool {
        match &self.link.lock().transport {
            Transport::Polling(polling) => polling.outbox.is_empty(),
            Transport::WebSocket(socket) => socket.is_idle(),
            Transport::Closed => true,
        }
    }

    /// Does something with the state of polling; `None` when the transport is another.
    fn polling<R>(&self, with: impl FnOnce(&mut Polling) -> R) -> Option<R> {
        match &mut self.link.lock().transport {
            Transport::Polling(polling) => Some(with(polling)),
            _ => None,
        }
    }

    pub(super) fn is_polling(&self) -> bool {
        self.polling(|_| ()).is_some()
    }

    /// A GET; `None` when the transport is not polling (any more), or another GET is under way.
    pub(super) fn poll(self: &Arc<Self>) -> Option<Polled> {
        let polled = self.polling(|polling| {
            if matches!(polling.get, Get::Waiting(_) | Get::Answering) {
                return None;
            }
            if let Get::Awaited(post) = std::mem::replace(&mut polling.get, Get::Answering) {
                // Without its receiver the POST waits no longer.
                let _ = post.send(());
            }
            if !polling.outbox.is_empty() {
                return Some(Polled::Now(next_payload(&mut polling.outbox)));
            }
            if polling.is_probed {
                return Some(Polled::Now(noop()));
            }
            let (sender, receiver) = oneshot::channel();
            polling.get = Get::Waiting(sender);
            Some(Polled::Later(receiver))
        })?;
        if polled.is_none() {
            self.close(CloseReason::TransportError);
        }
        polled
    }

    /// Resolves with the next GET; `None` while a GET is under way, or when the transport is another.
    pub(super) fn next_get(&self) -> Option<oneshot::Receiver<()>> {
        self.polling(|polling| {
            if matches!(polling.get, Get::Waiting(_) | Get::Answering) {
                return None;
            }
            let (sender, receiver) = oneshot::channel();
            polling.get = Get::Awaited(sender);
            Some(receiver)
        })?
    }

    /// The response to the last GET has been given to the HTTP server.
    pub(super) fn answered(&self) {
        self.polling(|polling| {
            if matches!(polling.get, Get::Answering) {
                polling.get = Get::None;
            }
        });
    }

    /// A POST begins; `false` when there is one already or the transport is another.
    pub(super) fn begin_post(&self) -> bool {
        self.polling(|polling| !std::mem::replace(&mut polling.is_posting, true)).unwrap_or(false)
    }

    pub(super) fn end_post(&self) {
        self.polling(|polling| polling.is_posting = false);
    }

    /// Whether it polls, and no WebSocket has sent its probe.
    pub(super) fn may_upgrade(&self) -> bool {
        self.polling(|polling| !polling.is_probed).unwrap_or(false)
    }

    /// A WebSocket sent its probe: the pending GET must end, so that the client can pause polling. `false` when the
    /// session cannot be upgraded (any more).
    pub(super) fn begin_upgrade(&self) -> bool {
        self.polling(|polling| {
            polling.answer(|_| noop());
            !std::mem::replace(&mut polling.is_probed, true)
        })
        .unwrap_or(false)
    }

    /// The probe came to nothing; polling goes on.
    pub(super) fn abort_upgrade(&self) {
        self.polling(|polling| polling.is_probed = false);
    }

    /// The client has moved to the WebSocket; what waits goes there. `false` when the session is over.
    pub(super) fn finish_upgrade(self: &Arc<Self>, socket: &Socket) -> bool {
        let mut link = self.link.lock();
        let Transport::Polling(polling) = &mut link.transport else { return false };
        polling.answer(|_| noop());
        let sent = socket.adopt(std::mem::take(&mut polling.outbox));
        link.transport = Transport::WebSocket(Arc::clone(socket));
        drop(link);
        self.permit.leave_connection();
        self.close_unless(sent);
        sent.is_ok()
    }
}

fn noop() -> Vec<Bytes> {
    vec![String::from(Packet::Noop).into()]
}
