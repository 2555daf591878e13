//! A Redis that does not keep the log: that is said once with the mend, all else goes on, and when Redis keeps it again
//! the node goes on by itself.

use super::{SECRET, kept, node_at, redis_with_ada, times};
use crate::harness::{Browser, Redis, Running, get, numbers, record, until};

const REFUSED: &str = "the recovery log is not kept in redis";
const KEPT: &str = "the recovery log is kept in redis again";

/// What a user needs for everything, as the README says.
const RIGHTS: &str = "resetchannels resetkeys -@all &/records &/system_notice &chatbot/* +subscribe +psubscribe \
                      +ping +info +client|info +get ~/current_users/* +set +del +rename +pexpire +pubsub|numsub +xadd \
                      +xtrim +xrange +xrevrange ~loomio-channels:*";

/// Commands that begin each attempt to write.
async fn attempts(redis: &Redis) -> u64 {
    redis.calls("set").await + redis.rejected_calls("set").await
}

/// Waits for two more attempts.
async fn is_tried_again(redis: &Redis) {
    let before = attempts(redis).await;
    until("two more attempts", async || attempts(redis).await >= before + 2).await;
}

/// Live updates, recovery from the node's own memory, and health.
async fn works(redis: &Redis, node: &Running, number: usize) {
    let mut browser = Browser::connect(node, "ada").await;
    let away = Browser::connect(node, "ada").await.session;
    redis.records(record("group-1", number)).await;
    assert_eq!(browser.number().await, number);
    let returned = Browser::resume(node, "ada", &away).await;
    assert!(returned.recovered);
    assert_eq!(numbers(&returned.missed), [number]);
    assert_eq!((node.readiness().await, get(node, "/health/live").await.status), (200, 200));
}

/// A node at this Redis, which refuses the stream until these commands are given.
async fn refuses_until(redis: &Redis, url: &str, mends: &[&str], allow: &[&[&str]]) -> Running {
    let node = node_at(url, &[SECRET]).await;
    let said = node.says(REFUSED).await;
    for mend in mends {
        assert!(said.contains(mend), "{said}");
    }
    works(redis, &node, 1).await;
    is_tried_again(redis).await;
    assert_eq!((times(&node, REFUSED), times(&node, KEPT)), (1, 0), "{:?}", node.log());
    for command in allow {
        redis.command(command).await;
    }
    node.says(KEPT).await;
    let away = Browser::connect(&node, "ada").await.session;
    works(redis, &node, 2).await;
    kept(redis, &record("group-1", 2)).await;
    let other = node_at(url, &[SECRET]).await;
    let returned = Browser::resume(&other, "ada", &away).await;
    assert!(returned.recovered);
    assert_eq!(numbers(&returned.missed), [2]);
    assert_eq!((times(&node, REFUSED), times(&node, KEPT)), (1, 1), "{:?}", node.log());
    node
}

#[tokio::test]
async fn a_redis_whose_memory_is_full() {
    let redis = redis_with_ada().await;
    redis.command(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let full = ["its memory is full", "maxmemory", "RECOVERY_LOG_BYTES"];
    let node = refuses_until(&redis, &redis.url(), &full, &[&["CONFIG", "SET", "maxmemory", "0"]]).await;
    // Another time is another change.
    redis.command(&["CONFIG", "SET", "maxmemory", "1"]).await;
    until("the second refusal", async || times(&node, REFUSED) == 2).await;
    until("the end of the stream", async || redis.command(&["EXISTS", super::STREAM]).await == ::redis::Value::Int(0))
        .await;
    works(&redis, &node, 3).await;
    redis.command(&["CONFIG", "SET", "maxmemory", "0"]).await;
    until("the second end", async || times(&node, KEPT) == 2).await;
    kept(&redis, &record("group-1", 3)).await;
}

#[tokio::test]
async fn a_read_only_replica() {
    let redis = redis_with_ada().await;
    redis.command(&["REPLICAOF", "127.0.0.1", "1"]).await;
    let mends = ["it is a replica", "REDIS_URL", "primary"];
    refuses_until(&redis, &redis.url(), &mends, &[&["REPLICAOF", "NO", "ONE"]]).await;
}

#[tokio::test]
async fn something_else_at_the_key() {
    let redis = redis_with_ada().await;
    redis.command(&["SET", super::STREAM, "something else"]).await;
    refuses_until(&redis, &redis.url(), &["RECOVERY_STREAM"], &[&["DEL", super::STREAM]]).await;
}

#[tokio::test]
async fn something_else_at_the_key_of_the_lease() {
    const LEASE: &str = "loomio-channels:recovery:lease";
    let redis = redis_with_ada().await;
    redis.command(&["SET", LEASE, "theirs"]).await;
    refuses_until(&redis, &redis.url(), &["RECOVERY_STREAM"], &[&["DEL", LEASE]]).await;
}

#[tokio::test]
async fn too_few_replicas() {
    let redis = redis_with_ada().await;
    redis.command(&["CONFIG", "SET", "min-replicas-to-write", "1"]).await;
    let allow: &[&str] = &["CONFIG", "SET", "min-replicas-to-write", "0"];
    refuses_until(&redis, &redis.url(), &["NOREPLICAS"], &[allow]).await;
}

#[tokio::test]
async fn a_server_without_a_command() {
    for command in ["XADD", "XRANGE", "RENAME"] {
        let redis = Redis::start_with(&["--rename-command", command, ""]).await;
        redis.user("ada", 1, &[1]).await;
        let node = node_at(&redis.url(), &[]).await;
        let said = node.says(REFUSED).await;
        assert!(said.contains("Redis 6.2") && said.contains("renamed"), "{said}");
        works(&redis, &node, 1).await;
        is_tried_again(&redis).await;
        assert_eq!(times(&node, REFUSED), 1, "{:?}", node.log());
    }
}

/// A Redis with a user who has the rights of the README and these changes of them; and the address with that user.
async fn restricted(changes: &[&str]) -> (Redis, String) {
    let redis = redis_with_ada().await;
    let rights: Vec<_> = RIGHTS.split_whitespace().chain(changes.iter().copied()).collect();
    redis.command(&[&["ACL", "SETUSER", "channels", "on", ">secret"], &rights[..]].concat()).await;
    let url = redis.url().replace("redis://", "redis://channels:secret@");
    (redis, url)
}

#[tokio::test]
async fn the_rights_that_the_readme_names_are_enough() {
    let readme = include_str!("../../../README.md").split_whitespace().collect::<Vec<_>>().join(" ");
    let named: Vec<_> = RIGHTS.split_whitespace().collect();
    assert!(readme.contains(&named.join(" ")), "the README names {named:?}");
    let (redis, url) = restricted(&[]).await;
    let node = node_at(&url, &[]).await;
    let mut browser = Browser::connect(&node, "ada").await;
    redis.records(record("group-1", 1)).await;
    assert_eq!(browser.number().await, 1);
    kept(&redis, &record("group-1", 1)).await;
    redis.kill_subscribers().await;
    node.says("gap=\"empty\"").await;
    let other = node_at(&url, &[]).await;
    assert!(Browser::resume(&other, "ada", &browser.session).await.recovered);
    for node in [node, other] {
        let refusals = ["NOPERM", " WARN ", "cannot", "denies"].map(|word| times(&node, word));
        // The subscription that was cut.
        assert!(refusals.iter().sum::<usize>() <= 1, "{:?}", node.log());
    }
    assert_eq!(redis.command(&["ACL", "LOG"]).await, ::redis::Value::Array(Vec::new()));
}

#[tokio::test]
async fn a_user_who_may_read_and_not_write() {
    let (redis, url) = restricted(&["-xadd"]).await;
    let mends = ["+xadd", "~loomio-channels:*", "RECOVERY_STREAM"];
    refuses_until(&redis, &url, &mends, &[&["ACL", "SETUSER", "channels", "+xadd"]]).await;
}

#[tokio::test]
async fn a_user_who_may_write_and_not_read() {
    let (redis, url) = restricted(&["-xrange"]).await;
    let mends = ["+xrange", "~loomio-channels:*", "RECOVERY_STREAM"];
    refuses_until(&redis, &url, &mends, &[&["ACL", "SETUSER", "channels", "+xrange"]]).await;
}

#[tokio::test]
async fn a_user_without_the_keys() {
    let (redis, url) = restricted(&["resetkeys", "~/current_users/*"]).await;
    let node = node_at(&url, &[]).await;
    let said = node.says("sealed with a key of this process alone").await;
    assert!(said.contains("CHANNELS_SECRET"), "{said}");
    let said = node.says(REFUSED).await;
    assert!(said.contains("~loomio-channels:*"), "{said}");
    works(&redis, &node, 1).await;
}

#[tokio::test]
async fn a_node_that_is_refused_leaves_the_lease_to_another() {
    let (redis, url) = restricted(&["-xadd"]).await;
    let refused = node_at(&url, &[SECRET]).await;
    refused.says(REFUSED).await;
    let other = node_at(&redis.url(), &[SECRET]).await;
    works(&redis, &other, 1).await;
    kept(&redis, &record("group-1", 1)).await;
    refused.says(KEPT).await;
    assert_eq!(times(&other, REFUSED), 0);
    let unfinished = redis.command(&["KEYS", "loomio-channels:recovery:????????????????"]).await;
    assert_eq!(unfinished, ::redis::Value::Array(Vec::new()));
}

#[tokio::test]
async fn the_key_for_tickets_of_a_redis_that_is_full() {
    const OWN: &str = "sealed with a key of this process alone";
    let redis = redis_with_ada().await;
    redis.command(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let alone = node_at(&redis.url(), &[]).await;
    let said = alone.says(OWN).await;
    assert!(said.contains("OOM") && said.contains("CHANNELS_SECRET"), "{said}");
    works(&redis, &alone, 1).await;
    redis.command(&["CONFIG", "SET", "maxmemory", "0"]).await;
    drop(node_at(&redis.url(), &[]).await);
    redis.command(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let sharing = node_at(&redis.url(), &[]).await;
    assert_eq!(times(&sharing, OWN), 0, "it only has to be read: {:?}", sharing.log());
}
