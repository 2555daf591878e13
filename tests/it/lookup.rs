//! From a token to its rooms: whatever Redis holds for it, and however long Redis takes to say so.

use std::time::{Duration, Instant};

use loomio_channels::metrics::Counter;
use tokio::task::JoinSet;

use crate::harness::{
    Browser, Redis, Running, Server, fixtures, numbers, publish, record, start, start_behind_proxy, start_with,
    start_with_ada, until,
};

/// How long a browser waits for a lookup before it is connected without.
const PATIENCE: Duration = Duration::from_secs(2);

/// A node that asks Redis for nothing but users.
const ALONE: [(&str, &str); 2] = [("RECOVERY_STREAM", "off"), ("CHANNELS_SECRET", "0123456789abcdef")];

#[tokio::test]
async fn what_can_be_read_of_a_user_counts() {
    let (redis, server) = start().await;
    let expected = |file: &str| -> &[&str] {
        match file {
            "normal.json" | "id_as_string.json" => &["user-45", "group-11", "group-12"],
            "more_keys.json" => &["user-45", "group-11"],
            "unicode_name.json" => &["user-47", "group-11"],
            "no_groups.json" => &["user-48"],
            "group_ids_mixed.json" => &["user-45", "group-11", "group-14"],
            "group_ids_null.json" | "group_ids_object.json" | "group_ids_text.json" | "without_group_ids.json" => {
                &["user-45"]
            }
            "without_id.json" => &["group-11"],
            "empty.json" | "list.json" | "not_json.json" | "null.json" | "number.json" | "truncated.json"
            | "visitor.json" => &[],
            other => panic!("say what is expected of {other}"),
        }
    };
    let rooms = ["user-45", "user-47", "user-48", "group-11", "group-12", "group-13", "group-14", "group-99"];
    let rooms = rooms.into_iter().chain(["user-", "user-null", "user-undefined", "user-99", "group-", "group-0"]);
    let mut wrong = Vec::new();
    for (file, json) in fixtures("users") {
        redis.user_json("fixture", &json).await;
        let mut browser = Browser::connect(&server, "fixture").await;
        for (number, room) in rooms.clone().enumerate() {
            redis.records(record(room, number)).await;
        }
        redis.fence("end").await;
        let joined = numbers(&browser.upto("end").await);
        let joined: Vec<_> =
            rooms.clone().enumerate().filter(|(n, _)| joined.contains(n)).map(|(_, room)| room).collect();
        if joined != expected(&file) {
            wrong.push((file, joined));
        }
    }
    assert_eq!(wrong, []);
}

#[tokio::test]
async fn a_key_of_another_type_is_no_user() {
    let (redis, server) = start().await;
    redis.user_list("odd").await;
    let mut browser = Browser::connect(&server, "odd").await;
    redis.records(record("user-45", 1)).await;
    assert_eq!(browser.rest(&redis).await, []);
    assert_eq!(server.count(Counter::LookupsLate), 0);
}

#[tokio::test]
async fn thousands_of_groups_are_joined() {
    let (redis, server) = start().await;
    let groups: Vec<_> = (1..=6_000).collect();
    redis.user("busy", 1, &groups).await;
    let mut browser = Browser::connect(&server, "busy").await;
    for group in [1, 5_000, 6_000, 6_001] {
        redis.records(record(&format!("group-{group}"), group)).await;
    }
    assert_eq!(numbers(&browser.rest(&redis).await), [1, 5_000, 6_000]);
    let session = browser.cut();
    publish(&redis, &server, "group-5999", [2]).await;
    let browser = Browser::resume(&server, "busy", &session).await;
    assert!(browser.recovered);
    assert_eq!(numbers(&browser.missed), [2]);
}

#[tokio::test]
async fn without_a_usable_token_a_browser_is_anonymous_and_redis_is_not_asked() {
    let (redis, server) = start_with(&ALONE).await;
    until("the check of rights", async || redis.calls("get").await == 1).await;
    let queries = ["", "&channel_token", "&channel_token=", "&channel_token=a%00b", "&channel_token=a%0d%0aDEL%20b"];
    let queries = queries.map(str::to_owned).into_iter().chain([format!("&channel_token={}", "a".repeat(15_000))]);
    let mut browsers = Vec::new();
    for query in queries {
        browsers.push(Browser::open(&server, &query, "40").await);
    }
    for token in ["null".to_owned(), "7".to_owned(), r#""a\nb""#.to_owned(), format!(r#""{}""#, "a".repeat(60_000))] {
        browsers.push(Browser::open(&server, "", &format!(r#"40{{"channel_token":{token}}}"#)).await);
    }
    redis.records(record("user-", 1)).await;
    redis.fence("end").await;
    for mut browser in browsers {
        assert_eq!(browser.upto("end").await, []);
    }
    assert_eq!(redis.calls("get").await, 1);
    redis.user("ada", 1, &[]).await;
    Browser::connect(&server, "ada").await;
    assert_eq!(redis.calls("get").await, 2, "this is how a lookup would show");
}

#[tokio::test]
async fn the_token_may_come_with_the_connect_packet() {
    let (redis, server) = start().await;
    redis.user("ada", 1, &[]).await;
    let mut browser = Browser::open(&server, "", r#"40{"channel_token":"ada","other":[1]}"#).await;
    redis.records(record("user-1", 1)).await;
    assert_eq!(browser.number().await, 1);
}

#[tokio::test]
async fn the_token_is_decoded_as_in_any_query() {
    let (redis, server) = start().await;
    redis.user("a/b+c", 1, &[]).await;
    let mut browser = Browser::open(&server, "&t=1&channel_token=a%2fb%2Bc&x=", "40").await;
    redis.records(record("user-1", 1)).await;
    assert_eq!(browser.number().await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_published_right_after_connect_is_never_lost() {
    let (redis, server) = start().await;
    let (redis, server) = (std::sync::Arc::new(redis), std::sync::Arc::new(server));
    let mut visits = JoinSet::new();
    for user in 0..200 {
        let (redis, server) = (redis.clone(), server.clone());
        visits.spawn(async move {
            let token = format!("user{user}");
            redis.user(&token, user, &[]).await;
            let mut browser = Browser::connect(&*server, &token).await;
            redis.records(record(&format!("user-{user}"), user)).await;
            assert_eq!(browser.number().await, user);
        });
    }
    visits.join_all().await;
}

#[tokio::test]
async fn while_redis_hangs_a_browser_is_connected_as_a_visitor_and_gets_its_rooms_afterwards() {
    let (redis, server) = start().await;
    redis.user("ada", 1, &[]).await;
    redis.freeze();
    let start = Instant::now();
    let mut browser = Browser::connect(&server, "ada").await;
    assert!((PATIENCE..5 * PATIENCE).contains(&start.elapsed()), "{:?}", start.elapsed());
    assert_eq!(server.count(Counter::LookupsLate), 1);
    redis.thaw();
    redis.records(record("user-1", 1)).await;
    assert_eq!(browser.number().await, 1);
}

#[tokio::test]
async fn what_is_published_while_a_lookup_hangs_is_not_lost() {
    let (redis, proxy, server) = start_behind_proxy(&[2]).await;
    // The first lookup makes a connection; the subscription has its own and goes on.
    proxy.hold();
    let mut browser = Browser::connect(&server, "ada").await;
    redis.records(record("group-2", 1)).await;
    redis.records(record("user-1", 2)).await;
    assert_eq!(browser.rest(&redis).await, []);
    proxy.release();
    assert_eq!([browser.number().await, browser.number().await], [1, 2]);
    redis.records(record("group-2", 3)).await;
    assert_eq!(browser.number().await, 3);
}

#[tokio::test]
async fn a_browser_that_is_cut_while_its_lookup_hangs_misses_nothing() {
    let (redis, proxy, server) = start_behind_proxy(&[]).await;
    proxy.hold();
    let mut browser = Browser::connect(&server, "ada").await;
    redis.records(record("user-1", 1)).await;
    assert_eq!(browser.rest(&redis).await, []);
    let session = browser.cut();
    proxy.release();
    let browser = Browser::resume(&server, "ada", &session).await;
    let mut missed = browser.missed.iter().map(|event| &event.argument);
    assert!(missed.any(|argument| *argument == record("user-1", 1)), "{:?}", browser.missed);
}

#[tokio::test]
async fn a_room_that_is_learned_of_late_brings_what_was_missed_before() {
    let (redis, proxy, server) = start_behind_proxy(&[]).await;
    let session = Browser::connect(&server, "ada").await.cut();
    redis.user("ada", 1, &[2]).await;
    publish(&redis, &server, "group-2", [1]).await;
    redis.kill_clients().await;
    proxy.hold();
    let mut browser = Browser::resume(&server, "ada", &session).await;
    assert_eq!((browser.recovered, numbers(&browser.missed)), (true, vec![]), "with the rooms of its ticket");
    proxy.release();
    redis.records(record("group-2", 2)).await;
    assert_eq!(browser.number().await, 1);
    assert_eq!(browser.number().await, 2);
}

#[tokio::test]
async fn a_room_that_is_found_out_late_to_be_taken_away_does_not_serve_again_as_if_it_had_never_been() {
    let (redis, proxy, server) = start_behind_proxy(&[1, 2]).await;
    let session = Browser::connect(&server, "ada").await.cut();
    redis.user("ada", 1, &[1]).await;
    redis.kill_clients().await;
    proxy.hold();
    let mut browser = Browser::resume(&server, "ada", &session).await;
    assert!(browser.recovered, "with the rooms of its ticket");
    proxy.release();
    // It is known that the answer came when the group's records do not come any more.
    until("the late answer", async || {
        redis.records(record("group-2", 0)).await;
        redis.fence("end").await;
        browser.upto("end").await.is_empty()
    })
    .await;
    redis.records(record("group-2", 7)).await;
    redis.records(record("group-1", 8)).await;
    assert_eq!(browser.number().await, 8);
    let away = browser.cut();
    redis.user("ada", 1, &[1, 2]).await;
    let browser = Browser::resume(&server, "ada", &away).await;
    let has =
        |browser: &Browser, number| browser.missed.iter().any(|event| event.argument == record("group-2", number));
    assert!(!browser.recovered && has(&browser, 7), "{:?}", browser.missed);
    redis.forget("ada").await;
    publish(&redis, &server, "group-2", [9]).await;
    let browser = Browser::resume(&server, "ada", &away).await;
    assert!(!has(&browser, 9), "its old ticket serves no more");
}

#[tokio::test]
async fn a_group_that_is_named_twice_is_joined_once() {
    let (redis, server) = start().await;
    redis.user_json("ada", r#"{"id":1,"group_ids":[2,"2",2]}"#).await;
    let mut browser = Browser::connect(&server, "ada").await;
    redis.records(record("group-2", 1)).await;
    assert_eq!(numbers(&browser.rest(&redis).await), [1]);
}

#[tokio::test]
async fn a_browser_that_returns_while_redis_hangs_keeps_its_rooms() {
    let (redis, server, browser) = start_with_ada(&[2]).await;
    let session = browser.cut();
    publish(&redis, &server, "group-2", [1]).await;
    redis.freeze();
    let mut browser = Browser::resume(&server, "ada", &session).await;
    assert!(browser.recovered);
    assert_eq!(numbers(&browser.missed), [1]);
    redis.thaw();
    redis.records(record("group-2", 2)).await;
    assert_eq!(browser.number().await, 2);
}

#[tokio::test]
async fn a_browser_that_connects_while_redis_is_down_gets_its_rooms_afterwards() {
    let (mut redis, server) = start().await;
    redis.user("ada", 1, &[]).await;
    redis.kill();
    server.unready().await;
    let mut browser = Browser::connect(&server, "ada").await;
    redis.up().await;
    server.ready().await;
    redis.records(record("user-1", 1)).await;
    assert_eq!(browser.number().await, 1);
}

#[tokio::test]
async fn a_lookup_survives_the_loss_of_its_connection() {
    let (redis, proxy, server) = start_behind_proxy(&[]).await;
    for number in 0..5 {
        let mut browser = Browser::connect(&server, "ada").await;
        redis.records(record("user-1", number)).await;
        assert_eq!(browser.number().await, number);
        proxy.cut();
        server.resubscribed(number as u64 + 1).await;
    }
    assert_eq!(server.count(Counter::LookupsLate), 0);
}

/// A Redis with a user `channels` that has all rights but those taken by `words`, and the address with that user.
async fn restricted(words: &[&str]) -> (Redis, String) {
    let redis = Redis::start().await;
    let all = ["ACL", "SETUSER", "channels", "on", ">secret", "allchannels", "allkeys", "allcommands"];
    redis.command(&[&all[..], words].concat()).await;
    let url = redis.url().replace("redis://", "redis://channels:secret@");
    (redis, url)
}

#[tokio::test]
async fn a_redis_user_without_the_right_to_read_makes_visitors_at_once_and_is_asked_once_for_each() {
    const BROWSERS: u64 = 20;
    for (words, mend) in [(&["-get"][..], "+get"), (&["resetkeys", "~other:*"], "~/current_users/*")] {
        let (redis, url) = restricted(words).await;
        redis.user("ada", 1, &[]).await;
        let server = Server::start(&url, &ALONE).await;
        server.ready().await;
        let mut browsers = Vec::new();
        for _ in 0..BROWSERS {
            browsers.push(Browser::connect(&server, "ada").await);
        }
        assert_eq!(server.count(Counter::LookupsLate), 0, "no browser waited");
        assert_eq!(server.count(Counter::LookupsRefused), BROWSERS);
        redis.records(record("user-1", 1)).await;
        redis.fence("end").await;
        for browser in &mut browsers {
            assert_eq!(browser.upto("end").await, []);
        }
        let rejected = async || redis.rejected_calls("get").await;
        until("the check of rights", async || rejected().await > BROWSERS).await;
        assert_eq!(rejected().await, BROWSERS + 1);

        redis.command(&["ACL", "SETUSER", "channels", mend]).await;
        let mut browser = Browser::connect(&server, "ada").await;
        redis.records(record("user-1", 2)).await;
        assert_eq!(browser.number().await, 2, "the mend in the log mends it");
    }
}

#[tokio::test]
async fn a_browser_that_returns_when_the_right_to_read_is_gone_keeps_its_rooms() {
    let (redis, url) = restricted(&[]).await;
    redis.user("ada", 1, &[2]).await;
    let server = Server::start(&url, &[]).await;
    server.ready().await;
    let session = Browser::connect(&server, "ada").await.cut();
    redis.command(&["ACL", "SETUSER", "channels", "-get"]).await;
    publish(&redis, &server, "group-2", [1]).await;
    let browser = Browser::resume(&server, "ada", &session).await;
    assert_eq!((browser.recovered, numbers(&browser.missed)), (true, vec![1]));
    assert_eq!(server.count(Counter::LookupsRefused), 1);
}

#[tokio::test]
async fn what_has_to_be_changed_in_redis_is_said_at_the_start_and_when_a_browser_is_refused() {
    const MEND: &str = "ACL SETUSER <user> +get ~/current_users/*";
    let (redis, url) = restricted(&["-get"]).await;
    let server = Running::start(&[], &[&[("REDIS_URL", &*url)], &ALONE[..]].concat()).await;
    let said = server.says("redis refuses lookups").await;
    assert!(said.contains("ERROR") && said.contains("REDIS_URL") && said.contains(MEND), "{said}");
    server.says("subscribed to redis").await;
    for _ in 0..3 {
        Browser::connect(&server, "ada").await;
    }
    let said = server.says("redis refuses a lookup,").await;
    assert!(said.contains("WARN") && said.contains("REDIS_URL") && said.contains(MEND), "{said}");
    assert_eq!(redis.rejected_calls("get").await, 4);
    let log = server.log();
    assert_eq!(log.iter().filter(|line| line.contains(MEND)).count(), 2, "{log:?}");
    assert!(!log.iter().any(|line| line.contains("ada") || line.contains("secret")), "{log:?}");

    redis.command(&["ACL", "SETUSER", "channels", "+get"]).await;
    let mut server = Running::start(&[], &[&[("REDIS_URL", &*url)], &ALONE[..]].concat()).await;
    until("the check of rights", async || redis.calls("get").await == 1).await;
    server.says("subscribed to redis").await;
    server.signal("TERM");
    server.exit().await;
    assert!(!server.log().iter().any(|line| line.contains("redis refuses")), "{:?}", server.log());
}

#[tokio::test]
async fn while_redis_answers_that_it_cannot_it_is_asked_four_times_a_second_however_many_wait() {
    const BROWSERS: u64 = 50;
    let (redis, server) = start_with(&ALONE).await;
    until("the check of rights", async || redis.calls("get").await == 1).await;
    redis.user("ada", 1, &[]).await;
    redis.command(&["CONFIG", "SET", "replica-serve-stale-data", "no"]).await;
    let since = Instant::now();
    // From now on it answers GET with MASTERDOWN, and goes on with PUBLISH.
    redis.command(&["REPLICAOF", "127.0.0.1", "1"]).await;
    let mut browsers = Vec::new();
    let mut visits = JoinSet::new();
    let server = std::sync::Arc::new(server);
    for _ in 0..BROWSERS {
        let server = server.clone();
        visits.spawn(async move { Browser::connect(&*server, "ada").await });
    }
    while let Some(browser) = visits.join_next().await {
        browsers.push(browser.unwrap());
    }
    assert_eq!(server.count(Counter::LookupsLate), BROWSERS, "an outage is no answer");
    let rejected = redis.rejected_calls("get").await;
    let probes = u64::try_from(since.elapsed().as_millis()).unwrap() / 250 + 1;
    assert!((1..=BROWSERS + probes).contains(&rejected), "{rejected} of at most {BROWSERS} + {probes}");

    redis.command(&["REPLICAOF", "NO", "ONE"]).await;
    redis.records(record("user-1", 1)).await;
    for browser in &mut browsers {
        assert_eq!(browser.number().await, 1);
    }
}
