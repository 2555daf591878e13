//! The client's side of a WebSocket, frame by frame, so that tests see what was sent and when.

use std::{net::SocketAddr, time::Duration};

use bytes::{Buf, BytesMut};
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};

use super::{http::read_head, within};

/// Any key will do.
const MASK: [u8; 4] = [0x5a, 0x01, 0xff, 0x80];

const TEXT: u8 = 0x1;
const CLOSE: u8 = 0x8;

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// With a close frame, which may have a code.
    Closed(Option<u16>),
    /// Without.
    Lost,
}

pub(crate) struct WebSocket {
    stream: TcpStream,
    buffer: BytesMut,
}

impl WebSocket {
    pub(crate) async fn connect(address: SocketAddr, target: &str) -> Self {
        Self::open(TcpSocket::new_v4().unwrap(), address, target).await
    }

    /// With a receive buffer as small as it gets, so that the server soon notices when nothing is read.
    pub(crate) async fn connect_narrow(address: SocketAddr, target: &str) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        Self::open(socket, address, target).await
    }

    async fn open(socket: TcpSocket, address: SocketAddr, target: &str) -> Self {
        within("a WebSocket", async {
            let mut stream = socket.connect(address).await.unwrap();
            stream.set_nodelay(true).unwrap();
            let request = format!(
                "GET {target} HTTP/1.1\r\nhost: test\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
                 sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            );
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut buffer = BytesMut::new();
            let head = read_head(&mut stream, &mut buffer).await;
            assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
            Self { stream, buffer }
        })
        .await
    }

    /// Sends a text message.
    pub(crate) async fn send(&mut self, text: &str) {
        // With its length in 64 bits, which may be used for any.
        let mut frame = vec![0x80 | TEXT, 0xff];
        frame.extend((text.len() as u64).to_be_bytes());
        frame.extend(MASK);
        frame.extend(text.bytes().zip(MASK.into_iter().cycle()).map(|(byte, mask)| byte ^ mask));
        // When the server has closed, reading tells more.
        let _ = self.stream.write_all(&frame).await;
    }

    /// The next Engine.IO packet but pings, which are answered.
    pub(crate) async fn packet(&mut self) -> Result<String, Ended> {
        within("a packet", async {
            loop {
                match self.message().await? {
                    ping if ping == "2" => self.send("3").await,
                    packet => return Ok(packet),
                }
            }
        })
        .await
    }

    /// The next Engine.IO packet, which may be a ping; it is not answered.
    pub(crate) async fn packet_or_ping(&mut self) -> Result<String, Ended> {
        within("a packet or a ping", self.message()).await
    }

    /// Reads on until the connection ends.
    pub(crate) async fn end(&mut self) -> Ended {
        loop {
            if let Err(ended) = self.packet().await {
                return ended;
            }
        }
    }

    /// As [`WebSocket::end`], answering no ping.
    pub(crate) async fn end_in_silence(&mut self) -> Ended {
        loop {
            if let Err(ended) = within("the end of a silent connection", self.message()).await {
                return ended;
            }
        }
    }

    async fn message(&mut self) -> Result<String, Ended> {
        let (opcode, length) = self.header().await?;
        self.fill(length).await?;
        let data = self.buffer.split_to(length);
        match opcode {
            TEXT => Ok(String::from_utf8(data.to_vec()).unwrap()),
            CLOSE => Err(Ended::Closed((!data.is_empty()).then(|| (&data[..]).get_u16()))),
            other => panic!("a frame with opcode {other}"),
        }
    }

    async fn header(&mut self) -> Result<(u8, usize), Ended> {
        self.fill(2).await?;
        let (first, second) = (self.buffer[0], self.buffer[1]);
        assert_eq!((first & 0xf0, second & 0x80), (0x80, 0), "a server sends whole frames, and does not mask them");
        self.buffer.advance(2);
        let length = match second {
            126 => {
                self.fill(2).await?;
                u64::from(self.buffer.get_u16())
            }
            127 => {
                self.fill(8).await?;
                self.buffer.get_u64()
            }
            short => u64::from(short),
        };
        Ok((first & 0xf, usize::try_from(length).unwrap()))
    }

    async fn fill(&mut self, length: usize) -> Result<(), Ended> {
        while self.buffer.len() < length {
            match self.stream.read_buf(&mut self.buffer).await {
                Ok(0) | Err(_) => return Err(Ended::Lost),
                Ok(_) => {}
            }
        }
        Ok(())
    }

    /// Ends the connection as when a cable is pulled: without a close frame, and what is under way is gone.
    pub(crate) fn cut(self) {
        SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).unwrap();
    }
}
