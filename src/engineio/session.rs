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

use bytes::Bytes;
use engineioxide_core::{Packet, Sid};
use socket2::SockRef;
use tokio::{net::TcpStream, sync::oneshot};

use super::{
    CloseReason, Engine, Frame, Handler,
    census::Seat,
    heartbeat::{Beat, Heartbeat, PROGRESS},
    narrow::Narrow,
    outbox::Outbox,
};

/// Bytes that wait for a client that is behind. A burst of less is sent in the kernel's own, larger steps.
const BEHIND: usize = 1 << 20;

/// Bytes that may wait for a client that has proven nothing: answers to its own packets, as it is in no room.
const UNPROVEN_OUTBOX: usize = 16 << 10;

/// How a client is reached.
enum Transport {
    Polling(Polling),
    WebSocket(Arc<TcpStream>),
    Closed,
}

#[derive(Default)]
struct Polling {
    /// The pending GET, if there is one.
    waiting: Option<oneshot::Sender<Vec<Bytes>>>,
    /// The answer to the last GET has not been given to the HTTP server in full.
    answering: bool,
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
    narrow: Narrow,
}

/// Answer to a GET of a polling client.
pub(super) enum Poll {
    /// Packets.
    Now(Vec<Bytes>),
    Later(oneshot::Receiver<Vec<Bytes>>),
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
            narrow: Narrow::default(),
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

    /// Sends a frame unless others wait: one that is of no use late.
    pub fn send_if_idle(self: &Arc<Self>, frame: &Frame) {
        if self.lock().outbox.is_empty() {
            self.send(&[frame]);
        }
    }

    /// Sends a control frame before all that is not begun yet.
    pub(super) fn send_first(self: &Arc<Self>, control: &Frame) {
        self.write(|inner| inner.send_first(control));
    }

    /// As [`Session::send`], but the first `excused` frames, which are replayed, do not count against the bound. When
    /// some of an earlier replay still wait, they do.
    pub fn send_excused(self: &Arc<Self>, frames: &[&Frame], excused: usize) {
        self.write(|inner| inner.send(frames, excused));
    }

    fn write(self: &Arc<Self>, put: impl FnOnce(&mut Inner) -> io::Result<()>) {
        let mut inner = self.lock();
        let sent = put(&mut inner);
        let limit = self.engine.options.outbox_bytes;
        let limit = if self.is_proven() { limit } else { limit.min(UNPROVEN_OUTBOX) };
        let slow = inner.outbox.exceeds(limit);
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
            let Inner { transport: Transport::WebSocket(_), outbox, heartbeat, flushing, narrow } = &mut *inner else {
                return;
            };
            match ready.and_then(|()| outbox.flush(stream)) {
                Ok(taken) if !outbox.is_empty() => {
                    heartbeat.progress(taken);
                    if outbox.exceeds(BEHIND) {
                        narrow.set(stream, true);
                    }
                }
                Ok(_) => {
                    // However little it was, it was all.
                    heartbeat.progress(PROGRESS);
                    *flushing = false;
                    narrow.set(stream, false);
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
        let mut narrow = inner.narrow;
        drop(inner);
        match transport {
            Transport::Closed => return,
            Transport::Polling(polling) => {
                let packet = if reason == CloseReason::ClientClose { Packet::Noop } else { Packet::Close };
                if let Some(waiting) = polling.waiting {
                    let _ = waiting.send(vec![String::from(packet).into()]);
                }
            }
            Transport::WebSocket(stream) => {
                narrow.set(&stream, false);
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
                self.send_first(&self.engine.ping);
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

    /// Bytes that waited for the client have left.
    pub(super) fn progress(&self, bytes: usize) {
        self.lock().heartbeat.progress(bytes);
    }

    /// Whether nothing waits to be sent.
    pub(super) fn is_drained(&self) -> bool {
        self.lock().outbox.is_empty()
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
        // A client that asks again and again without reading would draw everything out of the bound of the outbox.
        if std::mem::replace(&mut polling.answering, true) {
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

    /// The answer to the last GET has been given to the HTTP server.
    pub(super) fn answered(&self) {
        if let Transport::Polling(polling) = &mut self.lock().transport {
            polling.answering = false;
        }
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
        self.seat.leave_connection();
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
    fn send(&mut self, frames: &[&Frame], replayed: usize) -> io::Result<()> {
        match &mut self.transport {
            Transport::WebSocket(stream) => {
                if replayed > 0 {
                    self.narrow.set(stream, true);
                }
                self.outbox.send(stream, frames, replayed)?;
                if self.outbox.is_empty() {
                    self.narrow.set(stream, false);
                }
            }
            Transport::Polling(_) => {
                self.outbox.extend(frames, replayed);
                self.answer();
            }
            Transport::Closed => {}
        }
        Ok(())
    }

    fn send_first(&mut self, control: &Frame) -> io::Result<()> {
        match &mut self.transport {
            Transport::WebSocket(stream) => self.outbox.send_first(stream, control)?,
            Transport::Polling(_) => {
                self.outbox.put_first(control);
                self.answer();
            }
            Transport::Closed => {}
        }
        Ok(())
    }

    /// Gives what waits to the GET that waits.
    fn answer(&mut self) {
        let Transport::Polling(polling) = &mut self.transport else { return };
        if let Some(waiting) = polling.waiting.take() {
            let _ = waiting.send(self.outbox.take_payload());
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

fn noop() -> Vec<Bytes> {
    vec![String::from(Packet::Noop).into()]
}
