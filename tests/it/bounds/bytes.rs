//! Bytes: messages that do not end, each within its bound, and all of them together.

use std::{sync::Arc, time::Duration};

use axum::{Router, body::Body, http::Request, routing::any};
use loomio_channels::{
    engineio::{CloseReason, Engine, Handler, Handshake, Malformed, Message, Options, Session},
    lifecycle::Lifecycle,
    listener,
    metrics::{Counter, Metrics},
};

use super::{gets_a_message, start};
use crate::harness::{BINARY, Browser, Connection, Ended, Polling, Running, TEXT, WebSocket, frame, header, until};

/// Longest message, as it is announced.
const LIMIT: usize = 1_000_000;

/// The same before CONNECT.
const UNPROVEN_LIMIT: usize = 65_536;

/// What all unfinished messages may hold together, in MB, and what else a flood may cost.
const BUDGET: f64 = 67.1;
const ALLOWANCE: f64 = 25.0;

/// A binary frame that lacks its end.
fn unfinished(length: usize) -> Vec<u8> {
    let mut bytes = header(BINARY, length as u64);
    bytes.resize(bytes.len() + length - 1, 0);
    bytes
}

/// How many connections have been closed.
fn ended(connections: &mut [Connection]) -> usize {
    connections.iter_mut().map(Connection::has_ended).filter(|ended| *ended).count()
}

/// Lets strangers send bytes that do not end, of which so many fit into the budget; a browser stays meanwhile.
async fn withstand(strangers: usize, fit: usize, bytes: &[u8], connect: impl AsyncFn(&Running) -> Connection) {
    let (redis, program, mut early) = start(10_000, &[]).await;
    let before = program.rss();
    let mut connections = Vec::new();
    for _ in 0..strangers {
        let mut connection = connect(&program).await;
        connection.write(bytes).await;
        connections.push(connection);
    }
    until("the rest to be refused", async || ended(&mut connections) >= strangers - fit).await;
    let grown = program.peak_rss() - before;
    assert!(grown < BUDGET + ALLOWANCE, "by {grown} MB");
    let mut late = Browser::connect(&program, "ada").await;
    gets_a_message(&mut late, &redis, 1).await;
    assert_eq!(early.number().await, 1);
}

#[tokio::test]
async fn unfinished_frames_of_many_clients_have_a_bound_together() {
    let connect = async |program: &Running| WebSocket::connected(program).await.into();
    withstand(400, 68, &unfinished(LIMIT), connect).await;
}

#[tokio::test]
async fn fragments_and_partial_frames_of_many_clients_have_a_bound_together() {
    let mut rest = unfinished(LIMIT / 2);
    // It continues the first frame.
    rest[0] = 0x80;
    let bytes = [frame(0x02, vec![0; LIMIT / 2]), rest].concat();
    let connect = async |program: &Running| WebSocket::connected(program).await.into();
    withstand(500, 68, &bytes, connect).await;
}

#[tokio::test]
async fn unfinished_frames_of_strangers_are_short_and_have_a_bound_together() {
    let connect = async |program: &Running| WebSocket::open(program).await.into();
    withstand(1_500, 1_058, &unfinished(UNPROVEN_LIMIT), connect).await;
}

#[tokio::test]
async fn unfinished_posts_have_a_bound_together() {
    let connect = async |program: &Running| {
        let polling = Polling::connect(program, "nobody").await;
        let head = format!("POST {} HTTP/1.1\r\nhost: test\r\ncontent-length: {LIMIT}\r\n\r\n", polling.path());
        Connection::begin(program, head).await
    };
    withstand(500, 68, &vec![b'4'; LIMIT - 1], connect).await;
}

#[tokio::test]
async fn before_connect_a_message_is_short() {
    let (_redis, server) = crate::harness::start().await;
    for bytes in
        [header(TEXT, UNPROVEN_LIMIT as u64 + 1), [frame(0x02, vec![0; UNPROVEN_LIMIT]), header(0x80, 1)].concat()]
    {
        let mut socket = WebSocket::open(&server).await;
        socket.write(bytes).await;
        assert_eq!(socket.end().await, Ended::Closed(Some(1009)));
    }
    let session = Polling::open(&server, "").await;
    assert_eq!(session.try_post(&"4".repeat(UNPROVEN_LIMIT + 1)).await.status, 413);
    let mut socket = WebSocket::open(&server).await;
    let token = "t".repeat(UNPROVEN_LIMIT - 30);
    socket.send(format!(r#"40{{"channel_token":"{token}"}}"#)).await;
    assert!(socket.text().await.starts_with("40{"));
}

/// Takes what comes.
struct Sink;

impl Handler for Sink {
    type State = ();

    fn open(&self, _: &Handshake<'_>) {}

    fn message(&self, _: &Arc<Session<Self>>, _: Message) -> Result<(), Malformed> {
        Ok(())
    }

    fn closed(&self, _: &Arc<Session<Self>>, _: CloseReason) {}
}

#[tokio::test]
async fn a_message_that_is_not_finished_in_time_ends_the_connection() {
    let (lifecycle, metrics) = (Lifecycle::current(), Metrics::default());
    let options = Options { message_timeout: Duration::from_millis(300), ..Options::default() };
    let engine = Engine::new(Sink, options, lifecycle.tasks().clone(), metrics.clone());
    let router =
        Router::new().route("/socket.io/", any(move |request: Request<Body>| Arc::clone(&engine).handle(request)));
    let listener = listener::bind(Some([127, 0, 0, 1].into()), 0).unwrap();
    let address = listener.local_addr().unwrap();
    let site = listener::Site { router, overflow: Router::new(), connections: 100, metrics: metrics.clone() };
    lifecycle.tasks().spawn(listener::serve(listener, site, lifecycle.tasks().clone(), lifecycle.stop().clone()));

    let mut idle = WebSocket::open(address).await;
    let whole = frame(TEXT, "4x");
    for partial in [whole[..3].to_vec(), frame(0x01, "4"), [whole.clone(), whole[..1].to_vec()].concat()] {
        let mut socket = WebSocket::open(address).await;
        socket.write(&partial).await;
        assert_eq!(socket.end().await, Ended::Closed(Some(1008)));
    }
    assert_eq!(metrics.get(Counter::InboundLate), 3);
    assert!(idle.is_served().await);
    lifecycle.stop().cancel();
}
