//! One client's side of the conversation.
//!
//! Answers for: carrying out commands in order, and what the client is: its name, its protocol, its
//! subscriptions, all of which end with it.
//! Must not know: sockets, buffers, the clock.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use super::Shared;
use super::command::{self, ClientCommand, Command, SetCommand};
use super::outbox::{Deliveries, Outbox, outbox};
use super::pubsub::{ClientId, MAX_NAME_BYTES, MAX_SUBSCRIPTIONS, Subscriptions};
use super::reply::{Protocol, Reply};
use super::store::{Remaining, Store};

/// The redis version whose behaviour this follows; clients choose features by it.
const REDIS_VERSION: &str = "7.0.15";

const AUTH_WITHOUT_PASSWORD: &str = "ERR AUTH <password> called without any password configured for the default \
     user. Are you sure your configuration is correct?";
const WRONG_USER: &str = "WRONGPASS invalid username-password pair or user is disabled.";

/// A connected client.
#[derive(Debug)]
pub(super) struct Session {
    shared: Arc<Shared>,
    id: ClientId,
    name: Option<Bytes>,
    outbox: Arc<Outbox>,
    channels: BTreeSet<Bytes>,
    patterns: BTreeSet<Bytes>,
}

/// What a request led to.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) replies: Vec<Reply>,
    /// Messages already waiting go out before the replies. Only a new subscription is announced first.
    pub(super) messages_first: bool,
    pub(super) close: bool,
}

impl Session {
    pub(super) fn new(shared: Arc<Shared>, id: ClientId) -> (Self, Deliveries) {
        let (outbox, deliveries) = outbox();
        let session = Self {
            shared,
            id,
            name: None,
            outbox: Arc::new(outbox),
            channels: BTreeSet::new(),
            patterns: BTreeSet::new(),
        };
        (session, deliveries)
    }

    pub(super) fn protocol(&self) -> Protocol {
        self.outbox.protocol()
    }

    /// Carries out one request; `now` is the moment it counts from.
    pub(super) fn execute(&mut self, request: Vec<Bytes>, now: Instant) -> Outcome {
        let command = match command::parse(request) {
            Ok(command) if self.speaks_only_pubsub() && !command.fits_among_messages() => {
                return one(Reply::Error(format!(
                    "ERR Can't execute '{}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are \
                     allowed in this context",
                    command.name()
                )));
            }
            Ok(command) => command,
            Err(error) => return one(Reply::Error(error.to_string())),
        };
        self.answer(command, now)
    }

    fn answer(&mut self, command: Command, now: Instant) -> Outcome {
        one(match command {
            Command::Subscribe(names) => return self.subscribe(&names, Kind::Channel),
            Command::PSubscribe(names) => return self.subscribe(&names, Kind::Pattern),
            Command::Unsubscribe(names) => return many(self.unsubscribe(&names, Kind::Channel)),
            Command::PUnsubscribe(names) => return many(self.unsubscribe(&names, Kind::Pattern)),
            Command::Quit => return Outcome { close: true, ..one(Reply::Status("OK")) },
            Command::Auth { user: None } => Reply::Error(AUTH_WITHOUT_PASSWORD.to_owned()),
            Command::Auth { user: Some(user) } => {
                if is_default(&user) {
                    Reply::Status("OK")
                } else {
                    Reply::Error(WRONG_USER.to_owned())
                }
            }
            Command::Client(command) => self.client(command),
            Command::Describe => Reply::Array(Vec::new()),
            Command::Document => Reply::Map(Vec::new()),
            Command::Del(keys) => self.count(&keys, |store, key| store.delete(key, now)),
            Command::Echo(message) => Reply::Bulk(message),
            Command::Exists(keys) => self.count(&keys, |store, key| store.exists(key, now)),
            Command::Expire { key, after } => Reply::Integer(i64::from(self.shared.store().expire(&key, after, now))),
            Command::Get(key) => self.shared.store().get(&key, now).map_or(Reply::Null, Reply::Bulk),
            Command::Hello { protocol, user, name } => self.hello(protocol, user, name),
            Command::Info => return self.info(),
            Command::Ping(message) if self.speaks_only_pubsub() => {
                Reply::Array(vec![Reply::bulk("pong"), Reply::Bulk(message.unwrap_or_default())])
            }
            Command::Ping(message) => message.map_or(Reply::Status("PONG"), Reply::Bulk),
            Command::Publish { channel, payload } => self.publish(&channel, &payload),
            Command::Reset => {
                self.unsubscribe(&[], Kind::Channel);
                self.unsubscribe(&[], Kind::Pattern);
                self.outbox.set_protocol(Protocol::Resp2);
                self.name = None;
                Reply::Status("RESET")
            }
            Command::Set(command) => self.set(&command, now),
            Command::Ttl(key) => match self.shared.store().remaining(&key, now) {
                Remaining::Absent => Reply::Integer(-2),
                Remaining::Unlimited => Reply::Integer(-1),
                // Rounded, as redis does: a key set for ten seconds shows ten a moment later.
                Remaining::For(left) => {
                    Reply::Integer(i64::try_from((left.as_millis() + 500) / 1000).unwrap_or(i64::MAX))
                }
            },
            Command::Select => Reply::Status("OK"),
        })
    }

    fn count(&self, keys: &[Bytes], mut affects: impl FnMut(&mut Store, &Bytes) -> bool) -> Reply {
        let mut store = self.shared.store();
        Reply::count(keys.iter().filter(|key| affects(&mut store, key)).count())
    }

    fn set(&self, command: &SetCommand, now: Instant) -> Reply {
        match self.shared.store().set(command, now) {
            Err(full) => Reply::Error(full.to_string()),
            Ok(outcome) if command.get => outcome.previous.map_or(Reply::Null, Reply::Bulk),
            Ok(outcome) if outcome.written => Reply::Status("OK"),
            Ok(_) => Reply::Null,
        }
    }

    fn publish(&self, channel: &Bytes, payload: &Bytes) -> Reply {
        if channel.len() > MAX_NAME_BYTES {
            return too_long();
        }
        Reply::count(self.shared.publish(channel, payload))
    }

    fn client(&mut self, command: ClientCommand) -> Reply {
        match command {
            ClientCommand::GetName => self.name.clone().map_or(Reply::Null, Reply::Bulk),
            ClientCommand::Id => Reply::Integer(self.id),
            ClientCommand::SetName(name) => {
                self.name = Some(name).filter(|name| !name.is_empty());
                Reply::Status("OK")
            }
            ClientCommand::Acknowledge => Reply::Status("OK"),
        }
    }

    fn hello(&mut self, protocol: Option<Protocol>, user: Option<Bytes>, name: Option<Bytes>) -> Reply {
        if user.is_some_and(|user| !is_default(&user)) {
            return Reply::Error(WRONG_USER.to_owned());
        }
        if let Some(name) = name {
            self.name = Some(name).filter(|name| !name.is_empty());
        }
        if let Some(protocol) = protocol {
            self.outbox.set_protocol(protocol);
        }
        Reply::Map(vec![
            ("server", Reply::bulk("redis")),
            ("version", Reply::bulk(REDIS_VERSION)),
            ("proto", Reply::Integer(self.protocol().number())),
            ("id", Reply::Integer(self.id)),
            ("mode", Reply::bulk("standalone")),
            ("role", Reply::bulk("master")),
            ("modules", Reply::Array(Vec::new())),
        ])
    }

    fn info(&self) -> Outcome {
        let (keys, clients) = (self.shared.store().len(), self.shared.clients());
        // The count and its place among the messages are taken in one moment: a subscriber relies on it that all that
        // is counted, and nothing else, comes before.
        let subscriptions = self.shared.subscriptions();
        let text = format!(
            "# Server\r\nredis_version:{REDIS_VERSION}\r\nredis_mode:standalone\r\nserver_name:loomio-channels\r\n\
             run_id:{}\r\nuptime_in_seconds:{}\r\n\
             \r\n# Clients\r\nconnected_clients:{clients}\r\n\
             \r\n# Replication\r\nrole:master\r\n\
             \r\n# Commandstats\r\ncmdstat_publish:calls={},usec=0\r\n\
             \r\n# Keyspace\r\ndb0:keys={keys}\r\n",
            self.shared.run_id,
            self.shared.started.elapsed().as_secs(),
            self.shared.publishes.load(Ordering::Relaxed),
        );
        let mut wire = BytesMut::new();
        Reply::Text(text).encode(self.protocol(), &mut wire);
        self.outbox.push(wire.freeze());
        drop(subscriptions);
        many(Vec::new())
    }

    fn subscribe(&mut self, names: &[Bytes], kind: Kind) -> Outcome {
        if names.iter().any(|name| name.len() > MAX_NAME_BYTES) {
            return one(too_long());
        }
        // Counted before any is added, so that a refused request changes nothing.
        if self.subscribed() + names.len() > MAX_SUBSCRIPTIONS {
            return one(Reply::Error(format!("ERR more than {MAX_SUBSCRIPTIONS} subscriptions")));
        }
        let mut replies = Vec::with_capacity(names.len());
        for name in names {
            // A copy, so that a short name does not hold on to the read buffer it came in.
            let name = Bytes::copy_from_slice(name);
            if self.names(kind).insert(name.clone()) {
                let mut subscriptions = self.shared.subscriptions();
                match kind {
                    Kind::Channel => subscriptions.add_channel(&name, self.id, &self.outbox),
                    Kind::Pattern => subscriptions.add_pattern(&name, self.id, &self.outbox),
                }
            }
            replies.push(self.announce(kind.subscribed(), Reply::Bulk(name)));
        }
        Outcome { replies, ..Outcome::default() }
    }

    /// Without names, all of them.
    fn unsubscribe(&mut self, names: &[Bytes], kind: Kind) -> Vec<Reply> {
        let names = if names.is_empty() { self.names(kind).iter().cloned().collect() } else { names.to_vec() };
        if names.is_empty() {
            return vec![self.announce(kind.unsubscribed(), Reply::Null)];
        }
        let mut replies = Vec::with_capacity(names.len());
        for name in names {
            if self.names(kind).remove(&name) {
                remove(&mut self.shared.subscriptions(), kind, &name, self.id);
            }
            replies.push(self.announce(kind.unsubscribed(), Reply::Bulk(name)));
        }
        replies
    }

    fn announce(&self, what: &'static str, name: Reply) -> Reply {
        Reply::Push(vec![Reply::bulk(what), name, Reply::count(self.subscribed())])
    }

    fn names(&mut self, kind: Kind) -> &mut BTreeSet<Bytes> {
        match kind {
            Kind::Channel => &mut self.channels,
            Kind::Pattern => &mut self.patterns,
        }
    }

    fn subscribed(&self) -> usize {
        self.channels.len() + self.patterns.len()
    }

    fn speaks_only_pubsub(&self) -> bool {
        self.protocol() == Protocol::Resp2 && self.subscribed() > 0
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let mut subscriptions = self.shared.subscriptions();
        for (kind, names) in [(Kind::Channel, &self.channels), (Kind::Pattern, &self.patterns)] {
            for name in names {
                remove(&mut subscriptions, kind, name, self.id);
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Channel,
    Pattern,
}

impl Kind {
    fn subscribed(self) -> &'static str {
        match self {
            Self::Channel => "subscribe",
            Self::Pattern => "psubscribe",
        }
    }

    fn unsubscribed(self) -> &'static str {
        match self {
            Self::Channel => "unsubscribe",
            Self::Pattern => "punsubscribe",
        }
    }
}

fn remove(subscriptions: &mut MutexGuard<'_, Subscriptions>, kind: Kind, name: &Bytes, client: ClientId) {
    match kind {
        Kind::Channel => subscriptions.remove_channel(name, client),
        Kind::Pattern => subscriptions.remove_pattern(name, client),
    }
}

fn is_default(user: &Bytes) -> bool {
    user.as_ref() == b"default"
}

fn too_long() -> Reply {
    Reply::Error(format!("ERR channel name exceeds {MAX_NAME_BYTES} bytes"))
}

fn one(reply: Reply) -> Outcome {
    many(vec![reply])
}

fn many(replies: Vec<Reply>) -> Outcome {
    Outcome { replies, messages_first: true, close: false }
}
