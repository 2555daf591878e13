//! The way to Redis, straight or through Sentinel, for those who subscribe and those who look things up.
//!
//! Knows addresses and connections; nothing of channels or keys.

mod stream;

use std::{
    io,
    time::{Duration, Instant},
};

use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, RedisError, TlsMode,
    aio::MultiplexedConnection,
    sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType},
};
use tokio::{sync::Mutex, time::timeout};

pub use self::stream::{Duplex, Stream};
use crate::{
    config::{RedisTarget, RedisUrl, Secret},
    tls,
};

/// How long a connection may take to come about.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an answer may take before the connection is taken for dead. Longer than any caller waits.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// After a failed dial, how long others are told so without dialling again.
const DIAL_PAUSE: Duration = Duration::from_millis(250);

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
    /// A dial failed a moment ago.
    #[error("redis was not reachable a moment ago")]
    Down,
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
}

#[derive(Default)]
struct State {
    connection: Option<MultiplexedConnection>,
    /// Number of the connection, so that only those who used it can discard it.
    generation: u64,
    failed: Option<Instant>,
}

impl Link {
    /// A link that is dialled when it is first used.
    pub fn new(connector: Connector) -> Self {
        Self { connector, state: Mutex::default() }
    }

    /// The value of a string key.
    ///
    /// # Errors
    /// When Redis does not answer; the next call dials again.
    pub async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, ConnectionError> {
        let (mut connection, generation) = self.connection().await?;
        let result = redis::cmd("GET").arg(key).query_async(&mut connection).await;
        if let Err(error) = &result
            && (error.is_io_error() || error.is_timeout() || error.is_connection_dropped())
        {
            let mut state = self.state.lock().await;
            if state.generation == generation {
                state.connection = None;
            }
        }
        Ok(result?)
    }

    async fn connection(&self) -> Result<(MultiplexedConnection, u64), ConnectionError> {
        let mut state = self.state.lock().await;
        if let Some(connection) = &state.connection {
            return Ok((connection.clone(), state.generation));
        }
        if state.failed.is_some_and(|at| at.elapsed() < DIAL_PAUSE) {
            return Err(ConnectionError::Down);
        }
        // Boxed, or the task of everyone who looks something up is as large as a dial.
        let dialled = timeout(CONNECT_TIMEOUT, Box::pin(self.dial())).await.unwrap_or(Err(ConnectionError::Timeout));
        state.failed = dialled.is_err().then(Instant::now);
        let connection = dialled?;
        state.connection = Some(connection.clone());
        state.generation += 1;
        Ok((connection, state.generation))
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
    fn a_lookup_has_no_room_for_a_dial() {
        let link = Link::new(Connector::to("redis://localhost").unwrap());
        assert!(size_of_val(&link.get("key")) <= 512, "each browser that connects has one");
    }
}
