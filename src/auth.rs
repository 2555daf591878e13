//! Who a browser is, which rooms that gives it, the ticket it can come back with, and which documents it may edit.
//!
//! Knows Rails' keys in Redis and its endpoint, and nothing of sockets.

mod key;
pub mod rails;
mod rights;
mod ticket;
mod token;

pub use self::{
    key::Key,
    rights::check_rights,
    ticket::{Owner, Ticket, Tickets},
    token::{Answers, EVERYONE, Found, Token, User, Users},
};
