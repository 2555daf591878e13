//! A client that only polls, as behind a proxy that does not let WebSockets through: one kept connection, one request
//! after the other.

use std::io;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{
    session::{Answer, Session},
    tally::Tally,
    websocket::dial,
};
use crate::redis::token;

/// Between packets of one answer.
const SEPARATOR: u8 = 0x1e;

pub(super) struct Polling {
    stream: TcpStream,
    buffer: Vec<u8>,
    port: u16,
    query: String,
    /// Further lines of each request's head.
    headers: &'static str,
}

impl Polling {
    /// Opens a session and joins the namespace, short of reading the answer to that.
    pub(super) async fn connect(user: usize, port: u16, session: &Session) -> io::Result<Self> {
        Self::open(dial(user, port).await?, user, port, session, "").await
    }

    /// The same on a connection that has been dialled, with further headers, each with its line end.
    pub(super) async fn open(
        stream: TcpStream,
        user: usize,
        port: u16,
        session: &Session,
        headers: &'static str,
    ) -> io::Result<Self> {
        let query = format!("channel_token={}&EIO=4&transport=polling", token(user));
        let mut polling = Self { stream, buffer: Vec::new(), port, query, headers };
        let open = polling.request("GET", "").await?;
        let sid = open.split(|&byte| byte == b'"').nth(3).map(|sid| String::from_utf8_lossy(sid).into_owned());
        let sid = sid.ok_or(io::ErrorKind::InvalidData)?;
        polling.query.push_str("&sid=");
        polling.query.push_str(&sid);
        polling.request("POST", &format!("4{}", session.connect())).await?;
        Ok(polling)
    }

    /// Polls once; returns how many new messages came, and whether the client is in its namespace from now on.
    pub(super) async fn read(&mut self, session: &mut Session, tally: &Tally) -> io::Result<(u64, bool)> {
        let body = self.request("GET", "").await?;
        let (mut records, mut joined, mut pong) = (0, false, false);
        for packet in body.split(|&byte| byte == SEPARATOR) {
            match session.take(packet, tally) {
                Answer::Nothing | Answer::Connect => {}
                Answer::Record => records += 1,
                Answer::Joined => joined = true,
                Answer::Pong => pong = true,
                Answer::Left => return Err(io::ErrorKind::ConnectionAborted.into()),
            }
        }
        if pong {
            self.request("POST", "3").await?;
        }
        Ok((records, joined))
    }

    pub(super) async fn request(&mut self, method: &str, body: &str) -> io::Result<Vec<u8>> {
        let request = format!(
            "{method} /socket.io/?{} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nOrigin: https://loomio.example.com\r\n\
             Content-Type: text/plain;charset=UTF-8\r\nContent-Length: {}\r\n{}\r\n{body}",
            self.query,
            self.port,
            body.len(),
            self.headers,
        );
        self.stream.write_all(request.as_bytes()).await?;
        let head = self.until(b"\r\n\r\n").await?;
        let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
        let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let body = match header("content-length:").and_then(|length| length.parse().ok()) {
            Some(length) => self.exactly(length).await?,
            None if header("transfer-encoding:") == Some("chunked") => self.chunks().await?,
            None => return Err(io::ErrorKind::InvalidData.into()),
        };
        if head.starts_with("http/1.1 200") {
            Ok(body)
        } else {
            Err(io::Error::other(format!("{head}{}", String::from_utf8_lossy(&body))))
        }
    }

    async fn chunks(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = self.until(b"\r\n").await?;
            let length = usize::from_str_radix(String::from_utf8_lossy(&line).trim(), 16).map_err(io::Error::other)?;
            let chunk = self.exactly(length + 2).await?;
            if length == 0 {
                return Ok(body);
            }
            body.extend_from_slice(&chunk[..length]);
        }
    }

    /// Takes everything up to and with `end`.
    async fn until(&mut self, end: &[u8]) -> io::Result<Vec<u8>> {
        loop {
            if let Some(position) = self.buffer.windows(end.len()).position(|window| window == end) {
                return Ok(self.buffer.drain(..position + end.len()).collect());
            }
            self.fill().await?;
        }
    }

    async fn exactly(&mut self, length: usize) -> io::Result<Vec<u8>> {
        while self.buffer.len() < length {
            self.fill().await?;
        }
        Ok(self.buffer.drain(..length).collect())
    }

    async fn fill(&mut self) -> io::Result<()> {
        if self.stream.read_buf(&mut self.buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }
}
