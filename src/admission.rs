//! Decides about each browser: its user, its rooms, and the position to serve it from. Every wire asks here before it
//! joins a browser to the hub.
//!
//! A browser brings its `channel_token` and, when it comes back, the ticket of its session. Redis names the user of the
//! token. While Redis is silent, or has lost the key, the ticket vouches for the browser's rooms for a limited time.
//! While a browser is connected, Redis is asked again now and then, and the rooms follow.
//! Knows Rails' keys in Redis; must not know any wire.

mod reauth;
mod sessions;
mod ticket;
mod users;

use std::{
    collections::HashSet,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use futures_util::{FutureExt, future::BoxFuture};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{self, sleep, timeout_at},
};

pub use self::{
    sessions::SessionId,
    ticket::{Key, Owner, Ticket, Tickets},
    users::{Answers, EVERYONE, Token, User, Users},
};
use self::{
    sessions::{Changed, Known, SessionTable, Watch},
    ticket::PackedUser,
    users::Found,
};
use crate::{
    config::{ReauthConfig, RecoveryConfig},
    hub::{Clock, Hub, Joined, Return, Rooms, Since},
    metrics::{Counter, Metrics},
};

/// How long a browser waits for Redis, and how often it looks for the subscription. Then it is admitted with what is known.
const PATIENCE: Duration = Duration::from_secs(2);
const GLANCE: Duration = Duration::from_millis(20);

/// Browsers that wait for their shard at a time, so that the commands for a shard are bounded. Further browsers wait for
/// a permit.
const MAX_JOINING: usize = 1_024;

/// What a browser says of itself.
#[derive(Default)]
pub struct Claim {
    /// The `channel_token`.
    pub token: Option<Token>,
    /// The ticket of an earlier session.
    pub ticket: Option<String>,
    /// The offset of the last event that the browser got.
    pub offset: Option<String>,
}

/// The session that a browser returns to.
struct Returning {
    ticket: Ticket,
    /// The ticket as the browser has it.
    sealed: String,
    /// When Redis last said that the rooms of the ticket are its user's, in seconds since 1970.
    vouched: u64,
    /// Whether Redis has taken one of them from the user since.
    revoked: bool,
    /// What Redis has given or taken since, while the browser was connected.
    changed: Option<Box<Changed>>,
    /// Whether the rooms that the browser had suffice when Redis does not say which rooms it has now.
    suffices: bool,
}

impl Returning {
    /// The rooms that the session has had all along. When one of them was taken away in between, what the session was served
    /// since is not known.
    fn rooms(&self) -> Vec<String> {
        match &self.changed {
            _ if self.revoked => Vec::new(),
            Some(changed) => rooms(changed.kept.unpack().as_ref()),
            None => rooms(self.ticket.user.as_ref()),
        }
    }

    /// The user whose rooms the browser had, if they suffice.
    fn vouches_for(&self) -> Option<User> {
        let user = || self.changed.as_ref().map_or_else(|| self.ticket.user.clone(), |changed| changed.now.unpack());
        if self.suffices { user() } else { None }
    }

    /// Whether `user` may go on with the session: the session was sure of its rooms and is no other user's.
    fn is_of(&self, user: Option<&User>) -> bool {
        let same = self.ticket.user.as_ref().is_none_or(|was| user.is_some_and(|user| user.id == was.id));
        same && !self.ticket.provisional
    }
}

/// A browser that is admitted: what to ask of the hub, and what [`Admission::welcome`] makes a session of.
pub struct Arrival {
    /// The rooms to join.
    pub rooms: Rooms,
    /// From where to be served.
    pub since: Since,
    owner: Owner,
    /// For asking again while the browser is connected.
    token: Option<Token>,
    user: Option<User>,
    /// When Redis last said that these are the user's rooms, in seconds since 1970.
    vouched: u64,
    /// Whether Redis has not named the user of the token yet.
    provisional: bool,
    returning: Option<Returning>,
    /// Whether the browser goes on with the session it returns to, if nothing is lost: its rooms are the same.
    continues: bool,
    _permit: Option<OwnedSemaphorePermit>,
}

/// A browser's session, new or recovered.
pub struct Admitted<C> {
    /// Its public id.
    pub session: SessionId,
    /// The ticket to come back with.
    pub ticket: String,
    /// The offset at which a new session begins.
    pub offset: Option<String>,
    /// The connection that this one takes the place of; it must be closed.
    pub replaced: Option<Arc<C>>,
}

/// Admits browsers. `C` is a connection.
pub struct Admission<C> {
    users: Users,
    tickets: Tickets,
    sessions: SessionTable<C>,
    joining: Arc<Semaphore>,
    window: Duration,
    unvouched_max: Duration,
    reauth: ReauthConfig,
    metrics: Metrics,
}

impl<C: Send + Sync> Admission<C> {
    /// An admission without sessions, with the window and the `unvouched_max` of `recovery`.
    pub fn new(
        users: Users,
        tickets: Tickets,
        recovery: &RecoveryConfig,
        reauth: ReauthConfig,
        metrics: Metrics,
    ) -> Self {
        let &RecoveryConfig { window, unvouched_max, .. } = recovery;
        let (sessions, joining) = (SessionTable::new(window), Arc::new(Semaphore::new(MAX_JOINING)));
        Self { users, tickets, sessions, joining, window, unvouched_max, reauth, metrics }
    }

    /// Admits a browser once Redis has named the user of its token. After two seconds without an answer the browser is
    /// admitted provisionally, and the future yields its rooms as soon as Redis has named the user. To be dropped when the
    /// browser leaves. The claim is dropped before Redis is asked: thousands of strangers may wait for a Redis that hangs.
    pub async fn admit(&self, hub: &Hub, mut claim: Claim) -> (Arrival, Option<BoxFuture<'_, Rooms>>) {
        let token = claim.token.take();
        let owner = self.tickets.owner(token.as_ref());
        let (since, returning) = self.returning(hub, claim, owner);
        let deadline = time::Instant::now() + PATIENCE;
        let asked_again = token.clone().filter(|_| self.reauth.period.is_some());
        let mut lookup = Box::pin(self.lookup(token));
        let found = timeout_at(deadline, &mut lookup).await.ok();
        // What is published before the subscription is there would be lost for this browser.
        while hub.is_interrupted() && time::Instant::now() < deadline {
            sleep(GLANCE).await;
        }
        let permit = Arc::clone(&self.joining).acquire_owned().await.ok();
        let arrival = Arrival { token: asked_again, _permit: permit, ..self.arrival(owner, since, returning, found) };
        if !arrival.provisional {
            return (arrival, None);
        }
        self.metrics.count(Counter::LookupsLate);
        let session = arrival.returning.as_ref().map(|returning| (returning.ticket.session.clone(), returning.rooms()));
        let vouched = arrival.user.clone();
        let settled = async move {
            let found = lookup.await;
            let is_told = matches!(found, Found::User(_));
            let known = session.as_ref().map(|(_, rooms)| &**rooms);
            let (rooms, lost) = split(rooms(found.or(vouched).as_ref()), known);
            match session {
                Some((id, _)) if lost => self.sessions.revoke(&id, Instant::now()),
                Some((id, _)) if is_told && rooms.gained.is_empty() => self.sessions.vouch(&id, Clock::now().unix),
                _ => {}
            }
            rooms
        };
        (arrival, Some(settled.boxed()))
    }

    /// What Redis says of the token.
    async fn lookup(&self, token: Option<Token>) -> Found {
        let found = self.users.lookup(token).await;
        if self.reauth.strict { found.strictly() } else { found }
    }

    /// Gives a browser that has joined the hub its session. Called in the shard before anything live, and while the
    /// connection cannot end, so that [`Admission::end`] follows.
    pub fn welcome(&self, hub: &Hub, joined: &Joined, arrival: Arrival, connection: &Arc<C>) -> Admitted<C> {
        let Arrival { since, owner, token, user, vouched, provisional, returning, continues, .. } = arrival;
        self.metrics.count(match (&returning, since) {
            (Some(_), _) if joined.complete => Counter::Recovered,
            (_, Since::Now) => Counter::Connects,
            _ => Counter::NotRecovered,
        });
        self.metrics.add(Counter::Replayed, joined.missed.len() as u64);
        // A browser that begins a new session leaves the connection of its old one behind.
        let old = returning.as_ref().and_then(|returning| self.sessions.connection(&returning.ticket.session));
        let recovered = returning.filter(|_| joined.complete && continues);
        let watch = token.map(|token| Watch::new(token, owner, user.as_ref(), !provisional));
        let (session, ticket, offset) = if let Some(Returning { ticket, sealed, .. }) = recovered {
            (ticket.session, sealed, None)
        } else {
            let (session, at) = (SessionId::random(), hub.seal_offset(&joined.at));
            let offset = match since {
                // A provisional session must be served from where it began.
                Since::Return(Return { started, served }) if provisional => {
                    served.or(started).map(|offset| hub.seal_offset(&offset)).unwrap_or_default()
                }
                _ => at.clone(),
            };
            let issued = Clock::now().unix;
            let ticket = Ticket { session: session.clone(), owner, user, issued, vouched, offset, provisional };
            (session, self.tickets.seal(ticket), Some(at))
        };
        let replaced = self.sessions.enter(session.clone(), Arc::downgrade(connection), vouched, watch).or(old);
        Admitted { session, ticket, offset, replaced: replaced.and_then(|replaced| replaced.upgrade()) }
    }

    /// A connection of the session has ended; `left` if the browser took leave of the session, which cannot be recovered
    /// then. Without effect if another connection has taken its place.
    pub fn end(&self, session: SessionId, connection: &Weak<C>, left: bool) {
        self.sessions.end(session, connection, left, Instant::now());
    }

    /// From where the browser is to be served: from what it says, or at least from the beginning of its session, as it
    /// has seen all that came before. What it says of a provisional session counts for nothing. With the session, if the
    /// ticket was made for this browser. A browser that took leave of its session begins anew.
    fn returning(&self, hub: &Hub, claim: Claim, owner: Owner) -> (Since, Option<Returning>) {
        if claim.ticket.is_none() && claim.offset.is_none() {
            return (Since::Now, None);
        }
        let served = claim.offset.and_then(|offset| hub.open_offset(&offset));
        let ticket = claim.ticket.and_then(|sealed| Some((self.tickets.open(&sealed)?, sealed)));
        let Some((ticket, sealed)) = ticket.filter(|(ticket, _)| ticket.owner == owner) else {
            return (Since::Return(Return { started: None, served }), None);
        };
        let known = self.sessions.known(&ticket.session, Instant::now());
        let last_here = served.map_or(0, |offset| u64::from(offset.at)).max(ticket.issued);
        let is_back_in_time = known.is_some() || within(last_here, self.window);
        let Known { vouched, revoked, left, changed } = known.unwrap_or_default();
        if left {
            return (Since::Now, None);
        }
        let vouched = vouched.max(ticket.vouched);
        let suffices = is_back_in_time && within(vouched, self.unvouched_max) && !revoked;
        let (started, served) = (hub.open_offset(&ticket.offset), served.filter(|_| !ticket.provisional));
        let returning = Returning { ticket, sealed, vouched, revoked, changed, suffices };
        (Since::Return(Return { started, served }), Some(returning))
    }

    /// How a browser joins, after what Redis has `found`; `None` while Redis is silent.
    fn arrival(&self, owner: Owner, since: Since, returning: Option<Returning>, found: Option<Found>) -> Arrival {
        let provisional = found.is_none();
        let vouched = match &found {
            Some(Found::User(_)) => Clock::now().unix,
            _ => returning.as_ref().map_or(0, |returning| returning.vouched),
        };
        let otherwise = returning.as_ref().and_then(Returning::vouches_for);
        let user = found.unwrap_or(Found::Absent).or(otherwise);
        let returning = returning.filter(|returning| returning.is_of(user.as_ref()));
        let known = returning.as_ref().map(Returning::rooms);
        let (rooms, lost) = split(rooms(user.as_ref()), known.as_deref());
        if let Some(returning) = returning.as_ref().filter(|_| lost) {
            self.sessions.revoke(&returning.ticket.session, Instant::now());
        }
        let is_changed = returning.as_ref().is_some_and(|returning| returning.changed.is_some());
        let continues = !lost && !is_changed && rooms.gained.is_empty();
        Arrival { rooms, since, owner, token: None, user, vouched, provisional, returning, continues, _permit: None }
    }
}

/// Whether it is not longer than `most` since this time, in seconds since 1970.
fn within(since: u64, most: Duration) -> bool {
    Clock::now().unix.saturating_sub(since) <= most.as_secs()
}

fn rooms(user: Option<&User>) -> Vec<String> {
    std::iter::once(EVERYONE.to_owned()).chain(user.into_iter().flat_map(User::rooms)).collect()
}

/// Tells the rooms that the session has had from new ones, and whether one is gone. Without a session none is either.
fn split(rooms: Vec<String>, known: Option<&[String]>) -> (Rooms, bool) {
    let Some(known) = known else { return (Rooms::all(rooms), false) };
    let known: HashSet<&String> = known.iter().collect();
    let (had, gained): (Vec<String>, _) = rooms.into_iter().partition(|room| known.contains(room));
    let lost = had.iter().collect::<HashSet<_>>().len() < known.len();
    (Rooms { had, gained }, lost)
}
