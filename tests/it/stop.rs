//! The end: browsers are told, so that they come back by themselves, and nothing holds it up.

use std::time::{Duration, Instant};

use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::harness::{
    Browser, Ended, Polling, Program, Redis, WebSocket, get, large_record, record, start, start_behind_proxy,
    start_with, until, within,
};

/// Much less than a soft stop may take.
const AT_ONCE: Duration = Duration::from_secs(1);

/// A container is killed ten seconds after it was told to stop; this is soon.
const SOON: Duration = Duration::from_secs(4);

#[tokio::test]
async fn websockets_are_closed_as_by_a_server_that_goes_away() {
    let (redis, server) = start().await;
    redis.user("ada", 1, &[]).await;
    let mut browsers = [Browser::connect(&server, "ada").await, Browser::anonymous(&server).await];
    let mut fresh = WebSocket::connect(server.address(), "/socket.io/?EIO=4&transport=websocket").await;
    assert!(fresh.packet().await.unwrap().starts_with("0{"));
    server.begin_stop();
    for browser in &mut browsers {
        assert_eq!(browser.end().await, Ended::Closed(Some(1001)));
    }
    assert_eq!(fresh.end().await, Ended::Closed(Some(1001)));
    server.stop().await;
}

#[tokio::test]
async fn a_get_that_waits_is_answered_with_the_close_packet() {
    let (redis, mut server) = start().await;
    redis.user("ada", 1, &[]).await;
    let polling = Polling::connect(&server, "ada").await;
    let waiting = polling.get_later().await;
    // The same connection order as the server's: this one is answered after the GET has been read.
    assert_eq!(get(server.address(), "/health/live").await.status, 200);
    server.begin_stop();
    assert_eq!(waiting.response().await.text(), "1");
    server.stopped().await;
}

#[tokio::test]
async fn an_idle_server_stops_at_once_and_frees_its_port() {
    let (_redis, server) = start().await;
    let start = Instant::now();
    server.stop().await;
    assert!(start.elapsed() < SOON);
}

#[tokio::test]
async fn a_browser_that_does_not_read_does_not_hold_up_the_stop() {
    let (redis, server) = start_with(&[("OUTBOX_BYTES", "1GiB")]).await;
    redis.user("ada", 1, &[]).await;
    let path = "/socket.io/?EIO=4&transport=websocket&channel_token=ada";
    let _slow = Browser::over(WebSocket::connect_narrow(server.address(), path).await, "40").await;
    let mut witness = Browser::connect(&server, "ada").await;
    redis.many_records((0..200).map(|number| large_record("user-1", number, 100_000))).await;
    redis.fence("end").await;
    witness.upto("end").await;
    let start = Instant::now();
    server.stop().await;
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_lookup_that_hangs_does_not_hold_up_the_stop() {
    let (redis, proxy, server) = start_behind_proxy().await;
    redis.user("ada", 1, &[]).await;
    let mut known = Browser::connect(&server, "ada").await;
    proxy.hang();
    let mut waiting =
        WebSocket::connect(server.address(), "/socket.io/?EIO=4&transport=websocket&channel_token=ada").await;
    assert!(waiting.packet().await.unwrap().starts_with("0{"));
    waiting.send("40").await;
    assert!(waiting.packet().await.unwrap().starts_with("40{"), "connected as a visitor, and the lookup goes on");
    let start = Instant::now();
    server.begin_stop();
    assert_eq!(known.end().await, Ended::Closed(Some(1001)));
    server.stop().await;
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_handshake_in_the_middle_of_the_stop_does_not_hold_it_up() {
    let (_redis, mut server) = start().await;
    let mut handshake = TcpStream::connect(server.address()).await.unwrap();
    handshake.write_all(b"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nhost: test\r\n").await.unwrap();
    assert_eq!(get(server.address(), "/health/live").await.status, 200);
    let start = Instant::now();
    server.begin_stop();
    within("the port to be closed", async { while TcpStream::connect(server.address()).await.is_ok() {} }).await;
    let rest = b"connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
        sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    // Whether it is still taken is up to the server.
    let _ = handshake.write_all(rest).await;
    server.stopped().await;
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
}

#[tokio::test]
async fn while_redis_is_away_the_server_still_stops() {
    let (mut redis, server) = start().await;
    redis.kill();
    server.unready().await;
    let start = Instant::now();
    server.stop().await;
    assert!(start.elapsed() < SOON);
}

#[tokio::test]
async fn sigterm_ends_the_program_politely() {
    let redis = Redis::start().await;
    let mut program = Program::start(&[("REDIS_URL", &redis.url())]).await;
    let path = "/socket.io/?EIO=4&transport=websocket";
    let mut socket = WebSocket::connect(program.address(), path).await;
    assert!(socket.packet().await.unwrap().starts_with("0{"));
    program.terminate();
    assert_eq!(socket.end().await, Ended::Closed(Some(1001)));
    assert_eq!(program.exit().await.code(), Some(0));
}

#[tokio::test]
async fn what_redis_has_accepted_when_sigterm_comes_is_delivered() {
    const BROWSERS: usize = 200;
    const MESSAGES: usize = 50;
    let redis = Redis::start().await;
    let mut program = Program::start(&[("REDIS_URL", &redis.url())]).await;
    until("readiness", async || get(program.address(), "/health/ready").await.status == 200).await;
    let mut sockets = Vec::new();
    for _ in 0..BROWSERS {
        let mut socket = WebSocket::connect(program.address(), "/socket.io/?EIO=4&transport=websocket").await;
        assert!(socket.packet().await.unwrap().starts_with("0{"));
        socket.send("40").await;
        assert!(socket.packet().await.unwrap().starts_with("40{"));
        sockets.push(socket);
    }
    for number in 0..MESSAGES {
        redis.notice(record("", number)).await;
    }
    program.terminate();
    for socket in &mut sockets {
        let mut got = 0;
        let ended = loop {
            match socket.packet().await {
                Ok(packet) => got += usize::from(packet.starts_with("42[\"notice\"")),
                Err(ended) => break ended,
            }
        };
        assert_eq!((got, ended), (MESSAGES, Ended::Closed(Some(1001))));
    }
    assert_eq!(program.exit().await.code(), Some(0));
}

#[tokio::test]
async fn a_browser_between_two_requests_gets_what_was_accepted_too() {
    let (redis, mut server) = start().await;
    redis.user("ada", 1, &[]).await;
    let polling = Polling::connect(&server, "ada").await;
    redis.records(record("user-1", 7)).await;
    server.caught_up(&redis).await;
    server.begin_stop();
    server.unready().await;
    let refused = get(server.address(), "/socket.io/?EIO=4&transport=polling").await;
    assert_eq!(refused.status, 503, "nobody comes any more");
    let packets = polling.get().await;
    assert!(packets.iter().any(|packet| packet.contains(&record("user-1", 7))), "{packets:?}");
    server.stopped().await;
}

#[tokio::test]
async fn a_second_sigterm_ends_it_at_once() {
    let redis = Redis::start().await;
    let mut program = Program::start(&[("REDIS_URL", &redis.url())]).await;
    let mut socket = WebSocket::connect(program.address(), "/socket.io/?EIO=4&transport=websocket").await;
    assert!(socket.packet().await.unwrap().starts_with("0{"));
    // A request that does not end holds up the soft stop.
    let mut request = TcpStream::connect(program.address()).await.unwrap();
    request.write_all(b"POST /socket.io/?EIO=4&transport=polling HTTP/1.1\r\nhost: test\r\ncontent-len").await.unwrap();
    assert_eq!(get(program.address(), "/health/live").await.status, 200);
    program.terminate();
    assert_eq!(socket.end().await, Ended::Closed(Some(1001)));
    let start = Instant::now();
    assert!(program.runs());
    program.terminate();
    assert_eq!(program.exit().await.code(), Some(0));
    assert!(start.elapsed() < AT_ONCE, "{:?}", start.elapsed());
}
