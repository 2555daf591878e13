//! The hub against a model of it: whatever happens in whatever order, everyone gets what it is owed, once and in order,
//! or is told that something is gone.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use loomio_channels::hub::{Bounds, Epoch, Hub, Joined, Membership, Offset, Since};
use proptest::prelude::*;

use crate::screen::{self, Note, Screen, Seen, obeyed, room, served};

const EPOCH: u32 = 7;
const ROOMS: usize = 5;
const BROWSERS: usize = 4;
const WINDOW: Duration = Duration::from_mins(1);

#[derive(Clone, Debug)]
enum Step {
    Publish {
        room: usize,
        weight: usize,
    },
    /// More than a shard reads at a time.
    Burst {
        room: usize,
        count: usize,
    },
    Join {
        who: usize,
        rooms: Vec<usize>,
    },
    Cut {
        who: usize,
    },
    Resume {
        who: usize,
        with: With,
    },
    /// The rooms that the subscriber has from now on.
    SetRooms {
        who: usize,
        rooms: Vec<usize>,
    },
    Gap,
    Pass {
        seconds: u64,
    },
    /// Waits until every shard has done all there is to do.
    Settle,
}

/// What a browser comes back with.
#[derive(Clone, Copy, Debug)]
enum With {
    Last,
    Nothing,
    OfAnotherLog,
    FromTheFuture,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let rooms = || prop::collection::vec(0..ROOMS, 0..ROOMS + 2);
    let who = || 0..BROWSERS;
    let with = prop_oneof![
        6 => Just(With::Last),
        1 => Just(With::Nothing),
        1 => Just(With::OfAnotherLog),
        1 => Just(With::FromTheFuture),
    ];
    let step = prop_oneof![
        12 => (0..ROOMS, 0..3_000_usize).prop_map(|(room, weight)| Step::Publish { room, weight }),
        1 => (0..ROOMS, 1..700_usize).prop_map(|(room, count)| Step::Burst { room, count }),
        5 => (who(), rooms()).prop_map(|(who, rooms)| Step::Join { who, rooms }),
        3 => who().prop_map(|who| Step::Cut { who }),
        6 => (who(), with).prop_map(|(who, with)| Step::Resume { who, with }),
        2 => (who(), rooms()).prop_map(|(who, rooms)| Step::SetRooms { who, rooms }),
        1 => Just(Step::Gap),
        1 => (1..90_u64).prop_map(|seconds| Step::Pass { seconds }),
        3 => Just(Step::Settle),
    ];
    prop::collection::vec(step, 1..80)
}

/// The log as it should be: the last messages within both bounds.
struct Log {
    bounds: Bounds,
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
    last: Option<Offset>,
}

struct Connection {
    seen: Arc<Mutex<Seen>>,
    /// Given up on `Drop`.
    membership: Membership<Screen>,
    /// Where it joined from.
    since: u64,
    /// Whether it was told that it missed nothing.
    complete: bool,
    /// Rooms it has had since it joined.
    had: BTreeSet<usize>,
    owed: Vec<u64>,
}

impl Connection {
    /// What it got is what it was owed, as far as it goes; all of it once the shards are `settled`. Only who lags may
    /// have less, and must have.
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
    hub: Hub<Screen>,
    shards: usize,
    log: Log,
    browsers: [Browser; BROWSERS],
    now: Instant,
}

impl World {
    fn new(shards: usize, bytes: usize) -> Self {
        let bounds = Bounds { window: WINDOW, bytes };
        Self {
            hub: Hub::start(Epoch::new(EPOCH), bounds, shards, || ()).unwrap(),
            shards,
            log: Log { bounds, all: Vec::new(), gone: 0, gap: 0 },
            browsers: Default::default(),
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
                self.join(who, rooms, Since::Now);
            }
            Step::Cut { who } => self.cut(who),
            Step::Resume { who, with } => {
                self.cut(who);
                let rooms = self.browsers[who].rooms.iter().copied().collect();
                self.join(who, rooms, self.since(who, with));
            }
            Step::SetRooms { who, rooms } => self.set_rooms(who, rooms),
            Step::Gap => {
                self.hub.note_gap();
                self.log.note_gap();
            }
            Step::Pass { seconds } => {
                self.now += Duration::from_secs(seconds);
                self.hub.expire(self.now);
                self.log.expire(self.now);
            }
            Step::Settle => self.settle(),
        }
        assert_eq!(self.hub.log_bytes(), self.log.bytes());
    }

    fn publish(&mut self, name: usize, weight: usize) {
        self.log.push(name, weight, self.now);
        let head = self.log.head();
        self.hub.publish(&room(name), head, self.now, |offset| {
            assert_eq!(offset.sequence, head);
            Note { offset: *offset, weight }
        });
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
        let Some(last) = self.browsers[who].last else { return Since::Unknown };
        match with {
            With::Last => Since::Offset(last),
            With::Nothing => Since::Unknown,
            With::OfAnotherLog => Since::Offset(Offset { epoch: Epoch::new(EPOCH + 1), ..last }),
            With::FromTheFuture => Since::Offset(Offset { sequence: self.log.head() + 1, ..last }),
        }
    }

    /// Joins and holds what it is told against the model. Nothing is published meanwhile, so that is known.
    fn join(&mut self, who: usize, rooms: Vec<usize>, since: Since) {
        let browser = &mut self.browsers[who];
        let (membership, seen, joined) = screen::join(&self.hub, rooms.into_iter().map(room).collect(), since);
        let Joined { at, missed, complete } = joined;
        assert_eq!(at.sequence, self.log.head());
        let missed: Vec<u64> = missed.iter().map(|note| note.offset.sequence).collect();
        let known = match since {
            Since::Now => Some(self.log.head()),
            Since::Offset(offset) => Some(offset.sequence)
                .filter(|sequence| offset.epoch == Epoch::new(EPOCH) && *sequence <= self.log.head()),
            Since::Unknown => None,
        };
        let (lost, kept) = self.log.after(&browser.rooms, known.unwrap_or(0));
        assert_eq!(missed, kept, "after {since:?} in {:?}", browser.rooms);
        let whole = known.is_some_and(|since| since >= self.log.gap) && lost.is_empty();
        assert_eq!(complete, whole || since == Since::Now, "after {since:?} in {:?}, lost {lost:?}", browser.rooms);
        browser.last = Some(at);
        let (since, had) = (known.unwrap_or(0), browser.rooms.clone());
        browser.connection = Some(Connection { seen, membership, since, complete, had, owed: Vec::new() });
    }

    /// What came for new rooms after the offset that the subscriber joined with follows; when some of that is gone, it is
    /// cut. A room that it had before is not given back: what it would get of that is not promised.
    fn set_rooms(&mut self, who: usize, rooms: Vec<usize>) {
        self.settle();
        let browser = &mut self.browsers[who];
        let Some(connection) = browser.connection.as_mut() else { return };
        let allowed = |room: &usize| browser.rooms.contains(room) || !connection.had.contains(room);
        let rooms: Vec<usize> = rooms.into_iter().filter(allowed).collect();
        let new: BTreeSet<usize> = rooms.iter().copied().filter(|room| !browser.rooms.contains(room)).collect();
        connection.membership.set_rooms(rooms.iter().copied().map(room).collect());
        let (lost, kept) = self.log.after(&new, connection.since);
        // Who was told of a loss already is not cut for another.
        connection.owed.extend(if connection.complete { [lost, kept].concat() } else { kept });
        connection.had.extend(&new);
        browser.rooms = rooms.into_iter().collect();
        self.settle();
    }

    /// Afterwards nobody who lags is connected.
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
    ) {
        let mut world = World::new(shards, bytes);
        for step in steps {
            world.take(step);
        }
        world.settle();
        (0..BROWSERS).for_each(|who| world.cut(who));
        prop_assert_eq!(world.hub.members(), 0);
    }
}

#[test]
fn who_gets_rooms_late_and_cannot_get_all_of_them_is_cut() {
    let mut world = World::new(1, 1_000);
    world.take(Step::Join { who: 0, rooms: vec![0] });
    (0..100).for_each(|_| world.publish(1, 10));
    world.take(Step::SetRooms { who: 0, rooms: vec![0, 1] });
}
