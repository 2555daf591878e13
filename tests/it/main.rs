//! The server as a whole, over real sockets and against a real Redis: one file for each topic.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails where its setup fails")]

mod autobahn;
mod bounds;
mod cli;
mod collab_auth;
mod corpora;
mod drain;
mod gap;
mod harness;
mod history;
mod hostile;
mod layers;
mod lookup;
mod memory;
mod model;
mod outage;
mod paths;
mod polling;
mod rails;
mod readme;
mod reauth;
mod recovery;
mod redis_url;
mod screen;
mod slow;
mod slow_return;
mod stop;
mod stress;
mod tickets;
mod told;
mod updates;
mod wires;
