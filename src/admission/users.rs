//! The users of tokens: Rails' keys `/current_users/<token>` in Redis.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio::time::sleep;

use crate::{
    config::Secret,
    metrics::{Counter, Metrics},
    redis_client::{ConnectionError, Denial, Link},
    telemetry::Throttle,
};

/// The beginning of Rails' keys; the token follows.
const KEYS: &str = "/current_users/";

/// Follows [`KEYS`] in the key that is read to check the rights. No token has a control character, so no browser has it.
const NO_TOKEN: &str = "\u{7f}rights";

/// Backoff between two lookups while Redis does not answer, doubled up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The room that every browser is in.
pub const EVERYONE: &str = "notice";

/// Longest token, and longest id of a user or group, in bytes. Rails' tokens have 32 to 64.
const MAX_TOKEN: usize = 512;
const MAX_ID: usize = 64;

/// Most groups of a user; of more, the first count. A ticket with so many has a third of the length that it may have.
const MAX_GROUPS: usize = 10_000;

/// A `channel_token` that may be asked for: 1 to 512 bytes without control characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token(Secret);

impl Token {
    /// The token, if it has the form of one.
    pub fn parse(text: &str) -> Option<Self> {
        let valid = (1..=MAX_TOKEN).contains(&text.len()) && !text.chars().any(char::is_control);
        valid.then(|| Self(Secret::new(text)))
    }

    /// The text itself.
    pub(super) fn expose(&self) -> &str {
        self.0.expose()
    }
}

/// A signed-in user.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(from = "super::ticket::Compact")]
pub struct User {
    /// Decimal digits, as a rule; `None` when Rails' answer has none that can be used.
    pub id: Option<String>,
    /// The same, of the groups the user is in.
    pub groups: Vec<String>,
}

impl User {
    /// Reads what Rails wrote, as far as it can be read. `None` when it is not JSON or names no user.
    pub fn parse(json: &[u8]) -> Option<Self> {
        let value: Value = serde_json::from_slice(json).ok()?;
        let groups = value.get("group_ids").and_then(Value::as_array);
        let groups: Vec<String> = groups.into_iter().flatten().filter_map(id).take(MAX_GROUPS).collect();
        let id = value.get("id").and_then(id);
        (id.is_some() || !groups.is_empty()).then_some(Self { id, groups })
    }

    /// The user with what both have: the id if it is the same, and the groups.
    pub(super) fn common(&self, other: &Self) -> Self {
        let others: HashSet<&String> = other.groups.iter().collect();
        let groups = self.groups.iter().filter(|group| others.contains(group)).cloned().collect();
        Self { id: self.id.clone().filter(|_| self.id == other.id), groups }
    }

    /// The rooms that are the user's own: `user-<id>` and one `group-<id>` for each group.
    pub fn rooms(&self) -> impl Iterator<Item = String> + '_ {
        let own = self.id.iter().map(|id| format!("user-{id}"));
        own.chain(self.groups.iter().map(|id| format!("group-{id}")))
    }
}

/// An id that came as number or string.
fn id(value: &Value) -> Option<String> {
    let id = match value {
        Value::Number(number) if number.is_u64() || number.is_i64() => number.to_string(),
        Value::String(text) => text.clone(),
        _ => return None,
    };
    (1..=MAX_ID).contains(&id.len()).then_some(id)
}

/// Where Rails' answers are.
#[expect(clippy::large_enum_variant, reason = "there is one in a process")]
pub enum Answers {
    /// In Redis. The link is for lookups alone, so that they do not wait behind messages.
    Redis(Link),
    /// Here: tokens and what Rails would write for them.
    Memory(&'static [(&'static str, &'static str)]),
}

impl Answers {
    async fn get(&self, token: &str) -> Result<Found, ConnectionError> {
        match self {
            Self::Redis(link) => understand(link.get(&format!("{KEYS}{token}")).await),
            Self::Memory(users) => Ok(recall(users, token)),
        }
    }

    /// What is found for each of the tokens; an error when Redis cannot say it of one.
    async fn get_each(&self, tokens: &[&Token]) -> Result<Vec<Found>, ConnectionError> {
        let tokens = tokens.iter().map(|token| token.expose());
        match self {
            Self::Redis(link) => {
                let answers = link.get_each(tokens.map(|token| format!("{KEYS}{token}"))).await?;
                answers.into_iter().map(understand).collect()
            }
            Self::Memory(users) => Ok(tokens.map(|token| recall(users, token)).collect()),
        }
    }
}

/// What an answer says of a token; the error if it is none.
fn understand(answer: Result<Option<Vec<u8>>, ConnectionError>) -> Result<Found, ConnectionError> {
    match answer {
        Ok(None) => Ok(Found::Absent),
        Ok(Some(json)) => Ok(User::parse(&json).map_or_else(|| Found::without_user(&json), Found::User)),
        // A key of another type.
        Err(ConnectionError::Redis(error)) if error.code() == Some("WRONGTYPE") => Ok(Found::Unreadable),
        Err(ConnectionError::Denied(denial)) => Ok(Found::Refused(denial)),
        Err(error) => Err(error),
    }
}

fn recall(users: &[(&str, &str)], token: &str) -> Found {
    let json = users.iter().find(|(known, _)| *known == token).map(|(_, json)| json.as_bytes().to_vec());
    understand(Ok(json)).unwrap_or(Found::Absent)
}

/// Looks tokens up.
pub struct Users {
    answers: Answers,
    metrics: Metrics,
}

impl Users {
    /// Lookups in `answers`.
    pub fn new(answers: Answers, metrics: Metrics) -> Self {
        Self { answers, metrics }
    }

    /// Reads a key as soon as Redis answers, and reports what has to be changed if Redis refuses.
    pub async fn check_rights(self) {
        if let Found::Refused(denial) = self.ask(NO_TOKEN).await {
            tracing::error!("redis refuses lookups, every browser is served as a visitor: {}", mend(denial));
        }
    }

    /// What Redis says of the token, as soon as it answers. Without a token Redis is not asked.
    pub(super) async fn lookup(&self, token: Option<Token>) -> Found {
        static REFUSALS: Throttle = Throttle::new();
        let Some(token) = token else { return Found::Nobody };
        let found = self.ask(token.expose()).await;
        if let Found::Refused(denial) = found {
            self.metrics.count(Counter::LookupsRefused);
            warn(&REFUSALS, "redis refuses a lookup, the browser is served as a visitor", denial);
        }
        found
    }

    /// What Redis says of each of the tokens of connected users, as soon as it answers.
    pub(super) async fn lookup_again(&self, tokens: &[&Token]) -> Vec<Found> {
        static REFUSALS: Throttle = Throttle::new();
        let found = persist(|| self.answers.get_each(tokens)).await;
        self.metrics.add(Counter::Reauthorized, found.len() as u64);
        let denial =
            found.iter().find_map(|found| if let Found::Refused(denial) = found { Some(*denial) } else { None });
        if let Some(denial) = denial {
            warn(&REFUSALS, "redis refuses to look up connected users, who keep their rooms for UNVOUCHED_MAX", denial);
        }
        found
    }

    async fn ask(&self, token: &str) -> Found {
        persist(|| self.answers.get(token)).await
    }
}

/// Asks until there is an answer, with a backoff.
async fn persist<T, F: Future<Output = Result<T, ConnectionError>>>(ask: impl Fn() -> F) -> T {
    let mut pause = FIRST_PAUSE;
    loop {
        match ask().await {
            Ok(found) => return found,
            Err(error) => tracing::debug!(%error, "cannot look up a token yet"),
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn warn(throttle: &Throttle, what: &str, denial: Denial) {
    if let Some(more_since_last) = throttle.allow(Instant::now()) {
        tracing::warn!(more_since_last, "{what}: {}", mend(denial));
    }
}

/// What has to be changed.
fn mend(denial: Denial) -> &'static str {
    match denial {
        Denial::Rights => {
            "the user of REDIS_URL may not read the keys in which Rails says who is signed in; \
             let an administrator of Redis run ACL SETUSER <user> +get ~/current_users/* \
             (without the last word if the user may use all keys: Redis refuses it then)"
        }
        Denial::Password => "Redis wants a password; add it to REDIS_URL, as in redis://:password@host:6379/0",
        Denial::Command => {
            "Redis does not know GET; do not rename or disable it in redis.conf, \
             and let REDIS_URL lead to Redis itself"
        }
        Denial::Cluster => {
            "REDIS_URL leads to one node of a Redis Cluster, which has only some of the keys; \
             let it lead to a Redis that is no cluster, the same as Rails uses"
        }
    }
}

/// What Redis says of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The token is this user's.
    User(User),
    /// The key does not exist. It may have existed: keys expire, and a full Redis evicts them.
    Absent,
    /// The key says that the token is no user's.
    Nobody,
    /// The key says nothing that can be understood. It counts as if it did not exist.
    Unreadable,
    /// Redis does not let this server ask, now or soon; nothing is known of the token.
    Refused(Denial),
}

impl Found {
    /// What a text says that names no user.
    fn without_user(json: &[u8]) -> Self {
        let is_nobody = |value: Value| value.is_null() || value.get("id").is_some_and(Value::is_null);
        if serde_json::from_slice(json).is_ok_and(is_nobody) { Self::Nobody } else { Self::Unreadable }
    }

    /// The user; when the key does not say it, the user that is vouched for otherwise.
    pub(super) fn or(self, vouched: Option<User>) -> Option<User> {
        match self {
            Self::User(user) => Some(user),
            Self::Absent | Self::Unreadable | Self::Refused(_) => vouched,
            Self::Nobody => None,
        }
    }

    /// The same, if a key that names nobody means that the token is no user's.
    pub(super) fn strictly(self) -> Self {
        if matches!(self, Self::Absent | Self::Unreadable) { Self::Nobody } else { self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_have_a_form() {
        for text in ["0a1b2c3d-_.~", "\u{e9} b"] {
            assert!(Token::parse(text).is_some());
        }
        for text in ["", NO_TOKEN, "a\nb", "a\0", "\u{9f}", &"a".repeat(MAX_TOKEN + 1)] {
            assert_eq!(Token::parse(text), None);
        }
    }

    #[test]
    fn users_are_read_as_far_as_they_can_be() {
        let rooms = |json: &str| User::parse(json.as_bytes()).map(|user| user.rooms().collect::<Vec<_>>());
        let some = |rooms: &[&str]| Some(rooms.iter().map(|&room| room.to_owned()).collect::<Vec<_>>());
        assert_eq!(rooms(r#"{"name":"A","group_ids":[1,2],"id":45}"#), some(&["user-45", "group-1", "group-2"]));
        assert_eq!(rooms(r#"{"id":"45","group_ids":["7",null,1.5,{},8]}"#), some(&["user-45", "group-7", "group-8"]));
        for odd in ["", r#","group_ids":null"#, r#","group_ids":"1""#, r#","group_ids":{}"#] {
            assert_eq!(rooms(&format!(r#"{{"id":45{odd}}}"#)), some(&["user-45"]));
        }
        assert_eq!(rooms(r#"{"group_ids":[1]}"#), some(&["group-1"]));
        for none in ["", "nonsense", "null", "[]", "{}", r#"{"id":null}"#, r#"{"id":""}"#, r#"{"id":[1]}"#] {
            assert_eq!(rooms(none), None, "{none}");
            let is_nobody = ["null", r#"{"id":null}"#].contains(&none);
            assert_eq!(Found::without_user(none.as_bytes()) == Found::Nobody, is_nobody, "{none}");
        }
        let many = format!(r#"{{"group_ids":[{}1]}}"#, "1,".repeat(MAX_GROUPS));
        assert_eq!(rooms(&many).map(|rooms| rooms.len()), Some(MAX_GROUPS));
    }
}
