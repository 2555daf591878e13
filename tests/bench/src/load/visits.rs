//! Browsers that come, get a few messages and leave, each in one of the ways in which browsers leave.

use std::{
    io,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    sync::Semaphore,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout_at},
};

use super::{TIMEOUT, is_refusal, polling::Polling, random, session::Session, tally::Tally, websocket::WebSocket};

/// How long a visit lasts, and how long a browser that returns is away, in seconds.
const STAY: Range<f64> = 0.5..1.5;
const AWAY: Range<f64> = 0.1..0.5;

/// Visits under way at a time: what a server that answers within two seconds needs.
const AT_ONCE: usize = 2_000;

/// Users that take turns; each has a channel token.
pub(crate) const VISITORS: usize = 20_000;

/// How a visit ends.
#[derive(Clone, Copy)]
enum Leave {
    /// DISCONNECT and the WebSocket's close, as when a page calls `disconnect`.
    Properly,
    /// The end of the TCP connection alone, as when a browser is closed.
    Silently,
    /// A reset, as when a device loses its network.
    Reset,
    /// The same, and the browser returns soon after and takes up its session.
    Return,
    /// A session by polling that is never asked for again.
    Abandon,
}

/// Of ten visits, how many end how.
const LEAVES: [Leave; 10] = [
    Leave::Properly,
    Leave::Abandon,
    Leave::Return,
    Leave::Properly,
    Leave::Silently,
    Leave::Reset,
    Leave::Properly,
    Leave::Abandon,
    Leave::Return,
    Leave::Silently,
];

struct Counts {
    tally: Tally,
    skipped: AtomicU64,
    connects: AtomicU64,
}

/// Visits of one server, a fixed number a second; they stop when this is dropped.
pub(crate) struct Visits {
    counts: Arc<Counts>,
    arrivals: tokio::task::JoinHandle<()>,
}

impl Visits {
    /// Lets `per_second` browsers connect to the server at `port`, returns included.
    pub(crate) fn start(port: u16, per_second: u32) -> Self {
        let counts = Counts { tally: Tally::new(), skipped: AtomicU64::new(0), connects: AtomicU64::new(0) };
        let counts = Arc::new(counts);
        let arrivals = tokio::spawn(arrive(Arc::clone(&counts), port, per_second));
        Self { counts, arrivals }
    }

    /// Browsers that joined their namespace, returns included.
    pub(crate) fn connects(&self) -> u64 {
        self.counts.connects.load(Relaxed)
    }

    /// Visits that did not take place because too many were under way.
    pub(crate) fn skipped(&self) -> u64 {
        self.counts.skipped.load(Relaxed)
    }

    pub(crate) fn tally(&self) -> &Tally {
        &self.counts.tally
    }
}

impl Drop for Visits {
    fn drop(&mut self) {
        self.arrivals.abort();
    }
}

async fn arrive(counts: Arc<Counts>, port: u16, per_second: u32) {
    // A browser that returns connects twice.
    let returns = LEAVES.iter().filter(|leave| matches!(leave, Leave::Return)).count();
    let mut ticks = interval(Duration::from_secs(1) * (LEAVES.len() + returns) as u32 / per_second);
    // A machine that was busy must not be asked for everything it has missed.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let places = Arc::new(Semaphore::new(AT_ONCE));
    for number in 0_usize.. {
        if number.is_multiple_of(LEAVES.len()) {
            ticks.tick().await;
        }
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            counts.skipped.fetch_add(1, Relaxed);
            continue;
        };
        let counts = Arc::clone(&counts);
        tokio::spawn(async move {
            let outcome = visit(&counts, number % VISITORS, port, LEAVES[number % LEAVES.len()]).await;
            match outcome {
                Err(error) if is_refusal(&error) => drop(counts.tally.told_to_wait.fetch_add(1, Relaxed)),
                Err(error) => {
                    if counts.tally.failed.fetch_add(1, Relaxed) < 5 {
                        eprintln!("        a visit failed: {error}");
                    }
                }
                Ok(()) => {}
            }
            drop(place);
        });
    }
}

async fn visit(counts: &Counts, user: usize, port: u16, leave: Leave) -> io::Result<()> {
    let mut session = Session::new(matches!(leave, Leave::Return), false);
    match leave {
        Leave::Abandon => poll(counts, user, port, &mut session).await,
        Leave::Return => {
            let socket = stay(counts, user, port, &mut session).await?;
            socket.into_stream().set_zero_linger()?;
            sleep(random(AWAY)).await;
            stay(counts, user, port, &mut session).await.map(drop)
        }
        Leave::Reset => stay(counts, user, port, &mut session).await?.into_stream().set_zero_linger(),
        Leave::Silently => stay(counts, user, port, &mut session).await.map(drop),
        Leave::Properly => {
            let socket = stay(counts, user, port, &mut session).await?;
            socket.send("41")?;
            socket.close()
        }
    }
}

/// Connects, joins and receives for a while.
async fn stay(counts: &Counts, user: usize, port: u16, session: &mut Session) -> io::Result<WebSocket> {
    let deadline = Instant::now() + TIMEOUT;
    let mut socket = timeout_at(deadline, WebSocket::connect(user, port)).await??;
    while !timeout_at(deadline, socket.read(session, &counts.tally)).await??.joined {}
    counts.connects.fetch_add(1, Relaxed);
    let leaves = Instant::now() + random(STAY);
    while let Ok(read) = timeout_at(leaves, socket.read(session, &counts.tally)).await {
        read?;
    }
    Ok(socket)
}

/// Opens a session by polling, joins, and asks once more.
async fn poll(counts: &Counts, user: usize, port: u16, session: &mut Session) -> io::Result<()> {
    let deadline = Instant::now() + TIMEOUT;
    let mut polling = timeout_at(deadline, Polling::connect(user, port, session)).await??;
    while !timeout_at(deadline, polling.read(session, &counts.tally)).await??.1 {}
    counts.connects.fetch_add(1, Relaxed);
    if let Ok(read) = timeout_at(Instant::now() + random(STAY), polling.read(session, &counts.tally)).await {
        read?;
    }
    Ok(())
}
