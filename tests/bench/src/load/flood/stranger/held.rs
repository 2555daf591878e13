//! Connections that are opened and held: with what is never finished, or with nothing at all.

use std::io;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::{NOBODY, PATIENCE, Stranger};
use crate::load::{flood::Flood, websocket::WebSocket};

/// What Engine.IO takes for one message, and all but its last byte.
const MESSAGE: usize = 1_000_000;

impl Stranger {
    /// All but the last byte of something large, and for POSTs without the head.
    pub(super) fn unfinished(&self) -> Vec<u8> {
        const TEXT: u8 = 1;
        const FIN: u8 = 0x80;
        const CONTINUATION: u8 = 0;
        let frame = |first: u8, length: usize| {
            let mut frame = vec![first, 0xff];
            frame.extend_from_slice(&(length as u64).to_be_bytes());
            frame.resize(frame.len() + 4, 0);
            frame.resize(frame.len() + length, b'x');
            frame
        };
        let mut bytes = match self.order.flood {
            Flood::Frames => frame(FIN | TEXT, MESSAGE),
            // Both are within what a message may have, if a server only looks at one of them.
            Flood::Fragments => [frame(TEXT, MESSAGE / 2), frame(FIN | CONTINUATION, MESSAGE / 2)].concat(),
            Flood::Bodies => vec![b'x'; MESSAGE],
            _ => Vec::new(),
        };
        bytes.pop();
        bytes
    }

    /// Opens a connection, says what is never finished, and stays until the server closes it.
    pub(super) async fn hold(&self, index: usize, unfinished: &[u8]) -> io::Result<()> {
        let permit = self.gate.acquire().await;
        self.add(1);
        let stream = timeout(PATIENCE, self.open(index)).await??;
        drop(permit);
        let (mut reader, mut writer) = stream.into_split();
        let write = async {
            writer.write_all(unfinished).await?;
            std::future::pending::<io::Result<()>>().await
        };
        let read = async {
            let mut buffer = [0; 256];
            while reader.read(&mut buffer).await? > 0 {}
            Ok(())
        };
        tokio::select! {
            end = read => end,
            end = write => end,
        }
    }

    pub(super) async fn open(&self, index: usize) -> io::Result<TcpStream> {
        let mut stream = self.dial(index).await?;
        match self.order.flood {
            Flood::Frames | Flood::Fragments => {
                Ok(WebSocket::upgrade(stream, NOBODY + index, self.order.port).await?.into_stream())
            }
            Flood::Bodies => {
                stream.write_all(self.handshake().as_bytes()).await?;
                let mut answer = Vec::new();
                let sid = loop {
                    if stream.read_buf(&mut answer).await? == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    let text = String::from_utf8_lossy(&answer);
                    let sid = text.split_once(r#""sid":""#).and_then(|(_, rest)| rest.split_once('"'));
                    if let Some((sid, _)) = sid {
                        break sid.to_owned();
                    }
                };
                let head = format!(
                    "POST /socket.io/?EIO=4&transport=polling&sid={sid} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\n\
                     Content-Length: {MESSAGE}\r\n\r\n",
                    self.order.port
                );
                stream.write_all(head.as_bytes()).await?;
                Ok(stream)
            }
            _ => Ok(stream),
        }
    }
}
