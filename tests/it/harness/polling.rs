//! A browser that polls.

use std::net::SocketAddr;

use super::{
    browser::Event,
    connection::{Exchange, Response, get},
    websocket::{WEBSOCKET, WebSocket},
};

/// Where a session that polls is opened.
pub(crate) const POLLING: &str = "/socket.io/?EIO=4&transport=polling";

const SEPARATOR: char = '\x1e';

pub(crate) struct Polling {
    address: SocketAddr,
    pub(crate) sid: String,
}

impl Polling {
    /// Opens a session.
    pub(crate) async fn open(to: impl Into<SocketAddr>, query: &str) -> Self {
        let address = to.into();
        let response = get(address, &format!("{POLLING}{query}")).await;
        assert_eq!(response.status, 200);
        let open: serde_json::Value = serde_json::from_str(response.text().strip_prefix('0').unwrap()).unwrap();
        assert_eq!(open["upgrades"], serde_json::json!(["websocket"]));
        Self { address, sid: open["sid"].as_str().unwrap().to_owned() }
    }

    /// Opens a session and connects to the namespace; what came with the answer is left out.
    pub(crate) async fn connect(to: impl Into<SocketAddr>, token: &str) -> Self {
        let session = Self::open(to, &format!("&channel_token={token}")).await;
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
        format!("{POLLING}&sid={}", self.sid)
    }

    /// The packets of one GET.
    pub(crate) async fn get(&self) -> Vec<String> {
        packets(&self.get_later().await.response().await)
    }

    /// A GET that was sent and not answered yet.
    pub(crate) async fn get_later(&self) -> Exchange {
        self.get_accepting(None).await
    }

    /// The same, with an `accept-encoding`.
    pub(crate) async fn get_accepting(&self, encodings: Option<&str>) -> Exchange {
        let headers: Vec<_> = encodings.map(|encodings| ("accept-encoding", encodings)).into_iter().collect();
        Exchange::begin(self.address, &format!("GET {}", self.path()), &headers, b"").await.unwrap()
    }

    /// The numbers of the records that GETs bring until there are `count` of them.
    pub(crate) async fn numbers(&self, count: usize) -> Vec<usize> {
        let mut numbers = Vec::new();
        while numbers.len() < count {
            numbers
                .extend(self.get().await.iter().filter_map(|packet| Event::parse(packet)).map(|event| event.number()));
        }
        numbers
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
        WebSocket::connect(self.address, &format!("{WEBSOCKET}&sid={}", self.sid)).await
    }

    /// The same after a probe that was answered.
    pub(crate) async fn probed(&self) -> WebSocket {
        let mut socket = self.websocket().await;
        socket.send("2probe").await;
        assert_eq!(socket.text().await, "3probe");
        socket
    }
}

/// The packets in an answer to a GET.
pub(crate) fn packets(response: &Response) -> Vec<String> {
    assert_eq!(response.status, 200, "{}", response.text());
    response.content().split(SEPARATOR).map(str::to_owned).collect()
}
