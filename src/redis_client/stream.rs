//! A bare connection, for whoever reads the answers without the client.

use std::io;

use futures_util::future::select_ok;
use redis::{ConnectionAddr, ConnectionInfo};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream, lookup_host},
};

use super::ConnectionError;
use crate::tls;

/// Longest answer to a login in bytes.
const MAX_ANSWER: usize = 1024;

/// Bytes both ways, over TCP, TLS or a Unix socket.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Sync + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Duplex for T {}

/// A connection to Redis that is logged in and has nothing unread.
pub type Stream = Box<dyn Duplex>;

/// Dials and logs in, as the address says.
pub(super) async fn dial(info: &ConnectionInfo) -> Result<Stream, ConnectionError> {
    let mut stream: Stream = match info.addr() {
        ConnectionAddr::Tcp(host, port) => Box::new(tcp(host, *port).await?),
        ConnectionAddr::TcpTls { host, port, .. } => Box::new(tls::connect(host, tcp(host, *port).await?).await?),
        ConnectionAddr::Unix(path) => Box::new(UnixStream::connect(path).await?),
        _ => return Err(io::Error::from(io::ErrorKind::Unsupported).into()),
    };
    let login = info.redis_settings();
    if let Some(password) = login.password() {
        let mut auth = redis::cmd("AUTH");
        if let Some(user) = login.username() {
            auth.arg(user);
        }
        ask(&mut stream, auth.arg(password)).await?;
    }
    if login.db() != 0 {
        ask(&mut stream, redis::cmd("SELECT").arg(login.db())).await?;
    }
    Ok(stream)
}

/// To whichever address of `host` answers first, so that one that is silent does not keep from the others.
async fn tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut dials = lookup_host((host, port)).await?.map(|address| Box::pin(TcpStream::connect(address))).peekable();
    if dials.peek().is_none() {
        return Err(io::Error::other("the name has no address"));
    }
    let (stream, _) = select_ok(dials).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Sends a command that is answered with a status, and reads that to its end and no further.
async fn ask(stream: &mut Stream, command: &redis::Cmd) -> Result<(), ConnectionError> {
    stream.write_all(&command.get_packed_command()).await?;
    stream.flush().await?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n") && answer.len() < MAX_ANSWER {
        answer.push(stream.read_u8().await?);
    }
    match answer.strip_prefix(b"-") {
        None => Ok(()),
        Some(refusal) => Err(ConnectionError::Refused(refusal.trim_ascii_end().escape_ascii().to_string())),
    }
}
