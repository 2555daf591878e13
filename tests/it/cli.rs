//! The binary: its arguments, its environment, its exit codes, its signals, and what it says.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

use tokio::net::TcpStream;

use crate::harness::{Browser, Ended, Exchange, Finished, Redis, Running, Server, WebSocket, get, run, until};

/// Nobody listens there, and nothing else is given to outgoing connections.
const NO_REDIS: (&str, &str) = ("REDIS_URL", "redis://127.0.0.1:1/0");
const ANY_PORT: (&str, &str) = ("PORT", "0");

async fn browser(address: SocketAddr, query: &str) -> Browser {
    let path = format!("/socket.io/?EIO=4&transport=websocket{query}");
    Browser::over(WebSocket::connect(address, &path).await, "40").await
}

#[test]
fn help_teaches() {
    for arguments in [&["--help"][..], &["-h"], &["help"]] {
        let finished = run(arguments, &[]);
        assert_eq!((finished.code(), finished.stderr()), (Some(0), String::new()));
        for word in ["REDIS_URL", "PORT", "demo", "healthcheck", "Examples:", "Exit codes:"] {
            assert!(finished.stdout().contains(word), "{arguments:?}: {word}");
        }
    }
}

#[test]
fn version_is_one_line() {
    let finished = run(&["--version"], &[]);
    let expected = format!("loomio-channels {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!((finished.code(), finished.stdout()), (Some(0), expected));
}

#[test]
fn wrong_arguments_are_a_usage_error() {
    for arguments in [&["bogus"][..], &["--bogus"], &["demo", "--port", "70000"], &["serve", "now"]] {
        let finished = run(arguments, &[]);
        assert_eq!(finished.code(), Some(2), "{arguments:?}");
        assert!(finished.stderr().contains("--help"), "{}", finished.stderr());
        assert_eq!(finished.stdout(), "");
    }
}

#[test]
fn the_command_of_the_other_container_says_what_to_do() {
    let finished = run(&["npm", "run", "hocuspocus"], &[]);
    assert_eq!(finished.code(), Some(78));
    assert!(finished.stderr().contains("hocuspocus") && finished.stderr().contains("loomio/loomio_channel_server"));
    let finished = run(&["npm", "run", "bogus"], &[]);
    assert_eq!(finished.code(), Some(78));
    assert!(finished.stderr().contains("npm run bogus"), "{}", finished.stderr());
}

#[tokio::test]
async fn the_command_of_the_node_image_serves() {
    let server = Running::start(&["npm", "run", "start"], &[ANY_PORT, NO_REDIS]).await;
    assert_eq!(get(server.address(), "/health/live").await.status, 200);
}

#[test]
fn a_taken_port_is_named_with_the_way_out() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for bind in [None, Some(("BIND", "127.0.0.1"))] {
        let environment: Vec<_> = [("PORT", port.as_str()), NO_REDIS].into_iter().chain(bind).collect();
        let finished = run(&[], &environment);
        assert_eq!(finished.code(), Some(78), "{}", finished.said());
        for text in [format!("PORT={port}"), "another program has it".to_owned(), "set PORT".to_owned()] {
            assert!(finished.said().contains(&text), "{text}: {}", finished.said());
        }
    }
}

#[test]
fn an_address_of_another_machine_is_named() {
    let finished = run(&[], &[ANY_PORT, NO_REDIS, ("BIND", "192.0.2.1")]);
    assert_eq!(finished.code(), Some(78));
    assert!(finished.said().contains("BIND=192.0.2.1") && finished.said().contains("no address of this machine"));
}

#[test]
fn all_mistakes_are_told_at_once() {
    let mistakes = [
        ("PORT", "http"),
        ("BIND", "localhost"),
        ("REDIS_URL", "postgres://db/loomio"),
        ("STRICT_ORIGIN", "perhaps"),
        ("PUBLIC_APP_URL", "loomio"),
        ("CHANNELS_SECRET", "short"),
        ("RECOVERY_WINDOW", "soon"),
        ("RECOVERY_LOG_BYTES", "1"),
        ("OUTBOX_BYTES", "-5"),
        ("PING_INTERVAL_MS", "0"),
        ("PING_TIMEOUT_MS", "x"),
        ("CONNECT_TIMEOUT_MS", "1e9"),
        ("SHARDS", "0"),
        ("LOG_FORMAT", "xml"),
        ("RUST_LOG", "info,=="),
    ];
    let finished = run(&["serve"], &mistakes);
    assert_eq!((finished.code(), finished.stdout()), (Some(78), String::new()));
    let said = finished.stderr();
    for (name, _) in mistakes {
        assert!(said.lines().any(|line| line.trim_start().starts_with(name)), "{name} is not named: {said}");
    }
    assert!(said.contains(&format!("{} mistakes", mistakes.len())), "{said}");
    assert!(!said.contains("short\""), "the secret is not repeated: {said}");
}

#[test]
fn a_wrong_address_of_redis_keeps_its_password() {
    let secret = "hunter2secret";
    for url in [
        "http://:hunter2secret@redis:6379",
        "redis://:hunter2secret@redis:99999",
        "redis://user:hunter2secret@",
        "redis://:hunter2secret@redis/notanumber",
        "redis://:hunter2secret@redis:6379/0#fragment",
        "redis://:hunter2secret",
        "redis://:hunter2secret#@redis",
        "redis//:hunter2secret@redis",
        "hunter2secret",
        "redis://redis?password=hunter2secret&protocol=9",
        "redis-sentinel://:hunter2secret@",
        "unix:///?pass=hunter2secret",
    ] {
        let finished = run(&[], &[ANY_PORT, ("REDIS_URL", url)]);
        assert_eq!(finished.code(), Some(78), "{url}: {}", finished.said());
        assert!(finished.said().contains("REDIS_URL"), "{url}");
        assert!(!finished.said().contains(secret), "{url}: {}", finished.said());
    }
}

#[tokio::test]
async fn a_right_address_of_redis_keeps_its_password_in_the_log() {
    let url = "redis://someone:hunter2secret@127.0.0.1:1/3";
    let environment =
        [ANY_PORT, ("REDIS_URL", url), ("CHANNELS_SECRET", "hunter2secret-of-tickets"), ("RUST_LOG", "trace")];
    let mut server = Running::start(&[], &environment).await;
    server.says("cannot subscribe").await;
    server.signal("TERM");
    assert_eq!(server.exit().await.code(), Some(0));
    let leaks: Vec<_> = server.log().into_iter().filter(|line| line.contains("hunter2secret")).collect();
    assert!(leaks.is_empty(), "{leaks:?}");
    assert!(server.log().iter().any(|line| line.contains("redis://someone:***@127.0.0.1:1/3")), "{:?}", server.log());
}

#[tokio::test]
async fn a_signal_stops_it_politely() {
    for signal in ["TERM", "INT"] {
        let mut server = Running::start(&["serve"], &[ANY_PORT, NO_REDIS]).await;
        let mut connected = browser(server.address(), "").await;
        let waiting = WebSocket::connect(server.address(), "/socket.io/?EIO=4&transport=websocket").await;
        server.signal(signal);
        assert_eq!(connected.end().await, Ended::Closed(Some(1001)), "SIG{signal}");
        drop(waiting);
        assert_eq!(server.exit().await.code(), Some(0), "SIG{signal}");
        assert!(server.log().iter().any(|line| line.contains(&format!("SIG{signal}"))), "{:?}", server.log());
    }
}

#[tokio::test]
async fn healthcheck_asks_the_server_on_this_machine() {
    let redis = Redis::start().await;
    let url = redis.url();
    let server = Running::start(&[], &[ANY_PORT, ("REDIS_URL", url.as_str())]).await;
    server.says("subscribed to redis").await;
    let port = server.port().to_string();
    let check = async |port: String| {
        tokio::task::spawn_blocking(move || run(&["healthcheck"], &[("PORT", &port)])).await.unwrap()
    };
    let finished = check(port.clone()).await;
    assert_eq!((finished.code(), finished.said()), (Some(0), String::new()));
    drop(redis);
    until("the loss of redis", async || get(server.address(), "/health/ready").await.status == 503).await;
    let finished = check(port.clone()).await;
    assert_eq!(finished.code(), Some(1));
    assert!(finished.stderr().contains("not subscribed to redis"), "{}", finished.stderr());
    drop(server);
    let finished = check(port.clone()).await;
    assert_eq!(finished.code(), Some(1));
    assert!(finished.stderr().contains(&format!("cannot connect to 127.0.0.1:{port}")), "{}", finished.stderr());
    assert_eq!(check("nonsense".to_owned()).await.code(), Some(1), "docker knows no other code");
}

#[tokio::test]
async fn every_line_of_the_log_is_json_when_asked_for() {
    let environment = [ANY_PORT, NO_REDIS, ("LOG_FORMAT", "json"), ("RUST_LOG", "trace")];
    let mut server = Running::start(&[], &environment).await;
    let mut connected = browser(server.address(), "&channel_token=anyone").await;
    server.says("cannot subscribe").await;
    server.signal("TERM");
    connected.end().await;
    server.exit().await;
    let log = server.log();
    assert!(log.len() > 5, "{log:?}");
    for line in log {
        let line: serde_json::Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(line["level"].is_string() && line["timestamp"].is_string() && line["message"].is_string(), "{line}");
    }
}

#[tokio::test]
async fn neither_tokens_nor_names_nor_payloads_are_logged() {
    let redis = Redis::start().await;
    let url = redis.url();
    let environment = [ANY_PORT, ("REDIS_URL", url.as_str()), ("RUST_LOG", "trace")];
    let mut server = Running::start(&[], &environment).await;
    server.says("subscribed to redis").await;
    redis.user_json("marker-token", r#"{"name":"marker-name","group_ids":[1],"id":9}"#).await;
    redis.user_json("marker-broken-token", "marker-user").await;
    let mut connected = browser(server.address(), "&channel_token=marker-token").await;
    let broken = browser(server.address(), "&channel_token=marker-broken-token").await;
    let unknown = browser(server.address(), "&channel_token=marker-unknown-token").await;
    for bad in
        [r#"{"marker-payload""#, r#"{"records":"marker-payload"}"#, "[\"marker-payload\"]", "\u{1}marker-payload"]
    {
        redis.records(bad).await;
        redis.notice(bad).await;
    }
    redis.records(r#"{"room":"group-1","marker-payload":1}"#).await;
    // Two of the notices are JSON.
    let mut arguments = Vec::new();
    while arguments.len() < 3 {
        arguments.push(connected.argument().await);
    }
    assert!(arguments.iter().all(|argument| argument.contains("marker-payload")), "{arguments:?}");
    let session = connected.cut();
    let path = "/socket.io/?EIO=4&transport=websocket&channel_token=marker-token";
    let again = Browser::over(WebSocket::connect(server.address(), path).await, &session.packet()).await;
    let mut rude = WebSocket::connect(server.address(), path).await;
    for packet in ["40", r#"42["marker-event","marker-argument"]"#, r#"42["marker-event""#] {
        rude.send(packet).await;
    }
    assert_eq!(rude.end().await, Ended::Closed(None));
    let path = "/socket.io/?EIO=4&transport=polling&channel_token=marker-token&sid=marker-sid";
    assert_eq!(get(server.address(), path).await.status, 400);
    server.says("dropped a message").await;
    server.signal("TERM");
    server.exit().await;
    drop((broken, unknown, again));
    let leaks: Vec<_> =
        server.log().into_iter().filter(|line| line.contains("marker") || line.contains(&session.pid)).collect();
    assert!(leaks.is_empty(), "{leaks:#?}");
    assert!(server.log().len() > 10, "nothing was logged at all");
}

#[tokio::test]
async fn it_listens_on_both_protocols_unless_told_otherwise() {
    let dials = async |address: SocketAddr| TcpStream::connect(address).await.is_ok();
    let v6 = |port| SocketAddr::from((Ipv6Addr::LOCALHOST, port));
    let v4 = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let machine_has_v6 = TcpListener::bind(v6(0)).is_ok();
    let both = Running::start(&[], &[ANY_PORT, NO_REDIS]).await;
    assert_eq!((dials(v4(both.port())).await, dials(v6(both.port())).await), (true, machine_has_v6));
    let one = Running::start(&[], &[ANY_PORT, NO_REDIS, ("BIND", "127.0.0.1")]).await;
    assert_eq!((dials(v4(one.port())).await, dials(v6(one.port())).await), (true, false));
    if machine_has_v6 {
        let other = Running::start(&[], &[ANY_PORT, NO_REDIS, ("BIND", "::1")]).await;
        assert_eq!((dials(v4(other.port())).await, dials(v6(other.port())).await), (false, true));
        assert_eq!(get(v6(other.port()), "/health/live").await.status, 200);
    }
}

/// Runs `publish` with a file that holds `json`, to its end.
async fn publish(room: &str, json: &str, demo: Option<u16>, redis: &str) -> Finished {
    let directory = tempfile::TempDir::new().unwrap();
    let file = directory.path().join("message.json");
    std::fs::write(&file, json).unwrap();
    let mut arguments = vec!["publish".to_owned(), room.to_owned(), file.to_str().unwrap().to_owned()];
    arguments.extend(demo.map(|port| format!("--demo=localhost:{port}")));
    let redis = redis.to_owned();
    let ended = tokio::task::spawn_blocking(move || {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        run(&arguments, &[("REDIS_URL", &redis)])
    });
    ended.await.unwrap()
}

#[tokio::test]
async fn the_demo_needs_nothing_and_listens_on_this_machine_only() {
    let server = Running::start(&["demo", "--port", "0"], &[("PORT", "1"), ("REDIS_URL", "nonsense")]).await;
    let page = get(server.address(), "/demo").await;
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    until("readiness", async || get(server.address(), "/health/ready").await.status == 200).await;
    // An address of this machine that is not 127.0.0.1: all of 127.0.0.0/8 leads here.
    let other = SocketAddr::from(([127, 0, 0, 2], server.port()));
    assert!(TcpStream::connect(other).await.is_err());
    let everywhere = Running::start(&["demo", "--port", "0"], &[("BIND", "0.0.0.0")]).await;
    assert!(TcpStream::connect(SocketAddr::from(([127, 0, 0, 2], everywhere.port()))).await.is_ok());
    let mut ended = server;
    ended.signal("TERM");
    assert_eq!(ended.exit().await.code(), Some(0));
}

#[tokio::test]
async fn the_demo_is_published_to_from_a_terminal() {
    let server = Running::start(&["demo", "--port=0"], &[]).await;
    let mut ada = browser(server.address(), "&channel_token=ada-demo-token").await;
    let mut grace = browser(server.address(), "&channel_token=grace-demo-token").await;
    let mut visitor = browser(server.address(), "").await;
    let finished = publish("group-1", r#"{"records":{"n":7}}"#, Some(server.port()), "nonsense").await;
    assert_eq!((finished.code(), finished.stdout()), (Some(0), "received by 1 subscriber\n".to_owned()));
    assert_eq!(ada.argument().await, r#"{"records":{"n":7},"room":"group-1"}"#);
    let headers = [("content-type", "application/json")];
    let post = Exchange::begin(server.address(), "POST /demo/publish/group-2", &headers, b"{}").await.unwrap();
    assert_eq!(post.response().await.status, 403, "the host name of the request is not this machine's");
    let finished = publish("group-2", "{}", Some(server.port()), "nonsense").await;
    assert_eq!(finished.code(), Some(0), "{}", finished.said());
    let finished = publish("notice", "{}", Some(server.port()), "").await;
    assert_eq!(finished.code(), Some(0), "{}", finished.said());
    assert_eq!(ada.argument().await, r#"{"room":"group-2"}"#);
    assert_eq!(grace.argument().await, r#"{"room":"group-2"}"#);
    for browser in [&mut ada, &mut grace, &mut visitor] {
        assert_eq!(browser.argument().await, "{}");
    }
}

#[tokio::test]
async fn what_is_published_to_redis_is_as_rails_publishes_it() {
    let redis = Redis::start().await;
    let nobody = publish("group-1", "{}", None, &redis.url()).await;
    assert_eq!(nobody.code(), Some(0));
    assert!(nobody.stdout().starts_with("received by 0 subscribers: no channel server"), "{}", nobody.said());
    let server = Server::start(&redis.url(), &[]).await;
    server.ready().await;
    redis.user("ada", 45, &[]).await;
    let mut ada = Browser::connect(&server, "ada").await;
    for (room, json, argument) in [
        ("user-45", r#"{"room":"group-9","records":{"n":1.50}}"#, r#"{"records":{"n":1.50},"room":"user-45"}"#),
        ("notice", "{\"reload\":true}\n", r#"{"reload":true}"#),
    ] {
        let finished = publish(room, json, None, &redis.url()).await;
        assert_eq!((finished.code(), finished.stdout()), (Some(0), "received by 1 subscriber\n".to_owned()));
        assert_eq!(ada.argument().await, argument);
    }
    redis.command(&["ACL", "SETUSER", "reader", "on", ">secret", "allkeys", "allchannels", "+@all", "-publish"]).await;
    let denied = publish("group-1", "{}", None, &redis.url().replace("//", "//reader:secret@")).await;
    assert_eq!(denied.code(), Some(1));
    assert!(denied.stderr().contains("+publish"), "{}", denied.said());
}

#[tokio::test]
async fn what_cannot_be_published_is_told_with_the_mend() {
    let (_, no_redis) = NO_REDIS;
    let free = crate::harness::free_port();
    for (room, json, demo, redis, code, told) in [
        ("grup-1", "{}", None, no_redis, 2, "give group-<id>"),
        ("group-1", "{", None, no_redis, 1, "must be a JSON object"),
        ("notice", "[]", None, no_redis, 1, "must be a JSON object"),
        ("group-1", "{}", None, no_redis, 1, "is REDIS_URL right?"),
        ("group-1", "{}", None, "nonsense", 78, "REDIS_URL"),
        ("group-1", "{}", Some(free), "nonsense", 1, "is the demo running there?"),
    ] {
        let finished = publish(room, json, demo, redis).await;
        assert_eq!((finished.code(), finished.stdout()), (Some(code), String::new()), "{}", finished.stderr());
        assert!(finished.stderr().contains(told), "{}", finished.stderr());
    }
    let finished = run(&["publish", "group-1", "/nowhere.json"], &[NO_REDIS]);
    assert_eq!(finished.code(), Some(1));
    assert!(finished.stderr().contains("cannot read /nowhere.json"), "{}", finished.stderr());
    // Nothing to read.
    assert_eq!(run(&["publish", "group-1", "-"], &[NO_REDIS]).code(), Some(1));
    let (redis, server) = crate::harness::start().await;
    let other = publish("group-1", "{}", Some(server.address().port()), &redis.url()).await;
    assert!(other.code() == Some(1) && other.stderr().contains("not the address of a demo"), "{}", other.said());
}
