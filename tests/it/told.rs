//! A page that comes back and may have missed something is told so, once; no other page is.

use crate::{
    harness::{
        Browser, Event, Proxy, Redis, Running, Server, Session, large_record, numbers, publish, record, start_with,
    },
    history::kept,
};

const TOLD: (&str, &str) = ("GAP_NOTICE", "Please reload");
const NOTICE: &str = r#"{"notice":"Please reload","reload":true}"#;

async fn node(redis: &Redis) -> Running {
    let node = Running::start(&["serve"], &[("REDIS_URL", &redis.url()), TOLD]).await;
    node.becomes(200).await;
    node
}

fn arguments(events: &[Event]) -> Vec<&str> {
    events.iter().map(|event| &*event.argument).collect()
}

/// Open pages of Ada on a node that ends by the signal; what a page has when all have come back to the next node.
async fn restart(signal: &str, lost: &[String]) -> Vec<(Browser, usize)> {
    const PAGES: usize = 20;
    let redis = Redis::start().await;
    redis.user("ada", 1, &[]).await;
    let mut first = node(&redis).await;
    let mut pages = Vec::new();
    for _ in 0..PAGES {
        pages.push(Browser::connect(&first, "ada").await);
    }
    redis.records(record("user-1", 1)).await;
    let mut away = Vec::new();
    for mut page in pages {
        assert_eq!(page.number().await, 1);
        away.push(page.session);
    }
    first.signal(signal);
    first.exit().await;
    for message in lost {
        redis.records(message.clone()).await;
    }
    let second = node(&redis).await;
    let mut returned = Vec::new();
    for session in &away {
        let page = Browser::resume(&second, "ada", session).await;
        let notices = arguments(&page.missed).iter().filter(|&&argument| argument == NOTICE).count();
        assert_eq!(page.missed.len(), notices);
        returned.push((page, notices));
    }
    redis.fence("end").await;
    for (page, _) in &mut returned {
        assert_eq!(page.upto("end").await, [], "nothing comes live");
        let again = Browser::resume(&second, "ada", &page.session).await;
        assert_eq!((again.recovered, again.missed.len()), (true, 0), "it was told before");
    }
    assert_eq!(Browser::connect(&second, "ada").await.rest(&redis).await, [], "a page that was loaded just now");
    returned
}

#[tokio::test]
async fn what_was_lost_in_a_restart_is_told_to_every_page_once() {
    for signal in ["TERM", "KILL"] {
        for (page, notices) in restart(signal, &[record("user-1", 2)]).await {
            assert_eq!((page.recovered, notices), (false, 1), "{signal}");
        }
    }
}

#[tokio::test]
async fn a_restart_in_which_nothing_was_published_is_not_told() {
    for (page, notices) in restart("TERM", &[]).await {
        assert_eq!((page.recovered, notices), (true, 0));
    }
}

#[tokio::test]
async fn a_page_that_missed_more_than_is_replayed_or_kept_is_told() {
    for setting in ["REPLAY_BYTES", "RECOVERY_LOG_BYTES"] {
        let (redis, server) = start_with(&[TOLD, (setting, "64KiB")]).await;
        redis.user("ada", 1, &[]).await;
        let away = Browser::connect(&server, "ada").await.cut();
        for number in 0..100 {
            redis.records(large_record("user-1", number, 1_000)).await;
        }
        server.caught_up(&redis).await;
        let unknown = Session { pid: "unknown".to_owned(), ..away.clone() };
        let stranger = Browser::resume(&server, "ada", &unknown).await;
        assert!(!arguments(&stranger.missed).contains(&NOTICE), "{setting}: nobody knows what it has");
        let mut page = Browser::resume(&server, "ada", &away).await;
        assert!(!page.recovered);
        assert_eq!(arguments(&page.missed).iter().filter(|&&argument| argument == NOTICE).count(), 1, "{setting}");
        assert_eq!(page.rest(&redis).await, []);
        let again = Browser::resume(&server, "ada", &page.cut()).await;
        assert_eq!((again.recovered, again.missed.len()), (true, 0), "{setting}");
    }
}

#[tokio::test]
async fn other_rooms_are_no_loss() {
    let (redis, server) = start_with(&[TOLD]).await;
    redis.user("ada", 1, &[1]).await;
    let away = Browser::connect(&server, "ada").await.cut();
    redis.user("ada", 1, &[2]).await;
    publish(&redis, &server, "group-2", [1]).await;
    let mut page = Browser::resume(&server, "ada", &away).await;
    assert_eq!((page.recovered, numbers(&page.missed)), (false, vec![1]));
    assert_eq!(page.rest(&redis).await, []);
}

#[tokio::test]
async fn what_was_published_before_a_start_comes_to_no_page_that_joins_meanwhile() {
    let redis = Redis::start().await;
    redis.user("ada", 1, &[]).await;
    let first = node(&redis).await;
    let _page = Browser::connect(&first, "ada").await;
    redis.kill_subscribers_and_publish(record("user-1", 1)).await;
    first.says("gap=\"possible\"").await;
    first.becomes(200).await;
    let mut away = Browser::connect(&first, "ada").await;
    redis.records(record("user-1", 2)).await;
    assert_eq!(away.number().await, 2);
    let away = away.session;
    // After its gap, it has the lease again. It does not write what comes now.
    kept(&redis, &record("user-1", 2)).await;
    first.signal("STOP");
    redis.records(record("user-1", 3)).await;
    let second = Running::start(&["serve"], &[("REDIS_URL", &redis.url()), TOLD]).await;
    let mut early = Browser::connect(&second, "ada").await;
    let mut returned = Browser::resume(&second, "ada", &away).await;
    assert_eq!(second.readiness().await, 503, "it still reads");
    first.signal("CONT");
    second.becomes(200).await;
    redis.records(record("user-1", 4)).await;
    assert_eq!(numbers(&early.rest(&redis).await), [4]);
    assert_eq!((returned.recovered, arguments(&returned.missed)), (false, vec![NOTICE]));
    assert_eq!(numbers(&returned.rest(&redis).await), [4]);
    let late = Browser::resume(&second, "ada", &away).await;
    assert!(late.recovered);
    assert!(!arguments(&late.missed).contains(&NOTICE));
}

#[tokio::test]
async fn the_notice_of_one_node_is_no_place_in_the_log_of_another_whose_gap_was_longer() {
    let redis = Redis::start().await;
    redis.user("ada", 1, &[]).await;
    let proxy = Proxy::to(redis.port()).await;
    let settings = [TOLD, ("RECOVERY_STREAM", "off")];
    let (shorter, longer) =
        (Server::start(&redis.url(), &settings).await, Server::start(&proxy.url(), &settings).await);
    shorter.ready().await;
    longer.ready().await;
    proxy.hold();
    redis.kill_subscribers_and_publish(record("user-1", 1)).await;
    shorter.resubscribed(1).await;
    let away = Browser::connect(&shorter, "ada").await;
    redis.records(record("user-1", 2)).await;
    proxy.release();
    longer.resubscribed(1).await;
    assert!(
        !Browser::resume(&longer, "ada", &away.cut()).await.recovered,
        "this node never heard of the second record"
    );
}
