//! Socket.IO 5 on the engine: the default namespace and connection state recovery.
//!
//! Answers for what a browser is told and when: its rooms and what it missed are settled before its CONNECT is
//! acknowledged. Knows nothing of HTTP or Redis; transports are [`crate::engineio`]'s, rooms and tickets
//! [`crate::admission`]'s, delivery [`crate::hub`]'s.

mod wire;

use std::{
    mem,
    pin::pin,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    time::Instant,
};

use parking_lot::Mutex;
use socketioxide_core::{
    Str, Value,
    packet::{Packet, PacketData},
    parser::{Parse, ParseError, ParserState},
};
use socketioxide_parser_common::CommonParser;
use tokio_util::sync::{CancellationToken, DropGuard};

use self::wire::Connect;
pub use self::wire::SocketIoWire;
use crate::{
    admission::{Admission, Admitted, Arrival, Claim, SessionId, Token},
    engineio::{CloseReason, Frame, Handler, Handshake, Malformed, Message, Session},
    hub::{Event, Joined, Membership, Rooms, Subscriber},
    lifecycle::Tasks,
};

/// CONNECT packets on one connection: each costs a lookup and a place in the rooms, and Loomio's page sends one.
const MAX_CONNECTS: u32 = 64;

/// CONNECT packets for other namespaces on one connection: each draws an answer, which waits in memory while a stranger
/// does not read. No browser of Loomio sends one.
const MAX_REFUSED: u32 = 8;

/// Longest namespace in bytes that is named in a refusal.
const MAX_NAMESPACE: usize = 256;

/// A browser in the hub.
struct Browser(Arc<Session<SocketIo>>);

impl Subscriber for Browser {
    fn prefetch(&self) {
        self.0.fetch();
    }

    fn deliver(&self, events: &[&Event]) {
        let Self(session) = self;
        let wire = &session.handler().wire;
        match events {
            // In nearly all cases. A list would be allocated for each browser.
            [event] => session.send(&[event.form(wire)]),
            _ => session.send(&events.iter().map(|event| event.form(wire)).collect::<Vec<_>>()),
        }
    }

    fn remind(&self, offset: &str) {
        self.0.send_if_idle(&wire::prime(offset));
    }

    fn lagged(&self) {
        self.0.close(CloseReason::Slow);
    }
}

/// What is kept with each connection.
#[derive(Default)]
pub struct NamespaceState {
    token: Option<Token>,
    phase: Mutex<Phase>,
    /// CONNECT packets so far, and those of them that named another namespace.
    connects: AtomicU32,
    refused: AtomicU32,
    /// Attachments of the last packet that have not arrived yet; they are discarded with it.
    attachments: AtomicUsize,
}

/// Where a connection stands with the namespace.
#[derive(Default)]
enum Phase {
    /// No CONNECT yet.
    #[default]
    Fresh,
    /// CONNECT has come, and the browser waits for its admission, until the guard is dropped.
    Connecting(DropGuard),
    /// The browser is in its rooms, and its shard has not acknowledged the CONNECT yet. The guard is there while Redis is
    /// still asked for its user.
    Joining(Membership, Option<DropGuard>),
    /// The CONNECT is acknowledged.
    Connected(Membership, SessionId, Option<DropGuard>),
    /// The browser left; it may connect again.
    Left,
    /// The connection has ended.
    Closed,
}

/// The namespace `/`.
pub struct SocketIo {
    /// Rooms and recovery.
    pub wire: SocketIoWire,
    /// From a CONNECT to rooms and a session.
    pub admission: Admission<Session<SocketIo>>,
    /// Where browsers wait for their admission.
    pub tasks: Tasks,
    /// Ends that.
    pub stop: CancellationToken,
}

impl SocketIo {
    /// Until `stop`, lets the rooms of connected browsers follow what Redis says of their users.
    pub async fn reauthorize(&self, stop: CancellationToken) {
        self.admission.reauthorize(stop, set_rooms).await;
    }

    fn text(&self, session: &Arc<Session<Self>>, text: Str) -> Result<(), Malformed> {
        let state = ParserState::default();
        if session.state().attachments.load(Ordering::Relaxed) > 0 {
            return Err(Malformed);
        }
        match CommonParser.decode_str(&wire::parse_config(), &state, text) {
            Ok(packet) => self.packet(session, &packet),
            Err(ParseError::NeedsMoreBinaryData) => {
                let partial = state.partial_bin_packet.into_inner().unwrap_or_else(PoisonError::into_inner);
                self.packet(session, &partial.ok_or(Malformed)?.packet)?;
                session.state().attachments.store(state.incoming_binary_cnt.into_inner(), Ordering::Relaxed);
                Ok(())
            }
            Err(_) => Err(Malformed),
        }
    }

    /// Takes a packet apart from its attachments. Events and acknowledgements are checked and discarded, as no part of the
    /// server takes any.
    fn packet(&self, session: &Arc<Session<Self>>, packet: &Packet) -> Result<(), Malformed> {
        if packet.ns != "/" {
            let connects = matches!(packet.inner, PacketData::Connect(_));
            let refused = &session.state().refused;
            if !connects || packet.ns.len() > MAX_NAMESPACE || refused.fetch_add(1, Ordering::Relaxed) >= MAX_REFUSED {
                return Err(Malformed);
            }
            session.send(&[&wire::invalid_namespace(&packet.ns)]);
            return Ok(());
        }
        if let PacketData::Connect(data) = &packet.inner {
            return self.connect(session, data.as_ref());
        }
        if !matches!(*session.state().phase.lock(), Phase::Connected(..)) {
            return Err(Malformed);
        }
        let valid = match &packet.inner {
            PacketData::Disconnect => {
                self.end(session, Phase::Left);
                true
            }
            PacketData::Event(data, _) | PacketData::BinaryEvent(data, _) => {
                data.as_str().is_some_and(|data| wire::is_event(data))
            }
            PacketData::EventAck(data, _) | PacketData::BinaryAck(data, _) => {
                data.as_str().is_some_and(|data| wire::is_array(data))
            }
            PacketData::Connect(_) | PacketData::ConnectError(_) => false,
        };
        if valid { Ok(()) } else { Err(Malformed) }
    }

    fn connect(&self, session: &Arc<Session<Self>>, data: Option<&Value>) -> Result<(), Malformed> {
        let mut phase = session.state().phase.lock();
        if !matches!(*phase, Phase::Fresh | Phase::Left) {
            return Err(Malformed);
        }
        let data = data.and_then(Value::as_str).map(|data| &**data);
        let connect = Connect::parse(data).ok_or(Malformed)?;
        if session.state().connects.fetch_add(1, Ordering::Relaxed) >= MAX_CONNECTS {
            return Err(Malformed);
        }
        let left = self.stop.child_token();
        *phase = Phase::Connecting(left.clone().drop_guard());
        // Not in `welcome`: that Redis or this node is slow is no fault of the browser, which must not be cut for it.
        session.prove();
        let session = Arc::clone(session);
        self.tasks.spawn(async move {
            // Pinned here, or the task has room for it twice.
            left.run_until_cancelled(pin!(attend(session, connect))).await;
        });
        Ok(())
    }

    /// The browser leaves the namespace, or its connection ends.
    fn end(&self, session: &Arc<Session<Self>>, phase: Phase) {
        let left = matches!(phase, Phase::Left);
        let ended = {
            let mut current = session.state().phase.lock();
            if matches!(*current, Phase::Closed) {
                return;
            }
            mem::replace(&mut *current, phase)
        };
        if let Phase::Connected(_, id, _) = ended {
            self.admission.end(id, &Arc::downgrade(session), left);
        }
    }
}

impl Handler for SocketIo {
    type State = NamespaceState;

    fn open(&self, handshake: &Handshake<'_>) -> NamespaceState {
        let mut parameters = url::form_urlencoded::parse(handshake.query.as_bytes());
        let token = parameters.find(|(name, _)| name == "channel_token").and_then(|(_, token)| Token::parse(&token));
        NamespaceState { token, ..NamespaceState::default() }
    }

    fn message(&self, session: &Arc<Session<Self>>, message: Message) -> Result<(), Malformed> {
        match message {
            Message::Text(text) => self.text(session, text),
            Message::Binary(_) => {
                let left = &session.state().attachments;
                let discarded = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
                discarded.map(drop).map_err(|_| Malformed)
            }
        }
    }

    fn closed(&self, session: &Arc<Session<Self>>, reason: CloseReason) {
        tracing::debug!(sid = %session.engine_sid(), ?reason, "closed");
        self.end(session, Phase::Closed);
    }
}

/// Runs from the CONNECT packet to the browser's rooms, and on until Redis has said which rooms these are. It is dropped
/// when the browser leaves.
async fn attend(socket: Arc<Session<SocketIo>>, connect: Connect) {
    let SocketIo { admission, wire: SocketIoWire(hub), .. } = socket.handler();
    let Connect { pid, offset, channel_token } = connect;
    let token = socket.state().token.clone().or_else(|| channel_token.as_deref().and_then(Token::parse));
    drop(channel_token);
    let (arrival, pending) = admission.admit(hub, Claim { token, ticket: pid, offset }).await;
    let Some(pending) = pending else { return join(&socket, arrival, false) };
    join(&socket, arrival, true);
    let rooms = pending.await;
    if let Phase::Joining(membership, asking) | Phase::Connected(membership, _, asking) =
        &mut *socket.state().phase.lock()
    {
        membership.set_rooms(rooms, Instant::now());
        *asking = None;
    }
}

/// Gives a browser other rooms while it is connected with this session. Not while Redis is still asked for its user: the
/// answer to that may be older.
fn set_rooms(socket: &Session<SocketIo>, session: &SessionId, rooms: Rooms) -> bool {
    match &*socket.state().phase.lock() {
        Phase::Connected(membership, id, None) if id == session => membership.set_rooms(rooms, Instant::now()),
        _ => return false,
    }
    true
}

/// Joins the rooms; the shard acknowledges.
fn join(socket: &Arc<Session<SocketIo>>, mut arrival: Arrival, is_pending: bool) {
    let mut phase = socket.state().phase.lock();
    let asking = match mem::take(&mut *phase) {
        Phase::Connecting(asking) => Some(asking).filter(|_| is_pending),
        other => return *phase = other,
    };
    let (rooms, since) = (mem::take(&mut arrival.rooms), arrival.since);
    tracing::debug!(sid = %socket.engine_sid(), had = rooms.had.len(), gained = rooms.gained.len(), "joins");
    let newcomer = Arc::clone(socket);
    let welcome = move |joined| welcome(&newcomer, &joined, arrival);
    let SocketIoWire(hub) = &socket.handler().wire;
    *phase = Phase::Joining(hub.join(Browser(Arc::clone(socket)), rooms, since, Instant::now(), welcome), asking);
}

/// In the shard, before anything live: the missed events, then CONNECT, then for a new session its first offset.
fn welcome(socket: &Arc<Session<SocketIo>>, joined: &Joined, arrival: Arrival) {
    let SocketIo { admission, wire, .. } = socket.handler();
    let mut phase = socket.state().phase.lock();
    let (membership, asking) = match mem::take(&mut *phase) {
        Phase::Joining(membership, asking) => (membership, asking),
        other => return *phase = other,
    };
    let Admitted { session, ticket, offset, replaced } = admission.welcome(&wire.0, joined, arrival, socket);
    let connect = wire::connect(session.as_str(), &ticket);
    *phase = Phase::Connected(membership, session, asking);
    drop(phase);
    if let Some(replaced) = replaced {
        replaced.close(CloseReason::Forced);
    }
    let prime = offset.map(|offset| wire::prime(&offset));
    let missed = joined.missed.iter().map(|event| event.form(wire));
    let frames: Vec<&Frame> = missed.chain([&connect]).chain(&prime).collect();
    socket.send_excused(&frames, joined.missed.len());
}
