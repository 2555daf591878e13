//! A message as Rails would publish it, made from a room and a JSON object. Pure.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::value::RawValue;

use super::{MAX_PAYLOAD, RECORDS, Rejected, SYSTEM_NOTICE, decode};

/// The room that stands for everyone; its messages go to [`SYSTEM_NOTICE`].
const NOTICE: &str = "notice";

/// A message for a channel.
#[derive(Debug, PartialEq, Eq)]
pub struct Publication {
    /// [`RECORDS`] or [`SYSTEM_NOTICE`].
    pub channel: &'static str,
    /// A JSON object; of records, one that names its room.
    pub payload: Bytes,
}

/// Why a message cannot be published; the text says how to mend it.
#[derive(Debug, thiserror::Error)]
pub enum PublicationError {
    /// The room is not one that Rails publishes to.
    #[error("`{0}` is not a room: give group-<id> or user-<id>, for example group-1, or notice for everyone")]
    Room(String),
    /// The text is not JSON, or not an object.
    #[error("the message must be a JSON object, for example {{\"records\":{{}}}}")]
    Json(#[from] serde_json::Error),
    /// The server would not pass the message on.
    #[error("the message {0}")]
    Rejected(#[from] Rejected),
}

impl Publication {
    /// The message `json` for `room`: `group-<id>`, `user-<id>`, or `notice`. The `room` of records is set, or replaced;
    /// other values stay as they are written. Fails for any other room, or when a browser could not use the message.
    pub fn new(room: &str, json: &[u8]) -> Result<Self, PublicationError> {
        let id = room.strip_prefix("group-").or_else(|| room.strip_prefix("user-"));
        if room != NOTICE && !id.is_some_and(|id| id.parse::<u64>().is_ok() && !id.starts_with('+')) {
            return Err(PublicationError::Room(room.to_owned()));
        }
        if json.len() > MAX_PAYLOAD {
            return Err(Rejected::TooLarge.into());
        }
        let mut object: BTreeMap<String, Box<RawValue>> = serde_json::from_slice(json)?;
        let (channel, payload) = if room == NOTICE {
            (SYSTEM_NOTICE, Bytes::copy_from_slice(json.trim_ascii()))
        } else {
            object.insert("room".to_owned(), serde_json::value::to_raw_value(room)?);
            (RECORDS, serde_json::to_vec(&object)?.into())
        };
        decode(channel, &payload)?;
        Ok(Self { channel, payload })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(room: &str, json: &str) -> Result<(&'static str, String), String> {
        let made = Publication::new(room, json.as_bytes());
        made.map(|Publication { channel, payload }| (channel, String::from_utf8(payload.to_vec()).unwrap()))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn messages_are_as_rails_writes_them() {
        for (room, json, channel, payload) in [
            ("group-1", "{}", RECORDS, r#"{"room":"group-1"}"#),
            ("user-45", r#" {"records":{"n": 1.50}} "#, RECORDS, r#"{"records":{"n": 1.50},"room":"user-45"}"#),
            ("group-2", r#"{"room":"group-1","a":1,"room":7}"#, RECORDS, r#"{"a":1,"room":"group-2"}"#),
            ("notice", "{\"version\":\"2\",\"reload\":true}\n", SYSTEM_NOTICE, r#"{"version":"2","reload":true}"#),
        ] {
            assert_eq!(made(room, json), Ok((channel, payload.to_owned())));
        }
    }

    #[test]
    fn what_cannot_be_published_is_told_with_the_mend() {
        for room in
            ["", "group", "group-", "group-x", "user-+1", "user--1", "Group-1", "notice ", "/records", "user-1\n"]
        {
            assert!(made(room, "{}").unwrap_err().contains("give group-<id>"), "{room}");
        }
        for json in ["", "x", "{", "[]", "null", "\"a\"", "{}{}", "{\"a\":\"\u{1}\"}"] {
            for room in ["group-1", "notice"] {
                assert!(made(room, json).unwrap_err().contains("must be a JSON object"), "{json}");
            }
        }
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(200), "]".repeat(200));
        assert_eq!(made("group-1", &deep), Err("the message is nested too deeply".to_owned()));
        let large = format!("{{\"a\":\"{}\"}}", "x".repeat(MAX_PAYLOAD));
        assert_eq!(made("notice", &large), Err("the message is larger than 8 MiB".to_owned()));
    }
}
