//! The servers that are compared, each a process of its own, started in the same way.

use std::{
    fs::{self, File},
    io,
    net::TcpListener,
    ops::Range,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use clap::ValueEnum;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rand::RngExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

use crate::{procfs, redis::Rails};

/// How long a server may take until it listens to its port and to Redis.
const PATIENCE: Duration = Duration::from_secs(15);

/// How long a server that was told to end may take; Docker's.
const GRACE: Duration = Duration::from_secs(10);

/// How long a node may take to say whether it is ready.
const CHECK: Duration = Duration::from_secs(2);

/// What an answer begins with when a server takes no new clients.
pub(crate) const UNAVAILABLE: &[u8; 12] = b"HTTP/1.1 503";

/// Where servers listen; Linux gives connections ports from 32,768.
const PORTS: Range<u16> = 20_000..32_000;

/// Lines of a server's output shown when it does not start.
const LAST_WORDS: usize = 10;

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum)]
pub(crate) enum Kind {
    /// This server
    Ours,
    /// An earlier build of it, which --before names
    #[value(skip)]
    Before,
    /// The Node channel server (socket.io on Node)
    Node,
    /// The same socket.io on Bun
    Bun,
    /// A minimal server on the crates socketioxide and fred
    Socketioxide,
    /// The limit: one prepared frame per socket, no protocol, no lookup, no recovery
    Probe,
}

impl Kind {
    pub(crate) const ALL: [Self; 6] =
        [Self::Ours, Self::Before, Self::Node, Self::Bun, Self::Socketioxide, Self::Probe];

    /// As it is called in tables and pictures.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Ours => "loomio-channels",
            Self::Before => "before",
            Self::Node => "Node",
            Self::Bun => "Bun",
            Self::Socketioxide => "socketioxide",
            Self::Probe => "limit probe",
        }
    }

    /// Whether it keeps what clients miss.
    pub(crate) fn recovers(self) -> bool {
        matches!(self, Self::Ours | Self::Before | Self::Node | Self::Bun)
    }

    /// Whether several of its processes can serve the same clients.
    pub(crate) fn has_nodes(self) -> bool {
        matches!(self, Self::Ours | Self::Before | Self::Node | Self::Socketioxide)
    }

    /// Whether it has HTTP long-polling, users and rooms; the probe only knows sockets.
    pub(crate) fn is_complete(self) -> bool {
        self != Self::Probe
    }
}

/// Where the programs are.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    /// The repository.
    pub(crate) root: PathBuf,
    /// Our binary.
    pub(crate) ours: PathBuf,
    /// Our binary of an earlier build.
    pub(crate) before: PathBuf,
    /// Directory of the probe and the peer.
    pub(crate) peers: PathBuf,
    /// Where servers' output goes; removed at the end.
    pub(crate) logs: PathBuf,
}

impl Programs {
    fn command(&self, kind: Kind) -> Command {
        let node = |program: PathBuf, script: &str| {
            let mut command = Command::new(program);
            command.arg(self.root.join(script));
            command
        };
        match kind {
            Kind::Ours => Command::new(&self.ours),
            Kind::Before => Command::new(&self.before),
            Kind::Node => node("node".into(), "tests/reference/server.js"),
            Kind::Bun => node(self.bun(), "tests/bench/bun-server.js"),
            Kind::Socketioxide => Command::new(self.peers.join("peer-socketioxide")),
            Kind::Probe => Command::new(self.peers.join("probe")),
        }
    }

    /// A process that is one of several.
    fn node(&self, kind: Kind) -> Command {
        let mut command = self.command(kind);
        match kind {
            Kind::Node => {
                command = Command::new("node");
                command.arg(self.root.join("tests/bench/node-cluster.js"));
            }
            Kind::Socketioxide => {
                command.env("REDIS_ADAPTER", "1");
            }
            _ => {}
        }
        command
    }

    pub(crate) fn bun(&self) -> PathBuf {
        self.root.join("tests/bench/node_modules/.bin/bun")
    }
}

/// A process that does not outlive its owner.
pub(crate) struct Guard(Child);

impl Guard {
    pub(crate) fn spawn(mut command: Command) -> io::Result<Self> {
        command.spawn().map(Self)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Its input and output, where they are pipes.
    pub(crate) fn pipes(&mut self) -> (Option<ChildStdin>, Option<ChildStdout>) {
        (self.0.stdin.take(), self.0.stdout.take())
    }

    fn has_ended(&mut self) -> bool {
        !matches!(self.0.try_wait(), Ok(None))
    }

    /// Asks it to end, and waits until it has.
    pub(crate) fn terminate(&mut self) {
        let _ = i32::try_from(self.pid()).map(|pid| kill(Pid::from_raw(pid), Signal::SIGTERM));
        let _ = self.0.wait();
    }

    pub(crate) fn kill(&mut self) {
        // It may be gone already, and there is nobody to tell.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A server at work; killed when dropped.
pub(crate) struct Server {
    pub(crate) kind: Kind,
    pub(crate) port: u16,
    process: Guard,
}

impl Server {
    /// Starts it and waits until it listens to its port and to Redis. `port` 0 takes a free one.
    pub(crate) async fn start(
        kind: Kind,
        programs: &Programs,
        redis: u16,
        port: u16,
        rails: &mut Rails,
    ) -> io::Result<Self> {
        let mut server = Self::spawn(kind, programs, redis, port)?;
        let started = Instant::now();
        while TcpStream::connect(("127.0.0.1", server.port)).await.is_err() || !rails.has_listener().await? {
            if server.process.has_ended() || started.elapsed() > PATIENCE {
                return Err(io::Error::other(format!(
                    "{} did not start; its last words:\n{}",
                    kind.label(),
                    last_words(&log_of(programs, kind, server.port))
                )));
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(server)
    }

    /// Starts one of several and waits until it is ready. `port` 0 takes a free one.
    pub(crate) async fn start_node(kind: Kind, programs: &Programs, redis: u16, port: u16) -> io::Result<Self> {
        let mut server = Self::launch(programs.node(kind), kind, programs, redis, port)?;
        let started = Instant::now();
        while !is_ready(server.port).await {
            if server.process.has_ended() || started.elapsed() > PATIENCE {
                let words = last_words(&log_of(programs, kind, server.port));
                return Err(io::Error::other(format!("{} did not start; its last words:\n{words}", kind.label())));
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(server)
    }

    /// Starts it without waiting.
    pub(crate) fn spawn(kind: Kind, programs: &Programs, redis: u16, port: u16) -> io::Result<Self> {
        Self::launch(programs.command(kind), kind, programs, redis, port)
    }

    fn launch(mut command: Command, kind: Kind, programs: &Programs, redis: u16, port: u16) -> io::Result<Self> {
        let port = if port == 0 { free_port()? } else { port };
        let log = File::create(log_of(programs, kind, port))?;
        command
            .env("PORT", port.to_string())
            .env("REDIS_URL", format!("redis://127.0.0.1:{redis}/0"))
            .env("PUBLIC_APP_URL", "https://loomio.example.com")
            .env("NODE_ENV", "production")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let process = Guard::spawn(command)
            .map_err(|error| io::Error::new(error.kind(), format!("cannot start {}: {error}", kind.label())))?;
        Ok(Self { kind, port, process })
    }

    /// Ends it at once and waits until it is gone, so that its port is free.
    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    /// Tells it to end and waits until it is gone, so that its port is free.
    pub(crate) async fn end(&mut self) {
        // It may be gone already.
        let _ = kill(Pid::from_raw(self.process.pid() as i32), Signal::SIGTERM);
        let told = Instant::now();
        while !self.process.has_ended() && told.elapsed() < GRACE {
            sleep(Duration::from_millis(10)).await;
        }
        self.process.kill();
    }

    /// Processor time used so far.
    pub(crate) fn cpu(&self) -> io::Result<Duration> {
        procfs::cpu(self.process.pid()).map_err(|_| self.died())
    }

    /// Resident memory in bytes; an error when it is not running any more.
    pub(crate) fn rss(&self) -> io::Result<u64> {
        procfs::rss(self.process.pid()).map_err(|_| self.died())
    }

    /// Open files.
    pub(crate) fn files(&self) -> io::Result<usize> {
        procfs::files(self.process.pid()).map_err(|_| self.died())
    }

    /// Most resident memory since [`Server::forget_peak`], in bytes.
    pub(crate) fn peak(&self) -> io::Result<u64> {
        procfs::peak(self.process.pid()).map_err(|_| self.died())
    }

    pub(crate) fn forget_peak(&self) -> io::Result<()> {
        procfs::forget_peak(self.process.pid()).map_err(|_| self.died())
    }

    fn died(&self) -> io::Error {
        io::Error::other(format!("{} died", self.kind.label()))
    }
}

/// Whether a node takes new clients: it answers the question, and not with 503. Servers that do not know it answer 404.
async fn is_ready(port: u16) -> bool {
    let asked = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(b"GET /health/ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await?;
        let mut status = [0; UNAVAILABLE.len()];
        stream.read_exact(&mut status).await?;
        Ok::<_, io::Error>(status != *UNAVAILABLE)
    };
    matches!(timeout(CHECK, asked).await, Ok(Ok(true)))
}

/// A port nobody listens to at the moment, below those that the kernel gives to connections: one of them would keep a
/// server that is replaced from its port.
pub(crate) fn free_port() -> io::Result<u16> {
    let mut ports = std::iter::repeat_with(|| rand::rng().random_range(PORTS)).take(PORTS.len());
    let free = ports.find(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok());
    free.ok_or_else(|| io::ErrorKind::AddrInUse.into())
}

fn log_of(programs: &Programs, kind: Kind, port: u16) -> PathBuf {
    programs.logs.join(format!("{kind:?}-{port}.log"))
}

fn last_words(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LAST_WORDS)..].join("\n")
}
