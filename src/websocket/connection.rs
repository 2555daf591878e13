//! An open WebSocket: many senders that never wait, one task that reads.
//!
//! A send writes straight to the socket; what the socket does not take waits in the outbox, and a task sends it as the
//! socket takes more. All changes happen under one short lock.

use std::{
    cell::RefCell,
    io::{self, ErrorKind},
    net::Shutdown,
    ops::ControlFlow,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use socket2::SockRef;
use tokio::{
    io::Interest,
    task::yield_now,
    time::{Instant, timeout, timeout_at},
};

use super::{
    Socket,
    budget::Budget,
    decoder::{Decoder, Received, Violation},
    frame::Frame,
    outbox::Outbox,
};
use crate::lifecycle::Tasks;

/// Bytes read at a time.
const SCRATCH: usize = 16 * 1024;

/// Bytes that wait for a peer that is behind. A burst of less is sent in the kernel's own, larger steps.
const BEHIND: usize = 1 << 20;

/// Unsent bytes that the kernel takes for a peer that is behind; it takes more when half of them are gone. Without a
/// limit it takes megabytes: a ping would wait behind all of them, and meanwhile nothing shows that the peer reads.
const UNSENT: u32 = 32 * 1024;

/// How long a closed connection is read on, so that the peer gets the close frame and not a reset.
const LINGER: Duration = Duration::from_secs(2);

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into_boxed_slice());
}

/// What the connections of a server share.
#[derive(Debug)]
pub struct Shared {
    /// For the tasks that send what waits.
    pub tasks: Tasks,
    /// Bounds the unfinished messages of all connections.
    pub budget: Budget,
    /// Most bytes that may wait for one peer.
    pub outbox_bytes: usize,
}

/// What a peer may send at the moment.
#[derive(Clone, Copy, Debug)]
pub struct Allowance {
    /// Most bytes of a message.
    pub max: usize,
    /// How long a message may take from its first byte to its last.
    pub patience: Duration,
}

/// Why frames cannot be sent. The connection should be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum SendError {
    #[error("the socket has failed")]
    Failed,
    #[error("the peer does not read fast enough")]
    Slow,
}

/// Why there is nothing more to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum Disconnect {
    /// The peer sent a close frame, with this code if it gave one.
    #[error("the peer has closed the connection")]
    Closed(Option<u16>),
    #[error("the peer's side has ended without a close frame")]
    Lost,
    #[error("the socket has failed")]
    Failed,
    #[error("a message was not finished in time")]
    Late,
    #[error(transparent)]
    Violated(#[from] Violation),
}

impl Disconnect {
    /// The code to close with (RFC 6455, section 7.4.1); a peer that closes gets its own code back.
    pub fn code(self) -> Option<u16> {
        match self {
            Self::Closed(code) => code,
            Self::Late => Some(1008),
            Self::Violated(violation) => Some(violation.code()),
            Self::Lost | Self::Failed => None,
        }
    }
}

/// An open WebSocket.
#[derive(Debug)]
pub struct Connection<S> {
    socket: S,
    shared: Arc<Shared>,
    /// `None` once the connection is closed.
    out: Mutex<Option<Out>>,
}

/// The sending side of an open connection.
#[derive(Debug, Default)]
struct Out {
    outbox: Outbox,
    /// A task waits for the socket to take more.
    is_flushing: bool,
    /// The user timeout to restore, zero for none, while the socket is narrow.
    narrow: Option<Duration>,
    /// Bytes that waited and were taken since they were asked for.
    taken: usize,
}

impl Out {
    /// Lets the kernel take little of what is sent, as the peer is behind, and leaves it to the heartbeat to tell when the
    /// peer is dead: Linux counts TCP's user timeout from when the peer's window was full for the first time, and does not
    /// see that a peer with a small window reads steadily. Where the system refuses these options, pings come later.
    fn narrow(&mut self, socket: &impl Socket) {
        self.narrow.get_or_insert_with(|| {
            let socket = SockRef::from(socket);
            let user_timeout = socket.tcp_user_timeout().ok().flatten();
            let _ = socket.set_tcp_notsent_lowat(UNSENT);
            let _ = socket.set_tcp_user_timeout(None);
            user_timeout.unwrap_or_default()
        });
    }

    /// Lets the kernel take as much as it likes again.
    fn widen(&mut self, socket: &impl Socket) {
        if let Some(user_timeout) = self.narrow.take() {
            let socket = SockRef::from(socket);
            let _ = socket.set_tcp_notsent_lowat(0);
            let _ = socket.set_tcp_user_timeout(Some(user_timeout));
        }
    }
}

impl<S: Socket> Connection<S> {
    /// A connection on a socket. The handshake has been read; its response may be the first that is sent.
    pub fn new(socket: S, shared: &Arc<Shared>) -> Arc<Self> {
        Arc::new(Self { socket, shared: Arc::clone(shared), out: Mutex::new(Some(Out::default())) })
    }

    /// Sends frames in order: at once as far as the socket takes them, the rest as soon as it does. Never blocks. The
    /// first `replayed` frames do not count against the bound of what may wait; when some of an earlier replay still
    /// wait, they do. A closed connection drops frames. After an error some may have arrived.
    pub fn send(self: &Arc<Self>, frames: &[&Frame], replayed: usize) -> Result<(), SendError> {
        self.write(|out| {
            if replayed > 0 {
                out.narrow(&self.socket);
            }
            out.outbox.send(&self.socket, frames, replayed)
        })
    }

    /// Sends a control frame before everything that is not begun, in place of a waiting one of its kind.
    pub fn send_first(self: &Arc<Self>, control: &Frame) -> Result<(), SendError> {
        self.write(|out| {
            let is_idle = out.outbox.is_empty();
            out.outbox.put_first(control);
            if is_idle { out.outbox.flush(&self.socket).map(|_| ()) } else { Ok(()) }
        })
    }

    /// Sends what waits in an outbox, which replaces the connection's own: nothing may have been left waiting there.
    pub fn adopt(self: &Arc<Self>, outbox: Outbox) -> Result<(), SendError> {
        self.write(|out| {
            out.outbox = outbox;
            out.outbox.flush(&self.socket).map(|_| ())
        })
    }

    fn write(self: &Arc<Self>, put: impl FnOnce(&mut Out) -> io::Result<()>) -> Result<(), SendError> {
        let mut lock = self.out.lock();
        let Some(out) = &mut *lock else { return Ok(()) };
        put(out).map_err(|_| SendError::Failed)?;
        if out.outbox.is_empty() {
            out.widen(&self.socket);
            return Ok(());
        }
        if !std::mem::replace(&mut out.is_flushing, true) {
            self.shared.tasks.spawn(Arc::clone(self).flush());
        }
        if out.outbox.exceeds(self.shared.outbox_bytes) { Err(SendError::Slow) } else { Ok(()) }
    }

    /// Sends what waits as the socket takes it.
    async fn flush(self: Arc<Self>) {
        loop {
            let is_ready = self.socket.ready(Interest::WRITABLE).await;
            let mut lock = self.out.lock();
            let Some(out) = &mut *lock else { return };
            let Ok(taken) = is_ready.and_then(|_| out.outbox.flush(&self.socket)) else {
                // The task that reads finds out.
                return self.shutdown(Shutdown::Both);
            };
            if out.outbox.is_empty() {
                // However little it was, it was everything.
                out.taken = usize::MAX;
                out.is_flushing = false;
                return out.widen(&self.socket);
            }
            out.taken = out.taken.saturating_add(taken);
            if out.outbox.exceeds(BEHIND) {
                out.narrow(&self.socket);
            }
        }
    }

    /// Whether nothing waits to be sent.
    pub fn is_idle(&self) -> bool {
        self.out.lock().as_ref().is_none_or(|out| out.outbox.is_empty())
    }

    /// How many bytes that waited the peer has taken since the last call; the maximum when it took them all.
    pub fn take_progress(&self) -> usize {
        self.out.lock().as_mut().map_or(0, |out| std::mem::take(&mut out.taken))
    }

    /// Closes the connection, with a close frame unless another frame is half sent. What waits is dropped. Does nothing
    /// when the connection is closed already. The task that reads closes for writing only, and [lingers](Self::linger).
    pub fn close(&self, code: Option<u16>, how: Shutdown) {
        let Some(mut out) = self.out.lock().take() else { return };
        out.widen(&self.socket);
        if out.outbox.is_at_boundary() {
            let _ = self.socket.try_write(Frame::close(code).wire());
        }
        self.shutdown(how);
    }

    /// Reads until `on` breaks, and answers pings. `on` gets messages and pongs.
    pub async fn read<B>(
        self: &Arc<Self>,
        decoder: &mut Decoder,
        allowance: impl Fn() -> Allowance,
        mut on: impl FnMut(Received<'_>) -> ControlFlow<B>,
    ) -> Result<B, Disconnect> {
        // The first round, without input, handles what the decoder has left.
        let mut is_first = true;
        loop {
            let (flow, is_full) = self.round(decoder, allowance().max, is_first, &mut on)?;
            if let ControlFlow::Break(value) = flow {
                return value;
            }
            if is_full {
                // There is more, and it may be thousands of tiny frames: others first.
                yield_now().await;
            }
            is_first = false;
            match decoder.deadline(|| Instant::now() + allowance().patience) {
                None => self.socket.ready(Interest::READABLE).await,
                // Boxed, or the task of a connection that has nothing unfinished has room for it.
                Some(deadline) => Box::pin(timeout_at(deadline, self.socket.ready(Interest::READABLE)))
                    .await
                    .map_err(|_| Disconnect::Late)?,
            }
            .map_err(|_| Disconnect::Failed)?;
        }
    }

    /// Reads once; returns whether there is more to read. Not async, or the task of each connection has room for its
    /// variables.
    fn round<B>(
        self: &Arc<Self>,
        decoder: &mut Decoder,
        max: usize,
        is_first: bool,
        on: &mut impl FnMut(Received<'_>) -> ControlFlow<B>,
    ) -> Result<(ControlFlow<Result<B, Disconnect>>, bool), Disconnect> {
        let mut pongs = Vec::new();
        let on = |received: Received<'_>| {
            if let Received::Ping(data) = received {
                pongs.extend_from_slice(Frame::pong(data).wire());
                return ControlFlow::Continue(());
            }
            self.answer(&mut pongs);
            match received {
                Received::Close(code) => ControlFlow::Break(Err(Disconnect::Closed(code))),
                received => on(received).map_break(Ok),
            }
        };
        let read = BUFFER.with_borrow_mut(|buffer| {
            let length = if is_first { 0 } else { self.try_read(buffer)? };
            let flow = decoder.feed(&mut buffer[..length], max, &self.shared.budget, on)?;
            Ok((flow, length == buffer.len()))
        });
        self.answer(&mut pongs);
        read
    }

    /// Sends the pongs for the pings that came one after the other in one read, with one call: they are fewer bytes than
    /// the pings. When the socket does not take them, those for later pings replace them (RFC 6455, section 5.5.3).
    fn answer(self: &Arc<Self>, pongs: &mut Vec<u8>) {
        if !pongs.is_empty() {
            // When the socket has failed, the next read says so.
            let _ = self.send_first(&Frame::verbatim(std::mem::take(pongs)));
        }
    }

    /// Zero when nothing is there.
    fn try_read(&self, buffer: &mut [u8]) -> Result<usize, Disconnect> {
        match self.socket.try_read(buffer) {
            Ok(0) => Err(Disconnect::Lost),
            Ok(length) => Ok(length),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
            Err(_) => Err(Disconnect::Failed),
        }
    }

    /// Reads on for a moment after the close and drops what comes: the kernel would answer unread bytes with a reset,
    /// and the peer might never see the close frame.
    pub async fn linger(&self) {
        let read_on = async {
            while self.socket.ready(Interest::READABLE).await.is_ok()
                && BUFFER.with_borrow_mut(|buffer| self.try_read(buffer)).is_ok()
            {
                yield_now().await;
            }
        };
        let _ = timeout(LINGER, read_on).await;
    }

    fn shutdown(&self, how: Shutdown) {
        let _ = SockRef::from(&self.socket).shutdown(how);
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    #[tokio::test]
    async fn a_socket_is_narrow_and_then_as_before() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (socket, mut out) = (SockRef::from(&stream), Out::default());
        let options = || (socket.tcp_notsent_lowat().unwrap(), socket.tcp_user_timeout().unwrap());
        for user_timeout in [None, Some(Duration::from_mins(1))] {
            socket.set_tcp_user_timeout(user_timeout).unwrap();
            out.narrow(&stream);
            assert_eq!(options(), (UNSENT, None));
            out.widen(&stream);
            assert_eq!(options(), (0, user_timeout));
        }
    }
}
