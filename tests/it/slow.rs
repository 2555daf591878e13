//! A browser that does not read is closed before it costs memory, disturbs no other, and misses nothing when it returns.

use loomio_channels::metrics::Counter;

use crate::harness::{Browser, Ended, Polling, Redis, WebSocket, large_record, numbers, start_with, until};

const SMALL_OUTBOX: [(&str, &str); 1] = [("OUTBOX_BYTES", "64KiB")];

/// Large enough that the buffers of the system soon are full.
const LENGTH: usize = 100_000;

/// Publishes until it is `enough`; `witness` reads along, so that it never falls behind. Returns the number of messages.
async fn publish_until(redis: &Redis, witness: &mut Browser, mut enough: impl FnMut() -> bool) -> usize {
    let mut number = 0;
    while !enough() {
        redis.records(large_record("group-1", number, LENGTH)).await;
        assert_eq!(witness.number().await, number);
        number += 1;
        assert!(number < 600, "60 MB should be enough");
    }
    number
}

#[tokio::test]
async fn a_browser_that_stops_reading_is_closed_and_recovers_without_a_hole_and_others_are_not_disturbed() {
    let (redis, server) = start_with(&SMALL_OUTBOX).await;
    redis.user("ada", 1, &[1]).await;
    let socket = WebSocket::narrow(&server, "&channel_token=ada");
    let mut slow = Browser::over(socket.await, "40").await;
    let mut witness = Browser::connect(&server, "ada").await;
    let published = publish_until(&redis, &mut witness, || server.count(Counter::SlowClosed) > 0).await;

    let mut got = Vec::new();
    let ended = loop {
        match slow.try_event().await {
            Ok(event) => got.push(event),
            Err(ended) => break ended,
        }
    };
    assert!(matches!(ended, Ended::Lost | Ended::Closed(Some(1013))), "{ended:?}");
    assert!(got.len() < published);
    let mut back = Browser::resume(&server, "ada", &slow.session).await;
    assert!(back.recovered);
    let all = [numbers(&got), numbers(&back.missed)].concat();
    assert_eq!(all, (0..published).collect::<Vec<_>>());
    redis.fence("end").await;
    assert_eq!(back.upto("end").await, []);
    assert_eq!(witness.upto("end").await, []);
    assert_eq!(server.count(Counter::SlowClosed), 1);
}

#[tokio::test]
async fn an_unread_replay_does_not_close_a_browser_but_live_messages_after_it_do() {
    let (redis, server) = start_with(&[("OUTBOX_BYTES", "64KiB"), ("REPLAY_BYTES", "64MiB")]).await;
    redis.user("ada", 1, &[1]).await;
    let session = Browser::connect(&server, "ada").await.cut();
    let mut witness = Browser::connect(&server, "ada").await;
    let mut times = 0..200;
    publish_until(&redis, &mut witness, || times.next().is_none()).await;

    let mut socket = WebSocket::narrow(&server, "&channel_token=ada").await;
    assert!(socket.text().await.starts_with("0{"));
    socket.send(&session.packet()).await;
    server.counted(Counter::Recovered, 1).await;
    for number in 200..202 {
        redis.records(large_record("group-1", number, LENGTH)).await;
        assert_eq!(witness.number().await, number);
    }
    server.counted(Counter::SlowClosed, 1).await;
    let back = Browser::resume(&server, "ada", &session).await;
    assert_eq!((back.recovered, numbers(&back.missed)), (true, (0..202).collect()));
}

#[tokio::test]
async fn a_single_message_may_be_larger_than_the_bound() {
    let (redis, server) = start_with(&SMALL_OUTBOX).await;
    redis.user("ada", 1, &[1]).await;
    let mut browser = Browser::connect(&server, "ada").await;
    let large = large_record("group-1", 1, 7_000_000);
    redis.records(&large).await;
    assert_eq!(browser.argument().await, large);
    assert_eq!(server.count(Counter::SlowClosed), 0);
}

#[tokio::test]
async fn a_browser_that_stops_polling_is_closed() {
    let (redis, server) = start_with(&SMALL_OUTBOX).await;
    redis.user("ada", 1, &[1]).await;
    let polling = Polling::connect(&server, "ada").await;
    let mut witness = Browser::connect(&server, "ada").await;
    publish_until(&redis, &mut witness, || server.count(Counter::SlowClosed) > 0).await;
    until("the end of the session", async || !polling.is_open().await).await;
    assert_eq!(witness.rest(&redis).await, []);
}

#[tokio::test]
async fn a_browser_that_does_not_answer_a_ping_is_closed() {
    let (redis, server) = start_with(&[("PING_INTERVAL_MS", "100"), ("PING_TIMEOUT_MS", "300")]).await;
    redis.user("ada", 1, &[1]).await;
    let mut silent = Browser::connect(&server, "ada").await;
    let polling = Polling::connect(&server, "ada").await;
    let mut witness = Browser::connect(&server, "ada").await;
    let silence = async {
        assert_eq!(silent.end_in_silence().await, Ended::Closed(None));
        until("the end of the session", async || !polling.is_open().await).await;
        redis.fence("end").await;
    };
    let (events, ()) = tokio::join!(witness.upto("end"), silence);
    assert_eq!(events, []);
}
