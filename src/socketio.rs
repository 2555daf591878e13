//! Socket.IO 5 on the engine: the default namespace and connection state recovery.
//!
//! Answers for what a browser is told and when: its rooms and what it missed are settled before its CONNECT is
//! acknowledged. Knows nothing of HTTP or Redis; transports are [`crate::engineio`]'s, rooms and tickets
//! [`crate::admission`]'s, delivery [`crate::hub`]'s.
//!
//! Source of the protocol: `docs/socket.io-protocol/v5-current.md` in the public repository `socketio/socket.io`.

mod connect;
pub mod wire;

use std::{
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use socketioxide_core::{
    Str, Value,
    packet::{Packet, PacketData},
    parser::{Parse, ParseError, ParserState},
};
use socketioxide_parser_common::CommonParser;
use tokio_util::sync::CancellationToken;

use self::wire::Connect;
use crate::{
    admission::{Admission, SessionId, Token},
    engineio::{CloseReason, Engine, Frame, Handler, Handshake, Malformed, Message, Session},
    hub::{self, Hub, Membership, Subscriber},
    lifecycle::Tasks,
    metrics::{Counter, Metrics},
};

/// How often the log is looked through.
const EXPIRY_TICK: Duration = Duration::from_millis(100);

/// CONNECT packets on one connection: each costs a lookup and a place in the rooms, and Loomio's page sends one.
const MAX_CONNECTS: u32 = 64;

/// How often every browser is told an offset within the recovery window, as the one it comes back with says when it was
/// last here.
const REMINDERS_PER_WINDOW: u32 = 4;

/// How often some of them are.
const REMINDER_TICK: Duration = Duration::from_secs(1);

/// Longest namespace in bytes that is named in a refusal.
const MAX_NAMESPACE: usize = 256;

/// A browser in the hub.
pub struct Member(Arc<Session<SocketIo>>);

impl hub::Message for Frame {
    fn weight(&self) -> usize {
        self.len()
    }
}

impl Subscriber for Member {
    type Message = Frame;

    fn deliver(&self, frames: &[&Frame]) {
        self.0.send(frames);
    }

    fn remind(&self, frame: &Frame) {
        self.0.send_if_idle(frame);
    }

    fn prefetch(&self) {
        self.0.prefetch();
    }

    fn lagged(&self) {
        self.0.close(CloseReason::Slow);
    }
}

/// What is kept with each connection.
#[derive(Default)]
pub struct Connection {
    token: Option<Token>,
    phase: Mutex<Phase>,
    /// Number of the CONNECT that counts.
    connects: AtomicU32,
    /// Attachments of the last packet that have not arrived yet; they are thrown away with it.
    attachments: Mutex<usize>,
}

/// Where a connection stands with the namespace.
#[derive(Default)]
enum Phase {
    /// No CONNECT yet.
    #[default]
    Fresh,
    /// CONNECT has come, and the browser waits for its admission.
    Connecting,
    /// The browser is in its rooms, and its shard has not acknowledged the CONNECT yet.
    Joining(Membership<Member>),
    /// The CONNECT is acknowledged.
    Connected(Membership<Member>, SessionId),
    /// The browser left; it may connect again.
    Left,
    /// The connection has ended.
    Closed,
}

impl Connection {
    fn phase(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn attachments(&self) -> MutexGuard<'_, usize> {
        self.attachments.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the namespace is made of.
pub struct Parts {
    /// Rooms and recovery.
    pub hub: Arc<Hub<Member>>,
    /// From a CONNECT to rooms and a session.
    pub admission: Admission<Session<SocketIo>>,
    /// Counts.
    pub metrics: Metrics,
    /// Where browsers wait for their admission.
    pub tasks: Tasks,
    /// Ends that.
    pub stop: CancellationToken,
    /// How long a browser may be away, and so how old the offset may be that it was told last.
    pub recovery_window: Duration,
}

/// The namespace `/`.
pub struct SocketIo {
    parts: Parts,
}

impl SocketIo {
    /// A namespace without browsers.
    pub fn new(parts: Parts) -> Self {
        Self { parts }
    }

    /// Lets the log expire when nothing is published, and reminds browsers of their offsets, until `stop`.
    pub async fn tend(engine: Arc<Engine<Self>>, stop: CancellationToken) {
        let io = engine.handler();
        let mut ticker = tokio::time::interval(EXPIRY_TICK);
        let period = (io.parts.recovery_window / REMINDERS_PER_WINDOW).max(REMINDER_TICK);
        let parts = usize::try_from(period.as_secs()).unwrap_or(usize::MAX);
        // The first to come are the last in turn.
        let mut reminders = (0..parts).rev().cycle();
        let mut reminded = Instant::now();
        while stop.run_until_cancelled(ticker.tick()).await.is_some() {
            let now = Instant::now();
            io.parts.hub.expire(now);
            if now.saturating_duration_since(reminded) >= REMINDER_TICK {
                reminded += REMINDER_TICK;
                io.parts.hub.remind(reminders.next().unwrap_or_default(), parts, now, wire::prime);
            }
        }
    }

    fn text(&self, session: &Arc<Session<Self>>, text: Str) -> Result<(), Malformed> {
        let state = ParserState::default();
        if *session.state().attachments() > 0 {
            return Err(Malformed);
        }
        match CommonParser.decode_str(&wire::parse_config(), &state, text) {
            Ok(packet) => self.packet(session, &packet),
            Err(ParseError::NeedsMoreBinaryData) => {
                let partial = state.partial_bin_packet.into_inner().unwrap_or_else(PoisonError::into_inner);
                self.packet(session, &partial.ok_or(Malformed)?.packet)?;
                *session.state().attachments() = state.incoming_binary_cnt.into_inner();
                Ok(())
            }
            Err(_) => Err(Malformed),
        }
    }

    /// A whole packet but for its attachments. Events and acknowledgements are checked and thrown away; there is nobody
    /// they could be for.
    fn packet(&self, session: &Arc<Session<Self>>, packet: &Packet) -> Result<(), Malformed> {
        if packet.ns != "/" {
            let connects = matches!(packet.inner, PacketData::Connect(_));
            if !connects || packet.ns.len() > MAX_NAMESPACE {
                return Err(Malformed);
            }
            session.send(&[&wire::invalid_namespace(&packet.ns)]);
            return Ok(());
        }
        if let PacketData::Connect(data) = &packet.inner {
            return self.connect(session, data.as_ref());
        }
        if !matches!(*session.state().phase(), Phase::Connected(..)) {
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
        let mut phase = session.state().phase();
        if !matches!(*phase, Phase::Fresh | Phase::Left) {
            return Err(Malformed);
        }
        let data = data.and_then(Value::as_str).map(|data| &**data);
        let connect = Connect::parse(data).ok_or(Malformed)?;
        let number = session.state().connects.fetch_add(1, Ordering::Relaxed) + 1;
        if number > MAX_CONNECTS {
            return Err(Malformed);
        }
        *phase = Phase::Connecting;
        let (stop, session) = (self.parts.stop.clone(), Arc::clone(session));
        self.parts.tasks.spawn(async move {
            // Pinned here, or the task has room for it twice.
            stop.run_until_cancelled(pin!(connect::connect(session, connect, number))).await;
        });
        Ok(())
    }

    /// The browser leaves the namespace, or its connection ends.
    fn end(&self, session: &Arc<Session<Self>>, phase: Phase) {
        let left = matches!(phase, Phase::Left);
        let ended = {
            let mut current = session.state().phase();
            if matches!(*current, Phase::Closed) {
                return;
            }
            std::mem::replace(&mut *current, phase)
        };
        if let Phase::Connected(_, id) = ended {
            self.parts.admission.end(id, &Arc::downgrade(session), left);
        }
    }
}

impl Handler for SocketIo {
    type State = Connection;

    fn open(&self, handshake: &Handshake<'_>) -> Connection {
        let mut parameters = url::form_urlencoded::parse(handshake.query.as_bytes());
        let token = parameters.find(|(name, _)| name == "channel_token").and_then(|(_, token)| Token::parse(&token));
        Connection { token, ..Connection::default() }
    }

    fn message(&self, session: &Arc<Session<Self>>, message: Message) -> Result<(), Malformed> {
        match message {
            Message::Text(text) => self.text(session, text),
            Message::Binary(_) => {
                let mut attachments = session.state().attachments();
                *attachments = attachments.checked_sub(1).ok_or(Malformed)?;
                Ok(())
            }
        }
    }

    fn closed(&self, session: &Arc<Session<Self>>, reason: CloseReason) {
        match reason {
            CloseReason::Slow => self.parts.metrics.count(Counter::SlowClosed),
            CloseReason::ParseError | CloseReason::Violation(_) => self.parts.metrics.count(Counter::MalformedClosed),
            _ => {}
        }
        tracing::debug!(sid = %session.sid(), ?reason, "closed");
        self.end(session, Phase::Closed);
    }
}
