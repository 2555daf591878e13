//! The hub against a model of it: in any order of events every subscriber gets what it is owed, once and in order,
//! or is told that something is gone.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, Weak},
    time::{Duration, Instant},
};

use loomio_channels::hub::{Epoch, Hub, Joined, Kind, LogBounds, Membership, Offset, Return, Rooms, Shards, Since};
use proptest::prelude::*;

use self::steps::{BROWSERS, Step, With, steps};
use crate::screen::{self, Seen, obeyed, room, served};

mod steps;

const EPOCH: u32 = 7;
const WINDOW: Duration = Duration::from_mins(1);

/// The log as it should be: the last messages within both bounds.
struct Log {
    bounds: LogBounds,
    /// Every message ever, by sequence, with room, time and weight; `None` for a gap.
    all: Vec<Option<(usize, Instant, usize)>>,
    /// How many of them are gone.
    gone: usize,
    gap: u64,
}

impl Log {
    fn push(&mut self, room: usize, weight: usize, now: Instant) {
        self.all.push(Some((room, now, weight + screen::overhead())));
        self.expire(now);
    }

    fn note_gap(&mut self) {
        self.all.push(None);
        self.gap = self.head();
    }

    fn expire(&mut self, now: Instant) {
        while self.all.len() - self.gone > 1 {
            let outdated = self.all[self.gone].is_none_or(|(_, at, _)| now - at > self.bounds.window);
            if !outdated && self.bytes() <= self.bounds.bytes {
                return;
            }
            self.gone += 1;
        }
    }

    fn bytes(&self) -> usize {
        self.all[self.gone..].iter().flatten().map(|(_, _, weight)| weight).sum()
    }

    fn head(&self) -> u64 {
        self.all.len() as u64
    }

    /// Sequences after `since` in `rooms`: those that are gone, and those that are kept.
    fn after(&self, rooms: &BTreeSet<usize>, since: u64) -> (Vec<u64>, Vec<u64>) {
        let messages = self.all.iter().zip(1..).filter_map(|(message, sequence)| Some((message.as_ref()?.0, sequence)));
        let wanted = messages.filter(|(room, sequence)| *sequence > since && rooms.contains(room));
        wanted.map(|(_, sequence)| sequence).partition(|sequence| *sequence <= self.gone as u64)
    }
}

/// One browser through all its connections.
#[derive(Default)]
struct Browser {
    connection: Option<Connection>,
    rooms: BTreeSet<usize>,
    /// Where its session began.
    started: Option<Offset>,
    last: Option<Offset>,
}

struct Connection {
    seen: Arc<Mutex<Seen>>,
    /// Given up on `Drop`.
    membership: Membership,
    /// From where it was served its rooms, and those that its session gained.
    bases: (u64, u64),
    /// Whether it was told that it missed nothing.
    complete: bool,
    /// Rooms it has had since it joined.
    had: BTreeSet<usize>,
    owed: Vec<u64>,
}

impl Connection {
    /// What it got is what it was owed, as far as it goes; all of it once the shards are `settled`. A subscriber
    /// that lags has less, and no other.
    fn check(&self, settled: bool) {
        let seen = self.seen();
        let got: Vec<u64> = seen.got.iter().map(|offset| offset.sequence).collect();
        assert!(self.owed.starts_with(&got), "got {got:?}, was owed {:?}", self.owed);
        if settled || seen.lagged {
            assert_eq!(seen.lagged, got.len() < self.owed.len(), "got {got:?} of {:?}", self.owed);
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap()
    }
}

struct World {
    hub: Hub,
    /// Stops them on `Drop`.
    _threads: Shards,
    shards: usize,
    log: Log,
    browsers: [Browser; BROWSERS],
    /// What each connection has got, as long as it or its shard keeps that.
    connections: Vec<Weak<Mutex<Seen>>>,
    now: Instant,
}

impl World {
    fn new(shards: usize, bytes: usize, replay: usize) -> Self {
        let bounds = LogBounds { window: WINDOW, bytes, undelivered: 0, replay };
        let (hub, threads) = screen::hub(Epoch(EPOCH), bounds, shards);
        Self {
            hub,
            _threads: threads,
            shards,
            log: Log { bounds, all: Vec::new(), gone: 0, gap: 0 },
            browsers: Default::default(),
            connections: Vec::new(),
            now: Instant::now(),
        }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Publish { room, weight } => self.publish(room, weight),
            Step::Burst { room, count } => (0..count).for_each(|_| self.publish(room, 10)),
            Step::Join { who, rooms } => {
                self.cut(who);
                self.browsers[who].rooms = rooms.iter().copied().collect();
                self.join(who, &BTreeSet::new(), Since::Now);
            }
            Step::Cut { who } => self.cut(who),
            Step::Resume { who, with, gains } => {
                self.cut(who);
                let gains: BTreeSet<usize> = gains.into_iter().collect();
                let gains = &gains - &self.browsers[who].rooms;
                self.join(who, &gains, self.since(who, with));
            }
            Step::SetRooms { who, rooms, gained } => self.set_rooms(who, rooms, gained),
            Step::Gap { lost_nothing } => {
                self.hub.interrupt();
                assert!(self.hub.is_interrupted());
                self.hub.resume(lost_nothing);
                if !lost_nothing {
                    self.log.note_gap();
                }
            }
            Step::Pass { seconds } => {
                self.now += Duration::from_secs(seconds);
                self.hub.expire(self.now);
                self.log.expire(self.now);
            }
            Step::Settle => self.settle(),
        }
        // What is too old is dropped once the shards have seen it.
        screen::until("the log has expired", || {
            let expired = self.hub.log_bytes() == self.log.bytes();
            if !expired {
                self.hub.expire(self.now);
            }
            expired
        });
    }

    fn publish(&mut self, name: usize, weight: usize) {
        self.log.push(name, weight, self.now);
        let head = self.log.head();
        let offset = self.hub.publish(Kind::Records, &room(name), vec![b'x'; weight].into(), self.now);
        assert_eq!(offset.sequence, head);
        let connections = self.browsers.iter_mut().filter(|browser| browser.rooms.contains(&name));
        connections.filter_map(|browser| browser.connection.as_mut()).for_each(|connection| connection.owed.push(head));
    }

    fn cut(&mut self, who: usize) {
        let browser = &mut self.browsers[who];
        if let Some(connection) = browser.connection.take() {
            connection.check(false);
            let mut seen = connection.seen();
            seen.cut = true;
            browser.last = seen.got.last().copied().or(browser.last);
        }
    }

    fn since(&self, who: usize, with: With) -> Since {
        let Browser { started, last: served, .. } = self.browsers[who];
        let (Some(began), Some(last)) = (started, served) else { return Since::Return(Return::default()) };
        let (fingerprint, gap) = (!began.fingerprint, began.gap + 1_000);
        let elsewhere = Some(Offset { epoch: Epoch(EPOCH + 1), fingerprint, gap, ..began });
        let future = Some(Offset { sequence: self.log.head() + 1, ..last });
        Since::Return(match with {
            With::Last => Return { started, served },
            With::NoOffset => Return { started, served: None },
            With::NoSession => Return { started: None, served },
            With::SessionOfAnotherLog => Return { started: elsewhere, served },
            With::OffsetFromTheFuture => Return { started, served: future },
        })
    }

    /// Sequences after `bases` in rooms it had and rooms it gained: those that are gone, and those that are kept. `None`
    /// in place of these when they are too many for one subscriber.
    fn missed(
        &self,
        had: &BTreeSet<usize>,
        gained: &BTreeSet<usize>,
        (served, started): (u64, u64),
    ) -> (Vec<u64>, Option<Vec<u64>>) {
        let ((mut lost, mut kept), more) = (self.log.after(had, served), self.log.after(gained, started));
        lost.extend(more.0);
        kept.extend(more.1);
        kept.sort_unstable();
        let weight = |&sequence: &u64| self.log.all[usize::try_from(sequence).unwrap() - 1].unwrap().2;
        let bytes: usize = kept.iter().map(weight).sum();
        (lost, Some(kept).filter(|_| bytes <= self.log.bounds.replay))
    }

    /// Joins and holds what it is told against the model. Nothing is published meanwhile, so that is known.
    fn join(&mut self, who: usize, gained: &BTreeSet<usize>, since: Since) {
        let rooms_had = self.browsers[who].rooms.clone();
        let names = |rooms: &BTreeSet<usize>| rooms.iter().copied().map(room).collect();
        let rooms = Rooms { had: names(&rooms_had), gained: names(gained) };
        let (membership, seen, joined) = screen::join(&self.hub, rooms, since);
        self.connections.push(Arc::downgrade(&seen));
        let Joined { at, missed, complete } = joined;
        let end = self.log.head();
        assert_eq!(at.sequence, end);
        let missed: Vec<u64> = missed.iter().map(|event| event.offset.sequence).collect();
        let known = |offset: Option<Offset>| {
            let own = offset.filter(|offset| offset.epoch == Epoch(EPOCH) && offset.sequence <= end);
            own.map(|offset| offset.sequence)
        };
        let (started, served) = match since {
            Since::Now => (Some(end), end),
            Since::Return(Return { started, served }) => {
                (known(started), known(served).max(known(started)).unwrap_or(0))
            }
        };
        let mut bases = (served, started.unwrap_or(0));
        let (lost, kept) = self.missed(&rooms_had, gained, bases);
        assert_eq!(missed, kept.clone().unwrap_or_default(), "after {since:?} in {rooms_had:?} and {gained:?}");
        let whole = started.is_some_and(|started| started >= self.log.gap) && lost.is_empty() && kept.is_some();
        assert_eq!(complete, whole, "after {since:?} in {rooms_had:?} and {gained:?}, lost {lost:?}");
        if kept.is_none() {
            bases = (end, end);
        }
        let browser = &mut self.browsers[who];
        browser.rooms.extend(gained);
        browser.last = Some(at);
        if since == Since::Now || !complete {
            browser.started = Some(at);
        }
        let had = browser.rooms.clone();
        browser.connection = Some(Connection { seen, membership, bases, complete, had, owed: Vec::new() });
    }

    /// What came for new rooms since the subscriber or its session began to be served follows; when some of that is gone
    /// or it is too much, it is cut. A room that it had before is not given back: what it would get of that is not
    /// promised.
    fn set_rooms(&mut self, who: usize, rooms: Vec<usize>, gained: bool) {
        self.settle();
        let browser = &self.browsers[who];
        let Some(connection) = browser.connection.as_ref() else { return };
        let allowed = |room: &usize| browser.rooms.contains(room) || !connection.had.contains(room);
        let rooms: BTreeSet<usize> = rooms.into_iter().filter(allowed).collect();
        let new = &rooms - &browser.rooms;
        let (same, none) = (&rooms & &browser.rooms, BTreeSet::new());
        let (had, gained) = if gained { (&none, &new) } else { (&new, &none) };
        let (lost, kept) = self.missed(had, gained, connection.bases);
        let names = |rooms: &BTreeSet<usize>| rooms.iter().copied().map(room).collect();
        let connection = self.browsers[who].connection.as_mut().unwrap();
        connection.membership.set_rooms(Rooms { had: names(&(&same | had)), gained: names(gained) }, self.now);
        // A subscriber that was told of a loss is not cut for another.
        connection.owed.extend(match kept {
            Some(kept) if connection.complete => [lost, kept].concat(),
            Some(kept) => kept,
            // It gets none of it, whatever it is.
            None if connection.complete => vec![u64::MAX],
            None => Vec::new(),
        });
        connection.had.extend(&new);
        self.browsers[who].rooms = rooms;
        self.settle();
    }

    /// Afterwards no subscriber that lags is connected.
    fn settle(&mut self) {
        obeyed(&self.hub, self.shards);
        for who in 0..BROWSERS {
            let Some(connection) = &self.browsers[who].connection else { continue };
            served(&connection.seen, connection.owed.len());
            connection.check(true);
            let lagged = connection.seen().lagged;
            if lagged {
                self.cut(who);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        max_shrink_time: 60_000,
        ..ProptestConfig::default()
    })]

    #[test]
    fn everyone_gets_what_it_is_owed(
        steps in steps(),
        shards in 1..4_usize,
        bytes in prop_oneof![Just(1_usize), 1_000..20_000_usize, Just(1 << 20)],
        replay in prop_oneof![1 => Just(0_usize), 2 => 1_000..20_000_usize, 2 => Just(usize::MAX)],
    ) {
        let mut world = World::new(shards, bytes, replay);
        for step in steps {
            world.take(step);
        }
        world.settle();
        (0..BROWSERS).for_each(|who| world.cut(who));
        obeyed(&world.hub, shards);
        prop_assert!(world.connections.iter().all(|seen| seen.strong_count() == 0), "a shard keeps who has left");
    }
}

#[test]
fn a_subscriber_that_gets_rooms_late_and_cannot_get_all_of_them_is_cut() {
    let mut world = World::new(1, 1_000, usize::MAX);
    world.take(Step::Join { who: 0, rooms: vec![0] });
    (0..100).for_each(|_| world.publish(1, 10));
    world.take(Step::SetRooms { who: 0, rooms: vec![0, 1], gained: true });
}
