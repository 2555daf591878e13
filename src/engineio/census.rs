//! Admission control: sessions are counted in total, by client address and by connection.
//!
//! Without I/O; time is milliseconds since the engine was made. A session is unproven until the handler vouches for it.
//! Unproven sessions cost a stranger next to nothing, so their bounds are much tighter. A connection or an address may
//! have a share of the places that are still free (the dynamic threshold of Choudhury and Hahne, 1998): a flood through
//! few connections never takes all places, and a flood through thousands is refused where it has more than a handful.
//! A newcomer that is not refused takes the place of the oldest unproven session when none is free.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    num::NonZeroU64,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use engineioxide_core::Sid;

use super::{Options, milliseconds};
use parking_lot::Mutex;

/// Unproven sessions in total. Browsers that return all at once after a restart prove themselves within two seconds.
const UNPROVEN: usize = 16_384;

/// The share of the free places that one client address may have is one in so many: about 1,000 at first, when all
/// browsers of a large school return at once.
const ADDRESS_SHARE: usize = 16;

/// What an address may have however few places are free.
const LEAST_OF_ADDRESS: usize = 16;

/// The same for the polling sessions that came through one connection: about 250 at first. A proxy sends the requests of
/// many browsers through few connections; but a pending GET needs one to itself, so there are about as many connections
/// as browsers.
const CONNECTION_SHARE: usize = 64;

/// What a connection may have however few places are free.
const LEAST_OF_CONNECTION: usize = 4;

/// Polling sessions that came through one connection, proven ones included.
const POLLING_PER_CONNECTION: usize = 1_000;

/// How long a session may stay unproven, in milliseconds, while more than half of the unproven places are taken.
const HURRY: u64 = 5_000;

/// Bits of an IPv6 address that do not count: a customer of a provider has at least all of them.
const IPV6_HOST_BITS: u32 = 64;

/// Where a session comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Origin {
    /// The client's address, if it is known, as a number.
    address: Option<NonZeroU64>,
    /// The number of the connection that brought a polling session. A WebSocket has a connection to itself.
    connection: Option<NonZeroU64>,
}

impl Origin {
    pub(super) fn new(address: Option<IpAddr>, connection: Option<u64>) -> Self {
        // No network of the internet has a number as small as an IPv4 address.
        let number = |address| match address {
            IpAddr::V4(address) => u64::from(address.to_bits()),
            IpAddr::V6(address) => u64::try_from(address.to_bits() >> IPV6_HOST_BITS).unwrap_or_default(),
        };
        Self {
            address: address.and_then(|address| NonZeroU64::new(number(address))),
            connection: connection.and_then(NonZeroU64::new),
        }
    }
}

/// Why a session is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Full {
    #[error("as many sessions as MAX_SESSIONS allows")]
    Everywhere,
    #[error("as many sessions from one address as MAX_SESSIONS_PER_ADDRESS allows, or too many without CONNECT")]
    Address,
    #[error("too many polling sessions through one connection")]
    Connection,
}

/// All sessions.
pub(super) struct Census {
    sessions: usize,
    per_address: usize,
    /// Most unproven sessions: half of all places are left to those that have proven themselves.
    unproven: usize,
    /// How long a session may stay unproven, in milliseconds; `None` when each counts as proven from the start.
    unproven_for: Option<u64>,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    sessions: usize,
    last: u64,
    addresses: Tallies,
    connections: Tallies,
    /// The oldest first.
    unproven: BTreeMap<u64, Candidate>,
}

/// A session that may have to make room.
struct Candidate {
    sid: Sid,
    since: u64,
    origin: Origin,
}

type Tallies = HashMap<NonZeroU64, Tally>;

#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    sessions: usize,
    unproven: usize,
}

impl Census {
    pub(super) fn new(options: &Options) -> Arc<Self> {
        Arc::new(Self {
            sessions: options.max_sessions,
            per_address: options.max_sessions_per_address,
            unproven: UNPROVEN.min(options.max_sessions.div_ceil(2)),
            unproven_for: options.unproven.map(|unproven| milliseconds(unproven.timeout)),
            counts: Mutex::default(),
        })
    }

    /// A permit for a session, unless its origin has its share or all places are taken by proven sessions; and, when
    /// another has to make room, that session, which may not be open yet.
    pub(super) fn admit(self: &Arc<Self>, origin: Origin, now: u64) -> Result<(SessionPermit, Option<Sid>), Full> {
        let mut counts = self.counts.lock();
        let address = tally(&counts.addresses, origin.address);
        let connection = tally(&counts.connections, origin.connection);
        let free = self.unproven.saturating_sub(counts.unproven.len());
        if address.sessions >= self.per_address || address.unproven >= (free / ADDRESS_SHARE).max(LEAST_OF_ADDRESS) {
            return Err(Full::Address);
        }
        if connection.sessions >= POLLING_PER_CONNECTION
            || connection.unproven >= (free / CONNECTION_SHARE).max(LEAST_OF_CONNECTION)
        {
            return Err(Full::Connection);
        }
        let full = counts.sessions >= self.sessions;
        let oldest = if full || counts.unproven.len() >= self.unproven { counts.pop_oldest() } else { None };
        if full && oldest.is_none() {
            return Err(Full::Everywhere);
        }
        counts.last += 1;
        counts.sessions += 1;
        let (sid, number, is_unproven) = (Sid::new(), counts.last, self.unproven_for.is_some());
        counts.each_tally(origin, |tally| {
            tally.sessions += 1;
            tally.unproven += usize::from(is_unproven);
        });
        if is_unproven {
            counts.unproven.insert(number, Candidate { sid, since: now, origin });
        }
        let (is_proven, left_connection) = (AtomicBool::new(!is_unproven), AtomicBool::new(false));
        Ok((SessionPermit { sid, census: Arc::clone(self), number, origin, is_proven, left_connection }, oldest))
    }

    /// Sessions that have been unproven for too long; they count as proven from now on.
    pub(super) fn overdue(&self, now: u64) -> Vec<Sid> {
        let Some(patience) = self.unproven_for else { return Vec::new() };
        let mut counts = self.counts.lock();
        let mut overdue = Vec::new();
        loop {
            let crowded = counts.unproven.len() > self.unproven / 2;
            let patience = if crowded { patience.min(HURRY) } else { patience };
            if counts.unproven.first_key_value().is_none_or(|(_, oldest)| oldest.since + patience > now) {
                return overdue;
            }
            overdue.extend(counts.pop_oldest());
        }
    }
}

fn tally(tallies: &Tallies, key: Option<NonZeroU64>) -> Tally {
    key.and_then(|key| tallies.get(&key)).copied().unwrap_or_default()
}

impl Counts {
    /// Changes the tallies of an origin, and forgets those without sessions.
    fn each_tally(&mut self, origin: Origin, change: impl Fn(&mut Tally)) {
        for (tallies, key) in [(&mut self.addresses, origin.address), (&mut self.connections, origin.connection)] {
            let Some(key) = key else { continue };
            let tally = tallies.entry(key).or_default();
            change(tally);
            if tally.sessions == 0 {
                tallies.remove(&key);
            }
        }
    }

    fn pop_oldest(&mut self) -> Option<Sid> {
        let number = *self.unproven.first_key_value()?.0;
        self.prove(number)
    }

    /// The session is unproven no longer.
    fn prove(&mut self, number: u64) -> Option<Sid> {
        let Candidate { sid, origin, .. } = self.unproven.remove(&number)?;
        self.each_tally(origin, |tally| tally.unproven -= 1);
        Some(sid)
    }
}

/// The right to one session, which is in all counts until this is dropped.
pub(super) struct SessionPermit {
    /// The Engine.IO id of the session.
    pub(super) sid: Sid,
    census: Arc<Census>,
    number: u64,
    origin: Origin,
    is_proven: AtomicBool,
    /// The session has moved to a connection of its own.
    left_connection: AtomicBool,
}

impl SessionPermit {
    /// Whether the session has to go, as its place is needed.
    pub(super) fn is_revoked(&self) -> bool {
        !self.is_proven() && !self.census.counts.lock().unproven.contains_key(&self.number)
    }

    /// The handler vouches for the session.
    pub(super) fn prove(&self) {
        if !self.is_proven.swap(true, Ordering::Relaxed) {
            self.census.counts.lock().prove(self.number);
        }
    }

    pub(super) fn is_proven(&self) -> bool {
        self.is_proven.load(Ordering::Relaxed)
    }

    /// The session has moved to a connection of its own, and no longer counts for the connection that brought it. To be
    /// called once.
    pub(super) fn leave_connection(&self) {
        let mut counts = self.census.counts.lock();
        self.left_connection.store(true, Ordering::Relaxed);
        let unproven = counts.unproven.get_mut(&self.number).map(|unproven| unproven.origin.connection = None);
        counts.each_tally(Origin { address: None, ..self.origin }, |tally| {
            tally.sessions -= 1;
            tally.unproven -= usize::from(unproven.is_some());
        });
    }
}

impl Drop for SessionPermit {
    fn drop(&mut self) {
        let mut counts = self.census.counts.lock();
        counts.prove(self.number);
        counts.sessions -= 1;
        let connection = self.origin.connection.filter(|_| !self.left_connection.load(Ordering::Relaxed));
        counts.each_tally(Origin { connection, ..self.origin }, |tally| tally.sessions -= 1);
    }
}

#[cfg(test)]
mod tests;
