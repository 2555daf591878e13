//! Answers for every setting: each variable is read once, checked, and kept in a typed section. All mistakes are
//! reported together, so that one failed start is enough to mend them all.
//!
//! Must not know what the settings are used for, open a connection, or log. The environment comes in as a value
//! ([`Environment`]); the process's own is read in one place, [`Environment::process`].

mod environment;
mod loomio;
mod mistake;
mod networks;
mod parse;
mod redis_url;
mod secret;
mod sections;
mod summary;
#[cfg(test)]
mod tests;
mod variable;

pub use self::{
    environment::Environment,
    loomio::{AllowedOrigin, RAILS_VARIABLES, RailsEndpoint},
    mistake::{Mistake, Mistakes},
    networks::Networks,
    redis_url::{RedisTarget, RedisUrl},
    secret::Secret,
    sections::{
        CollabConfig, EngineConfig, GapNotice, HttpConfig, LimitsConfig, LogConfig, LogFormat, RailsConfig,
        RecoveryConfig,
    },
    variable::{VARIABLES, Variable, help_table},
};

use std::{mem, net::Ipv4Addr, ops::RangeInclusive, time::Duration};

use tracing::level_filters::LevelFilter;

use self::{
    environment::Reader,
    mistake::Wrong,
    parse::{bytes, duration, milliseconds, number},
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
/// At most as many as Linux gives file descriptors to one process by default.
const PLACES: RangeInclusive<usize> = 1..=1 << 20;
/// More than any Rails answers: one check every 60 µs.
const PER_MINUTE: RangeInclusive<u32> = 1..=1_000_000;
/// Puma has 5 threads by default and few installations above 100.
const CONCURRENCY: RangeInclusive<usize> = 1..=256;
/// Proxies in front give up after a minute, so more is rarely of use.
const HOLD_SECONDS: RangeInclusive<u64> = 1..=300;
/// A ticket can be attacked offline, so the key must not be easy to guess.
const LEAST_SECRET_CHARACTERS: usize = 16;

/// Everything the process can be told from outside, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen, and which browsers to let in.
    pub http: HttpConfig,
    /// How many connections and sessions there may be at a time.
    pub limits: LimitsConfig,
    /// Where Rails publishes. `REDIS_URL`, default `redis://localhost:6379/0`.
    pub redis: RedisUrl,
    /// Heartbeats and the bound on slow browsers.
    pub engine: EngineConfig,
    /// What a returning browser can still get.
    pub recovery: RecoveryConfig,
    /// How Rails is asked who may edit a document.
    pub rails: RailsConfig,
    /// Which of these questions are taken, and how many.
    pub collab: CollabConfig,
    /// Workers that own sockets. `SHARDS`, default one per core the process may use; 1 to 64.
    pub shards: usize,
    /// What is logged, and in which form.
    pub log: LogConfig,
    /// Messages come from inside the process; [`Config::redis`] is not to be dialled. Set by [`Config::for_demo`].
    pub demo: bool,
    /// Remarks for the start block: settings that were understood, though not as they were written.
    pub notes: Vec<String>,
}

impl Config {
    /// Reads the settings of the live server.
    pub fn from_env(environment: &Environment) -> Result<Self, Mistakes> {
        Self::read(environment, false)
    }

    /// Reads the settings of the demo: `port` goes before `PORT`, `REDIS_URL` is not read, `BIND` defaults to
    /// 127.0.0.1, and the origin to `http://localhost:<port>`.
    pub fn for_demo(port: Option<u16>, environment: &Environment) -> Result<Self, Mistakes> {
        let mut environment = environment.clone();
        environment.variables.remove(variable::REDIS_URL.name);
        if let Some(port) = port {
            environment.variables.insert(variable::PORT.name.to_owned(), port.to_string().into());
        }
        Self::read(&environment, true)
    }

    /// Reads only where the server listens, for a command that reaches the server.
    pub fn http_only(environment: &Environment) -> Result<HttpConfig, Mistakes> {
        let mut reader = Reader::new(environment);
        let http = http(&mut reader, false);
        reader.finish(http)
    }

    fn read(environment: &Environment, demo: bool) -> Result<Self, Mistakes> {
        let mut reader = Reader::new(environment);
        let cores = environment.cores.get().min(MOST_SHARDS);
        let config = Self {
            http: http(&mut reader, demo),
            limits: LimitsConfig {
                connections: reader.optional(&variable::MAX_CONNECTIONS, number(PLACES)),
                sessions: reader.optional(&variable::MAX_SESSIONS, number(PLACES)),
                sessions_per_address: reader.value(&variable::MAX_SESSIONS_PER_ADDRESS, number(PLACES)),
            },
            redis: reader.value(&variable::REDIS_URL, RedisUrl::parse),
            engine: EngineConfig {
                ping_interval: reader.value(&variable::PING_INTERVAL_MS, milliseconds(TIMER_MS)),
                ping_timeout: reader.value(&variable::PING_TIMEOUT_MS, milliseconds(TIMER_MS)),
                connect_timeout: reader.value(&variable::CONNECT_TIMEOUT_MS, milliseconds(TIMER_MS)),
                outbox_bytes: reader.value(&variable::OUTBOX_BYTES, bytes(OUTBOX)),
            },
            recovery: recovery(&mut reader),
            rails: RailsConfig {
                endpoint: loomio::rails_endpoint(&mut reader),
                max_concurrency: reader.value(&variable::RAILS_MAX_CONCURRENCY, number(CONCURRENCY)),
                hold: Duration::from_secs(reader.value(&variable::RAILS_HOLD_SECONDS, number(HOLD_SECONDS))),
            },
            collab: CollabConfig {
                auth_per_minute: reader.value(&variable::COLLAB_AUTH_PER_MINUTE, number(PER_MINUTE)),
                strict_names: reader.value(&variable::COLLAB_STRICT_NAMES, parse::switch),
            },
            shards: reader.optional(&variable::SHARDS, number(1..=MOST_SHARDS)).unwrap_or(cores),
            log: log(&mut reader),
            demo,
            notes: mem::take(&mut reader.notes),
        };
        reader.finish(config)
    }
}

fn http(reader: &mut Reader<'_>, demo: bool) -> HttpConfig {
    let port = reader.value(&variable::PORT, number(0..=u16::MAX));
    let bind = reader.optional(&variable::BIND, parse::address).or(demo.then_some(Ipv4Addr::LOCALHOST.into()));
    let strict_origin = reader.value(&variable::STRICT_ORIGIN, parse::switch);
    let trusted_proxies = reader.value(&variable::TRUSTED_PROXIES, Networks::parse);
    let mistakes = reader.mistakes.len();
    let mut allowed_origin = loomio::allowed_origin(reader);
    if demo {
        let origin = || AllowedOrigin { origin: format!("http://localhost:{port}"), variable: "demo" };
        allowed_origin = allowed_origin.or_else(|| Some(origin()));
    }
    // An origin that is set, but wrong, is a mistake already.
    if strict_origin && allowed_origin.is_none() && reader.mistakes.len() == mistakes {
        let problem = "would refuse every browser, since no origin is known";
        let wrong = Wrong::new(problem, "set CANONICAL_HOST or PUBLIC_APP_URL");
        reader.check::<()>(&variable::STRICT_ORIGIN, "1", Err(wrong));
    }
    HttpConfig { port, bind, allowed_origin, strict_origin, trusted_proxies }
}

fn recovery(reader: &mut Reader<'_>) -> RecoveryConfig {
    let is_short = |text: &str| text.chars().count() < LEAST_SECRET_CHARACTERS;
    let ours = reader.optional(&variable::CHANNELS_SECRET, |text| {
        let problem = format!("shorter than {LEAST_SECRET_CHARACTERS} characters");
        if is_short(text) { Err(Wrong::new(problem, "make one with `openssl rand -hex 32`")) } else { Ok(text) }
    });
    let loomios = reader.text(&variable::SECRET_COOKIE_TOKEN);
    // No mistake: with the environment of the Node server this one has to start.
    if ours.is_none() && loomios.is_some_and(is_short) {
        reader.note("SECRET_COOKIE_TOKEN is short and could be guessed; `openssl rand -hex 32` makes a good one");
    }
    let ours = ours.map(|text| (text, variable::CHANNELS_SECRET.name));
    let secret = ours.or_else(|| Some((loomios?, variable::SECRET_COOKIE_TOKEN.name)));
    RecoveryConfig {
        window: reader.value(&variable::RECOVERY_WINDOW, duration(WINDOW)),
        log_bytes: reader.value(&variable::RECOVERY_LOG_BYTES, bytes(RECOVERY_LOG)),
        replay_bytes: reader.value(&variable::REPLAY_BYTES, bytes(REPLAY)),
        unvouched_max: reader.value(&variable::UNVOUCHED_MAX, duration(UNVOUCHED)),
        gap_notice: reader.value(&variable::GAP_NOTICE, |text| Ok(gap_notice(text))),
        secret: secret.map(|(text, _)| Secret::new(text)),
        secret_variable: secret.map(|(_, variable)| variable),
    }
}

fn gap_notice(text: &str) -> GapNotice {
    match text.to_ascii_lowercase().as_str() {
        "off" => GapNotice::Off,
        "reload" => GapNotice::Reload(None),
        _ => GapNotice::Reload(Some(text.to_owned())),
    }
}

fn log(reader: &mut Reader<'_>) -> LogConfig {
    let format = reader.value(&variable::LOG_FORMAT, |text| match text.to_ascii_lowercase().as_str() {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err(Wrong::new("not a log format", "give text or json")),
    });
    let filter = reader.value(&variable::RUST_LOG, parse::filter);
    // Valid, but hardly meant: a misspelt level is taken for the name of a module.
    if filter.chars().all(|c| c.is_ascii_alphabetic()) && filter.parse::<LevelFilter>().is_err() {
        reader.note(format!("RUST_LOG={filter} is not a level, so nothing but a module of that name is logged"));
    }
    LogConfig { format, filter }
}
