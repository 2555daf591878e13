//! Engine.IO 4: a message stream per client over HTTP long-polling or WebSocket, with a heartbeat.
//!
//! Answers for transports: handshake, polling, WebSocket, the upgrade from one to the other, limits and timeouts,
//! and for sending one prepared [`Frame`] to many clients without waiting for any. Knows nothing of Loomio or
//! Socket.IO: what messages mean is up to a [`Handler`].
//!
//! Source of the protocol: `docs/engine.io-protocol/v4-current.md` in the public repository `socketio/socket.io`.

mod census;
mod compress;
mod drain;
mod gzip;
mod heartbeat;
mod http;
mod options;
mod packet;
mod polling;
mod session;
mod websocket;

use std::{collections::HashMap, sync::Arc, time::Duration};

use ::http::HeaderMap;
use engineioxide_core::{OpenPacket, Packet, Sid, Str, TransportType};
use parking_lot::Mutex;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use self::{
    census::{Census, SessionPermit},
    compress::Compressor,
    heartbeat::{Intervals, Wheel},
    session::Socket,
};
pub use self::{
    http::Cors,
    options::{Options, Unproven},
    session::Session,
};
pub use crate::websocket::Frame;
use crate::{
    lifecycle::Tasks,
    metrics::{Counter, Metrics},
    websocket::{Budget, Shared},
};

/// Pause between two checks whether everything is sent.
const DRAIN_TICK: Duration = Duration::from_millis(10);

/// What a client sent.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// A text message, without its packet type.
    Text(Str),
    /// Binary data.
    Binary(bytes::Bytes),
}

/// A message that breaks the handler's protocol; the client is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// The client sent a close packet.
    ClientClose,
    /// The client's connection ended.
    TransportClose,
    /// The connection failed, or the client used it wrongly.
    TransportError,
    /// No pong in time.
    PingTimeout,
    /// A packet that cannot be read.
    ParseError,
    /// A WebSocket frame against the protocol, with the code it was closed with.
    Violation(u16),
    /// The client did not read fast enough.
    Slow,
    /// A message was not finished in time.
    Late,
    /// The unfinished messages of all clients take too much memory.
    Exhausted,
    /// The session did not prove itself in time, or had to make room for another.
    Unproven,
    /// The handler ended it.
    Forced,
    /// The server stops.
    Shutdown,
}

impl CloseReason {
    /// Close code of the WebSocket (RFC 6455, section 7.4.1); Node closes without a code.
    fn code(self) -> Option<u16> {
        match self {
            Self::Violation(code) => Some(code),
            Self::Shutdown => Some(1001),
            Self::Slow | Self::Exhausted => Some(1013),
            Self::Late => Some(1008),
            _ => None,
        }
    }

    fn counter(self) -> Option<Counter> {
        match self {
            Self::Late => Some(Counter::InboundLate),
            Self::Exhausted => Some(Counter::InboundRefused),
            Self::Unproven => Some(Counter::UnprovenClosed),
            Self::Slow => Some(Counter::SlowClosed),
            Self::ParseError | Self::Violation(_) => Some(Counter::MalformedClosed),
            _ => None,
        }
    }
}

/// The request that opened a session.
#[derive(Clone, Copy, Debug)]
pub struct Handshake<'a> {
    /// The query string as it came.
    pub query: &'a str,
    /// The request's headers.
    pub headers: &'a HeaderMap,
}

/// What is built on the engine. Calls for the same client never overlap, except that `closed` may come at any time. No
/// call may block.
pub trait Handler: Send + Sync + Sized + 'static {
    /// Kept with each client.
    type State: Send + Sync + 'static;

    /// A client opens a session.
    fn open(&self, handshake: &Handshake<'_>) -> Self::State;

    /// A message came.
    ///
    /// # Errors
    /// [`Malformed`] closes the client.
    fn message(&self, session: &Arc<Session<Self>>, message: Message) -> Result<(), Malformed>;

    /// The session ended; called once.
    fn closed(&self, session: &Arc<Session<Self>>, reason: CloseReason);
}

struct Registry<H: Handler> {
    sessions: HashMap<Sid, Arc<Session<H>>>,
    wheel: Wheel<Sid>,
    intake: Intake,
}

/// What becomes of new sessions.
#[derive(Clone, Copy)]
enum Intake {
    Open,
    /// They are refused, as the server is about to stop.
    Refused,
    /// They are refused, and those that are being opened are closed at once.
    Closing(CloseReason),
}

/// All sessions, and the way to them over HTTP: [`Engine::handle`].
pub struct Engine<H: Handler> {
    handler: H,
    options: Options,
    intervals: Intervals,
    ping: Frame,
    compressor: Compressor,
    shared: Arc<Shared>,
    metrics: Metrics,
    started: Instant,
    registry: Mutex<Registry<H>>,
    census: Arc<Census>,
}

impl<H: Handler> Engine<H> {
    /// An engine without sessions. Needs [`Engine::run`] for its heartbeat.
    pub fn new(handler: H, options: Options, tasks: Tasks, metrics: Metrics) -> Arc<Self> {
        let intervals =
            Intervals { ping: milliseconds(options.ping_interval), timeout: milliseconds(options.ping_timeout) };
        let wheel = Wheel::new(tick(intervals));
        Arc::new(Self {
            handler,
            intervals,
            ping: Frame::packet(Packet::Ping),
            compressor: Compressor::new(tasks.clone(), metrics.clone()),
            shared: Arc::new(Shared { tasks, budget: Budget::default(), outbox_bytes: options.outbox_bytes }),
            metrics,
            started: Instant::now(),
            registry: Mutex::new(Registry { sessions: HashMap::new(), wheel, intake: Intake::Open }),
            census: Census::new(&options),
            options,
        })
    }

    /// The handler.
    pub fn handler(&self) -> &H {
        &self.handler
    }

    /// Sessions at the moment.
    pub fn sessions(&self) -> usize {
        self.registry.lock().sessions.len()
    }

    /// Waits until nothing waits to be sent to any client, at most for `deadline`; returns whether that is so. What waits
    /// for a client that polls is sent when a request has taken it.
    pub async fn drained(&self, deadline: Duration) -> bool {
        let drained = async {
            while !self.registry.lock().sessions.values().all(|session| session.is_drained()) {
                sleep(DRAIN_TICK).await;
            }
        };
        timeout(deadline, drained).await.is_ok()
    }

    /// Keeps the heartbeat going, and closes sessions that stay unproven, until `stop`.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut ticker = interval(Duration::from_millis(tick(self.intervals)));
        ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while stop.run_until_cancelled(ticker.tick()).await.is_some() {
            let now = self.now();
            self.compressor.forget(now);
            let due = self.registry.lock().wheel.due(now);
            for sid in due {
                if let Some(next) = self.session(sid).and_then(|session| session.beat(now)) {
                    self.registry.lock().wheel.schedule(sid, next);
                }
            }
            for session in self.census.overdue(now).into_iter().filter_map(|sid| self.session(sid)) {
                session.close(CloseReason::Unproven);
            }
        }
    }

    /// From now on new sessions are refused; open sessions stay.
    pub fn stop_admitting(&self) {
        self.registry.lock().intake = Intake::Refused;
    }

    /// Closes every session, and refuses new ones from now on.
    pub fn close_all(&self, reason: CloseReason) {
        let sessions: Vec<_> = {
            let mut registry = self.registry.lock();
            registry.intake = Intake::Closing(reason);
            registry.sessions.values().cloned().collect()
        };
        for session in sessions {
            session.close(reason);
        }
    }

    /// Opens a session, which polls unless it has a `socket`.
    fn open(
        self: &Arc<Self>,
        handshake: &Handshake<'_>,
        socket: Option<Socket>,
        permit: SessionPermit,
    ) -> Arc<Session<H>> {
        let state = self.handler.open(handshake);
        let session = Arc::new(Session::new(Arc::clone(self), state, socket, permit));
        let intake = {
            let mut registry = self.registry.lock();
            registry.sessions.insert(session.engine_sid(), Arc::clone(&session));
            registry.wheel.schedule(session.engine_sid(), self.now() + self.intervals.ping);
            registry.intake
        };
        if let Intake::Closing(reason) = intake {
            session.close(reason);
        }
        // It may have had to make room before it was in the registry.
        if session.permit.is_revoked() {
            session.close(CloseReason::Unproven);
        }
        session
    }

    /// The packet that opens a session; `upgrades` says whether the client may move to a WebSocket.
    fn open_packet(&self, sid: Sid, upgrades: bool) -> Packet {
        Packet::Open(OpenPacket {
            sid,
            upgrades: upgrades.then_some(TransportType::Websocket).into_iter().collect(),
            ping_interval: self.options.ping_interval,
            ping_timeout: self.options.ping_timeout,
            max_payload: self.options.max_payload as u64,
        })
    }

    fn session(&self, sid: Sid) -> Option<Arc<Session<H>>> {
        self.registry.lock().sessions.get(&sid).cloned()
    }

    fn receive(&self, session: &Arc<Session<H>>, packet: Packet) -> Result<(), CloseReason> {
        let message = match packet {
            Packet::Message(text) => Message::Text(text),
            Packet::Binary(data) => Message::Binary(data),
            Packet::Pong => {
                session.pong();
                return Ok(());
            }
            Packet::Close => return Err(CloseReason::ClientClose),
            _ => return Err(CloseReason::ParseError),
        };
        self.handler.message(session, message).map_err(|Malformed| CloseReason::ParseError)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX / 4)
}

/// Resolution of the heartbeat: a twentieth of the shorter interval, 5 to 100 ms.
fn tick(intervals: Intervals) -> u64 {
    (intervals.ping.min(intervals.timeout) / 20).clamp(5, 100)
}

#[cfg(test)]
mod tests {
    use super::{census::Origin, *};

    pub(super) struct Deaf;

    impl Handler for Deaf {
        type State = ();

        fn open(&self, _: &Handshake<'_>) {}

        fn message(&self, _: &Arc<Session<Self>>, _: Message) -> Result<(), Malformed> {
            Ok(())
        }

        fn closed(&self, _: &Arc<Session<Self>>, _: CloseReason) {}
    }

    /// An engine with sessions that poll.
    pub(super) struct Crowd {
        pub(super) engine: Arc<Engine<Deaf>>,
        pub(super) sessions: Vec<Arc<Session<Deaf>>>,
    }

    impl Crowd {
        pub(super) fn of(sessions: usize) -> Self {
            let engine = Engine::new(Deaf, Options::default(), Tasks::current(), Metrics::default());
            let mut crowd = Self { engine, sessions: Vec::new() };
            crowd.sessions = (0..sessions).map(|_| crowd.open()).collect();
            crowd
        }

        pub(super) fn open(&self) -> Arc<Session<Deaf>> {
            let permit = self.engine.census.admit(Origin::default(), self.engine.now()).unwrap().0;
            self.engine.open(&Handshake { query: "", headers: &HeaderMap::new() }, None, permit)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_drained_when_nothing_waits_for_any_client() {
        const DEADLINE: Duration = Duration::from_secs(5);
        let Crowd { engine, sessions } = Crowd::of(2);
        let [first, second] = &sessions[..] else { panic!("two sessions") };
        assert!(engine.drained(DEADLINE).await);
        for session in [first, second] {
            session.send(&[&Frame::message(&[b"x"])]);
        }
        let start = Instant::now();
        assert!(!engine.drained(DEADLINE).await);
        assert_eq!(start.elapsed(), DEADLINE);
        let later = async {
            sleep(Duration::from_secs(1)).await;
            first.poll();
            second.close(CloseReason::Forced);
        };
        assert!(tokio::join!(engine.drained(DEADLINE), later).0);
        assert!(start.elapsed() < DEADLINE + Duration::from_secs(2));
    }
}
