//! Browsers that poll: a whole session, the move to a WebSocket, and what goes wrong on the way.

use std::io::Read;

use flate2::read::GzDecoder;

use crate::harness::{
    Browser, Event, Exchange, Polling, Session, get, get_with, large_record, packets, record, start,
    start_behind_proxy, until,
};

/// The number of the only event in an answer.
fn number(packets: &[String]) -> usize {
    assert_eq!(packets.len(), 1, "{packets:?}");
    Event::parse(&packets[0]).unwrap().number()
}

#[tokio::test]
async fn a_session_from_handshake_to_close() {
    let (redis, server) = start().await;
    redis.user("ada", 1, &[]).await;
    let polling = Polling::connect(&server, "ada").await;

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
    let mut got = Vec::new();
    while got.len() < 3 {
        got.extend(polling.get().await.iter().map(|packet| Event::parse(packet).unwrap().number()));
    }
    assert_eq!(got, [2, 3, 4]);

    polling.post("42[\"ignored\",{}]\x1e3").await;
    polling.post("1").await;
    let gone = get(server.address(), &polling.path()).await;
    assert_eq!((gone.status, gone.text()), (400, r#"{"code":1,"message":"Session ID unknown"}"#));
}

#[tokio::test]
async fn a_session_goes_from_one_transport_to_the_other_and_back() {
    let (redis, server) = start().await;
    redis.user("ada", 1, &[]).await;
    let session = Browser::connect(&server, "ada").await.cut();
    redis.records(record("user-1", 1)).await;
    server.caught_up(&redis).await;

    let polling = Polling::open(&server, "&channel_token=ada").await;
    polling.post(&session.packet()).await;
    let packets = polling.get().await;
    let missed = Event::parse(&packets[0]).unwrap();
    assert_eq!(missed.number(), 1);
    assert_eq!(packets[1..], [format!(r#"40{{"sid":"{}","pid":"{}"}}"#, session.sid, session.pid)]);
    polling.post("1").await;

    redis.records(record("user-1", 2)).await;
    server.caught_up(&redis).await;
    let session = Session { offset: Some(missed.offset), ..session };
    let browser = Browser::resume(&server, "ada", &session).await;
    assert_eq!((browser.recovered, browser.missed.iter().map(Event::number).collect()), (true, vec![2]));
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
            let mut socket = polling.websocket().await;
            socket.send("2probe").await;
            assert_eq!(socket.packet().await.unwrap(), "3probe");
            // The client goes on polling until the probe has ended its last GET.
            let mut answer = packets(&waiting.response().await);
            while answer != ["6"] {
                note(&answer);
                answer = polling.get().await;
            }
            socket.send("5").await;
            while note(&[socket.packet().await.unwrap()]) < MESSAGES {}
            socket
        };
        let writer = async {
            for number in 0..MESSAGES {
                redis.records(record("user-1", number)).await;
            }
        };
        let (mut socket, ()) = tokio::join!(reader, writer);
        redis.fence("end").await;
        assert!(socket.packet().await.unwrap().starts_with(r#"42["notice",{"fence":"end"}"#));
        assert_eq!(got, (0..MESSAGES).collect::<Vec<_>>());
        socket.cut();
    }
}

#[tokio::test]
async fn a_connect_may_be_answered_after_the_upgrade() {
    let (redis, proxy, server) = start_behind_proxy().await;
    redis.user("ada", 1, &[]).await;
    proxy.hold();
    let polling = Polling::open(&server, "&channel_token=ada").await;
    polling.post("40").await;
    let waiting = polling.get_later().await;
    let mut socket = polling.websocket().await;
    socket.send("2probe").await;
    assert_eq!(socket.packet().await.unwrap(), "3probe");
    assert_eq!(packets(&waiting.response().await), ["6"]);
    socket.send("5").await;
    proxy.release();
    assert!(socket.packet().await.unwrap().starts_with("40{"));
    assert!(socket.packet().await.unwrap().starts_with(r#"42["session""#));
    redis.records(record("user-1", 1)).await;
    assert_eq!(Event::parse(&socket.packet().await.unwrap()).unwrap().number(), 1);
}

#[tokio::test]
async fn once_moved_to_a_websocket_the_session_no_longer_polls() {
    let (redis, server) = start().await;
    redis.user("ada", 1, &[]).await;
    let polling = Polling::connect(&server, "ada").await;
    let mut socket = polling.websocket().await;
    socket.send("2probe").await;
    assert_eq!(socket.packet().await.unwrap(), "3probe");
    socket.send("5").await;
    redis.records(record("user-1", 1)).await;
    assert_eq!(Event::parse(&socket.packet().await.unwrap()).unwrap().number(), 1);
    let refused = get(server.address(), &polling.path()).await;
    assert_eq!((refused.status, refused.text()), (400, r#"{"code":3,"message":"Bad request"}"#));
    redis.records(record("user-1", 2)).await;
    assert_eq!(Event::parse(&socket.packet().await.unwrap()).unwrap().number(), 2);
}

#[tokio::test]
async fn a_probe_that_fails_leaves_polling_alive() {
    let (redis, server) = start().await;
    redis.user("ada", 1, &[]).await;
    let polling = Polling::connect(&server, "ada").await;
    for (count, probe) in [None, Some("2"), Some("5"), Some("2probe"), Some("nonsense")].into_iter().enumerate() {
        let mut socket = polling.websocket().await;
        if let Some(probe) = probe {
            socket.send(probe).await;
        }
        if probe == Some("2probe") {
            assert_eq!(socket.packet().await.unwrap(), "3probe");
        }
        socket.cut();
        redis.records(record("user-1", count)).await;
        let mut packets = polling.get().await;
        // While the probe is not known to have failed, a GET is not kept waiting.
        while packets == ["6"] {
            packets = polling.get().await;
        }
        assert_eq!(number(&packets), count);
    }
    let mut socket = polling.websocket().await;
    socket.send("2probe").await;
    assert_eq!(socket.packet().await.unwrap(), "3probe");
    socket.send("5").await;
    redis.records(record("user-1", 9)).await;
    assert_eq!(Event::parse(&socket.packet().await.unwrap()).unwrap().number(), 9);
}

#[tokio::test]
async fn a_get_that_is_aborted_ends_the_session_and_nothing_is_lost() {
    let (redis, server) = start().await;
    redis.user("ada", 1, &[]).await;
    let session = Browser::connect(&server, "ada").await.cut();
    let polling = Polling::open(&server, "&channel_token=ada").await;
    polling.post(&session.packet()).await;
    assert_eq!(polling.get().await.len(), 1);
    drop(polling.get_later().await);
    until("the end of the session", async || !polling.is_open().await).await;
    redis.records(record("user-1", 1)).await;
    server.caught_up(&redis).await;
    let browser = Browser::resume(&server, "ada", &session).await;
    assert_eq!((browser.recovered, browser.missed.iter().map(Event::number).collect()), (true, vec![1]));
}

#[tokio::test]
async fn a_second_get_ends_the_session() {
    let (redis, server) = start().await;
    redis.user("ada", 1, &[]).await;
    let polling = Polling::connect(&server, "ada").await;
    let (first, second) = (polling.get_later().await, polling.get_later().await);
    let mut answers = [first.response().await, second.response().await].map(|answer| (answer.status, answer.body));
    answers.sort();
    let refused = br#"{"code":3,"message":"Bad request"}"#.to_vec();
    assert_eq!(answers, [(200, b"1".to_vec()), (400, refused)]);
    assert!(!polling.is_open().await);
}

#[tokio::test]
async fn long_answers_are_compressed_for_those_who_take_it() {
    let (redis, server) = start().await;
    redis.user("ada", 1, &[]).await;
    for (accepted, compressed) in [(Some("gzip, deflate, br"), true), (Some("br"), false), (None, false)] {
        let polling = Polling::connect(&server, "ada").await;
        let payload = large_record("user-1", 1, 5_000);
        let headers: Vec<_> = accepted.map(|accepted| ("accept-encoding", accepted)).into_iter().collect();
        let waiting =
            Exchange::begin(server.address(), &format!("GET {}", polling.path()), &headers, b"").await.unwrap();
        redis.records(&payload).await;
        let response = waiting.response().await;
        assert_eq!(response.header("content-encoding"), compressed.then_some("gzip"));
        let mut text = String::new();
        if compressed {
            GzDecoder::new(&*response.body).read_to_string(&mut text).unwrap();
        } else {
            text.push_str(response.text());
        }
        assert_eq!(Event::parse(&text).unwrap().argument, payload);
    }
    let open = get_with(server.address(), "/socket.io/?EIO=4&transport=polling", &[("accept-encoding", "gzip")]).await;
    assert_eq!(open.header("content-encoding"), None, "short answers stay as they are");
}
