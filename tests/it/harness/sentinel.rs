//! A Sentinel that watches a `redis-server` of the test and its replicas.

use std::{
    fs,
    process::{Command, Stdio},
};

use tempfile::TempDir;

use super::{
    process::Killed,
    redis::{Redis, free_port},
    until,
};

pub(crate) struct Sentinel {
    port: u16,
    _directory: TempDir,
    _process: Killed,
}

impl Sentinel {
    /// One that calls this Redis `main`, and takes it for dead after a second of silence.
    pub(crate) fn start(main: &Redis) -> Self {
        let (directory, port) = (TempDir::new().unwrap(), free_port());
        let file = directory.path().join("sentinel.conf");
        let lines = [
            format!("port {port}"),
            "bind 127.0.0.1".to_owned(),
            format!("dir {}", directory.path().display()),
            format!("sentinel monitor main 127.0.0.1 {} 1", main.port()),
            "sentinel down-after-milliseconds main 1000".to_owned(),
        ];
        fs::write(&file, lines.join("\n") + "\n").unwrap();
        let process = Command::new("redis-server").arg(&file).arg("--sentinel").stdout(Stdio::null()).spawn();
        let process = Killed(process.expect("redis-server is installed"));
        Self { port, _directory: directory, _process: process }
    }

    /// The address of a service by way of this Sentinel.
    pub(crate) fn url(&self, service: &str, database: u8) -> String {
        format!("redis-sentinel://127.0.0.1:{}/{database}?sentinelServiceName={service}", self.port)
    }

    /// Waits until it knows of a replica that could take over.
    pub(crate) async fn knows_a_replica(&self) {
        self.succeeds("a replica", &["CKQUORUM", "main"], |_| true).await;
        self.succeeds("a replica", &["REPLICAS", "main"], |answer| {
            let answer = format!("{answer:?}");
            answer.contains("master-link-status") && answer.contains("bulk-string('\"ok\"')")
        })
        .await;
    }

    /// Has it make a replica the primary, as an operator does.
    pub(crate) async fn fail_over(&self) {
        self.succeeds("the failover", &["FAILOVER", "main"], |_| true).await;
    }

    async fn succeeds(&self, what: &str, words: &[&str], is_wanted: impl Fn(&::redis::Value) -> bool) {
        let client = ::redis::Client::open(format!("redis://127.0.0.1:{}", self.port)).unwrap();
        until(what, async || {
            let Ok(mut link) = client.get_multiplexed_async_connection().await else { return false };
            let answer: ::redis::RedisResult<::redis::Value> =
                ::redis::cmd("SENTINEL").arg(words).query_async(&mut link).await;
            answer.is_ok_and(|answer| is_wanted(&answer))
        })
        .await;
    }
}
