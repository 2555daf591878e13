//! Fan-out: rooms, shards, and the log that missed messages are recovered from.
//!
//! Answers for this: whoever joins gets everything that came for its rooms after the offset it names, in order,
//! once, and then what follows, in order, once; or it is told that something is gone. Must not know any protocol,
//! Redis, or HTTP: a [`Subscriber`] takes opaque messages, and must never block.
//!
//! Publishing appends to the log and wakes the shards that have the room. Each shard is a thread with
//! its own subscribers, so that nobody locks while fanning out, and nothing slow can hold up the reader of Redis.

mod log;
mod offset;
mod rooms;
mod shard;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
        mpsc::{self, Sender},
    },
    thread::{self, JoinHandle, Thread},
    time::Instant,
};

pub use self::{
    log::Bounds,
    offset::{Epoch, InvalidOffset, Offset, fingerprint},
};
use self::{
    log::Log,
    shard::{Command, Shard},
};

/// Most shards a hub can have: the set of shards that listen to a room is one machine word.
pub const MAX_SHARDS: usize = 64;

/// What is sent to subscribers; cloning must be cheap.
pub trait Message: Clone + Send + 'static {
    /// Bytes it holds.
    fn weight(&self) -> usize;
}

/// The receiving end of one connection.
pub trait Subscriber: Send + 'static {
    /// What it receives.
    type Message: Message;

    /// Takes what came since the last call, oldest first. Called in a shard's thread; must not block.
    fn deliver(&self, messages: &[&Self::Message]);

    /// Fetches the memory that [`deliver`](Self::deliver) is about to need, and does nothing else. Called for some
    /// subscribers in a row, as the processor then waits for all of them at once.
    fn prefetch(&self) {}

    /// It was not served in time and has a hole now: it must be cut, so that it comes back and learns of it.
    fn lagged(&self);
}

/// From where a newcomer wants to be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    /// Whatever comes from now on.
    Now,
    /// All after this offset.
    Offset(Offset),
    /// It was served before, but nobody knows up to where: all there is.
    Unknown,
}

/// How a newcomer starts.
#[derive(Debug, PartialEq, Eq)]
pub struct Joined<M> {
    /// Everything up to here is in `missed` or was seen before; all after it will be delivered.
    pub at: Offset,
    /// Oldest first.
    pub missed: Vec<M>,
    /// Whether nothing is known to be lost since the offset that was asked for.
    pub complete: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct MemberId(u64);

/// What publishers and shards share.
struct Shared<M> {
    log: Mutex<Log<M>>,
}

impl<M: Message> Shared<M> {
    fn lock(&self) -> MutexGuard<'_, Log<M>> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How to reach a shard.
struct Handle<S: Subscriber> {
    // Bounded by what clients may send while a shard is busy: each step waits for the answer to the one before.
    commands: Sender<Command<S>>,
    thread: Thread,
}

impl<S: Subscriber> Handle<S> {
    fn send(&self, command: Command<S>) {
        if self.commands.send(command).is_ok() {
            self.thread.unpark();
        }
    }
}

/// Rooms and their subscribers. Cheap to share in an [`Arc`]; stops its shards when dropped.
pub struct Hub<S: Subscriber> {
    shared: Arc<Shared<S::Message>>,
    shards: Vec<Arc<Handle<S>>>,
    threads: Vec<JoinHandle<()>>,
    next_member: AtomicU64,
    members: Arc<AtomicUsize>,
}

impl<S: Subscriber> Hub<S> {
    /// Starts a hub with `shards` threads (1 to [`MAX_SHARDS`]). `epoch` must differ from that of any earlier log. Each
    /// thread keeps a `guard` that is dropped when it ends, which it must not do before the hub.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start<G: Send + 'static>(
        epoch: Epoch,
        bounds: Bounds,
        shards: usize,
        guard: impl Fn() -> G,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared { log: Mutex::new(Log::new(epoch, bounds)) });
        let mut hub = Self {
            shared,
            shards: Vec::new(),
            threads: Vec::new(),
            next_member: AtomicU64::new(0),
            members: Arc::default(),
        };
        for index in 0..shards.clamp(1, MAX_SHARDS) {
            let (commands, receiver) = mpsc::channel();
            let worker = Shard::new(index, Arc::clone(&hub.shared), receiver);
            let thread = thread::Builder::new().name(format!("shard-{index}")).spawn({
                let guard = guard();
                move || {
                    let _guard = guard;
                    worker.run();
                }
            })?;
            hub.shards.push(Arc::new(Handle { commands, thread: thread.thread().clone() }));
            hub.threads.push(thread);
        }
        Ok(hub)
    }

    /// Sends what `encode` makes of the message's offset to everyone in `room`, now or when they come back.
    /// `fingerprint` is that of the payload.
    pub fn publish(&self, room: &str, fingerprint: u64, now: Instant, encode: impl FnOnce(&Offset) -> S::Message) {
        let mut listeners = self.shared.lock().append(room, fingerprint, now, encode);
        while listeners != 0 {
            if let Some(shard) = self.shards.get(listeners.trailing_zeros() as usize) {
                shard.thread.unpark();
            }
            listeners &= listeners - 1;
        }
    }

    /// Notes that messages may have been lost before they got here: no one who was away now recovers completely.
    pub fn note_gap(&self) {
        self.shared.lock().note_gap();
    }

    /// Drops what the log need not keep any longer; for quiet times, as publishing does so too.
    pub fn expire(&self, now: Instant) {
        self.shared.lock().expire(now);
    }

    /// Subscribes to `rooms`. `welcome` is called in the shard's thread before anything live is delivered; it must
    /// not block. The subscriber stays until the membership is dropped.
    pub fn join(
        &self,
        subscriber: S,
        rooms: Vec<String>,
        since: Since,
        welcome: impl FnOnce(Joined<S::Message>) + Send + 'static,
    ) -> Membership<S> {
        let number = self.next_member.fetch_add(1, Ordering::Relaxed);
        let id = MemberId(number);
        #[expect(clippy::cast_possible_truncation, reason = "only the remainder matters")]
        let shard = Arc::clone(&self.shards[number as usize % self.shards.len()]);
        shard.send(Command::Join { id, subscriber, rooms, since, welcome: Box::new(welcome) });
        self.members.fetch_add(1, Ordering::Relaxed);
        Membership { shard, id, members: Arc::clone(&self.members) }
    }

    /// Subscribers at the moment.
    pub fn members(&self) -> usize {
        self.members.load(Ordering::Relaxed)
    }

    /// Bytes that the recovery log holds.
    pub fn log_bytes(&self) -> usize {
        self.shared.lock().bytes()
    }
}

impl<S: Subscriber> Drop for Hub<S> {
    fn drop(&mut self) {
        for shard in &self.shards {
            shard.send(Command::Stop);
        }
        for thread in self.threads.drain(..) {
            // A subscriber may own the hub, and then the last one to go is inside a shard.
            if thread.thread().id() != thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}

/// A subscriber's place in the hub, given up when dropped.
pub struct Membership<S: Subscriber> {
    shard: Arc<Handle<S>>,
    id: MemberId,
    members: Arc<AtomicUsize>,
}

impl<S: Subscriber> Membership<S> {
    /// Changes the rooms. Of rooms it did not have, the subscriber gets all that came after the offset it joined with.
    pub fn set_rooms(&self, rooms: Vec<String>) {
        self.shard.send(Command::SetRooms { id: self.id, rooms });
    }
}

impl<S: Subscriber> Drop for Membership<S> {
    fn drop(&mut self) {
        self.shard.send(Command::Leave { id: self.id });
        self.members.fetch_sub(1, Ordering::Relaxed);
    }
}
