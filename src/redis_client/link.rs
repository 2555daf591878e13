//! One connection for commands, shared by all callers.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use redis::{AsyncConnectionConfig, Cmd, FromRedisValue, RedisError, aio::MultiplexedConnection};
use tokio::{sync::Mutex, time::timeout};

use super::{ConnectionError, Connector, DIAL_TIMEOUT, breaker::Breaker};

/// How long an answer may take before the connection counts as dead. Longer than any caller waits.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// A refusal that stays the same until a person changes a setting, so that asking again soon is of no use.
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

/// A connection that is dialled when it is first used, and again after it failed.
///
/// While Redis fails, a circuit breaker lets four calls a second through; the others fail at once.
pub struct Link {
    connector: Connector,
    connection: Mutex<Option<Arc<MultiplexedConnection>>>,
    breaker: Breaker,
}

impl Link {
    /// A link that is not dialled yet.
    pub fn new(connector: Connector) -> Self {
        Self { connector, connection: Mutex::default(), breaker: Breaker::default() }
    }

    /// The value of a string key.
    ///
    /// # Errors
    /// [`ConnectionError::Denied`] when asking again is of no use. [`ConnectionError::Redis`] with the code `WRONGTYPE`
    /// when the key holds no string. Any other error means that Redis does not answer now.
    pub async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, ConnectionError> {
        self.call(redis::cmd("GET").arg(key)).await
    }

    /// Publishes a message; returns the number of subscribers that received it.
    ///
    /// # Errors
    /// [`ConnectionError::Denied`] when the user may not publish. Any other error means that Redis does not answer now.
    pub async fn publish(&self, channel: &str, payload: &[u8]) -> Result<u64, ConnectionError> {
        self.call(redis::cmd("PUBLISH").arg(channel).arg(payload)).await
    }

    async fn call<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, ConnectionError> {
        let connection = self.connection().await?;
        let error: RedisError = match command.query_async(&mut MultiplexedConnection::clone(&connection)).await {
            Ok(value) => {
                self.breaker.succeeded();
                return Ok(value);
            }
            Err(error) => error,
        };
        if error.is_io_error() || error.is_timeout() || error.is_connection_dropped() {
            // Another caller may have replaced the connection already.
            if self.connection.lock().await.take_if(|now| Arc::ptr_eq(now, &connection)).is_some() {
                self.breaker.lost(Instant::now());
            }
            return Err(error.into());
        }
        let denial = Denial::of(&error);
        if denial.is_some() || error.code() == Some("WRONGTYPE") {
            self.breaker.succeeded();
        } else {
            self.breaker.failed(Instant::now());
        }
        Err(denial.map_or(ConnectionError::Redis(error), ConnectionError::Denied))
    }

    async fn connection(&self) -> Result<Arc<MultiplexedConnection>, ConnectionError> {
        let mut shared = self.connection.lock().await;
        // After the lock: the dial that was waited for may have failed.
        if !self.breaker.admit(Instant::now()) {
            return Err(ConnectionError::Down);
        }
        if let Some(connection) = &*shared {
            return Ok(Arc::clone(connection));
        }
        // Boxed, as otherwise the task of every browser that is looked up is as large as a dial.
        let dialled = timeout(DIAL_TIMEOUT, Box::pin(self.dial())).await.unwrap_or(Err(ConnectionError::Timeout));
        if dialled.is_err() {
            self.breaker.failed(Instant::now());
        }
        Ok(Arc::clone(shared.insert(Arc::new(dialled?))))
    }

    async fn dial(&self) -> Result<MultiplexedConnection, ConnectionError> {
        let client = self.connector.client().await?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(DIAL_TIMEOUT))
            .set_response_timeout(Some(ANSWER_TIMEOUT));
        Ok(client.get_multiplexed_async_connection_with_config(&config).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

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
        let config = Config::from_env(&std::iter::empty::<(&str, &str)>().collect()).unwrap();
        let link = Link::new(Connector::new(&config.redis).unwrap());
        assert!(size_of_val(&link.get("key")) <= 512, "each browser that connects has one");
    }
}
