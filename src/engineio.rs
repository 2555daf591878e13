//! Engine.IO 4: a message stream per client over HTTP long-polling or WebSocket, with a heartbeat.
//!
//! Answers for transports: handshake, polling, WebSocket, the upgrade from one to the other, limits and timeouts,
//! and for sending one prepared [`Frame`] to many clients without waiting for any. Knows nothing of Loomio or
//! Socket.IO: what messages mean is up to a [`Handler`].
//!
//! Source of the protocol: `docs/engine.io-protocol/v4-current.md` in the public repository `socketio/socket.io`.

mod budget;
mod census;
mod compress;
mod decoder;
mod delivery;
mod frame;
mod gzip;
mod heartbeat;
mod http;
mod narrow;
mod options;
mod outbox;
mod polling;
mod post;
mod session;
mod websocket;

use std::{
    collections::HashMap,
    convert::Infallible,
    ops::ControlFlow,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use ::http::HeaderMap;
use engineioxide_core::{OpenPacket, Packet, Sid, Str, TransportType};
use futures_util::FutureExt;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use self::{
    budget::Budget,
    census::{Census, Seat},
    compress::Compressor,
    heartbeat::{Intervals, Wheel},
    session::Session as Client,
};
pub use self::{
    frame::Frame,
    http::Cors,
    options::{Options, Unproven},
    session::Session,
};
use crate::{
    lifecycle::Tasks,
    metrics::{Counter, Metrics},
};

/// How often it is looked whether all is sent.
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
    /// The session did not prove itself in time, or had to make room.
    Unproven,
    /// The handler ended it.
    Forced,
    /// The server stops.
    Shutdown,
}

impl CloseReason {
    /// Close code of the WebSocket (RFC 6455, section 7.4.1); Node closes without one.
    fn code(self) -> Option<u16> {
        match self {
            Self::Violation(code) => Some(code),
            Self::Shutdown => Some(1001),
            Self::Slow | Self::Exhausted => Some(1013),
            Self::Late => Some(1008),
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

/// What is built on the engine. Calls for one client never overlap, except that `closed` may come at any time.
/// None may block.
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

struct Sessions<H: Handler> {
    by_sid: HashMap<Sid, Arc<Client<H>>>,
    /// Set when all are closed: whoever still opens one is closed as well.
    closing: Option<CloseReason>,
    /// Unset when the server is about to stop.
    admitting: bool,
}

/// All sessions, and the way to them over HTTP: [`Engine::handle`].
pub struct Engine<H: Handler> {
    handler: H,
    options: Options,
    intervals: Intervals,
    ping: Frame,
    compressor: Compressor,
    tasks: Tasks,
    metrics: Metrics,
    started: Instant,
    sessions: Mutex<Sessions<H>>,
    census: Arc<Census<Client<H>>>,
    budget: Budget,
    wheel: Mutex<Wheel<Sid>>,
}

impl<H: Handler> Engine<H> {
    /// An engine without sessions. Needs [`Engine::run`] for its heartbeat.
    pub fn new(handler: H, options: Options, tasks: Tasks, metrics: Metrics) -> Arc<Self> {
        let intervals =
            Intervals { ping: milliseconds(options.ping_interval), timeout: milliseconds(options.ping_timeout) };
        Arc::new(Self {
            handler,
            intervals,
            ping: Frame::packet(Packet::Ping),
            compressor: Compressor::new(tasks.clone(), metrics.clone()),
            tasks,
            metrics,
            started: Instant::now(),
            sessions: Mutex::new(Sessions { by_sid: HashMap::new(), closing: None, admitting: true }),
            census: Census::new(options.bounds()),
            budget: Budget::new(),
            wheel: Mutex::new(Wheel::new(tick(intervals))),
            options,
        })
    }

    /// The handler.
    pub fn handler(&self) -> &H {
        &self.handler
    }

    /// Sessions at the moment.
    pub fn sessions(&self) -> usize {
        self.lock().by_sid.len()
    }

    /// Waits until nothing waits to be sent to any client, at most until the deadline; returns whether that is so. What
    /// waits for a client that polls is sent when a request has taken it.
    pub async fn drained(&self, deadline: Duration) -> bool {
        let drained = async {
            while !self.lock().by_sid.values().all(|session| session.is_drained()) {
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
            let due = self.wheel.lock().unwrap_or_else(PoisonError::into_inner).due(now);
            for sid in due {
                let session = self.lock().by_sid.get(&sid).cloned();
                if let Some(next) = session.and_then(|session| session.beat(now)) {
                    self.wheel.lock().unwrap_or_else(PoisonError::into_inner).schedule(sid, next);
                }
            }
            for session in self.census.overdue(now) {
                self.close_unproven(&session);
            }
        }
    }

    /// From now on new sessions are refused; those there are stay.
    pub fn stop_admitting(&self) {
        self.lock().admitting = false;
    }

    /// Closes every session, and from now on every new one as soon as it opens.
    pub fn close_all(&self, reason: CloseReason) {
        let sessions: Vec<_> = {
            let mut sessions = self.lock();
            sessions.closing = Some(reason);
            sessions.by_sid.values().cloned().collect()
        };
        for session in sessions {
            session.close(reason);
        }
    }

    fn open(
        self: &Arc<Self>,
        handshake: &Handshake<'_>,
        stream: Option<Arc<tokio::net::TcpStream>>,
        seat: Seat<Client<H>>,
    ) -> Arc<Client<H>> {
        let state = self.handler.open(handshake);
        let session = Arc::new(Client::new(Arc::clone(self), state, stream, seat));
        let closing = {
            let mut sessions = self.lock();
            sessions.by_sid.insert(session.sid(), Arc::clone(&session));
            sessions.closing
        };
        if let Some(reason) = closing {
            session.close(reason);
        }
        let weak = Arc::downgrade(&session);
        if !session.seat().attach(Weak::clone(&weak)) {
            self.close_unproven(&weak);
        }
        let due = self.now() + self.intervals.ping;
        self.wheel.lock().unwrap_or_else(PoisonError::into_inner).schedule(session.sid(), due);
        session
    }

    /// Closes a session that has to go; one that is about to begin finds out by itself.
    fn close_unproven(&self, session: &Weak<Client<H>>) {
        if let Some(session) = session.upgrade() {
            self.metrics.count(Counter::UnprovenClosed);
            session.close(CloseReason::Unproven);
        }
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

    /// The session, unless its heartbeat says that it is over.
    fn session(&self, sid: &str) -> Option<Arc<Client<H>>> {
        let session = self.lock().by_sid.get(&sid.parse::<Sid>().ok()?).cloned()?;
        session.beat(self.now()).map(|_| session)
    }

    fn remove(&self, sid: Sid) {
        self.lock().by_sid.remove(&sid);
    }

    fn receive(&self, session: &Arc<Client<H>>, packet: Packet) -> Result<(), CloseReason> {
        match packet {
            Packet::Message(text) => self.message(session, Message::Text(text)),
            Packet::Binary(data) => self.message(session, Message::Binary(data)),
            Packet::Pong => {
                session.pong();
                Ok(())
            }
            Packet::Close => Err(CloseReason::ClientClose),
            _ => Err(CloseReason::ParseError),
        }
    }

    fn message(&self, session: &Arc<Client<H>>, message: Message) -> Result<(), CloseReason> {
        self.handler.message(session, message).map_err(|Malformed| CloseReason::ParseError)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, Sessions<H>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX / 4)
}

/// Resolution of the heartbeat: a twentieth of the shorter interval, 5 to 100 ms.
fn tick(intervals: Intervals) -> u64 {
    (intervals.ping.min(intervals.timeout) / 20).clamp(5, 100)
}

/// What becomes of WebSocket frames that arrive in pieces of `step` bytes: events, and the code of a violation.
#[doc(hidden)]
pub fn fuzz_frames(data: &[u8], step: usize, max: usize) -> (Vec<String>, Option<u16>) {
    let (mut decoder, mut events) = (decoder::Decoder::default(), Vec::new());
    let bounds = decoder::Bounds { max, budget: &Budget::new() };
    for piece in data.chunks(step) {
        let fed = decoder.feed(&mut piece.to_vec(), bounds, |event| {
            events.push(format!("{event:?}"));
            ControlFlow::<()>::Continue(())
        });
        if let Err(violation) = fed {
            return (events, Some(violation.code()));
        }
    }
    (events, None)
}

/// The packets of a POST whose body arrives in pieces of `step` bytes, if it can be read.
#[doc(hidden)]
pub fn fuzz_payload(data: &[u8], step: usize, max: usize) -> Option<Vec<String>> {
    let pieces: Vec<_> = data.chunks(step).map(|piece| Ok::<_, Infallible>(piece.to_vec())).collect();
    let body = axum::body::Body::from_stream(futures_util::stream::iter(pieces));
    let packets = post::packets(body, max, &Budget::new()).now_or_never()?.ok()?;
    Some(packets.into_iter().map(|packet| format!("{packet:?}")).collect())
}

#[cfg(test)]
mod tests {
    use super::{census::Origin, *};

    struct Deaf;

    impl Handler for Deaf {
        type State = ();

        fn open(&self, _: &Handshake<'_>) {}

        fn message(&self, _: &Arc<Session<Self>>, _: Message) -> Result<(), Malformed> {
            Ok(())
        }

        fn closed(&self, _: &Arc<Session<Self>>, _: CloseReason) {}
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_drained_when_nothing_waits_for_any_client() {
        const DEADLINE: Duration = Duration::from_secs(5);
        let engine = Engine::new(Deaf, Options::default(), Tasks::current(), Metrics::new());
        let handshake = Handshake { query: "", headers: &HeaderMap::new() };
        let seat = || engine.census.admit(Origin::default(), engine.now()).unwrap_or_else(|_| panic!("no seat")).0;
        let [first, second] = [(); 2].map(|()| engine.open(&handshake, None, seat()));
        assert!(engine.drained(DEADLINE).await);
        for session in [&first, &second] {
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
