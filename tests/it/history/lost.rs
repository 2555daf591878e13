//! A stream that somebody cut, deleted, restored from earlier or filled: what is missing is never called recovered.

use std::{fs, path::Path};

use super::{SECRET, STREAM, holds, kept, node, node_at, redis_with_ada, server, take};
use crate::harness::{Browser, Redis, Running, Session, numbers, record, until};

/// Publishes these numbers, each in an entry of its own; returns the browser's session after each.
async fn publish_apart(redis: &Redis, browser: &mut Browser, range: std::ops::Range<usize>) -> Vec<Session> {
    let mut sessions = Vec::new();
    for number in range {
        redis.records(record("group-1", number)).await;
        assert_eq!(take(browser, 1).await, [number]);
        kept(redis, &record("group-1", number)).await;
        sessions.push(browser.session.clone());
    }
    sessions
}

/// The ids of the entries, oldest first.
async fn ids(redis: &Redis) -> Vec<String> {
    let redis::Value::Array(entries) = redis.command(&["XRANGE", STREAM, "-", "+"]).await else { panic!("no stream") };
    let id = |entry: &redis::Value| match entry {
        redis::Value::Array(entry) => redis::from_redis_value(entry[0].clone()).unwrap(),
        other => panic!("{other:?}"),
    };
    entries.iter().map(id).collect()
}

/// The id of the entry with a record.
async fn id_of(redis: &Redis, number: usize) -> String {
    for id in ids(redis).await {
        let entry = redis.command(&["XRANGE", STREAM, &id, &id]).await;
        if holds(&entry, record("group-1", number).as_bytes()) {
            return id;
        }
    }
    panic!("no entry with {number}");
}

async fn end(mut node: Running) {
    node.signal("KILL");
    node.exit().await;
}

/// A Redis with a stream of these numbers, whose node was killed; and the session of a browser after each.
async fn left_alone(range: std::ops::Range<usize>) -> (Redis, Vec<Session>) {
    let redis = redis_with_ada().await;
    let first = node(&redis).await;
    let sessions = publish_apart(&redis, &mut Browser::connect(&first, "ada").await, range).await;
    end(first).await;
    (redis, sessions)
}

#[tokio::test]
async fn the_oldest_were_cut_off() {
    let redis = redis_with_ada().await;
    let first = node(&redis).await;
    let fresh = Browser::connect(&first, "ada").await.session;
    let mut browser = Browser::connect(&first, "ada").await;
    let sessions = publish_apart(&redis, &mut browser, 0..4).await;
    end(first).await;
    redis.command(&["XTRIM", STREAM, "MINID", "=", &id_of(&redis, 2).await]).await;
    let again = server(&redis).await;
    for lost in [&fresh, &sessions[0]] {
        let returned = Browser::resume(&again, "ada", lost).await;
        assert!(!returned.recovered, "it missed what was cut off");
        assert_eq!(numbers(&returned.missed), [2, 3]);
    }
    let returned = Browser::resume(&again, "ada", &sessions[2]).await;
    assert!(returned.recovered);
    assert_eq!(numbers(&returned.missed), [3]);
    again.stop().await;
}

#[tokio::test]
async fn one_in_the_middle_was_deleted() {
    let (redis, sessions) = left_alone(0..4).await;
    redis.command(&["XDEL", STREAM, &id_of(&redis, 1).await]).await;
    let again = server(&redis).await;
    let returned = Browser::resume(&again, "ada", &sessions[0]).await;
    assert!(!returned.recovered, "it missed what was deleted");
    assert_eq!(numbers(&returned.missed), [2, 3]);
    let returned = Browser::resume(&again, "ada", &sessions[2]).await;
    assert!(returned.recovered, "it had got that before");
    assert_eq!(numbers(&returned.missed), [3]);
    again.stop().await;
}

#[tokio::test]
async fn the_newest_were_deleted() {
    let (redis, sessions) = left_alone(0..3).await;
    let from = id_of(&redis, 2).await;
    for id in ids(&redis).await.iter().skip_while(|id| **id != from) {
        redis.command(&["XDEL", STREAM, id]).await;
    }
    let again = server(&redis).await;
    for session in &sessions {
        assert!(!Browser::resume(&again, "ada", session).await.recovered);
    }
    again.stop().await;
}

#[tokio::test]
async fn a_running_node_writes_again_what_was_flushed_or_emptied() {
    let redis = redis_with_ada().await;
    let first = node_at(&redis.url(), &[SECRET]).await;
    let mut browser = Browser::connect(&first, "ada").await;
    let away = Browser::connect(&first, "ada").await.session;
    publish_apart(&redis, &mut browser, 0..1).await;
    redis.command(&["FLUSHALL"]).await;
    redis.user("ada", 1, &[1, 2]).await;
    publish_apart(&redis, &mut browser, 1..2).await;
    kept(&redis, &record("group-1", 0)).await;
    let second = node_at(&redis.url(), &[SECRET]).await;
    let returned = Browser::resume(&second, "ada", &away).await;
    assert!(returned.recovered);
    assert_eq!(numbers(&returned.missed), [0, 1]);
}

#[tokio::test]
async fn a_stream_that_is_deleted_while_nothing_is_published_is_written_again() {
    let redis = redis_with_ada().await;
    let first = node(&redis).await;
    let mut browser = Browser::connect(&first, "ada").await;
    publish_apart(&redis, &mut browser, 0..1).await;
    redis.command(&["DEL", STREAM]).await;
    kept(&redis, &record("group-1", 0)).await;
    redis.command(&["RENAME", STREAM, "elsewhere"]).await;
    kept(&redis, &record("group-1", 0)).await;
}

#[tokio::test]
async fn what_is_older_than_the_window_leaves_redis_and_a_restart_is_still_no_gap() {
    let redis = redis_with_ada().await;
    let window = ("RECOVERY_WINDOW", "2s");
    let first = node_at(&redis.url(), &[window]).await;
    let mut browser = Browser::connect(&first, "ada").await;
    publish_apart(&redis, &mut browser, 0..2).await;
    until("the end of the messages", async || !holds(&redis.command(&["XRANGE", STREAM, "-", "+"]).await, b"group-1"))
        .await;
    end(first).await;
    node_at(&redis.url(), &[window]).await.says("complete=true").await;
}

#[tokio::test]
async fn the_key_for_tickets_is_given_back_and_another_one_is_told() {
    const KEY: &str = "loomio-channels:key";
    let redis = redis_with_ada().await;
    let first = node(&redis).await;
    let key = redis.command(&["GET", KEY]).await;
    redis.command(&["FLUSHALL"]).await;
    until("the key", async || redis.command(&["GET", KEY]).await == key).await;
    redis.command(&["SET", KEY, "theirs"]).await;
    first.says("redis has another key for tickets").await;
}

/// Copies what Redis has on disk.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

/// A Redis that was restarted with the keys it had after record 1 of 0 to 3; the sessions after each record.
async fn restored(redis: &mut Redis, first: &Running) -> (Browser, Vec<Session>) {
    let mut browser = Browser::connect(first, "ada").await;
    let mut sessions = publish_apart(redis, &mut browser, 0..2).await;
    let (data, backup) = (redis.directory().join("appendonlydir"), redis.directory().join("backup"));
    // What was confirmed is in the file.
    copy(&data, &backup);
    sessions.extend(publish_apart(redis, &mut browser, 2..4).await);
    redis.shut_down().await;
    fs::remove_dir_all(&data).unwrap();
    copy(&backup, &data);
    (browser, sessions)
}

#[tokio::test]
async fn a_stream_from_a_backup_is_not_taken_for_complete() {
    let mut redis = redis_with_ada().await;
    let first = node(&redis).await;
    let (_browser, sessions) = restored(&mut redis, &first).await;
    end(first).await;
    redis.up().await;
    assert!(!holds(&redis.command(&["XRANGE", STREAM, "-", "+"]).await, record("group-1", 2).as_bytes()));
    let again = server(&redis).await;
    for session in &sessions {
        assert!(!Browser::resume(&again, "ada", session).await.recovered);
    }
    again.stop().await;
}

#[tokio::test]
async fn a_running_node_replaces_a_stream_from_a_backup() {
    let mut redis = redis_with_ada().await;
    let first = node(&redis).await;
    let (mut browser, sessions) = restored(&mut redis, &first).await;
    // Nothing listens meanwhile.
    first.says("cannot subscribe").await;
    redis.up().await;
    first.says("gap=\"empty\"").await;
    publish_apart(&redis, &mut browser, 4..5).await;
    kept(&redis, &record("group-1", 3)).await;
    let second = server(&redis).await;
    let returned = Browser::resume(&second, "ada", &sessions[0]).await;
    assert!(returned.recovered, "the running node has it all");
    assert_eq!(numbers(&returned.missed), [1, 2, 3, 4]);
    second.stop().await;
}

#[tokio::test]
async fn a_redis_that_comes_back_without_its_keys_is_given_them_again() {
    let mut redis = Redis::start_with(&["--appendonly", "no"]).await;
    redis.user("ada", 1, &[1]).await;
    let first = node_at(&redis.url(), &[SECRET]).await;
    let mut browser = Browser::connect(&first, "ada").await;
    let sessions = publish_apart(&redis, &mut browser, 0..2).await;
    // In order: a Redis that is killed while it is asked something may reset the connection, which proves nothing.
    redis.shut_down().await;
    first.says("cannot subscribe").await;
    redis.up().await;
    redis.user("ada", 1, &[1]).await;
    first.says("gap=\"empty\"").await;
    publish_apart(&redis, &mut browser, 2..3).await;
    kept(&redis, &record("group-1", 0)).await;
    let second = node_at(&redis.url(), &[SECRET]).await;
    let returned = Browser::resume(&second, "ada", &sessions[0]).await;
    assert!(returned.recovered);
    assert_eq!(numbers(&returned.missed), [1, 2]);
}

#[tokio::test]
async fn entries_that_no_node_wrote_are_replaced() {
    const MOST: &str = "18446744073709551615-18446744073709551614";
    const LAST: &str = "18446744073709551615-18446744073709551615";
    // Another version; a batch that says it has 2^63 entries; one that ends early.
    for garbage in
        ["\u{7f}garbage", "\u{1}\u{ff}\u{ff}\u{ff}\u{ff}\u{ff}\u{ff}\u{ff}\u{7f}", "\u{1}", "", "\u{1}\0\0\0"]
    {
        let redis = redis_with_ada().await;
        for id in [MOST, LAST] {
            redis.command(&["XADD", STREAM, id, "loomio-channels", garbage]).await;
        }
        let first = node(&redis).await;
        let mut browser = Browser::connect(&first, "ada").await;
        let sessions = publish_apart(&redis, &mut browser, 0..2).await;
        until("the end of the garbage", async || !ids(&redis).await.iter().any(|id| id == LAST)).await;
        end(first).await;
        let second = server(&redis).await;
        let returned = Browser::resume(&second, "ada", &sessions[0]).await;
        assert!(returned.recovered, "{garbage:?}");
        assert_eq!(numbers(&returned.missed), [1]);
        second.stop().await;
    }
}
