//! The port: accepts connections, as many as there are places, and serves HTTP/1.1 on them until told to stop.
//!
//! Knows nothing of what is served.

pub mod client;
mod places;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    http::{HeaderMap, Request, header::CONTENT_LENGTH},
};
use bytes::Bytes;
use futures_util::{
    FutureExt,
    future::{AbortHandle, Abortable},
};
use hyper::{
    body::Incoming,
    server::conn::http1::{self, Parts},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    task::yield_now,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use self::places::{OVERFLOW, Places};
pub use self::places::{Place, capacity};
use crate::{
    lifecycle::Tasks,
    metrics::{Counter, Metrics},
    telemetry::Throttle,
};

/// Connections that the kernel holds until they are accepted; it takes less where `somaxconn` is lower.
const BACKLOG: i32 = 4096;

/// How long a client may take for the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// The same for a connection in the overflow, whose place has to be free again soon.
const OVERFLOW_HEAD_TIMEOUT: Duration = Duration::from_secs(1);

/// Longest head of a request in bytes, as in Node, and the size to which the buffer of a connection may grow.
const HEAD_BYTES: usize = 16 * 1024;

/// Pause when a connection cannot be accepted, as when file descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long a client may leave unread what was sent to it before its connection ends: longer than any heartbeat waits.
const STUCK_TIMEOUT: Duration = Duration::from_mins(1);

/// How long requests may take to end after the stop. The process ends soon after.
const REQUEST_DRAIN: Duration = Duration::from_millis(300);

/// The connection on which a request came, as an extension of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The address at the other end. IPv4 is IPv4, also where the port was taken for both.
    pub address: IpAddr,
    /// The number of the connection, which no other ever has.
    pub connection: u64,
}

/// What is served, and to how many.
#[derive(Debug)]
pub struct Site {
    /// Answers the requests of regular connections.
    pub router: Router,
    /// Answers requests while all places are taken: refuses them, or reports health. Each response ends its connection.
    pub overflow: Router,
    /// Connections at a time.
    pub connections: usize,
    /// Counts the connections that are refused or displaced.
    pub metrics: Metrics,
}

/// Takes a port on all interfaces, IPv6 and IPv4, or on one address. Port 0 takes a free one. Fails when the port is taken
/// or not allowed.
pub fn bind(address: Option<IpAddr>, port: u16) -> io::Result<TcpListener> {
    match address {
        Some(address) => listen((address, port).into()),
        None => listen((Ipv6Addr::UNSPECIFIED, port).into()).or_else(|error| match error.kind() {
            io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied => Err(error),
            // Where IPv6 is switched off, IPv4 is all there is.
            _ => listen((Ipv4Addr::UNSPECIFIED, port).into()),
        }),
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
    // Accepted sockets inherit these options.
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(STUCK_TIMEOUT))?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Serves `site` until `stop`; then lets requests end.
pub async fn serve(listener: TcpListener, site: Site, tasks: Tasks, stop: CancellationToken) {
    static FAILED: Throttle = Throttle::new();
    static REFUSED: Throttle = Throttle::new();
    let Site { router, overflow, connections, metrics } = site;
    let zone = |most, router, head_timeout, keep_alive| {
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(head_timeout).max_buf_size(HEAD_BYTES).keep_alive(keep_alive);
        Zone { http, router, places: Places::new(most, metrics.clone()), stop: stop.clone() }
    };
    let regular = zone(connections, router, HEAD_TIMEOUT, true);
    let overflow = zone(OVERFLOW, overflow, OVERFLOW_HEAD_TIMEOUT, false);
    let mut connection = 0;
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((stream, address)) => {
                connection += 1;
                let peer = Peer { address: address.ip().to_canonical(), connection };
                let (handle, registration) = AbortHandle::new_pair();
                let (mut zone, mut taken) = (&regular, regular.places.take(connection, &handle));
                let is_refused = taken.is_none();
                if is_refused {
                    metrics.count(Counter::ConnectionsRefused);
                    if let Some(more_since_last) = REFUSED.allow(Instant::now()) {
                        tracing::warn!(more_since_last, connections, "refused a connection: all places are taken");
                    }
                    (zone, taken) = (&overflow, overflow.places.take(connection, &handle));
                }
                let displaces = taken.as_ref().is_some_and(|(_, displaces)| *displaces);
                if let Some((place, _)) = taken {
                    let connection = Abortable::new(zone.connection(stream, peer, place), registration);
                    // A displaced connection is dropped as it is.
                    tasks.spawn(connection.map(drop));
                }
                if displaces || is_refused {
                    // The displaced connection must end, and the short response go out, before the next is accepted.
                    yield_now().await;
                }
            }
            // The error of a connection that is gone already.
            Err(error) if is_of_peer(&error) => {}
            Err(error) => {
                if FAILED.allow(Instant::now()).is_some() {
                    tracing::warn!(%error, "cannot accept connections; is the limit of open files too low?");
                }
                if regular.places.displace() || overflow.places.displace() {
                    yield_now().await;
                } else {
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// A connection that has left HTTP.
#[derive(Debug)]
pub struct Upgraded {
    /// The socket.
    pub stream: TcpStream,
    /// What must be sent before anything else: the response, when it is not sent yet.
    pub head: Vec<u8>,
    /// What the client has sent after its request.
    pub read: Bytes,
    /// To be kept for as long as the socket is open.
    pub place: Place,
}

type Takeover = Box<dyn FnOnce(Upgraded) + Send>;

/// As an extension of a response with status 101: takes the connection over. A response that cannot be sent drops it.
#[derive(Clone)]
pub struct Upgrade(Arc<Mutex<Option<Takeover>>>);

impl Upgrade {
    /// Calls `owner` with the connection; it must not block.
    pub fn to(owner: impl FnOnce(Upgraded) + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(Some(Box::new(owner)))))
    }
}

/// Connections that are served alike.
struct Zone {
    http: http1::Builder,
    router: Router,
    places: Arc<Places>,
    stop: CancellationToken,
}

impl Zone {
    /// Serves a connection until it ends or leaves HTTP.
    fn connection(&self, stream: TcpStream, peer: Peer, place: Place) -> impl Future<Output = ()> + Send + use<> {
        let (place, leaving) = (Arc::new(place), Arc::new(Mutex::new(None)));
        let service = {
            let (router, place, leaving) = (self.router.clone(), Arc::clone(&place), Arc::clone(&leaving));
            service_fn(move |mut request: Request<Incoming>| {
                let is_first = place.heard();
                request.extensions_mut().insert(peer);
                let (response, leaving) = (router.clone().oneshot(request), Arc::clone(&leaving));
                async move {
                    let Ok(mut response) = response.await;
                    let Some(upgrade) = response.extensions_mut().remove::<Upgrade>() else { return Ok(response) };
                    // A response that is the first on its connection is left to the new owner of the socket, which sends
                    // it together with its own first bytes: one packet and one wake-up of the client less. Before a
                    // later one, hyper may still have to send the end of an earlier response.
                    let (head, response) = if is_first {
                        (encoded(response.headers()), Err("the connection leaves HTTP"))
                    } else {
                        (Vec::new(), Ok(response))
                    };
                    let owner = upgrade.0.lock().take();
                    *leaving.lock() = owner.map(|owner| (owner, head));
                    response
                }
            })
        };
        let connection = self.http.serve_connection(TokioIo::new(stream), service);
        let stop = self.stop.clone();
        async move {
            // Dropped in the reverse order: the place is free when the socket is closed.
            let place = place;
            let mut connection = connection;
            // An error here is the client's: it went away or does not speak HTTP. It got a status where HTTP has one.
            if stop.run_until_cancelled(&mut connection).await.is_none() {
                Pin::new(&mut connection).graceful_shutdown();
                let _ = timeout(REQUEST_DRAIN, &mut connection).await;
            }
            let left = leaving.lock().take();
            if let Some((owner, head)) = left {
                let Parts { io, read_buf: read, service, .. } = connection.into_parts();
                // The service has the only other share of the place.
                drop(service);
                if let Some(place) = Arc::into_inner(place) {
                    owner(Upgraded { stream: io.into_inner(), head, read, place });
                }
            }
        }
    }
}

/// A response with status 101 as it is sent: it has no length (RFC 9110, section 8.6), which axum adds all the same.
fn encoded(headers: &HeaderMap) -> Vec<u8> {
    let mut head = b"HTTP/1.1 101 Switching Protocols\r\n".to_vec();
    for (name, value) in headers.iter().filter(|(name, _)| *name != CONTENT_LENGTH) {
        head.extend_from_slice(&[name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
    }
    head.extend_from_slice(b"\r\n");
    head
}

fn is_of_peer(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

#[cfg(test)]
mod tests {
    use axum::{http::StatusCode, response::IntoResponse, routing::get};
    use socket2::SockRef;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::lifecycle::Lifecycle;

    #[tokio::test]
    async fn accepted_sockets_have_the_options_of_the_listener() {
        let listener = bind(Some(Ipv4Addr::LOCALHOST.into()), 0).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap());
        let (accepted, _client) = tokio::join!(listener.accept(), client);
        let (stream, _) = accepted.unwrap();
        let socket = SockRef::from(&stream);
        assert_eq!((socket.tcp_nodelay().unwrap(), socket.tcp_user_timeout().unwrap()), (true, Some(STUCK_TIMEOUT)));
    }

    /// Sends the response, what the client has sent with its request, and a full stop.
    async fn upgrade() -> impl IntoResponse {
        let upgrade = Upgrade::to(|Upgraded { stream, head, read, .. }| {
            stream.try_write(&[&head, &read[..], b"."].concat()).unwrap();
        });
        (StatusCode::SWITCHING_PROTOCOLS, [("upgrade", "test")], axum::Extension(upgrade))
    }

    /// Everything that a client gets which sends this.
    async fn talk(request: &str) -> String {
        let lifecycle = Lifecycle::current();
        let router = Router::new().route("/", get(upgrade)).route("/page", get(async || "page"));
        let site = Site { router, overflow: Router::new(), connections: 1, metrics: Metrics::default() };
        let listener = bind(Some([127, 0, 0, 1].into()), 0).unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        lifecycle.tasks().spawn(serve(listener, site, lifecycle.tasks().clone(), lifecycle.stop().clone()));
        client.write_all(request.as_bytes()).await.unwrap();
        let mut received = String::new();
        timeout(Duration::from_secs(10), client.read_to_string(&mut received)).await.unwrap().unwrap();
        lifecycle.stop().cancel();
        received
    }

    const REQUEST: &str = "GET / HTTP/1.1\r\nhost: test\r\nconnection: upgrade\r\nupgrade: test\r\n\r\n";

    #[tokio::test]
    async fn the_owner_gets_the_response_and_what_was_sent_with_the_request() {
        let received = talk(&format!("{REQUEST}more")).await;
        assert_eq!(received, "HTTP/1.1 101 Switching Protocols\r\nupgrade: test\r\n\r\nmore.");
    }

    #[tokio::test]
    async fn a_connection_may_leave_http_after_other_requests() {
        let received = talk(&format!("GET /page HTTP/1.1\r\nhost: test\r\n\r\n{REQUEST}more")).await;
        let (page, switch) = received.split_once("page").unwrap();
        assert!(page.starts_with("HTTP/1.1 200 ") && switch.starts_with("HTTP/1.1 101 "), "{received}");
        assert!(switch.ends_with("\r\n\r\nmore."), "{received}");
    }
}
