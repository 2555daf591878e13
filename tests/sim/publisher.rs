//! What Rails does: publishes, and writes the rooms of users, over one connection of its own to Redis. It knows from the
//! order of its own calls what each room got.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use redis::{AsyncConnectionConfig, Client, Cmd, RedisResult, aio::MultiplexedConnection};
use tokio::time::{Instant, sleep};

use crate::{
    harness::{large_record, within},
    model::{Keys, Publication},
    plan::Audience,
};

/// The time since the beginning of a run.
#[derive(Clone, Copy)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn now(self) -> Duration {
        self.0.elapsed()
    }

    pub(crate) async fn until(self, at: Duration) {
        tokio::time::sleep_until(self.0 + at).await;
    }
}

pub(crate) struct Publisher {
    clock: Clock,
    url: String,
    link: Option<MultiplexedConnection>,
    pub(crate) publications: Vec<Publication>,
    /// Of each user.
    pub(crate) keys: Vec<Keys>,
}

/// The token of a client.
pub(crate) fn token(client: usize) -> String {
    format!("token-{client}")
}

/// The room as Rails names it; empty for everyone.
pub(crate) fn room(audience: Audience) -> Arc<str> {
    match audience {
        Audience::User(user) => format!("user-{user}").into(),
        Audience::Group(group) => format!("group-{group}").into(),
        Audience::Everyone => "".into(),
    }
}

impl Publisher {
    pub(crate) fn new(clock: Clock, url: String, users: usize) -> Self {
        Self { clock, url, link: None, publications: Vec::new(), keys: vec![Keys::default(); users] }
    }

    /// Publishes once. When Redis does not answer the message may or may not have been published.
    pub(crate) async fn publish(&mut self, to: Audience, size: usize) {
        let (number, room) = (self.publications.len(), room(to));
        let channel = if to == Audience::Everyone { "/system_notice" } else { "/records" };
        let payload = large_record(&room, number, size);
        let began = self.clock.now();
        // What cannot be published does not arrive, and one that is under way may.
        self.publications.push(Publication { room, began, ended: Duration::MAX, certain: false });
        let published = self.command(redis::cmd("PUBLISH").arg(channel).arg(payload)).await;
        let publication = &mut self.publications[number];
        (publication.ended, publication.certain) = (self.clock.now(), published.is_ok());
    }

    /// Writes the groups of a user, as often as it takes.
    pub(crate) async fn write_user(&mut self, user: usize, groups: &[usize]) {
        let json = format!(r#"{{"name":"Ada","group_ids":{groups:?},"id":{user}}}"#);
        let key = format!("/current_users/{}", token(user));
        let began = self.clock.now();
        within("redis to take a user", async {
            while self.command(redis::cmd("SET").arg(&key).arg(&json)).await.is_err() {
                sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        self.keys[user].write(began, self.clock.now(), groups.iter().copied().collect::<BTreeSet<_>>());
    }

    /// Returns when Redis has handed to its connections all that was published.
    pub(crate) async fn barrier(&mut self) {
        // A round of its loop writes to all connections before the next one reads.
        within("redis to answer", async { while self.command(&redis::cmd("PING")).await.is_err() {} }).await;
    }

    async fn command(&mut self, command: &Cmd) -> RedisResult<()> {
        let mut link = match self.link.take() {
            Some(link) => link,
            None => self.dial().await?,
        };
        command.query_async::<redis::Value>(&mut link).await?;
        self.link = Some(link);
        Ok(())
    }

    async fn dial(&self) -> RedisResult<MultiplexedConnection> {
        // Redis may hang on purpose.
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(Duration::from_secs(30)))
            .set_response_timeout(None);
        Client::open(&*self.url)?.get_multiplexed_async_connection_with_config(&config).await
    }
}
