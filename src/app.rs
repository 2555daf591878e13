//! Puts the program together, in three steps: build (no ports), bind (real addresses), run (until the stop).

use std::{
    future::{Ready, ready},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use axum::{
    Router,
    body::Body,
    extract::Path,
    http::{Request, StatusCode},
    response::{IntoResponse, Response},
    routing::any,
};
use futures_util::FutureExt;
use rand::RngExt;
use tokio::{net::TcpListener, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    admin,
    admission::{Admission, Answers, Key, Tickets, Users},
    bus::{MemoryBus, MemorySource, RedisSource},
    collab_auth,
    config::{Config, GapNotice},
    demo,
    dispatch::Dispatch,
    engineio::{CloseReason, Cors, Engine, Options, Unproven},
    hub::{Clock, Epoch, Hub, HubOptions, LogBounds, OffsetKey, Shards},
    lifecycle::{Lifecycle, Readiness, Signals, StopReason},
    listener::{self, Capacity, Site},
    metrics::Metrics,
    rails::Rails,
    redis_client::{Connector, Link},
    socketio::{SocketIo, SocketIoWire},
};

/// How long the tasks have to end after the stop. Container runtimes kill after ten seconds.
const STOP_DEADLINE: Duration = Duration::from_secs(8);

/// How long browsers have, after the stop, to take what was accepted for them before it.
const FLUSH: Duration = Duration::from_secs(1);

/// How often the hub is asked whether it has delivered that.
const FLUSH_TICK: Duration = Duration::from_millis(5);

/// Memory beyond the recovery log's for messages that a busy shard has not delivered yet: some seconds of the largest
/// bursts. Messages beyond it are dropped; browsers that have not got them are disconnected and come back.
const UNDELIVERED_BYTES: usize = 64 << 20;
/// Longest message before CONNECT is acknowledged, in bytes. A CONNECT with the ticket of a user in thousands of groups
/// fits in.
const UNPROVEN_MESSAGE: usize = 64 * 1024;

/// How long it may take from its first byte to its last.
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
    #[error("{what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The system's answer.
        #[source]
        error: std::io::Error,
    },
    /// A task that must not end has ended.
    #[error("the task `{0}` ended")]
    Crashed(&'static str),
}

fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> AppError {
    move |error| AppError::System { what, error }
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
        let lifecycle = Lifecycle::new();
        let bound = App::bind(config, mode, lifecycle)?;
        bound.announce();
        bound.run().await
    });
    // Tasks that still run have had their time.
    runtime.shutdown_background();
    result
}

/// Where messages come from, and what else only that way needs.
#[expect(clippy::large_enum_variant, reason = "there is one in a process")]
enum Bus {
    /// `rights` is for the check of rights alone.
    Redis { source: RedisSource, rights: Users },
    /// `publisher` is for the page of the demo.
    Memory { source: MemorySource, publisher: MemoryBus },
}

/// The program with its ports taken, not yet accepting.
pub struct App {
    lifecycle: Lifecycle,
    listener: TcpListener,
    connections: usize,
    engine: Arc<Engine<SocketIo>>,
    hub: Hub,
    shards: Shards,
    bus: Bus,
    gap_notice: GapNotice,
    collab_auth: Router,
    readiness: Readiness,
    metrics: Metrics,
}

impl App {
    /// Builds all parts and takes the ports.
    ///
    /// # Errors
    /// [`AppError::Config`] when a port or an address cannot be used.
    pub fn bind(config: Config, mode: Mode, lifecycle: Lifecycle) -> Result<Self, AppError> {
        let listener = take_port(&config)?;
        let (readiness, metrics) = (Readiness::default(), Metrics::new());
        let (bus, answers) = match mode {
            Mode::Serve => {
                let connector =
                    || Connector::new(&config.redis).map_err(|error| AppError::Config(format!("REDIS_URL: {error}")));
                let source = RedisSource::new(connector()?, readiness.clone());
                let rights = Users::new(Answers::Redis(Link::new(connector()?)), metrics.clone());
                (Bus::Redis { source, rights }, Answers::Redis(Link::new(connector()?)))
            }
            Mode::Demo => {
                let (publisher, source) = MemoryBus::new(readiness.clone());
                (Bus::Memory { source, publisher }, Answers::Memory(demo::USERS))
            }
        };
        let users = Users::new(answers, metrics.clone());
        let key = match &config.recovery.secret {
            Some(secret) => Key::derive(secret).map_err(|error| AppError::Config(format!("ticket key: {error}")))?,
            None => Key::random(),
        };
        let started = Hub::start(hub_options(&config, &key), || lifecycle.critical("shard"));
        let (hub, shards) = started.map_err(system("cannot start a shard"))?;
        let (window, unvouched_max) = (config.recovery.window, config.recovery.unvouched_max);
        let namespace = SocketIo {
            wire: SocketIoWire(hub.clone()),
            admission: Admission::new(users, Tickets::new(&key), window, unvouched_max, metrics.clone()),
            metrics: metrics.clone(),
            tasks: lifecycle.tasks().clone(),
            stop: lifecycle.stop().clone(),
        };
        let connections = connections(&config);
        let engine = Engine::new(namespace, options(&config, connections)?, lifecycle.tasks().clone(), metrics.clone());
        let rails = Rails::new(&config.rails, metrics.clone(), lifecycle.clone());
        let collab_auth = collab_auth::routes(rails, &config.collab, config.http.trusted_proxies, metrics.clone());
        let gap_notice = config.recovery.gap_notice;
        Ok(Self {
            lifecycle,
            listener,
            connections,
            engine,
            hub,
            shards,
            bus,
            gap_notice,
            collab_auth,
            readiness,
            metrics,
        })
    }

    /// The address that was taken.
    ///
    /// # Errors
    /// As the system says.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// What is counted.
    pub fn metrics(&self) -> Metrics {
        self.metrics.clone()
    }

    fn announce(&self) {
        let port = self.local_addr().map_or(0, |address| address.port());
        tracing::info!("listening on port {port}");
        if let Bus::Memory { .. } = self.bus {
            tracing::info!("open http://localhost:{port}/demo");
            let payload = r#"{"records":{"comments":[{"id":1,"body":"Hello from a terminal"}]}}"#;
            tracing::info!("or: echo '{payload}' | loomio-channels publish group-1 - --demo localhost:{port}");
        }
    }

    /// Serves until the stop, then ends politely: browsers see their connection end and come back by themselves.
    ///
    /// # Errors
    /// When a part ended that must not.
    pub async fn run(self) -> Result<(), AppError> {
        let (lifecycle, engine, hub) = (&self.lifecycle, &self.engine, &self.hub);
        let stop = lifecycle.stop();
        let mut signals = Signals::listen().map_err(system("cannot listen to signals"))?;
        let is_ready = self.readiness.until(stop.clone());
        let overflow = admin::routes(is_ready.clone()).fallback(refuse(engine));
        let mut router = admin::routes(is_ready).merge(self.collab_auth).merge(engine_routes(engine));
        if let Bus::Memory { publisher, .. } = &self.bus {
            router = router.merge(demo::routes(publisher.clone()));
        }
        // The port stays open while browsers fetch what was accepted for them: one that polls may be between two requests.
        let closing = CancellationToken::new();
        let site = Site { router, overflow, connections: self.connections, metrics: self.metrics.clone() };
        let dispatch = Dispatch::new(hub.clone(), &self.gap_notice, self.metrics);
        let dispatched = CancellationToken::new();
        let dispatch = match self.bus {
            Bus::Redis { source, rights } => {
                let stop_check = stop.clone();
                lifecycle.tasks().spawn(async move {
                    stop_check.run_until_cancelled(rights.check_rights()).await;
                });
                dispatch.run(source, stop.clone()).boxed()
            }
            Bus::Memory { source, .. } => dispatch.run(source, stop.clone()).boxed(),
        };
        let ended = dispatched.clone().drop_guard();
        lifecycle.spawn_critical("dispatch", async move {
            dispatch.await;
            drop(ended);
        });
        lifecycle.spawn_critical("heartbeat", Arc::clone(engine).run(stop.clone()));
        lifecycle.spawn_critical("hub", hub.clone().tend(stop.clone()));
        let accept = listener::serve(self.listener, site, lifecycle.tasks().clone(), closing.clone());
        lifecycle.spawn_critical("listener", accept);

        let why = lifecycle.stopped(&mut signals).await;
        engine.stop_admitting();
        let browsers = engine.sessions();
        let flushed = lifecycle.within(FLUSH, &mut signals, flush(&dispatched, hub, engine)).await;
        engine.close_all(CloseReason::Shutdown);
        closing.cancel();
        let finished = lifecycle.finished(STOP_DEADLINE, &mut signals).await;
        drop(self.shards);
        tracing::info!(browsers, flushed, finished, "stopped");
        match why {
            StopReason::Requested => Ok(()),
            StopReason::Crashed(task) => Err(AppError::Crashed(task)),
        }
    }
}

/// Waits until browsers have all that Redis had accepted for them when the stop came.
async fn flush(dispatched: &CancellationToken, hub: &Hub, engine: &Engine<SocketIo>) {
    dispatched.cancelled().await;
    while !hub.is_delivered() {
        sleep(FLUSH_TICK).await;
    }
    // Longer than the caller waits, so that this ends only when it is done.
    while !engine.drained(FLUSH).await {}
}

fn engine_routes(engine: &Arc<Engine<SocketIo>>) -> Router {
    let handle = |engine: &Arc<Engine<SocketIo>>| {
        let engine = Arc::clone(engine);
        move |request: Request<Body>| Arc::clone(&engine).handle(request)
    };
    // The path is a prefix, as in Node, but the client's script that Node serves there is not here.
    let below = {
        let handle = handle(engine);
        move |Path(rest): Path<String>, request: Request<Body>| {
            let answer = (!rest.starts_with("socket.io.")).then(|| handle(request));
            async move {
                match answer {
                    Some(answer) => answer.await,
                    None => StatusCode::NOT_FOUND.into_response(),
                }
            }
        }
    };
    Router::new().route("/socket.io/", any(handle(engine))).route("/socket.io/{*rest}", any(below))
}

fn hub_options(config: &Config, key: &Key) -> HubOptions {
    let recovery = &config.recovery;
    let bounds = LogBounds {
        window: recovery.window,
        bytes: recovery.log_bytes,
        undelivered: UNDELIVERED_BYTES,
        replay: recovery.replay_bytes,
    };
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    HubOptions {
        epoch: Epoch(rand::rng().random()),
        key: OffsetKey::new(&key.part("offsets")),
        bounds,
        shards: config.shards,
        clock: Clock { at: Instant::now(), unix },
    }
}

/// For every path that cannot be answered while there is no place.
fn refuse(engine: &Arc<Engine<SocketIo>>) -> impl Fn(Request<Body>) -> Ready<Response> + Clone + use<> {
    let engine = Arc::clone(engine);
    move |request| ready(engine.refuse(&request))
}

/// How many connections are served: what the limit of open files allows, and the settings.
fn connections(config: &Config) -> usize {
    // Without a limit that can be read there is none.
    let open_files = rlimit::Resource::NOFILE.get_soft().unwrap_or(u64::MAX);
    let wanted = config.limits.connections;
    let Capacity { connections, needs_open_files } =
        listener::capacity(open_files, wanted, config.rails.max_concurrency);
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
    let cors = match &config.http.allowed_origin {
        None => None,
        Some(allowed) => {
            let origin =
                allowed.origin.parse().map_err(|_| AppError::Config(format!("{}: not an origin", allowed.variable)))?;
            Some(Cors { origin, strict: config.http.strict_origin })
        }
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
        cors,
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
