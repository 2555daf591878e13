//! What the tests stand on: a real Redis, a proxy in front of it that can fail, the server in this process, browsers
//! over real sockets, and waiting for a condition with a deadline.
//!
//! Nothing here outlives the test that made it.

mod browser;
mod connection;
mod polling;
mod process;
mod proxy;
mod redis;
mod sentinel;
mod server;
mod websocket;

use std::{path::Path, time::Duration};

use tokio::time::{sleep, timeout};

pub(crate) use self::{
    browser::{Browser, Event, Session},
    connection::{Connection, Exchange, get, get_with, handshake},
    polling::{POLLING, Polling, packets},
    process::{Finished, Running, run},
    proxy::Proxy,
    redis::{Redis, free_port},
    sentinel::Sentinel,
    server::Server,
    websocket::{BINARY, CLOSE, Ended, PING, TEXT, WEBSOCKET, WebSocket, frame, header},
};

/// How long a test waits for anything. Far more than it takes, as a machine may be busy with other things.
const DEADLINE: Duration = Duration::from_mins(1);

/// How often a condition is looked at.
const GLANCE: Duration = Duration::from_millis(5);

/// A Redis and a server that is subscribed to it.
pub(crate) async fn start() -> (Redis, Server) {
    start_with(&[]).await
}

/// As [`start`], with settings.
pub(crate) async fn start_with(settings: &[(&str, &str)]) -> (Redis, Server) {
    let redis = Redis::start().await;
    let server = Server::start(&redis.url(), settings).await;
    server.ready().await;
    (redis, server)
}

/// As [`start`], with a browser of Ada, who is user 1 in these groups and has the token `ada`.
pub(crate) async fn start_with_ada(groups: &[usize]) -> (Redis, Server, Browser) {
    let (redis, server) = start().await;
    redis.user("ada", 1, groups).await;
    let browser = Browser::connect(&server, "ada").await;
    (redis, server, browser)
}

/// As [`start_with`], with a browser of Ada that polls.
pub(crate) async fn start_with_polling_ada(settings: &[(&str, &str)]) -> (Redis, Server, Polling) {
    let (redis, server) = start_with(settings).await;
    redis.user("ada", 1, &[]).await;
    let polling = Polling::connect(&server, "ada").await;
    (redis, server, polling)
}

/// A program that is ready, with a Redis that knows Ada and that it reaches by this URL.
pub(crate) async fn start_program(redis: &Redis, url: &str, settings: &[(&str, &str)]) -> Running {
    redis.user("ada", 1, &[]).await;
    let program = Running::start(&[], &[&[("REDIS_URL", url)], settings].concat()).await;
    program.becomes(200).await;
    program
}

/// A program with these settings, and two browsers of Ada with the same 20 MB: for the first, which does not read, they
/// wait in its outbox; the second has them.
pub(crate) async fn start_with_slow_reader(settings: &[(&str, &str)]) -> (Redis, Running, Browser, Browser) {
    let redis = Redis::start().await;
    let program = start_program(&redis, &redis.url(), &[&[("OUTBOX_BYTES", "1GiB")], settings].concat()).await;
    let socket = WebSocket::narrow(&program, "&channel_token=ada").await;
    let slow = Browser::over(socket, "40").await;
    let mut witness = Browser::connect(&program, "ada").await;
    redis.many_records((0..200).map(|number| large_record("user-1", number, 100_000))).await;
    redis.fence("end").await;
    witness.upto("end").await;
    (redis, program, slow, witness)
}

/// As [`start`], with a proxy between the two and Ada in these groups, who is not connected.
pub(crate) async fn start_behind_proxy(groups: &[usize]) -> (Redis, Proxy, Server) {
    let redis = Redis::start().await;
    redis.user("ada", 1, groups).await;
    let proxy = Proxy::to(redis.port()).await;
    let server = Server::start(&proxy.url(), &[]).await;
    server.ready().await;
    (redis, proxy, server)
}

/// Waits for `future`, not for ever.
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    let in_time = timeout(DEADLINE, future).await;
    in_time.unwrap_or_else(|_| panic!("waited {} s for {what}", DEADLINE.as_secs()))
}

/// Waits until `condition` holds, not for ever.
pub(crate) async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    within(what, async {
        while !condition().await {
            sleep(GLANCE).await;
        }
    })
    .await;
}

/// Publishes numbered records for a room; returns when the server has them.
pub(crate) async fn publish(redis: &Redis, server: &Server, room: &str, numbers: impl IntoIterator<Item = usize>) {
    for number in numbers {
        redis.records(record(room, number)).await;
    }
    server.caught_up(redis).await;
}

/// The payload of a record with a number, for a room.
pub(crate) fn record(room: &str, number: usize) -> String {
    format!(r#"{{"room":"{room}","records":{{"n":{number}}}}}"#)
}

/// The same, padded to `length` bytes.
pub(crate) fn large_record(room: &str, number: usize, length: usize) -> String {
    let padding = "x".repeat(length.saturating_sub(record(room, number).len() + 7));
    format!(r#"{{"room":"{room}","records":{{"n":{number}}},"x":"{padding}"}}"#)
}

/// The numbers of records, in the order in which they came.
pub(crate) fn numbers(events: &[Event]) -> Vec<usize> {
    events.iter().map(Event::number).collect()
}

/// The files in a directory of `fixtures/redis`, by name.
pub(crate) fn fixtures(directory: &str) -> Vec<(String, Vec<u8>)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/redis").join(directory);
    let entries = std::fs::read_dir(path).unwrap().map(Result::unwrap);
    let mut files: Vec<_> =
        entries.map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap())).collect();
    files.sort();
    assert!(!files.is_empty());
    files
}
