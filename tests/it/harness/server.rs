//! The server, in this process.

use std::net::SocketAddr;

use loomio_channels::{
    app::{App, AppError, Mode},
    config::{Config, Environment},
    lifecycle::Lifecycle,
    metrics::{Counter, Metrics},
};
use tokio::{net::TcpStream, task::JoinSet};

use super::{connection::get, redis::Redis, until, within};

pub(crate) struct Server {
    address: SocketAddr,
    metrics: Metrics,
    lifecycle: Lifecycle,
    running: JoinSet<Result<(), AppError>>,
}

impl Server {
    /// A server that accepts, though it may not be subscribed yet.
    pub(crate) async fn start(redis: &str, settings: &[(&str, &str)]) -> Self {
        // Browsers and their server share this process's limit.
        rlimit::increase_nofile_limit(u64::MAX).unwrap();
        let defaults =
            [("BIND", "127.0.0.1"), ("PORT", "0"), ("REDIS_URL", redis), ("SHARDS", "2"), ("GAP_NOTICE", "off")];
        let environment: Environment = defaults.iter().chain(settings).copied().collect();
        let lifecycle = Lifecycle::current();
        let app = App::bind(Config::from_env(&environment).unwrap(), Mode::Serve, lifecycle.clone()).await.unwrap();
        let (address, metrics) = (app.address, app.metrics.clone());
        let mut running = JoinSet::new();
        running.spawn(app.run());
        Self { address, metrics, lifecycle, running }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The status of `/health/ready`.
    pub(crate) async fn readiness(&self) -> u16 {
        get(self.address, "/health/ready").await.status
    }

    /// Waits until it is subscribed.
    pub(crate) async fn ready(&self) {
        until("readiness", async || self.readiness().await == 200).await;
    }

    /// Waits until it knows that it is not.
    pub(crate) async fn unready(&self) {
        until("the loss of readiness", async || self.readiness().await == 503).await;
    }

    pub(crate) fn count(&self, counter: Counter) -> u64 {
        self.metrics.get(counter)
    }

    /// Waits until something has happened so often, and not more often.
    pub(crate) async fn counted(&self, counter: Counter, times: u64) {
        until(&format!("{times} of {counter:?}"), async || self.count(counter) >= times).await;
        assert_eq!(self.count(counter), times, "{counter:?}");
    }

    /// Waits until it has taken all that was published, of which none may have been lost.
    pub(crate) async fn caught_up(&self, redis: &Redis) {
        self.counted(Counter::MessagesReceived, redis.published()).await;
    }

    /// Waits until it has lost its subscription so often, and has it again.
    pub(crate) async fn resubscribed(&self, times: u64) {
        let gaps = || self.gaps().iter().sum::<u64>();
        until(&format!("{times} gaps"), async || gaps() >= times).await;
        assert_eq!(gaps(), times);
        self.ready().await;
    }

    /// How many gaps may not have been empty, and how many were.
    pub(crate) fn gaps(&self) -> [u64; 2] {
        [Counter::Gaps, Counter::GapsEmpty].map(|counter| self.count(counter))
    }

    /// Begins the drain, after which the server stops.
    pub(crate) fn begin_drain(&self) {
        self.lifecycle.drain().cancel();
    }

    /// Begins the soft stop, without a drain.
    pub(crate) fn begin_stop(&self) {
        self.lifecycle.stop().cancel();
    }

    /// Waits until it has stopped, which must go well.
    pub(crate) async fn stopped(&mut self) {
        within("the end of the server", self.running.join_next()).await.unwrap().unwrap().unwrap();
    }

    /// Stops it.
    pub(crate) async fn stop(mut self) {
        self.begin_stop();
        self.stopped().await;
        assert!(TcpStream::connect(self.address).await.is_err(), "the port is free again");
    }
}

impl From<&Server> for SocketAddr {
    fn from(server: &Server) -> Self {
        server.address()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let ended = self.running.try_join_next();
        if !std::thread::panicking() {
            assert!(ended.is_none(), "the server ended by itself: {ended:?}");
        }
    }
}
