//! Live updates for Loomio: what Rails publishes to Redis reaches every browser in the room, and those that were away
//! get what they missed.
//!
//! The house, from the top down; a module sees only those below its row, never its neighbours:
//!
//! | module | answers for | must not know |
//! |---|---|---|
//! | [`cli`] | arguments, environment, exit codes | how anything is served |
//! | [`app`] | putting the parts together, their start and end | what the parts do |
//! | [`socketio`] | what a browser is told, and when | transports, Redis |
//! | [`dispatch`] | which message goes to which room | where it came from, how it is sent |
//! | [`collab_auth`] | what a Hocuspocus server asks before it opens a document | how Rails is asked |
//! | [`admin`], [`demo`] | what operators ask; the page of `loomio-channels demo` | browsers' sockets |
//! | [`admission`] | from a token or ticket to a user, rooms and a position to serve from | wires |
//! | [`hub`] | rooms, fan-out, recovery | protocols, Redis, HTTP |
//! | [`bus`] | messages as Rails writes them, from Redis or from memory | rooms' members |
//! | [`rails`] | questions to Rails over HTTP: one client, one bound, one outage rule | who asks, over which protocol |
//! | [`engineio`] | transports, heartbeats, slow clients | Loomio, Socket.IO |
//! | [`redis_client`], [`listener`], [`websocket`] | connections to Redis; the port; WebSockets | channels and keys; what is served; what messages mean |
//! | [`lifecycle`], [`telemetry`], [`tls`] | tasks and their end; the log; cryptography | what they are for |
//! | [`config`], [`metrics`] | every setting; every count | all of the above |

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
