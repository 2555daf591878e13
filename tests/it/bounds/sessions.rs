//! Sessions: a polling session needs no descriptor, so descriptors are no bound.

use std::cell::Cell;

use loomio_channels::metrics::Counter;

use super::{gets_a_message, start};
use crate::harness::{
    Browser, Connection, Ended, POLLING, Polling, Running, WEBSOCKET, WebSocket, get_with, handshake, start_with, until,
};

/// Polling sessions without CONNECT that one connection may open, at most.
const PER_CONNECTION: usize = 256;

/// Requests under way at a time.
const PIPELINE: usize = 50;

/// Requests that are a flood.
const FLOOD: usize = 20_000;

/// Asks for sessions over one connection, one after the other, [`FLOOD`] times and until `over`; how many there were.
async fn flood(program: &Running, over: &Cell<bool>) -> usize {
    let mut connection = Connection::connect(program).await;
    let request = format!("GET {POLLING} HTTP/1.1\r\nhost: test\r\n\r\n").repeat(PIPELINE);
    let (mut asked, mut opened) = (0, 0);
    while asked < FLOOD || !over.get() {
        connection.write(&request).await;
        for _ in 0..PIPELINE {
            let response = connection.response().await;
            match response.status {
                200 => opened += 1,
                503 => assert!(response.header("retry-after").is_some()),
                other => panic!("{other}"),
            }
        }
        asked += PIPELINE;
    }
    opened
}

#[tokio::test]
async fn one_connection_brings_few_sessions_and_a_browser_beside_the_flood_connects() {
    let (redis, program, mut early) = start(10_000, &[]).await;
    let before = program.rss();
    let served = Cell::new(false);
    let beside = async {
        let mut late = Browser::connect(&program, "ada").await;
        gets_a_message(&mut late, &redis, 1).await;
        served.set(true);
    };
    let (opened, ()) = tokio::join!(flood(&program, &served), beside);
    assert!((1..=PER_CONNECTION).contains(&opened), "{opened}");
    assert!(program.peak_rss() - before < 4.0, "{} MB after {before} MB", program.peak_rss());
    assert_eq!(early.number().await, 1);
}

#[tokio::test]
async fn of_a_flood_through_many_connections_the_oldest_sessions_go_and_a_browser_gets_in() {
    let (redis, server) = start_with(&[("MAX_SESSIONS", "100")]).await;
    redis.user("ada", 1, &[]).await;
    let mut early = Browser::connect(&server, "ada").await;
    let mut first = WebSocket::open(&server).await;
    for _ in 0..49 {
        Polling::open(&server, "").await;
    }
    assert!(first.is_served().await);
    assert_eq!(server.count(Counter::UnprovenClosed), 0);
    for times in 1..=200 {
        Polling::open(&server, "").await;
        assert_eq!(server.count(Counter::UnprovenClosed), times);
    }
    assert_eq!(first.end().await, Ended::Closed(None), "it was the oldest");
    let mut late = Browser::connect(&server, "ada").await;
    redis.fence("end").await;
    late.upto("end").await;
    early.upto("end").await;
    assert_eq!(server.count(Counter::SessionsRefused), 0);
}

#[tokio::test]
async fn a_browser_whose_connect_has_come_makes_no_room_while_redis_is_slow() {
    let (redis, server) = start_with(&[("MAX_SESSIONS", "2")]).await;
    redis.freeze();
    let mut browser = WebSocket::connect(&server, &format!("{WEBSOCKET}&channel_token=ada")).await;
    assert!(browser.text().await.starts_with("0{"));
    browser.send("40").await;
    browser.send("40/other,").await;
    assert!(browser.text().await.starts_with("44/other,"), "refused after the CONNECT has been read");
    for _ in 0..3 {
        Polling::open(&server, "").await;
    }
    redis.thaw();
    assert!(browser.text().await.starts_with("40{"));
    assert_eq!(server.count(Counter::UnprovenClosed), 2, "the polling sessions that came before the last");
}

#[tokio::test]
async fn a_full_server_refuses_sessions_and_says_when_to_try_again() {
    let (_redis, server) = start_with(&[("MAX_SESSIONS", "2"), ("CANONICAL_HOST", "loomio.example.org")]).await;
    let browser = Browser::anonymous(&server).await;
    let _other = Browser::anonymous(&server).await;
    let refused = get_with(&server, POLLING, &[("origin", "https://loomio.example.org")]).await;
    assert_eq!((refused.status, refused.text()), (503, r#"{"code":6,"message":"Server is busy"}"#));
    assert_eq!(refused.header("access-control-allow-origin"), Some("https://loomio.example.org"));
    let seconds: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=5).contains(&seconds));
    let mut websocket = Connection::begin(&server, handshake(WEBSOCKET)).await;
    let head = websocket.head().await.to_lowercase();
    assert!(head.starts_with("http/1.1 503 ") && head.contains("\r\nretry-after: "), "{head}");
    assert_eq!(server.count(Counter::SessionsRefused), 2);
    browser.cut();
    until("room for another", async || get_with(&server, POLLING, &[]).await.status == 200).await;
}

#[tokio::test]
async fn an_address_has_so_many_sessions_and_the_next_has_its_own() {
    let (_redis, server) = start_with(&[("MAX_SESSIONS_PER_ADDRESS", "2")]).await;
    let ask = async |forwarded: &str| {
        let headers: Vec<_> = (!forwarded.is_empty()).then_some(("x-forwarded-for", forwarded)).into_iter().collect();
        get_with(&server, POLLING, &headers).await.status
    };
    let mut statuses = Vec::new();
    for address in ["203.0.113.7", "203.0.113.7", "203.0.113.7", "1.2.3.4, 203.0.113.7", "203.0.113.8"] {
        statuses.push(ask(address).await);
    }
    assert_eq!(statuses, [200, 200, 503, 503, 200]);
    // A proxy that sends no client address stands for all its clients.
    assert_eq!([ask("").await, ask("").await, ask("").await], [200; 3]);
}

#[tokio::test]
async fn sessions_without_connect_end() {
    let (redis, server) = start_with(&[("CONNECT_TIMEOUT_MS", "200")]).await;
    let mut browser = Browser::anonymous(&server).await;
    let mut websocket = WebSocket::open(&server).await;
    let polling = Polling::open(&server, "").await;
    assert_eq!(websocket.end().await, Ended::Closed(None));
    server.counted(Counter::UnprovenClosed, 2).await;
    assert!(!polling.is_open().await);
    redis.fence("end").await;
    browser.upto("end").await;
}
