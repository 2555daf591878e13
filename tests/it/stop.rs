//! The stop: browsers are told, so that they come back by themselves, and nothing holds it up.

use tokio::net::TcpStream;

use crate::harness::{
    Browser, Connection, Ended, POLLING, Proxy, Redis, Running, WEBSOCKET, WebSocket, get, handshake, publish, record,
    start_program, start_with_ada, start_with_polling_ada, start_with_slow_reader, within,
};

/// The end of a program that was told to stop: all its tasks ended by themselves, before they were given up.
async fn ends_by_itself(mut program: Running) {
    assert_eq!(program.exit().await.code(), Some(0));
    let said = program.says("stopped").await;
    assert!(said.contains("finished=true"), "{said}");
}

async fn stops_by_itself(program: Running) {
    program.signal("TERM");
    ends_by_itself(program).await;
}

#[tokio::test]
async fn websockets_are_closed_as_by_a_server_that_goes_away() {
    let (_redis, server, ada) = start_with_ada(&[]).await;
    let mut browsers = [ada, Browser::anonymous(&server).await];
    let mut fresh = WebSocket::open(&server).await;
    server.begin_stop();
    for browser in &mut browsers {
        assert_eq!(browser.end().await, Ended::Closed(Some(1001)));
    }
    assert_eq!(fresh.end().await, Ended::Closed(Some(1001)));
    server.stop().await;
}

#[tokio::test]
async fn a_get_that_waits_is_answered_with_the_close_packet() {
    let (_redis, mut server, polling) = start_with_polling_ada(&[]).await;
    let waiting = polling.get_later().await;
    // The same connection order as the server's: this one is answered after the GET has been read.
    assert_eq!(get(&server, "/health/live").await.status, 200);
    server.begin_stop();
    assert_eq!(waiting.response().await.text(), "1");
    server.stopped().await;
}

#[tokio::test]
async fn an_idle_program_stops_by_itself_with_redis_and_without() {
    let mut redis = Redis::start().await;
    for redis_is_away in [false, true] {
        let program = start_program(&redis, &redis.url(), &[]).await;
        if redis_is_away {
            redis.kill();
            program.becomes(503).await;
        }
        stops_by_itself(program).await;
    }
}

#[tokio::test]
async fn a_browser_that_does_not_read_does_not_hold_up_the_stop() {
    let (_redis, program, _slow, _witness) = start_with_slow_reader(&[]).await;
    stops_by_itself(program).await;
}

#[tokio::test]
async fn a_lookup_that_hangs_does_not_hold_up_the_stop() {
    let redis = Redis::start().await;
    let proxy = Proxy::to(redis.port()).await;
    let program = start_program(&redis, &proxy.url(), &[]).await;
    let mut known = Browser::connect(&program, "ada").await;
    proxy.hang();
    let mut waiting = WebSocket::connect(&program, &format!("{WEBSOCKET}&channel_token=ada")).await;
    assert!(waiting.text().await.starts_with("0{"));
    waiting.send("40").await;
    assert!(waiting.text().await.starts_with("40{"), "connected as a visitor, and the lookup goes on");
    program.signal("TERM");
    assert_eq!(known.end().await, Ended::Closed(Some(1001)));
    ends_by_itself(program).await;
}

#[tokio::test]
async fn a_handshake_in_the_middle_of_the_stop_does_not_hold_it_up() {
    let redis = Redis::start().await;
    let program = start_program(&redis, &redis.url(), &[]).await;
    let request = handshake(WEBSOCKET);
    let (half, rest) = request.split_at(request.len() / 2);
    let mut connection = Connection::begin(&program, half).await;
    assert_eq!(get(&program, "/health/live").await.status, 200);
    program.signal("TERM");
    let address = program.address();
    within("the port to be closed", async { while TcpStream::connect(address).await.is_ok() {} }).await;
    // Whether it is still taken is up to the server.
    connection.write(rest).await;
    ends_by_itself(program).await;
}

#[tokio::test]
async fn what_redis_has_accepted_when_sigterm_comes_is_delivered() {
    const BROWSERS: usize = 200;
    const MESSAGES: usize = 50;
    let redis = Redis::start().await;
    let program = start_program(&redis, &redis.url(), &[]).await;
    let mut sockets = Vec::new();
    for _ in 0..BROWSERS {
        sockets.push(WebSocket::connected(&program).await);
    }
    for number in 0..MESSAGES {
        redis.notice(record("", number)).await;
    }
    program.signal("TERM");
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
    ends_by_itself(program).await;
}

#[tokio::test]
async fn a_browser_between_two_requests_gets_what_was_accepted_too() {
    let (redis, mut server, polling) = start_with_polling_ada(&[]).await;
    publish(&redis, &server, "user-1", [7]).await;
    server.begin_stop();
    server.unready().await;
    assert_eq!(get(&server, POLLING).await.status, 503, "no session begins any more");
    let packets = polling.get().await;
    assert!(packets.iter().any(|packet| packet.contains(&record("user-1", 7))), "{packets:?}");
    server.stopped().await;
}

#[tokio::test]
async fn a_second_signal_ends_the_program_before_its_tasks_have_ended() {
    let redis = Redis::start().await;
    let mut program = start_program(&redis, &redis.url(), &[]).await;
    // A request that does not end holds up the soft stop.
    let _request = Connection::begin(&program, format!("POST {POLLING} HTTP/1.1\r\nhost: test\r\ncontent-len")).await;
    assert_eq!(get(&program, "/health/live").await.status, 200);
    // Both signals wait when the program goes on, so that no time passes between them.
    for signal in ["STOP", "TERM", "INT", "CONT"] {
        program.signal(signal);
    }
    assert_eq!(program.exit().await.code(), Some(0));
    let said = program.says("stopped").await;
    assert!(said.contains("finished=false"), "{said}");
}
