//! CONNECT: have the browser admitted, join its rooms, replay what was missed, and only then acknowledge.

use std::{
    mem,
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use super::{
    Member, Phase, SocketIo,
    wire::{self, Connect},
};
use crate::{
    admission::{Admitted, Arrival, Claim, Token},
    engineio::{CloseReason, Frame, Session},
    hub::Joined,
};

type Socket = Arc<Session<SocketIo>>;

/// Runs from the CONNECT packet to the browser's rooms, and on until Redis has said which rooms these are.
pub(super) async fn connect(socket: Socket, connect: Connect, number: u32) {
    let parts = &socket.handler().parts;
    let Connect { pid, offset, channel_token } = connect;
    let token = socket.state().token.clone().or_else(|| channel_token.as_deref().and_then(Token::parse));
    let claim = Claim { token, ticket: pid, offset };
    // The browser may leave and connect again, which is another task's.
    let is_current = || socket.state().connects.load(Ordering::Relaxed) == number;
    let admitted = parts.admission.admit(&parts.hub, claim, || !socket.is_closed() && is_current()).await;
    let Some((arrival, pending)) = admitted else { return };
    join(&socket, arrival);
    let Some(pending) = pending else { return };
    let Some(rooms) = parts.admission.settle(pending).await else { return };
    let phase = socket.state().phase();
    if let (Phase::Joining(membership) | Phase::Connected(membership, _), true) = (&*phase, is_current()) {
        membership.set_rooms(rooms);
    }
}

/// Joins the rooms; the shard acknowledges.
fn join(socket: &Socket, mut arrival: Arrival) {
    let mut phase = socket.state().phase();
    if !matches!(*phase, Phase::Connecting) {
        return;
    }
    let (rooms, since) = (mem::take(&mut arrival.rooms), arrival.since);
    tracing::debug!(sid = %socket.sid(), had = rooms.had.len(), gained = rooms.gained.len(), "joins");
    let newcomer = Arc::clone(socket);
    let welcome = move |joined| welcome(&newcomer, &joined, arrival);
    let hub = &socket.handler().parts.hub;
    *phase = Phase::Joining(hub.join(Member(Arc::clone(socket)), rooms, since, Instant::now(), welcome));
}

/// In the shard, before anything live: the missed events, then CONNECT, then for a new session its first offset.
fn welcome(socket: &Socket, joined: &Joined<Frame>, arrival: Arrival) {
    let parts = &socket.handler().parts;
    let mut phase = socket.state().phase();
    let membership = match mem::take(&mut *phase) {
        Phase::Joining(membership) => membership,
        other => return *phase = other,
    };
    socket.prove();
    let Admitted { session, ticket, offset, replaced } = parts.admission.welcome(&parts.hub, joined, arrival, socket);
    let connect = wire::connect(session.as_str(), &ticket);
    *phase = Phase::Connected(membership, session);
    drop(phase);
    if let Some(replaced) = replaced {
        replaced.close(CloseReason::Forced);
    }
    let prime = offset.map(|offset| wire::prime(&offset));
    let frames: Vec<&Frame> = joined.missed.iter().chain([&connect]).chain(&prime).collect();
    socket.send_excused(&frames, joined.missed.len());
}
