//! Reads what Rails publishes, without copying it and without building a tree.
//!
//! Pure. The payload goes to browsers byte for byte as Rails wrote it, so all that is read of it is the room, and all
//! that is checked is that a browser can parse it.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{RECORDS, SYSTEM_NOTICE};

/// Largest payload in bytes. Rails' largest are a few hundred kilobytes.
pub const MAX_PAYLOAD: usize = 8 << 20;

/// Deepest nesting of arrays and objects. Rails' deepest has about ten levels.
const MAX_DEPTH: usize = 128;

/// Longest name of a room in bytes.
const MAX_ROOM: usize = 256;

/// A message that can be sent to browsers.
#[derive(Debug, PartialEq, Eq)]
pub enum Update<'a> {
    /// For the sockets in a room.
    Records {
        /// The room that the payload names.
        room: Cow<'a, str>,
        /// A JSON object.
        payload: &'a str,
    },
    /// For every socket.
    Notice {
        /// Any JSON value.
        payload: &'a str,
    },
}

/// Why a message cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// Over [`MAX_PAYLOAD`].
    #[error("is larger than {} MiB", MAX_PAYLOAD >> 20)]
    TooLarge,
    /// JSON is UTF-8.
    #[error("is not UTF-8")]
    NotUtf8,
    /// Over 128 levels.
    #[error("is nested too deeply")]
    TooDeep,
    /// A browser could not parse it.
    #[error("is not JSON")]
    NotJson,
    /// Valid JSON, but something else.
    #[error("is not a JSON object")]
    NotAnObject,
    /// An object without a usable `room`.
    #[error("names no room")]
    NoRoom,
    /// A channel that nobody subscribed to.
    #[error("came on an unknown channel")]
    UnknownChannel,
}

/// Reads a message of `channel`.
///
/// # Errors
/// Says why it must be dropped.
pub fn decode<'a>(channel: &str, payload: &'a [u8]) -> Result<Update<'a>, Rejected> {
    if payload.len() > MAX_PAYLOAD {
        return Err(Rejected::TooLarge);
    }
    let payload = str::from_utf8(payload).map_err(|_| Rejected::NotUtf8)?;
    if is_deeper_than(payload.as_bytes(), MAX_DEPTH) {
        return Err(Rejected::TooDeep);
    }
    match channel {
        RECORDS => Ok(Update::Records { room: room(payload)?, payload }),
        SYSTEM_NOTICE => {
            serde_json::from_str::<&RawValue>(payload).map_err(|_| Rejected::NotJson)?;
            Ok(Update::Notice { payload })
        }
        _ => Err(Rejected::UnknownChannel),
    }
}

fn room(payload: &str) -> Result<Cow<'_, str>, Rejected> {
    #[derive(Deserialize)]
    struct Head<'a> {
        #[serde(borrow)]
        room: Option<&'a RawValue>,
    }
    // An array would pass for a struct.
    if !payload.trim_ascii_start().starts_with('{') {
        let valid = serde_json::from_str::<&RawValue>(payload).is_ok();
        return Err(if valid { Rejected::NotAnObject } else { Rejected::NotJson });
    }
    let head: Head<'_> = serde_json::from_str(payload).map_err(|_| Rejected::NotJson)?;
    let raw = head.room.ok_or(Rejected::NoRoom)?.get();
    let room = match raw.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        Some(plain) if !plain.contains('\\') => Cow::Borrowed(plain),
        _ => Cow::Owned(serde_json::from_str(raw).map_err(|_| Rejected::NoRoom)?),
    };
    if room.is_empty() || room.len() > MAX_ROOM { Err(Rejected::NoRoom) } else { Ok(room) }
}

/// Whether brackets outside of strings nest deeper than `most`. Says nothing useful of what is not JSON.
fn is_deeper_than(json: &[u8], most: usize) -> bool {
    // Few brackets cannot nest deeply, wherever they are, and are counted many at a time.
    let brackets = |bytes: &[u8]| bytes.iter().map(|&byte| u8::from(byte == b'[' || byte == b'{')).sum::<u8>();
    if json.chunks(255).map(|chunk| usize::from(brackets(chunk))).sum::<usize>() <= most {
        return false;
    }
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for &byte in json {
        if in_string {
            (in_string, escaped) = (escaped || byte != b'"', !escaped && byte == b'\\');
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'[' | b'{' => {
                depth += 1;
                if depth > most {
                    return true;
                }
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn payloads_stay_as_they_are() {
        let payload = r#" { "records" : {"n":1.0e+2, "n":[ ]}, "room":"group-1","x":"\u00e9é" }"#;
        let update = decode(RECORDS, payload.as_bytes());
        assert_eq!(update, Ok(Update::Records { room: "group-1".into(), payload }));
        assert_eq!(decode(SYSTEM_NOTICE, b"null"), Ok(Update::Notice { payload: "null" }));
        let escaped = r#"{"room":"gr\u006fup-\"1"}"#;
        assert_eq!(room(escaped).unwrap(), "group-\"1");
    }

    #[test]
    fn what_browsers_cannot_use_is_rejected() {
        let deep = ["{\"room\":\"a\",\"x\":", &"[".repeat(128), &"]".repeat(128), "}"].concat();
        let long = format!(r#"{{"room":"{}"}}"#, "a".repeat(MAX_ROOM + 1));
        let large = vec![b' '; MAX_PAYLOAD + 1];
        let cases: [(&[u8], Rejected); 16] = [
            (b"", Rejected::NotJson),
            (b"hello", Rejected::NotJson),
            (b"null", Rejected::NotAnObject),
            (b"[\"group-1\"]", Rejected::NotAnObject),
            (b"[", Rejected::NotJson),
            (b"{}", Rejected::NoRoom),
            (br#"{"room":null}"#, Rejected::NoRoom),
            (br#"{"room":""}"#, Rejected::NoRoom),
            (br#"{"room":7}"#, Rejected::NoRoom),
            (br#"{"room":["a"]}"#, Rejected::NoRoom),
            (br#"{"room":"a"} x"#, Rejected::NotJson),
            (br#"{"room":"a""#, Rejected::NotJson),
            (b"{\"room\":\"a\",\"x\":\"\xff\"}", Rejected::NotUtf8),
            (deep.as_bytes(), Rejected::TooDeep),
            (long.as_bytes(), Rejected::NoRoom),
            (&large, Rejected::TooLarge),
        ];
        for (payload, rejected) in cases {
            let start = String::from_utf8_lossy(&payload[..payload.len().min(40)]);
            assert_eq!(decode(RECORDS, payload), Err(rejected), "{start}");
        }
        assert_eq!(decode(SYSTEM_NOTICE, b"{"), Err(Rejected::NotJson));
        assert_eq!(decode("/other", b"{}"), Err(Rejected::UnknownChannel));
    }

    #[test]
    fn brackets_in_strings_are_not_depth() {
        assert!(!is_deeper_than(br#"["[[[[", "\"[[[[", "\\"]"#, 1));
        assert!(is_deeper_than(br#"["\\", []]"#, 1));
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_rejected(payload: Vec<u8>) {
            let _ = decode(RECORDS, &payload);
        }

        #[test]
        fn any_room_is_found(room in "\\PC{1,60}", before: bool) {
            let name = serde_json::to_string(&room).unwrap();
            let payload = if before { format!("{{\"room\":{name},\"a\":1}}") } else { format!("{{\"a\":{{\"room\":2}},\"room\":{name}}}") };
            prop_assert_eq!(decode(RECORDS, payload.as_bytes()), Ok(Update::Records { room: room.into(), payload: &payload }));
        }
    }
}
