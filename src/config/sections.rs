//! The sections of [`Config`](super::Config).

use std::{net::IpAddr, time::Duration};

use super::{AllowedOrigin, Networks, RailsEndpoint, Secret};

/// Where to listen, and which browsers to let in.
#[derive(Clone, Debug)]
pub struct HttpConfig {
    /// TCP port. `PORT`, default 5000; 0 takes a free one.
    pub port: u16,
    /// Address to listen on. `BIND`, default all interfaces, IPv6 and IPv4; of the demo, 127.0.0.1.
    pub bind: Option<IpAddr>,
    /// The origin CORS allows. `PUBLIC_APP_URL`, else `CANONICAL_HOST`, else `VIRTUAL_HOST`; without any, none.
    pub allowed_origin: Option<AllowedOrigin>,
    /// Whether other origins are refused over WebSocket too. `STRICT_ORIGIN`, default 0.
    pub strict_origin: bool,
    /// The peers whose `X-Forwarded-For` counts. `TRUSTED_PROXIES`, default private networks.
    pub trusted_proxies: Networks,
}

/// How many may be served at a time.
#[derive(Clone, Debug)]
pub struct LimitsConfig {
    /// Connections. `MAX_CONNECTIONS`, default as many as the limit of open files allows.
    pub connections: Option<usize>,
    /// Sessions. `MAX_SESSIONS`, default as many as connections.
    pub sessions: Option<usize>,
    /// Sessions of one client address. `MAX_SESSIONS_PER_ADDRESS`, default 4096.
    pub sessions_per_address: usize,
}

/// Heartbeats and the bound on slow browsers.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Time between two heartbeats. `PING_INTERVAL_MS`, default 25000.
    pub ping_interval: Duration,
    /// Time a browser has to answer one. `PING_TIMEOUT_MS`, default 20000.
    pub ping_timeout: Duration,
    /// Time a connection has to join its namespace. `CONNECT_TIMEOUT_MS`, default 45000.
    pub connect_timeout: Duration,
    /// Bytes one slow browser may have waiting before it is closed. `OUTBOX_BYTES`, default 16 MiB.
    pub outbox_bytes: usize,
}

/// What a returning browser can still get.
#[derive(Clone, Debug)]
pub struct RecoveryConfig {
    /// How long a browser may be away. `RECOVERY_WINDOW`, default 30 minutes.
    pub window: Duration,
    /// Bytes of messages kept for that. `RECOVERY_LOG_BYTES`, default 64 MiB.
    pub log_bytes: usize,
    /// Bytes that one returning browser is given at most. `REPLAY_BYTES`, default 8 MiB.
    pub replay_bytes: usize,
    /// How long the rooms of a ticket serve after Redis last confirmed them. `UNVOUCHED_MAX`, default 24 hours.
    pub unvouched_max: Duration,
    /// What browsers are told when messages may have been lost. `GAP_NOTICE`, default reload.
    pub gap_notice: GapNotice,
    /// What the ticket key is derived from. `CHANNELS_SECRET`, else `SECRET_COOKIE_TOKEN`, default none: a random key.
    pub secret: Option<Secret>,
    /// The variable the secret came from.
    pub secret_variable: Option<&'static str>,
}

/// What browsers are told when messages may have been lost.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum GapNotice {
    /// Nothing.
    #[default]
    Off,
    /// To reload the page, with a text of ours or Loomio's own words.
    Reload(Option<String>),
}

/// How Rails is asked.
#[derive(Clone, Debug)]
pub struct RailsConfig {
    /// Where. `PRIVATE_APP_URL`, else `APP_URL`, else `PUBLIC_APP_URL`, else `CANONICAL_HOST`; without any, nowhere.
    pub endpoint: Option<RailsEndpoint>,
    /// Requests under way at a time. `RAILS_MAX_CONCURRENCY`, default 16.
    pub max_concurrency: usize,
    /// How long a check may take while Rails cannot answer. `RAILS_HOLD_SECONDS`, default 30.
    pub hold: Duration,
}

/// Which questions about the right to edit a document are taken, and how many.
#[derive(Clone, Debug)]
pub struct CollabConfig {
    /// Checks a minute, for each client address and for each token. `COLLAB_AUTH_PER_MINUTE`, default 60.
    pub auth_per_minute: u32,
    /// Whether document names of an unknown form are refused. `COLLAB_STRICT_NAMES`, default 0.
    pub strict_names: bool,
}

/// What is logged, and in which form.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// `LOG_FORMAT`, default text.
    pub format: LogFormat,
    /// Valid `EnvFilter` directives. `RUST_LOG`, default info.
    pub filter: String,
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line, for collectors.
    Json,
}
