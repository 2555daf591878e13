//! What may happen to a hub and its browsers, in any order.

use proptest::prelude::*;

const ROOMS: usize = 5;
pub(super) const BROWSERS: usize = 4;

#[derive(Clone, Debug)]
pub(super) enum Step {
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
        /// Rooms it has beside those it had, of which it gets all since its session began.
        gains: Vec<usize>,
    },
    /// The rooms that the subscriber has from now on; `gained` if its session did not have the new ones before.
    SetRooms {
        who: usize,
        rooms: Vec<usize>,
        gained: bool,
    },
    Gap {
        lost_nothing: bool,
    },
    Pass {
        seconds: u64,
    },
    /// Waits until every shard has done all there is to do.
    Settle,
}

/// What a browser comes back with.
#[derive(Clone, Copy, Debug)]
pub(super) enum With {
    Last,
    /// Where its session began, and no more.
    NoOffset,
    NoSession,
    SessionOfAnotherLog,
    OffsetFromTheFuture,
}

pub(super) fn steps() -> impl Strategy<Value = Vec<Step>> {
    let rooms = || prop::collection::vec(0..ROOMS, 0..ROOMS + 2);
    let who = || 0..BROWSERS;
    let with = prop_oneof![
        6 => Just(With::Last),
        1 => Just(With::NoOffset),
        1 => Just(With::NoSession),
        1 => Just(With::SessionOfAnotherLog),
        1 => Just(With::OffsetFromTheFuture),
    ];
    let step = prop_oneof![
        12 => (0..ROOMS, 0..3_000_usize).prop_map(|(room, weight)| Step::Publish { room, weight }),
        1 => (0..ROOMS, 1..700_usize).prop_map(|(room, count)| Step::Burst { room, count }),
        5 => (who(), rooms()).prop_map(|(who, rooms)| Step::Join { who, rooms }),
        3 => who().prop_map(|who| Step::Cut { who }),
        6 => (who(), with, rooms()).prop_map(|(who, with, gains)| Step::Resume { who, with, gains }),
        2 => (who(), rooms(), any::<bool>()).prop_map(|(who, rooms, gained)| Step::SetRooms { who, rooms, gained }),
        1 => any::<bool>().prop_map(|lost_nothing| Step::Gap { lost_nothing }),
        1 => (1..90_u64).prop_map(|seconds| Step::Pass { seconds }),
        3 => Just(Step::Settle),
    ];
    prop::collection::vec(step, 1..80)
}
