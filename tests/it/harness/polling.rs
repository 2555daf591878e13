//! A browser that polls.

use std::net::SocketAddr;

use super::{
    http::{Exchange, Response, get},
    server::Server,
    websocket::WebSocket,
};

const SEPARATOR: char = '\x1e';

pub(crate) struct Polling {
    address: SocketAddr,
    pub(crate) sid: String,
}

impl Polling {
    /// Opens a session.
    pub(crate) async fn open(server: &Server, query: &str) -> Self {
        Self::open_at(server.address(), query).await
    }

    async fn open_at(address: SocketAddr, query: &str) -> Self {
        let response = get(address, &format!("/socket.io/?EIO=4&transport=polling{query}")).await;
        assert_eq!(response.status, 200);
        let open: serde_json::Value = serde_json::from_str(response.text().strip_prefix('0').unwrap()).unwrap();
        assert_eq!(open["upgrades"], serde_json::json!(["websocket"]));
        Self { address, sid: open["sid"].as_str().unwrap().to_owned() }
    }

    /// Opens a session and connects to the namespace; what came with the answer is left out.
    pub(crate) async fn connect(server: &Server, token: &str) -> Self {
        Self::connect_to(server.address(), token).await
    }

    /// The same, with a server elsewhere.
    pub(crate) async fn connect_to(address: SocketAddr, token: &str) -> Self {
        let session = Self::open_at(address, &format!("&channel_token={token}")).await;
        session.post("40").await;
        let mut packets = Vec::new();
        while !packets.iter().any(|packet: &String| packet.starts_with(r#"42["session""#)) {
            packets.extend(session.get().await);
        }
        assert!(packets[0].starts_with("40{"), "{packets:?}");
        assert_eq!(packets.len(), 2);
        session
    }

    /// Where requests go.
    pub(crate) fn path(&self) -> String {
        format!("/socket.io/?EIO=4&transport=polling&sid={}", self.sid)
    }

    /// The packets of one GET.
    pub(crate) async fn get(&self) -> Vec<String> {
        packets(&self.get_later().await.response().await)
    }

    /// A GET that was sent and not answered yet.
    pub(crate) async fn get_later(&self) -> Exchange {
        Exchange::begin(self.address, &format!("GET {}", self.path()), &[], b"").await.unwrap()
    }

    /// A POST that must be taken.
    pub(crate) async fn post(&self, packets: &str) {
        let response = self.try_post(packets).await;
        assert_eq!((response.status, response.text()), (200, "ok"));
    }

    /// A POST.
    pub(crate) async fn try_post(&self, packets: &str) -> Response {
        let headers = [("content-type", "text/plain;charset=UTF-8")];
        let request = format!("POST {}", self.path());
        let exchange = Exchange::begin(self.address, &request, &headers, packets.as_bytes()).await;
        exchange.unwrap().response().await
    }

    /// Whether the session still lives: an event is taken, and ignored.
    pub(crate) async fn is_open(&self) -> bool {
        self.try_post(r#"42["hello"]"#).await.status == 200
    }

    /// A WebSocket to move to.
    pub(crate) async fn websocket(&self) -> WebSocket {
        let path = super::browser::websocket_path(&format!("&sid={}", self.sid));
        WebSocket::connect(self.address, &path).await
    }
}

/// The packets in an answer to a GET.
pub(crate) fn packets(response: &Response) -> Vec<String> {
    assert_eq!(response.status, 200, "{}", response.text());
    response.text().split(SEPARATOR).map(str::to_owned).collect()
}
