//! CONNECT: have the browser admitted, join its rooms, replay what was missed, and only then acknowledge.

use std::{mem, sync::Arc, time::Instant};

use super::{
    Browser, Phase, SocketIo, SocketIoWire,
    wire::{self, Connect},
};
use crate::{
    admission::{Admitted, Arrival, Claim, SessionId, Token},
    engineio::{CloseReason, Frame, Session},
    hub::{Joined, Rooms},
};

type Socket = Arc<Session<SocketIo>>;

/// Runs from the CONNECT packet to the browser's rooms, and on until Redis has said which rooms these are. It is dropped
/// when the browser leaves.
pub(super) async fn connect(socket: Socket, connect: Connect) {
    let SocketIo { admission, wire: SocketIoWire(hub), .. } = socket.handler();
    let Connect { pid, offset, channel_token } = connect;
    let token = socket.state().token.clone().or_else(|| channel_token.as_deref().and_then(Token::parse));
    drop(channel_token);
    let (arrival, pending) = admission.admit(hub, Claim { token, ticket: pid, offset }).await;
    let Some(pending) = pending else { return join(&socket, arrival, false) };
    join(&socket, arrival, true);
    let rooms = pending.await;
    if let Phase::Joining(membership, asking) | Phase::Connected(membership, _, asking) =
        &mut *socket.state().phase.lock()
    {
        membership.set_rooms(rooms, Instant::now());
        *asking = None;
    }
}

/// Gives a browser other rooms while it is connected with this session. Not while Redis is still asked for its user: the
/// answer to that may be older.
pub(super) fn set_rooms(socket: &Session<SocketIo>, session: &SessionId, rooms: Rooms) -> bool {
    match &*socket.state().phase.lock() {
        Phase::Connected(membership, id, None) if id == session => membership.set_rooms(rooms, Instant::now()),
        _ => return false,
    }
    true
}

/// Joins the rooms; the shard acknowledges.
fn join(socket: &Socket, mut arrival: Arrival, is_pending: bool) {
    let mut phase = socket.state().phase.lock();
    let asking = match mem::take(&mut *phase) {
        Phase::Connecting(asking) => Some(asking).filter(|_| is_pending),
        other => return *phase = other,
    };
    let (rooms, since) = (mem::take(&mut arrival.rooms), arrival.since);
    tracing::debug!(sid = %socket.engine_sid(), had = rooms.had.len(), gained = rooms.gained.len(), "joins");
    let newcomer = Arc::clone(socket);
    let welcome = move |joined| welcome(&newcomer, &joined, arrival);
    let SocketIoWire(hub) = &socket.handler().wire;
    *phase = Phase::Joining(hub.join(Browser(Arc::clone(socket)), rooms, since, Instant::now(), welcome), asking);
}

/// In the shard, before anything live: the missed events, then CONNECT, then for a new session its first offset.
fn welcome(socket: &Socket, joined: &Joined, arrival: Arrival) {
    let SocketIo { admission, wire, .. } = socket.handler();
    let mut phase = socket.state().phase.lock();
    let (membership, asking) = match mem::take(&mut *phase) {
        Phase::Joining(membership, asking) => (membership, asking),
        other => return *phase = other,
    };
    socket.prove();
    let Admitted { session, ticket, offset, replaced } = admission.welcome(&wire.0, joined, arrival, socket);
    let connect = wire::connect(session.as_str(), &ticket);
    *phase = Phase::Connected(membership, session, asking);
    drop(phase);
    if let Some(replaced) = replaced {
        replaced.close(CloseReason::Forced);
    }
    let prime = offset.map(|offset| wire::prime(&offset));
    let missed = joined.missed.iter().map(|event| event.form(wire));
    let frames: Vec<&Frame> = missed.chain([&connect]).chain(&prime).collect();
    socket.send_excused(&frames, joined.missed.len());
}
