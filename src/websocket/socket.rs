//! What a connection needs of its socket: reads and writes that never wait, and the kernel's options for a slow peer.

use std::{
    future::Future,
    io::{self, IoSlice},
    net::Shutdown,
    time::Duration,
};

use socket2::SockRef;
use tokio::net::TcpStream;

/// Unsent bytes that the kernel takes for a peer that is behind; it takes more when half of them are gone. Without a
/// limit it takes megabytes: a ping would wait behind all of them, and meanwhile nothing shows that the peer reads.
const UNSENT: u32 = 32 * 1024;

/// No limit, the system's default.
const UNSENT_DEFAULT: u32 = 0;

/// The user timeout of a socket before [`Socket::narrow`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UserTimeout(Option<Duration>);

/// A socket that one task reads and many threads write.
pub trait Socket: Send + Sync + 'static {
    /// Reads what is there.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when nothing is there; other kinds when the socket has failed.
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Writes as much as the socket takes now.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when it takes nothing; other kinds when the socket has failed.
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize>;

    /// As [`Socket::try_write`], from several slices in one call.
    ///
    /// # Errors
    /// As [`Socket::try_write`].
    fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Waits until there is something to read.
    fn readable(&self) -> impl Future<Output = io::Result<()>> + Send;

    /// Waits until the socket takes bytes.
    fn writable(&self) -> impl Future<Output = io::Result<()>> + Send;

    /// Ends one direction or both. A socket that has ended already stays so.
    fn shutdown(&self, how: Shutdown);

    /// Makes the kernel take little for a peer that is behind, and leave it to the caller to tell when the peer is dead:
    /// Linux counts TCP's user timeout from when the peer's window was full for the first time, and does not see that a
    /// peer with a small window reads steadily.
    fn narrow(&self) -> UserTimeout {
        UserTimeout::default()
    }

    /// Undoes [`Socket::narrow`].
    fn widen(&self, _before: UserTimeout) {}
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

    async fn readable(&self) -> io::Result<()> {
        self.readable().await
    }

    async fn writable(&self) -> io::Result<()> {
        self.writable().await
    }

    fn shutdown(&self, how: Shutdown) {
        let _ = SockRef::from(self).shutdown(how);
    }

    // Where the system refuses an option, pings come later.
    fn narrow(&self) -> UserTimeout {
        let socket = SockRef::from(self);
        let before = UserTimeout(socket.tcp_user_timeout().ok().flatten());
        let _ = socket.set_tcp_notsent_lowat(UNSENT);
        let _ = socket.set_tcp_user_timeout(None);
        before
    }

    fn widen(&self, before: UserTimeout) {
        let socket = SockRef::from(self);
        let _ = socket.set_tcp_notsent_lowat(UNSENT_DEFAULT);
        let _ = socket.set_tcp_user_timeout(before.0);
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
        let before = stream.narrow();
        assert_eq!(options(), (UNSENT, None));
        stream.widen(before);
        assert_eq!(options(), (UNSENT_DEFAULT, USER_TIMEOUT));
    }
}
