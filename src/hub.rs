//! Fan-out: rooms, shards, and the log that missed events are recovered from.
//!
//! Answers for this: a subscriber that joins gets every event that was published to its rooms after the offset it names,
//! in order, once, and then every later one likewise; or it is told that something is lost. Must not know any protocol,
//! Redis, or HTTP: the log keeps an [`Event`] as it was published, and a [`Wire`] gives it a form when a [`Subscriber`] of
//! that wire gets it.
//!
//! Publishing appends to the log and wakes the shards that have the room. Each shard is a thread with its own subscribers,
//! so that fan-out takes no lock, and nothing slow can hold up the reader of Redis.

mod event;
mod index;
mod join;
mod log;
mod offset;
mod past;
mod rooms;
mod shard;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{self, Sender},
    },
    thread::{self, JoinHandle, Thread},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

pub use self::{
    event::{Event, Kind, Wire},
    join::{Joined, Return, Rooms, Since},
    log::LogBounds,
    offset::{Epoch, Offset, OffsetKey},
    past::{Past, Tail},
};
use self::{
    index::FingerprintIndex,
    log::{EventLog, Oldest},
    rooms::ShardSet,
    shard::{Newcomer, Shard, ShardCommand},
};

/// Most shards a hub can have: the set of shards that listen to a room is one machine word.
pub const MAX_SHARDS: usize = 64;

/// How often [`Hub::tend`] looks for events that the log need not keep any longer.
const EXPIRY_TICK: Duration = Duration::from_millis(100);

/// How often every subscriber is reminded within the log's window.
const REMINDERS_PER_WINDOW: u32 = 4;

/// Pause between the reminders of a part of the subscribers and of the next part.
const REMINDER_TICK: Duration = Duration::from_secs(1);

/// The receiving end of one connection. Called in a shard's thread; must not block.
pub trait Subscriber: Send + 'static {
    /// Touches the memory that the next call needs, so that several wait for theirs together.
    fn prefetch(&self) {}

    /// Takes what was published since the last call, oldest first.
    fn deliver(&self, events: &[&Event]);

    /// Takes the text of the offset up to which it has been served; may ignore it while events wait to be sent.
    fn remind(&self, offset: &str);

    /// The log dropped an event before it was delivered to this subscriber, which must be cut: when it comes back, it
    /// learns of the loss.
    fn lagged(&self);
}

/// The time of day at some moment, so that offsets can say when they were told. Nodes' clocks must not differ by more than
/// two seconds: otherwise one node may not find the places that another has told.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// The moment.
    pub at: Instant,
    /// The time then, in seconds since 1970.
    pub unix: u64,
}

impl Clock {
    /// The time now.
    pub fn now() -> Self {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Self { at: Instant::now(), unix }
    }

    /// The time at `now`, in seconds since 1970.
    fn unix(self, now: Instant) -> u32 {
        let unix = self.unix + now.saturating_duration_since(self.at).as_secs();
        u32::try_from(unix).unwrap_or(u32::MAX)
    }
}

/// What a hub is made of.
#[derive(Clone)]
pub struct HubOptions {
    /// Must differ from that of any earlier log.
    pub epoch: Epoch,
    /// Seals offsets.
    pub key: OffsetKey,
    /// What the log keeps.
    pub bounds: LogBounds,
    /// Threads that own subscribers, 1 to [`MAX_SHARDS`].
    pub shards: usize,
    /// For the time in offsets.
    pub clock: Clock,
    /// What subscribers are told when they may have missed something; `None` to tell nothing.
    pub notice: Option<LossNotice>,
}

/// Tells subscribers that they may have missed something.
#[derive(Clone, Debug)]
pub struct LossNotice {
    /// The room that all subscribers are in.
    pub room: &'static str,
    /// The message.
    pub payload: Bytes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct MemberId(u64);

/// What publishers and shards share.
struct HubState {
    log: Mutex<EventLog>,
    index: FingerprintIndex,
    /// For each shard the sequence up to which it has delivered.
    delivered: Box<[AtomicU64]>,
    key: OffsetKey,
    clock: Mutex<Clock>,
    notice: Option<LossNotice>,
    next_member: AtomicU64,
    /// Wakes the [`Tail`] that waits, if one does.
    news: Notify,
    is_followed: AtomicBool,
}

impl HubState {
    /// The time at `now`, in seconds since 1970.
    fn unix(&self, now: Instant) -> u32 {
        self.clock.lock().unix(now)
    }
}

/// How to reach a shard.
#[derive(Clone)]
struct ShardHandle {
    // Bounded by the caller of `Hub::join`: it has few newcomers under way at a time, and each subscriber leaves once and
    // is given other rooms only after its welcome.
    commands: Sender<ShardCommand>,
    thread: Thread,
}

impl ShardHandle {
    fn send(&self, command: ShardCommand) {
        if self.commands.send(command).is_ok() {
            self.thread.unpark();
        }
    }
}

/// The threads of a hub, which own its subscribers. Dropping this stops them and drops all subscribers.
pub struct Shards {
    handles: Vec<ShardHandle>,
    threads: Vec<JoinHandle<()>>,
}

impl Drop for Shards {
    fn drop(&mut self) {
        for shard in &self.handles {
            shard.send(ShardCommand::Stop);
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Rooms and their subscribers. A clone is another handle to the same hub; none keeps the shards running.
#[derive(Clone)]
pub struct Hub {
    shared: Arc<HubState>,
    shards: Arc<[ShardHandle]>,
}

impl Hub {
    /// Starts a hub, which counts as interrupted until [`Hub::resume`]. Each of its threads keeps a `guard` that is
    /// dropped when the thread ends, which it must not do before [`Shards`] are dropped.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start<G: Send + 'static>(options: HubOptions, guard: impl Fn() -> G) -> io::Result<(Self, Shards)> {
        let HubOptions { epoch, key, bounds, shards, clock, notice } = options;
        let count = shards.clamp(1, MAX_SHARDS);
        let shared = Arc::new(HubState {
            log: Mutex::new(EventLog::new(epoch, bounds, clock.unix(clock.at))),
            index: FingerprintIndex::default(),
            delivered: (0..count).map(|_| AtomicU64::new(0)).collect(),
            key,
            clock: Mutex::new(clock),
            notice,
            next_member: AtomicU64::new(0),
            news: Notify::new(),
            is_followed: AtomicBool::new(false),
        });
        let mut shards = Shards { handles: Vec::new(), threads: Vec::new() };
        for index in 0..count {
            // No bound of its own, as a shard that drops a member sends to itself. It holds the joins under way, which their
            // callers bound, and of each member its leaving and its changes of rooms, which come seldom.
            let (commands, receiver) = mpsc::channel();
            let (worker, guard) = (Shard::new(index, Arc::clone(&shared), receiver), guard());
            let thread = thread::Builder::new().name(format!("shard-{index}")).spawn(move || {
                let _guard = guard;
                worker.run();
            })?;
            shards.handles.push(ShardHandle { commands, thread: thread.thread().clone() });
            shards.threads.push(thread);
        }
        Ok((Self { shared, shards: shards.handles.clone().into() }, shards))
    }

    /// Sends a message to the subscribers of `room`, now or when they come back; returns its place in the log. Nodes
    /// recognise a message by its payload.
    pub fn publish(&self, kind: Kind, room: &str, payload: Bytes, now: Instant) -> Offset {
        let (fingerprint, at) = (self.shared.key.fingerprint(&payload), self.shared.unix(now));
        let (offset, listeners) = self.shared.log.lock().append(kind, room, payload, fingerprint, now, at);
        self.wake(listeners);
        self.shared.wake_tail();
        self.expire(now);
        offset
    }

    /// Tells all subscribers that joined before the newest gap that they may have missed something. Returns the sequence of
    /// the notice; `None` if there is none to tell.
    pub fn tell_gap(&self, now: Instant) -> Option<u64> {
        let LossNotice { room, payload } = self.shared.notice.clone()?;
        Some(self.publish(Kind::GapNotice, room, payload, now).sequence)
    }

    /// Until [`Hub::resume`], messages may be lost before they reach the hub, and no subscriber is told that it missed
    /// nothing.
    pub fn interrupt(&self) {
        self.shared.log.lock().interrupted = true;
    }

    /// Messages come again. Unless it is known that none was lost meanwhile, no session that began before now is ever
    /// told that it missed nothing. Returns the sequence of the last entry, which is then a gap.
    pub fn resume(&self, lost_nothing: bool) -> u64 {
        let now = Instant::now();
        let mut log = self.shared.log.lock();
        (log.interrupted, log.is_begun) = (false, true);
        if !lost_nothing {
            log.gap_is_own = log.head() > 0;
            log.append_gap(rand::random(), now, self.shared.unix(now));
        }
        let head = log.head();
        drop(log);
        self.shared.wake_tail();
        head
    }

    /// Whether a subscriber is in the room.
    pub fn has_listeners(&self, room: &str) -> bool {
        self.shared.log.lock().rooms.is_listened_to(room)
    }

    /// Whether messages may be lost at this moment.
    pub fn is_interrupted(&self) -> bool {
        self.shared.log.lock().interrupted
    }

    /// Drops what is too old or too much for the log, as publishing does too.
    pub fn expire(&self, now: Instant) {
        let delivered =
            self.shared.delivered.iter().map(|delivered| delivered.load(Ordering::Acquire)).min().unwrap_or(0);
        loop {
            // The lock is released each time, and memory is freed without it.
            let oldest = self.shared.log.lock().expire_oldest(now, delivered);
            match oldest {
                Oldest::Dropped(kept) => drop(kept),
                Oldest::Stays => return,
                Oldest::Undelivered => return self.wake(self.behind(delivered + 1)),
            }
        }
    }

    /// The shards that have not delivered up to `sequence`.
    fn behind(&self, sequence: u64) -> ShardSet {
        let delivered = self.shared.delivered.iter().map(|delivered| delivered.load(Ordering::Acquire));
        (0..).zip(delivered).fold(0, |set, (shard, delivered)| set | u64::from(delivered < sequence) << shard)
    }

    /// Whether all that was published has been handed to its subscribers.
    pub fn is_delivered(&self) -> bool {
        let head = self.shared.log.lock().head();
        let behind = self.behind(head);
        self.wake(behind);
        behind == 0
    }

    /// Until `stop`, drops what the log need not keep any longer and [reminds](Subscriber::remind) all subscribers, one part
    /// after the other: the offset that a subscriber comes back with also says when it was last here.
    pub async fn tend(self, stop: CancellationToken) {
        let mut ticker = tokio::time::interval(EXPIRY_TICK);
        let period = (self.shared.log.lock().bounds.window / REMINDERS_PER_WINDOW).max(REMINDER_TICK);
        let of = usize::try_from(period.as_secs()).unwrap_or(usize::MAX);
        // Subscribers that joined first are in the last part.
        let mut parts = (0..of).rev().cycle();
        let mut reminded = Instant::now();
        while stop.run_until_cancelled(ticker.tick()).await.is_some() {
            let now = Instant::now();
            self.expire(now);
            if now.saturating_duration_since(reminded) >= REMINDER_TICK {
                reminded += REMINDER_TICK;
                // It may have been set, or the machine may have slept.
                *self.shared.clock.lock() = Clock::now();
                let part = parts.next().unwrap_or_default();
                self.shards.iter().for_each(|shard| shard.send(ShardCommand::Remind { part, of, now }));
            }
        }
    }

    /// Subscribes to `rooms`. `welcome` is called in the shard's thread before anything live is delivered; it must
    /// not block. The subscriber stays until the membership is dropped. Commands for shards are bounded only as far as
    /// the caller bounds the newcomers that have not been welcomed.
    pub fn join(
        &self,
        subscriber: impl Subscriber,
        rooms: Rooms,
        since: Since,
        now: Instant,
        welcome: impl FnOnce(Joined) + Send + 'static,
    ) -> Membership {
        let id = MemberId(self.shared.next_member.fetch_add(1, Ordering::Relaxed));
        #[expect(clippy::cast_possible_truncation, reason = "only the remainder matters")]
        let shard = self.shards[id.0 as usize % self.shards.len()].clone();
        let (subscriber, welcome) = (Box::new(subscriber), Box::new(welcome));
        shard.send(ShardCommand::Join(Newcomer { id, subscriber, rooms, since, now, welcome }));
        Membership { shard, id }
    }

    /// The offset in `text`, if it was sealed by this hub or another with the same key.
    pub fn open_offset(&self, text: &str) -> Option<Offset> {
        self.shared.key.open(text)
    }

    /// The offset as text.
    pub fn seal_offset(&self, offset: &Offset) -> String {
        self.shared.key.seal(offset)
    }

    /// Bytes that the recovery log holds.
    pub fn log_bytes(&self) -> usize {
        self.shared.log.lock().bytes
    }

    fn wake(&self, shards: ShardSet) {
        for (index, shard) in self.shards.iter().enumerate() {
            if shards & (1 << index) != 0 {
                shard.thread.unpark();
            }
        }
    }
}

/// A subscriber's place in the hub, given up when dropped.
pub struct Membership {
    shard: ShardHandle,
    id: MemberId,
}

impl Membership {
    /// Changes the rooms. Of rooms it did not have, the subscriber gets all that was published after where it, or for
    /// [`Rooms::gained`] its session, began to be served.
    pub fn set_rooms(&self, rooms: Rooms, now: Instant) {
        self.shard.send(ShardCommand::SetRooms { id: self.id, rooms, now });
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.shard.send(ShardCommand::Leave { id: self.id });
    }
}
