//! Where messages come from: Redis, as Rails publishes to it, or a broker inside this process for the demo.
//!
//! Yields [`Inbound`]; what becomes of it is up to [`crate::dispatch`]. Never calls the hub.

pub mod broker;
mod decode;
mod redis;

use bytes::Bytes;

#[doc(hidden)]
pub use self::redis::fuzz_replies;
pub use self::{
    decode::{MAX_PAYLOAD, Rejected, Update, decode},
    redis::Source,
};

/// Channel of records for a room.
pub const RECORDS: &str = "/records";

/// Channel of notices for everyone.
pub const SYSTEM_NOTICE: &str = "/system_notice";

/// Channels of messages for the bot, as a pattern.
pub const BOT: &str = "chatbot/*";

/// What the bus brings.
#[derive(Debug, PartialEq, Eq)]
pub enum Inbound {
    /// A message.
    Message {
        /// The channel it came on.
        channel: Bytes,
        /// At most [`MAX_PAYLOAD`] bytes.
        payload: Bytes,
    },
    /// There was a message with a larger payload.
    TooLarge {
        /// The channel it came on.
        channel: Bytes,
    },
    /// From now on messages come.
    Subscribed {
        /// What was before.
        gap: Gap,
    },
    /// From now on messages may be missed.
    Lost,
    /// All that Redis executed before it answered a [drain](Source::drain) has been yielded, or was lost.
    Drained,
}

/// Whether messages were missed before a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gap {
    /// It is the first one of this process.
    Start,
    /// Nothing was published while no connection was subscribed: Redis' own count proves it.
    Empty,
    /// Something may have been missed.
    Possible,
}

impl Gap {
    /// As the log has it.
    fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Empty => "empty",
            Self::Possible => "possible",
        }
    }
}
