//! The stream of a connection, as the HTTP server reads and writes it.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::Place;

const SWITCHING_PROTOCOLS: &[u8] = b"HTTP/1.1 101 ";

/// A TCP stream that holds back `101 Switching Protocols` when that is the first answer on it: who takes the stream over
/// sends it together with the first of its own, one packet and one wake-up of the client less.
#[derive(Debug)]
pub struct Stream {
    tcp: TcpStream,
    /// `None` once an answer has gone out.
    held: Option<Vec<u8>>,
    place: Place,
}

impl Stream {
    pub(super) fn new(tcp: TcpStream, place: Place) -> Self {
        Self { tcp, held: Some(Vec::new()), place }
    }

    /// The stream below, what must be sent before anything else, and the place to keep while the stream is open.
    pub fn into_parts(self) -> (TcpStream, Vec<u8>, Place) {
        (self.tcp, self.held.unwrap_or_default(), self.place)
    }

    /// Whether these bytes are kept for [`Stream::into_parts`].
    fn holds(&mut self, bytes: &[u8]) -> bool {
        let Some(held) = &mut self.held else { return false };
        if held.is_empty() && !bytes.starts_with(SWITCHING_PROTOCOLS) {
            self.held = None;
            return false;
        }
        held.extend_from_slice(bytes);
        true
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(context, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.holds(bytes) {
            return Poll::Ready(Ok(bytes.len()));
        }
        Pin::new(&mut self.tcp).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // An answer without a body is one slice; the rest of any other would be written next.
        match slices {
            [first, ..] if self.holds(first) => Poll::Ready(Ok(first.len())),
            _ => Pin::new(&mut self.tcp).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::AbortHandle;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::{super::places::Places, *};
    use crate::metrics::Metrics;

    async fn pair() -> (Stream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let place = Places::new(1, Metrics::new()).take(AbortHandle::new_pair().0).unwrap().place;
        (Stream::new(listener.accept().await.unwrap().0, place), client)
    }

    #[tokio::test]
    async fn a_switch_is_held_for_who_takes_the_stream() {
        let (mut server, mut client) = pair().await;
        let answer = b"HTTP/1.1 101 Switching Protocols\r\n\r\n";
        server.write_all(answer).await.unwrap();
        let (mut tcp, held, _) = server.into_parts();
        assert_eq!(held, answer);
        tcp.write_all(b"x").await.unwrap();
        let mut received = [0];
        client.read_exact(&mut received).await.unwrap();
        assert_eq!(&received, b"x");
    }

    #[tokio::test]
    async fn any_other_answer_goes_out_at_once_and_ends_the_holding() {
        let (mut server, mut client) = pair().await;
        for (answer, vectored) in
            [("HTTP/1.1 200 OK\r\n\r\n", true), ("HTTP/1.1 101 in a body", true), ("HTTP/1.1 101 ", false)]
        {
            let written = if vectored {
                server.write_vectored(&[IoSlice::new(answer.as_bytes())]).await
            } else {
                server.write(answer.as_bytes()).await
            };
            assert_eq!(written.unwrap(), answer.len());
            let mut received = vec![0; answer.len()];
            client.read_exact(&mut received).await.unwrap();
            assert_eq!(received, answer.as_bytes());
        }
        assert_eq!(server.into_parts().1, b"");
    }
}
