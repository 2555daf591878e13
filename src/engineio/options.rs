//! What an [`Engine`](super::Engine) can be told.

use std::time::Duration;

use super::Cors;
use crate::config::Networks;

/// Behaviour of an [`Engine`](super::Engine); the defaults are Node's.
#[derive(Clone, Debug)]
pub struct Options {
    /// How often the server pings a client.
    pub ping_interval: Duration,
    /// How long it waits for the answer.
    pub ping_timeout: Duration,
    /// How long a WebSocket may take to prove itself before the upgrade is given up.
    pub upgrade_timeout: Duration,
    /// How long a message or POST may take from its first byte to its last.
    pub message_timeout: Duration,
    /// Largest message or POST from a client, in bytes.
    pub max_payload: usize,
    /// The limits until [`Session::prove`](super::Session::prove); `None` when sessions have nothing to prove.
    pub unproven: Option<Unproven>,
    /// Most sessions.
    pub max_sessions: usize,
    /// Most sessions of one client address, where that is known.
    pub max_sessions_per_address: usize,
    /// Proxies whose `X-Forwarded-For` names the client.
    pub trusted_proxies: Networks,
    /// Most bytes that may wait for one client before it is closed as too slow.
    pub outbox_bytes: usize,
    /// Cross-origin rules, `None` for no header at all.
    pub cors: Option<Cors>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            ping_interval: Duration::from_secs(25),
            ping_timeout: Duration::from_secs(20),
            upgrade_timeout: Duration::from_secs(10),
            message_timeout: Duration::from_secs(30),
            max_payload: 1_000_000,
            unproven: None,
            max_sessions: usize::MAX,
            max_sessions_per_address: usize::MAX,
            trusted_proxies: Networks::default(),
            outbox_bytes: 16 << 20,
            cors: None,
        }
    }
}

/// The limits of a session that the handler has not vouched for.
#[derive(Clone, Copy, Debug)]
pub struct Unproven {
    /// How long it may stay so.
    pub timeout: Duration,
    /// How long a message or POST may take from its first byte to its last.
    pub message_timeout: Duration,
    /// Largest message or POST, in bytes.
    pub max_payload: usize,
}
