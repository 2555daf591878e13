//! One connection for commands, shared by all callers.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use redis::{AsyncConnectionConfig, Cmd, FromRedisValue, RedisError, RedisResult, aio::MultiplexedConnection};
use tokio::{sync::Mutex, time::timeout};

use super::{ConnectionError, Connector, DIAL_TIMEOUT};

/// How long an answer may take before the connection counts as dead. Longer than any caller waits.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// A refusal that stays the same until a person changes a setting, so that asking again soon is of no use.
///
/// Every other error passes by itself and counts as an outage: `LOADING`, `BUSY`, `MASTERDOWN`, `READONLY`, `TRYAGAIN`,
/// `ASK`, `CLUSTERDOWN`, other `ERR` (as for too many clients), and a login that fails, of which the subscription tells.
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

/// A connection that is dialled when it is first used, and again after it failed. While Redis fails, a circuit breaker
/// lets four calls a second through; the others fail at once. [`ConnectionError::Denied`] means that asking again is of
/// no use, any other error that Redis does not answer now.
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

    /// The value of a string key; [`ConnectionError::Redis`] with the code `WRONGTYPE` when the key holds no string.
    pub async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, ConnectionError> {
        self.call(redis::cmd("GET").arg(key)).await
    }

    /// The values of string keys, all asked for in one write, each as [`Link::get`] gives it. There is an error for all when
    /// Redis answered none. `MGET` would need a right of its own, and says nothing of keys that hold no string.
    pub async fn get_each(
        &self,
        keys: impl Iterator<Item = String>,
    ) -> Result<Vec<Result<Option<Vec<u8>>, ConnectionError>>, ConnectionError> {
        let connection = self.connection().await?;
        let mut pipeline = redis::pipe();
        for key in keys {
            pipeline.cmd("GET").arg(key);
        }
        let answers = pipeline.ignore_errors().query_async(&mut MultiplexedConnection::clone(&connection)).await;
        let answers: Vec<RedisResult<_>> = self.judge(&connection, answers).await?;
        let mut values = Vec::with_capacity(answers.len());
        for answer in answers {
            values.push(self.judge(&connection, answer).await);
        }
        Ok(values)
    }

    /// Sets a key that does not exist yet.
    ///
    /// # Errors
    /// [`ConnectionError::Denied`] when the user may not write it. Any other error means that Redis does not answer now.
    pub async fn set_absent(&self, key: &str, value: &str) -> Result<(), ConnectionError> {
        self.call::<Option<String>>(redis::cmd("SET").arg(key).arg(value).arg("NX")).await.map(drop)
    }

    /// Publishes a message; returns the number of subscribers that received it.
    pub async fn publish(&self, channel: &str, payload: &[u8]) -> Result<u64, ConnectionError> {
        self.call(redis::cmd("PUBLISH").arg(channel).arg(payload)).await
    }

    /// Has a command executed.
    ///
    /// # Errors
    /// As for [`Link::get`]; [`ConnectionError::Redis`] also for what else Redis answers.
    pub async fn call<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, ConnectionError> {
        let connection = self.connection().await?;
        let answer = command.query_async(&mut MultiplexedConnection::clone(&connection)).await;
        self.judge(&connection, answer).await
    }

    /// What an answer on this connection says of Redis.
    async fn judge<T>(
        &self,
        connection: &Arc<MultiplexedConnection>,
        answer: RedisResult<T>,
    ) -> Result<T, ConnectionError> {
        let error = match answer {
            Ok(value) => {
                self.breaker.succeeded();
                return Ok(value);
            }
            Err(error) => error,
        };
        if error.is_io_error() || error.is_timeout() || error.is_connection_dropped() {
            // Another caller may have replaced the connection already.
            if self.connection.lock().await.take_if(|now| Arc::ptr_eq(now, connection)).is_some() {
                self.breaker.lost(Instant::now());
            }
            return Err(error.into());
        }
        let denial = Denial::of(&error);
        if error.code() == Some("READONLY") {
            // A primary that was demoted may keep its connections; another dial may find the new one.
            self.connection.lock().await.take_if(|now| Arc::ptr_eq(now, connection));
            self.breaker.failed(Instant::now());
        } else if denial.is_some() || matches!(error.code(), Some("WRONGTYPE" | "OOM")) {
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
        let dial = Box::pin(async {
            let config = AsyncConnectionConfig::new()
                .set_connection_timeout(Some(DIAL_TIMEOUT))
                .set_response_timeout(Some(ANSWER_TIMEOUT));
            let client = self.connector.client().await?;
            Ok(client.get_multiplexed_async_connection_with_config(&config).await?)
        });
        let dialled = timeout(DIAL_TIMEOUT, dial).await.unwrap_or(Err(ConnectionError::Timeout));
        if dialled.is_err() {
            self.breaker.failed(Instant::now());
        }
        Ok(Arc::clone(shared.insert(Arc::new(dialled?))))
    }
}

/// How long an open breaker refuses attempts, so that a Redis that fails is asked four times a second.
const PAUSE: Duration = Duration::from_millis(250);

/// A circuit breaker: bounds how often a Redis that fails is asked, however many browsers wait for its answer.
///
/// Closed, as at first, every attempt is admitted. Open, none is until a pause has passed. Half-open, one attempt is
/// admitted in each pause; its success closes the breaker. Holds when the next one is admitted; `None` while closed.
#[derive(Default)]
struct Breaker(parking_lot::Mutex<Option<Instant>>);

impl Breaker {
    /// Whether an attempt may be made now. If so, the caller makes one.
    fn admit(&self, now: Instant) -> bool {
        let mut next = self.0.lock();
        let admitted = next.is_none_or(|next| now >= next);
        if admitted && next.is_some() {
            *next = Some(now + PAUSE);
        }
        admitted
    }

    /// Redis answered.
    fn succeeded(&self) {
        *self.0.lock() = None;
    }

    /// Redis could not be reached, or said that it cannot answer now.
    fn failed(&self, now: Instant) {
        *self.0.lock() = Some(now + PAUSE);
    }

    /// A connection broke. When it was a good one until now, one attempt may follow at once.
    fn lost(&self, now: Instant) {
        let mut next = self.0.lock();
        *next = Some(if next.is_none() { now } else { now + PAUSE });
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

    /// Whether each of several attempts at these many milliseconds after the start is admitted.
    fn admitted(breaker: &Breaker, start: Instant, at: &[u64]) -> Vec<bool> {
        at.iter().map(|&millis| breaker.admit(start + Duration::from_millis(millis))).collect()
    }

    #[test]
    fn a_failure_lets_one_attempt_through_in_each_pause_until_a_success() {
        let (breaker, start) = (Breaker::default(), Instant::now());
        assert_eq!(admitted(&breaker, start, &[0, 0, 0]), [true; 3]);
        breaker.failed(start);
        assert_eq!(
            admitted(&breaker, start, &[0, 249, 250, 250, 499, 500, 501]),
            [false, false, true, false, false, true, false]
        );
        breaker.failed(start + Duration::from_millis(600));
        assert_eq!(admitted(&breaker, start, &[849, 850, 850]), [false, true, false]);
        breaker.succeeded();
        assert_eq!(admitted(&breaker, start, &[850, 850]), [true; 2]);
    }

    #[test]
    fn after_the_loss_of_a_good_connection_one_attempt_follows_at_once() {
        let (breaker, start) = (Breaker::default(), Instant::now());
        breaker.lost(start);
        assert_eq!(admitted(&breaker, start, &[0, 0]), [true, false]);
        breaker.lost(start);
        assert_eq!(admitted(&breaker, start, &[0, 249, 250]), [false, false, true]);
    }
}
