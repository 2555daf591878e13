//! The client's side of a WebSocket, frame by frame: a test sees what was sent and when, and may break every rule.

use std::{
    net::SocketAddr,
    ops::{Deref, DerefMut},
};

use bytes::{Buf, BytesMut};

use super::{
    connection::{Connection, handshake},
    within,
};

/// First bytes of whole frames.
pub(crate) const TEXT: u8 = 0x81;
pub(crate) const BINARY: u8 = 0x82;
pub(crate) const CLOSE: u8 = 0x88;
pub(crate) const PING: u8 = 0x89;
const PONG: u8 = 0x8a;

/// Where a WebSocket is opened.
pub(crate) const WEBSOCKET: &str = "/socket.io/?EIO=4&transport=websocket";

/// The bit of a masked frame in the byte with the length, and an arbitrary key.
const MASKED: u8 = 0x80;
const MASK: [u8; 4] = [0x5a, 0x01, 0x00, 0xff];

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// With a close frame, which may have a code.
    Closed(Option<u16>),
    /// Without.
    Lost,
}

/// A connection after the handshake.
pub(crate) struct WebSocket(Connection);

impl WebSocket {
    /// A WebSocket at `target`.
    pub(crate) async fn connect(to: impl Into<SocketAddr>, target: &str) -> Self {
        Self::upgrade(Connection::connect(to).await, target).await.unwrap_or_else(|head| panic!("{head}"))
    }

    /// A WebSocket at [`WEBSOCKET`] with more of a query, over a connection with a small receive buffer.
    pub(crate) async fn narrow(to: impl Into<SocketAddr>, query: &str) -> Self {
        let target = format!("{WEBSOCKET}{query}");
        Self::upgrade(Connection::narrow(to).await, &target).await.unwrap_or_else(|head| panic!("{head}"))
    }

    /// A WebSocket at `target`, or what the server answered instead.
    pub(crate) async fn upgrade(mut connection: Connection, target: &str) -> Result<Self, String> {
        connection.write(handshake(target)).await;
        let head = connection.head().await;
        if head.starts_with("HTTP/1.1 101 ") { Ok(Self(connection)) } else { Err(head) }
    }

    /// With an open session, not connected to the namespace.
    pub(crate) async fn open(to: impl Into<SocketAddr>) -> Self {
        let mut socket = Self::connect(to, WEBSOCKET).await;
        assert!(socket.text().await.starts_with("0{"));
        socket
    }

    /// Connected to the namespace without a token.
    pub(crate) async fn connected(to: impl Into<SocketAddr>) -> Self {
        let mut socket = Self::open(to).await;
        socket.send("40").await;
        assert!(socket.text().await.starts_with("40{"));
        assert!(socket.text().await.starts_with("42[\"session\""));
        socket
    }

    /// Sends a text message.
    pub(crate) async fn send(&mut self, text: impl AsRef<[u8]>) {
        self.write(frame(TEXT, text)).await;
    }

    /// The next Engine.IO packet but pings, which are answered.
    pub(crate) async fn packet(&mut self) -> Result<String, Ended> {
        loop {
            match self.packet_or_ping().await? {
                ping if ping == "2" => self.send("3").await,
                packet => return Ok(packet),
            }
        }
    }

    /// The next Engine.IO packet, which may be a ping; it is not answered.
    pub(crate) async fn packet_or_ping(&mut self) -> Result<String, Ended> {
        let (first, data) = within("a frame", self.frame()).await?;
        match first {
            TEXT => Ok(String::from_utf8(data.to_vec()).unwrap()),
            PONG => Ok(format!("pong {}", String::from_utf8_lossy(&data))),
            CLOSE => Err(Ended::Closed((!data.is_empty()).then(|| (&data[..]).get_u16()))),
            other => panic!("a frame that begins with {other:#x}"),
        }
    }

    /// The next packet of a connection that must live.
    pub(crate) async fn text(&mut self) -> String {
        self.packet().await.expect("a packet")
    }

    /// Reads on until the connection ends.
    pub(crate) async fn end(&mut self) -> Ended {
        loop {
            if let Err(ended) = self.packet().await {
                return ended;
            }
        }
    }

    /// The same without answers to pings.
    pub(crate) async fn end_in_silence(&mut self) -> Ended {
        loop {
            if let Err(ended) = self.packet_or_ping().await {
                return ended;
            }
        }
    }

    /// Whether a WebSocket ping is answered: the connection lives, and the server has read all that was sent before.
    pub(crate) async fn is_served(&mut self) -> bool {
        self.write(frame(PING, "there?")).await;
        loop {
            match self.packet().await {
                Ok(packet) if packet == "pong there?" => return true,
                Ok(_) => {}
                Err(_) => return false,
            }
        }
    }

    /// The first byte of the next frame and its data. A server's frames are whole and not masked.
    async fn frame(&mut self) -> Result<(u8, BytesMut), Ended> {
        loop {
            let header = match (self.buffer.get(1), self.buffer.len()) {
                (Some(126), 4..) => Some((4, usize::from((&self.buffer[2..]).get_u16()))),
                (Some(127), 10..) => Some((10, usize::try_from((&self.buffer[2..]).get_u64()).unwrap())),
                (Some(&length), _) if length < 126 => Some((2, usize::from(length))),
                (Some(128..), _) => panic!("a server does not mask its frames"),
                _ => None,
            };
            if let Some((start, length)) = header.filter(|(start, length)| self.buffer.len() >= start + length) {
                let mut whole = self.buffer.split_to(start + length);
                return Ok((whole[0], whole.split_off(start)));
            }
            if !self.fill().await {
                return Err(Ended::Lost);
            }
        }
    }

    /// Ends as when a cable is pulled: without a close frame, and data under way is lost.
    pub(crate) fn cut(self) {
        self.0.reset();
    }
}

impl From<WebSocket> for Connection {
    fn from(socket: WebSocket) -> Self {
        socket.0
    }
}

impl Deref for WebSocket {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.0
    }
}

impl DerefMut for WebSocket {
    fn deref_mut(&mut self) -> &mut Connection {
        &mut self.0
    }
}

/// A masked frame.
pub(crate) fn frame(first: u8, data: impl AsRef<[u8]>) -> Vec<u8> {
    let data = data.as_ref();
    let mut frame = header(first, data.len() as u64);
    frame.extend(data.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// The header of a masked frame, which may promise more than will come.
pub(crate) fn header(first: u8, length: u64) -> Vec<u8> {
    let mut header = vec![first];
    match length {
        0..126 => header.push(MASKED + u8::try_from(length).unwrap()),
        126..=0xffff => {
            header.push(MASKED + 126);
            header.extend(u16::try_from(length).unwrap().to_be_bytes());
        }
        _ => {
            header.push(MASKED + 127);
            header.extend(length.to_be_bytes());
        }
    }
    header.extend(MASK);
    header
}
