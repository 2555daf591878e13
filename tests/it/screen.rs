//! A subscriber that writes down what it gets, for the tests of the hub.

use bytes::Bytes;
use std::{
    sync::{Arc, LazyLock, Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

use loomio_channels::hub::{
    Clock, Epoch, Event, Hub, HubOptions, Joined, Kind, LogBounds, Membership, Offset, OffsetKey, Rooms, Shards, Since,
    Subscriber,
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
    fn deliver(&self, events: &[&Event]) {
        let mut seen = self.0.lock().unwrap();
        if !seen.lagged && !seen.cut {
            seen.got.extend(events.iter().map(|event| event.offset));
        }
    }

    fn remind(&self, _: &str) {}

    fn lagged(&self) {
        self.0.lock().unwrap().lagged = true;
    }
}

/// A hub of this epoch that is not interrupted.
pub(crate) fn hub(epoch: Epoch, bounds: LogBounds, shards: usize) -> (Hub, Shards) {
    let clock = Clock { at: Instant::now(), unix: 1_700_000_000 };
    let options = HubOptions { epoch, key: OffsetKey::new(&[7; 32]), bounds, shards, clock, notice: None };
    let (hub, shards) = Hub::start(options, || ()).unwrap();
    hub.resume(true);
    (hub, shards)
}

/// A membership, what it gets, and how it started.
pub(crate) type Joining = (Membership, Arc<Mutex<Seen>>, Joined);

/// Joins and waits for the welcome.
pub(crate) fn join(hub: &Hub, rooms: Rooms, since: Since) -> Joining {
    let (membership, seen, welcome) = ask_to_join(hub, rooms, since);
    (membership, seen, welcome.recv_timeout(PATIENCE).unwrap())
}

/// Joins; the welcome will come through the channel.
pub(crate) fn ask_to_join(
    hub: &Hub,
    rooms: Rooms,
    since: Since,
) -> (Membership, Arc<Mutex<Seen>>, mpsc::Receiver<Joined>) {
    let screen = Screen::default();
    let seen = Arc::clone(&screen.0);
    let (sender, receiver) = mpsc::channel();
    // A subscriber that was cut meanwhile no longer waits for the welcome.
    let membership = hub.join(screen, rooms, since, Instant::now(), move |joined| drop(sender.send(joined)));
    (membership, seen, receiver)
}

/// Waits until all `shards` have done what they were told so far. Nothing else may join meanwhile: newcomers go from shard
/// to shard in turn.
pub(crate) fn obeyed(hub: &Hub, shards: usize) {
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

/// What the log counts for an event besides its payload.
pub(crate) fn overhead() -> usize {
    static OVERHEAD: LazyLock<usize> = LazyLock::new(|| {
        let bounds = LogBounds { window: Duration::MAX, bytes: usize::MAX, undelivered: 0, replay: 0 };
        let (hub, _shards) = hub(Epoch(0), bounds, 1);
        hub.publish(Kind::Records, "a", Bytes::from_static(b""), Instant::now());
        hub.log_bytes()
    });
    *OVERHEAD
}

/// Bytes of each payload that [`publish`] publishes.
pub(crate) const PAYLOAD: usize = 104;

/// Everything published, in order: sequence and room.
pub(crate) type Published = Vec<(u64, usize)>;

/// Publishes as fast as it goes while `more` says so of what was published, to rooms `0..rooms` in a fixed disorder.
pub(crate) fn publish(hub: &Hub, rooms: usize, more: impl Fn(&Published) -> bool) -> Published {
    let mut published = Vec::new();
    let mut state = 1_u64;
    while more(&published) {
        // The generator of Knuth's MMIX.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let number = usize::try_from(state >> 33).unwrap() % rooms;
        let payload = state.to_be_bytes().repeat(PAYLOAD / 8);
        let offset = hub.publish(Kind::Records, &room(number), payload.clone().into(), Instant::now());
        published.push((offset.sequence, number));
    }
    published
}
