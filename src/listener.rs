//! The port: accepts connections and serves HTTP/1.1 on them until told to stop.
//!
//! Knows nothing of what is served.

pub mod client;
mod stream;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use axum::{Router, http::Request};
use hyper::{body::Incoming, server::conn::http1};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

pub use self::stream::Stream;
use crate::{lifecycle::Tasks, telemetry::Throttle};

/// Connections that the kernel holds until they are accepted; it takes less where `somaxconn` is lower.
const BACKLOG: i32 = 4096;

/// How long a client may take for the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest head of a request in bytes, and the size to which the buffer of a connection may grow.
const HEAD_BYTES: usize = 32 * 1024;

/// Pause when a connection cannot be accepted, as when file descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long a client may leave unread what was sent to it before its connection ends: longer than any heartbeat waits.
const STUCK_TIMEOUT: Duration = Duration::from_mins(1);

/// How long requests may take to end after the stop.
const DRAIN: Duration = Duration::from_secs(2);

/// Who sent a request, as an extension of it: the address at the other end of the connection. IPv4 is IPv4, also
/// where the port was taken for both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer(pub IpAddr);

/// Takes a port on all interfaces, IPv6 and IPv4, or on one address. Port 0 takes a free one.
///
/// # Errors
/// When the port is taken or not allowed.
pub fn bind(address: Option<IpAddr>, port: u16) -> io::Result<TcpListener> {
    match address {
        Some(address) => listen((address, port).into()),
        // Where IPv6 is switched off, IPv4 is all there is.
        None => match listen((Ipv6Addr::UNSPECIFIED, port).into()) {
            Err(error)
                if error.kind() != io::ErrorKind::AddrInUse && error.kind() != io::ErrorKind::PermissionDenied =>
            {
                listen((Ipv4Addr::UNSPECIFIED, port).into())
            }
            result => result,
        },
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    // Accepted sockets have these from the one that listens.
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(STUCK_TIMEOUT))?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

static THROTTLE: Throttle = Throttle::new();

/// Serves `router` until `stop`; then lets requests end.
pub async fn serve(listener: TcpListener, router: Router, tasks: Tasks, stop: CancellationToken) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(HEAD_BYTES);
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((stream, address)) => {
                let peer = Peer(address.ip().to_canonical());
                tasks.spawn(connection(http.clone(), stream, peer, router.clone(), stop.clone()));
            }
            // Of one connection, which is gone already.
            Err(error) if is_of_peer(&error) => {}
            Err(error) => {
                if THROTTLE.allow(Instant::now()).is_some() {
                    tracing::warn!(%error, "cannot accept connections; is the limit of open files too low?");
                }
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn is_of_peer(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

async fn connection(http: http1::Builder, stream: TcpStream, peer: Peer, router: Router, stop: CancellationToken) {
    let service = TowerToHyperService::new(router.map_request(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer);
        request
    }));
    let mut connection =
        std::pin::pin!(http.serve_connection(TokioIo::new(Stream::new(stream)), service).with_upgrades());
    // An error here is the client's: it went away or does not speak HTTP. It got its status where there is one.
    if stop.run_until_cancelled(connection.as_mut()).await.is_none() {
        connection.as_mut().graceful_shutdown();
        let _ = timeout(DRAIN, connection).await;
    }
}

#[cfg(test)]
mod tests {
    use socket2::SockRef;

    use super::*;

    #[tokio::test]
    async fn accepted_sockets_have_the_options_of_the_listener() {
        let listener = bind(Some(Ipv4Addr::LOCALHOST.into()), 0).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap());
        let (accepted, _client) = tokio::join!(listener.accept(), client);
        let (stream, _) = accepted.unwrap();
        let socket = SockRef::from(&stream);
        assert_eq!((socket.tcp_nodelay().unwrap(), socket.tcp_user_timeout().unwrap()), (true, Some(STUCK_TIMEOUT)));
    }
}
