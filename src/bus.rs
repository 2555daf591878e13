//! Where messages come from: Redis, as Rails publishes to it, or this process itself, for the demo.
//!
//! A [`Source`] yields [`Inbound`]; what becomes of it is up to [`crate::dispatch`]. The bus never calls the hub.

mod decode;
mod memory;
mod publication;
mod redis;

use bytes::Bytes;

pub use self::{
    decode::{MAX_PAYLOAD, Rejected, decode},
    memory::{MemoryBus, MemorySource},
    publication::{Publication, PublicationError},
    redis::{RedisSource, resp},
};

/// Channel of records for a room.
pub const RECORDS: &str = "/records";

/// Channel of notices for everyone.
pub const SYSTEM_NOTICE: &str = "/system_notice";

/// Channels of messages for the bot, as a pattern.
pub const BOT: &str = "chatbot/*";

/// What a bus brings.
#[derive(Debug, PartialEq, Eq)]
pub enum Inbound {
    /// A message.
    Message {
        /// Where the bus is after it. `None` when that cannot be told.
        position: Option<Position>,
        /// The channel it came on.
        channel: Bytes,
        /// `None` in place of more than [`MAX_PAYLOAD`] bytes.
        payload: Option<Bytes>,
    },
    /// From now on messages come.
    Subscribed {
        /// What was before.
        gap: Gap,
        /// What was published up to here came before this subscription. `None` when that cannot be told.
        before: Option<Position>,
    },
    /// The bus is here now, though no message came that is yielded.
    Moved(Position),
    /// From now on messages may be missed.
    Lost,
    /// All that was published before a [drain](Source::drain) has been yielded, or was lost.
    Drained,
}

/// A bus to take messages from. It never ends.
pub trait Source: Send {
    /// The next message or change. Cancel safe, and what is there already is returned without a wait. The caller must
    /// not wait for anything slow between two calls.
    fn next(&mut self) -> impl Future<Output = Inbound> + Send;

    /// Asks for [`Inbound::Drained`] once all that was published before has been yielded.
    fn drain(&mut self);
}

/// A place on the bus: everything that was published up to it has been yielded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The count that this is a part of; places of different runs cannot be compared. Of Redis: its process, until its
    /// statistics are reset.
    pub run: u64,
    /// How often something was published in this run, at least. Of Redis: calls of `PUBLISH`, on whatever channel.
    pub count: u64,
}

/// Whether messages were missed before a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gap {
    /// The subscription is the first one of this process.
    Start,
    /// Nothing was published while no connection was subscribed: Redis' own count proves it.
    Empty,
    /// Something may have been missed.
    Possible,
}
