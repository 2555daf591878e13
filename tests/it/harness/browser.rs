//! A browser: what the official client does with a WebSocket, and what it remembers.

use std::net::SocketAddr;

use serde_json::value::RawValue;

use super::{
    redis::Redis,
    websocket::{Ended, WEBSOCKET, WebSocket},
};

/// An event as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) name: String,
    /// Its argument, byte for byte; empty when there is none.
    pub(crate) argument: String,
    pub(crate) offset: String,
    /// The whole packet.
    pub(crate) packet: String,
}

impl Event {
    /// Reads `42[…]`; `None` for another packet. Every event must end with its offset.
    pub(crate) fn parse(packet: &str) -> Option<Self> {
        let items: Vec<&RawValue> = serde_json::from_str(packet.strip_prefix("42")?).unwrap();
        let text = |item: &RawValue| serde_json::from_str::<String>(item.get()).unwrap();
        let (first, last) = (items.first().unwrap(), items.last().unwrap());
        let argument = if items.len() == 3 { items[1].get() } else { "" };
        let (argument, packet) = (argument.to_owned(), packet.to_owned());
        Some(Self { name: text(first), argument, offset: text(last), packet })
    }

    /// The number in a [`record`](super::record).
    pub(crate) fn number(&self) -> usize {
        let argument: serde_json::Value = serde_json::from_str(&self.argument).unwrap();
        let number = argument["records"]["n"].as_u64();
        usize::try_from(number.unwrap_or_else(|| panic!("not a numbered record: {}", self.packet))).unwrap()
    }

    fn is_fence(&self, name: &str) -> bool {
        self.name == "notice" && self.argument == fence(name)
    }
}

/// The argument of a notice that shows how far everything has come.
pub(super) fn fence(name: &str) -> String {
    format!(r#"{{"fence":"{name}"}}"#)
}

/// What a browser comes back with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Session {
    pub(crate) sid: String,
    pub(crate) pid: String,
    pub(crate) offset: Option<String>,
}

impl Session {
    /// The packet that resumes it.
    pub(crate) fn packet(&self) -> String {
        let offset = self.offset.as_ref().map(|offset| format!(r#","offset":"{offset}""#)).unwrap_or_default();
        format!(r#"40{{"pid":"{}"{offset}}}"#, self.pid)
    }

    /// The same, of a browser that knows no offset.
    pub(crate) fn without_offset(&self) -> Self {
        Self { offset: None, ..self.clone() }
    }
}

/// A browser that is connected to the namespace.
pub(crate) struct Browser {
    socket: WebSocket,
    pub(crate) session: Session,
    /// Events that came before its CONNECT was answered.
    pub(crate) missed: Vec<Event>,
    /// Whether it is the session it asked for.
    pub(crate) recovered: bool,
}

impl Browser {
    /// Connects with a token.
    pub(crate) async fn connect(to: impl Into<SocketAddr>, token: &str) -> Self {
        Self::open(to, &format!("&channel_token={token}"), "40").await
    }

    /// Connects without one.
    pub(crate) async fn anonymous(to: impl Into<SocketAddr>) -> Self {
        Self::open(to, "", "40").await
    }

    /// Comes back.
    pub(crate) async fn resume(to: impl Into<SocketAddr>, token: &str, session: &Session) -> Self {
        Self::open(to, &format!("&channel_token={token}"), &session.packet()).await
    }

    /// Connects with more of a query and a CONNECT packet.
    pub(crate) async fn open(to: impl Into<SocketAddr>, query: &str, connect: &str) -> Self {
        Self::over(WebSocket::connect(to, &format!("{WEBSOCKET}{query}")).await, connect).await
    }

    /// Connects over a WebSocket of which nothing has been read.
    pub(crate) async fn over(mut socket: WebSocket, connect: &str) -> Self {
        let open = socket.text().await;
        assert!(open.starts_with(r#"0{"sid":"#), "{open}");
        socket.send(connect).await;
        Self::join(socket, connect).await
    }

    /// Waits for the answer to a CONNECT packet.
    async fn join(mut socket: WebSocket, connect: &str) -> Self {
        let mut missed = Vec::new();
        let answer = loop {
            let packet = socket.text().await;
            match Event::parse(&packet) {
                Some(event) => missed.push(event),
                None => break packet,
            }
        };
        let answer = answer.strip_prefix("40").unwrap_or_else(|| panic!("{answer}"));
        let answer: serde_json::Value = serde_json::from_str(answer).unwrap();
        let text = |name: &str| answer[name].as_str().unwrap().to_owned();
        let offset = missed.last().map(|event| event.offset.clone());
        let session = Session { sid: text("sid"), pid: text("pid"), offset };
        let recovered = connect.contains(&format!(r#""pid":"{}""#, session.pid));
        let mut browser = Self { socket, session, missed, recovered };
        if recovered {
            if browser.session.offset.is_none() {
                browser.session.offset = sent_offset(connect);
            }
        } else {
            let prime = browser.try_any_event().await.unwrap();
            assert_eq!((prime.name.as_str(), prime.argument.as_str()), ("session", ""));
        }
        browser
    }

    /// The next event.
    pub(crate) async fn event(&mut self) -> Event {
        self.try_event().await.expect("an event")
    }

    /// The next event that a client could listen to, or how the connection ended.
    pub(crate) async fn try_event(&mut self) -> Result<Event, Ended> {
        loop {
            let event = self.try_any_event().await?;
            if event.name != "session" {
                return Ok(event);
            }
        }
    }

    /// The next event, be it one that only tells an offset.
    pub(crate) async fn try_any_event(&mut self) -> Result<Event, Ended> {
        let packet = self.socket.packet().await?;
        let event = Event::parse(&packet).unwrap_or_else(|| panic!("not an event: {packet}"));
        self.session.offset = Some(event.offset.clone());
        Ok(event)
    }

    /// The argument of the next event.
    pub(crate) async fn argument(&mut self) -> String {
        self.event().await.argument
    }

    /// The number of the next record.
    pub(crate) async fn number(&mut self) -> usize {
        self.event().await.number()
    }

    /// All events before a [fence](super::Redis::fence).
    pub(crate) async fn upto(&mut self, name: &str) -> Vec<Event> {
        let mut events = Vec::new();
        loop {
            match self.event().await {
                event if event.is_fence(name) => return events,
                event => events.push(event),
            }
        }
    }

    /// All events that come before a fence that is published now.
    pub(crate) async fn rest(&mut self, redis: &Redis) -> Vec<Event> {
        redis.fence("rest").await;
        self.upto("rest").await
    }

    /// Leaves the namespace; returns when the server knows.
    pub(crate) async fn leave(&mut self) {
        self.socket.send("41").await;
        // Packets are handled in order, and this one is answered.
        self.socket.send("40/elsewhere,").await;
        let answer = self.socket.text().await;
        assert_eq!(answer, r#"44/elsewhere,{"message":"Invalid namespace"}"#);
    }

    /// After it has left: connects again on the same connection.
    pub(crate) async fn reconnect(mut self, connect: &str) -> Self {
        self.socket.send(connect).await;
        Self::join(self.socket, connect).await
    }

    /// Reads on until the connection ends.
    pub(crate) async fn end(&mut self) -> Ended {
        self.socket.end().await
    }

    /// The same, answering no ping.
    pub(crate) async fn end_in_silence(&mut self) -> Ended {
        self.socket.end_in_silence().await
    }

    /// Loses its connection.
    pub(crate) fn cut(self) -> Session {
        self.socket.cut();
        self.session
    }
}

fn sent_offset(connect: &str) -> Option<String> {
    let data: serde_json::Value = serde_json::from_str(connect.strip_prefix("40")?).ok()?;
    Some(data.get("offset")?.as_str()?.to_owned())
}
