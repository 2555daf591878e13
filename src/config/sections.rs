//! The sections of [`Config`](super::Config), each read from its own variables.

use std::{
    net::{IpAddr, Ipv4Addr},
    ops::RangeInclusive,
    time::Duration,
};

use super::{
    AllowedOrigin, Mistake, Networks, RedisUrl, Secret,
    mistake::Wrong,
    origin, parse,
    reader::{Reader, Reported},
    variable::{
        BIND, CHANNELS_SECRET, COLLAB_AUTH_PER_MINUTE, COLLAB_STRICT_NAMES, CONNECT_TIMEOUT_MS, GAP_NOTICE, LOG_FORMAT,
        MAX_CONNECTIONS, MAX_SESSIONS, MAX_SESSIONS_PER_ADDRESS, OUTBOX_BYTES, PING_INTERVAL_MS, PING_TIMEOUT_MS, PORT,
        RECOVERY_LOG_BYTES, RECOVERY_WINDOW, REDIS_URL, REPLAY_BYTES, RUST_LOG, SECRET_COOKIE_TOKEN, SHARDS,
        STRICT_ORIGIN, TRUSTED_PROXIES, UNVOUCHED_MAX,
    },
};

/// Short enough for tests, long enough for any proxy.
const TIMER_MS: RangeInclusive<u64> = 50..=3_600_000;
/// One large records message has to fit in; the bound is per browser.
const OUTBOX: RangeInclusive<u64> = 64 << 10..=1 << 30;
const WINDOW: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(24);
const RECOVERY_LOG: RangeInclusive<u64> = 64 << 10..=64 << 30;
const REPLAY: RangeInclusive<u64> = 4 << 10..=1 << 30;
const UNVOUCHED: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(365 * 24);
/// Each shard is a worker; beyond this, handing a message to all of them costs more than they save.
const MOST_SHARDS: usize = 64;
/// As many file descriptors as Linux gives to one process by default, and no fewer than one.
const PLACES: RangeInclusive<usize> = 1..=1 << 20;
/// One check in 60 ms, times 1,000, is more than any Rails answers.
const PER_MINUTE: RangeInclusive<u32> = 1..=1_000_000;
/// A ticket can be attacked offline, so a key that is easily guessed is none.
const LEAST_SECRET_CHARACTERS: usize = 16;

/// Where to listen, and whom to let in.
#[derive(Clone, Debug)]
pub struct Http {
    /// TCP port. `PORT`, default 5000; 0 takes a free one.
    pub port: u16,
    /// Address to listen on. `BIND`, default all interfaces, IPv6 and IPv4; of the demo, 127.0.0.1.
    pub bind: Option<IpAddr>,
    /// The origin CORS allows. `PUBLIC_APP_URL`, else `CANONICAL_HOST`, else `VIRTUAL_HOST`; without any, none.
    pub allowed_origin: Option<AllowedOrigin>,
    /// Whether other origins are refused over WebSocket too. `STRICT_ORIGIN`, default 0.
    pub strict_origin: bool,
    /// Whose `X-Forwarded-For` counts. `TRUSTED_PROXIES`, default private networks.
    pub trusted_proxies: Networks,
}

/// How many may be served at a time.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections. `MAX_CONNECTIONS`, default as many as the limit of open files allows.
    pub connections: Option<usize>,
    /// Sessions. `MAX_SESSIONS`, default as many as connections.
    pub sessions: Option<usize>,
    /// Sessions of one client address. `MAX_SESSIONS_PER_ADDRESS`, default 4096.
    pub sessions_per_address: usize,
}

/// Where Rails publishes.
#[derive(Clone, Debug)]
pub struct Redis {
    /// The server. `REDIS_URL`, default `redis://localhost:6379/0`.
    pub url: RedisUrl,
}

/// Heartbeats and the bound on slow browsers.
#[derive(Clone, Debug)]
pub struct Engine {
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
pub struct Recovery {
    /// How long a browser may be away. `RECOVERY_WINDOW`, default 30 minutes.
    pub window: Duration,
    /// Bytes of messages kept for that. `RECOVERY_LOG_BYTES`, default 64 MiB.
    pub log_bytes: usize,
    /// Bytes that one returning browser is given at most. `REPLAY_BYTES`, default 8 MiB.
    pub replay_bytes: usize,
    /// How long the rooms of a ticket serve after Redis last said that they are its user's. `UNVOUCHED_MAX`, default
    /// 24 hours.
    pub unvouched_max: Duration,
    /// What browsers are told when messages may have been lost. `GAP_NOTICE`, default reload.
    pub gap_notice: GapNotice,
    /// What the ticket key is derived from. `CHANNELS_SECRET`, else `SECRET_COOKIE_TOKEN`, default none: a random key.
    pub secret: Option<Secret>,
    /// The variable the secret came from.
    pub secret_variable: Option<&'static str>,
}

/// What browsers are told when messages may have been lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GapNotice {
    /// Nothing.
    Off,
    /// To reload the page, with a text of ours or Loomio's own words.
    Reload(Option<String>),
}

/// Who may ask whether someone may edit a document, and how often.
#[derive(Clone, Debug)]
pub struct Collab {
    /// Checks a minute, for each client address and for each token. `COLLAB_AUTH_PER_MINUTE`, default 60.
    pub auth_per_minute: u32,
    /// Whether document names of an unknown form are refused. `COLLAB_STRICT_NAMES`, default 0.
    pub strict_names: bool,
}

/// What is logged, and in which form.
#[derive(Clone, Debug)]
pub struct Log {
    /// `LOG_FORMAT`, default text.
    pub format: LogFormat,
    /// Valid `EnvFilter` directives. `RUST_LOG`, default info.
    pub filter: String,
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line, for collectors.
    Json,
}

impl Http {
    pub(super) fn read(reader: &mut Reader<'_>, demo: bool) -> Result<Self, Reported> {
        let port = reader.value(&PORT, parse::number(0..=u16::MAX));
        let bind = reader.optional(&BIND, parse::address);
        let strict_origin = reader.value(&STRICT_ORIGIN, parse::switch);
        let allowed_origin = origin::read(reader);
        let trusted_proxies = reader.value(&TRUSTED_PROXIES, Networks::parse);
        let (port, strict_origin, mut allowed_origin) = (port?, strict_origin?, allowed_origin?);
        if demo {
            allowed_origin
                .get_or_insert_with(|| AllowedOrigin { origin: format!("http://localhost:{port}"), variable: "demo" });
        }
        if strict_origin && allowed_origin.is_none() {
            let wrong = Wrong::new(
                "would refuse every browser, since no origin is known",
                "set CANONICAL_HOST or PUBLIC_APP_URL",
            );
            reader.mistakes.push(Mistake::shown(STRICT_ORIGIN.name, "1", wrong));
            return Err(Reported);
        }
        Ok(Self {
            port,
            bind: bind?.or(demo.then_some(Ipv4Addr::LOCALHOST.into())),
            allowed_origin,
            strict_origin,
            trusted_proxies: trusted_proxies?,
        })
    }
}

impl Limits {
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, Reported> {
        let connections = reader.optional(&MAX_CONNECTIONS, parse::number(PLACES));
        let sessions = reader.optional(&MAX_SESSIONS, parse::number(PLACES));
        let sessions_per_address = reader.value(&MAX_SESSIONS_PER_ADDRESS, parse::number(PLACES));
        Ok(Self { connections: connections?, sessions: sessions?, sessions_per_address: sessions_per_address? })
    }
}

impl Redis {
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, Reported> {
        Ok(Self { url: reader.value(&REDIS_URL, RedisUrl::parse)? })
    }
}

impl Engine {
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, Reported> {
        let ping_interval = reader.value(&PING_INTERVAL_MS, parse::milliseconds(TIMER_MS));
        let ping_timeout = reader.value(&PING_TIMEOUT_MS, parse::milliseconds(TIMER_MS));
        let connect_timeout = reader.value(&CONNECT_TIMEOUT_MS, parse::milliseconds(TIMER_MS));
        let outbox_bytes = reader.value(&OUTBOX_BYTES, parse::bytes(OUTBOX));
        Ok(Self {
            ping_interval: ping_interval?,
            ping_timeout: ping_timeout?,
            connect_timeout: connect_timeout?,
            outbox_bytes: outbox_bytes?,
        })
    }
}

impl Recovery {
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, Reported> {
        let window = reader.value(&RECOVERY_WINDOW, parse::duration(WINDOW));
        let log_bytes = reader.value(&RECOVERY_LOG_BYTES, parse::bytes(RECOVERY_LOG));
        let replay_bytes = reader.value(&REPLAY_BYTES, parse::bytes(REPLAY));
        let unvouched_max = reader.value(&UNVOUCHED_MAX, parse::duration(UNVOUCHED));
        let gap_notice = reader.value(&GAP_NOTICE, |text| {
            Ok(match text.to_ascii_lowercase().as_str() {
                "off" => GapNotice::Off,
                "reload" => GapNotice::Reload(None),
                _ => GapNotice::Reload(Some(text.to_owned())),
            })
        });
        let own = reader.optional(&CHANNELS_SECRET, own_secret);
        let of_loomio = reader.text(&SECRET_COOKIE_TOKEN);
        let (secret, secret_variable) = match (own?, of_loomio?) {
            (Some(own), _) => (Some(own), Some(CHANNELS_SECRET.name)),
            (None, Some(text)) => {
                if text.chars().count() < LEAST_SECRET_CHARACTERS {
                    reader.note(
                        "SECRET_COOKIE_TOKEN is short and could be guessed; `openssl rand -hex 32` makes a good one",
                    );
                }
                (Some(Secret::new(text)), Some(SECRET_COOKIE_TOKEN.name))
            }
            (None, None) => (None, None),
        };
        Ok(Self {
            window: window?,
            log_bytes: log_bytes?,
            replay_bytes: replay_bytes?,
            unvouched_max: unvouched_max?,
            gap_notice: gap_notice?,
            secret,
            secret_variable,
        })
    }
}

fn own_secret(text: &str) -> Result<Secret, Wrong> {
    if text.chars().count() < LEAST_SECRET_CHARACTERS {
        let problem = format!("shorter than {LEAST_SECRET_CHARACTERS} characters");
        return Err(Wrong::new(problem, "make one with `openssl rand -hex 32`"));
    }
    Ok(Secret::new(text))
}

impl Collab {
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, Reported> {
        let auth_per_minute = reader.value(&COLLAB_AUTH_PER_MINUTE, parse::number(PER_MINUTE));
        let strict_names = reader.value(&COLLAB_STRICT_NAMES, parse::switch);
        Ok(Self { auth_per_minute: auth_per_minute?, strict_names: strict_names? })
    }
}

pub(super) fn shards(reader: &mut Reader<'_>, cores: usize) -> Result<usize, Reported> {
    let set = reader.optional(&SHARDS, parse::number(1..=MOST_SHARDS))?;
    Ok(set.unwrap_or(cores.clamp(1, MOST_SHARDS)))
}

impl Log {
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, Reported> {
        let format = reader.value(&LOG_FORMAT, |text| match text.to_ascii_lowercase().as_str() {
            "text" => Ok(LogFormat::Text),
            "json" => Ok(LogFormat::Json),
            _ => Err(Wrong::new("not a log format", "give text or json")),
        });
        let filter = reader.value(&RUST_LOG, parse::filter)?;
        // Valid, but hardly meant: a misspelt level is taken for the name of a module.
        if filter.chars().all(|c| c.is_ascii_alphabetic())
            && filter.parse::<tracing::level_filters::LevelFilter>().is_err()
        {
            reader.note(format!("RUST_LOG={filter} is not a level, so nothing but a module of that name is logged"));
        }
        Ok(Self { format: format?, filter })
    }
}
