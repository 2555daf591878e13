//! One node: a process of the binary that is ended and started again at the same port.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Mutex,
};

use crate::harness::{Running, free_port, until};

pub(crate) struct Node {
    port: u16,
    redis: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    running: Option<Running>,
    /// What went wrong.
    complaints: Vec<String>,
    /// What its processes logged.
    log: Vec<String>,
}

impl Node {
    /// A node that has this Redis and does not run yet.
    pub(crate) fn new(redis: String) -> Self {
        Self { port: free_port(), redis, state: Mutex::default() }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// Starts it.
    pub(crate) async fn up(&self) {
        let environment = [
            ("BIND", "127.0.0.1"),
            ("PORT", &*self.port.to_string()),
            ("REDIS_URL", &*self.redis),
            ("CHANNELS_SECRET", "the secret of all nodes"),
            ("SHARDS", "2"),
            // So small that a client which does not read soon exceeds it.
            ("OUTBOX_BYTES", "64KiB"),
            ("PING_INTERVAL_MS", "5000"),
            ("RUST_LOG", "info,loomio_channels::history=debug"),
        ];
        self.state.lock().await.running = Some(Running::start(&[], &environment).await);
    }

    /// Waits until it is ready.
    pub(crate) async fn ready(&self) {
        until("the node to be ready", async || self.is_ready().await == Some(true)).await;
    }

    /// What `/health/ready` says, if there is an answer.
    async fn is_ready(&self) -> Option<bool> {
        let mut stream = TcpStream::connect(self.address()).await.ok()?;
        stream.write_all(b"GET /health/ready HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").await.ok()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.ok()?;
        Some(answer.starts_with(b"HTTP/1.1 200"))
    }

    /// Kills it.
    pub(crate) async fn kill(&self) {
        let mut state = self.state.lock().await;
        if let Some(mut running) = state.running.take() {
            state.part(&mut running);
        }
    }

    /// Asks it to end, and waits until it has.
    pub(crate) async fn drain(&self) {
        let mut state = self.state.lock().await;
        let Some(mut running) = state.running.take() else { return };
        running.signal("TERM");
        let code = running.exit().await.code();
        if code != Some(0) {
            state.complaints.push(format!("SIGTERM was answered with {code:?}"));
        }
        state.note(&running);
    }

    /// Ends it; returns what went wrong, and its log.
    pub(crate) async fn end(&self) -> (Vec<String>, Vec<String>) {
        self.kill().await;
        let State { complaints, log, .. } = std::mem::take(&mut *self.state.lock().await);
        (complaints, log)
    }
}

impl State {
    /// Before a process is killed.
    fn part(&mut self, running: &mut Running) {
        if running.has_ended() {
            self.complaints.push(format!("it ended by itself: {:?}", running.log()));
        }
        self.note(running);
    }

    /// After it has ended, or right before.
    fn note(&mut self, running: &Running) {
        self.complaints.extend(running.said("panicked"));
        self.log.extend(running.log());
    }
}
