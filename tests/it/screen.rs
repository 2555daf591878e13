//! A subscriber that writes down what it gets, for the tests of the hub.

use std::{
    sync::{Arc, LazyLock, Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

use loomio_channels::hub::{
    Bounds, Clock, Epoch, Hub, Joined, Membership, Message, Offset, OffsetKey, Options, Rooms, Since, Subscriber,
};

/// After this time a shard hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until `condition` holds, at most for [`PATIENCE`].
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let limit = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < limit, "waited {PATIENCE:?} until {what}");
        thread::yield_now();
    }
}

/// A message that knows its own place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Note {
    pub(crate) offset: Offset,
    pub(crate) weight: usize,
}

impl Message for Note {
    fn weight(&self) -> usize {
        self.weight
    }
}

/// What one connection has got.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) got: Vec<Offset>,
    /// The hub cut it.
    pub(crate) lagged: bool,
    /// The test cut it; what comes now does not arrive.
    pub(crate) cut: bool,
}

#[derive(Default)]
pub(crate) struct Screen(Arc<Mutex<Seen>>);

impl Subscriber for Screen {
    type Message = Note;

    fn deliver(&self, notes: &[&Note]) {
        let mut seen = self.0.lock().unwrap();
        if !seen.lagged && !seen.cut {
            seen.got.extend(notes.iter().map(|note| note.offset));
        }
    }

    fn lagged(&self) {
        self.0.lock().unwrap().lagged = true;
    }
}

/// A hub of this epoch that is not interrupted.
pub(crate) fn hub<S: Subscriber>(epoch: Epoch, bounds: Bounds, shards: usize) -> Hub<S> {
    let clock = Clock { at: Instant::now(), unix: 1_700_000_000 };
    let options = Options { epoch, key: OffsetKey::new(&[7; 32]), bounds, shards, clock };
    let hub = Hub::start(options, || ()).unwrap();
    hub.resume(true);
    hub
}

/// A membership, what it gets, and how it started.
pub(crate) type Joining = (Membership<Screen>, Arc<Mutex<Seen>>, Joined<Note>);

/// Joins and waits for the welcome.
pub(crate) fn join(hub: &Hub<Screen>, rooms: Rooms, since: Since) -> Joining {
    let (membership, seen, welcome) = ask_to_join(hub, rooms, since);
    (membership, seen, welcome.recv_timeout(PATIENCE).unwrap())
}

/// Joins; the welcome will come through the channel.
pub(crate) fn ask_to_join(
    hub: &Hub<Screen>,
    rooms: Rooms,
    since: Since,
) -> (Membership<Screen>, Arc<Mutex<Seen>>, mpsc::Receiver<Joined<Note>>) {
    let screen = Screen::default();
    let seen = Arc::clone(&screen.0);
    let (sender, receiver) = mpsc::channel();
    // A subscriber that was cut meanwhile no longer waits for the welcome.
    let membership = hub.join(screen, rooms, since, Instant::now(), move |joined| drop(sender.send(joined)));
    (membership, seen, receiver)
}

/// Waits until all `shards` have done what they were told so far. Nothing else may join meanwhile: newcomers go from shard
/// to shard in turn.
pub(crate) fn obeyed(hub: &Hub<Screen>, shards: usize) {
    let guests: Vec<_> = (0..shards).map(|_| ask_to_join(hub, Rooms::default(), Since::Now)).collect();
    for (_, _, welcome) in &guests {
        welcome.recv_timeout(PATIENCE).unwrap();
    }
}

/// Waits until a subscriber has got `count` messages, or the hub cut it.
pub(crate) fn served(seen: &Mutex<Seen>, count: usize) {
    until(&format!("{count} messages have come"), || {
        let seen = seen.lock().unwrap();
        seen.got.len() >= count || seen.lagged
    });
}

pub(crate) fn room(number: usize) -> String {
    format!("group-{number}")
}

/// What the log counts for a message besides its weight.
pub(crate) fn overhead() -> usize {
    static OVERHEAD: LazyLock<usize> = LazyLock::new(|| {
        let bounds = Bounds { window: Duration::MAX, bytes: usize::MAX, undelivered: 0, replay: 0 };
        let hub = hub::<Screen>(Epoch::new(0), bounds, 1);
        hub.publish("a", b"", Instant::now(), |&offset, _| Note { offset, weight: 0 });
        hub.log_bytes()
    });
    *OVERHEAD
}

/// Everything published, in order: sequence and room.
pub(crate) type Published = Vec<(u64, usize)>;

/// Publishes as fast as it goes while `more` says so of what was published, to rooms `0..rooms` in a fixed disorder.
pub(crate) fn publish(hub: &Hub<Screen>, rooms: usize, more: impl Fn(&Published) -> bool) -> Published {
    let mut published = Vec::new();
    let mut state = 1_u64;
    while more(&published) {
        // The generator of Knuth's MMIX.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let number = usize::try_from(state >> 33).unwrap() % rooms;
        hub.publish(&room(number), &state.to_be_bytes(), Instant::now(), |&offset, _| {
            published.push((offset.sequence, number));
            Note { offset, weight: 100 }
        });
    }
    published
}
