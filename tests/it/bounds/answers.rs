//! What waits for clients that do not read: answers to strangers, payloads of polling clients, and what a CONNECT carried
//! while Redis hangs.

use loomio_channels::metrics::Counter;

use super::start;
use crate::harness::{
    Connection, Polling, Running, TEXT, WebSocket, frame, get, large_record, start as serve, start_with_polling_ada,
};

/// CONNECT packets for other namespaces that are answered.
const REFUSED: usize = 8;

#[tokio::test]
async fn a_stranger_is_refused_few_namespaces() {
    let (_redis, server) = serve().await;
    let mut websocket = WebSocket::open(&server).await;
    websocket.write(frame(TEXT, "40/x,").repeat(REFUSED)).await;
    assert!(websocket.is_served().await);
    websocket.write(frame(TEXT, "40/x,")).await;
    websocket.end().await;

    let polling = Polling::open(&server, "").await;
    polling.post(&["40/x,"; REFUSED].join("\u{1e}")).await;
    assert_eq!(polling.try_post("40/x,").await.status, 400);
    assert!(!polling.is_open().await);
}

#[tokio::test]
async fn a_client_that_asks_again_before_it_has_read_is_closed() {
    let (redis, server, polling) = start_with_polling_ada(&[]).await;
    // More than the kernel takes.
    redis.records(large_record("user-1", 1, 7_500_000)).await;
    server.counted(Counter::MessagesReceived, 1).await;
    let request = format!("GET {} HTTP/1.1\r\nHost: x\r\n\r\n", polling.path());
    let mut unread = Connection::begin(&server, request).await;
    assert!(unread.head().await.contains(" 200 "));
    assert_eq!(get(&server, &polling.path()).await.status, 400);
    assert!(!polling.is_open().await);
}

/// Strangers that leave while Redis hangs, what each sends, and what that may cost in MB: far less than its bytes.
const STRANGERS: usize = 1_500;
const PID: usize = 60_000;
const COST: f64 = 40.0;

async fn connect_and_leave(program: &Running, connect: &[u8]) {
    let mut websocket = WebSocket::open(program).await;
    websocket.write(connect).await;
    assert!(websocket.is_served().await);
}

#[tokio::test]
async fn a_connect_is_not_kept_while_redis_hangs() {
    let (redis, program, _early) = start(10_000, &[]).await;
    redis.freeze();
    let before = program.rss();
    let connect = frame(TEXT, format!(r#"40{{"channel_token":"x","pid":"{}"}}"#, "x".repeat(PID)));
    for _ in 0..STRANGERS {
        connect_and_leave(&program, &connect).await;
    }
    let grown = program.peak_rss() - before;
    assert!(grown < COST, "by {grown} MB");
    redis.thaw();
}
