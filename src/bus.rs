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

/// What the bus brings.
#[derive(Debug)]
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
    /// From now on messages come; some may have been missed before.
    Subscribed,
    /// From now on messages may be missed.
    Lost,
}
