//! The table of variables: each row holds everything about one of them. `--help`, the README and [`super::Config`] all
//! take names, defaults and checks from here.

use std::{net::IpAddr, ops::RangeInclusive, time::Duration};

use url::Url;

use super::{
    GapNotice, LogFormat, Networks, RedisUrl, Secret,
    loomio::{host, own_hosts, web_url},
    parse::{
        address, bytes, duration, filter, gap_notice, key_or_off, log_format, milliseconds, number, seconds, secret,
        strong_secret, switch,
    },
    reader::Wrong,
};

/// An environment variable that is read.
#[derive(Debug)]
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// What is assumed while it is unset or empty. For plain values this is the very text the check is given; where
    /// the default depends on something else, a phrase.
    pub default: &'static str,
    /// What it does, one line, with units and the accepted forms.
    pub help: &'static str,
    /// Its value is never shown.
    pub secret: bool,
}

/// A variable, and how its text becomes a value.
pub(super) struct Setting<T: 'static> {
    pub(super) variable: Variable,
    pub(super) check: fn(&str) -> Result<T, Wrong>,
}

/// Declares each variable: whether it is secret, its name, the type of its value, its default, its check with what it
/// is given, its help.
macro_rules! variables {
    ($(
        $kind:ident $name:ident: $value:ty = $default:literal, $($check:ident)::+($($given:expr)?), $help:literal;
    )+) => {
        $(pub(super) static $name: Setting<$value> = Setting {
            variable: Variable { name: stringify!($name), default: $default, help: $help, secret: variables!($kind) },
            check: |text| $($check)::+(text $(, &$given)?),
        };)+

        /// Every variable that is read, in the order in which it is explained.
        pub static VARIABLES: &[&Variable] = &[$(&$name.variable,)+];
    };
    (plain) => { false };
    (secret) => { true };
}

/// Short enough for tests, long enough for any proxy.
const TIMER_MS: RangeInclusive<u64> = 50..=3_600_000;
/// At most as many as Linux gives file descriptors to one process by default.
const PLACES: RangeInclusive<usize> = 1..=1 << 20;
/// Each shard is a worker; beyond this, handing a message to all of them costs more than they save.
pub(super) const MOST_SHARDS: usize = 64;

variables! {
    secret REDIS_URL: RedisUrl = "redis://localhost:6379/0", RedisUrl::parse(),
        "where Rails publishes: redis, rediss, valkey, valkeys, unix or redis-sentinel";
    plain PUBLIC_APP_URL: Url = "https://$CANONICAL_HOST", web_url("https://loomio.example.org"),
        "address of Loomio in the browser: the origin CORS allows";
    plain PRIVATE_APP_URL: Url = "APP_URL", web_url("https://loomio.example.org or http://app:3000"),
        "address of Loomio from here, for example http://app:3000; for questions to Rails";
    plain APP_URL: Url = "PUBLIC_APP_URL", web_url("https://loomio.example.org or http://app:3000"),
        "the same, used when that is unset";
    plain CANONICAL_HOST: Url = "VIRTUAL_HOST", host(), "host name of Loomio, for example loomio.example.org";
    plain VIRTUAL_HOST: Url = "no origin", own_hosts(),
        "host name of this service; Loomio's is taken to be the same without channels.";
    plain STRICT_ORIGIN: bool = "0", switch(), "1 also refuses WebSockets that come from another origin";
    plain PORT: u16 = "5000", number(0..=u16::MAX), "TCP port to listen on; 0 takes a free one";
    plain BIND: IpAddr = "all interfaces", address(), "address to listen on, for example 127.0.0.1 or ::1";
    secret CHANNELS_SECRET: Secret = "SECRET_COOKIE_TOKEN", strong_secret(),
        "seals the tickets of returning browsers; the same on every node, 16 characters or more";
    secret SECRET_COOKIE_TOKEN: Secret = "a random key kept in Redis", secret(),
        "Loomio's own secret, used when CHANNELS_SECRET is unset";
    plain RECOVERY_WINDOW: Duration = "30m", duration(1..=24 * 3600),
        "how long a browser may be away and still miss nothing: 1800, 1800s, 30m, 2h";
    plain RECOVERY_LOG_BYTES: usize = "64MiB", bytes(64 << 10..=64 << 30),
        "memory for messages kept for that: 67108864, 64MiB, 64M";
    plain RECOVERY_STREAM: Option<String> = "loomio-channels:recovery", key_or_off(),
        "key in Redis where the messages are kept too, for restarts and other nodes; or off";
    plain REPLAY_BYTES: usize = "8MiB", bytes(4 << 10..=1 << 30),
        "what a returning browser is given at most; if it missed more it starts over";
    plain UNVOUCHED_MAX: Duration = "24h", duration(1..=365 * 24 * 3600),
        "how long a browser keeps its rooms when its key in Redis is gone or cannot be understood";
    // A day is as good as never.
    plain REAUTH_SECONDS: Duration = "60", seconds(0..=24 * 3600),
        "seconds after which the groups of connected users are read again; 0 for never";
    plain REAUTH_STRICT: bool = "0", switch(), "1 takes all rooms at once from users whose key is gone or cannot be understood";
    plain GAP_NOTICE: GapNotice = "reload", gap_notice(),
        "told to pages when updates may be lost: reload, off, or a text beside the reload button";
    plain MAX_CONNECTIONS: usize = "open files", number(PLACES),
        "connections served at a time; at most what the limit of open files allows";
    plain MAX_SESSIONS: usize = "MAX_CONNECTIONS", number(PLACES),
        "browsers with a session at a time, those that poll included";
    plain MAX_SESSIONS_PER_ADDRESS: usize = "4096", number(PLACES), "the same for each client address, if it is known";
    // One large records message has to fit in.
    plain OUTBOX_BYTES: usize = "16MiB", bytes(64 << 10..=1 << 30),
        "what one slow browser may have waiting before it is closed";
    plain PING_INTERVAL_MS: Duration = "25000", milliseconds(TIMER_MS), "milliseconds between two heartbeats";
    plain PING_TIMEOUT_MS: Duration = "20000", milliseconds(TIMER_MS),
        "milliseconds a browser has to answer a heartbeat";
    plain CONNECT_TIMEOUT_MS: Duration = "45000", milliseconds(TIMER_MS),
        "milliseconds a connection has to join its namespace";
    // Puma has 5 threads by default and few installations above 100.
    plain RAILS_MAX_CONCURRENCY: usize = "16", number(1..=256), "requests to Loomio under way at a time, 1 to 256";
    // Proxies in front give up after a minute, so more is rarely of use.
    plain RAILS_HOLD_SECONDS: Duration = "30", seconds(1..=300),
        "seconds a check waits for a Loomio that restarts, 1 to 300";
    // The most is more than any Rails answers: one check every 60 µs.
    plain COLLAB_AUTH_PER_MINUTE: u32 = "60", number(1..=1_000_000),
        "checks a minute for each client address, if forwarded, and each token";
    plain COLLAB_STRICT_NAMES: bool = "0", switch(), "1 refuses document names of a form Loomio does not use today";
    plain TRUSTED_PROXIES: Networks = "private", Networks::parse(),
        "whose X-Forwarded-For counts: addresses, networks, private or none";
    plain SHARDS: usize = "one per core", number(1..=MOST_SHARDS), "workers that own the sockets, 1 to 64";
    // Docker kills 10 s after SIGTERM, Kubernetes after 30 s, unless told otherwise.
    plain DRAIN_SECONDS: Duration = "5", seconds(0..=300),
        "seconds over which browsers are sent away at SIGTERM; 0 closes all at once";
    plain LOG_FORMAT: LogFormat = "text", log_format(), "text or json";
    plain RUST_LOG: String = "info", filter(),
        "what is logged: error, warn, info, debug, or directives such as info,hyper=warn";
}

/// The table for `--help`: two lines for each variable.
pub fn help_table() -> String {
    let row =
        |Variable { name, default, help, .. }: &Variable| format!("  {name} [default: {default}]\n      {help}\n");
    VARIABLES.iter().copied().map(row).collect()
}
