//! Connections: strangers may hold as many as there are; browsers stay, newcomers are told, and health is answered.

use super::{gets_a_message, start};
use crate::harness::{Browser, Connection, POLLING, Running, TEXT, WEBSOCKET, frame, get, handshake, until, within};

/// Few, so that they are soon used up.
const OPEN_FILES: usize = 256;

/// Connections that fit below it: less 64 for other files, 32 for the overflow, 16 for Rails.
const CONNECTIONS: usize = 144;

/// The head of the answer to a handshake.
async fn refusal(program: &Running, request: &str) -> String {
    let mut stranger = Connection::begin(program, request).await;
    let head = stranger.head().await.to_lowercase();
    stranger.closed().await;
    head
}

#[tokio::test]
async fn strangers_use_up_the_descriptors_and_redis_restarts() {
    let (mut redis, program, mut browser) =
        start(OPEN_FILES, &[("CANONICAL_HOST", "loomio.example.org"), ("GAP_NOTICE", "off")]).await;
    // The connections that asked for readiness may not be gone yet.
    let mut strangers = Vec::new();
    until("all places to be taken", async || {
        let mut stranger = Connection::begin(&program, handshake(WEBSOCKET)).await;
        if stranger.status().await != Some(101) {
            return true;
        }
        stranger.write(frame(TEXT, "40")).await;
        strangers.push(stranger);
        false
    })
    .await;
    assert_eq!(strangers.len(), CONNECTIONS - 1);

    for request in [
        handshake(WEBSOCKET),
        format!("GET {POLLING} HTTP/1.1\r\nhost: test\r\n\r\n"),
        "POST /api/hocuspocus HTTP/1.1\r\nhost: test\r\ncontent-length: 0\r\n\r\n".to_owned(),
    ] {
        let head = refusal(&program, &request).await;
        assert!(head.starts_with("http/1.1 503 "), "{head}");
        for header in ["retry-after: ", "connection: close", "access-control-allow-origin: https://loomio.example.org"]
        {
            assert!(head.contains(&format!("\r\n{header}")), "{head}");
        }
    }
    assert_eq!((program.readiness().await, get(&program, "/health/live").await.status), (200, 200));

    redis.kill();
    program.becomes(503).await;
    redis.up().await;
    program.becomes(200).await;
    gets_a_message(&mut browser, &redis, 1).await;

    drop(strangers.pop());
    until("a place for a newcomer", async || {
        Connection::begin(&program, handshake(WEBSOCKET)).await.status().await == Some(101)
    })
    .await;
}

#[tokio::test]
async fn silent_strangers_in_the_overflow_do_not_silence_health() {
    let (redis, program, mut browser) = start(OPEN_FILES, &[]).await;
    let mut strangers = Vec::new();
    for _ in 1..CONNECTIONS {
        strangers.push(Browser::anonymous(&program).await);
    }
    let mut silent = Vec::new();
    for _ in 0..500 {
        silent.push(Connection::connect(&program).await);
    }
    assert_eq!(program.readiness().await, 200);
    gets_a_message(&mut browser, &redis, 1).await;
    redis.fence("end").await;
    for stranger in &mut strangers {
        stranger.upto("end").await;
    }
}

#[tokio::test]
async fn more_connections_than_open_files_allow_are_not_promised() {
    let no_redis = ("REDIS_URL", "redis://127.0.0.1:1");
    let program = Running::start_with_open_files(OPEN_FILES, &[("MAX_CONNECTIONS", "5000"), no_redis]).await;
    let warning = program.said(&format!("{CONNECTIONS} connections are served")).unwrap();
    for mend in ["limit of 5112 open files, which is 256", "ulimit -n", "LimitNOFILE=", "--ulimit nofile="] {
        assert!(warning.contains(mend), "{warning}");
    }
    let program = Running::start_with_open_files(OPEN_FILES, &[("MAX_CONNECTIONS", "100"), no_redis]).await;
    assert!(program.said("connections=100 sessions=100").is_some());
    assert_eq!(program.said("connections are served"), None);
}

/// More than there are places; the limit of the whole machine's ports is shared with other tests.
const SILENT: usize = 8_000;

#[tokio::test]
async fn a_browser_connects_beside_thousands_of_silent_connections() {
    // In the first round all places are taken, in the second only those for silent connections.
    for open_files in [1_024, 20_000] {
        let (redis, program, mut early) = start(open_files, &[]).await;
        let mut silent = Vec::new();
        for _ in 0..SILENT {
            silent.push(Connection::connect(&program).await);
        }
        let mut late = within("a newcomer", Browser::connect(&program, "ada")).await;
        gets_a_message(&mut late, &redis, 1).await;
        assert_eq!(early.number().await, 1);
        within("the oldest to go", silent[0].closed()).await;
        assert!(!silent[SILENT - 1].has_ended());
    }
}
