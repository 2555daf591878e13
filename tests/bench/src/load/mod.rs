//! The load: thousands of browsers in one process, cheap enough to leave the machine to the server.
//!
//! Each client is a task with a raw socket and no buffer of its own. It counts every message and tells what it had seen
//! before from what is new, so that nothing lost can hide behind something sent twice.

mod backoff;
mod flood;
mod frame;
mod polling;
mod session;
mod tally;
mod visits;
mod websocket;

use std::{
    io,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, Ordering::Relaxed},
    },
    time::Duration,
};

use rand::RngExt;
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinHandle,
    time::{Instant, sleep, sleep_until, timeout},
};

use self::{backoff::Backoff, polling::Polling, session::Session, websocket::WebSocket};
pub(crate) use self::{
    flood::{FLOOD, Flood, Flooder, run_flood},
    tally::{Latencies, Tally, latencies},
    visits::{VISITORS, Visits},
};
use crate::redis::now;

/// Clients that connect at the same time while a fleet sets out.
const AT_ONCE: usize = 200;

/// How long a fleet may take to connect.
const PATIENCE: Duration = Duration::from_mins(2);

/// How long an attempt to connect may take; the official client's `timeout`.
const TIMEOUT: Duration = Duration::from_secs(20);

/// When clients of a jittery network are cut, and for how long they are away, in seconds.
const CUT: Range<f64> = 10.0..20.0;
const AWAY: Range<f64> = 1.5..2.5;

/// A client that asks for a message of its own asks again after this long, doubled up to a second: it must not add to
/// the storm.
const ASK_AGAIN: Duration = Duration::from_millis(250);

/// What clients do when their connection ends.
#[derive(Clone)]
pub(crate) enum Habit {
    /// Stay away.
    Stay,
    /// Come back as the official client does, and ask for a message to their own room to see that they are in it.
    Return(mpsc::Sender<usize>),
    /// Come back as the official client does, and ask for nothing; messages may come in any order.
    Insist,
    /// Be cut every now and then, and come back where they were.
    Jitter,
}

/// How a fleet behaves.
#[derive(Clone)]
pub(crate) struct Options {
    pub(crate) port: u16,
    pub(crate) habit: Habit,
    /// Of ten clients, how many poll.
    pub(crate) polling_of_ten: usize,
    /// Every how-manieth client measures latencies; odd, so that it is not always on the same core.
    pub(crate) sample: usize,
}

impl Options {
    pub(crate) fn new(port: u16, clients: usize) -> Self {
        Self { port, habit: Habit::Stay, polling_of_ten: 0, sample: (clients / 200) | 1 }
    }
}

struct Shared {
    options: Options,
    /// Where clients connect.
    port: AtomicU16,
    tally: Tally,
    gate: Semaphore,
    unrest: AtomicBool,
    /// Since when clients come back.
    restart: std::sync::Mutex<Option<Instant>>,
}

/// Clients of one server; they leave when it is dropped.
pub(crate) struct Fleet {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<()>>,
}

impl Fleet {
    pub(crate) fn new(options: Options) -> Self {
        let shared = Shared {
            port: AtomicU16::new(options.port),
            options,
            tally: Tally::new(),
            gate: Semaphore::new(AT_ONCE),
            unrest: AtomicBool::new(false),
            restart: std::sync::Mutex::default(),
        };
        Self { shared: Arc::new(shared), clients: Vec::new() }
    }

    pub(crate) fn tally(&self) -> &Tally {
        &self.shared.tally
    }

    pub(crate) fn len(&self) -> usize {
        self.clients.len()
    }

    /// Adds clients until there are `count`, and waits until all are connected.
    ///
    /// # Errors
    /// When one could not connect.
    pub(crate) async fn grow(&mut self, count: usize) -> io::Result<Duration> {
        let started = Instant::now();
        self.set_out(count);
        let tally = self.tally();
        while tally.connected() < count {
            sleep(Duration::from_millis(2)).await;
            let [failed, told, refused, closed] = [&tally.failed, &tally.told_to_wait, &tally.refused, &tally.closed];
            let failed: u64 = [failed, told, refused, closed].iter().map(|count| count.load(Relaxed)).sum();
            if failed > 0 || started.elapsed() > PATIENCE {
                let connected = tally.connected();
                return Err(io::Error::other(format!(
                    "only {connected} of {count} clients connected, {failed} failed"
                )));
            }
        }
        Ok(started.elapsed())
    }

    /// Adds clients until there are `count`, and waits for none of them.
    pub(crate) fn set_out(&mut self, count: usize) {
        for user in self.clients.len()..count {
            let shared = Arc::clone(&self.shared);
            self.clients.push(tokio::spawn(async move { shared.live(user).await }));
        }
    }

    /// Starts or ends the cutting of clients that jitter.
    pub(crate) fn set_unrest(&self, unrest: bool) {
        self.shared.unrest.store(unrest, Relaxed);
    }

    /// From now on clients connect to the server at `port`; connections that are there stay.
    pub(crate) fn turn_to(&self, port: u16) {
        self.shared.port.store(port, Relaxed);
    }

    /// From now on clients that return are timed.
    pub(crate) fn note_restart(&self) {
        *self.shared.restart.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(Instant::now());
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.clients.iter().for_each(JoinHandle::abort);
    }
}

fn random(seconds: Range<f64>) -> Duration {
    Duration::from_secs_f64(rand::rng().random_range(seconds))
}

/// Whether the server said 503, and when to come again.
fn is_refusal(error: &io::Error) -> bool {
    let head = error.to_string().to_ascii_lowercase();
    head.starts_with("http/1.1 503") && head.contains("\r\nretry-after:")
}

/// Why a connection ended.
enum End {
    Cut,
    Lost,
}

/// Counts a client as connected until dropped.
struct Present<'a>(&'a Tally);

impl<'a> Present<'a> {
    fn new(tally: &'a Tally) -> Self {
        tally.connected.fetch_add(1, Relaxed);
        Self(tally)
    }
}

impl Drop for Present<'_> {
    fn drop(&mut self) {
        self.0.connected.fetch_sub(1, Relaxed);
    }
}

impl Shared {
    async fn live(&self, user: usize) {
        let jitters = matches!(self.options.habit, Habit::Jitter);
        let returns = !matches!(self.options.habit, Habit::Stay);
        let mut session = Session::new(returns, jitters || user.is_multiple_of(self.options.sample));
        if let Habit::Insist = self.options.habit {
            session = session.in_any_order();
        }
        if user % 10 < self.options.polling_of_ten {
            self.poll(user, &mut session).await;
            return;
        }
        let mut backoff = Backoff::default();
        let mut first = self.gate.acquire().await.ok();
        let mut again = false;
        let mut gone: Option<Instant> = None;
        loop {
            session.dialled = if jitters { now() } else { 0 };
            let joined = timeout(TIMEOUT, self.join(user, &mut session)).await;
            let permit = first.take();
            match joined.unwrap_or(Err(io::ErrorKind::TimedOut.into())) {
                Ok(socket) => {
                    drop(permit);
                    backoff.reset();
                    if let Some(gone) = gone.take() {
                        self.tally.note_absence(gone.elapsed());
                    }
                    if let End::Cut = self.stay(user, &mut session, socket, again).await {
                        again = true;
                        sleep(random(AWAY)).await;
                        continue;
                    }
                    gone = Some(Instant::now());
                    self.tally.closed.fetch_add(1, Relaxed);
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    self.tally.refused.fetch_add(1, Relaxed);
                }
                Err(error) if is_refusal(&error) => {
                    self.tally.told_to_wait.fetch_add(1, Relaxed);
                }
                Err(error) => {
                    if self.tally.failed.fetch_add(1, Relaxed) == 0 {
                        eprintln!("a client cannot connect: {error}");
                    }
                }
            }
            if !returns {
                return;
            }
            again = true;
            sleep(backoff.next()).await;
        }
    }

    /// Connects up to the answer to CONNECT; what was missed comes before that.
    async fn join(&self, user: usize, session: &mut Session) -> io::Result<WebSocket> {
        let mut socket = WebSocket::connect(user, self.port.load(Relaxed)).await?;
        loop {
            if socket.read(session, &self.tally).await?.joined {
                return Ok(socket);
            }
        }
    }

    /// Receives until the connection ends or is cut.
    async fn stay(&self, user: usize, session: &mut Session, mut socket: WebSocket, again: bool) -> End {
        let _present = Present::new(&self.tally);
        match &self.options.habit {
            Habit::Return(messages) if again && self.ask(user, messages, session, &mut socket).await.is_err() => {
                return End::Lost;
            }
            Habit::Insist if again => self.note_back(),
            Habit::Jitter => loop {
                let cut = Instant::now() + random(CUT);
                tokio::select! {
                    _ = self.receive(session, &mut socket) => return End::Lost,
                    () = sleep_until(cut) => if self.unrest.load(Relaxed) { return End::Cut },
                }
            },
            _ => {}
        }
        let _ = self.receive(session, &mut socket).await;
        End::Lost
    }

    fn note_back(&self) {
        let restart = *self.restart.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.tally.note_back(restart.map_or(Duration::ZERO, |restart| restart.elapsed()));
    }

    async fn receive(&self, session: &mut Session, socket: &mut WebSocket) -> io::Result<()> {
        loop {
            socket.read(session, &self.tally).await?;
        }
    }

    /// Asks for messages to the client's own room until one comes: then it is where it was before.
    async fn ask(
        &self,
        user: usize,
        messages: &mpsc::Sender<usize>,
        session: &mut Session,
        socket: &mut WebSocket,
    ) -> io::Result<()> {
        let mut patience = ASK_AGAIN;
        loop {
            let _ = messages.send(user).await;
            let deadline = Instant::now() + patience;
            loop {
                tokio::select! {
                    read = socket.read(session, &self.tally) => if read?.records > 0 {
                        self.note_back();
                        return Ok(());
                    },
                    () = sleep_until(deadline) => break,
                }
            }
            patience = (patience * 2).min(Duration::from_secs(1));
        }
    }

    async fn poll(&self, user: usize, session: &mut Session) {
        let permit = self.gate.acquire().await;
        let joined: io::Result<Polling> = async {
            let mut polling = Polling::connect(user, self.port.load(Relaxed), session).await?;
            while !polling.read(session, &self.tally).await?.1 {}
            Ok(polling)
        }
        .await;
        drop(permit);
        let mut polling = match joined {
            Ok(polling) => polling,
            Err(error) => {
                if self.tally.failed.fetch_add(1, Relaxed) == 0 {
                    eprintln!("a client cannot poll: {error}");
                }
                return;
            }
        };
        let _present = Present::new(&self.tally);
        while polling.read(session, &self.tally).await.is_ok() {}
        self.tally.closed.fetch_add(1, Relaxed);
    }
}
