//! WebSocket (RFC 6455), the server's side.
//!
//! Answers for the handshake, frames in both directions, fragments, control frames, UTF-8, close codes, the bounds of
//! what a peer may send and of what may wait for it, slow readers, and the end of a connection. Negotiates no extension
//! and no subprotocol. Generic over the [`Socket`]; knows nothing of what messages mean, and of how sockets are accepted.

mod budget;
mod connection;
mod decoder;
mod frame;
pub mod handshake;
mod outbox;
mod socket;

pub use self::{
    budget::{Budget, Buffer, Exhausted},
    connection::{Allowance, Connection, Disconnect, SendError, Shared},
    decoder::{Decoder, Received, Violation},
    frame::Frame,
    outbox::Outbox,
    socket::Socket,
};
