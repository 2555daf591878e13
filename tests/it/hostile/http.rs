//! What comes before a WebSocket, or instead of one: requests that lie, that do not end, that are none.

use std::time::Duration;

use tokio::time::interval;

use super::{LIMIT, withstand};
use crate::harness::{Connection, POLLING, Polling, TEXT, WEBSOCKET, WebSocket, frame, handshake};

#[tokio::test]
async fn posts_that_make_no_sense_are_refused() {
    let separators = "\u{1e}".repeat(10_000);
    let pongs = "3\u{1e}".repeat(20_000);
    withstand(async |server| {
        for body in ["", "x", "b!!!", "4\u{1e}\u{1e}4", "\u{1e}", "0{}", "2", "5", "42[", &separators, &pongs] {
            let session = Polling::connect(server, "nobody").await;
            assert_eq!(session.try_post(body).await.status, 400, "{body:.20?}");
            assert!(!session.is_open().await, "{body:.20?}");
        }
        let session = Polling::connect(server, "nobody").await;
        assert_eq!(session.try_post(&format!("4{}", "2".repeat(LIMIT))).await.status, 413);
    })
    .await;
}

fn post(path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    [format!("POST {path} HTTP/1.1\r\nhost: test\r\n{headers}\r\n").as_bytes(), body].concat()
}

#[tokio::test]
async fn lengths_that_lie_are_refused() {
    withstand(async |server| {
        for (headers, body, statuses) in [
            ("content-length: 99999999999999999999999\r\n", "4x", &[400][..]),
            ("content-length: -1\r\n", "4x", &[400]),
            ("content-length: 2\r\ncontent-length: 3\r\n", "4xy", &[400]),
            ("transfer-encoding: chunked\r\n", "garbage\r\n\r\n", &[400]),
            ("transfer-encoding: chunked\r\n", "fffffffffffffffff\r\n4x", &[400, 413]),
            ("transfer-encoding: chunked\r\n", "2\r\n4xNOT", &[400]),
            ("transfer-encoding: gzip, identity\r\n", "4x", &[400]),
        ] {
            let session = Polling::connect(server, "nobody").await;
            let mut client = Connection::begin(server, post(&session.path(), headers, body.as_bytes())).await;
            let status = client.status().await;
            assert!(status.is_some_and(|status| statuses.contains(&status)), "{headers:?} {body:?}: {status:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_body_that_will_be_too_large_is_not_waited_for() {
    withstand(async |server| {
        for length in [LIMIT + 1, 999_999_999_999] {
            let session = Polling::connect(server, "nobody").await;
            let headers = format!("content-length: {length}\r\n");
            let mut client = Connection::begin(server, post(&session.path(), &headers, b"4x")).await;
            assert_eq!(client.status().await, Some(413), "{length}");
        }
    })
    .await;
}

#[tokio::test]
async fn requests_that_are_too_large_are_refused() {
    let get = |target: &str, headers: &str| format!("GET {target} HTTP/1.1\r\nhost: test\r\n{headers}\r\n");
    withstand(async |server| {
        for (name, request, statuses) in [
            ("100 kB in one header", get(POLLING, &format!("x: {}\r\n", "x".repeat(100_000))), &[431][..]),
            ("100 kB without an end", format!("GET {POLLING} HTTP/1.1\r\nx: {}", "x".repeat(100_000)), &[431]),
            ("10,000 headers", get(POLLING, &"x: y\r\n".repeat(10_000)), &[431]),
            ("a query of 1 MB", get(&format!("{POLLING}&x={}", "x".repeat(LIMIT)), ""), &[414, 431]),
            ("a query of 100 kB", get(&format!("{POLLING}&x={}", "x".repeat(100_000)), ""), &[414, 431]),
            ("a method of 100 kB", format!("{} / HTTP/1.1\r\n\r\n", "G".repeat(100_000)), &[400, 431]),
        ] {
            let mut client = Connection::begin(server, request).await;
            let status = client.status().await;
            // When the rest of the request is under way as the server closes, the answer may be lost on the way.
            assert!(status.is_none_or(|status| statuses.contains(&status)), "{name}: {status:?}");
            client.closed().await;
        }
        let mut client = Connection::begin(server, get(&format!("{POLLING}&x={}", "x".repeat(10_000)), "")).await;
        assert_eq!(client.status().await, Some(200), "10 kB are taken");
    })
    .await;
}

#[tokio::test]
async fn a_connection_that_does_not_speak_http_is_closed() {
    let client_hello = [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &[0x5a; 505]].concat();
    let requests: [&[u8]; 16] = [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x12\x04\0\0\0\0\0",
        &client_hello,
        b"\0\0\0\0\0\0\0\0",
        &[0xff; 3_000],
        b"*1\r\n$4\r\nPING\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /socket.io/?EIO=4\0&transport=polling HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
        b"GET / HTTP/1.1\r\nx\0: y\r\n\r\n",
        b"GET / HTTP/1.1\r\n : y\r\n\r\n",
        b"GET  / HTTP/1.1\r\n\r\n",
        b"\r\n\r\n\r\nGET",
        "GET /\u{e9} HTTP/1.1\r\nhost: \u{1f600}\r\n\r\n".as_bytes(),
        b"{\"jsonrpc\":\"2.0\"}\r\n\r\n",
    ];
    withstand(async |server| {
        for request in requests {
            let mut client = Connection::begin(server, request).await;
            client.finish().await;
            let status = client.status().await;
            let shown = String::from_utf8_lossy(&request[..30.min(request.len())]);
            assert!(status.is_none_or(|status| (400..500).contains(&status)), "{shown:?}: {status:?}");
            client.closed().await;
        }
    })
    .await;
}

#[tokio::test]
async fn odd_requests_get_an_error_and_no_more() {
    withstand(async |server| {
        for (line, headers) in [
            ("GET /", ""),
            ("GET //socket.io/?EIO=4&transport=polling", ""),
            ("GET /../etc/passwd?EIO=4&transport=polling", ""),
            ("GET /socket.io/?EIO=4&transport=polling&sid=%00%ff", ""),
            ("GET /socket.io/?EIO=4&transport=polling&sid=../x", ""),
            ("GET /socket.io/?EIO=3&transport=polling", ""),
            ("GET /socket.io/?EIO=4", ""),
            ("GET /socket.io/?EIO=4&transport=websocket", ""),
            ("GET /socket.io/?EIO=4&transport=polling", "upgrade: websocket\r\n"),
            ("GET /socket.io/?EIO=4&transport=websocket", "connection: upgrade\r\nupgrade: h2c\r\n"),
            (
                "GET /socket.io/?EIO=4&transport=websocket",
                "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: x\r\n",
            ),
            ("POST /socket.io/?EIO=4&transport=polling", "content-length: 0\r\n"),
            ("DELETE /socket.io/?EIO=4&transport=polling", ""),
            ("CONNECT example.org:443", ""),
            ("get /socket.io/?EIO=4&transport=polling", ""),
        ] {
            let request = format!("{line} HTTP/1.1\r\nhost: test\r\n{headers}\r\n");
            let status = Connection::begin(server, request).await.status().await;
            assert!(status.is_some_and(|status| (400..500).contains(&status)), "{line} {headers:?}: {status:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn connections_left_half_open_do_not_disturb_others() {
    withstand(async |server| {
        let mut idle = Vec::new();
        for _ in 0..100 {
            idle.push(Connection::connect(server).await);
            idle.push(Connection::begin(server, "GET /socket.io/?EIO").await);
            let half = handshake(WEBSOCKET);
            idle.push(Connection::begin(server, &half[..half.len() - 2]).await);
            let mut sent_frames_at_once = handshake(WEBSOCKET).into_bytes();
            sent_frames_at_once.extend(&frame(TEXT, "40")[..3]);
            idle.push(Connection::begin(server, sent_frames_at_once).await);
        }
        let mut late = WebSocket::connected(server).await;
        assert!(late.is_served().await);
    })
    .await;
}

/// The only test here that has to wait: as long as a client may take for the head of a request.
#[tokio::test]
async fn a_head_that_does_not_end_is_not_waited_for() {
    withstand(async |server| {
        let mut silent = Connection::connect(server).await;
        let mut half = Connection::begin(server, "GET / HTTP/1.1\r\nx: ").await;
        let mut dripping = Connection::begin(server, "GET / HTTP/1.1\r\nx: ").await;
        let drip = async {
            let mut ticker = interval(Duration::from_secs(1));
            while !dripping.has_ended() {
                ticker.tick().await;
                dripping.write("x").await;
            }
        };
        tokio::join!(silent.closed(), half.closed(), drip);
    })
    .await;
}
