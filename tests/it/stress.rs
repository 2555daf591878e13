//! The hub while everything happens at once: one thread publishes as fast as it can, others join, are cut and come back.

use bytes::Bytes;
use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use loomio_channels::hub::{Epoch, Event, Hub, Kind, LogBounds, Offset, Return, Rooms, Shards, Since, Subscriber};

use crate::screen::{self, Published, Seen, ask_to_join, join, publish, room, served, until};

const ROOMS: usize = 5;
const SHARDS: usize = 3;
const BROWSERS: usize = 4;
/// So many connections there are at least, and so many messages for each of them.
const CONNECTIONS: usize = 200;
const MESSAGES: usize = 300;
/// A connection lasts for fewer messages than this. Of those meant for one connection, a single room surely has more.
const STAY: usize = 20;

fn hub(bytes: usize) -> (Hub, Shards) {
    screen::hub(Epoch(7), bounds(bytes, 0), SHARDS)
}

fn bounds(bytes: usize, undelivered: usize) -> LogBounds {
    LogBounds { window: Duration::from_mins(10), bytes, undelivered, replay: usize::MAX }
}

/// What one browser got through all its connections.
#[derive(Default)]
struct Diary {
    rooms: BTreeSet<usize>,
    /// Up to where it was served when it first joined.
    start: u64,
    got: Vec<u64>,
    /// Sequences after which it was told that something is gone.
    told: BTreeSet<u64>,
    connections: usize,
    lagged: usize,
}

impl Diary {
    fn last(&self) -> u64 {
        self.got.last().copied().unwrap_or(self.start)
    }

    /// Joins, is cut, and comes back with the last offset until `done`, and then once more until it has everything.
    fn live(&mut self, hub: &Hub, done: &AtomicBool, connections: &AtomicUsize) {
        let (mut started, mut last) = (None::<Offset>, None::<Offset>);
        let rooms = Rooms::all(self.rooms.iter().copied().map(room).collect());
        loop {
            let ends = done.load(Ordering::Acquire);
            let since = started.map_or(Since::Now, |_| Since::Return(Return { started, served: last }));
            if self.connections % 7 == 6 && !ends {
                // Gone again before the welcome.
                drop(ask_to_join(hub, rooms.clone(), since));
            }
            let (membership, seen, joined) = join(hub, rooms.clone(), since);
            self.connections += 1;
            connections.fetch_add(1, Ordering::Relaxed);
            if last.is_none() {
                (self.start, last) = (joined.at.sequence, Some(joined.at));
            }
            if !joined.complete {
                self.told.insert(self.last());
                // It is given what is left and goes on as a new session from there.
                last = Some(joined.at);
            }
            if started.is_none() || !joined.complete {
                started = Some(joined.at);
            }
            self.got.extend(joined.missed.iter().map(|event| event.offset.sequence));
            last = joined.missed.last().map(|event| event.offset).or(last);
            // In the end nothing is published any more, so that what it missed is all there is.
            if !ends {
                stay(&seen, self.connections * 37 % STAY, done);
            }
            let mut seen = seen.lock().unwrap();
            seen.cut = true;
            drop(membership);
            self.got.extend(seen.got.iter().map(|offset| offset.sequence));
            last = seen.got.last().copied().or(last);
            self.lagged += usize::from(seen.lagged);
            if ends && !seen.lagged {
                return;
            }
        }
    }

    /// Between two messages it got nothing is missing, unless it was told so there.
    fn check(&self, published: &Published) {
        assert!(self.got.is_sorted_by(|one, next| one < next), "something came twice or out of order");
        let mut got = self.got.iter().copied().peekable();
        let mut before = self.start;
        for &(sequence, room) in published {
            if sequence <= self.start || !self.rooms.contains(&room) {
                continue;
            }
            if got.next_if_eq(&sequence).is_some() {
                before = sequence;
            } else {
                assert!(
                    self.told.contains(&before),
                    "{sequence} is missing after {before}, and the browser was not told"
                );
            }
        }
        assert_eq!(got.next(), None, "something came that was never published for these rooms");
    }
}

/// Publishes at full speed, a fixed number for each of the `wanted` connections: never so much more than can be
/// delivered that the end of the test is not to be seen.
fn publish_for(hub: &Hub, connections: &AtomicUsize, wanted: usize) -> Published {
    publish(hub, ROOMS, |published| {
        let allowed = || connections.load(Ordering::Relaxed).saturating_add(1) * MESSAGES;
        until("another connection has come", || published.len() < allowed());
        published.len() < wanted * MESSAGES
    })
}

/// Stays until `count` messages came, the hub cut it, or all is `done`.
fn stay(seen: &Mutex<Seen>, count: usize, done: &AtomicBool) {
    until("messages have come", || {
        let seen = seen.lock().unwrap();
        seen.got.len() >= count || seen.lagged || done.load(Ordering::Acquire)
    });
}

fn live_through(hub: &Hub) -> (Published, Vec<Diary>) {
    let (done, connections) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut diaries: Vec<Diary> = Vec::new();
    let mut published = Published::new();
    thread::scope(|scope| {
        let browsers: Vec<_> = (0..BROWSERS)
            .map(|number| {
                let (done, connections) = (&done, &connections);
                scope.spawn(move || {
                    let mut diary = Diary { rooms: (0..=number % ROOMS).collect(), ..Diary::default() };
                    diary.live(hub, done, connections);
                    diary
                })
            })
            .collect();
        published = publish_for(hub, &connections, CONNECTIONS);
        done.store(true, Ordering::Release);
        diaries = browsers.into_iter().map(|browser| browser.join().unwrap()).collect();
    });
    (published, diaries)
}

#[test]
fn all_arrive_once_and_in_order() {
    let (hub, _shards) = hub(1 << 30);
    let (published, diaries) = live_through(&hub);
    for diary in &diaries {
        diary.check(&published);
        assert_eq!((diary.told.len(), diary.lagged), (0, 0), "the log has room for everything");
    }
}

#[test]
fn with_a_short_log_every_hole_is_told() {
    let (hub, _shards) = hub(40 * (screen::PAYLOAD + screen::overhead()));
    let (published, diaries) = live_through(&hub);
    for diary in &diaries {
        diary.check(&published);
    }
    assert!(diaries.iter().any(|diary| !diary.told.is_empty()), "nothing was lost, so nothing was tested");
}

#[test]
fn the_live_queue_is_longer_than_a_short_log() {
    let (hub, _shards) = screen::hub(Epoch(7), bounds(1, 1 << 30), SHARDS);
    let readers: Vec<_> = (0..BROWSERS).map(|_| join(&hub, Rooms::all(vec![room(0)]), Since::Now)).collect();
    let published = publish(&hub, ROOMS, |published| published.len() < 20_000);
    let owed = published.iter().filter(|(_, room)| *room == 0).count();
    for (_membership, seen, _) in &readers {
        served(seen, owed);
        assert!(!seen.lock().unwrap().lagged);
    }
    until("what was delivered is gone", || {
        hub.expire(Instant::now());
        hub.log_bytes() <= 1_000
    });
}

#[test]
fn rooms_that_are_given_late_bring_everything_since_the_join() {
    const LATE: usize = 100;
    let (hub, _shards) = hub(1 << 30);
    let (done, count) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let rails = scope.spawn(|| {
            let published = publish_for(&hub, &count, LATE);
            done.store(true, Ordering::Release);
            published
        });
        let mut connections = Vec::new();
        while connections.len() < LATE {
            let (membership, seen, joined) = join(&hub, Rooms::all(vec![room(0)]), Since::Now);
            count.fetch_add(1, Ordering::Relaxed);
            stay(&seen, connections.len() * 53 % STAY, &done);
            membership.set_rooms(Rooms { had: vec![room(2), room(0)], gained: vec![room(1)] }, Instant::now());
            connections.push((membership, seen, joined.at.sequence));
        }
        let published = rails.join().unwrap();
        for (_membership, seen, start) in &connections {
            let owed = published.iter().filter(|(sequence, room)| sequence > start && *room < 3);
            let owed: Vec<u64> = owed.map(|(sequence, _)| *sequence).collect();
            served(seen, owed.len());
            let mut got: Vec<u64> = seen.lock().unwrap().got.iter().map(|offset| offset.sequence).collect();
            got.sort_unstable();
            assert!(got == owed, "after {start}");
        }
    });
}

/// A subscriber that takes its time: while it is given a message, more come.
struct Slow(Arc<Overload>);

#[derive(Default)]
struct Overload {
    published: AtomicUsize,
    over: AtomicBool,
}

impl Subscriber for Slow {
    fn deliver(&self, _: &[&Event]) {
        let enough = self.0.published.load(Ordering::Acquire) + 10;
        while self.0.published.load(Ordering::Acquire) < enough && !self.0.over.load(Ordering::Acquire) {
            thread::yield_now();
        }
    }

    fn remind(&self, _: &str) {}

    fn lagged(&self) {}
}

#[test]
fn newcomers_are_welcomed_while_more_comes_than_can_be_delivered() {
    let (hub, _shards) = screen::hub(Epoch(7), bounds(1 << 30, 0), 1);
    let overload = Arc::new(Overload::default());
    let (sender, welcome) = mpsc::channel();
    thread::scope(|scope| {
        let slow = || Slow(Arc::clone(&overload));
        let _slow = hub.join(slow(), Rooms::all(vec![room(0)]), Since::Now, Instant::now(), |_| {});
        scope.spawn(|| {
            while !overload.over.load(Ordering::Acquire) {
                hub.publish(Kind::Records, &room(0), Bytes::from_static(b""), Instant::now());
                overload.published.fetch_add(1, Ordering::AcqRel);
            }
        });
        while overload.published.load(Ordering::Acquire) < 1_000 {
            thread::yield_now();
        }
        let welcomed = move |_| sender.send(()).unwrap_or_default();
        let joining = hub.join(slow(), Rooms::all(vec![room(1)]), Since::Now, Instant::now(), welcomed);
        // As long as the overload lasts.
        let welcomed = welcome.recv_timeout(screen::PATIENCE);
        overload.over.store(true, Ordering::Release);
        drop(joining);
        assert!(welcomed.is_ok(), "not welcomed within {:?}", screen::PATIENCE);
    });
}
