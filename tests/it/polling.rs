//! Browsers that poll: a whole session, the move to a WebSocket, and what goes wrong on the way.

use loomio_channels::metrics::Counter;

use crate::harness::{
    Browser, Event, Exchange, POLLING, Polling, Session, get, get_with, large_record, numbers, packets, publish,
    record, start, start_behind_proxy, start_with_ada, start_with_polling_ada, until,
};

/// What browsers send as `accept-encoding`.
const GZIP: Option<&str> = Some("gzip, deflate, br");

/// The packets of a response that must be compressed.
async fn unpacked(exchange: Exchange) -> Vec<String> {
    let response = exchange.response().await;
    assert_eq!(response.header("content-encoding"), Some("gzip"));
    packets(&response)
}

#[tokio::test]
async fn a_session_from_handshake_to_close() {
    let (redis, server, polling) = start_with_polling_ada(&[]).await;

    let waiting = polling.get_later().await;
    let payload = r#"{"room":"user-1", "records":{"n":1.0,"é":"\u00e9"}}"#;
    redis.records(payload).await;
    let response = waiting.response().await;
    let event = Event::parse(response.text()).unwrap();
    assert_eq!(event.packet, format!(r#"42["records",{payload},"{}"]"#, event.offset));

    for number in 2..5 {
        redis.records(record("user-1", number)).await;
    }
    server.caught_up(&redis).await;
    assert_eq!(polling.numbers(3).await, [2, 3, 4]);

    polling.post("42[\"ignored\",{}]\x1e3").await;
    polling.post("1").await;
    let gone = get(&server, &polling.path()).await;
    assert_eq!((gone.status, gone.text()), (400, r#"{"code":1,"message":"Session ID unknown"}"#));
}

#[tokio::test]
async fn a_session_goes_from_one_transport_to_the_other_and_back() {
    let (redis, server, browser) = start_with_ada(&[]).await;
    let session = browser.cut();
    publish(&redis, &server, "user-1", [1]).await;

    let polling = Polling::open(&server, "&channel_token=ada").await;
    polling.post(&session.packet()).await;
    let packets = polling.get().await;
    let missed = Event::parse(&packets[0]).unwrap();
    assert_eq!(missed.number(), 1);
    assert_eq!(packets[1..], [format!(r#"40{{"sid":"{}","pid":"{}"}}"#, session.sid, session.pid)]);
    polling.post("1").await;

    publish(&redis, &server, "user-1", [2]).await;
    let session = Session { offset: Some(missed.offset), ..session };
    let browser = Browser::resume(&server, "ada", &session).await;
    assert_eq!((browser.recovered, numbers(&browser.missed)), (true, vec![2]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_in_the_middle_of_a_stream_loses_and_repeats_nothing() {
    const MESSAGES: usize = 2_000;
    let (redis, server) = start().await;
    redis.user("ada", 1, &[]).await;
    for upgrade_after in [0, 1, 10, 100] {
        let polling = Polling::connect(&server, "ada").await;
        let mut got = Vec::new();
        let mut note = |packets: &[String]| {
            got.extend(packets.iter().filter_map(|packet| Event::parse(packet)).map(|event| event.number()));
            got.len()
        };
        let reader = async {
            let mut count = 0;
            while count < upgrade_after {
                count = note(&polling.get().await);
            }
            let waiting = polling.get_later().await;
            let mut socket = polling.probed().await;
            // The client goes on polling until the probe has ended its last GET.
            let mut answer = packets(&waiting.response().await);
            while answer != ["6"] {
                note(&answer);
                answer = polling.get().await;
            }
            socket.send("5").await;
            while note(&[socket.text().await]) < MESSAGES {}
            socket
        };
        let writer = async {
            for number in 0..MESSAGES {
                redis.records(record("user-1", number)).await;
            }
        };
        let (mut socket, ()) = tokio::join!(reader, writer);
        redis.fence("end").await;
        assert!(socket.text().await.starts_with(r#"42["notice",{"fence":"end"}"#));
        assert_eq!(got, (0..MESSAGES).collect::<Vec<_>>());
        socket.cut();
    }
}

#[tokio::test]
async fn a_connect_may_be_answered_after_the_upgrade() {
    let (redis, proxy, server) = start_behind_proxy(&[]).await;
    proxy.hold();
    let polling = Polling::open(&server, "&channel_token=ada").await;
    polling.post("40").await;
    let waiting = polling.get_later().await;
    let mut socket = polling.probed().await;
    assert_eq!(packets(&waiting.response().await), ["6"]);
    socket.send("5").await;
    proxy.release();
    assert!(socket.text().await.starts_with("40{"));
    assert!(socket.text().await.starts_with(r#"42["session""#));
    redis.records(record("user-1", 1)).await;
    assert_eq!(Event::parse(&socket.text().await).unwrap().number(), 1);
}

#[tokio::test]
async fn once_moved_to_a_websocket_the_session_no_longer_polls() {
    let (redis, server, polling) = start_with_polling_ada(&[]).await;
    let mut socket = polling.probed().await;
    socket.send("5").await;
    redis.records(record("user-1", 1)).await;
    assert_eq!(Event::parse(&socket.text().await).unwrap().number(), 1);
    let refused = get(&server, &polling.path()).await;
    assert_eq!((refused.status, refused.text()), (400, r#"{"code":3,"message":"Bad request"}"#));
    redis.records(record("user-1", 2)).await;
    assert_eq!(Event::parse(&socket.text().await).unwrap().number(), 2);
}

#[tokio::test]
async fn a_probe_that_fails_leaves_polling_alive() {
    let (redis, _server, polling) = start_with_polling_ada(&[]).await;
    for (count, probe) in [None, Some("2"), Some("5"), Some("2probe"), Some("nonsense")].into_iter().enumerate() {
        let mut socket = polling.websocket().await;
        if let Some(probe) = probe {
            socket.send(probe).await;
        }
        if probe == Some("2probe") {
            assert_eq!(socket.text().await, "3probe");
        }
        socket.cut();
        redis.records(record("user-1", count)).await;
        // While the probe is not known to have failed, GETs are answered at once with a noop.
        assert_eq!(polling.numbers(1).await, [count]);
    }
    let mut socket = polling.probed().await;
    socket.send("5").await;
    redis.records(record("user-1", 9)).await;
    assert_eq!(Event::parse(&socket.text().await).unwrap().number(), 9);
}

#[tokio::test]
async fn a_get_that_is_aborted_ends_the_session_and_nothing_is_lost() {
    let (redis, server, browser) = start_with_ada(&[]).await;
    let session = browser.cut();
    let polling = Polling::open(&server, "&channel_token=ada").await;
    polling.post(&session.packet()).await;
    assert_eq!(polling.get().await.len(), 1);
    drop(polling.get_later().await);
    until("the end of the session", async || !polling.is_open().await).await;
    publish(&redis, &server, "user-1", [1]).await;
    let browser = Browser::resume(&server, "ada", &session).await;
    assert_eq!((browser.recovered, numbers(&browser.missed)), (true, vec![1]));
}

#[tokio::test]
async fn a_second_get_ends_the_session() {
    let (_redis, _server, polling) = start_with_polling_ada(&[]).await;
    let (first, second) = (polling.get_later().await, polling.get_later().await);
    let mut answers = [first.response().await, second.response().await].map(|answer| (answer.status, answer.body));
    answers.sort();
    let refused = br#"{"code":3,"message":"Bad request"}"#.to_vec();
    assert_eq!(answers, [(200, b"1".to_vec()), (400, refused)]);
    assert!(!polling.is_open().await);
}

#[tokio::test]
async fn long_responses_are_compressed_for_clients_that_accept_gzip() {
    let (redis, server) = start().await;
    redis.user("ada", 1, &[]).await;
    for (accepted, compressed) in [(GZIP, true), (Some("br"), false), (None, false)] {
        let polling = Polling::connect(&server, "ada").await;
        let payload = large_record("user-1", 1, 5_000);
        let waiting = polling.get_accepting(accepted).await;
        redis.records(&payload).await;
        let response = waiting.response().await;
        assert_eq!(response.header("content-encoding"), compressed.then_some("gzip"));
        assert_eq!(Event::parse(&packets(&response)[0]).unwrap().argument, payload);
    }
    let open = get_with(&server, POLLING, &[("accept-encoding", "gzip")]).await;
    assert_eq!(open.header("content-encoding"), None, "short answers stay as they are");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_to_a_hundred_browsers_that_poll_is_compressed_once_and_delays_no_other_browser() {
    let (redis, server) = start().await;
    redis.user("ada", 1, &[1]).await;
    redis.user("bob", 2, &[2]).await;
    let mut browser = Browser::connect(&server, "bob").await;
    let mut waiting = Vec::new();
    for _ in 0..100 {
        let polling = Polling::connect(&server, "ada").await;
        waiting.push(polling.get_accepting(GZIP).await);
    }
    // One browser goes away while the response is made.
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
    let (redis, server, mut browser) = start_with_ada(&[]).await;
    let polling = Polling::connect(&server, "ada").await;
    let payloads: Vec<String> =
        [1, 10, 300, 5_000, 70_000, 400_000, 1].map(|length| large_record("user-1", 7, length)).to_vec();
    for payload in &payloads {
        redis.records(payload).await;
    }
    // The shard has handed over all of them when it has handed over one that came later.
    redis.fence("end").await;
    browser.upto("end").await;
    let packets = unpacked(polling.get_accepting(GZIP).await).await;
    let arguments: Vec<String> = packets.iter().map(|packet| Event::parse(packet).unwrap().argument).collect();
    assert_eq!(arguments[..payloads.len()], payloads);
}

#[tokio::test]
async fn a_browser_that_goes_away_in_the_middle_of_an_answer_misses_nothing() {
    let (redis, server, browser) = start_with_ada(&[]).await;
    let session = browser.cut();
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
