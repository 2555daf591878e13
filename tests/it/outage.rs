//! Redis goes and comes back: browsers stay, and what may have been lost is not kept quiet.

use loomio_channels::metrics::Counter;

use crate::harness::{Browser, Redis, Server, get, numbers, publish, record, start, start_with_ada};

#[tokio::test]
async fn when_redis_restarts_browsers_stay_and_readiness_follows() {
    let (mut redis, server) = start().await;
    redis.user("ada", 1, &[]).await;
    let (mut ada, mut visitor) = (Browser::connect(&server, "ada").await, Browser::anonymous(&server).await);
    redis.kill();
    server.unready().await;
    assert_eq!(get(&server, "/health/live").await.status, 200);
    redis.up().await;
    server.ready().await;
    server.resubscribed(1).await;
    redis.records(record("user-1", 1)).await;
    redis.fence("end").await;
    assert_eq!(numbers(&ada.upto("end").await), [1]);
    assert_eq!(visitor.upto("end").await, []);
}

#[tokio::test]
async fn a_browser_that_was_away_during_a_gap_gets_what_is_known_and_is_told_of_the_gap() {
    let (redis, server, mut browser) = start_with_ada(&[]).await;
    redis.records(record("user-1", 1)).await;
    assert_eq!(browser.number().await, 1);
    let before = browser.cut();
    publish(&redis, &server, "user-1", [2]).await;
    let mut witness = Browser::resume(&server, "ada", &before).await;
    redis.kill_subscribers_and_publish(record("user-2", 1)).await;
    server.resubscribed(1).await;
    redis.records(record("user-1", 3)).await;
    assert_eq!(witness.number().await, 3);
    let after = witness.cut();
    publish(&redis, &server, "user-1", [4]).await;

    let across = Browser::resume(&server, "ada", &before).await;
    assert!(!across.recovered && across.session.sid != before.sid);
    assert_eq!(numbers(&across.missed), [2, 3, 4]);
    let behind = Browser::resume(&server, "ada", &after).await;
    assert!(!behind.recovered, "its session began before the gap");
    assert_eq!(numbers(&behind.missed), [4]);
    assert_eq!([Counter::Recovered, Counter::NotRecovered].map(|counter| server.count(counter)), [1, 2]);
}

#[tokio::test]
async fn a_browser_that_never_got_an_event_is_told_of_a_gap() {
    let (redis, server, browser) = start_with_ada(&[]).await;
    let session = browser.cut();
    redis.kill_subscribers_and_publish(record("user-2", 1)).await;
    server.resubscribed(1).await;
    for session in [session.clone(), session.without_offset()] {
        assert!(!Browser::resume(&server, "ada", &session).await.recovered);
    }
}

#[tokio::test]
async fn the_server_may_start_before_redis() {
    let mut redis = Redis::start().await;
    redis.user("ada", 1, &[]).await;
    redis.kill();
    let server = Server::start(&redis.url(), &[]).await;
    assert_eq!(server.readiness().await, 503);
    let mut browser = Browser::connect(&server, "ada").await;
    redis.up().await;
    server.ready().await;
    redis.records(record("user-1", 1)).await;
    assert_eq!(browser.number().await, 1);
    assert_eq!(server.count(Counter::Gaps), 0);
}
