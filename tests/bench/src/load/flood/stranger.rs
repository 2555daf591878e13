//! The process that floods. It ends when its input does, and after [`LONGEST`] in any case.

mod held;
mod members;

use std::{
    io::{self, Write},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use clap::Parser;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    sync::{Semaphore, oneshot},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use super::{Flood, Flooder, LONGEST, Order, PER_SECOND};
use crate::load::{Tally, session::Session, websocket::WebSocket};

/// Addresses that a flood comes from, none of them that of the well-behaved clients: a bound per address must not be all
/// that there is.
const ADDRESSES: usize = 50;

/// Connections of each flood.
const CROWD: usize = 50;
const UNFINISHED: usize = 500;
const SILENT: usize = 5_000;
const CHURN: usize = 20;
const RETURNS: usize = 50;

/// Open files that a flood needs besides its connections.
const SPARE_FILES: usize = 100;

/// Requests written at a time.
const BATCH: u64 = 64;

/// Connections that are being opened at the same time, where many are held.
const AT_ONCE: usize = 50;

/// How long a server may take to answer before it is tried again.
const PATIENCE: Duration = Duration::from_secs(5);

/// A connection that was held and is closed comes back after this long.
const AGAIN: Duration = Duration::from_secs(1);

/// After a refusal, where connections are not held.
const REFUSED: Duration = Duration::from_millis(10);

/// Users that nobody knows have numbers from here.
const NOBODY: usize = 1_000_000;

/// Runs the flood that the arguments after the first ask for.
pub(crate) fn run_flood(arguments: impl Iterator<Item = std::ffi::OsString>) -> io::Result<()> {
    let order = Order::try_parse_from(arguments).map_err(io::Error::other)?;
    let files = rlimit::increase_nofile_limit(u64::MAX)? as usize;
    let (stop, stopped) = oneshot::channel();
    std::thread::spawn(move || {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        stop.send(())
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let stranger = Stranger { order, count: AtomicU64::new(0), gate: Semaphore::new(AT_ONCE), tally: Tally::new() };
        let stranger = Arc::new(stranger);
        let missed = if order.flood == Flood::Returns { stranger.miss().await? } else { Vec::new() };
        say("ready")?;
        tokio::select! {
            () = Arc::clone(&stranger).flood(files, missed) => {}
            _ = stopped => {}
            () = sleep(LONGEST) => {}
        }
        say(&stranger.count.load(Relaxed).to_string())
    })
}

/// Tells the other process.
fn say(line: &str) -> io::Result<()> {
    let mut output = io::stdout().lock();
    writeln!(output, "{line}")?;
    output.flush()
}

struct Stranger {
    order: Order,
    /// Requests or connections so far.
    count: AtomicU64,
    gate: Semaphore,
    /// Counts that nobody reads.
    tally: Tally,
}

impl Stranger {
    /// Runs until dropped.
    async fn flood(self: Arc<Self>, files: usize, missed: Vec<String>) {
        let connections = match self.order.flood {
            Flood::Handshakes => 1,
            Flood::Crowd => CROWD,
            Flood::Frames | Flood::Fragments | Flood::Bodies => UNFINISHED,
            Flood::Silent => SILENT,
            Flood::Churn => CHURN,
            Flood::Returns => RETURNS,
            Flood::Gzip => Flooder::MEMBERS,
        };
        let connections = connections.min(files.saturating_sub(SPARE_FILES)).max(1);
        let (unfinished, missed): (Arc<[u8]>, Arc<[String]>) = (self.unfinished().into(), missed.into());
        let mut tasks = JoinSet::new();
        for index in 0..connections {
            let (stranger, unfinished, missed) = (Arc::clone(&self), Arc::clone(&unfinished), Arc::clone(&missed));
            tasks.spawn(async move {
                loop {
                    // Whatever the server makes of it, the flood goes on.
                    let pause = match stranger.order.flood {
                        Flood::Handshakes | Flood::Crowd => {
                            let _ = stranger.handshakes(index, f64::from(PER_SECOND) / connections as f64).await;
                            REFUSED
                        }
                        Flood::Frames | Flood::Fragments | Flood::Bodies | Flood::Silent => {
                            let _ = stranger.hold(index, &unfinished).await;
                            AGAIN
                        }
                        Flood::Churn => stranger.patiently(stranger.come_and_go(index)).await,
                        Flood::Returns => stranger.patiently(stranger.come_back(index, &missed)).await,
                        Flood::Gzip => {
                            let _ = stranger.poll(index).await;
                            AGAIN
                        }
                    };
                    sleep(pause).await;
                }
            });
        }
        if self.order.flood == Flood::Gzip {
            let _ = self.publish().await;
        }
        while tasks.join_next().await.is_some() {}
    }

    fn add(&self, count: u64) {
        self.count.fetch_add(count, Relaxed);
    }

    /// Until the attempt is over, or has taken too long; returns how long to wait before the next.
    async fn patiently(&self, attempt: impl Future<Output = io::Result<()>>) -> Duration {
        self.add(1);
        if matches!(timeout(PATIENCE, attempt).await, Ok(Ok(()))) { Duration::ZERO } else { REFUSED }
    }

    async fn dial(&self, index: usize) -> io::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from(([127, 0, 1, 1 + (index % ADDRESSES) as u8], 0)))?;
        let stream = socket.connect(SocketAddr::from(([127, 0, 0, 1], self.order.port))).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// Asks for sessions over one connection, without waiting for the answers.
    async fn handshakes(&self, index: usize, per_second: f64) -> io::Result<()> {
        let (mut reader, mut writer) = self.dial(index).await?.into_split();
        let request = self.handshake();
        let batch = request.repeat(BATCH as usize);
        let read = async {
            let mut buffer = vec![0; 64 * 1024];
            loop {
                match reader.read(&mut buffer).await? {
                    0 => return Ok(()),
                    // An answer split between two readings is not worth finding.
                    length => self.add(buffer[..length].windows(4).filter(|four| four == b"\r\n\r\n").count() as u64),
                }
            }
        };
        let write = async {
            let (start, mut sent) = (Instant::now(), 0);
            loop {
                let due = (start.elapsed().as_secs_f64() * per_second) as u64;
                let now = (due - sent).min(BATCH);
                writer.write_all(&batch.as_bytes()[..request.len() * now as usize]).await?;
                sent += now;
                if now < BATCH {
                    sleep(Duration::from_millis(1)).await;
                }
            }
        };
        tokio::select! {
            end = read => end,
            end = write => end,
        }
    }

    fn handshake(&self) -> String {
        let port = self.order.port;
        format!("GET /socket.io/?EIO=4&transport=polling HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n")
    }

    /// Joins the namespace with a token that nobody has, and leaves.
    async fn come_and_go(&self, index: usize) -> io::Result<()> {
        let mut session = Session::new(false, false);
        let user = NOBODY + self.count.load(Relaxed) as usize;
        let mut socket = WebSocket::upgrade(self.dial(index).await?, user, self.order.port).await?;
        while !socket.read(&mut session, &self.tally).await?.joined {}
        Ok(())
    }
}
