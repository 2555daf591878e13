//! The way to Redis, straight or through Sentinel, for those who subscribe and those who look things up.
//!
//! Knows addresses and connections; nothing of channels or keys.

mod breaker;
mod stream;

use std::{
    io,
    sync::{self, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, RedisError, TlsMode,
    aio::MultiplexedConnection,
    sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType},
};
use tokio::{sync::Mutex, time::timeout};

use self::breaker::Breaker;
pub use self::stream::{Duplex, Stream};
use crate::{
    config::{RedisTarget, RedisUrl, Secret},
    tls,
};

/// How long a connection may take to come about.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an answer may take before the connection is taken for dead. Longer than any caller waits.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Redis cannot be used now.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// As the client says.
    #[error("redis does not answer")]
    Redis(#[from] RedisError),
    /// As the system says.
    #[error("redis cannot be reached")]
    Io(#[from] io::Error),
    /// As Redis says.
    #[error("redis refuses the login: {0}")]
    Refused(String),
    /// No connection in time.
    #[error("no connection to redis within {} s", CONNECT_TIMEOUT.as_secs())]
    Timeout,
    /// A dial or a command failed a moment ago.
    #[error("redis did not answer a moment ago")]
    Down,
    /// Redis answers that it will not.
    #[error("redis denies the command")]
    Denied(Denial),
}

/// An answer that stays the same until a person changes a setting, so that asking again soon is of no use.
///
/// Every other error passes by itself and counts as an outage: `LOADING` (Redis starts), `BUSY` (a script runs),
/// `MASTERDOWN` (a replica has lost its primary), `READONLY` (a primary has become a replica), `TRYAGAIN`, `ASK` and
/// `CLUSTERDOWN` (a cluster moves keys or elects), `ERR` with another text (such as too many clients, or a proxy before
/// Redis that has lost it), and a login that fails, as then nothing works and the subscription says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denial {
    /// `NOPERM`: the user may not use this command, or not with this key.
    Rights,
    /// `NOAUTH`: Redis wants a password, and the address has none.
    Password,
    /// `ERR unknown command`: it is renamed or disabled in Redis' configuration, or a proxy before Redis lacks it.
    Command,
    /// `MOVED`: this is one node of a cluster, and the key is on another.
    Cluster,
}

impl Denial {
    fn of(error: &RedisError) -> Option<Self> {
        match error.code()? {
            "NOPERM" => Some(Self::Rights),
            "NOAUTH" => Some(Self::Password),
            "MOVED" => Some(Self::Cluster),
            "ERR" if error.detail().is_some_and(|text| text.starts_with("unknown command")) => Some(Self::Command),
            _ => None,
        }
    }
}

/// Dials Redis.
pub struct Connector(Route);

enum Route {
    Straight(Client),
    Sentinel(Mutex<SentinelClient>),
}

impl Connector {
    /// A connector to the configured server; dials nothing yet.
    ///
    /// # Errors
    /// When the client does not take the address.
    pub fn new(url: &RedisUrl) -> Result<Self, RedisError> {
        tls::install();
        Ok(Self(match url.target() {
            RedisTarget::Url(address) => Route::Straight(Client::open(address.expose())?),
            sentinel @ RedisTarget::Sentinel { .. } => Route::Sentinel(Mutex::new(sentinel_client(sentinel)?)),
        }))
    }

    /// A connector to an address in the client's own notation, such as `redis://127.0.0.1:6379`.
    ///
    /// # Errors
    /// When the client does not take the address.
    pub fn to(address: &str) -> Result<Self, RedisError> {
        Ok(Self(Route::Straight(Client::open(address)?)))
    }

    /// A new connection, logged in, for whoever reads the answers without the client.
    ///
    /// # Errors
    /// When there is none to be had. Does not give up by itself on a server that is silent.
    pub async fn stream(&self) -> Result<Stream, ConnectionError> {
        stream::dial(self.client().await?.get_connection_info()).await
    }

    /// The client of the server to use now, which with Sentinel may be another each time.
    async fn client(&self) -> Result<Client, RedisError> {
        match &self.0 {
            Route::Straight(client) => Ok(client.clone()),
            Route::Sentinel(sentinel) => sentinel.lock().await.async_get_client().await,
        }
    }
}

fn sentinel_client(target: &RedisTarget) -> Result<SentinelClient, RedisError> {
    let RedisTarget::Sentinel { nodes, service, user, password, db, tls, sentinel_user, sentinel_password } = target
    else {
        return Err(RedisError::from((redis::ErrorKind::InvalidClientConfig, "not a sentinel address")));
    };
    let address = |(host, port): &(String, u16)| match tls {
        true => ConnectionAddr::TcpTls { host: host.clone(), port: *port, insecure: false, tls_params: None },
        false => ConnectionAddr::Tcp(host.clone(), *port),
    };
    let mut builder =
        SentinelClientBuilder::new(nodes.iter().map(address), service.clone(), SentinelServerType::Master)?
            .set_client_to_redis_db(*db);
    if *tls {
        builder = builder.set_client_to_redis_tls_mode(TlsMode::Secure);
    }
    if let Some(user) = user {
        builder = builder.set_client_to_redis_username(user);
    }
    if let Some(password) = password.as_ref().map(Secret::expose) {
        builder = builder.set_client_to_redis_password(password);
    }
    if let Some(user) = sentinel_user {
        builder = builder.set_client_to_sentinel_username(user);
    }
    if let Some(password) = sentinel_password.as_ref().map(Secret::expose) {
        builder = builder.set_client_to_sentinel_password(password);
    }
    builder.build()
}

/// One connection for lookups, shared by all who ask and dialled again when it fails.
pub struct Link {
    connector: Connector,
    state: Mutex<State>,
    breaker: sync::Mutex<Breaker>,
}

#[derive(Default)]
struct State {
    connection: Option<MultiplexedConnection>,
    /// Number of the connection, so that only those who used it can discard it.
    generation: u64,
}

impl Link {
    /// A link that is dialled when it is first used.
    pub fn new(connector: Connector) -> Self {
        Self { connector, state: Mutex::default(), breaker: sync::Mutex::default() }
    }

    /// The value of a string key.
    ///
    /// # Errors
    /// [`ConnectionError::Denied`] when there is no use in asking again; `WRONGTYPE` is passed on; all others say that
    /// Redis does not answer now. While it does not, only four calls a second reach it: the others fail at once.
    pub async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, ConnectionError> {
        let (mut connection, generation) = self.connection().await?;
        let error: RedisError = match redis::cmd("GET").arg(key).query_async(&mut connection).await {
            Ok(value) => {
                self.breaker().succeeded();
                return Ok(value);
            }
            Err(error) => error,
        };
        if error.is_io_error() || error.is_timeout() || error.is_connection_dropped() {
            let mut state = self.state.lock().await;
            if state.generation == generation && state.connection.take().is_some() {
                self.breaker().lost(Instant::now());
            }
            return Err(error.into());
        }
        let denial = Denial::of(&error);
        if denial.is_some() || error.code() == Some("WRONGTYPE") {
            self.breaker().succeeded();
        } else {
            self.breaker().failed(Instant::now());
        }
        Err(denial.map_or(ConnectionError::Redis(error), ConnectionError::Denied))
    }

    async fn connection(&self) -> Result<(MultiplexedConnection, u64), ConnectionError> {
        let mut state = self.state.lock().await;
        // Only now, as the dial that was waited for may have failed.
        if !self.breaker().admit(Instant::now()) {
            return Err(ConnectionError::Down);
        }
        if let Some(connection) = &state.connection {
            return Ok((connection.clone(), state.generation));
        }
        // Boxed, or the task of everyone who looks something up is as large as a dial.
        let dialled = timeout(CONNECT_TIMEOUT, Box::pin(self.dial())).await.unwrap_or(Err(ConnectionError::Timeout));
        if dialled.is_err() {
            self.breaker().failed(Instant::now());
        }
        let connection = dialled?;
        state.connection = Some(connection.clone());
        state.generation += 1;
        Ok((connection, state.generation))
    }

    /// The breaker is whole after each of its steps, so a panic elsewhere cannot have spoilt it.
    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn dial(&self) -> Result<MultiplexedConnection, ConnectionError> {
        let client = self.connector.client().await?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(ANSWER_TIMEOUT));
        Ok(client.get_multiplexed_async_connection_with_config(&config).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_person_has_to_change_is_told_from_what_passes() {
        for (answer, denial) in [
            ("NOPERM this user has no permissions to run the 'get' command", Some(Denial::Rights)),
            ("NOPERM No permissions to access a key", Some(Denial::Rights)),
            ("NOAUTH Authentication required.", Some(Denial::Password)),
            ("ERR unknown command 'GET', with args beginning with: '/current_users/x' ", Some(Denial::Command)),
            ("ERR unknown command `GET`, with args beginning with: `/current_users/x`, ", Some(Denial::Command)),
            ("MOVED 3999 127.0.0.1:6381", Some(Denial::Cluster)),
            ("LOADING Redis is loading the dataset in memory", None),
            ("BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.", None),
            ("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", None),
            ("READONLY You can't write against a read only replica.", None),
            ("TRYAGAIN Multiple keys request during rehashing of slot", None),
            ("ASK 3999 127.0.0.1:6381", None),
            ("CLUSTERDOWN The cluster is down", None),
            ("ERR max number of clients reached", None),
            ("ERR", None),
            ("WRONGTYPE Operation against a key holding the wrong kind of value", None),
        ] {
            let value = redis::parse_redis_value(format!("-{answer}\r\n").as_bytes()).unwrap();
            assert_eq!(Denial::of(&value.extract_error().unwrap_err()), denial, "{answer}");
        }
    }

    #[test]
    fn a_lookup_has_no_room_for_a_dial() {
        let link = Link::new(Connector::to("redis://localhost").unwrap());
        assert!(size_of_val(&link.get("key")) <= 512, "each browser that connects has one");
    }
}
