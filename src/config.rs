//! Answers for every setting: each variable is read once, checked, and kept in a typed section. All mistakes are
//! reported together, so that one failed start is enough to mend them all.
//!
//! Must not know what the settings are used for, open a connection, or log. The environment comes in as a value
//! ([`Environment`]); the process's own is read in one place, [`Environment::process`].

mod loomio;
mod networks;
mod parse;
mod reader;
mod redis_url;
mod secret;
mod summary;
#[cfg(test)]
mod tests;
mod variable;

pub use self::{
    loomio::{AllowedOrigin, RAILS_VARIABLES, RailsEndpoint},
    networks::Networks,
    reader::{Environment, Mistakes},
    redis_url::{RedisTarget, RedisUrl},
    secret::Secret,
    variable::{VARIABLES, Variable, help_table},
};

use std::{
    mem,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use tracing::level_filters::LevelFilter;

use self::reader::{Reader, Wrong};

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
    /// How the rooms of connected users follow Redis.
    pub reauth: ReauthConfig,
    /// How Rails is asked who may edit a document.
    pub rails: RailsConfig,
    /// Which of these questions are taken, and how many.
    pub collab: CollabConfig,
    /// Workers that own sockets. `SHARDS`, default one per core the process may use; 1 to 64.
    pub shards: usize,
    /// How long browsers are sent away before the stop. `DRAIN_SECONDS`, default 5; with 0 the stop closes all at once.
    pub drain: Duration,
    /// What is logged, and in which form.
    pub log: LogConfig,
    /// Messages come from inside the process; [`Config::redis`] is not to be dialled. Set by [`Config::for_demo`].
    pub demo: bool,
    /// Remarks for the start block: settings that were understood, though not as they were written.
    pub notes: Vec<String>,
}

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
    /// Key of the Redis Stream that the messages are kept in too; `None` for `off`. `RECOVERY_STREAM`, default
    /// `loomio-channels:recovery`.
    pub stream: Option<String>,
    /// Bytes that one returning browser is given at most. `REPLAY_BYTES`, default 8 MiB.
    pub replay_bytes: usize,
    /// How long the rooms of a ticket serve after Redis last confirmed them. `UNVOUCHED_MAX`, default 24 hours.
    pub unvouched_max: Duration,
    /// What browsers are told when messages may have been lost. `GAP_NOTICE`, default reload.
    pub gap_notice: GapNotice,
    /// What the ticket key is derived from. `CHANNELS_SECRET`, else `SECRET_COOKIE_TOKEN`, default none: a random key that
    /// is kept in Redis for all nodes.
    pub secret: Option<Secret>,
    /// The variable the secret came from.
    pub secret_variable: Option<&'static str>,
}

/// How the rooms of connected users follow Redis.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReauthConfig {
    /// How often the key of each is read again; `None` for never. `REAUTH_SECONDS`, default 60.
    pub period: Option<Duration>,
    /// Whether an absent key takes the rooms away. `REAUTH_STRICT`, default 0.
    pub strict: bool,
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

impl Config {
    /// Reads the settings of the live server.
    pub fn from_env(environment: &Environment) -> Result<Self, Mistakes> {
        Self::read(environment, false)
    }

    /// Reads the settings of the demo: `port` goes before `PORT`, `REDIS_URL` is not read, `BIND` defaults to
    /// 127.0.0.1, and the origin to `http://localhost:<port>`.
    pub fn for_demo(port: Option<u16>, environment: &Environment) -> Result<Self, Mistakes> {
        let mut environment = environment.clone();
        environment.variables.remove(variable::REDIS_URL.variable.name);
        if let Some(port) = port {
            environment.variables.insert(variable::PORT.variable.name.to_owned(), port.to_string().into());
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
        let cores = environment.cores.get().min(variable::MOST_SHARDS);
        let config = Self {
            http: http(&mut reader, demo),
            limits: LimitsConfig {
                connections: reader.optional(&variable::MAX_CONNECTIONS),
                sessions: reader.optional(&variable::MAX_SESSIONS),
                sessions_per_address: reader.value(&variable::MAX_SESSIONS_PER_ADDRESS),
            },
            redis: reader.value(&variable::REDIS_URL),
            engine: EngineConfig {
                ping_interval: reader.value(&variable::PING_INTERVAL_MS),
                ping_timeout: reader.value(&variable::PING_TIMEOUT_MS),
                connect_timeout: reader.value(&variable::CONNECT_TIMEOUT_MS),
                outbox_bytes: reader.value(&variable::OUTBOX_BYTES),
            },
            recovery: recovery(&mut reader),
            reauth: ReauthConfig {
                period: Some(reader.value(&variable::REAUTH_SECONDS)).filter(|period| !period.is_zero()),
                strict: reader.value(&variable::REAUTH_STRICT),
            },
            rails: RailsConfig {
                endpoint: loomio::rails_endpoint(&mut reader),
                max_concurrency: reader.value(&variable::RAILS_MAX_CONCURRENCY),
                hold: reader.value(&variable::RAILS_HOLD_SECONDS),
            },
            collab: CollabConfig {
                auth_per_minute: reader.value(&variable::COLLAB_AUTH_PER_MINUTE),
                strict_names: reader.value(&variable::COLLAB_STRICT_NAMES),
            },
            shards: reader.optional(&variable::SHARDS).unwrap_or(cores),
            drain: reader.value(&variable::DRAIN_SECONDS),
            log: log(&mut reader),
            demo,
            notes: mem::take(&mut reader.notes),
        };
        reader.finish(config)
    }
}

fn http(reader: &mut Reader<'_>, demo: bool) -> HttpConfig {
    let port = reader.value(&variable::PORT);
    let bind = reader.optional(&variable::BIND).or(demo.then_some(Ipv4Addr::LOCALHOST.into()));
    let strict_origin = reader.value(&variable::STRICT_ORIGIN);
    let trusted_proxies = reader.value(&variable::TRUSTED_PROXIES);
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
        reader.keep(&variable::STRICT_ORIGIN.variable, Some("1"), &wrong);
    }
    HttpConfig { port, bind, allowed_origin, strict_origin, trusted_proxies }
}

fn recovery(reader: &mut Reader<'_>) -> RecoveryConfig {
    let ours = reader.optional(&variable::CHANNELS_SECRET);
    let loomios = reader.optional(&variable::SECRET_COOKIE_TOKEN);
    // No mistake: with the environment of the Node server this one has to start.
    if ours.is_none() && loomios.as_ref().is_some_and(Secret::is_short) {
        let note = "SECRET_COOKIE_TOKEN is short and could be guessed; `openssl rand -hex 32` makes a good one";
        reader.notes.push(note.to_owned());
    }
    let ours = ours.map(|secret| (secret, "CHANNELS_SECRET"));
    let (secret, secret_variable) = ours.or(loomios.map(|secret| (secret, "SECRET_COOKIE_TOKEN"))).unzip();
    RecoveryConfig {
        window: reader.value(&variable::RECOVERY_WINDOW),
        log_bytes: reader.value(&variable::RECOVERY_LOG_BYTES),
        stream: reader.value(&variable::RECOVERY_STREAM),
        replay_bytes: reader.value(&variable::REPLAY_BYTES),
        unvouched_max: reader.value(&variable::UNVOUCHED_MAX),
        gap_notice: reader.value(&variable::GAP_NOTICE),
        secret,
        secret_variable,
    }
}

fn log(reader: &mut Reader<'_>) -> LogConfig {
    let format = reader.value(&variable::LOG_FORMAT);
    let filter = reader.value(&variable::RUST_LOG);
    // Valid, but hardly meant: a misspelt level is taken for the name of a module.
    if filter.chars().all(|c| c.is_ascii_alphabetic()) && filter.parse::<LevelFilter>().is_err() {
        let problem = "is not a level, so nothing but a module of that name is logged";
        reader.notes.push(format!("RUST_LOG={filter} {problem}"));
    }
    LogConfig { format, filter }
}
