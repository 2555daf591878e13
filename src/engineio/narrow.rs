//! What the kernel does for a client that is behind: it holds little, and leaves it to the heartbeat who is dead.

use socket2::SockRef;
use tokio::net::TcpStream;

use super::heartbeat::PROGRESS;
use crate::listener::STUCK_TIMEOUT;

/// Bytes that the kernel holds unsent for a client that is behind; it asks for more when half of them are gone. By itself
/// it takes megabytes: a ping would wait for all of them, and until they are gone nothing shows that the client reads.
#[expect(clippy::cast_possible_truncation, reason = "32 KiB")]
const UNSENT: u32 = 2 * PROGRESS as u32;

/// As the system has it by default.
const UNSENT_DEFAULT: u32 = 0;

/// Whether a socket is set up for a client that is behind.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Narrow(bool);

impl Narrow {
    /// Sets the socket up, one way or the other.
    ///
    /// The listener's timeout is off for a client that is behind: Linux counts it from when the client's window was full
    /// for the first time, and does not see that a client with a small window reads steadily. The heartbeat does.
    pub(super) fn set(&mut self, stream: &TcpStream, narrow: bool) {
        if std::mem::replace(&mut self.0, narrow) != narrow {
            let (unsent, stuck) = if narrow { (UNSENT, None) } else { (UNSENT_DEFAULT, Some(STUCK_TIMEOUT)) };
            let socket = SockRef::from(stream);
            // Where the system refuses, pings come later.
            let _ = socket.set_tcp_notsent_lowat(unsent);
            let _ = socket.set_tcp_user_timeout(stuck);
        }
    }
}

#[cfg(test)]
mod tests {

    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_socket_is_narrow_and_then_as_before() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let socket = SockRef::from(&stream);
        let options = || (socket.tcp_notsent_lowat().unwrap(), socket.tcp_user_timeout().unwrap());
        let mut narrow = Narrow::default();
        narrow.set(&stream, true);
        assert_eq!(options(), (UNSENT, None));
        narrow.set(&stream, false);
        assert_eq!(options(), (UNSENT_DEFAULT, Some(STUCK_TIMEOUT)));
    }
}
