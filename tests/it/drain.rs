//! The drain: before the stop browsers leave a few at a time, while messages go on to those that are left.

use crate::harness::{
    Browser, Connection, Ended, POLLING, Polling, Redis, WEBSOCKET, WebSocket, get, handshake, publish, record,
    start_program, start_with, start_with_polling_ada, start_with_slow_reader,
};

/// Longer than any test waits: what ends sooner has not waited for the end of the drain. A browser
/// that polls holds it up, as it is between two requests.
const LONG: (&str, &str) = ("DRAIN_SECONDS", "300");

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
    let (redis, mut server, polling) = start_with_polling_ada(&[LONG]).await;
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
    let (_redis, mut server, polling) = start_with_polling_ada(&[LONG]).await;
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
    let (_redis, mut server, _polling) = start_with_polling_ada(&[LONG]).await;
    server.begin_drain();
    assert_eq!(server.readiness().await, 503);
    server.begin_stop();
    server.stopped().await;
}

#[tokio::test]
async fn a_signal_drains_a_program_which_then_ends_by_itself() {
    let redis = Redis::start().await;
    let mut program = start_program(&redis, &redis.url(), &[("DRAIN_SECONDS", "2")]).await;
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
    let (_redis, mut program, _slow, mut witness) = start_with_slow_reader(&[("DRAIN_SECONDS", "1")]).await;
    program.signal("TERM");
    assert_eq!(witness.end().await, Ended::Closed(Some(1001)));
    assert_eq!(program.exit().await.code(), Some(0));
    let said = program.says("stopped").await;
    assert!(said.contains("flushed=false") && said.contains("finished=true"), "{said}");
}

#[tokio::test]
async fn a_second_signal_ends_the_drain_and_the_program() {
    let redis = Redis::start().await;
    let mut program = start_program(&redis, &redis.url(), &[LONG]).await;
    let _polling = Polling::connect(&program, "ada").await;
    program.signal("TERM");
    program.becomes(503).await;
    program.signal("INT");
    assert_eq!(program.exit().await.code(), Some(0));
    let said = program.says("stopped").await;
    assert!(said.contains("flushed=false"), "{said}");
}
