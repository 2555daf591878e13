//! Sentinel makes a replica the primary: the gap is told, as nothing proves it empty, and the log goes on there.

use super::{SECRET, kept, node_at};
use crate::harness::{Browser, Redis, Running, Sentinel, numbers, record, until};

/// Waits until both nodes listen there.
async fn both_listen(redis: &Redis) {
    until("both nodes at the new primary", async || {
        redis.command(&["PUBSUB", "NUMSUB", "/records"]).await
            == ::redis::Value::Array(vec![::redis::Value::BulkString(b"/records".into()), ::redis::Value::Int(2)])
    })
    .await;
}

/// Two nodes over a Sentinel with a primary and its replica, which `fails_over`.
async fn fail_over(fails_over: impl AsyncFnOnce(&mut Redis, &Sentinel)) {
    let mut primary = Redis::start().await;
    let replica = Redis::start_with(&["--replicaof", "127.0.0.1", &primary.port().to_string()]).await;
    let sentinel = Sentinel::start(&primary);
    let url = sentinel.url("main", 0);
    primary.user("ada", 1, &[1]).await;
    let nodes = [node_at(&url, &[SECRET]).await, node_at(&url, &[SECRET]).await];
    let mut browser = Browser::connect(&nodes[0], "ada").await;
    let away = Browser::connect(&nodes[1], "ada").await.session;
    primary.records(record("group-1", 0)).await;
    assert_eq!(browser.number().await, 0);
    kept(&replica, &record("group-1", 0)).await;
    sentinel.knows_a_replica().await;

    fails_over(&mut primary, &sentinel).await;

    for node in &nodes {
        node.says("gap=\"possible\"").await;
        node.becomes(200).await;
    }
    // Sentinel has cut the test's own connection as well.
    replica.hang_up();
    both_listen(&replica).await;
    replica.records(record("group-1", 1)).await;
    assert_eq!(browser.number().await, 1, "a browser that stayed gets on");
    let mut fresh = Browser::connect(&nodes[0], "ada").await;
    // Each node knows the gap by a name of its own, so that other nodes find a session by what was published after it.
    until("the record at the other node", async || {
        let returned = Browser::resume(&nodes[1], "ada", &away).await;
        numbers(&returned.missed).ends_with(&[1])
    })
    .await;
    // For as long as their clocks may differ, a node does not know that a session of another began after its own gap.
    until("a session that is known to have begun after the gap", async || {
        let session = Browser::connect(&nodes[1], "ada").await.session;
        Browser::resume(&nodes[0], "ada", &session).await.recovered
    })
    .await;
    let late = Browser::connect(&nodes[1], "ada").await.session;
    replica.records(record("group-1", 2)).await;
    assert_eq!((browser.number().await, fresh.number().await), (2, 2));
    kept(&replica, &record("group-1", 2)).await;
    kept(&replica, &record("group-1", 0)).await;
    let third = node_at(&url, &[SECRET]).await;
    let check = async |node: &Running| {
        let returned = Browser::resume(node, "ada", &away).await;
        assert!(!returned.recovered, "it was away when the primary changed");
        assert!(numbers(&returned.missed).ends_with(&[1, 2]));
        assert!(!Browser::resume(node, "ada", &browser.session).await.recovered, "it stayed");
        let returned = Browser::resume(node, "ada", &late).await;
        assert!(returned.recovered, "it came after that");
        assert_eq!(numbers(&returned.missed), [2]);
    };
    for node in nodes.iter().chain([&third]) {
        check(node).await;
    }
}

#[tokio::test]
async fn an_operator_asks_for_it() {
    fail_over(async |_, sentinel| sentinel.fail_over().await).await;
}

#[tokio::test]
async fn the_primary_is_killed() {
    fail_over(async |primary, _| primary.kill()).await;
}
