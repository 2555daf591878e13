//! Puts the program together, in three steps: build (no ports), bind (real addresses), run (until the stop).

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::State,
    http::{Request, StatusCode},
    response::IntoResponse,
    routing::any,
};
use futures_util::{FutureExt, future::BoxFuture};
use tokio::{
    net::TcpListener,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    admin,
    admission::{Admission, Answers, Key, Tickets, Users},
    bus::{MemoryBus, RedisSource},
    collab_auth,
    config::{AllowedOrigin, Config, RecoveryConfig},
    demo,
    dispatch::{Dispatch, loss_notice},
    engineio::{CloseReason, Cors, Engine, Options, Unproven},
    history::History,
    hub::{Clock, Epoch, Hub, HubOptions, LogBounds, OffsetKey, Shards},
    lifecycle::{Lifecycle, Readiness, Signals},
    listener::{self, Site},
    metrics::Metrics,
    rails::Rails,
    redis_client::{ConnectionError, Connector, Link},
    socketio::{SocketIo, SocketIoWire},
    telemetry::chain,
};

/// How long the stop may take; what has not ended by then is dropped. The program promises its operator to be gone 1.5 s
/// after the drain.
const STOP_DEADLINE: Duration = Duration::from_millis(1_400);

/// How much of that browsers have to take what was accepted for them before the stop, and how often the hub is asked
/// whether it has delivered that.
const FLUSH: Duration = Duration::from_secs(1);
const FLUSH_TICK: Duration = Duration::from_millis(5);

/// How long a start waits for the key that nodes share.
const KEY_PATIENCE: Duration = Duration::from_secs(2);
const KEY_PAUSE: Duration = Duration::from_millis(100);

/// The same for a Redis that reads its keys from disk.
const KEY_LOADING_PATIENCE: Duration = Duration::from_secs(20);

/// How often a node looks whether Redis still has the key.
const KEY_INTERVAL: Duration = Duration::from_secs(5);

/// Memory beyond the recovery log's for messages that a busy shard has not delivered yet: some seconds of the largest
/// bursts. Messages beyond it are dropped; browsers that have not got them are disconnected and come back.
const UNDELIVERED_BYTES: usize = 64 << 20;

/// Longest message before CONNECT is acknowledged, in bytes, and how long it may take from its first byte to its last. A
/// CONNECT with the ticket of a user in thousands of groups fits in.
const UNPROVEN_MESSAGE: usize = 64 * 1024;
const UNPROVEN_MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);

/// Where messages come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// From Redis, where Rails publishes.
    Serve,
    /// From this process.
    Demo,
}

/// The program could not start or had to end.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// A setting has to be mended first.
    #[error("{0}")]
    Config(String),
    /// The operating system refused a request.
    #[error("{0}")]
    System(&'static str, #[source] std::io::Error),
    /// A task that must not end has ended.
    #[error("the task `{0}` ended")]
    Crashed(&'static str),
}

fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> AppError {
    move |error| AppError::System(what, error)
}

/// Runs the program on a runtime of its own, from settings to the end.
///
/// # Errors
/// [`AppError::Config`] and [`AppError::System`] when the start fails, [`AppError::Crashed`] when a critical task ends.
pub fn run(config: Config, mode: Mode) -> Result<(), AppError> {
    // Each connection is an open file, and the usual limit of 1,024 is meant for other programs.
    if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(system("cannot start"))?;
    let result = runtime.block_on(async {
        let lifecycle = Lifecycle::current();
        let app = App::bind(config, mode, lifecycle).await?;
        let port = app.address.port();
        tracing::info!("listening on port {port}");
        if mode == Mode::Demo {
            tracing::info!("open http://localhost:{port}/demo");
            let payload = r#"{"records":{"comments":[{"id":1,"body":"Hello from a terminal"}]}}"#;
            tracing::info!("or: echo '{payload}' | loomio-channels publish group-1 - --demo localhost:{port}");
        }
        app.run().await
    });
    // Tasks that still run have had their time.
    runtime.shutdown_background();
    result
}

/// The program with its ports taken, not yet accepting.
pub struct App {
    lifecycle: Lifecycle,
    listener: TcpListener,
    /// The address that was taken.
    pub address: SocketAddr,
    /// What is counted.
    pub metrics: Metrics,
    site: Site,
    engine: Arc<Engine<SocketIo>>,
    hub: Hub,
    shards: Shards,
    /// Takes messages from the bus to the hub, until the stop.
    dispatch: BoxFuture<'static, ()>,
    /// How long browsers are sent away before the stop.
    drain: Duration,
    /// Keeps the log in Redis.
    history: Option<Arc<History>>,
}

impl App {
    /// Builds all parts and takes the ports.
    ///
    /// # Errors
    /// [`AppError::Config`] when a port or an address cannot be used.
    pub async fn bind(config: Config, mode: Mode, lifecycle: Lifecycle) -> Result<Self, AppError> {
        let listener = take_port(&config)?;
        let address = listener.local_addr().map_err(system("cannot tell the address of the port"))?;
        let (readiness, metrics, stop) = (Readiness::default(), Metrics::default(), lifecycle.stop().clone());
        let connector =
            || Connector::new(&config.redis).map_err(|error| AppError::Config(format!("REDIS_URL: {error}")));
        let key = match (&config.recovery.secret, mode) {
            (Some(secret), _) => {
                Key::derive(secret).map_err(|error| AppError::Config(format!("ticket key: {error}")))?
            }
            (None, Mode::Serve) => {
                let link = Link::new(connector()?);
                let key = shared_key(&link).await;
                let keep = stop.clone().run_until_cancelled_owned(keep_key(link, key.clone()));
                lifecycle.tasks().spawn(keep.map(drop));
                key
            }
            (None, Mode::Demo) => Key::random(),
        };
        let RecoveryConfig { window, log_bytes: bytes, replay_bytes: replay, .. } = config.recovery;
        let hub = HubOptions {
            epoch: Epoch(rand::random()),
            key: OffsetKey::new(&key.part("offsets")),
            bounds: LogBounds { window, bytes, undelivered: UNDELIVERED_BYTES, replay },
            shards: config.shards,
            clock: Clock::now(),
            notice: loss_notice(&config.recovery.gap_notice),
        };
        let started = Hub::start(hub, || lifecycle.critical("shard"));
        let (hub, shards) = started.map_err(system("cannot start a shard"))?;

        let is_begun = Readiness::default();
        let [is_subscribed, has_begun] =
            [&readiness, &is_begun].map(|ready| ready.clone().until(lifecycle.drain().clone()));
        let health = admin::routes(move || is_subscribed() && has_begun());
        let history = match (&config.recovery, mode) {
            (RecoveryConfig { stream: Some(stream), log_bytes, window, .. }, Mode::Serve) => {
                let link = Link::new(connector()?);
                Some(Arc::new(History::new(link, stream.clone(), hub.clone(), *log_bytes, *window)))
            }
            _ => None,
        };
        let dispatch = Dispatch::new(hub.clone(), history.clone(), is_begun, metrics.clone());
        let (dispatch, answers, demo) = match mode {
            Mode::Serve => {
                let answers = || Ok(Answers::Redis(Link::new(connector()?)));
                let rights = Users::new(answers()?, metrics.clone());
                let check = stop.clone().run_until_cancelled_owned(rights.check_rights());
                lifecycle.tasks().spawn(check.map(drop));
                (dispatch.run(RedisSource::new(connector()?, readiness), stop).boxed(), answers()?, Router::new())
            }
            Mode::Demo => {
                let (publisher, source) = MemoryBus::new(readiness);
                (dispatch.run(source, stop).boxed(), Answers::Memory(demo::USERS), demo::routes(publisher))
            }
        };
        let users = Users::new(answers, metrics.clone());
        let namespace = SocketIo {
            wire: SocketIoWire(hub.clone()),
            admission: Admission::new(users, Tickets::new(&key), &config.recovery, config.reauth, metrics.clone()),
            tasks: lifecycle.tasks().clone(),
            stop: lifecycle.stop().clone(),
        };
        let connections = connections(&config);
        let options = options(&config, connections)?;
        let engine = Engine::new(namespace, options, lifecycle.tasks().clone(), metrics.clone());

        let rails = Rails::new(&config, metrics.clone(), lifecycle.clone());
        let collab_auth =
            collab_auth::routes(rails, config.collab.strict_names, config.http.trusted_proxies, metrics.clone());
        let router = health.clone().merge(collab_auth).merge(demo).merge(engine_routes(Arc::clone(&engine)));
        // For every path that cannot be answered while there is no place.
        let refusing = Arc::clone(&engine);
        let overflow = health.fallback(async move |request: Request<Body>| refusing.refuse(&request));
        let site = Site { router, overflow, connections, metrics: metrics.clone() };
        let drain = config.drain;
        Ok(Self { lifecycle, listener, address, metrics, site, engine, hub, shards, dispatch, drain, history })
    }

    /// Serves until it is told to end, and ends politely: browsers see their connection end and come back by themselves,
    /// a few at a time.
    ///
    /// During the drain the port stays open and new sessions are refused with 503. A closed port would cut all polling
    /// browsers at the first moment, as a proxy may open a connection for each of their requests, and would leave
    /// questions about health without an answer. nginx and `HAProxy` can repeat a request at another node after a 503.
    /// Caddy and Traefik do so only when they cannot connect, but their health checks see the drain before the first
    /// browser comes back: the official client waits for 0.5 s or longer.
    ///
    /// # Errors
    /// When a part ended that must not.
    pub async fn run(self) -> Result<(), AppError> {
        let Self { lifecycle, listener, site, engine, hub, shards, dispatch, drain, history, .. } = self;
        let stop = lifecycle.stop();
        let mut signals = Signals::listen().map_err(system("cannot listen to signals"))?;
        // The port stays open while browsers fetch what was accepted for them: one that polls may be between two requests.
        let closing = CancellationToken::new();
        let dispatched = CancellationToken::new();
        let ended = dispatched.clone().drop_guard();
        lifecycle.spawn_critical("dispatch", dispatch.map(|()| drop(ended)));
        lifecycle.spawn_critical("heartbeat", Arc::clone(&engine).run(stop.clone()));
        let (reauthorized, until) = (Arc::clone(&engine), stop.clone());
        lifecycle.spawn_critical("reauthorization", async move { reauthorized.handler().reauthorize(until).await });
        lifecycle.spawn_critical("hub", hub.clone().tend(stop.clone()));
        if let Some(history) = history {
            let dispatched = dispatched.clone();
            lifecycle.spawn_critical("history", async move { history.run(dispatched).await });
        }
        let accept = listener::serve(listener, site, lifecycle.tasks().clone(), closing.clone());
        lifecycle.spawn_critical("listener", accept);

        lifecycle.until_drain(&mut signals).await;
        engine.stop_admitting();
        let browsers = engine.sessions();
        let drained = engine.close_paced(CloseReason::Shutdown, drain);
        let crashed = lifecycle.until_stop(&mut signals, drained).await;
        let deadline = Instant::now() + STOP_DEADLINE;
        // Until browsers have all that Redis had accepted for them when the stop came.
        let flush = async {
            dispatched.cancelled().await;
            while !hub.is_delivered() {
                sleep(FLUSH_TICK).await;
            }
            while !engine.drained(FLUSH).await {}
        };
        let flushed = lifecycle.within(FLUSH, &mut signals, flush).await;
        engine.close_all(CloseReason::Shutdown);
        closing.cancel();
        let finished = lifecycle.finished(deadline - Instant::now(), &mut signals).await;
        drop(shards);
        tracing::info!(browsers, flushed, finished, "stopped");
        crashed.map_or(Ok(()), |task| Err(AppError::Crashed(task)))
    }
}

/// The key that nodes without a secret share. A Redis that does not give it is not waited for: then the key is this
/// process' own.
async fn shared_key(link: &Link) -> Key {
    let mut reason = "redis does not answer".to_owned();
    let (started, mut patience) = (Instant::now(), KEY_PATIENCE);
    while started.elapsed() < patience {
        match timeout(patience.saturating_sub(started.elapsed()), Key::shared(link)).await {
            Ok(Ok(key)) => return key,
            // The error before it says more.
            Ok(Err(ConnectionError::Down)) | Err(_) => {}
            Ok(Err(error)) => {
                reason = chain(&error);
                match error {
                    ConnectionError::Denied(_) | ConnectionError::Foreign(_) => break,
                    ConnectionError::Redis(error) if error.code() == Some("LOADING") => patience = KEY_LOADING_PATIENCE,
                    _ => {}
                }
            }
        }
        sleep(KEY_PAUSE).await;
    }
    tracing::warn!(
        "tickets are sealed with a key of this process alone, so that browsers are not recovered by other nodes or after a \
         restart; set CHANNELS_SECRET: {reason}"
    );
    Key::random()
}

/// Gives the key back to a Redis that lost it, and tells when other nodes have another one.
async fn keep_key(link: Link, key: Key) {
    let mut told = false;
    loop {
        sleep(KEY_INTERVAL).await;
        match key.share(&link).await {
            Ok(false) if !std::mem::replace(&mut told, true) => tracing::warn!(
                "redis has another key for tickets than this process, so that browsers are not recovered by other nodes or \
                 after a restart; restart this node, or set CHANNELS_SECRET"
            ),
            Err(ConnectionError::Denied(_)) => return,
            _ => {}
        }
    }
}

fn engine_routes(engine: Arc<Engine<SocketIo>>) -> Router {
    let handle = async |State(engine): State<Arc<Engine<SocketIo>>>, request: Request<Body>| {
        // The path is a prefix, as in Node, but the client's script that Node serves there is not here.
        if request.uri().path().starts_with("/socket.io/socket.io.") {
            return StatusCode::NOT_FOUND.into_response();
        }
        engine.handle(request).await
    };
    Router::new().route("/socket.io/", any(handle)).route("/socket.io/{*rest}", any(handle)).with_state(engine)
}

/// How many connections are served: what the limit of open files allows, and the settings.
fn connections(config: &Config) -> usize {
    let open_files = rlimit::Resource::NOFILE.get_soft().unwrap_or(u64::MAX);
    let wanted = config.limits.connections;
    let (connections, needs_open_files) = listener::capacity(open_files, wanted, config.rails.max_concurrency);
    if let Some(needed) = needs_open_files {
        tracing::warn!(
            "{connections} connections are served: more need a limit of {needed} open files, which is {open_files}; \
             raise it with `ulimit -n`, LimitNOFILE= of systemd, or --ulimit nofile= of docker"
        );
    }
    let sessions = config.limits.sessions.unwrap_or(connections);
    tracing::info!(connections, sessions, open_files, "limits");
    connections
}

fn options(config: &Config, connections: usize) -> Result<Options, AppError> {
    let cors = |allowed: &AllowedOrigin| {
        let origin = allowed.origin.parse();
        let origin = origin.map_err(|_| AppError::Config(format!("{}: not an origin", allowed.variable)))?;
        Ok(Cors { origin, strict: config.http.strict_origin })
    };
    Ok(Options {
        ping_interval: config.engine.ping_interval,
        ping_timeout: config.engine.ping_timeout,
        unproven: Some(Unproven {
            timeout: config.engine.connect_timeout,
            message_timeout: UNPROVEN_MESSAGE_TIMEOUT,
            max_payload: UNPROVEN_MESSAGE,
        }),
        max_sessions: config.limits.sessions.unwrap_or(connections),
        max_sessions_per_address: config.limits.sessions_per_address,
        trusted_proxies: config.http.trusted_proxies.clone(),
        outbox_bytes: config.engine.outbox_bytes,
        cors: config.http.allowed_origin.as_ref().map(cors).transpose()?,
        ..Options::default()
    })
}

fn take_port(config: &Config) -> Result<TcpListener, AppError> {
    let (address, port) = (config.http.bind, config.http.port);
    listener::bind(address, port).map_err(|error| {
        let mend = match error.kind() {
            std::io::ErrorKind::AddrInUse => "another program has it; stop that, or set PORT to a free one",
            std::io::ErrorKind::PermissionDenied => "ports below 1024 need a privilege; set PORT to a higher one",
            std::io::ErrorKind::AddrNotAvailable => "BIND is no address of this machine; leave it unset for all",
            _ => "check PORT and BIND",
        };
        let on = address.map_or_else(String::new, |address| format!(" on BIND={address}"));
        AppError::Config(format!("cannot listen on PORT={port}{on}: {error}; {mend}"))
    })
}
