//! The table of variables: `--help`, the README and the parser all take names and defaults from here.

use std::fmt::Write;

/// An environment variable that is read.
#[derive(Debug)]
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// What is assumed while it is unset or empty. For plain values this is the very text the parser is given; where
    /// the default depends on something else, a phrase.
    pub default: &'static str,
    /// What it does, one line, with units and the accepted forms.
    pub help: &'static str,
    /// Its value is never shown.
    pub secret: bool,
}

const fn plain(name: &'static str, default: &'static str, help: &'static str) -> Variable {
    Variable { name, default, help, secret: false }
}

const fn secret(name: &'static str, default: &'static str, help: &'static str) -> Variable {
    Variable { name, default, help, secret: true }
}

pub(super) static PORT: Variable = plain("PORT", "5000", "TCP port to listen on; 0 takes a free one");
pub(super) static BIND: Variable =
    plain("BIND", "all interfaces", "address to listen on, for example 127.0.0.1 or ::1");
pub(super) static PUBLIC_APP_URL: Variable =
    plain("PUBLIC_APP_URL", "https://$CANONICAL_HOST", "address of Loomio in the browser: the origin CORS allows");
pub(super) static PRIVATE_APP_URL: Variable =
    plain("PRIVATE_APP_URL", "APP_URL", "address of Loomio from here, for example http://app:3000: who is asked");
pub(super) static APP_URL: Variable = plain("APP_URL", "PUBLIC_APP_URL", "the same, used when that is unset");
pub(super) static CANONICAL_HOST: Variable =
    plain("CANONICAL_HOST", "VIRTUAL_HOST", "host name of Loomio, for example loomio.example.org");
pub(super) static VIRTUAL_HOST: Variable =
    plain("VIRTUAL_HOST", "no origin", "host name of this service; Loomio's is taken to be the same without channels.");
pub(super) static STRICT_ORIGIN: Variable =
    plain("STRICT_ORIGIN", "0", "1 also refuses WebSockets that come from another origin");
pub(super) static REDIS_URL: Variable = secret(
    "REDIS_URL",
    "redis://localhost:6379/0",
    "where Rails publishes: redis, rediss, valkey, valkeys, unix or redis-sentinel",
);
pub(super) static PING_INTERVAL_MS: Variable =
    plain("PING_INTERVAL_MS", "25000", "milliseconds between two heartbeats");
pub(super) static PING_TIMEOUT_MS: Variable =
    plain("PING_TIMEOUT_MS", "20000", "milliseconds a browser has to answer a heartbeat");
pub(super) static CONNECT_TIMEOUT_MS: Variable =
    plain("CONNECT_TIMEOUT_MS", "45000", "milliseconds a connection has to join its namespace");
pub(super) static OUTBOX_BYTES: Variable =
    plain("OUTBOX_BYTES", "16MiB", "what one slow browser may have waiting before it is closed");
pub(super) static MAX_CONNECTIONS: Variable =
    plain("MAX_CONNECTIONS", "open files", "connections served at a time; at most what the limit of open files allows");
pub(super) static MAX_SESSIONS: Variable =
    plain("MAX_SESSIONS", "MAX_CONNECTIONS", "browsers with a session at a time, those that poll included");
pub(super) static MAX_SESSIONS_PER_ADDRESS: Variable =
    plain("MAX_SESSIONS_PER_ADDRESS", "4096", "the same for each client address, if it is known");
pub(super) static RECOVERY_WINDOW: Variable =
    plain("RECOVERY_WINDOW", "30m", "how long a browser may be away and still miss nothing: 1800, 1800s, 30m, 2h");
pub(super) static RECOVERY_LOG_BYTES: Variable =
    plain("RECOVERY_LOG_BYTES", "64MiB", "memory for messages kept for that: 67108864, 64MiB, 64M");
pub(super) static REPLAY_BYTES: Variable =
    plain("REPLAY_BYTES", "8MiB", "what a returning browser is given at most; if it missed more it starts over");
pub(super) static UNVOUCHED_MAX: Variable =
    plain("UNVOUCHED_MAX", "24h", "how long a browser keeps its rooms when Redis no longer knows its token");
pub(super) static GAP_NOTICE: Variable = plain(
    "GAP_NOTICE",
    "reload",
    "told to pages when updates may be lost: reload, off, or a text beside the reload button",
);
pub(super) static CHANNELS_SECRET: Variable = secret(
    "CHANNELS_SECRET",
    "SECRET_COOKIE_TOKEN",
    "seals the tickets of returning browsers; the same on every node, 16 characters or more",
);
pub(super) static SECRET_COOKIE_TOKEN: Variable =
    secret("SECRET_COOKIE_TOKEN", "a random key", "Loomio's own secret, used when CHANNELS_SECRET is unset");
pub(super) static RAILS_MAX_CONCURRENCY: Variable =
    plain("RAILS_MAX_CONCURRENCY", "16", "requests to Loomio under way at a time, 1 to 256");
pub(super) static RAILS_HOLD_SECONDS: Variable =
    plain("RAILS_HOLD_SECONDS", "30", "seconds a check waits for a Loomio that restarts, 1 to 300");
pub(super) static COLLAB_AUTH_PER_MINUTE: Variable =
    plain("COLLAB_AUTH_PER_MINUTE", "60", "checks a minute for each client address, if forwarded, and each token");
pub(super) static COLLAB_STRICT_NAMES: Variable =
    plain("COLLAB_STRICT_NAMES", "0", "1 refuses document names of a form Loomio does not use today");
pub(super) static TRUSTED_PROXIES: Variable =
    plain("TRUSTED_PROXIES", "private", "whose X-Forwarded-For counts: addresses, networks, private or none");
pub(super) static SHARDS: Variable = plain("SHARDS", "one per core", "workers that own the sockets, 1 to 64");
pub(super) static LOG_FORMAT: Variable = plain("LOG_FORMAT", "text", "text or json");
pub(super) static RUST_LOG: Variable =
    plain("RUST_LOG", "info", "what is logged: error, warn, info, debug, or directives such as info,hyper=warn");

/// Every variable that is read, in the order in which it is explained.
pub static VARIABLES: [&Variable; 31] = [
    &REDIS_URL,
    &PUBLIC_APP_URL,
    &PRIVATE_APP_URL,
    &APP_URL,
    &CANONICAL_HOST,
    &VIRTUAL_HOST,
    &STRICT_ORIGIN,
    &PORT,
    &BIND,
    &CHANNELS_SECRET,
    &SECRET_COOKIE_TOKEN,
    &RECOVERY_WINDOW,
    &RECOVERY_LOG_BYTES,
    &REPLAY_BYTES,
    &UNVOUCHED_MAX,
    &GAP_NOTICE,
    &MAX_CONNECTIONS,
    &MAX_SESSIONS,
    &MAX_SESSIONS_PER_ADDRESS,
    &OUTBOX_BYTES,
    &PING_INTERVAL_MS,
    &PING_TIMEOUT_MS,
    &CONNECT_TIMEOUT_MS,
    &RAILS_MAX_CONCURRENCY,
    &RAILS_HOLD_SECONDS,
    &COLLAB_AUTH_PER_MINUTE,
    &COLLAB_STRICT_NAMES,
    &TRUSTED_PROXIES,
    &SHARDS,
    &LOG_FORMAT,
    &RUST_LOG,
];

/// The table for `--help`: two lines for each variable.
pub fn help_table() -> String {
    VARIABLES.iter().fold(String::new(), |mut table, Variable { name, default, help, .. }| {
        let _ = writeln!(table, "  {name} [default: {default}]\n      {help}");
        table
    })
}

/// The table of the README, as Markdown. A test compares the two.
pub fn markdown_table() -> String {
    let head = "| variable | default | meaning |\n|---|---|---|\n".to_owned();
    VARIABLES.iter().fold(head, |mut table, Variable { name, default, help, .. }| {
        let _ = writeln!(table, "| `{name}` | {default} | {help} |");
        table
    })
}
