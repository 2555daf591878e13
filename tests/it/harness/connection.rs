//! A TCP connection to the server on which a test says whatever it likes, byte for byte, and as much of HTTP/1.1 as it
//! takes to ask and to read the answer.

use std::{
    io::{self, ErrorKind, Read},
    net::SocketAddr,
    time::Duration,
};

use bytes::BytesMut;
use flate2::read::GzDecoder;
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};

use super::within;

/// A connection; closed when dropped.
pub(crate) struct Connection {
    stream: TcpStream,
    pub(super) buffer: BytesMut,
}

impl Connection {
    /// The size of a small receive buffer.
    pub(crate) const NARROW: u32 = 4096;

    pub(crate) async fn connect(to: impl Into<SocketAddr>) -> Self {
        Self::dial(to.into(), None).await.unwrap()
    }

    /// With the smallest possible receive buffer, so that the server soon notices when nothing is read.
    pub(crate) async fn narrow(to: impl Into<SocketAddr>) -> Self {
        Self::dial(to.into(), Some(Self::NARROW)).await.unwrap()
    }

    /// A connection whose first bytes are these.
    pub(crate) async fn begin(to: impl Into<SocketAddr>, bytes: impl AsRef<[u8]>) -> Self {
        let mut connection = Self::connect(to).await;
        connection.write(bytes).await;
        connection
    }

    /// A connection, if there is a server.
    pub(crate) async fn dial(address: SocketAddr, receive_buffer: Option<u32>) -> io::Result<Self> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        receive_buffer.map_or(Ok(()), |size| socket.set_recv_buffer_size(size))?;
        let stream = within("a connection", socket.connect(address)).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: BytesMut::new() })
    }

    /// Writes as much as the server takes. An error is not reported: reading tells how the server closed.
    pub(crate) async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = within("the server to read", self.stream.write_all(bytes.as_ref())).await;
    }

    /// Closes the sending half.
    pub(crate) async fn finish(&mut self) {
        let _ = self.stream.shutdown().await;
    }

    /// Reads more into the buffer; `false` at the end of the connection.
    pub(super) async fn fill(&mut self) -> bool {
        !matches!(self.stream.read_buf(&mut self.buffer).await, Ok(0) | Err(_))
    }

    /// The head of an HTTP response, or its beginning if the connection ends before.
    pub(crate) async fn head(&mut self) -> String {
        within("the head of a response", async {
            loop {
                if let Some(end) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                    return String::from_utf8_lossy(&self.buffer.split_to(end + 4)).into_owned();
                }
                if !self.fill().await {
                    return String::from_utf8_lossy(&self.buffer.split()).into_owned();
                }
            }
        })
        .await
    }

    /// The status of an HTTP response; `None` when the connection was closed without one.
    pub(crate) async fn status(&mut self) -> Option<u16> {
        status(&self.head().await)
    }

    /// An HTTP response with its body.
    pub(crate) async fn response(&mut self) -> Response {
        let head = self.head().await;
        let status = status(&head).unwrap_or_else(|| panic!("no response: {head:?}"));
        let mut response = Response { status, head, body: Vec::new() };
        let length: usize = response.header("content-length").map_or(0, |length| length.parse().unwrap());
        within("the body of a response", async {
            while self.buffer.len() < length {
                assert!(self.fill().await, "the response was cut off");
            }
        })
        .await;
        response.body = self.buffer.split_to(length).to_vec();
        response
    }

    /// Waits until the server closes.
    pub(crate) async fn closed(&mut self) {
        within("the end of the connection", async {
            while self.fill().await {
                self.buffer.clear();
            }
        })
        .await;
    }

    /// Whether the server has closed by now; what it sent before is dropped.
    pub(crate) fn has_ended(&mut self) -> bool {
        let mut bytes = [0; 1024];
        loop {
            match self.stream.try_read(&mut bytes) {
                Ok(1..) => {}
                Ok(0) => return true,
                Err(error) => return error.kind() != ErrorKind::WouldBlock,
            }
        }
    }

    /// Resets the connection, so that data under way is lost.
    pub(super) fn reset(self) {
        SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).unwrap();
    }
}

fn status(head: &str) -> Option<u16> {
    head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()
}

/// The head of a request for a WebSocket.
pub(crate) fn handshake(target: &str) -> String {
    format!(
        "GET {target} HTTP/1.1\r\nhost: test\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

/// An HTTP response.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: Vec<u8>,
}

impl Response {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        headers.find(|(header, _)| header.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    pub(crate) fn text(&self) -> &str {
        str::from_utf8(&self.body).unwrap()
    }

    /// The body as text, uncompressed.
    pub(super) fn content(&self) -> String {
        if self.header("content-encoding").is_none() {
            return self.text().to_owned();
        }
        assert_eq!((self.header("content-encoding"), self.header("vary")), (Some("gzip"), Some("Accept-Encoding")));
        let mut text = String::new();
        GzDecoder::new(&*self.body).read_to_string(&mut text).unwrap();
        text
    }
}

/// A request that was sent and not answered yet, on a connection of its own.
pub(crate) struct Exchange(Connection);

impl Exchange {
    pub(crate) async fn begin(
        to: impl Into<SocketAddr>,
        request: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<Self> {
        let mut connection = Connection::dial(to.into(), None).await?;
        let mut head = format!("{request} HTTP/1.1\r\nhost: test\r\ncontent-length: {}\r\n", body.len());
        for (name, value) in headers {
            head.extend([name, ": ", value, "\r\n"]);
        }
        connection.write([head.as_bytes(), b"\r\n", body].concat()).await;
        Ok(Self(connection))
    }

    pub(crate) async fn response(mut self) -> Response {
        self.0.response().await
    }
}

pub(crate) async fn get(to: impl Into<SocketAddr>, target: &str) -> Response {
    get_with(to, target, &[]).await
}

pub(crate) async fn get_with(to: impl Into<SocketAddr>, target: &str, headers: &[(&str, &str)]) -> Response {
    Exchange::begin(to, &format!("GET {target}"), headers, b"").await.unwrap().response().await
}
