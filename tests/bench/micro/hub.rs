//! Rooms and recovery without a network: appending to the log, joining, resuming, fan-out in one shard.
//!
//! Growth shows by comparing the arguments: appending and resuming must not depend on how long the log is, nor fan-out
//! per member on how many members there are.

#![expect(clippy::expect_used, reason = "a benchmark has nobody to tell")]

use bytes::Bytes;
use std::{
    hint,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use divan::{Bencher, counter::ItemsCount};
use loomio_channels::hub::{
    Clock, Epoch, Event, Hub, HubOptions, Joined, Kind, LogBounds, Membership, Offset, OffsetKey, Return, Rooms,
    Shards, Since, Subscriber,
};

fn main() {
    divan::main();
}

/// Rooms that messages are spread over.
const ROOMS: usize = 100;

/// Messages a returning subscriber has missed in its room.
const MISSED: u64 = 10;

const PAYLOAD: [u8; 1_000] = [b'x'; 1_000];

/// Counts what it gets.
#[derive(Clone, Default)]
struct Count(Arc<AtomicUsize>);

impl Subscriber for Count {
    fn deliver(&self, events: &[&Event]) {
        self.0.fetch_add(events.len(), Ordering::Release);
    }

    fn remind(&self, _: &str) {}

    fn lagged(&self) {}
}

/// A hub of one shard whose log holds about `messages` messages, at most.
fn hub(messages: usize) -> (Hub, Shards) {
    let bounds =
        LogBounds { window: Duration::from_mins(30), bytes: messages * 1_320, undelivered: 0, replay: usize::MAX };
    let clock = Clock { at: Instant::now(), unix: 1_700_000_000 };
    let options = HubOptions { epoch: Epoch(1), key: OffsetKey::new(&[7; 32]), bounds, shards: 1, clock, notice: None };
    let (hub, shards) = Hub::start(options, || ()).expect("a thread");
    hub.resume(true);
    (hub, shards)
}

fn room(number: usize) -> String {
    format!("group-{number}")
}

/// Publishes to `messages` rooms in turn.
fn fill(hub: &Hub, messages: usize) {
    let now = Instant::now();
    for message in 0..messages {
        hub.publish(Kind::Records, &room(message % ROOMS), Bytes::from_static(&PAYLOAD), now);
    }
}

/// Joins and waits until the shard has let it in.
fn join(hub: &Hub, count: &Count, rooms: Rooms, since: Since) -> (Membership, Joined) {
    let (sender, receiver) = mpsc::sync_channel(1);
    let member = hub.join(count.clone(), rooms, since, Instant::now(), move |joined| {
        let _ = sender.send(joined);
    });
    (member, receiver.recv().expect("a welcome"))
}

/// A full log: every message pushes another one out.
#[divan::bench(args = [1_000, 10_000, 100_000])]
fn append(bencher: Bencher<'_, '_>, log: usize) {
    let (hub, _shards) = hub(log);
    fill(&hub, log);
    let (now, names) = (Instant::now(), (0..ROOMS).map(room).collect::<Vec<_>>());
    let mut message = 0;
    bencher.counter(ItemsCount::new(1_usize)).bench_local(|| {
        message += 1;
        hub.publish(Kind::Records, &names[message % ROOMS], Bytes::from_static(&PAYLOAD), now);
    });
}

#[divan::bench(args = [1, 10, 100, 400])]
fn join_and_leave(bencher: Bencher<'_, '_>, rooms: usize) {
    let ((hub, _shards), count) = (hub(1_000), Count::default());
    let rooms = Rooms::all((0..rooms).map(room).collect());
    bencher.with_inputs(|| rooms.clone()).bench_local_values(|rooms| join(&hub, &count, rooms, Since::Now));
}

/// A subscriber returns and gets what it missed, out of a log of this length.
#[divan::bench(args = [2_000, 10_000, 100_000])]
fn resume(bencher: Bencher<'_, '_>, log: usize) {
    let ((hub, _shards), count) = (hub(2 * log), Count::default());
    fill(&hub, log);
    let (_, joined) = join(&hub, &count, Rooms::default(), Since::Now);
    let since = Offset { sequence: joined.at.sequence - MISSED * ROOMS as u64, ..joined.at };
    bencher.bench_local(|| {
        let since = Since::Return(Return { started: Some(since), served: Some(since) });
        let (_member, joined) = join(&hub, &count, Rooms::all(vec![room(7)]), since);
        assert!(joined.complete && joined.missed.len() as u64 == MISSED);
    });
}

/// One message to all members of a room in one shard, until the last has it.
#[divan::bench(args = [1, 100, 1_000, 4_000, 16_000])]
fn fan_out(bencher: Bencher<'_, '_>, members: usize) {
    let ((hub, _shards), count) = (hub(1_000), Count::default());
    let _members: Vec<_> = (0..members).map(|_| join(&hub, &count, Rooms::all(vec![room(1)]), Since::Now).0).collect();
    let now = Instant::now();
    bencher.counter(ItemsCount::new(members)).bench_local(|| {
        let due = count.0.load(Ordering::Acquire) + members;
        hub.publish(Kind::Records, "group-1", Bytes::from_static(&PAYLOAD), now);
        while count.0.load(Ordering::Acquire) < due {
            hint::spin_loop();
        }
    });
}

/// A burst of 60 messages, as above.
#[divan::bench(args = [1_000, 4_000])]
fn fan_out_burst(bencher: Bencher<'_, '_>, members: usize) {
    const BURST: usize = 60;
    let ((hub, _shards), count) = (hub(1_000), Count::default());
    let _members: Vec<_> = (0..members).map(|_| join(&hub, &count, Rooms::all(vec![room(1)]), Since::Now).0).collect();
    let now = Instant::now();
    bencher.counter(ItemsCount::new(members * BURST)).bench_local(|| {
        let due = count.0.load(Ordering::Acquire) + members * BURST;
        for _ in 0..BURST {
            hub.publish(Kind::Records, "group-1", Bytes::from_static(&PAYLOAD), now);
        }
        while count.0.load(Ordering::Acquire) < due {
            hint::spin_loop();
        }
    });
}
