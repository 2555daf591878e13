//! CONNECT: find out who it is, join the rooms, replay what was missed, and only then acknowledge.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use engineioxide_core::Sid;
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant as Moment, sleep, timeout_at},
};

use super::{
    Browser, Phase, SocketIo,
    sessions::{Known, Learnt},
    wire::{self, Connect},
};
use crate::{
    auth::{EVERYONE, Found, Owner, Ticket, Token, User},
    engineio::{CloseReason, Frame, Session},
    hub::{Joined, Return, Rooms, Since},
    metrics::Counter,
};

/// How long a browser waits for Redis before it is connected with what is known.
const PATIENCE: Duration = Duration::from_secs(2);

/// Pause between two lookups while Redis does not answer, doubled up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// How often a browser that waits for the subscription looks for it.
const GLANCE: Duration = Duration::from_millis(20);

type Socket = Arc<Session<SocketIo>>;

/// What a browser came back with.
struct Returning {
    pid: String,
    session: Sid,
    ticket: Ticket,
    learnt: Learnt,
    /// Whether the ticket's rooms may serve when Redis does not say which rooms it has now.
    vouches: bool,
}

impl Returning {
    /// Whom the ticket speaks for, when Redis does not say.
    fn vouched(&self) -> Option<User> {
        self.ticket.user.clone().filter(|_| self.vouches)
    }

    /// When Redis last said which rooms the user has, in seconds since 1970.
    fn vouched_at(&self) -> u64 {
        self.ticket.vouched.max(self.learnt.vouched)
    }

    /// The rooms that the session has had all along; it has no others, as a browser with other rooms begins a new one.
    /// When one of them was taken away in between, nothing is said of what it was served since.
    fn rooms(&self) -> Vec<String> {
        if self.learnt.revoked { Vec::new() } else { rooms(self.ticket.user.as_ref()) }
    }

    /// Whether `user` may go on with the session: it is nobody else's, and was sure of its rooms.
    fn is_of(&self, user: Option<&User>) -> bool {
        let same = self.ticket.user.as_ref().is_none_or(|was| user.is_some_and(|user| user.id == was.id));
        same && !self.ticket.provisional
    }
}

/// How a browser joins.
struct Arrival {
    owner: Owner,
    since: Since,
    /// The session it comes back from.
    returning: Option<Returning>,
    /// Whether it may go on with that, if nothing is lost: its rooms are the same.
    continues: bool,
    user: Option<User>,
    /// When Redis said so, in seconds since 1970.
    vouched: u64,
    /// Redis has not said yet who it is.
    provisional: bool,
}

impl Arrival {
    /// How a browser joins of which Redis said `found`, `None` while it has not answered.
    fn of(owner: Owner, since: Since, returning: Option<Returning>, found: Option<Found>) -> Self {
        let provisional = found.is_none();
        let vouched = match (&found, &returning) {
            (Some(Found::User(_)), _) => now_seconds(),
            (_, Some(returning)) => returning.vouched_at(),
            (_, None) => 0,
        };
        let user = found.unwrap_or(Found::Absent).or(returning.as_ref().and_then(Returning::vouched));
        let returning = returning.filter(|returning| returning.is_of(user.as_ref()));
        Self { owner, since, returning, continues: false, user, vouched, provisional }
    }
}

/// Runs from the CONNECT packet to its acknowledgement, and on until Redis has answered or the browser has left. What the
/// packet carried is dropped before Redis is asked: thousands of strangers may wait for a Redis that hangs.
pub(super) async fn connect(socket: Socket, connect: Connect) {
    let io = socket.handler();
    let token = socket.state().token.clone().or_else(|| connect.channel_token.as_deref().and_then(Token::parse));
    let owner = io.parts.tickets.owner(token.as_ref());
    let (since, returning) = io.returning(connect, owner);
    let deadline = Moment::now() + PATIENCE;
    let mut lookup = std::pin::pin!(io.find(&socket, token.as_ref()));
    let found = timeout_at(deadline, &mut lookup).await.ok();
    // What is published before the subscription is there would be lost for this browser.
    while io.parts.hub.is_interrupted() && Moment::now() < deadline {
        sleep(GLANCE).await;
    }
    let Ok(permit) = Arc::clone(&io.joining).acquire_owned().await else { return };
    let arrival = Arrival::of(owner, since, returning, found);
    if !arrival.provisional {
        return io.join(&socket, arrival, permit);
    }
    io.parts.metrics.count(Counter::LookupsLate);
    let (vouched, returning) = (arrival.user.clone(), arrival.returning.as_ref());
    let known = returning.map(|returning| (returning.session, returning.rooms()));
    io.join(&socket, arrival, permit);
    let found = lookup.await;
    if let Phase::Connected { membership, asking, .. } = &mut *socket.state().phase() {
        *asking = None;
        let is_told = matches!(found, Found::User(_));
        let rooms = rooms(found.or(vouched).as_ref());
        let (rooms, lost) = split(rooms, known.as_ref().map(|(_, known)| &**known));
        match known {
            Some((session, _)) if lost => io.sessions.revoke(session, Instant::now()),
            Some((session, _)) if is_told && rooms.gained.is_empty() => io.sessions.vouch(session, now_seconds()),
            _ => {}
        }
        membership.set_rooms(rooms);
    }
}

fn rooms(user: Option<&User>) -> Vec<String> {
    std::iter::once(EVERYONE.to_owned()).chain(user.into_iter().flat_map(User::rooms)).collect()
}

/// Tells rooms that the session has had from those that are new to it, and whether one is gone. Without a session none
/// is either.
fn split(rooms: Vec<String>, known: Option<&[String]>) -> (Rooms, bool) {
    let Some(known) = known else { return (Rooms::all(rooms), false) };
    let known: HashSet<&String> = known.iter().collect();
    let (had, gained): (Vec<String>, _) = rooms.into_iter().partition(|room| known.contains(room));
    let lost = had.iter().collect::<HashSet<_>>().len() < known.len();
    (Rooms { had, gained }, lost)
}

impl SocketIo {
    /// Since when the browser is to be served, and the session that it returns to, if there is one. Of a session it took
    /// leave of nothing counts, and the ticket of another browser is none.
    fn returning(&self, connect: Connect, owner: Owner) -> (Since, Option<Returning>) {
        let Connect { pid, offset, .. } = connect;
        if pid.is_none() && offset.is_none() {
            return (Since::Now, None);
        }
        let mut served = offset.and_then(|offset| self.parts.hub.open_offset(&offset));
        let ticket = pid.as_deref().and_then(|pid| self.parts.tickets.open(pid));
        let ticket = ticket.filter(|ticket| ticket.owner == owner);
        let session = ticket.as_ref().and_then(|ticket| ticket.session.parse().ok());
        let (Some(pid), Some(ticket), Some(session)) = (pid, ticket, session) else {
            return (Since::Return(Return { started: None, served }), None);
        };
        let (known, learnt) = self.sessions.known(session, Instant::now());
        let within = |since: u64, most: Duration| now_seconds().saturating_sub(since) <= most.as_secs();
        let is_back_in_time = match known {
            Known::Here | Known::Away => true,
            Known::Left => return (Since::Now, None),
            Known::Nothing => {
                let last_here = served.as_ref().map_or(0, |offset| u64::from(offset.at));
                within(last_here.max(ticket.issued), self.parts.recovery_window)
            }
        };
        let is_vouched_for = within(ticket.vouched.max(learnt.vouched), self.parts.unvouched_max);
        let vouches = is_back_in_time && is_vouched_for && !learnt.revoked;
        // It is served from what it says, or at least from the beginning of its session, as it has seen all that came
        // before. What it says of a provisional session counts for nothing.
        let started = self.parts.hub.open_offset(&ticket.offset);
        if ticket.provisional {
            served = None;
        }
        let since = Since::Return(Return { started, served });
        (since, Some(Returning { pid, session, ticket, learnt, vouches }))
    }

    /// Asks Redis until it answers.
    async fn find(&self, socket: &Socket, token: Option<&Token>) -> Found {
        let Some(token) = token else { return Found::Unreadable };
        let mut pause = FIRST_PAUSE;
        loop {
            match self.parts.users.find(token).await {
                Ok(found) => return found,
                Err(error) => tracing::debug!(sid = %socket.engine_sid(), %error, "cannot look up a token yet"),
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Joins the rooms; the shard acknowledges.
    fn join(&self, socket: &Socket, mut arrival: Arrival, permit: OwnedSemaphorePermit) {
        let mut phase = socket.state().phase();
        let Phase::Connecting(asking) = &mut *phase else { return };
        let asking = if arrival.provisional { asking.take() } else { None };
        let known = arrival.returning.as_ref().map(Returning::rooms);
        let (rooms, lost) = split(rooms(arrival.user.as_ref()), known.as_deref());
        let since = arrival.since;
        if let Some(returning) = &arrival.returning {
            arrival.continues = !lost && rooms.gained.is_empty();
            if lost {
                self.sessions.revoke(returning.session, Instant::now());
            }
        }
        tracing::debug!(sid = %socket.engine_sid(), had = rooms.had.len(), gained = rooms.gained.len(), "joins");
        let newcomer = Arc::clone(socket);
        let welcome = move |joined| {
            newcomer.handler().welcome(&newcomer, &joined, arrival);
            drop(permit);
        };
        let membership = self.parts.hub.join(Browser(Arc::clone(socket)), rooms, since, Instant::now(), welcome);
        *phase = Phase::Connected { membership, sid: None, asking };
    }

    /// In the shard, before anything live: the missed events, then CONNECT, then for a new session its first offset.
    fn welcome(&self, socket: &Socket, joined: &Joined, mut arrival: Arrival) {
        let returning = arrival.returning.take();
        let metrics = &self.parts.metrics;
        metrics.count(match (&returning, arrival.since) {
            (Some(_), _) if joined.complete => Counter::Recovered,
            (_, Since::Now) => Counter::Connects,
            _ => Counter::NotRecovered,
        });
        metrics.add(Counter::Replayed, joined.missed.len() as u64);
        // A browser that begins a new session leaves the connection of its old one behind.
        let old = returning.as_ref().and_then(|returning| self.sessions.connection(returning.session));
        let recovered = returning.filter(|_| joined.complete && arrival.continues);
        let is_new = recovered.is_none();
        let at = self.parts.hub.seal_offset(&joined.at);
        let vouched = arrival.vouched;
        let (sid, pid) = match recovered {
            Some(Returning { session, pid, .. }) => (session, pid),
            None => self.issue(arrival, at.clone()),
        };
        let mut phase = socket.state().phase();
        let Phase::Connected { sid: slot, .. } = &mut *phase else { return };
        *slot = Some(sid);
        socket.prove();
        let replaced = self.sessions.enter(sid, Arc::downgrade(socket)).or(old);
        self.sessions.vouch(sid, vouched);
        drop(phase);
        if let Some(replaced) = replaced.and_then(|replaced| replaced.upgrade()) {
            replaced.close(CloseReason::Forced);
        }
        let (connect, prime) = (wire::connect(sid.as_str(), &pid), is_new.then(|| wire::prime(&at)));
        let missed = joined.missed.iter().map(|event| event.form(&self.wire));
        let frames: Vec<&Frame> = missed.chain([&connect]).chain(&prime).collect();
        socket.send_excused(&frames, joined.missed.len());
    }

    /// A new session and its ticket, of a browser that is served up to `at` from now on.
    fn issue(&self, arrival: Arrival, at: String) -> (Sid, String) {
        let Arrival { owner, since, user, vouched, provisional, .. } = arrival;
        let offset = match since {
            // It must be served from there again.
            Since::Return(Return { started, served }) if provisional => {
                served.or(started).map(|offset| self.parts.hub.seal_offset(&offset)).unwrap_or_default()
            }
            _ => at,
        };
        let sid = Sid::new();
        let session = sid.to_string();
        let ticket = Ticket { session, owner, user, issued: now_seconds(), vouched, offset, provisional };
        (sid, self.parts.tickets.seal(ticket))
    }
}

fn now_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
