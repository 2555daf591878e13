//! Live updates for Loomio: what Rails publishes to Redis reaches every browser in the room, and a browser that was away
//! gets what it missed.
//!
//! # The modules
//!
//! A module imports only from the rows below its own; `tests/it/layers.rs` enforces this, and the homes of crates.
//!
//! | module | answers for | must not know |
//! |---|---|---|
//! | [`cli`] | arguments, environment, exit codes | how anything is served |
//! | [`app`] | putting the parts together: build, bind, run | what the parts do |
//! | [`socketio`] | the wire Socket.IO 5: packets, and what a browser is told when | transports, Redis |
//! | [`dispatch`] | the room of each message, and notices of a gap | where a message came from, how it is sent |
//! | [`collab_auth`] | the question of a Hocuspocus server before it opens a document | how Rails is asked |
//! | [`admin`], [`demo`] | health for operators; the page of `loomio-channels demo` | browsers' sockets |
//! | [`admission`] | from a token or ticket to a user, rooms that follow it, and a position to serve from | wires |
//! | [`history`] | the log's copy in a Redis Stream, for restarts and other nodes | wires, rooms' members |
//! | [`hub`] | rooms, fan-out, recovery from a log of neutral events | protocols, Redis, HTTP |
//! | [`bus`] | messages as Rails writes them, from Redis or from memory, and proof of gaps | rooms' members |
//! | [`rails`] | questions to Rails over HTTP: one client, one limit, one rule for outages | callers and their protocols |
//! | [`engineio`] | Engine.IO 4: sessions over polling or WebSocket, heartbeats | Loomio, Socket.IO |
//! | [`redis_client`], [`listener`], [`websocket`] | connections to Redis; the port and HTTP; RFC 6455 | keys and channels; what is served; what messages mean |
//! | [`lifecycle`], [`telemetry`], [`tls`] | tasks, the drain and the stop; the log; cryptography | what they are for |
//! | [`config`], [`metrics`] | every setting; every count | everything above |
//!
//! # One message to N sockets
//!
//! 1. A [`bus::Source`] reads a message. Nothing slow sits behind the read.
//! 2. [`dispatch`] finds the room without building a tree of the JSON. The payload stays as Rails wrote it.
//! 3. The [`hub`] numbers the message and appends it to the log as a [`hub::Event`]: kind, room, payload, offset. It wakes
//!    the shards that have the room.
//! 4. A shard is a thread that owns its subscribers and follows the log with a cursor. No queue lies between publisher and
//!    shard, so none can overflow, and a join happens exactly between two events.
//! 5. The first subscriber of a wire that gets the event makes its form for that [`hub::Wire`]; every other one, in any
//!    shard, and every later replay share the bytes.
//! 6. The form goes straight to the socket from the shard's thread. What would block waits in the outbox of the
//!    connection, bounded in bytes. A connection whose outbox overflows is closed, and its browser recovers from the log.
//!
//! # Recovery
//!
//! A browser comes back with a ticket and an offset. [`admission`] opens the ticket, which is sealed and bound to its
//! token, asks Redis for the user's rooms as they are now, and says from where to serve; the shard replays what is missing
//! before it acknowledges. The session is recovered only if its rooms are the same and nothing was lost: neither dropped
//! from the log nor published while the bus was not subscribed. [`bus`] proves from Redis' own count of `PUBLISH` calls
//! that a gap was empty. What was published in one is read from another node's log, which [`history`] keeps in Redis; where
//! none has it, every session of that time is incomplete, and pages are asked to reload.
//!
//! # Bounds
//!
//! What a stranger can cause has a named constant or a variable, and a stated result when it is reached: connections in
//! [`listener`], sessions in [`engineio`], bytes of unfinished messages in [`websocket`], joins in [`admission`], replays
//! in [`hub`], questions in [`rails`].
//!
//! # Another wire, another bus
//!
//! A wire parses its packets, asks [`admission`], and implements [`hub::Wire`] and [`hub::Subscriber`];
//! `tests/it/wires.rs` holds a small one. A bus implements [`bus::Source`].

pub mod admin;
pub mod admission;
pub mod app;
pub mod bus;
pub mod cli;
pub mod collab_auth;
pub mod config;
pub mod demo;
pub mod dispatch;
pub mod engineio;
pub mod history;
pub mod hub;
pub mod lifecycle;
pub mod listener;
pub mod metrics;
pub mod rails;
pub mod redis_client;
pub mod socketio;
pub mod telemetry;
pub mod tls;
pub mod websocket;
