//! Who a browser is, which rooms that gives it, and the ticket it can come back with.
//!
//! Knows Rails' keys in Redis, and nothing of sockets.

mod key;
mod rights;
mod ticket;
mod token;

pub use self::{
    key::Key,
    rights::check_rights,
    ticket::{Owner, Ticket, Tickets},
    token::{EVERYONE, Found, Token, User, Users},
};
