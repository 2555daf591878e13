//! One client: its transport, its outbox, its heartbeat.
//!
//! All changes happen under one short lock, and nothing is awaited or called back while it is held.

use std::{
    hint::black_box,
    io,
    net::Shutdown,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use engineioxide_core::{Packet, Sid};
use socket2::SockRef;
use tokio::{net::TcpStream, sync::oneshot};

use super::{
    CloseReason, Engine, Frame, Handler,
    census::Seat,
    heartbeat::{Beat, Heartbeat},
    outbox::Outbox,
};

/// How a client is reached.
enum Transport {
    Polling(Polling),
    WebSocket(Arc<TcpStream>),
    Closed,
}

#[derive(Default)]
struct Polling {
    /// The pending GET, if there is one.
    waiting: Option<oneshot::Sender<Vec<u8>>>,
    /// A POST is being read.
    posting: bool,
    /// A WebSocket has sent its probe.
    probed: bool,
}

struct Inner {
    transport: Transport,
    outbox: Outbox,
    heartbeat: Heartbeat,
    /// A task waits for the socket to take more.
    flushing: bool,
}

/// Answer to a GET of a polling client.
pub(super) enum Poll {
    Now(Vec<u8>),
    Later(oneshot::Receiver<Vec<u8>>),
    /// Not a polling session (any more).
    Refused,
}

/// A connected client. [`Handler::State`] is the handler's own part.
pub struct Session<H: Handler> {
    sid: Sid,
    engine: Arc<Engine<H>>,
    state: H::State,
    /// The socket it began with, for [`Session::prefetch`].
    stream: Weak<TcpStream>,
    inner: Mutex<Inner>,
    seat: Seat<Self>,
    proven: AtomicBool,
}

impl<H: Handler> Session<H> {
    pub(super) fn new(
        engine: Arc<Engine<H>>,
        state: H::State,
        stream: Option<Arc<TcpStream>>,
        seat: Seat<Self>,
    ) -> Self {
        let weak = stream.as_ref().map(Arc::downgrade).unwrap_or_default();
        let inner = Inner {
            transport: stream.map_or_else(|| Transport::Polling(Polling::default()), Transport::WebSocket),
            outbox: Outbox::default(),
            heartbeat: Heartbeat::new(engine.now(), engine.intervals),
            flushing: false,
        };
        let proven = AtomicBool::new(engine.options.unproven.is_none());
        Self { sid: Sid::new(), engine, state, stream: weak, inner: Mutex::new(inner), seat, proven }
    }

    /// The Engine.IO session id.
    pub fn sid(&self) -> Sid {
        self.sid
    }

    /// What the handler keeps for this client.
    pub fn state(&self) -> &H::State {
        &self.state
    }

    /// Vouches for the client: it has shown what the handler asks of a client. From now on the bounds for those that
    /// have not no longer hold for it. Must be called before anything is sent that lets the client use that.
    pub fn prove(&self) {
        if !self.proven.swap(true, Ordering::Relaxed) {
            self.seat.prove();
        }
    }

    pub(super) fn is_proven(&self) -> bool {
        self.proven.load(Ordering::Relaxed)
    }

    pub(super) fn seat(&self) -> &Seat<Self> {
        &self.seat
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

    /// Fetches the memory that [`Session::send`] needs: a read of any field brings what lies around it.
    pub fn prefetch(&self) {
        black_box((self.inner.is_poisoned(), self.stream.strong_count()));
    }

    /// Sends a frame unless others wait: an answer that nobody needs late.
    pub(super) fn send_if_idle(self: &Arc<Self>, frame: &Frame) {
        if self.lock().outbox.is_empty() {
            self.send(&[frame]);
        }
    }

    /// As [`Session::send`], but the first `excused` frames do not count against the bound, if none wait already that do
    /// not.
    pub fn send_excused(self: &Arc<Self>, frames: &[&Frame], excused: usize) {
        let mut inner = self.lock();
        inner.outbox.excuse(&frames[..excused.min(frames.len())]);
        let sent = inner.send(frames);
        let slow = inner.outbox.exceeds(self.engine.options.outbox_bytes);
        let blocked = inner.blocked();
        drop(inner);
        match sent {
            Err(_) => self.close(CloseReason::TransportError),
            Ok(()) if slow => self.close(CloseReason::Slow),
            Ok(()) => {}
        }
        if let Some(stream) = blocked {
            let session = Arc::clone(self);
            self.engine.tasks.spawn(async move { session.flush(&stream).await });
        }
    }

    /// Sends the rest as the socket takes it.
    async fn flush(self: &Arc<Self>, stream: &TcpStream) {
        loop {
            let ready = stream.writable().await;
            let mut inner = self.lock();
            let Inner { transport: Transport::WebSocket(_), outbox, flushing, .. } = &mut *inner else { return };
            match ready.and_then(|()| outbox.flush(stream)) {
                Ok(false) => {}
                Ok(true) => {
                    *flushing = false;
                    return;
                }
                Err(_) => {
                    drop(inner);
                    return self.close(CloseReason::TransportError);
                }
            }
        }
    }

    /// Closes the transport, so that the client notices and may come back. Does nothing when it is closed already.
    pub fn close(self: &Arc<Self>, reason: CloseReason) {
        self.close_with(reason, Shutdown::Both);
    }

    /// As [`Session::close`], for the task that reads the socket: it may still read what the client sends meanwhile.
    pub(super) fn close_from_reader(self: &Arc<Self>, reason: CloseReason) {
        self.close_with(reason, Shutdown::Write);
    }

    fn close_with(self: &Arc<Self>, reason: CloseReason, how: Shutdown) {
        let mut inner = self.lock();
        let transport = std::mem::replace(&mut inner.transport, Transport::Closed);
        let outbox = std::mem::take(&mut inner.outbox);
        drop(inner);
        match transport {
            Transport::Closed => return,
            Transport::Polling(polling) => {
                let packet = if reason == CloseReason::ClientClose { Packet::Noop } else { Packet::Close };
                if let Some(waiting) = polling.waiting {
                    let _ = waiting.send(String::from(packet).into_bytes());
                }
            }
            Transport::WebSocket(stream) => {
                if outbox.at_boundary() {
                    let _ = stream.try_write(Frame::close(reason.code()).wire());
                }
                let _ = SockRef::from(&*stream).shutdown(how);
            }
        }
        self.engine.remove(self.sid);
        self.engine.handler.closed(self, reason);
    }

    /// Whether the session is over.
    pub fn is_closed(&self) -> bool {
        matches!(self.lock().transport, Transport::Closed)
    }

    /// Does what the heartbeat asks for; returns when to look again, `None` when the session is over.
    pub(super) fn beat(self: &Arc<Self>, now: u64) -> Option<u64> {
        let mut inner = self.lock();
        if matches!(inner.transport, Transport::Closed) {
            return None;
        }
        match inner.heartbeat.beat(now, self.engine.intervals) {
            Beat::Wait(due) => Some(due),
            Beat::Ping => {
                let due = inner.heartbeat.due();
                drop(inner);
                self.send(&[&self.engine.ping]);
                Some(due)
            }
            Beat::Dead => {
                drop(inner);
                self.close(CloseReason::PingTimeout);
                None
            }
        }
    }

    pub(super) fn pong(&self) {
        let now = self.engine.now();
        self.lock().heartbeat.pong(now, self.engine.intervals);
    }

    pub(super) fn is_polling(&self) -> bool {
        matches!(self.lock().transport, Transport::Polling(_))
    }

    /// Whether a GET waits.
    pub(super) fn is_polled(&self) -> bool {
        matches!(&self.lock().transport, Transport::Polling(Polling { waiting: Some(_), .. }))
    }

    /// A GET of the polling transport.
    pub(super) fn poll(self: &Arc<Self>) -> Poll {
        let mut inner = self.lock();
        let Inner { transport: Transport::Polling(polling), outbox, .. } = &mut *inner else { return Poll::Refused };
        if polling.waiting.is_some() {
            drop(inner);
            self.close(CloseReason::TransportError);
            return Poll::Refused;
        }
        if !outbox.is_empty() {
            return Poll::Now(outbox.take_payload());
        }
        if polling.probed {
            return Poll::Now(noop());
        }
        let (sender, receiver) = oneshot::channel();
        polling.waiting = Some(sender);
        Poll::Later(receiver)
    }

    /// A POST begins; `false` when there is one already or the transport is another.
    pub(super) fn begin_post(&self) -> bool {
        match &mut self.lock().transport {
            Transport::Polling(polling) => !std::mem::replace(&mut polling.posting, true),
            _ => false,
        }
    }

    pub(super) fn end_post(&self) {
        if let Transport::Polling(polling) = &mut self.lock().transport {
            polling.posting = false;
        }
    }

    /// Whether it polls, and no WebSocket has sent its probe.
    pub(super) fn may_upgrade(&self) -> bool {
        matches!(&self.lock().transport, Transport::Polling(Polling { probed: false, .. }))
    }

    /// A WebSocket sent its probe: the pending GET must end, so that the client can pause polling. `false` when the
    /// session cannot be upgraded (any more).
    pub(super) fn begin_upgrade(&self) -> bool {
        let Transport::Polling(polling) = &mut self.lock().transport else { return false };
        if let Some(waiting) = polling.waiting.take() {
            let _ = waiting.send(noop());
        }
        !std::mem::replace(&mut polling.probed, true)
    }

    /// The probe came to nothing; polling goes on.
    pub(super) fn abort_upgrade(&self) {
        if let Transport::Polling(polling) = &mut self.lock().transport {
            polling.probed = false;
        }
    }

    /// The client has moved to the WebSocket; what waits goes there.
    pub(super) fn finish_upgrade(self: &Arc<Self>, stream: &Arc<TcpStream>) -> bool {
        let mut inner = self.lock();
        let Transport::Polling(polling) = &mut inner.transport else { return false };
        if let Some(waiting) = polling.waiting.take() {
            let _ = waiting.send(noop());
        }
        inner.transport = Transport::WebSocket(Arc::clone(stream));
        let flushed = inner.outbox.flush(stream);
        let blocked = inner.blocked();
        drop(inner);
        if let Some(stream) = blocked {
            let session = Arc::clone(self);
            self.engine.tasks.spawn(async move { session.flush(&stream).await });
        }
        flushed.is_ok()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn send(&mut self, frames: &[&Frame]) -> io::Result<()> {
        match &mut self.transport {
            Transport::WebSocket(stream) => self.outbox.send(stream, frames),
            Transport::Polling(polling) => {
                self.outbox.extend(frames);
                if let Some(waiting) = polling.waiting.take() {
                    let _ = waiting.send(self.outbox.take_payload());
                }
                Ok(())
            }
            Transport::Closed => Ok(()),
        }
    }

    /// The socket, when frames wait for it and no task looks after them yet.
    fn blocked(&mut self) -> Option<Arc<TcpStream>> {
        match &self.transport {
            Transport::WebSocket(stream) if !self.outbox.is_empty() && !self.flushing => {
                self.flushing = true;
                Some(Arc::clone(stream))
            }
            _ => None,
        }
    }
}

fn noop() -> Vec<u8> {
    String::from(Packet::Noop).into_bytes()
}
