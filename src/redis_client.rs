//! Connections to Redis, direct or through Sentinel: bare ones for a subscription, a shared one for commands.
//!
//! Knows addresses and connections; nothing of channels or keys.

mod link;
mod raw;

use std::{io, time::Duration};

use redis::{
    Client, RedisError,
    sentinel::{SentinelClient, SentinelServerType},
};
use tokio::sync::Mutex;

pub use self::{
    link::{Denial, Link},
    raw::{Duplex, Ends, RawConnection},
};
use crate::{
    config::{RedisTarget, RedisUrl},
    tls,
};

/// How long a connection may take to come about.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(5);

/// Why Redis cannot be used now.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The client could not reach Redis, or Redis answers with an error that passes by itself.
    #[error("redis does not answer")]
    Redis(#[from] RedisError),
    /// The system could not connect, or the connection broke.
    #[error("redis cannot be reached")]
    Io(#[from] io::Error),
    /// Redis refuses user, password or database.
    #[error("redis refuses the login: {0}")]
    Refused(String),
    /// There was no connection in time.
    #[error("no connection to redis within {} s", DIAL_TIMEOUT.as_secs())]
    Timeout,
    /// The circuit breaker is open: a dial or a command failed a moment ago.
    #[error("redis did not answer a moment ago")]
    Down,
    /// What is at the key was not written by this program.
    #[error("another program keeps something else at the key {0}")]
    Foreign(&'static str),
    /// Redis denies the command until a person changes a setting.
    #[error("redis denies the command")]
    Denied(Denial),
}

/// Dials Redis.
pub struct Connector(Route);

enum Route {
    Direct(Client),
    Sentinel(Mutex<SentinelClient>),
}

impl Connector {
    /// A connector to the configured server; dials nothing yet. Fails when the client does not take the address.
    pub fn new(url: &RedisUrl) -> Result<Self, RedisError> {
        tls::install();
        Ok(Self(match url.target.clone() {
            RedisTarget::Url(address) => Route::Direct(Client::open(address.expose())?),
            RedisTarget::Sentinel { nodes, service, master } => {
                let sentinel = SentinelClient::build(nodes, service, Some(master), SentinelServerType::Master)?;
                Route::Sentinel(Mutex::new(sentinel))
            }
        }))
    }

    /// The client of the server to use now, which with Sentinel may be another each time.
    async fn client(&self) -> Result<Client, RedisError> {
        match &self.0 {
            Route::Direct(client) => Ok(client.clone()),
            Route::Sentinel(sentinel) => sentinel.lock().await.async_get_client().await,
        }
    }
}
