//! WebSocket (RFC 6455), the server's side.
//!
//! Answers for the handshake, frames in both directions, fragments, control frames, UTF-8, close codes, the bounds of
//! what a peer may send and of what may wait for it, slow readers, and the end of a connection. Negotiates no extension
//! and no subprotocol. Generic over the [`Socket`]; knows nothing of what messages mean, and of how sockets are accepted.

mod budget;
mod connection;
mod decoder;
mod frame;
pub mod handshake;
mod outbox;

use std::{
    io::{self, IoSlice},
    os::fd::AsFd,
};

use tokio::{
    io::{Interest, Ready},
    net::TcpStream,
};

pub use self::{
    budget::{Budget, Buffer, Exhausted},
    connection::{Allowance, Connection, Disconnect, SendError, Shared},
    decoder::{Decoder, Received, Violation},
    frame::Frame,
    outbox::Outbox,
};

/// A socket that one task reads and many threads write. All methods are those of tokio's sockets.
#[expect(missing_docs, reason = "tokio has them")]
#[expect(clippy::missing_errors_doc, reason = "tokio has them")]
pub trait Socket: AsFd + Send + Sync + 'static {
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize>;
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize>;
    fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize>;
    fn ready(&self, interest: Interest) -> impl Future<Output = io::Result<Ready>> + Send;
}

impl Socket for TcpStream {
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.try_read(buffer)
    }

    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.try_write(bytes)
    }

    fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.try_write_vectored(slices)
    }

    fn ready(&self, interest: Interest) -> impl Future<Output = io::Result<Ready>> + Send {
        self.ready(interest)
    }
}
