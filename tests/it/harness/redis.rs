//! A `redis-server` of the test's own, and what Rails does with it.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicU16, AtomicU64, Ordering},
    },
    time::Duration,
};

use redis::{AsyncConnectionConfig, Client, FromRedisValue, aio::MultiplexedConnection};
use tempfile::TempDir;

use super::{browser::fence, process::Killed, until, within};

/// Ports are taken from below those that the system gives to outgoing connections, so that none is taken while its
/// Redis is down.
const FIRST_PORT: u16 = 12_000;
const PORTS: u16 = 20_000;

/// Commands sent at a time when there are many.
const PIPELINE: usize = 500;

pub(crate) struct Redis {
    port: u16,
    directory: TempDir,
    process: Option<Killed>,
    link: Mutex<Option<MultiplexedConnection>>,
    published: AtomicU64,
    arguments: Vec<String>,
}

impl Redis {
    /// A Redis that answers.
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// The same with more of a command line.
    pub(crate) async fn start_with(arguments: &[&str]) -> Self {
        let mut redis = Self {
            port: free_port(),
            directory: TempDir::new().unwrap(),
            process: None,
            link: Mutex::default(),
            published: AtomicU64::new(0),
            arguments: arguments.iter().map(ToString::to_string).collect(),
        };
        redis.up().await;
        redis
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    /// Where it keeps its files.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The Unix socket on which it listens as well.
    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    /// Starts it, with the keys it had.
    pub(crate) async fn up(&mut self) {
        let process = Command::new("redis-server")
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "yes"])
            .arg("--dir")
            .arg(self.directory.path())
            .arg("--unixsocket")
            .arg(self.socket())
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed");
        let mut process = Killed(process);
        let own = format!("process_id:{}\r\n", process.0.id());
        let this = &*self;
        until("redis-server", async || {
            assert!(process.0.try_wait().unwrap().is_none(), "redis-server ended; is port {} taken?", this.port);
            let Some(mut link) = this.dial().await else { return false };
            let info: Result<String, _> = redis::cmd("INFO").arg("server").query_async(&mut link).await;
            info.is_ok_and(|info| info.contains(&own))
        })
        .await;
        self.process = Some(process);
    }

    /// Ends it at once.
    pub(crate) fn kill(&mut self) {
        self.process = None;
        self.hang_up();
    }

    /// Drops the test's own connection; the next command dials another.
    pub(crate) fn hang_up(&self) {
        *self.link.lock().unwrap() = None;
    }

    /// Makes it hang: connections stay open, and nothing is answered.
    pub(crate) fn freeze(&self) {
        self.process.as_ref().expect("it is up").signal("STOP");
    }

    /// Lets it go on.
    pub(crate) fn thaw(&self) {
        self.process.as_ref().expect("it is up").signal("CONT");
    }

    /// What Rails does at every boot of its page.
    pub(crate) async fn user(&self, token: &str, id: usize, groups: &[usize]) {
        self.user_json(token, format!(r#"{{"name":"Ada","group_ids":{groups:?},"id":{id}}}"#)).await;
    }

    /// The same with a value as it is.
    pub(crate) async fn user_json(&self, token: &str, json: impl AsRef<[u8]>) {
        self.query::<()>(redis::cmd("SET").arg(key(token)).arg(json.as_ref())).await;
    }

    /// A list where a user should be.
    pub(crate) async fn user_list(&self, token: &str) {
        self.query::<()>(redis::cmd("RPUSH").arg(key(token)).arg(45)).await;
    }

    /// Removes a user's key.
    pub(crate) async fn forget(&self, token: &str) {
        self.query::<()>(redis::cmd("DEL").arg(key(token))).await;
    }

    /// Publishes for a room.
    pub(crate) async fn records(&self, payload: impl AsRef<[u8]>) {
        self.publish("/records", payload.as_ref()).await;
    }

    /// Publishes for all browsers.
    pub(crate) async fn notice(&self, payload: impl AsRef<[u8]>) {
        self.publish("/system_notice", payload.as_ref()).await;
    }

    /// Publishes for the bot, which no browser sees.
    pub(crate) async fn bot(&self, payload: impl AsRef<[u8]>) {
        self.query::<()>(redis::cmd("PUBLISH").arg("chatbot/publish").arg(payload.as_ref())).await;
    }

    /// Closes the connections of all subscribers, and publishes a record before any of them can be back.
    pub(crate) async fn kill_subscribers_and_publish(&self, payload: impl AsRef<[u8]>) {
        let mut pipe = redis::pipe();
        pipe.atomic().cmd("CLIENT").arg("KILL").arg("TYPE").arg("pubsub").ignore();
        pipe.cmd("PUBLISH").arg("/records").arg(payload.as_ref());
        let mut link = self.link().await;
        let received: (u64,) = within("redis", pipe.query_async(&mut link)).await.unwrap();
        assert_eq!(received, (0,));
    }

    /// The other way round: the message is counted as received, and thrown away with the connection before it is sent.
    pub(crate) async fn publish_and_kill_subscribers(&self, payload: impl AsRef<[u8]>) {
        let mut pipe = redis::pipe();
        pipe.atomic().cmd("PUBLISH").arg("/records").arg(payload.as_ref());
        pipe.cmd("CLIENT").arg("KILL").arg("TYPE").arg("pubsub");
        let mut link = self.link().await;
        let (received, killed): (u64, u64) = within("redis", pipe.query_async(&mut link)).await.unwrap();
        assert_eq!((received, killed), (1, 1));
    }

    /// Ends it in order.
    pub(crate) async fn shut_down(&mut self) {
        // The answer to success is the end of the connection.
        let mut link = self.link().await;
        let _: redis::RedisResult<()> = within("redis", redis::cmd("SHUTDOWN").query_async(&mut link)).await;
        let process = self.process.as_mut().expect("it is up");
        until("the end of redis", async || process.0.try_wait().unwrap().is_some()).await;
        self.kill();
    }

    async fn publish(&self, channel: &str, payload: &[u8]) {
        self.query::<()>(redis::cmd("PUBLISH").arg(channel).arg(payload)).await;
        self.published.fetch_add(1, Ordering::Relaxed);
    }

    /// Messages published so far.
    pub(super) fn published(&self) -> u64 {
        self.published.load(Ordering::Relaxed)
    }

    /// Publishes records as fast as Redis takes them.
    pub(crate) async fn many_records(&self, payloads: impl IntoIterator<Item = String>) {
        let mut payloads = payloads.into_iter().peekable();
        while payloads.peek().is_some() {
            let mut pipe = redis::pipe();
            payloads.by_ref().take(PIPELINE).for_each(|payload| {
                pipe.cmd("PUBLISH").arg("/records").arg(payload).ignore();
                self.published.fetch_add(1, Ordering::Relaxed);
            });
            let mut link = self.link().await;
            within("redis", pipe.query_async::<()>(&mut link)).await.unwrap();
        }
    }

    /// Publishes a notice that shows how far a browser has come, see [`Browser::upto`](super::Browser::upto).
    pub(crate) async fn fence(&self, name: &str) {
        self.notice(fence(name)).await;
    }

    /// How often a command was called.
    pub(crate) async fn calls(&self, command: &str) -> u64 {
        let stats: String = self.query(redis::cmd("INFO").arg("commandstats")).await;
        let calls = stats.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
        calls.map_or(0, |calls| calls.split(',').next().unwrap().parse().unwrap())
    }

    /// How often a command was refused before it was carried out, for lack of rights or since Redis could not.
    pub(crate) async fn rejected_calls(&self, command: &str) -> u64 {
        let stats: String = self.query(redis::cmd("INFO").arg("commandstats")).await;
        let line = stats.lines().find(|line| line.starts_with(&format!("cmdstat_{command}:")));
        let calls = line.and_then(|line| line.split(',').find_map(|field| field.strip_prefix("rejected_calls=")));
        calls.map_or(0, |calls| calls.parse().unwrap())
    }

    /// Closes the connections of all subscribers; returns how many there were.
    pub(crate) async fn kill_subscribers(&self) -> u64 {
        self.query(redis::cmd("CLIENT").arg("KILL").arg("TYPE").arg("pubsub")).await
    }

    /// Closes the connections of all others but the test's own.
    pub(crate) async fn kill_clients(&self) {
        self.query::<()>(redis::cmd("CLIENT").arg("KILL").arg("TYPE").arg("normal")).await;
    }

    /// Any command, such as one that configures it.
    pub(crate) async fn command(&self, words: &[&str]) -> redis::Value {
        self.query(redis::cmd(words[0]).arg(&words[1..])).await
    }

    async fn query<T: FromRedisValue>(&self, command: &redis::Cmd) -> T {
        let mut link = self.link().await;
        within("redis", command.query_async(&mut link)).await.unwrap()
    }

    async fn link(&self) -> MultiplexedConnection {
        if let Some(link) = &*self.link.lock().unwrap() {
            return link.clone();
        }
        let link = self.dial().await.expect("redis is up");
        self.link.lock().unwrap().insert(link).clone()
    }

    async fn dial(&self) -> Option<MultiplexedConnection> {
        // It may hang on purpose.
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(Duration::from_secs(30)))
            .set_response_timeout(None);
        Client::open(self.url()).unwrap().get_multiplexed_async_connection_with_config(&config).await.ok()
    }
}

fn key(token: &str) -> String {
    format!("/current_users/{token}")
}

/// A free port, a different one at each call; different processes begin at different places.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id() % 1_000 * 20).unwrap();
    loop {
        let port = FIRST_PORT + start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % PORTS;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
