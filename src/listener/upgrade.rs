//! How a connection leaves HTTP: a response with status 101 says what happens with the socket.

use std::sync::{Arc, Mutex, PoisonError};

use axum::http::{HeaderMap, header::CONTENT_LENGTH};
use bytes::Bytes;
use tokio::net::TcpStream;

use super::Place;

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

    pub(super) fn run(self, upgraded: Upgraded) {
        let owner = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(owner) = owner {
            owner(upgraded);
        }
    }
}

/// A response with status 101 as it is sent: it has no length (RFC 9110, section 8.6), which axum adds all the same.
pub(super) fn encoded(headers: &HeaderMap) -> Vec<u8> {
    let mut head = b"HTTP/1.1 101 Switching Protocols\r\n".to_vec();
    for (name, value) in headers.iter().filter(|(name, _)| *name != CONTENT_LENGTH) {
        head.extend_from_slice(&[name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
    }
    head.extend_from_slice(b"\r\n");
    head
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::{Router, http::StatusCode, response::IntoResponse, routing::get};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        time::timeout,
    };

    use super::*;
    use crate::{
        lifecycle::Lifecycle,
        listener::{Site, bind, serve},
        metrics::Metrics,
    };

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
        let site = Site { router, overflow: Router::new(), connections: 1, metrics: Metrics::new() };
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
