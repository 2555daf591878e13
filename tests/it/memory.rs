//! The memory of the process: what a flood took is given back to the system.

use std::time::Duration;

use tokio::time::{sleep, timeout};

use crate::harness::{Redis, Running, TEXT, WebSocket, frame, large_record};

/// How much more than before may stay resident, in MB.
const NEAR: f64 = 20.0;

/// What the flood makes resident at the least, in MB: far more than may stay.
const FLOOD: f64 = 45.0;

/// Age at which the recovery log drops a message.
const WINDOW: Duration = Duration::from_secs(15);

/// How soon after a flood the memory is back.
const BACK: Duration = Duration::from_mins(1);

/// Connections that never finish their message, and its length.
const UNFINISHED: usize = 200;
const UNFINISHED_LENGTH: usize = 60_000;

/// Messages published between two looks at the memory.
const BATCH: usize = 500;

/// Sends all but the end of a message over each of many anonymous connections, and keeps those.
async fn unfinished_messages(program: &Running) -> Vec<WebSocket> {
    let message = frame(TEXT, vec![b'4'; UNFINISHED_LENGTH]);
    let mut attackers = Vec::new();
    for _ in 0..UNFINISHED {
        let mut socket = WebSocket::open(program).await;
        socket.write(&message[..message.len() - 1]).await;
        attackers.push(socket);
    }
    attackers
}

/// Fills the recovery log with small messages until the process has grown by [`FLOOD`]. Returns browsers that have
/// connected meanwhile and stay: what is kept for them lies between what the flood leaves.
async fn fill_the_log(redis: &Redis, program: &Running, before: f64) -> Vec<WebSocket> {
    let (mut numbers, mut browsers) = (0..500_000, Vec::new());
    while program.rss() < before + FLOOD {
        let batch: Vec<_> = numbers.by_ref().take(BATCH).collect();
        assert!(!batch.is_empty(), "500 MB of messages should be enough: {} MB", program.rss());
        redis.many_records(batch.into_iter().map(|n| large_record(&format!("group-{}", n % 50), n, 1_000))).await;
        browsers.push(WebSocket::connected(program).await);
    }
    browsers
}

#[tokio::test]
async fn memory_comes_back_after_a_flood() {
    let redis = Redis::start().await;
    let window = format!("{}s", WINDOW.as_secs());
    // The browsers answer no heartbeat, and none comes while this runs.
    let settings = [("REDIS_URL", &*redis.url()), ("RECOVERY_WINDOW", &window), ("PING_INTERVAL_MS", "600000")];
    let program = Running::start(&[], &settings).await;
    program.becomes(200).await;
    let before = program.rss();

    let attackers = unfinished_messages(&program).await;
    let mut browsers = fill_the_log(&redis, &program, before).await;
    drop(attackers);
    // The newest message stays whatever its age.
    let back = timeout(WINDOW + BACK, async {
        while program.rss() > before + NEAR {
            sleep(Duration::from_millis(100)).await;
        }
    });
    assert!(back.await.is_ok(), "{before} MB before, {} MB a minute after the flood", program.rss());
    assert!(!browsers.iter_mut().any(|browser| browser.has_ended()));
}
