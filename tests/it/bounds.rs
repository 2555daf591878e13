//! What strangers can bring, and how much of it is taken: connections, sessions, bytes. Where it concerns memory or
//! descriptors, on the program as it is built.

mod answers;
mod bytes;
mod connections;
mod sessions;

use crate::harness::{Browser, Program, Redis, WebSocket, get, record, until};

/// A program, its Redis, and a browser that was there before.
async fn start(open_files: usize, settings: &[(&str, &str)]) -> (Redis, Program, Browser) {
    let redis = Redis::start().await;
    redis.user("ada", 1, &[]).await;
    let url = redis.url();
    let settings: Vec<_> = settings.iter().copied().chain([("REDIS_URL", url.as_str())]).collect();
    let program = Program::start_with_open_files(open_files, &settings).await;
    until("readiness", async || get(program.address(), "/health/ready").await.status == 200).await;
    let browser = browser(&program).await;
    (redis, program, browser)
}

/// A browser that connects with a token.
async fn browser(program: &Program) -> Browser {
    let path = "/socket.io/?EIO=4&transport=websocket&channel_token=ada";
    Browser::over(WebSocket::connect(program.address(), path).await, "40").await
}

/// Whether the browser is still served.
async fn gets_a_message(browser: &mut Browser, redis: &Redis, number: usize) {
    redis.records(record("user-1", number)).await;
    assert_eq!(browser.number().await, number);
}
