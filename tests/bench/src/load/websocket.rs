//! A client's WebSocket: dialling, and reading through one scratch buffer per thread.

use std::{cell::RefCell, io, net::SocketAddr};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};

use super::{
    frame::{self, CLOSE, TEXT},
    session::{Answer, Session},
    tally::Tally,
};
use crate::redis::token;

/// Bytes read at a time: several messages of the largest size that is sent.
const SCRATCH: usize = 64 * 1024;

/// Longest answer to a handshake.
const MAX_HEAD: usize = 4 * 1024;

/// Clients behind one address. Of the 28,000 ports that the kernel gives out by itself most must be free: when half are
/// taken, most of the processor time of 20,000 returns goes into the search for one.
const CLIENTS_PER_ADDRESS: usize = 4_000;

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into_boxed_slice());
}

/// What one reading brought.
#[derive(Default)]
pub(super) struct Read {
    /// New messages.
    pub(super) records: u64,
    /// The client is in its namespace.
    pub(super) joined: bool,
}

/// An open connection.
pub(super) struct WebSocket {
    stream: TcpStream,
    /// The beginning of a frame that is not whole yet.
    partial: Vec<u8>,
}

/// Connects the TCP socket, from another address of this machine when the ports of one are used up.
pub(super) async fn dial(user: usize, port: u16) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    let address = user / CLIENTS_PER_ADDRESS;
    if address > 0 {
        socket.bind(SocketAddr::from(([127, 0, 0, 1 + address as u8], 0)))?;
    }
    let stream = socket.connect(SocketAddr::from(([127, 0, 0, 1], port))).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

impl WebSocket {
    /// Dials and goes as far as the handshake; OPEN is yet to come.
    pub(super) async fn connect(user: usize, port: u16) -> io::Result<Self> {
        Self::upgrade(dial(user, port).await?, user, port).await
    }

    /// The handshake on a connection that has been dialled.
    pub(super) async fn upgrade(mut stream: TcpStream, user: usize, port: u16) -> io::Result<Self> {
        let request = format!(
            "GET /socket.io/?channel_token={}&EIO=4&transport=websocket HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\
             Origin: https://loomio.example.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            token(user)
        );
        stream.write_all(request.as_bytes()).await?;
        let mut head = Vec::with_capacity(512);
        let end = loop {
            if let Some(end) = head.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            if head.len() > MAX_HEAD || stream.read_buf(&mut head).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        };
        if !head.starts_with(b"HTTP/1.1 101") {
            return Err(io::Error::other(String::from_utf8_lossy(&head[..end]).into_owned()));
        }
        Ok(Self { stream, partial: head.split_off(end) })
    }

    /// Takes what came with the handshake's answer, then waits for more.
    pub(super) async fn read(&mut self, session: &mut Session, tally: &Tally) -> io::Result<Read> {
        let mut read = Read::default();
        if frame::parse(&self.partial).is_some() {
            let bytes = std::mem::take(&mut self.partial);
            self.take(&bytes, session, tally, &mut read)?;
            return Ok(read);
        }
        loop {
            self.stream.readable().await?;
            let taken = BUFFER.with_borrow_mut(|buffer| match self.stream.try_read(buffer) {
                Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => {
                    self.receive(&buffer[..length], session, tally, &mut read)?;
                    Ok(true)
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
                Err(error) => Err(error),
            });
            if taken? {
                return Ok(read);
            }
        }
    }

    fn receive(&mut self, bytes: &[u8], session: &mut Session, tally: &Tally, read: &mut Read) -> io::Result<()> {
        if self.partial.is_empty() {
            return self.take(bytes, session, tally, read);
        }
        let mut whole = std::mem::take(&mut self.partial);
        whole.extend_from_slice(bytes);
        self.take(&whole, session, tally, read)
    }

    /// Takes all whole frames and keeps the rest.
    fn take(&mut self, mut bytes: &[u8], session: &mut Session, tally: &Tally, read: &mut Read) -> io::Result<()> {
        while let Some(frame) = frame::parse(bytes) {
            let answer = match frame.opcode {
                TEXT => session.take(frame.payload, tally),
                CLOSE => Answer::Left,
                _ => Answer::Nothing,
            };
            match answer {
                Answer::Nothing => {}
                Answer::Record => read.records += 1,
                Answer::Joined => read.joined = true,
                Answer::Connect => self.send(&format!("4{}", session.connect()))?,
                Answer::Pong => self.send("3")?,
                Answer::Left => return Err(io::ErrorKind::ConnectionAborted.into()),
            }
            bytes = &bytes[frame.length..];
        }
        self.partial.extend_from_slice(bytes);
        Ok(())
    }

    /// Gives the connection away, for what is not WebSocket.
    pub(super) fn into_stream(self) -> TcpStream {
        self.stream
    }

    /// Begins the closing handshake, and does not wait for its end.
    pub(super) fn close(&self) -> io::Result<()> {
        self.stream.try_write(&frame::masked_close()).map(drop)
    }

    /// Sends a packet; what clients say is far smaller than a socket's buffer.
    pub(super) fn send(&self, packet: &str) -> io::Result<()> {
        let frame = frame::masked(packet.as_bytes());
        match self.stream.try_write(&frame) {
            Ok(length) if length == frame.len() => Ok(()),
            Ok(_) => Err(io::ErrorKind::WriteZero.into()),
            Err(error) => Err(error),
        }
    }
}
