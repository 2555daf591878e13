//! The table of variables: `--help`, the README and the parser all take names and defaults from here.

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

/// Declares each variable: whether it is secret, its name, its default, its help.
macro_rules! variables {
    ($($kind:ident $name:ident = $default:literal, $help:literal;)+) => {
        $(pub(super) static $name: Variable =
            Variable { name: stringify!($name), default: $default, help: $help, secret: variables!($kind) };)+

        /// Every variable that is read, in the order in which it is explained.
        pub static VARIABLES: &[&Variable] = &[$(&$name,)+];
    };
    (plain) => { false };
    (secret) => { true };
}

variables! {
    secret REDIS_URL = "redis://localhost:6379/0",
        "where Rails publishes: redis, rediss, valkey, valkeys, unix or redis-sentinel";
    plain PUBLIC_APP_URL = "https://$CANONICAL_HOST", "address of Loomio in the browser: the origin CORS allows";
    plain PRIVATE_APP_URL = "APP_URL", "address of Loomio from here, for example http://app:3000: who is asked";
    plain APP_URL = "PUBLIC_APP_URL", "the same, used when that is unset";
    plain CANONICAL_HOST = "VIRTUAL_HOST", "host name of Loomio, for example loomio.example.org";
    plain VIRTUAL_HOST = "no origin", "host name of this service; Loomio's is taken to be the same without channels.";
    plain STRICT_ORIGIN = "0", "1 also refuses WebSockets that come from another origin";
    plain PORT = "5000", "TCP port to listen on; 0 takes a free one";
    plain BIND = "all interfaces", "address to listen on, for example 127.0.0.1 or ::1";
    secret CHANNELS_SECRET = "SECRET_COOKIE_TOKEN",
        "seals the tickets of returning browsers; the same on every node, 16 characters or more";
    secret SECRET_COOKIE_TOKEN = "a random key", "Loomio's own secret, used when CHANNELS_SECRET is unset";
    plain RECOVERY_WINDOW = "30m", "how long a browser may be away and still miss nothing: 1800, 1800s, 30m, 2h";
    plain RECOVERY_LOG_BYTES = "64MiB", "memory for messages kept for that: 67108864, 64MiB, 64M";
    plain REPLAY_BYTES = "8MiB", "what a returning browser is given at most; if it missed more it starts over";
    plain UNVOUCHED_MAX = "24h", "how long a browser keeps its rooms when Redis no longer knows its token";
    plain GAP_NOTICE = "reload",
        "told to pages when updates may be lost: reload, off, or a text beside the reload button";
    plain MAX_CONNECTIONS = "open files", "connections served at a time; at most what the limit of open files allows";
    plain MAX_SESSIONS = "MAX_CONNECTIONS", "browsers with a session at a time, those that poll included";
    plain MAX_SESSIONS_PER_ADDRESS = "4096", "the same for each client address, if it is known";
    plain OUTBOX_BYTES = "16MiB", "what one slow browser may have waiting before it is closed";
    plain PING_INTERVAL_MS = "25000", "milliseconds between two heartbeats";
    plain PING_TIMEOUT_MS = "20000", "milliseconds a browser has to answer a heartbeat";
    plain CONNECT_TIMEOUT_MS = "45000", "milliseconds a connection has to join its namespace";
    plain RAILS_MAX_CONCURRENCY = "16", "requests to Loomio under way at a time, 1 to 256";
    plain RAILS_HOLD_SECONDS = "30", "seconds a check waits for a Loomio that restarts, 1 to 300";
    plain COLLAB_AUTH_PER_MINUTE = "60", "checks a minute for each client address, if forwarded, and each token";
    plain COLLAB_STRICT_NAMES = "0", "1 refuses document names of a form Loomio does not use today";
    plain TRUSTED_PROXIES = "private", "whose X-Forwarded-For counts: addresses, networks, private or none";
    plain SHARDS = "one per core", "workers that own the sockets, 1 to 64";
    plain LOG_FORMAT = "text", "text or json";
    plain RUST_LOG = "info", "what is logged: error, warn, info, debug, or directives such as info,hyper=warn";
}

/// The table for `--help`: two lines for each variable.
pub fn help_table() -> String {
    let row =
        |Variable { name, default, help, .. }: &Variable| format!("  {name} [default: {default}]\n      {help}\n");
    VARIABLES.iter().copied().map(row).collect()
}
