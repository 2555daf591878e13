//! CONNECT: find out who it is, join the rooms, replay what was missed, and only then acknowledge.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use engineioxide_core::Sid;
use tokio::time::{sleep, timeout};

use super::{
    Member, Phase, SocketIo,
    sessions::Known,
    wire::{self, Connect},
};
use crate::{
    auth::{EVERYONE, Found, Ticket, Token, User},
    engineio::{CloseReason, Frame, Session},
    hub::{Joined, Offset, Since},
    metrics::Counter,
};

/// How long a browser waits for Redis before it is connected with what is known.
const PATIENCE: Duration = Duration::from_secs(2);

/// Pause between two lookups while Redis does not answer, doubled up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

type Socket = Arc<Session<SocketIo>>;

/// What a browser came back with.
struct Returning {
    pid: String,
    session: Sid,
    ticket: Ticket,
    /// Whether the ticket's rooms may serve when Redis does not say which rooms it has now.
    vouches: bool,
}

/// How a browser joins.
struct Arrival {
    since: Since,
    /// The session it goes on with, if nothing is lost.
    returning: Option<Returning>,
    user: Option<User>,
    /// Redis has not said yet who it is.
    provisional: bool,
}

/// Runs from the CONNECT packet to its acknowledgement, and on until Redis has answered.
pub(super) async fn connect(socket: Socket, connect: Connect, attempt: u32) {
    let io = socket.handler();
    let (connect, returning) = io.returning(connect);
    let token = socket.state().token.clone().or_else(|| connect.channel_token.as_deref().and_then(Token::parse));
    let mut lookup = std::pin::pin!(io.find(&socket, token.as_ref(), attempt));
    let found = timeout(PATIENCE, &mut lookup).await;
    match found {
        Ok(Some(found)) => return io.join(&socket, &connect, returning, Some(found)),
        Ok(None) => return,
        Err(_) => {}
    }
    io.parts.metrics.count(Counter::LookupsLate);
    let vouched = vouched(returning.as_ref());
    io.join(&socket, &connect, returning, None);
    let Some(found) = lookup.await else { return };
    if let (Phase::Connected { membership, .. }, true) = (&*socket.state().phase(), is_current(&socket, attempt)) {
        membership.set_rooms(rooms(found.or(vouched).as_ref()));
    }
}

/// Whether the browser has not left and connected again since.
fn is_current(socket: &Socket, attempt: u32) -> bool {
    socket.state().attempt.load(Ordering::Relaxed) == attempt
}

/// Whom the ticket speaks for, when Redis does not say.
fn vouched(returning: Option<&Returning>) -> Option<User> {
    returning.filter(|returning| returning.vouches)?.ticket.user.clone()
}

fn rooms(user: Option<&User>) -> Vec<String> {
    std::iter::once(EVERYONE.to_owned()).chain(user.into_iter().flat_map(User::rooms)).collect()
}

impl SocketIo {
    /// The session that the browser returns to, if there is one. Of a session it took leave of nothing counts.
    fn returning(&self, connect: Connect) -> (Connect, Option<Returning>) {
        let ticket = connect.pid.as_deref().and_then(|pid| self.parts.tickets.open(pid));
        let session = ticket.as_ref().and_then(|ticket| ticket.session.parse().ok());
        let (Some(pid), Some(ticket), Some(session)) = (connect.pid.clone(), ticket, session) else {
            return (connect, None);
        };
        let vouches = match self.sessions.known(session, Instant::now()) {
            Known::Here | Known::Away => true,
            Known::Left => return (Connect { pid: None, offset: None, ..connect }, None),
            Known::Nothing => now_seconds().saturating_sub(ticket.issued) <= self.parts.recovery_window.as_secs(),
        };
        (connect, Some(Returning { pid, session, ticket, vouches }))
    }

    /// Asks Redis until it answers or the browser is gone; `None` then.
    async fn find(&self, socket: &Socket, token: Option<&Token>, attempt: u32) -> Option<Found> {
        let Some(token) = token else { return Some(Found::Unreadable) };
        let mut pause = FIRST_PAUSE;
        loop {
            match self.parts.users.find(token).await {
                Ok(found) => return Some(found),
                Err(error) => tracing::debug!(sid = %socket.sid(), %error, "cannot look up a token yet"),
            }
            sleep(pause).await;
            if socket.is_closed() || !is_current(socket, attempt) {
                return None;
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Joins the rooms; the shard acknowledges. `found` is `None` while Redis has not answered.
    fn join(&self, socket: &Socket, connect: &Connect, returning: Option<Returning>, found: Option<Found>) {
        let provisional = found.is_none();
        let user = found.unwrap_or(Found::Absent).or(vouched(returning.as_ref()));
        let since = since(connect, returning.as_ref());
        // Another user's session is not this one's to go on with, nor one that was never sure of its rooms.
        let returning = returning.filter(|Returning { ticket, .. }| {
            let same = ticket.user.as_ref().is_none_or(|was| user.as_ref().is_some_and(|user| user.id == was.id));
            same && !ticket.provisional
        });
        let rooms = rooms(user.as_ref());
        let mut phase = socket.state().phase();
        if !matches!(*phase, Phase::Connecting) {
            return;
        }
        tracing::debug!(sid = %socket.sid(), rooms = rooms.len(), ?since, "joins");
        let newcomer = Arc::clone(socket);
        let arrival = Arrival { since, returning, user, provisional };
        let membership = self.parts.hub.join(Member(Arc::clone(socket)), rooms, since, move |joined| {
            newcomer.handler().welcome(&newcomer, &joined, arrival);
        });
        *phase = Phase::Connected { membership, sid: None };
    }

    /// In the shard, before anything live: the missed events, then CONNECT, then for a new session its first offset.
    fn welcome(&self, socket: &Socket, joined: &Joined<Frame>, arrival: Arrival) {
        let Arrival { since, returning, user, provisional } = arrival;
        let recovered = returning.filter(|_| joined.complete);
        let metrics = &self.parts.metrics;
        metrics.count(match (&recovered, since) {
            (Some(_), _) => Counter::Recovered,
            (None, Since::Now) => Counter::Connects,
            (None, _) => Counter::NotRecovered,
        });
        metrics.add(Counter::Replayed, joined.missed.len() as u64);
        let is_new = recovered.is_none();
        let at = joined.at.to_string();
        let (sid, pid) = if let Some(Returning { session, pid, .. }) = recovered {
            (session, pid)
        } else {
            let served = match since {
                Since::Offset(offset) if provisional => offset.to_string(),
                Since::Unknown if provisional => String::new(),
                _ => at.clone(),
            };
            self.issue(user, served, provisional)
        };
        let mut phase = socket.state().phase();
        let Phase::Connected { sid: slot, .. } = &mut *phase else { return };
        *slot = Some(sid);
        socket.prove();
        let replaced = self.sessions.enter(sid, Arc::downgrade(socket));
        drop(phase);
        if let Some(replaced) = replaced.and_then(|replaced| replaced.upgrade()) {
            replaced.close(CloseReason::Forced);
        }
        let (connect, prime) = (wire::connect(sid.as_str(), &pid), is_new.then(|| wire::prime(&at)));
        let frames: Vec<&Frame> = joined.missed.iter().chain([&connect]).chain(&prime).collect();
        socket.send_excused(&frames, joined.missed.len());
    }

    /// A new session and its ticket.
    fn issue(&self, user: Option<User>, offset: String, provisional: bool) -> (Sid, String) {
        let sid = Sid::new();
        let ticket = Ticket { session: sid.to_string(), user, issued: now_seconds(), offset, provisional };
        (sid, self.parts.tickets.seal(&ticket))
    }
}

/// Up to where the browser was served: what it says, or what its ticket says when that is later, as it has seen all that
/// came before its ticket. What it says of a provisional session counts for nothing.
fn since(connect: &Connect, returning: Option<&Returning>) -> Since {
    let said: Option<Offset> = connect.offset.as_deref().and_then(|offset| offset.parse().ok());
    let issued: Option<Offset> = returning.and_then(|returning| returning.ticket.offset.parse().ok());
    let provisional = returning.is_some_and(|returning| returning.ticket.provisional);
    match (said, issued) {
        (_, issued) if provisional => issued.map_or(Since::Unknown, Since::Offset),
        (None, _) if connect.offset.is_some() => Since::Unknown,
        (Some(said), Some(issued)) if said.epoch == issued.epoch && said.sequence < issued.sequence => {
            Since::Offset(issued)
        }
        (Some(offset), _) | (None, Some(offset)) => Since::Offset(offset),
        (None, None) if connect.pid.is_none() => Since::Now,
        (None, None) => Since::Unknown,
    }
}

fn now_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
