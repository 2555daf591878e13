//! Whether something was missed while no connection was subscribed: what Redis can prove is proved, and the rest is
//! taken for missed.

use loomio_channels::{
    bus::{Gap, Inbound, RedisSource, Source},
    config::Config,
    lifecycle::Readiness,
    redis_client::Connector,
};

use crate::harness::{
    Browser, Event, Proxy, Redis, Running, Server, get, numbers, record, start, start_behind_proxy, start_with,
    start_with_ada, until, within,
};

/// What is counted of one gap.
const POSSIBLE: [u64; 2] = [1, 0];
const EMPTY: [u64; 2] = [0, 1];

#[tokio::test]
async fn nothing_published_is_nothing_missed() {
    let (redis, server, mut browser) = start_with_ada(&[]).await;
    for (number, times) in (1..=3).zip(1..) {
        redis.records(record("user-1", number)).await;
        redis.bot("{}").await;
        assert_eq!(browser.number().await, number);
        redis.kill_subscribers().await;
        server.resubscribed(times).await;
        assert_eq!(server.gaps(), [0, times]);
    }
    // Messages for the bot are taken and not counted.
    server.caught_up(&redis).await;
}

#[tokio::test]
async fn something_published_is_something_missed() {
    let (redis, server) = start().await;
    redis.kill_subscribers_and_publish(record("user-1", 1)).await;
    server.resubscribed(1).await;
    assert_eq!(server.gaps(), POSSIBLE);
    redis.kill_subscribers().await;
    server.resubscribed(2).await;
    assert_eq!(server.gaps(), [1, 1]);
}

#[tokio::test]
async fn pages_that_were_open_are_asked_to_reload_once_and_never_called_recovered() {
    const NOTICE: &str = r#"{"notice":"Please reload","reload":true}"#;
    let (redis, server) = start_with(&[("GAP_NOTICE", "Please reload")]).await;
    redis.user("ada", 1, &[]).await;
    let mut stays = Browser::connect(&server, "ada").await;
    let away = Browser::connect(&server, "ada").await.cut();
    redis.kill_subscribers_and_publish(record("user-1", 1)).await;
    server.resubscribed(1).await;
    let mut newcomer = Browser::connect(&server, "ada").await;
    redis.fence("end").await;
    let arguments = |events: &[Event]| events.iter().map(|event| event.argument.clone()).collect::<Vec<_>>();
    assert_eq!(arguments(&stays.upto("end").await), [NOTICE]);
    assert_eq!(newcomer.upto("end").await, []);
    let returned = Browser::resume(&server, "ada", &away).await;
    assert!(!returned.recovered);
    assert!(arguments(&returned.missed).contains(&NOTICE.to_owned()));
    let again = Browser::resume(&server, "ada", &stays.cut()).await;
    assert!(!again.recovered, "it stayed, and missed something all the same");
    assert_eq!(again.missed, []);
    assert!(Browser::resume(&server, "ada", &again.cut()).await.recovered, "its session begins after the gap");
    assert!(Browser::resume(&server, "ada", &newcomer.cut()).await.recovered);
}

#[tokio::test]
async fn a_page_that_was_welcomed_before_the_first_subscription_is_asked_to_reload() {
    let mut redis = Redis::start().await;
    redis.user("ada", 1, &[]).await;
    redis.kill();
    let server = Server::start(&redis.url(), &[("GAP_NOTICE", "reload")]).await;
    let mut early = Browser::connect(&server, "ada").await;
    redis.up().await;
    server.ready().await;
    let mut late = Browser::connect(&server, "ada").await;
    redis.fence("end").await;
    let arguments: Vec<_> = early.upto("end").await.into_iter().map(|event| event.argument).collect();
    assert_eq!(arguments, [r#"{"notice":null,"reload":true}"#]);
    assert_eq!(late.upto("end").await, []);
    assert!(!Browser::resume(&server, "ada", &early.session).await.recovered);
    assert!(Browser::resume(&server, "ada", &late.session).await.recovered);
}

#[tokio::test]
async fn an_empty_gap_is_not_announced() {
    let (redis, server) = start_with(&[("GAP_NOTICE", "reload")]).await;
    redis.user("ada", 1, &[]).await;
    let mut stays = Browser::connect(&server, "ada").await;
    let away = Browser::connect(&server, "ada").await.cut();
    redis.kill_subscribers().await;
    server.resubscribed(1).await;
    assert_eq!(stays.rest(&redis).await, []);
    for session in [away, stays.cut()] {
        assert!(Browser::resume(&server, "ada", &session).await.recovered);
    }
}

#[tokio::test]
async fn a_message_that_redis_threw_away_with_the_connection_is_missed() {
    let (redis, server) = start().await;
    redis.publish_and_kill_subscribers(record("user-1", 1)).await;
    server.resubscribed(1).await;
    assert_eq!(server.gaps(), POSSIBLE);
}

#[tokio::test]
async fn a_redis_that_is_restarted_in_order_lost_nothing() {
    let mut redis = Redis::start().await;
    let server = Running::start(&[], &[("REDIS_URL", &redis.url())]).await;
    server.says("gap=\"start\"").await;
    redis.records(record("user-1", 1)).await;
    redis.shut_down().await;
    // It has seen that nothing listens.
    server.says("cannot subscribe").await;
    redis.up().await;
    server.says("gap=\"empty\"").await;
}

#[tokio::test]
async fn a_redis_that_is_restarted_after_the_subscription_was_cut_proves_nothing() {
    let (mut redis, proxy, server) = start_behind_proxy(&[]).await;
    proxy.hold();
    proxy.cut();
    server.unready().await;
    redis.records(record("user-1", 1)).await;
    redis.shut_down().await;
    redis.up().await;
    proxy.release();
    server.resubscribed(1).await;
    assert_eq!(server.gaps(), POSSIBLE);
}

#[tokio::test]
async fn a_proxy_that_refuses_while_redis_lives_proves_no_end_of_redis() {
    let mut redis = Redis::start().await;
    let mut proxy = Proxy::to(redis.port()).await;
    let server = Running::start(&[], &[("REDIS_URL", &proxy.url())]).await;
    server.says("gap=\"start\"").await;
    proxy.stop().await;
    // It closed the connection in order, and nothing listens there.
    server.says("cannot subscribe").await;
    redis.records(record("user-1", 1)).await;
    redis.shut_down().await;
    redis.up().await;
    proxy.start_again(redis.port()).await;
    server.says("gap=\"possible\"").await;
}

#[tokio::test]
async fn counts_before_redis_became_a_replica_prove_nothing() {
    let (redis, server) = start().await;
    redis.command(&["REPLICAOF", "127.0.0.1", "1"]).await;
    redis.kill_subscribers().await;
    server.resubscribed(1).await;
    assert_eq!(server.gaps(), POSSIBLE);
}

#[tokio::test]
async fn counts_that_were_reset_prove_nothing() {
    let (redis, server) = start().await;
    redis.command(&["CONFIG", "RESETSTAT"]).await;
    redis.kill_subscribers().await;
    server.resubscribed(1).await;
    assert_eq!(server.gaps(), POSSIBLE);
    redis.kill_subscribers().await;
    server.resubscribed(2).await;
    assert_eq!(server.gaps(), [1, 1]);
}

/// The binary with a Redis that does not grant all: says why a gap is never empty, once, and works.
async fn without_proof(redis: &Redis, login: &str, reason: &str) {
    let url = format!("redis://{login}127.0.0.1:{}/0", redis.port());
    let said = Running::start(&[], &[("REDIS_URL", &url)]).await.says("cannot be proved empty").await;
    assert!(said.contains(reason), "{said}");
    let server = Server::start(&url, &[]).await;
    server.ready().await;
    redis.user("ada", 1, &[]).await;
    let mut browser = Browser::connect(&server, "ada").await;
    redis.bot("{}").await;
    redis.records(record("user-1", 1)).await;
    assert_eq!(browser.number().await, 1);
    redis.kill_subscribers().await;
    server.resubscribed(1).await;
    assert_eq!(server.gaps(), POSSIBLE);
    redis.records(record("user-1", 2)).await;
    assert_eq!(browser.number().await, 2);
}

#[tokio::test]
async fn a_user_without_info_is_told_what_to_grant() {
    let redis = Redis::start().await;
    let rights = ["on", ">secret", "allkeys", "allchannels", "+@all", "-info"];
    redis.command(&[&["ACL", "SETUSER", "ada"], &rights[..]].concat()).await;
    without_proof(&redis, "ada:secret@", "+info").await;
}

#[tokio::test]
async fn a_redis_that_speaks_resp2_only_will_do() {
    let redis = Redis::start_with(&["--rename-command", "HELLO", ""]).await;
    without_proof(&redis, "", "RESP2").await;
}

#[tokio::test]
async fn a_redis_that_stalls_loses_nothing() {
    let (redis, proxy, server) = start_behind_proxy(&[]).await;
    let mut browser = Browser::connect(&server, "ada").await;
    redis.freeze();
    let publish = redis.many_records((0..100).map(|number| record("user-1", number)));
    let stall = async {
        let before = proxy.connections();
        server.unready().await;
        until("a second dial beside the subscription", async || proxy.connections() >= before + 2).await;
        assert_eq!(get(&server, "/health/live").await.status, 200);
        let visitor = Browser::anonymous(&server).await;
        redis.thaw();
        visitor
    };
    let ((), mut visitor) = tokio::join!(publish, stall);
    server.ready().await;
    assert_eq!(numbers(&browser.rest(&redis).await), (0..100).collect::<Vec<_>>());
    assert_eq!(visitor.rest(&redis).await, []);
    assert_eq!(server.gaps(), [0, 0]);
}

/// A subscription that hangs is replaced; what is counted of its gap when a record is `published` meanwhile.
async fn hang(published: bool) -> [u64; 2] {
    let (redis, proxy, server) = start_behind_proxy(&[]).await;
    let mut browser = Browser::connect(&server, "ada").await;
    proxy.hang();
    if published {
        redis.records(record("user-1", 1)).await;
    }
    server.unready().await;
    server.resubscribed(1).await;
    redis.records(record("user-1", 2)).await;
    assert_eq!(browser.number().await, 2);
    server.gaps()
}

#[tokio::test]
async fn a_subscription_that_hangs_is_replaced_and_its_gap_may_be_empty() {
    assert_eq!(hang(false).await, EMPTY);
}

#[tokio::test]
async fn a_record_that_a_hanging_subscription_swallowed_is_missed() {
    assert_eq!(hang(true).await, POSSIBLE);
}

#[tokio::test]
async fn subscriptions_that_flap_are_dialled_again_and_each_gap_is_told_as_it_was() {
    let (redis, server, mut browser) = start_with_ada(&[]).await;
    let mut empty = 0;
    for round in 0..60 {
        redis.records(record("user-1", 1)).await;
        redis.kill_subscribers().await;
        if round % 2 == 0 {
            server.resubscribed(round + 1).await;
        }
        redis.records(record("user-1", 2)).await;
        server.resubscribed(round + 1).await;
        redis.fence(&round.to_string()).await;
        let arrived = numbers(&browser.upto(&round.to_string()).await);
        assert!(arrived.starts_with(&[1]), "Redis had sent it before it cut the connection");
        empty += u64::from(arrived == [1, 2]);
        assert_eq!(server.gaps(), [round + 1 - empty, empty], "{arrived:?}");
    }
    assert!(empty >= 30);
}

/// What `source` yields up to [`Inbound::Drained`], in short; adds what the positions of its messages count.
async fn drained(source: &mut RedisSource, counts: &mut Vec<Option<u64>>) -> Vec<String> {
    let mut yielded = Vec::new();
    loop {
        match within("what redis has executed", source.next()).await {
            Inbound::Message { position, payload, .. } => {
                counts.push(position.map(|position| position.count));
                yielded.push(String::from_utf8(payload.unwrap().to_vec()).unwrap());
            }
            Inbound::Drained => return yielded,
            other => yielded.push(format!("{other:?}")),
        }
    }
}

#[tokio::test]
async fn a_drain_yields_all_that_was_published_before() {
    for (arguments, counted) in [(&["--rename-command", "HELLO", ""][..], false), (&[], true)] {
        let (redis, mut counts) = (Redis::start_with(arguments).await, Vec::new());
        let config = Config::from_env(&[("REDIS_URL", redis.url())].into_iter().collect()).unwrap();
        let mut source = RedisSource::new(Connector::new(&config.redis).unwrap(), Readiness::default());
        source.drain();
        assert!(drained(&mut source, &mut counts).await.is_empty(), "there is no subscription yet");
        assert!(matches!(source.next().await, Inbound::Subscribed { gap: Gap::Start, .. }));
        let sent: Vec<_> = (0..2_000).map(|number| record("user-1", number)).collect();
        redis.many_records(sent.clone()).await;
        redis.bot("{}").await;
        source.drain();
        source.drain();
        assert_eq!(drained(&mut source, &mut counts).await, sent);
        redis.records("after").await;
        source.drain();
        assert_eq!(drained(&mut source, &mut counts).await, ["after"], "one answer for both");
        redis.records("last").await;
        redis.kill_subscribers().await;
        source.drain();
        assert_eq!(drained(&mut source, &mut counts).await, ["last", "Lost"]);
        // The message for the bot was published too.
        let expected: Vec<_> = (1..=2_000).chain([2_002, 2_003]).map(|count| counted.then_some(count)).collect();
        assert_eq!(counts, expected, "{arguments:?}");
    }
}
