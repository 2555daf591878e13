//! What happens in a run and when: everything that is random, from one seed.

use std::{collections::BTreeMap, time::Duration};

use rand::{RngExt, SeedableRng, rngs::StdRng};

/// A run before it has begun.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) nodes: usize,
    pub(crate) clients: Vec<ClientPlan>,
    /// By time.
    pub(crate) faults: Vec<Fault>,
    /// By time.
    pub(crate) publications: Vec<PlannedPublication>,
}

/// A client; its user has its number.
#[derive(Debug)]
pub(crate) struct ClientPlan {
    /// The node it connects to first.
    pub(crate) node: usize,
    pub(crate) groups: Vec<usize>,
    /// Whether its connections have small buffers.
    pub(crate) narrow: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Fault {
    pub(crate) at: Duration,
    pub(crate) kind: FaultKind,
}

#[derive(Clone, Debug)]
pub(crate) enum FaultKind {
    /// A node is killed, and started again later.
    Kill { node: usize, down: Duration },
    /// A node is asked to end, and started again later.
    Drain { node: usize, down: Duration },
    /// Redis ends, in order or not, and is started again later.
    RedisRestart { in_order: bool, down: Duration },
    /// Redis does nothing for a time.
    RedisFreeze { lasts: Duration },
    /// The line between a node and Redis is cut.
    LineCut { node: usize },
    /// The same, in the middle of what is under way to the node.
    LineHalved { node: usize },
    /// Connections over the line are cut, and new ones end at once, for a time.
    LineDown { node: usize, lasts: Duration },
    /// Nothing passes over the line for a time; connections stay open.
    LineSilent { node: usize, lasts: Duration },
    /// Everything on the line takes longer for a time.
    LineSlow { node: usize, delay: Duration, lasts: Duration },
    /// A client loses its connection and returns later, perhaps to another node.
    ClientAway { client: usize, lasts: Duration, to: usize },
    /// A client does not read for a time.
    ClientSlow { client: usize, lasts: Duration },
    /// A client's user has other groups from now on.
    Rooms { client: usize, groups: Vec<usize> },
}

/// What a fault happens to. Faults of one target do not overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Target {
    Node(usize),
    Redis,
    Line(usize),
    Client(usize),
    User(usize),
}

#[derive(Debug)]
pub(crate) struct PlannedPublication {
    pub(crate) at: Duration,
    pub(crate) to: Audience,
    /// Bytes of the payload.
    pub(crate) size: usize,
}

/// Whom a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Audience {
    User(usize),
    Group(usize),
    Everyone,
}

/// Groups in a run.
const GROUPS: usize = 5;

/// A target rests between two of its faults.
const REST: Duration = Duration::from_millis(300);

impl Plan {
    pub(crate) fn of(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let nodes = random.random_range(1..=4);
        let length = millis(&mut random, 5_000, 14_000);
        let clients: Vec<_> = (0..random.random_range(8..=28)).map(|_| client(&mut random, nodes)).collect();
        let faults = faults(&mut random, nodes, clients.len(), length);
        let publications = publications(&mut random, clients.len(), length);
        Self { seed, nodes, clients, faults, publications }
    }

    /// The faults of each target, by time.
    pub(crate) fn by_target(&self) -> BTreeMap<Target, Vec<&Fault>> {
        let mut targets = BTreeMap::<_, Vec<_>>::new();
        for fault in &self.faults {
            targets.entry(fault.kind.target()).or_default().push(fault);
        }
        targets
    }
}

fn client(random: &mut StdRng, nodes: usize) -> ClientPlan {
    ClientPlan { node: random.random_range(0..nodes), groups: groups(random), narrow: random.random_bool(0.3) }
}

fn groups(random: &mut StdRng) -> Vec<usize> {
    (0..GROUPS).filter(|_| random.random_bool(0.4)).collect()
}

fn millis(random: &mut StdRng, least: u64, most: u64) -> Duration {
    Duration::from_millis(random.random_range(least..=most))
}

/// Each run has some kinds of faults and not the others, as a fault that ends every session hides what others do.
fn faults(random: &mut StdRng, nodes: usize, clients: usize, length: Duration) -> Vec<Fault> {
    let kinds: Vec<usize> = (0..KINDS).filter(|_| random.random_bool(0.4)).collect();
    let number = random.random_range(4..=16);
    let mut faults: Vec<Fault> = (0..number)
        .filter_map(|_| {
            let at = millis(random, 500, u64::try_from(length.as_millis()).unwrap());
            let kind = *kinds.get(random.random_range(0..kinds.len().max(1)))?;
            Some(Fault { at, kind: fault(random, kind, nodes, clients) })
        })
        .collect();
    // Clients leave in every run, or nobody returns.
    for _ in 0..random.random_range(clients / 2..=2 * clients) {
        let at = millis(random, 500, u64::try_from(length.as_millis()).unwrap());
        let lasts = if random.random_bool(0.5) { Duration::ZERO } else { millis(random, 100, 4_000) };
        let kind = FaultKind::ClientAway { client: random.random_range(0..clients), lasts, to: any(random, nodes) };
        faults.push(Fault { at, kind });
    }
    faults.sort_by_key(|fault| fault.at);
    let mut free = BTreeMap::new();
    faults.retain(|fault| {
        let free = free.entry(fault.kind.target()).or_insert(Duration::ZERO);
        let fits = *free <= fault.at;
        if fits {
            *free = fault.at + fault.kind.lasts() + REST;
        }
        fits
    });
    faults
}

/// Kinds that [`fault`] makes.
const KINDS: usize = 11;

fn fault(random: &mut StdRng, kind: usize, nodes: usize, clients: usize) -> FaultKind {
    let (node, client) = (any(random, nodes), any(random, clients));
    match kind {
        0 => FaultKind::Kill { node, down: millis(random, 0, 2_000) },
        1 => FaultKind::Drain { node, down: millis(random, 0, 2_000) },
        2 => FaultKind::RedisRestart { in_order: random.random_bool(0.5), down: millis(random, 0, 2_000) },
        3 => FaultKind::RedisFreeze { lasts: millis(random, 100, 12_000) },
        4 => FaultKind::LineCut { node },
        5 => FaultKind::LineHalved { node },
        6 => FaultKind::LineDown { node, lasts: millis(random, 100, 3_000) },
        7 => FaultKind::LineSilent { node, lasts: millis(random, 100, 13_000) },
        8 => FaultKind::LineSlow { node, delay: millis(random, 5, 500), lasts: millis(random, 500, 4_000) },
        9 => FaultKind::ClientSlow { client, lasts: millis(random, 500, 5_000) },
        _ => FaultKind::Rooms { client, groups: groups(random) },
    }
}

fn any(random: &mut StdRng, number: usize) -> usize {
    random.random_range(0..number)
}

/// Single messages all the time, and bursts.
fn publications(random: &mut StdRng, clients: usize, length: Duration) -> Vec<PlannedPublication> {
    let mut publications = Vec::new();
    let pause = random.random_range(20..=200);
    let mut at = Duration::ZERO;
    while at < length {
        at += millis(random, 1, 2 * pause);
        let number = if random.random_bool(0.02) { random.random_range(20..=200) } else { 1 };
        let largest = if random.random_bool(0.2) { 20_000 } else { 500 };
        let one_room = random.random_bool(0.5).then(|| audience(random, clients));
        for _ in 0..number {
            let to = one_room.unwrap_or_else(|| audience(random, clients));
            publications.push(PlannedPublication { at, to, size: random.random_range(60..=largest) });
        }
    }
    publications
}

fn audience(random: &mut StdRng, clients: usize) -> Audience {
    match random.random_range(0..10) {
        0 => Audience::Everyone,
        1..=4 => Audience::Group(random.random_range(0..GROUPS)),
        _ => Audience::User(random.random_range(0..clients)),
    }
}

impl FaultKind {
    pub(crate) fn target(&self) -> Target {
        match *self {
            Self::Kill { node, .. } | Self::Drain { node, .. } => Target::Node(node),
            Self::RedisRestart { .. } | Self::RedisFreeze { .. } => Target::Redis,
            Self::LineCut { node }
            | Self::LineHalved { node }
            | Self::LineDown { node, .. }
            | Self::LineSilent { node, .. }
            | Self::LineSlow { node, .. } => Target::Line(node),
            Self::ClientAway { client, .. } | Self::ClientSlow { client, .. } => Target::Client(client),
            Self::Rooms { client, .. } => Target::User(client),
        }
    }

    fn lasts(&self) -> Duration {
        match *self {
            Self::Kill { down, .. } | Self::Drain { down, .. } | Self::RedisRestart { down, .. } => down,
            Self::RedisFreeze { lasts }
            | Self::LineDown { lasts, .. }
            | Self::LineSilent { lasts, .. }
            | Self::LineSlow { lasts, .. }
            | Self::ClientAway { lasts, .. }
            | Self::ClientSlow { lasts, .. } => lasts,
            Self::LineCut { .. } | Self::LineHalved { .. } | Self::Rooms { .. } => Duration::ZERO,
        }
    }

    /// In a word.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Kill { .. } => "kill",
            Self::Drain { .. } => "drain",
            Self::RedisRestart { .. } => "redis",
            Self::RedisFreeze { .. } => "freeze",
            Self::LineCut { .. } => "cut",
            Self::LineHalved { .. } => "halved",
            Self::LineDown { .. } => "down",
            Self::LineSilent { .. } => "silent",
            Self::LineSlow { .. } => "slow",
            Self::ClientAway { .. } => "away",
            Self::ClientSlow { .. } => "stalled",
            Self::Rooms { .. } => "rooms",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::SLICE;

    #[test]
    fn a_seed_replays_its_plan() {
        let text = |seed| format!("{:?}", Plan::of(seed));
        assert!(text(1) == text(1) && text(1) != text(2));
    }

    #[test]
    fn the_slice_has_every_kind_of_fault_and_number_of_nodes() {
        let plans = SLICE.map(Plan::of);
        let kinds: BTreeSet<_> = plans.iter().flat_map(|plan| &plan.faults).map(|fault| fault.kind.name()).collect();
        // Clients that go away are in every plan.
        assert_eq!(kinds.len(), KINDS + 1, "{kinds:?}");
        assert_eq!(plans.iter().map(|plan| plan.nodes).collect::<BTreeSet<_>>(), BTreeSet::from([1, 2, 3, 4]));
    }
}
