//! Restarts and several nodes: what one node was told, every other one serves.

mod failover;
mod lost;
mod refused;

use loomio_channels::metrics::Counter;

use crate::harness::{Browser, Redis, Running, Server, numbers, publish, record, until};

const STREAM: &str = "loomio-channels:recovery";

/// What nodes agree on when Redis does not keep a key for them.
const SECRET: (&str, &str) = ("CHANNELS_SECRET", "a secret of thirty-two characters");

/// A node that no test stops politely.
async fn node(redis: &Redis) -> Running {
    node_at(&redis.url(), &[]).await
}

/// The same with an address of Redis and settings.
async fn node_at(redis: &str, settings: &[(&str, &str)]) -> Running {
    let settings = [&[("REDIS_URL", redis), ("GAP_NOTICE", "off")], settings].concat();
    let node = Running::start(&["serve"], &settings).await;
    node.becomes(200).await;
    node
}

/// How often the log has said this.
fn times(node: &Running, text: &str) -> usize {
    node.log().iter().filter(|line| line.contains(text)).count()
}

/// Whether an answer has this text anywhere.
fn holds(value: &redis::Value, text: &[u8]) -> bool {
    match value {
        redis::Value::Array(values) => values.iter().any(|value| holds(value, text)),
        redis::Value::BulkString(bytes) => bytes.windows(text.len()).any(|window| window == text),
        _ => false,
    }
}

/// Waits until the stream has this message.
pub(crate) async fn kept(redis: &Redis, message: &str) {
    until("the stream to have a message", async || {
        holds(&redis.command(&["XRANGE", STREAM, "-", "+"]).await, message.as_bytes())
    })
    .await;
}

/// The numbers of the next records.
async fn take(browser: &mut Browser, count: usize) -> Vec<usize> {
    let mut numbers = Vec::new();
    for _ in 0..count {
        numbers.push(browser.number().await);
    }
    numbers
}

async fn server(redis: &Redis) -> Server {
    let server = Server::start(&redis.url(), &[]).await;
    server.ready().await;
    server
}

async fn redis_with_ada() -> Redis {
    let redis = Redis::start().await;
    redis.user("ada", 1, &[1, 2]).await;
    redis
}

#[tokio::test]
async fn a_restart_in_which_nothing_was_published_is_no_gap() {
    let redis = redis_with_ada().await;
    let first = server(&redis).await;
    let mut browser = Browser::connect(&first, "ada").await;
    let quiet = Browser::connect(&first, "ada").await;
    publish(&redis, &first, "group-1", 0..20).await;
    assert_eq!(take(&mut browser, 20).await, (0..20).collect::<Vec<_>>());
    first.stop().await;
    for round in 0..3 {
        let again = server(&redis).await;
        let mut returned = Browser::resume(&again, "ada", &browser.session).await;
        assert!(returned.recovered, "round {round}");
        assert!(returned.missed.is_empty());
        let late = Browser::resume(&again, "ada", &quiet.session).await;
        assert!(late.recovered, "it had seen nothing at all");
        assert_eq!(numbers(&late.missed), (0..20 + round).collect::<Vec<_>>());
        redis.records(record("group-1", 20 + round)).await;
        assert_eq!(take(&mut returned, 1).await, [20 + round]);
        browser = returned;
        again.stop().await;
    }
}

#[tokio::test]
async fn what_is_published_during_a_restart_is_told_as_lost() {
    let redis = redis_with_ada().await;
    let first = server(&redis).await;
    let mut browser = Browser::connect(&first, "ada").await;
    publish(&redis, &first, "group-1", 0..3).await;
    take(&mut browser, 3).await;
    first.stop().await;
    redis.records(record("group-1", 3)).await;
    let again = server(&redis).await;
    assert!(!Browser::resume(&again, "ada", &browser.session).await.recovered);
    again.stop().await;
}

#[tokio::test]
async fn a_node_that_was_killed_comes_back_with_what_it_had() {
    let redis = redis_with_ada().await;
    let mut first = node(&redis).await;
    let mut browser = Browser::connect(first.address(), "ada").await;
    let away = Browser::connect(first.address(), "ada").await.session;
    for number in 0..5 {
        redis.records(record("group-2", number)).await;
    }
    take(&mut browser, 5).await;
    kept(&redis, &record("group-2", 4)).await;
    first.signal("KILL");
    first.exit().await;
    let again = server(&redis).await;
    let returned = Browser::resume(&again, "ada", &away).await;
    assert!(returned.recovered);
    assert_eq!(numbers(&returned.missed), [0, 1, 2, 3, 4]);
    assert!(Browser::resume(&again, "ada", &browser.session).await.recovered);
    again.stop().await;
}

#[tokio::test]
async fn any_node_resumes_a_session() {
    let redis = redis_with_ada().await;
    let (one, two) = (server(&redis).await, server(&redis).await);
    let mut browser = Browser::connect(&one, "ada").await;
    redis.records(record("group-1", 0)).await;
    take(&mut browser, 1).await;
    for number in 1..5 {
        let session = browser.session.clone();
        drop(browser);
        redis.records(record("group-1", number)).await;
        redis.records(record("group-9", number)).await;
        one.caught_up(&redis).await;
        two.caught_up(&redis).await;
        let to = if number % 2 == 0 { &one } else { &two };
        browser = Browser::resume(to, "ada", &session).await;
        assert!(browser.recovered, "return {number}");
        assert_eq!(browser.session.sid, session.sid);
        assert_eq!(numbers(&browser.missed), [number]);
    }
    one.stop().await;
    two.stop().await;
}

#[tokio::test]
async fn another_node_takes_the_lease_and_a_third_one_starts_with_everything() {
    let redis = redis_with_ada().await;
    let mut holder = node(&redis).await;
    let follower = server(&redis).await;
    let mut browser = Browser::connect(&follower, "ada").await;
    let away = Browser::connect(holder.address(), "ada").await.session;
    redis.records(record("group-1", 0)).await;
    take(&mut browser, 1).await;
    holder.signal("KILL");
    holder.exit().await;
    for number in 1..40 {
        redis.records(record("group-1", number)).await;
    }
    assert_eq!(take(&mut browser, 39).await, (1..40).collect::<Vec<_>>());
    let third = server(&redis).await;
    let returned = Browser::resume(&third, "ada", &away).await;
    assert!(returned.recovered);
    assert_eq!(numbers(&returned.missed), (0..40).collect::<Vec<_>>());
    third.stop().await;
    follower.stop().await;
}

#[tokio::test]
async fn a_stream_that_was_evicted_is_written_again() {
    let redis = redis_with_ada().await;
    let first = server(&redis).await;
    let mut browser = Browser::connect(&first, "ada").await;
    let away = Browser::connect(&first, "ada").await.session;
    redis.records(record("group-1", 0)).await;
    take(&mut browser, 1).await;
    redis.command(&["DEL", STREAM]).await;
    redis.records(record("group-1", 1)).await;
    take(&mut browser, 1).await;
    let renames = redis.calls("rename").await;
    until("another beginning of the stream", async || redis.calls("rename").await > renames.min(1)).await;
    first.stop().await;
    let again = server(&redis).await;
    let returned = Browser::resume(&again, "ada", &away).await;
    assert!(returned.recovered);
    assert_eq!(numbers(&returned.missed), [0, 1]);
    again.stop().await;
}

#[tokio::test]
async fn a_stream_of_another_program_is_left_alone() {
    let redis = redis_with_ada().await;
    // A field of one letter is no sign of this program.
    redis.command(&["XADD", STREAM, "1-1", "b", "1"]).await;
    let node = node(&redis).await;
    let said = node.says("the recovery log is not kept in redis").await;
    assert!(said.contains("give RECOVERY_STREAM a name of its own"), "{said}");
    // It has tried to write by then, and tries again after a second.
    let looks = redis.calls("xrange").await;
    until("another look", async || redis.calls("xrange").await > looks).await;
    assert_eq!(redis.calls("rename").await, 0);
    assert_eq!(times(&node, "is not kept"), 1, "{:?}", node.log());
}

#[tokio::test]
async fn a_redis_that_cannot_keep_the_log_changes_nothing_else() {
    let redis = redis_with_ada().await;
    redis.command(&["SET", STREAM, "something else"]).await;
    let mut node = node(&redis).await;
    let said = node.says("the recovery log is not kept in redis").await;
    assert!(said.contains("give RECOVERY_STREAM a name of its own"), "{said}");
    let mut browser = Browser::connect(node.address(), "ada").await;
    let away = Browser::connect(node.address(), "ada").await.session;
    redis.records(record("group-1", 0)).await;
    take(&mut browser, 1).await;
    let returned = Browser::resume(node.address(), "ada", &away).await;
    assert!(returned.recovered);
    assert_eq!(numbers(&returned.missed), [0]);
    node.signal("TERM");
    assert!(node.exit().await.success());
}

#[tokio::test]
async fn the_key_in_redis_opens_tickets_everywhere_and_a_gap_on_one_node_is_known_on_the_other() {
    let redis = redis_with_ada().await;
    let (one, two) = (server(&redis).await, server(&redis).await);
    let mut browser = Browser::connect(&one, "ada").await;
    // Both lose their subscription, and something is published meanwhile.
    redis.kill_subscribers_and_publish(record("group-1", 0)).await;
    one.resubscribed(1).await;
    two.resubscribed(1).await;
    redis.records(record("group-1", 1)).await;
    take(&mut browser, 1).await;
    for server in [&one, &two] {
        assert!(!Browser::resume(server, "ada", &browser.session).await.recovered);
    }
    assert_eq!(one.count(Counter::Gaps), 1);
    one.stop().await;
    two.stop().await;
}
