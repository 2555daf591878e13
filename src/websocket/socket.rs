//! What a connection needs of its socket: reads and writes that never wait.

use std::{
    future::Future,
    io::{self, IoSlice},
    os::fd::AsFd,
};

use tokio::net::TcpStream;

/// A socket that one task reads and many threads write. All methods are those of tokio's sockets.
#[expect(missing_docs, reason = "tokio has them")]
#[expect(clippy::missing_errors_doc, reason = "tokio has them")]
pub trait Socket: AsFd + Send + Sync + 'static {
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize>;
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize>;
    fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize>;
    fn readable(&self) -> impl Future<Output = io::Result<()>> + Send;
    fn writable(&self) -> impl Future<Output = io::Result<()>> + Send;
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

    fn readable(&self) -> impl Future<Output = io::Result<()>> + Send {
        self.readable()
    }

    fn writable(&self) -> impl Future<Output = io::Result<()>> + Send {
        self.writable()
    }
}
