//! Just enough HTTP/1.1: one request on a connection of its own.

use std::net::SocketAddr;

use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::within;

/// An answer.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: Vec<u8>,
}

impl Response {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let headers = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        headers.into_iter().find(|(header, _)| header.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    pub(crate) fn text(&self) -> &str {
        str::from_utf8(&self.body).unwrap()
    }
}

/// A request on its way. Its connection is closed when this is dropped.
pub(crate) struct Exchange(TcpStream);

impl Exchange {
    pub(crate) async fn begin(
        address: SocketAddr,
        request: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> std::io::Result<Self> {
        let mut stream = TcpStream::connect(address).await?;
        let mut head = format!("{request} HTTP/1.1\r\nhost: test\r\ncontent-length: {}\r\n", body.len());
        for (name, value) in headers {
            head.extend([name, ": ", value, "\r\n"]);
        }
        stream.write_all(&[head.as_bytes(), b"\r\n", body].concat()).await?;
        Ok(Self(stream))
    }

    pub(crate) async fn response(mut self) -> Response {
        within("an answer over HTTP", async {
            let mut rest = BytesMut::new();
            let head = read_head(&mut self.0, &mut rest).await;
            let status = head.split(' ').nth(1).unwrap().parse().unwrap();
            let mut response = Response { status, head, body: Vec::new() };
            let length: usize = response.header("content-length").map_or(0, |length| length.parse().unwrap());
            while rest.len() < length {
                assert_ne!(self.0.read_buf(&mut rest).await.unwrap(), 0, "the answer was cut off");
            }
            response.body = rest.to_vec();
            response
        })
        .await
    }
}

/// Reads up to the empty line; what was read beyond it stays in `buffer`.
pub(super) async fn read_head(stream: &mut TcpStream, buffer: &mut BytesMut) -> String {
    loop {
        if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            return String::from_utf8(buffer.split_to(end + 4).to_vec()).unwrap();
        }
        assert_ne!(stream.read_buf(buffer).await.unwrap(), 0, "no answer");
    }
}

pub(crate) async fn get(address: SocketAddr, target: &str) -> Response {
    get_with(address, target, &[]).await
}

pub(crate) async fn get_with(address: SocketAddr, target: &str, headers: &[(&str, &str)]) -> Response {
    Exchange::begin(address, &format!("GET {target}"), headers, b"").await.unwrap().response().await
}
