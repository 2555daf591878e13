//! Fan-out: rooms, shards, and the log that missed messages are recovered from.
//!
//! Answers for this: a subscriber that joins gets everything that came for its rooms after the offset it names, in
//! order, once, and then what follows, in order, once; or it is told that something is gone. Must not know any protocol,
//! Redis, or HTTP: a [`Subscriber`] takes opaque messages, and must never block.
//!
//! Publishing appends to the log and wakes the shards that have the room. Each shard is a thread with
//! its own subscribers, so that nobody locks while fanning out, and nothing slow can hold up the reader of Redis.

mod join;
mod log;
mod offset;
mod rooms;
mod shard;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
        mpsc::{self, Sender},
    },
    thread::{self, JoinHandle, Thread},
    time::Instant,
};

pub use self::{
    join::{Joined, Return, Rooms, Since},
    log::Bounds,
    offset::{Epoch, Offset, OffsetKey},
};
use self::{
    log::{Log, Oldest},
    rooms::ShardSet,
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

    /// Takes a message that may as well be dropped when others wait already. Called likewise.
    fn remind(&self, message: &Self::Message) {
        self.deliver(&[message]);
    }

    /// Fetches the memory that [`deliver`](Self::deliver) is about to need, and does nothing else. Called for some
    /// subscribers in a row, as the processor then waits for all of them at once.
    fn prefetch(&self) {}

    /// It was not served in time and has a hole now: it must be cut, so that it comes back and learns of it.
    fn lagged(&self);
}

/// The time of day at some moment, so that offsets can say when they were told.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// The moment.
    pub at: Instant,
    /// The time then, in seconds since 1970.
    pub unix: u64,
}

impl Clock {
    /// The time at `now`, in seconds since 1970.
    fn unix(self, now: Instant) -> u32 {
        let unix = self.unix + now.saturating_duration_since(self.at).as_secs();
        u32::try_from(unix).unwrap_or(u32::MAX)
    }
}

/// What a hub is made of.
#[derive(Clone, Debug)]
pub struct Options {
    /// Must differ from that of any earlier log.
    pub epoch: Epoch,
    /// Seals offsets.
    pub key: OffsetKey,
    /// What the log keeps.
    pub bounds: Bounds,
    /// Threads that own subscribers, 1 to [`MAX_SHARDS`].
    pub shards: usize,
    /// For the time in offsets.
    pub clock: Clock,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct MemberId(u64);

/// What publishers and shards share.
struct Shared<M> {
    log: Mutex<Log<M>>,
    /// For each shard the sequence up to which it has delivered.
    delivered: Box<[AtomicU64]>,
    /// As the log has it; every newcomer looks.
    interrupted: AtomicBool,
    key: OffsetKey,
    clock: Clock,
}

impl<M: Message> Shared<M> {
    fn lock(&self) -> MutexGuard<'_, Log<M>> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops what is too old or too much; returns the shards that hold something up.
    fn expire(&self, now: Instant) -> ShardSet {
        let delivered = self.delivered.iter().map(|delivered| delivered.load(Ordering::Acquire)).min().unwrap_or(0);
        loop {
            // The lock is given back each time, and memory is freed without it.
            let oldest = self.lock().expire_oldest(now, delivered);
            match oldest {
                Oldest::Dropped(message) => drop(message),
                Oldest::Stays => return 0,
                Oldest::Undelivered => return self.behind(delivered + 1),
            }
        }
    }

    /// The shards that have not delivered up to `sequence`.
    fn behind(&self, sequence: u64) -> ShardSet {
        let cursors = self.delivered.iter().enumerate();
        cursors
            .filter(|(_, delivered)| delivered.load(Ordering::Acquire) < sequence)
            .fold(0, |set, (shard, _)| set | 1 << shard)
    }
}

/// How to reach a shard.
struct Handle<S: Subscriber> {
    // Bounded: a caller has few newcomers under way at a time, and each subscriber leaves once and is given other rooms
    // only after its welcome.
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
    /// Held by whoever appends to the log, so that its head does not move while a message is encoded.
    publishing: Mutex<()>,
    next_member: AtomicU64,
    members: Arc<AtomicUsize>,
}

impl<S: Subscriber> Hub<S> {
    /// Starts a hub, which counts as interrupted until [`Hub::resume`]. Each of its threads keeps a `guard` that is
    /// dropped when the thread ends, which it must not do before the hub.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start<G: Send + 'static>(options: Options, guard: impl Fn() -> G) -> std::io::Result<Self> {
        let Options { epoch, key, bounds, shards, clock } = options;
        let shards = shards.clamp(1, MAX_SHARDS);
        let delivered = (0..shards).map(|_| AtomicU64::new(0)).collect();
        let shared = Arc::new(Shared {
            log: Mutex::new(Log::new(epoch, bounds)),
            delivered,
            interrupted: AtomicBool::new(true),
            key,
            clock,
        });
        let mut hub = Self {
            shared,
            shards: Vec::new(),
            threads: Vec::new(),
            publishing: Mutex::new(()),
            next_member: AtomicU64::new(0),
            members: Arc::default(),
        };
        for index in 0..shards {
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

    /// Sends what `encode` makes of the message's offset and the offset's text to everyone in `room`, now or when they
    /// come back. `payload` is what nodes recognise the message by.
    pub fn publish(&self, room: &str, payload: &[u8], now: Instant, encode: impl FnOnce(&Offset, &str) -> S::Message) {
        let fingerprint = self.shared.key.fingerprint(payload);
        let publishing = self.publishing.lock().unwrap_or_else(PoisonError::into_inner);
        let at = self.shared.clock.unix(now);
        let last = {
            let log = self.shared.lock();
            log.offset(log.head(), at)
        };
        let offset = Offset { sequence: last.sequence + 1, fingerprint, ..last };
        let message = encode(&offset, &self.shared.key.seal(&offset));
        let listeners = self.shared.lock().append(room, fingerprint, now, message);
        drop(publishing);
        self.wake(listeners | self.shared.expire(now));
    }

    /// Until [`Hub::resume`], messages may be getting lost before they get here: nobody is told that it missed nothing.
    pub fn interrupt(&self) {
        self.shared.interrupted.store(true, Ordering::Release);
        self.shared.lock().interrupt();
    }

    /// Messages come again. Unless it is known that none was lost meanwhile, no session that began before now is ever
    /// told that it missed nothing.
    pub fn resume(&self, lost_nothing: bool) {
        let _publishing = self.publishing.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.lock().resume(lost_nothing);
        self.shared.interrupted.store(false, Ordering::Release);
    }

    /// Whether messages may be getting lost at this moment.
    pub fn is_interrupted(&self) -> bool {
        self.shared.interrupted.load(Ordering::Acquire)
    }

    /// Drops what the log need not keep any longer; for quiet times, as publishing does so too.
    pub fn expire(&self, now: Instant) {
        self.wake(self.shared.expire(now));
    }

    /// Whether all that was published has been handed to its subscribers.
    pub fn is_delivered(&self) -> bool {
        let head = self.shared.lock().head();
        let behind = self.shared.behind(head);
        self.wake(behind);
        behind == 0
    }

    /// Gives a part of the subscribers, about one in `of`, what `encode` makes of the offset that each has been served up
    /// to; all of them when called with every `part` from 0 to `of` - 1.
    pub fn remind(&self, part: usize, of: usize, now: Instant, encode: fn(&str) -> S::Message) {
        for shard in &self.shards {
            shard.send(Command::Remind { part, of: of.max(1), now, encode });
        }
    }

    /// Subscribes to `rooms`. `welcome` is called in the shard's thread before anything live is delivered; it must
    /// not block. The subscriber stays until the membership is dropped. Commands for shards are bounded only as far as
    /// the caller bounds the newcomers that have not been welcomed.
    pub fn join(
        &self,
        subscriber: S,
        rooms: Rooms,
        since: Since,
        now: Instant,
        welcome: impl FnOnce(Joined<S::Message>) + Send + 'static,
    ) -> Membership<S> {
        let number = self.next_member.fetch_add(1, Ordering::Relaxed);
        let id = MemberId(number);
        #[expect(clippy::cast_possible_truncation, reason = "only the remainder matters")]
        let shard = Arc::clone(&self.shards[number as usize % self.shards.len()]);
        shard.send(Command::Join { id, subscriber, rooms, since, now, welcome: Box::new(welcome) });
        self.members.fetch_add(1, Ordering::Relaxed);
        Membership { shard, id, members: Arc::clone(&self.members) }
    }

    /// The offset in `text`, if it is one of this hub or another with the same key.
    pub fn open_offset(&self, text: &str) -> Option<Offset> {
        self.shared.key.open(text)
    }

    /// The offset as text.
    pub fn seal_offset(&self, offset: &Offset) -> String {
        self.shared.key.seal(offset)
    }

    /// Subscribers at the moment.
    pub fn members(&self) -> usize {
        self.members.load(Ordering::Relaxed)
    }

    /// Bytes that the recovery log holds.
    pub fn log_bytes(&self) -> usize {
        self.shared.lock().bytes()
    }

    fn wake(&self, mut shards: ShardSet) {
        while shards != 0 {
            if let Some(shard) = self.shards.get(shards.trailing_zeros() as usize) {
                shard.thread.unpark();
            }
            shards &= shards - 1;
        }
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
    /// Changes the rooms. Of rooms it did not have, the subscriber gets all that came after where it, or for
    /// [`Rooms::gained`] its session, began to be served.
    pub fn set_rooms(&self, rooms: Rooms) {
        self.shard.send(Command::SetRooms { id: self.id, rooms });
    }
}

impl<S: Subscriber> Drop for Membership<S> {
    fn drop(&mut self) {
        self.shard.send(Command::Leave { id: self.id });
        self.members.fetch_sub(1, Ordering::Relaxed);
    }
}
