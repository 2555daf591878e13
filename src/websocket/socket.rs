//! What a connection needs of its socket: reads and writes that never wait, and the kernel's options for a slow peer.

use std::{
    future::Future,
    io::{self, IoSlice},
    os::fd::AsFd,
    time::Duration,
};

use socket2::SockRef;
use tokio::net::TcpStream;

/// Unsent bytes that the kernel takes for a peer that is behind; it takes more when half of them are gone. Without a
/// limit it takes megabytes: a ping would wait behind all of them, and meanwhile nothing shows that the peer reads.
const UNSENT: u32 = 32 * 1024;

/// No limit, the system's default.
const UNSENT_DEFAULT: u32 = 0;

/// A socket that one task reads and many threads write. All methods are those of tokio's sockets.
#[expect(missing_docs, reason = "tokio has them")]
#[expect(clippy::missing_errors_doc, reason = "tokio has them")]
pub trait Socket: AsFd + Send + Sync + 'static {
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize>;
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize>;
    fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize>;
    fn readable(&self) -> impl Future<Output = io::Result<()>> + Send;
    fn writable(&self) -> impl Future<Output = io::Result<()>> + Send;
}

impl Socket for TcpStream {
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.try_read(buffer)
    }

    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.try_write(bytes)
    }

    fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.try_write_vectored(slices)
    }

    fn readable(&self) -> impl Future<Output = io::Result<()>> + Send {
        self.readable()
    }

    fn writable(&self) -> impl Future<Output = io::Result<()>> + Send {
        self.writable()
    }
}

/// The kernel takes little of what is sent, as the peer is behind, and leaves it to the heartbeat to tell when the peer is
/// dead: Linux counts TCP's user timeout from when the peer's window was full for the first time, and does not see that a
/// peer with a small window reads steadily. Where the system refuses these options, pings come later.
#[derive(Debug)]
pub(super) struct Narrow {
    user_timeout: Option<Duration>,
}

impl Narrow {
    pub(super) fn set(socket: &impl AsFd) -> Self {
        let socket = SockRef::from(socket);
        let user_timeout = socket.tcp_user_timeout().ok().flatten();
        let _ = socket.set_tcp_notsent_lowat(UNSENT);
        let _ = socket.set_tcp_user_timeout(None);
        Self { user_timeout }
    }

    pub(super) fn undo(self, socket: &impl AsFd) {
        let socket = SockRef::from(socket);
        let _ = socket.set_tcp_notsent_lowat(UNSENT_DEFAULT);
        let _ = socket.set_tcp_user_timeout(self.user_timeout);
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_socket_is_narrow_and_then_as_before() {
        const USER_TIMEOUT: Option<Duration> = Some(Duration::from_mins(1));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let socket = SockRef::from(&stream);
        socket.set_tcp_user_timeout(USER_TIMEOUT).unwrap();
        let options = || (socket.tcp_notsent_lowat().unwrap(), socket.tcp_user_timeout().unwrap());
        let narrow = Narrow::set(&stream);
        assert_eq!(options(), (UNSENT, None));
        narrow.undo(&stream);
        assert_eq!(options(), (UNSENT_DEFAULT, USER_TIMEOUT));
    }
}
