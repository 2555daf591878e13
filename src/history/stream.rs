//! The stream in Redis, and the lease on writing it: the commands alone.
//!
//! Entries have ids `<generation>-<number>`. A holder of the lease begins a generation, and numbers its entries from 1
//! without a hole. A later holder's generation is greater, so that Redis refuses what an earlier one still writes.

use std::{
    fmt,
    str::FromStr,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use redis::{Value, cmd};

use crate::{
    bus::RECORDS,
    redis_client::{ConnectionError, Denial, Link},
};

/// How long a holder that died keeps the lease.
pub(super) const LEASE: Duration = Duration::from_secs(3);

/// How long a node that lacks messages takes no lease at most, so that another does.
const REST: Duration = Duration::from_secs(4);

/// How long a new generation is kept that is not finished.
const PREPARATION: Duration = Duration::from_mins(1);

/// Entries read at a time, each of a batch's size.
pub(super) const PAGE: usize = 16;

/// The field of an entry that holds the batch.
const FIELD: &str = "b";

/// Names and values.
type Fields = Vec<(Vec<u8>, Vec<u8>)>;

/// The id of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct EntryId {
    pub(super) generation: u64,
    pub(super) number: u64,
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.generation, self.number)
    }
}

impl FromStr for EntryId {
    type Err = Foreign;

    fn from_str(text: &str) -> Result<Self, Foreign> {
        let (generation, number) = text.split_once('-').ok_or(Foreign)?;
        let number_of = |text: &str| text.parse().map_err(|_| Foreign);
        Ok(Self { generation: number_of(generation)?, number: number_of(number)? })
    }
}

/// What is at the key was not written by this program.
#[derive(Debug)]
pub(super) struct Foreign;

/// Why the stream cannot be used now.
#[derive(Debug, thiserror::Error)]
pub(super) enum StreamError {
    /// Redis does not answer, or refuses for a reason that passes by itself.
    #[error("redis does not answer")]
    Redis(#[source] ConnectionError),
    /// A person has to change something; the text says what.
    #[error("{0}")]
    Refused(&'static str),
    /// Another holder has begun, or the stream is gone: evicted, deleted, or lost in a failover.
    #[error("the stream has changed")]
    Changed,
}

impl From<ConnectionError> for StreamError {
    fn from(error: ConnectionError) -> Self {
        let text = match &error {
            ConnectionError::Denied(Denial::Rights) => {
                "the user of REDIS_URL may not use the stream; run ACL SETUSER <user> +set +get +del +rename +pexpire \
                 +pubsub|numsub +xadd +xrange +xrevrange ~loomio-channels:* (or ~<RECOVERY_STREAM>* where that is set), or \
                 set RECOVERY_STREAM=off"
            }
            ConnectionError::Denied(Denial::Command) => {
                "it does not know a command for streams; they need Redis 6.2 or later, in which none of set, get, del, \
                 rename, pexpire, pubsub, xadd, xrange and xrevrange is renamed; or set RECOVERY_STREAM=off"
            }
            ConnectionError::Denied(_) => "it cannot be used for commands; see the line about lookups",
            ConnectionError::Redis(error) => match (error.code(), error.detail().unwrap_or_default()) {
                (Some("WRONGTYPE"), _) => {
                    "another program keeps something else at the key; give RECOVERY_STREAM a name of its own"
                }
                (Some("OOM"), _) => "its memory is full; raise maxmemory, or lower RECOVERY_LOG_BYTES",
                (Some("READONLY"), _) => "it is a replica; let REDIS_URL lead to the primary, which Rails writes to",
                (_, detail) if detail.contains("equal or smaller") => return Self::Changed,
                (_, detail) if detail.contains("syntax") || detail.contains("MINID") => {
                    "it is too old; Redis 6.2 or later is needed"
                }
                _ => return Self::Redis(ConnectionError::Down),
            },
            _ => return Self::Redis(error),
        };
        Self::Refused(text)
    }
}

/// The stream.
pub(super) struct Stream {
    link: Link,
    key: String,
    /// What this node writes to the lease.
    node: String,
    /// Until when it takes no lease.
    rests: Mutex<Option<Instant>>,
}

impl Stream {
    /// The stream at `key`.
    pub(super) fn new(link: Link, key: String) -> Self {
        Self { link, key, node: format!("{:016x}", rand::random::<u64>()), rests: Mutex::default() }
    }

    fn lease(&self) -> String {
        format!("{}:lease", self.key)
    }

    /// Takes the lease, or keeps it for longer; returns whether this node has it now.
    pub(super) async fn hold(&self) -> Result<bool, StreamError> {
        if self.rests.lock().is_some_and(|until| Instant::now() < until) {
            return Ok(false);
        }
        let (lease, term) = (self.lease(), LEASE.as_millis());
        let set = cmd("SET").arg(&lease).arg(&self.node).arg("NX").arg("PX").arg(term).to_owned();
        let taken: Option<String> = self.link.call(&set).await?;
        if taken.is_some() {
            return Ok(true);
        }
        if !self.is_holder().await? {
            return Ok(false);
        }
        // Another node may have taken it between the two. Then its lease is longer, and Redis refuses what is written here.
        let _: i64 = self.link.call(cmd("PEXPIRE").arg(&lease).arg(term)).await?;
        Ok(true)
    }

    async fn is_holder(&self) -> Result<bool, StreamError> {
        Ok(self.holder().await?.is_some_and(|holder| holder == self.node.as_bytes()))
    }

    /// The node that has the lease.
    pub(super) async fn holder(&self) -> Result<Option<Vec<u8>>, StreamError> {
        Ok(self.link.call(cmd("GET").arg(self.lease())).await?)
    }

    /// Whether another node writes the stream, or will take the lease soon. Where no stream `exists`, this node takes the
    /// lease if no other has it.
    pub(super) async fn has_writer(&self, exists: bool) -> Result<bool, StreamError> {
        if !exists {
            return Ok(!self.hold().await?);
        }
        if let Some(holder) = self.holder().await? {
            return Ok(holder != self.node.as_bytes());
        }
        let subscribers: (String, i64) = self.link.call(cmd("PUBSUB").arg("NUMSUB").arg(RECORDS)).await?;
        Ok(subscribers.1 > 1)
    }

    /// Leaves the stream to other nodes for some time; returns whether there are any.
    pub(super) async fn cede(&self) -> Result<bool, StreamError> {
        *self.rests.lock() = Some(Instant::now() + REST);
        self.release().await?;
        self.has_writer(true).await
    }

    /// Takes the lease again when no other node has it.
    pub(super) fn compete(&self) {
        *self.rests.lock() = None;
    }

    /// Gives the lease back, if this node has it.
    pub(super) async fn release(&self) -> Result<(), StreamError> {
        if self.is_holder().await? {
            let _: i64 = self.link.call(cmd("DEL").arg(self.lease())).await?;
        }
        Ok(())
    }

    /// After a refusal: lets another node try, and leaves no unfinished generation in a memory that may be full.
    pub(super) async fn abandon(&self) {
        // What refused the rest may refuse this as well; then both end by themselves.
        let _: Result<i64, _> = self.link.call(cmd("DEL").arg(self.fresh())).await;
        let _ = self.release().await;
    }

    /// The next entries after `last`, the oldest first, each with its batch; the first ones without it. None at the end.
    pub(super) async fn read(&self, last: Option<EntryId>) -> Result<Vec<(EntryId, Vec<u8>)>, StreamError> {
        let from = last.map_or_else(|| "-".to_owned(), |last| format!("({last}"));
        let range = cmd("XRANGE").arg(&self.key).arg(from).arg("+").arg("COUNT").arg(PAGE).to_owned();
        batches(self.link.call(&range).await?)
    }

    /// Up to `count` entries from `newest` backwards, or from the end of the stream.
    pub(super) async fn read_back(
        &self,
        newest: Option<EntryId>,
        count: usize,
    ) -> Result<Vec<(EntryId, Vec<u8>)>, StreamError> {
        let from = newest.map_or_else(|| "+".to_owned(), |newest| newest.to_string());
        let range = cmd("XREVRANGE").arg(&self.key).arg(from).arg("-").arg("COUNT").arg(count).to_owned();
        batches(self.link.call(&range).await?)
    }

    /// Appends a batch to the stream of this generation, which loses all before `oldest`.
    ///
    /// # Errors
    /// [`StreamError::Changed`] when a later generation has begun, or the stream is gone.
    pub(super) async fn append(&self, id: EntryId, oldest: EntryId, batch: &[u8]) -> Result<(), StreamError> {
        let mut add = cmd("XADD");
        add.arg(&self.key).arg("NOMKSTREAM").arg("MINID").arg("=").arg(oldest.to_string());
        add.arg(id.to_string()).arg(FIELD).arg(batch);
        let added: Value = self.link.call(&add).await?;
        if matches!(added, Value::Nil) { Err(StreamError::Changed) } else { Ok(()) }
    }

    /// Appends a batch to a stream of a new generation that nobody reads yet; the entry with number 1 begins it.
    pub(super) async fn prepare(&self, id: EntryId, batch: &[u8]) -> Result<(), StreamError> {
        let fresh = self.fresh();
        if id.number == 1 {
            let _: i64 = self.link.call(cmd("DEL").arg(&fresh)).await?;
        }
        let _: Value = self.link.call(cmd("XADD").arg(&fresh).arg(id.to_string()).arg(FIELD).arg(batch)).await?;
        // A node that dies meanwhile leaves nothing behind for long.
        let _: i64 = self.link.call(cmd("PEXPIRE").arg(&fresh).arg(PREPARATION.as_millis())).await?;
        Ok(())
    }

    /// Puts that in place of the stream, all at once, if this node still has the lease.
    ///
    /// # Errors
    /// [`StreamError::Changed`] when it has not.
    pub(super) async fn replace(&self) -> Result<(), StreamError> {
        if !self.hold().await? {
            return Err(StreamError::Changed);
        }
        let _: Value = self.link.call(cmd("RENAME").arg(self.fresh()).arg(&self.key)).await?;
        Ok(())
    }

    fn fresh(&self) -> String {
        format!("{}:{}", self.key, self.node)
    }

    /// The greatest generation in the stream; 0 without a stream.
    ///
    /// # Errors
    /// [`StreamError::Refused`] also when another program writes the stream, which must not be replaced then.
    pub(super) async fn generation(&self) -> Result<u64, StreamError> {
        Ok(self.read_back(None, 1).await?.first().map_or(0, |(id, _)| id.generation))
    }

    /// Lets Redis drop the stream when no node has kept it for so long.
    pub(super) async fn keep(&self, window: Duration) -> Result<(), StreamError> {
        let _: i64 = self.link.call(cmd("PEXPIRE").arg(&self.key).arg(window.as_millis())).await?;
        Ok(())
    }
}

/// Entries of the stream with their batches.
fn batches(entries: Vec<(String, Fields)>) -> Result<Vec<(EntryId, Vec<u8>)>, StreamError> {
    let entry = |(id, fields): (String, Fields)| {
        let batch = fields.into_iter().find(|(name, _)| name == FIELD.as_bytes())?.1;
        Some((id.parse().ok()?, batch))
    };
    let entries: Option<Vec<_>> = entries.into_iter().map(entry).collect();
    entries.ok_or(StreamError::Refused("another program writes to the key; give RECOVERY_STREAM a name of its own"))
}
