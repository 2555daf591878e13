//! A return over a slow line ends: what the browser takes counts as life, and no ping waits behind the replay.

use crate::harness::{
    Browser, Event, POLLING, Polling, Redis, Server, Session, WebSocket, get, large_record, start_with, until,
};

/// Messages missed, and their length: more than the buffers of the system hold.
const MESSAGES: usize = 100;
const LENGTH: usize = 100_000;

/// Messages that the browser takes in a beat, again more than these buffers hold. Without a sign of life it would be
/// closed at the second.
const PACE: usize = 20;

const SETTINGS: [(&str, &str); 3] =
    [("PING_INTERVAL_MS", "1000"), ("PING_TIMEOUT_MS", "1000"), ("REPLAY_BYTES", "16MiB")];

/// The beats of the server's heartbeat, as another browser sees them.
struct Clock(WebSocket);

impl Clock {
    async fn start(server: &Server) -> Self {
        Self(WebSocket::connected(server).await)
    }

    async fn beat(&mut self) {
        while self.0.packet_or_ping().await.unwrap() != "2" {}
        self.0.send("3").await;
    }
}

/// A browser that has missed [`MESSAGES`].
async fn missed(redis: &Redis, server: &Server) -> Session {
    redis.user("ada", 1, &[1]).await;
    let session = Browser::connect(server, "ada").await.cut();
    for number in 0..MESSAGES {
        redis.records(large_record("group-1", number, LENGTH)).await;
    }
    server.caught_up(redis).await;
    session
}

/// Comes back on a connection that holds little; nothing is read but the OPEN packet, which is returned.
async fn back(server: &Server, session: &Session) -> (WebSocket, String) {
    let mut socket = WebSocket::narrow(server, "&channel_token=ada").await;
    let open = socket.text().await;
    socket.send(&session.packet()).await;
    (socket, open)
}

#[tokio::test]
async fn a_replay_that_takes_longer_than_the_heartbeat_ends_and_no_ping_waits_behind_it() {
    let (redis, server) = start_with(&SETTINGS).await;
    let session = missed(&redis, &server).await;
    let mut clock = Clock::start(&server).await;
    let (mut socket, _) = back(&server, &session).await;
    let (mut got, mut pings) = (Vec::new(), Vec::new());
    while got.len() < MESSAGES {
        let packet = socket.packet_or_ping().await.unwrap();
        if packet == "2" {
            pings.push(got.len());
        } else {
            got.push(Event::parse(&packet).unwrap().number());
            if got.len() % PACE == 0 {
                clock.beat().await;
            }
        }
    }
    assert_eq!(got, (0..MESSAGES).collect::<Vec<_>>());
    assert!(pings.len() > 1 && pings[0] < MESSAGES / 2, "{pings:?}");
    socket.send("3").await;
    let answer = socket.text().await;
    assert!(answer.starts_with("40{") && answer.contains(&session.pid), "{answer}");
    redis.records(large_record("group-1", MESSAGES, 0)).await;
    assert_eq!(Event::parse(&socket.text().await).unwrap().number(), MESSAGES);
}

#[tokio::test]
async fn a_browser_that_reads_nothing_of_a_replay_is_closed_as_any_other() {
    let (redis, server) = start_with(&[("PING_INTERVAL_MS", "100"), ("PING_TIMEOUT_MS", "300")]).await;
    let session = missed(&redis, &server).await;
    let (_socket, open) = back(&server, &session).await;
    let open: serde_json::Value = serde_json::from_str(&open[1..]).unwrap();
    let path = format!("{POLLING}&sid={}", open["sid"].as_str().unwrap());
    // While it lives, this is the wrong transport for it.
    until("the end of the session", async || get(&server, &path).await.text().contains("unknown")).await;
}

#[tokio::test]
async fn a_ping_is_the_first_that_a_browser_gets_of_what_waits_when_it_polls() {
    let (redis, server) = start_with(&[("PING_INTERVAL_MS", "500"), ("PING_TIMEOUT_MS", "60000")]).await;
    redis.user("ada", 1, &[1]).await;
    let polling = Polling::connect(&server, "ada").await;
    let mut later = WebSocket::open(&server).await;
    for number in 0..3 {
        redis.records(large_record("group-1", number, 600_000)).await;
    }
    server.caught_up(&redis).await;
    // Opened later, so pinged later.
    while later.packet_or_ping().await.unwrap() != "2" {}
    let mut packets = Vec::new();
    while packets.len() < 4 {
        packets.extend(polling.get().await);
    }
    assert_eq!(packets.remove(0), "2");
    let numbers: Vec<usize> = packets.iter().map(|packet| Event::parse(packet).unwrap().number()).collect();
    assert_eq!(numbers, [0, 1, 2]);
}

#[tokio::test]
async fn a_browser_that_polls_is_alive_while_it_takes_what_waits() {
    let (redis, server) = start_with(&SETTINGS).await;
    let session = missed(&redis, &server).await;
    let mut clock = Clock::start(&server).await;
    let polling = Polling::open(&server, "&channel_token=ada").await;
    polling.post(&session.packet()).await;
    let mut got = Vec::new();
    while got.len() < MESSAGES {
        got.extend(polling.numbers(PACE).await);
        clock.beat().await;
    }
    assert_eq!(got, (0..MESSAGES).collect::<Vec<_>>());
    assert!(polling.is_open().await);
}
