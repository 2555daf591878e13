//! What a client is owed, and whether it got it. Pure: judges what was written down in a run.
//!
//! A client is owed every message that was published to one of its rooms after its session's first welcome, in order. A
//! message that never came although a later one to the client's own room did is lost. A loss is told when the session
//! ends with a return that is not called recovered, or when the server asks the client to reload.

mod coverage;
mod keys;
mod session;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
    time::Duration,
};

use self::session::Stay;
pub(crate) use self::{
    coverage::{Coverage, Outage},
    keys::Keys,
    session::Alarm,
};

/// How long the server waits for Redis before it welcomes a client whose rooms it does not know. A welcome that took
/// about as long may be one of those; its rooms come later.
const PATIENCE: Duration = Duration::from_millis(1_900);

/// A message; its number is its place in the order of publication.
#[derive(Clone, Debug)]
pub(crate) struct Publication {
    /// Empty for everyone.
    pub(crate) room: Arc<str>,
    pub(crate) began: Duration,
    pub(crate) ended: Duration,
    /// Whether Redis has confirmed it. Otherwise it may have been published or not.
    pub(crate) certain: bool,
}

/// Something that a client did or saw.
#[derive(Clone, Debug)]
pub(crate) enum Entry {
    /// It begins to connect to a node; with the session it has, if it has one.
    Dialled { node: usize, returns: bool },
    /// A message came. Before the welcome it counts only from the welcome on, as the official client holds it back.
    Got { number: usize, room: Arc<str> },
    /// The server asked it to reload.
    Reload,
    /// Something came that nobody published.
    Odd(String),
    /// The session it returned to goes on, or a new one begins.
    Welcome { recovered: bool },
    /// The connection ended.
    Ended,
}

#[derive(Clone, Debug)]
pub(crate) struct Noted {
    pub(crate) at: Duration,
    pub(crate) entry: Entry,
}

/// What is known of a run and of one client in it.
pub(crate) struct Case<'a> {
    pub(crate) publications: &'a [Publication],
    pub(crate) coverage: &'a Coverage,
    /// The user's groups over time.
    pub(crate) keys: &'a Keys,
    /// The number of the user.
    pub(crate) user: usize,
    pub(crate) transcript: &'a [Noted],
}

/// What must not happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    /// A message is missing, and this one came after it.
    Lost { missing: usize, evidence: usize, room: Arc<str> },
    /// A message came after one that was published later.
    Swapped { number: usize, after: usize },
    /// A message came of a room that the client is not in, or that nobody published.
    Alien { what: String },
    /// Something else went wrong in the run.
    Broken(String),
}

/// What one client got.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) findings: Vec<Finding>,
    pub(crate) deliveries: usize,
    pub(crate) duplicates: usize,
    /// Returns that were called recovered, and those that were not.
    pub(crate) returns: [usize; 2],
    pub(crate) notices: usize,
    /// Messages that were lost and whose loss was told.
    pub(crate) told: usize,
    /// Losses that were told and did not happen, though the faults allowed to know.
    pub(crate) alarms: Vec<Alarm>,
    /// The same, where the faults did not allow it, or Redis did not say in time which rooms the client has.
    pub(crate) excused: usize,
}

/// Judges one client.
pub(crate) fn judge(case: &Case<'_>) -> Verdict {
    let mut reading = Reading::default();
    for noted in case.transcript {
        reading.take(case, noted);
    }
    let Reading { mut verdict, stays, arrived, .. } = reading;
    for (index, stay) in stays.iter().enumerate() {
        stay.judge(case, &arrived, stays.get(index + 1), &mut verdict);
    }
    verdict
}

/// Where the reading of a transcript stands.
#[derive(Default)]
struct Reading {
    verdict: Verdict,
    stays: Vec<Stay>,
    /// All numbers that ever came.
    arrived: BTreeSet<usize>,
    /// What came since the last welcome, or while there is none.
    held: Vec<(Duration, Option<usize>)>,
    connection: Connection,
}

/// The present connection.
#[derive(Default)]
struct Connection {
    node: usize,
    returns: bool,
    dialled: Duration,
    /// Since when the client may have had the rooms of the session it returns to.
    rooms_since: Duration,
    welcome: Option<Duration>,
    /// The last number of each room, and of all.
    last: BTreeMap<Arc<str>, usize>,
    highest: Option<usize>,
}

impl Connection {
    /// Whether the server may have welcomed it before it knew the rooms.
    fn is_provisional(&self, now: Duration) -> bool {
        self.welcome.unwrap_or(now) >= self.dialled + PATIENCE
    }
}

impl Reading {
    fn take(&mut self, case: &Case<'_>, noted: &Noted) {
        let at = noted.at;
        match &noted.entry {
            &Entry::Dialled { node, returns } => {
                // While Redis is silent the rooms of the last session serve.
                let rooms_since = self.stays.last().map_or(at, |stay| stay.rooms_since);
                self.connection = Connection { node, returns, dialled: at, rooms_since, ..Connection::default() };
            }
            Entry::Got { number, room } => self.got(case, at, *number, room),
            Entry::Reload => {
                self.verdict.notices += 1;
                self.hold(at, None);
            }
            Entry::Odd(what) => self.verdict.findings.push(Finding::Alien { what: what.clone() }),
            &Entry::Welcome { recovered } => self.welcome(at, recovered),
            Entry::Ended => {}
        }
    }

    fn got(&mut self, case: &Case<'_>, at: Duration, number: usize, room: &Arc<str>) {
        self.verdict.deliveries += 1;
        let published = case.publications.get(number);
        if published.is_none_or(|published| published.room != *room || at < published.began)
            || !self.may_see(case, room, at)
        {
            let what = format!("{number} in {room:?} at {at:?}");
            self.verdict.findings.push(Finding::Alien { what });
        }
        // Rooms that come late bring what is older than what came before; each room is still in order.
        let late = self.connection.is_provisional(at) || case.keys.changed(self.connection.dialled, at);
        let highest = if late { None } else { self.connection.highest };
        let before = self.connection.last.insert(Arc::clone(room), number).max(highest);
        self.connection.highest = self.connection.highest.max(Some(number));
        if let Some(after) = before.filter(|&before| before >= number) {
            self.verdict.findings.push(Finding::Swapped { number, after });
        }
        self.verdict.duplicates += usize::from(!self.arrived.insert(number));
        self.hold(at, Some(number));
    }

    /// Whether the client is, or may be taken to be, in the room.
    fn may_see(&self, case: &Case<'_>, room: &str, at: Duration) -> bool {
        let Some(group) = room.strip_prefix("group-") else {
            return room.is_empty() || room == format!("user-{}", case.user);
        };
        let Connection { dialled, rooms_since, .. } = self.connection;
        let since = if self.connection.is_provisional(at) { rooms_since } else { dialled };
        group.parse().is_ok_and(|group| case.keys.ever(group, since, at))
    }

    fn hold(&mut self, at: Duration, number: Option<usize>) {
        self.held.push((at, number));
        if self.connection.welcome.is_some() {
            self.release();
        }
    }

    /// What was held back belongs to the session that goes on.
    fn release(&mut self) {
        let Some(stay) = self.stays.last_mut() else { return self.held.clear() };
        for (at, number) in self.held.drain(..) {
            match number {
                None => stay.reloads.push(at),
                Some(number) => stay.arrivals.push((at, number)),
            }
        }
    }

    fn welcome(&mut self, at: Duration, recovered: bool) {
        self.connection.welcome = Some(at);
        let provisional = self.connection.is_provisional(at);
        let Connection { dialled, rooms_since, .. } = self.connection;
        if self.connection.returns {
            self.verdict.returns[usize::from(!recovered)] += 1;
        }
        if recovered && let Some(stay) = self.stays.last_mut() {
            stay.node = self.connection.node;
            return self.release();
        }
        // What came before this welcome completes no session: the loss of whatever is missing is told.
        self.held.clear();
        self.stays.push(Stay {
            node: self.connection.node,
            dialled,
            rooms_since: if provisional { rooms_since } else { dialled },
            began: at,
            provisional,
            ..Stay::default()
        });
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost { missing, evidence, room } => write!(f, "lost {missing} in {room:?}, as {evidence} came"),
            Self::Swapped { number, after } => write!(f, "{number} came after {after}"),
            Self::Alien { what } => write!(f, "alien: {what}"),
            Self::Broken(what) => f.write_str(what),
        }
    }
}
