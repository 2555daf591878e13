//! Who a browser is, which rooms that gives it, the ticket it can come back with, and which documents it may edit.
//!
//! Knows Rails' keys in Redis and its endpoint, and nothing of sockets.

pub mod rails;
mod rights;
mod ticket;
mod token;

pub use self::{
    rights::check_rights,
    ticket::{Ticket, Tickets},
    token::{EVERYONE, Found, Token, User, Users},
};
