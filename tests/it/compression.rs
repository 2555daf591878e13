//! Answers to browsers that poll: compressed once for all of them, and not lost with one of them.

use std::io::Read;

use flate2::read::GzDecoder;
use loomio_channels::metrics::Counter;

use crate::harness::{Browser, Event, Exchange, Polling, Session, large_record, numbers, record, start, until};

/// A GET of a browser that takes gzip.
async fn poll(server: &crate::harness::Server, polling: &Polling) -> Exchange {
    let headers = [("accept-encoding", "gzip, deflate, br")];
    Exchange::begin(server.address(), &format!("GET {}", polling.path()), &headers, b"").await.unwrap()
}

/// The packets of an answer that must be compressed.
async fn unpacked(exchange: Exchange) -> Vec<String> {
    let response = exchange.response().await;
    assert_eq!((response.status, response.header("content-encoding")), (200, Some("gzip")));
    assert_eq!(response.header("vary"), Some("Accept-Encoding"));
    let mut text = String::new();
    GzDecoder::new(&*response.body).read_to_string(&mut text).unwrap();
    text.split('\x1e').map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_to_a_hundred_browsers_that_poll_is_compressed_once_and_holds_up_nobody() {
    let (redis, server) = start().await;
    redis.user("ada", 1, &[1]).await;
    redis.user("bob", 2, &[2]).await;
    let mut browser = Browser::connect(&server, "bob").await;
    let mut waiting = Vec::new();
    for _ in 0..100 {
        let polling = Polling::connect(&server, "ada").await;
        waiting.push(poll(&server, &polling).await);
    }
    // One of them goes away while the answer is made.
    waiting.swap_remove(0);
    let large = large_record("group-1", 0, 300_000);
    redis.records(&large).await;
    for number in 0..20 {
        redis.records(record("group-2", number)).await;
        assert_eq!(browser.number().await, number);
    }
    for exchange in waiting {
        let packets = unpacked(exchange).await;
        assert_eq!(Event::parse(&packets[0]).unwrap().argument, large);
        assert_eq!(packets.len(), 1);
    }
    assert_eq!(server.count(Counter::Compressed), 1);
}

#[tokio::test]
async fn messages_of_all_lengths_arrive_compressed_in_one_answer() {
    let (redis, server) = start().await;
    redis.user("ada", 1, &[]).await;
    let polling = Polling::connect(&server, "ada").await;
    let payloads: Vec<String> =
        [1, 10, 300, 5_000, 70_000, 400_000, 1].map(|length| large_record("user-1", 7, length)).to_vec();
    for payload in &payloads {
        redis.records(payload).await;
    }
    // The shard has handed over all of them when it has handed over one that came later.
    let mut browser = Browser::connect(&server, "ada").await;
    redis.fence("end").await;
    browser.upto("end").await;
    let packets = unpacked(poll(&server, &polling).await).await;
    let arguments: Vec<String> = packets.iter().map(|packet| Event::parse(packet).unwrap().argument).collect();
    assert_eq!(arguments[..payloads.len()], payloads);
}

#[tokio::test]
async fn a_browser_that_goes_away_in_the_middle_of_an_answer_misses_nothing() {
    let (redis, server) = start().await;
    redis.user("ada", 1, &[]).await;
    let session: Session = Browser::connect(&server, "ada").await.cut();
    let polling = Polling::open(&server, "&channel_token=ada").await;
    polling.post(&session.packet()).await;
    assert_eq!(polling.get().await.len(), 1);
    redis.records(large_record("user-1", 1, 7_000_000)).await;
    server.caught_up(&redis).await;
    drop(polling.get_later().await);
    until("the end of the session", async || !polling.is_open().await).await;
    let browser = Browser::resume(&server, "ada", &session).await;
    assert_eq!((browser.recovered, numbers(&browser.missed)), (true, vec![1]));
}
