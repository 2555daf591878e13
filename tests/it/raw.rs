//! A client that says whatever it likes, byte for byte.

use std::{io::ErrorKind, net::SocketAddr};

use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::harness::{Ended, within};

pub(crate) const TEXT: u8 = 0x81;
pub(crate) const BINARY: u8 = 0x82;
pub(crate) const CLOSE: u8 = 0x88;
pub(crate) const PING: u8 = 0x89;
const PONG: u8 = 0x8a;

pub(crate) const WEBSOCKET: &str = "/socket.io/?EIO=4&transport=websocket";

/// Marks a masked frame, in the byte with the length.
const MASKED: u8 = 0x80;
const MASK: [u8; 4] = [0x11, 0x22, 0x00, 0xff];

pub(crate) struct Raw {
    stream: TcpStream,
    buffer: BytesMut,
}

impl Raw {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let stream = within("a connection", TcpStream::connect(address)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, buffer: BytesMut::new() }
    }

    /// A connection whose first bytes are these.
    pub(crate) async fn begin(address: SocketAddr, bytes: impl AsRef<[u8]>) -> Self {
        let mut raw = Self::connect(address).await;
        raw.write(bytes).await;
        raw
    }

    /// A WebSocket with an open session.
    pub(crate) async fn websocket(address: SocketAddr) -> Self {
        let mut raw = Self::begin(address, handshake(WEBSOCKET)).await;
        let head = raw.head().await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert_eq!(raw.text().await.chars().next(), Some('0'));
        raw
    }

    /// A WebSocket that is connected to the namespace.
    pub(crate) async fn connected(address: SocketAddr) -> Self {
        let mut raw = Self::websocket(address).await;
        raw.write(frame(TEXT, "40")).await;
        assert!(raw.text().await.starts_with("40{"));
        assert!(raw.text().await.starts_with("42[\"session\""));
        raw
    }

    /// Writes as much as the server takes; when it has closed, reading tells more.
    pub(crate) async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = within("the server to read", self.stream.write_all(bytes.as_ref())).await;
    }

    /// Says that nothing more will come.
    pub(crate) async fn finish(&mut self) {
        let _ = self.stream.shutdown().await;
    }

    /// The head of an HTTP answer, or what there is of one.
    pub(crate) async fn head(&mut self) -> String {
        within("an answer", async {
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

    /// The status of an HTTP answer; `None` when the connection was closed without one.
    pub(crate) async fn status(&mut self) -> Option<u16> {
        let head = self.head().await;
        head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()
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

    /// Whether the server has closed by now; what it sent before is passed over.
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

    /// The next text from a WebSocket.
    pub(crate) async fn text(&mut self) -> String {
        self.next_text().await.expect("a text")
    }

    /// How the WebSocket ends, after whatever still comes.
    pub(crate) async fn end(&mut self) -> Ended {
        within("the end of the WebSocket", async {
            loop {
                if let Err(ended) = self.next_text().await {
                    return ended;
                }
            }
        })
        .await
    }

    async fn next_text(&mut self) -> Result<String, Ended> {
        loop {
            let (first, data) = within("a frame", self.frame()).await?;
            match first {
                TEXT if data == "2" => self.write(frame(TEXT, "3")).await,
                TEXT => return Ok(String::from_utf8(data.to_vec()).unwrap()),
                CLOSE => return Err(Ended::Closed((!data.is_empty()).then(|| (&data[..]).get_u16()))),
                PONG => return Ok(format!("pong {}", String::from_utf8_lossy(&data))),
                other => panic!("a frame that begins with {other:#x}"),
            }
        }
    }

    /// Whether a ping is answered, after whatever still comes: the connection lives, and all before was read.
    pub(crate) async fn is_served(&mut self) -> bool {
        self.write(frame(PING, "there?")).await;
        loop {
            match self.next_text().await {
                Ok(text) if text == "pong there?" => return true,
                Ok(_) => {}
                Err(_) => return false,
            }
        }
    }

    async fn frame(&mut self) -> Result<(u8, BytesMut), Ended> {
        loop {
            let header = match (self.buffer.get(1), self.buffer.len()) {
                (Some(126), 4..) => Some((4, usize::from((&self.buffer[2..]).get_u16()))),
                (Some(127), 10..) => Some((10, usize::try_from((&self.buffer[2..]).get_u64()).unwrap())),
                (Some(&length), _) if length < 126 => Some((2, usize::from(length))),
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

    async fn fill(&mut self) -> bool {
        !matches!(self.stream.read_buf(&mut self.buffer).await, Ok(0) | Err(_))
    }
}

/// The head of a request for a WebSocket.
pub(crate) fn handshake(target: &str) -> String {
    format!(
        "GET {target} HTTP/1.1\r\nhost: test\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
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
