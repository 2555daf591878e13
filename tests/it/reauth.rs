//! Live authorization: rooms follow the key in Redis while a browser is connected, and Redis is asked in measure.

use std::time::Instant;

use loomio_channels::metrics::Counter;

use crate::harness::{Browser, Polling, Redis, Server, large_record, numbers, publish, record, start_with, until};

/// Once a second.
const OFTEN: (&str, &str) = ("REAUTH_SECONDS", "1");

/// A node that asks Redis for nothing but users.
const ALONE: [(&str, &str); 2] = [("RECOVERY_STREAM", "off"), ("CHANNELS_SECRET", "0123456789abcdef")];

/// A server that asks often, and a browser of Ada, who is in these groups.
async fn start_with_ada(groups: &[usize], settings: &[(&str, &str)]) -> (Redis, Server, Browser) {
    let (redis, server) = start_with(&[&[OFTEN], &ALONE[..], settings].concat()).await;
    redis.user("ada", 1, groups).await;
    let browser = Browser::connect(&server, "ada").await;
    (redis, server, browser)
}

/// Puts Ada into these groups and waits until the rooms of so many browsers have changed in all.
async fn change(redis: &Redis, server: &Server, groups: &[usize], times: u64) {
    redis.user("ada", 1, groups).await;
    server.counted(Counter::RoomsChanged, times).await;
}

/// Waits until the key of the only user was read after now, and what it says was followed.
async fn read_again(server: &Server) {
    // The first answer may be on its way already, and the last may not be followed yet.
    let seen = server.count(Counter::Reauthorized) + 3;
    until("three more answers", async || server.count(Counter::Reauthorized) >= seen).await;
}

/// Publishes numbered records for rooms, one each.
async fn publish_to(redis: &Redis, server: &Server, rooms: &[&str]) {
    for (number, room) in rooms.iter().enumerate() {
        publish(redis, server, room, [number]).await;
    }
}

#[tokio::test]
async fn a_group_that_is_taken_away_is_left_and_does_not_come_back_by_a_return() {
    let (redis, server, mut browser) = start_with_ada(&[1, 2], &[]).await;
    change(&redis, &server, &[1], 1).await;
    publish_to(&redis, &server, &["group-2", "group-1", "user-1"]).await;
    assert_eq!(numbers(&browser.rest(&redis).await), [1, 2]);
    let old = browser.cut();
    // Her ticket names both groups.
    redis.forget("ada").await;
    publish_to(&redis, &server, &["group-2", "group-1"]).await;
    let mut browsers = Vec::new();
    for _ in 0..2 {
        let browser = Browser::resume(&server, "ada", &old).await;
        assert_eq!((browser.recovered, numbers(&browser.missed)), (false, vec![1]), "other rooms, another session");
        browsers.push(browser);
    }
    publish_to(&redis, &server, &["group-2", "group-1"]).await;
    for browser in &mut browsers {
        assert_eq!(numbers(&browser.rest(&redis).await), [1]);
    }
}

#[tokio::test]
async fn a_group_that_is_gained_is_replayed_from_the_beginning_of_the_session() {
    let (redis, server, before) = start_with_ada(&[1], &[]).await;
    publish(&redis, &server, "group-2", [0]).await;
    drop(before);
    let mut browser = Browser::connect(&server, "ada").await;
    publish_to(&redis, &server, &["group-1", "group-2"]).await;
    publish(&redis, &server, "group-1", [2]).await;
    redis.user("ada", 1, &[1, 2]).await;
    assert_eq!([browser.number().await, browser.number().await, browser.number().await], [0, 2, 1]);
    let prime = browser.try_any_event().await.unwrap();
    assert_eq!(prime.name, "session", "the offset of a replayed record is older than what she had got");
    publish(&redis, &server, "group-2", [3]).await;
    assert_eq!(browser.number().await, 3);
    let session = browser.cut();
    publish_to(&redis, &server, &["group-1"]).await;
    let browser = Browser::resume(&server, "ada", &session).await;
    assert_eq!((browser.recovered, numbers(&browser.missed)), (false, vec![1, 3, 0]), "as for any gained group");
    let browser = Browser::resume(&server, "ada", &browser.cut()).await;
    assert!(browser.recovered);
}

#[tokio::test]
async fn a_group_that_was_gained_while_connected_stays_when_the_key_is_gone() {
    let (redis, server, browser) = start_with_ada(&[1], &[]).await;
    change(&redis, &server, &[1, 2], 1).await;
    redis.forget("ada").await;
    let mut browser = Browser::resume(&server, "ada", &browser.cut()).await;
    publish(&redis, &server, "group-2", [4]).await;
    assert_eq!(browser.number().await, 4);
}

#[tokio::test]
async fn a_group_that_is_taken_away_and_given_back_is_replayed_as_a_whole() {
    let (redis, server, mut browser) = start_with_ada(&[1, 2], &[]).await;
    publish(&redis, &server, "group-2", [0]).await;
    change(&redis, &server, &[1], 1).await;
    publish(&redis, &server, "group-2", [1]).await;
    change(&redis, &server, &[1, 2], 2).await;
    assert_eq!(numbers(&browser.rest(&redis).await), [0, 0, 1]);
    let browser = Browser::resume(&server, "ada", &browser.cut()).await;
    assert_eq!((browser.recovered, numbers(&browser.missed)), (false, vec![0, 1]));
}

#[tokio::test]
async fn a_return_after_a_change_brings_no_more_than_what_was_missed() {
    let (redis, server, mut browser) = start_with_ada(&[1, 2], &[("REPLAY_BYTES", "64KiB")]).await;
    for number in 0..100 {
        redis.records(large_record("group-1", number, 1_000)).await;
    }
    change(&redis, &server, &[1], 1).await;
    assert_eq!(numbers(&browser.rest(&redis).await), (0..100).collect::<Vec<_>>());
    let session = browser.cut();
    publish(&redis, &server, "group-1", [100]).await;
    let browser = Browser::resume(&server, "ada", &session).await;
    assert_eq!(numbers(&browser.missed), [100]);
}

#[tokio::test]
async fn another_user_with_the_same_token_has_that_users_rooms() {
    let (redis, server, mut browser) = start_with_ada(&[1, 2], &[]).await;
    redis.user("ada", 5, &[2, 3]).await;
    server.counted(Counter::RoomsChanged, 1).await;
    publish_to(&redis, &server, &["user-1", "group-1", "group-2", "group-3", "user-5"]).await;
    assert_eq!(numbers(&browser.rest(&redis).await), [2, 3, 4]);
}

#[tokio::test]
async fn somebody_who_signs_in_while_connected_gets_rooms() {
    let (redis, server) = start_with(&[OFTEN]).await;
    let mut browser = Browser::connect(&server, "ada").await;
    publish(&redis, &server, "user-1", [3]).await;
    redis.user("ada", 1, &[]).await;
    assert_eq!(browser.number().await, 3);
}

#[tokio::test]
async fn an_absent_key_keeps_the_rooms() {
    let (redis, server, mut browser) = start_with_ada(&[2], &[]).await;
    redis.forget("ada").await;
    read_again(&server).await;
    publish(&redis, &server, "group-2", [1]).await;
    assert_eq!(numbers(&browser.rest(&redis).await), [1]);
    assert!(Browser::resume(&server, "ada", &browser.cut()).await.recovered);
    assert_eq!(server.count(Counter::RoomsChanged), 0);
}

#[tokio::test]
async fn strictly_an_absent_key_makes_a_visitor() {
    let (redis, server, mut browser) = start_with_ada(&[2], &[("REAUTH_STRICT", "1")]).await;
    redis.forget("ada").await;
    server.counted(Counter::RoomsChanged, 1).await;
    publish_to(&redis, &server, &["group-2", "user-1"]).await;
    assert_eq!(browser.rest(&redis).await, [], "notices still come");
    change(&redis, &server, &[2], 2).await;
    assert_eq!(numbers(&browser.rest(&redis).await), [0, 1], "what came since her session began");
    let session = browser.cut();
    redis.forget("ada").await;
    publish(&redis, &server, "group-2", [5]).await;
    let mut browser = Browser::resume(&server, "ada", &session).await;
    assert_eq!(browser.missed, []);
    publish(&redis, &server, "group-2", [6]).await;
    assert_eq!(browser.rest(&redis).await, []);
}

#[tokio::test]
async fn what_cannot_be_read_keeps_the_rooms() {
    let (redis, server, mut browser) = start_with_ada(&[2], &[]).await;
    redis.user_json("ada", r#"{"id":1,"group_ids":[3"#).await;
    until("an answer", async || server.count(Counter::RoomsKept) > 0).await;
    redis.forget("ada").await;
    redis.user_list("ada").await;
    // One that was on its way may be of the text.
    let seen = server.count(Counter::RoomsKept) + 2;
    until("more answers", async || server.count(Counter::RoomsKept) >= seen).await;
    publish(&redis, &server, "group-2", [1]).await;
    assert_eq!(numbers(&browser.rest(&redis).await), [1]);
    assert!(Browser::resume(&server, "ada", &browser.cut()).await.recovered);
    assert_eq!(server.count(Counter::RoomsChanged), 0);
}

/// What the key says, or that it is gone, makes a visitor of Ada, be she connected or come back.
async fn makes_a_visitor(json: Option<&str>, settings: &[(&str, &str)]) {
    let (redis, server, mut browser) = start_with_ada(&[2], settings).await;
    let away = Browser::connect(&server, "ada").await.cut();
    match json {
        Some(json) => redis.user_json("ada", json).await,
        None => redis.forget("ada").await,
    }
    server.counted(Counter::RoomsChanged, 1).await;
    let mut returned = Browser::resume(&server, "ada", &away).await;
    assert!(!returned.recovered);
    publish_to(&redis, &server, &["group-2", "user-1"]).await;
    redis.fence("end").await;
    for browser in [&mut browser, &mut returned] {
        assert_eq!(browser.upto("end").await, [], "{json:?}");
    }
}

#[tokio::test]
async fn a_key_that_is_no_users_makes_a_visitor() {
    for json in ["null", r#"{"id":null,"group_ids":[]}"#] {
        makes_a_visitor(Some(json), &[]).await;
    }
}

#[tokio::test]
async fn strictly_what_cannot_be_read_makes_a_visitor() {
    for json in ["nonsense", "{}"] {
        makes_a_visitor(Some(json), &[("REAUTH_STRICT", "1")]).await;
    }
}

#[tokio::test]
async fn rooms_that_nobody_vouches_for_are_kept_for_a_limited_time() {
    for json in [None, Some("nonsense")] {
        makes_a_visitor(json, &[("UNVOUCHED_MAX", "2s")]).await;
    }
}

#[tokio::test]
async fn a_redis_that_refuses_keeps_the_rooms_and_is_followed_when_it_does_not() {
    let redis = Redis::start().await;
    // GET is all that the README asks for.
    let words = ["ACL", "SETUSER", "channels", "on", ">secret", "allchannels", "allcommands", "-mget"];
    redis.command(&words).await;
    redis.command(&["ACL", "SETUSER", "channels", "resetkeys", "~/current_users/*"]).await;
    redis.user("ada", 1, &[2]).await;
    let server = Server::start(&redis.url().replace("redis://", "redis://channels:secret@"), &[OFTEN]).await;
    server.ready().await;
    let mut browser = Browser::connect(&server, "ada").await;
    redis.command(&["ACL", "SETUSER", "channels", "-get"]).await;
    until("a refusal", async || server.count(Counter::RoomsKept) > 0).await;
    publish(&redis, &server, "group-2", [1]).await;
    assert_eq!(numbers(&browser.rest(&redis).await), [1]);
    redis.command(&["ACL", "SETUSER", "channels", "+get"]).await;
    change(&redis, &server, &[], 1).await;
    publish_to(&redis, &server, &["group-2", "user-1"]).await;
    assert_eq!(numbers(&browser.rest(&redis).await), [1]);
}

#[tokio::test]
async fn a_redis_that_hangs_or_restarts_delays_the_question_and_is_not_asked_more_often_for_it() {
    const STRANGERS: u64 = 2;
    let (mut redis, server, mut browser) = start_with_ada(&[2], &[]).await;
    read_again(&server).await;
    let (since, asked) = (Instant::now(), redis.calls("get").await);
    redis.freeze();
    // The server waits two periods for the user of each before it answers.
    for _ in 0..STRANGERS {
        Browser::connect(&server, "bob").await;
    }
    redis.thaw();
    change(&redis, &server, &[3], 1).await;
    let asked = redis.calls("get").await - asked;
    assert!(asked <= since.elapsed().as_secs() + 2 + STRANGERS, "{asked} times in {:?}", since.elapsed());
    redis.kill();
    server.unready().await;
    redis.up().await;
    server.ready().await;
    change(&redis, &server, &[4], 2).await;
    publish_to(&redis, &server, &["group-2", "group-3", "group-4"]).await;
    assert_eq!(numbers(&browser.rest(&redis).await), [2]);
}

#[tokio::test]
async fn a_browser_that_connected_while_redis_hung_follows_as_well() {
    let (redis, server) = start_with(&[OFTEN]).await;
    redis.user("ada", 1, &[2]).await;
    redis.freeze();
    let mut browser = Browser::connect(&server, "ada").await;
    redis.thaw();
    publish(&redis, &server, "group-2", [0]).await;
    assert_eq!(browser.number().await, 0);
    redis.user("ada", 1, &[3]).await;
    until("the other group", async || {
        redis.records(record("group-2", 2)).await;
        redis.records(record("group-3", 3)).await;
        numbers(&browser.rest(&redis).await) == [3]
    })
    .await;
    redis.records(record("group-2", 4)).await;
    redis.records(record("group-3", 5)).await;
    assert_eq!(numbers(&browser.rest(&redis).await), [5]);
}

#[tokio::test]
async fn several_browsers_with_one_token_are_one_question() {
    const BROWSERS: u64 = 5;
    let (redis, server) = start_with(&[OFTEN]).await;
    redis.user("ada", 1, &[1]).await;
    let since = Instant::now();
    let mut browsers = Vec::new();
    for _ in 0..BROWSERS {
        browsers.push(Browser::connect(&server, "ada").await);
    }
    read_again(&server).await;
    change(&redis, &server, &[2], BROWSERS).await;
    let asked = server.count(Counter::Reauthorized);
    assert!(asked <= since.elapsed().as_secs() + 2, "{asked} times in {:?}", since.elapsed());
    publish_to(&redis, &server, &["group-1", "group-2"]).await;
    for browser in &mut browsers {
        assert_eq!(browser.number().await, 1);
    }
}

#[tokio::test]
async fn without_a_token_or_a_period_nobody_is_asked_for() {
    let (redis, asks) = start_with(&[&[OFTEN], &ALONE[..]].concat()).await;
    let never = Server::start(&redis.url(), &[&[("REAUTH_SECONDS", "0")], &ALONE[..]].concat()).await;
    never.ready().await;
    redis.user("ada", 1, &[]).await;
    let mut others = vec![Browser::connect(&never, "ada").await];
    for _ in 0..10 {
        others.push(Browser::anonymous(&asks).await);
    }
    let _ada = Browser::connect(&asks, "ada").await;
    // Two checks of rights and two lookups.
    until("what is asked at first", async || redis.calls("get").await >= 4).await;
    read_again(&asks).await;
    let again = asks.count(Counter::Reauthorized);
    let others = redis.calls("get").await - again;
    // She may have been asked for once or twice more meanwhile, and the others would have been so at least twice.
    assert!((4..4 + 11).contains(&others), "{others} beside {again} for the one");
}

#[tokio::test]
async fn a_browser_that_polls_follows_too() {
    let (redis, server) = start_with(&[OFTEN]).await;
    redis.user("ada", 1, &[1]).await;
    let polling = Polling::connect(&server, "ada").await;
    change(&redis, &server, &[2], 1).await;
    publish_to(&redis, &server, &["group-1", "group-2"]).await;
    assert_eq!(polling.numbers(1).await, [1]);
}

#[tokio::test]
async fn thousands_are_asked_for_once_in_a_period_and_evenly() {
    const USERS: u64 = 2_000;
    const PERIOD: u64 = 4;
    /// Parts of a period. Each has about 33 users, with a standard deviation of 6.
    const PARTS: u64 = 60;
    const MOST_IN_PART: u64 = 80;
    let (redis, server) = start_with(&[&[("REAUTH_SECONDS", &*PERIOD.to_string())], &ALONE[..]].concat()).await;
    let mut browsers = Vec::new();
    for user in 0..USERS {
        let token = format!("user{user}");
        // A key of another type spoils no other.
        if user % 10 == 0 {
            redis.user_list(&token).await;
        } else {
            redis.user(&token, 1, &[1]).await;
        }
        browsers.push(Browser::connect(&server, &token).await);
    }
    let milliseconds = |since: Instant| u64::try_from(since.elapsed().as_millis()).unwrap();
    let (start, first) = (Instant::now(), redis.calls("get").await);
    let (mut last, mut seen) = (start, first);
    until("two rounds", async || {
        let now = Instant::now();
        let calls = redis.calls("get").await;
        let most = (milliseconds(last) * PARTS / (PERIOD * 1_000) + 2) * MOST_IN_PART;
        assert!(calls - seen <= most, "{} questions in {} ms", calls - seen, milliseconds(last));
        (last, seen) = (now, calls);
        seen - first >= 2 * USERS
    })
    .await;
    let most = USERS * milliseconds(start) / (PERIOD * 1_000) + USERS / 5;
    assert!(seen - first <= most, "{} questions in {} ms", seen - first, milliseconds(start));
    for user in (1..USERS).step_by(100) {
        redis.user(&format!("user{user}"), 1, &[1, 2]).await;
    }
    server.counted(Counter::RoomsChanged, USERS / 100).await;
    assert!(server.count(Counter::RoomsKept) >= USERS / 10);
}
