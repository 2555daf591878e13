//! What Rails publishes reaches the browsers it is for: as it was written, in order, once.

use loomio_channels::{bus::MAX_PAYLOAD, metrics::Counter};
use tokio::task::JoinSet;

use crate::harness::{Browser, Redis, Server, fixtures, large_record, numbers, record, start};

#[tokio::test]
async fn what_rails_wrote_arrives_byte_for_byte() {
    let (redis, server) = start().await;
    redis.user("ada", 45, &[11]).await;
    let mut browser = Browser::connect(&server, "ada").await;
    for payload in [
        r#"{"room":"group-11","records":{"z":1,"a":2,"m":[3.0,1e2,-0,0.10,12345678901234567890123]}}"#,
        r#"{ "unknown" : {"room":"group-12"}, "records":{ }, "room" : "group-11" , "records":[null] }"#,
        r#"{"room":"group-11","text":"\u00e9é \ud83c\udf31🌱 \/ \" <\/script>","":false}"#,
    ] {
        redis.records(payload).await;
        let event = browser.event().await;
        assert_eq!(event.packet, format!(r#"42["records",{payload},"{}"]"#, event.offset));
    }
}

#[tokio::test]
async fn every_kind_of_record_arrives_byte_for_byte() {
    let (redis, server) = start().await;
    redis.user("ada", 45, &[11, 12]).await;
    let mut browser = Browser::connect(&server, "ada").await;
    for (file, payload) in fixtures("records") {
        redis.records(&payload).await;
        let event = browser.event().await;
        let expected = format!(r#"42["records",{},"{}"]"#, str::from_utf8(&payload).unwrap(), event.offset);
        assert_eq!(event.packet, expected, "{file}");
    }
}

#[tokio::test]
async fn every_kind_of_notice_arrives_byte_for_byte_also_at_those_not_signed_in() {
    let (redis, server) = start().await;
    redis.user("ada", 45, &[11]).await;
    let mut browsers = [Browser::connect(&server, "ada").await, Browser::anonymous(&server).await];
    for (file, payload) in fixtures("notices") {
        redis.notice(&payload).await;
        for browser in &mut browsers {
            let event = browser.event().await;
            let expected = format!(r#"42["notice",{},"{}"]"#, str::from_utf8(&payload).unwrap(), event.offset);
            assert_eq!(event.packet, expected, "{file}");
        }
    }
}

#[tokio::test]
async fn what_cannot_be_used_is_dropped_and_counted_and_the_next_record_arrives() {
    let (redis, server) = start().await;
    redis.user("ada", 45, &[11]).await;
    let mut browser = Browser::connect(&server, "ada").await;
    for (rejected, (file, payload)) in (1..).zip(fixtures("bad")) {
        redis.records(&payload).await;
        redis.records(record("group-11", 7)).await;
        assert_eq!(browser.number().await, 7, "{file}");
        assert_eq!(server.count(Counter::MessagesRejected), rejected, "{file}");
        assert_eq!(server.count(Counter::MessagesReceived), 2 * rejected, "{file}");
    }
}

#[tokio::test]
async fn a_notice_that_is_not_json_is_dropped_and_counted() {
    let (redis, server) = start().await;
    let mut browser = Browser::anonymous(&server).await;
    for payload in ["", "{", "reload", r#"{"version":1}{"#] {
        redis.notice(payload).await;
    }
    assert_eq!(browser.rest(&redis).await, []);
    assert_eq!(server.count(Counter::MessagesRejected), 4);
}

#[tokio::test]
async fn what_is_too_large_is_dropped_and_counted_and_the_next_record_arrives() {
    let (redis, server) = start().await;
    redis.user("ada", 45, &[]).await;
    let mut browser = Browser::connect(&server, "ada").await;
    let [largest, too_large] = [0, 1].map(|more| large_record("user-45", 1, MAX_PAYLOAD + more));
    redis.records(&too_large).await;
    redis.notice(&too_large).await;
    redis.records(&largest).await;
    assert_eq!(browser.argument().await.len(), MAX_PAYLOAD);
    redis.records(record("user-45", 2)).await;
    assert_eq!(browser.number().await, 2);
    assert_eq!([Counter::MessagesReceived, Counter::MessagesRejected].map(|counter| server.count(counter)), [4, 2]);
    assert_eq!(server.count(Counter::Gaps), 0);
}

#[tokio::test]
async fn each_browser_gets_its_own_rooms_and_no_other() {
    let (redis, server) = start().await;
    redis.user("ada", 1, &[1, 2]).await;
    redis.user("bob", 2, &[2, 3]).await;
    let mut ada = Browser::connect(&server, "ada").await;
    let mut second_tab = Browser::connect(&server, "ada").await;
    let mut bob = Browser::connect(&server, "bob").await;
    let mut visitor = Browser::anonymous(&server).await;
    let rooms = ["user-1", "user-2", "group-1", "group-2", "group-3", "group-4", "user-", "group", "group-11", "1"];
    for (number, room) in (1..).zip(rooms) {
        redis.records(record(room, number)).await;
    }
    redis.fence("end").await;
    assert_eq!(numbers(&ada.upto("end").await), [1, 3, 4]);
    assert_eq!(numbers(&second_tab.upto("end").await), [1, 3, 4]);
    assert_eq!(numbers(&bob.upto("end").await), [2, 4, 5]);
    assert_eq!(visitor.upto("end").await, []);
}

#[tokio::test]
async fn a_room_may_have_any_name() {
    let (redis, server) = start().await;
    for id in ["é🌱", "a b", "\"\\", "\u{1}\n", "-1", "0", "*", "1,2", "group-1"] {
        let json = serde_json::json!({ "id": 1, "group_ids": [id] }).to_string();
        redis.user_json("ada", json).await;
        let mut browser = Browser::connect(&server, "ada").await;
        let payload = serde_json::json!({ "room": format!("group-{id}"), "records": {} }).to_string();
        redis.records(&payload).await;
        assert_eq!(browser.argument().await, payload);
    }
}

#[tokio::test]
async fn records_for_the_room_of_all_reach_all() {
    let (redis, server) = start().await;
    let mut visitor = Browser::anonymous(&server).await;
    redis.records(record("notice", 1)).await;
    assert_eq!(visitor.number().await, 1);
}

#[tokio::test]
async fn a_thousand_mixed_messages_keep_their_order() {
    const ROOMS: [&str; 4] = ["group-1", "user-9", "group-2", "group-3"];
    let (redis, server) = start().await;
    redis.user("all", 9, &[1, 2, 3]).await;
    redis.user("some", 8, &[1, 3]).await;
    let (mut all, mut some) = (Browser::connect(&server, "all").await, Browser::connect(&server, "some").await);
    for number in 0..1_000 {
        match ROOMS.get(number % 5) {
            Some(room) => redis.records(record(room, number)).await,
            None => redis.notice(record("", number)).await,
        }
    }
    redis.fence("end").await;
    assert_eq!(numbers(&all.upto("end").await), (0..1_000).collect::<Vec<_>>());
    let expected: Vec<_> = (0..1_000).filter(|number| [0, 3, 4].contains(&(number % 5))).collect();
    assert_eq!(numbers(&some.upto("end").await), expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_reaches_five_hundred_browsers() {
    let (redis, server) = start().await;
    redis.user("ada", 1, &[1]).await;
    let browsers = connect_many(&server, (0..500).map(|_| "ada".to_owned())).await;
    redis.many_records((0..60).map(|number| large_record("group-1", number, 1_000))).await;
    for mut browser in browsers {
        expect_numbers(&mut browser, 60).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forty_thousand_messages_to_single_users_arrive_once_each_and_in_order() {
    const USERS: usize = 200;
    const EACH: usize = 200;
    let (redis, server) = start().await;
    sign_in(&redis, USERS).await;
    let browsers = connect_many(&server, (0..USERS).map(|user| format!("user{user}"))).await;
    let payload = |index| large_record(&format!("user-{}", index % USERS), index / USERS, 512);
    let mut readers = JoinSet::new();
    for mut browser in browsers {
        readers.spawn(async move {
            expect_numbers(&mut browser, EACH).await;
            assert_eq!(browser.upto("end").await, []);
        });
    }
    redis.many_records((0..USERS * EACH).map(payload)).await;
    redis.fence("end").await;
    readers.join_all().await;
    assert_eq!(server.count(Counter::SlowClosed), 0);
}

/// Users 0, 1, 2 … with the tokens user0, user1, user2 …
async fn sign_in(redis: &Redis, users: usize) {
    for user in 0..users {
        redis.user(&format!("user{user}"), user, &[]).await;
    }
}

async fn connect_many(server: &Server, tokens: impl Iterator<Item = String>) -> Vec<Browser> {
    let mut browsers = Vec::new();
    for token in tokens {
        browsers.push(Browser::connect(server, &token).await);
    }
    browsers
}

/// The next records are those with the numbers 0 to `end`.
async fn expect_numbers(browser: &mut Browser, end: usize) {
    for number in 0..end {
        assert_eq!(browser.number().await, number);
    }
}
