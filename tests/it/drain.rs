//! The drain: before the stop browsers leave a few at a time, while messages go on to those that are left.

use crate::harness::{
    Browser, Connection, Ended, POLLING, Polling, Redis, Running, Server, WEBSOCKET, WebSocket, get, handshake,
    large_record, publish, record, start_with,
};

/// Longer than any test waits: what ends sooner has not waited for the end of the drain.
const LONG: (&str, &str) = ("DRAIN_SECONDS", "300");

/// A server with a browser that polls and holds up the drain, as it is between two requests.
async fn start_with_polling_ada() -> (Redis, Server, Polling) {
    let (redis, server) = start_with(&[LONG]).await;
    redis.user("ada", 1, &[]).await;
    let polling = Polling::connect(&server, "ada").await;
    (redis, server, polling)
}

/// A program with a drain of so many seconds behind a Redis with Ada.
async fn program(redis: &Redis, settings: &[(&str, &str)]) -> Running {
    redis.user("ada", 1, &[]).await;
    let program = Running::start(&[], &[&[("REDIS_URL", &*redis.url())], settings].concat()).await;
    program.becomes(200).await;
    program
}

#[tokio::test]
async fn browsers_leave_a_few_at_a_time_and_get_all_that_is_published_before() {
    const BROWSERS: usize = 60;
    let (redis, mut server) = start_with(&[("DRAIN_SECONDS", "4")]).await;
    redis.user("ada", 1, &[]).await;
    let mut open = Vec::new();
    for _ in 0..BROWSERS {
        open.push(Browser::connect(&server, "ada").await);
    }
    server.begin_drain();
    assert_eq!(server.readiness().await, 503);
    for number in 0.. {
        let before = open.len();
        redis.records(record("user-1", number)).await;
        // The next message is published when everyone has this one, so whoever leaves now had all before it.
        let mut left = Vec::new();
        for mut browser in open {
            match browser.try_event().await {
                Ok(event) => {
                    assert_eq!(event.number(), number);
                    left.push(browser);
                }
                Err(ended) => assert_eq!(ended, Ended::Closed(Some(1001))),
            }
        }
        assert!(before - left.len() <= BROWSERS / 2, "{before} browsers, and then {}", left.len());
        if left.is_empty() {
            break;
        }
        open = left;
    }
    server.stopped().await;
}

#[tokio::test]
async fn a_browser_that_polls_gets_what_was_sent_and_then_the_close() {
    let (redis, mut server, polling) = start_with_polling_ada().await;
    publish(&redis, &server, "user-1", [1]).await;
    server.begin_drain();
    assert_eq!(server.readiness().await, 503);
    publish(&redis, &server, "user-1", [2]).await;
    assert_eq!(polling.numbers(2).await, [1, 2]);
    assert_eq!(polling.get().await, ["1"]);
    server.stopped().await;
}

#[tokio::test]
async fn new_browsers_are_refused_and_others_served() {
    let (_redis, mut server, polling) = start_with_polling_ada().await;
    server.begin_drain();
    let refused = get(&server, POLLING).await;
    assert!(refused.status == 503 && refused.header("retry-after").is_some(), "{refused:?}");
    assert_eq!(Connection::begin(&server, handshake(WEBSOCKET)).await.status().await, Some(503));
    assert_eq!((server.readiness().await, get(&server, "/health/live").await.status), (503, 200));
    assert!(polling.is_open().await);
    let mut socket = polling.probed().await;
    socket.send("5").await;
    assert_eq!(socket.end().await, Ended::Closed(Some(1001)));
    server.stopped().await;
}

#[tokio::test]
async fn without_time_all_leave_with_the_stop() {
    let (redis, mut server) = start_with(&[("DRAIN_SECONDS", "0")]).await;
    redis.user("ada", 1, &[]).await;
    let mut browser = Browser::connect(&server, "ada").await;
    let polling = Polling::connect(&server, "ada").await;
    publish(&redis, &server, "user-1", [1]).await;
    server.begin_drain();
    assert_eq!(polling.numbers(1).await, [1]);
    assert_eq!(browser.number().await, 1);
    assert_eq!(browser.end().await, Ended::Closed(Some(1001)));
    server.stopped().await;
}

#[tokio::test]
async fn a_part_that_ends_by_itself_ends_the_drain() {
    let (_redis, mut server, _polling) = start_with_polling_ada().await;
    server.begin_drain();
    assert_eq!(server.readiness().await, 503);
    server.begin_stop();
    server.stopped().await;
}

#[tokio::test]
async fn a_signal_drains_a_program_which_then_ends_by_itself() {
    let redis = Redis::start().await;
    let mut program = program(&redis, &[("DRAIN_SECONDS", "2")]).await;
    let mut sockets = Vec::new();
    for _ in 0..10 {
        sockets.push(WebSocket::connected(&program).await);
    }
    program.signal("TERM");
    for socket in &mut sockets {
        assert_eq!(socket.end().await, Ended::Closed(Some(1001)));
    }
    assert_eq!(program.exit().await.code(), Some(0));
    let said = program.says("stopped").await;
    assert!(said.contains("browsers=10") && said.contains("finished=true"), "{said}");
}

#[tokio::test]
async fn a_browser_that_does_not_read_does_not_hold_up_the_end() {
    let redis = Redis::start().await;
    let mut program = program(&redis, &[("DRAIN_SECONDS", "1"), ("OUTBOX_BYTES", "1GiB")]).await;
    let socket = WebSocket::narrow(&program, "&channel_token=ada").await;
    let _slow = Browser::over(socket, "40").await;
    let mut witness = Browser::connect(&program, "ada").await;
    redis.many_records((0..200).map(|number| large_record("user-1", number, 100_000))).await;
    redis.fence("end").await;
    witness.upto("end").await;
    program.signal("TERM");
    assert_eq!(witness.end().await, Ended::Closed(Some(1001)));
    assert_eq!(program.exit().await.code(), Some(0));
    let said = program.says("stopped").await;
    assert!(said.contains("flushed=false") && said.contains("finished=true"), "{said}");
}

#[tokio::test]
async fn a_second_signal_ends_the_drain_and_the_program() {
    let redis = Redis::start().await;
    let mut program = program(&redis, &[LONG]).await;
    let _polling = Polling::connect(&program, "ada").await;
    program.signal("TERM");
    program.becomes(503).await;
    program.signal("INT");
    assert_eq!(program.exit().await.code(), Some(0));
    let said = program.says("stopped").await;
    assert!(said.contains("flushed=false"), "{said}");
}
