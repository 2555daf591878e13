//! What strangers can bring, and how much of it is taken: connections, sessions, bytes. Where it concerns memory or
//! descriptors, on the program as it is built.

mod answers;
mod bytes;
mod connections;
mod sessions;

use crate::harness::{Browser, Redis, Running, record};

/// A program, its Redis, and a browser that was there before.
async fn start(open_files: usize, settings: &[(&str, &str)]) -> (Redis, Running, Browser) {
    let redis = Redis::start().await;
    redis.user("ada", 1, &[]).await;
    let url = redis.url();
    let settings = [settings, &[("REDIS_URL", &url)]].concat();
    let program = Running::start_with_open_files(open_files, &settings).await;
    program.becomes(200).await;
    let browser = Browser::connect(&program, "ada").await;
    (redis, program, browser)
}

/// Whether the browser is still served.
async fn gets_a_message(browser: &mut Browser, redis: &Redis, number: usize) {
    redis.records(record("user-1", number)).await;
    assert_eq!(browser.number().await, number);
}
