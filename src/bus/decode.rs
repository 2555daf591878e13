//! Reads what Rails publishes, without copying it and without building a tree.
//!
//! Pure. The payload goes to browsers as it is: only its room is read, and checked that a browser can parse it.

use std::{borrow::Cow, fmt};

use serde::{
    Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};
use serde_json::value::RawValue;

use super::{RECORDS, SYSTEM_NOTICE};

/// Largest payload in bytes. Rails' largest are a few hundred kilobytes.
pub const MAX_PAYLOAD: usize = 8 << 20;

/// Deepest nesting of arrays and objects. Rails' deepest has about ten levels.
const MAX_DEPTH: usize = 128;

/// Longest name of a room in bytes.
const MAX_ROOM: usize = 256;

/// Why a message cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// The payload is larger than [`MAX_PAYLOAD`].
    #[error("is larger than {} MiB", MAX_PAYLOAD >> 20)]
    TooLarge,
    /// The payload is not UTF-8, and so not JSON.
    #[error("is not UTF-8")]
    NotUtf8,
    /// Arrays and objects are nested over 128 levels deep.
    #[error("is nested too deeply")]
    TooDeep,
    /// A browser could not parse the payload.
    #[error("is not JSON")]
    NotJson,
    /// The payload of records is valid JSON, but no object.
    #[error("is not a JSON object")]
    NotAnObject,
    /// The object has no `room`, or one that no browser can be in.
    #[error("names no room")]
    NoRoom,
    /// A channel that is not one of those that are subscribed.
    #[error("came on an unknown channel")]
    UnknownChannel,
}

/// The room that a message of `channel` is for; `None` when it is for every browser. Fails when browsers could not use
/// the message, which must be dropped.
pub fn decode<'a>(channel: &str, payload: &'a [u8]) -> Result<Option<Cow<'a, str>>, Rejected> {
    if payload.len() > MAX_PAYLOAD {
        return Err(Rejected::TooLarge);
    }
    let payload = str::from_utf8(payload).map_err(|_| Rejected::NotUtf8)?;
    if is_deeper_than(payload.as_bytes(), MAX_DEPTH) {
        return Err(Rejected::TooDeep);
    }
    match channel {
        RECORDS => room(payload).map(Some),
        SYSTEM_NOTICE => serde_json::from_str::<&RawValue>(payload).map(|_| None).map_err(|_| Rejected::NotJson),
        _ => Err(Rejected::UnknownChannel),
    }
}

fn room(payload: &str) -> Result<Cow<'_, str>, Rejected> {
    if !payload.trim_ascii_start().starts_with('{') {
        let valid = serde_json::from_str::<&RawValue>(payload).is_ok();
        return Err(if valid { Rejected::NotAnObject } else { Rejected::NotJson });
    }
    let mut json = serde_json::Deserializer::from_str(payload);
    let raw = json.deserialize_map(LastRoom).and_then(|raw| json.end().map(|()| raw)).map_err(|_| Rejected::NotJson)?;
    let raw = raw.ok_or(Rejected::NoRoom)?;
    let room = match raw.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        Some(plain) if !plain.contains('\\') => Cow::Borrowed(plain),
        // Fails for a lone surrogate, which the name of no room has.
        _ => Cow::Owned(serde_json::from_str(raw).map_err(|_| Rejected::NoRoom)?),
    };
    if room.is_empty() || room.len() > MAX_ROOM { Err(Rejected::NoRoom) } else { Ok(room) }
}

/// Finds the value of `room` in an object, as it was written. As with `JSON.parse`, the last of several counts, and
/// escapes in keys may be lone surrogates.
struct LastRoom;

impl<'de> Visitor<'de> for LastRoom {
    type Value = Option<&'de str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Self::Value, A::Error> {
        let mut room = None;
        // Raw, since a key with a lone surrogate cannot be made into a `str`.
        while let Some(key) = object.next_key::<&RawValue>()? {
            if is_room(key.get()) {
                room = Some(object.next_value::<&RawValue>()?.get());
            } else {
                object.next_value::<IgnoredAny>()?;
            }
        }
        Ok(room)
    }
}

/// Whether a key, with its quotes, is `room`. A key that cannot be unescaped is another.
fn is_room(key: &str) -> bool {
    key == r#""room""# || key.contains('\\') && serde_json::from_str::<String>(key).is_ok_and(|key| key == "room")
}

/// Whether brackets outside of strings nest deeper than `most`. Says nothing useful of what is not JSON.
fn is_deeper_than(json: &[u8], most: usize) -> bool {
    // Few brackets cannot nest deeply, wherever they are, and are counted many at a time.
    let brackets = |bytes: &[u8]| bytes.iter().map(|&byte| u8::from(byte == b'[' || byte == b'{')).sum::<u8>();
    if json.chunks(255).map(|chunk| usize::from(brackets(chunk))).sum::<usize>() <= most {
        return false;
    }
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    json.iter().any(|byte| {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = in_string,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth > most
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn records_name_their_room_and_notices_none() {
        let payload = r#" { "records" : {"n":1.0e+2, "n":[ ]}, "room":"group-1","x":"\u00e9é" }"#;
        assert_eq!(decode(RECORDS, payload.as_bytes()), Ok(Some("group-1".into())));
        assert_eq!(decode(SYSTEM_NOTICE, b"null"), Ok(None));
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

    /// What `JSON.parse` of Node 20 makes of the same texts.
    #[test]
    fn a_room_is_what_a_browser_would_read() {
        let rooms = [
            (r#"{"\ud800":1,"room":"a"}"#, "a"),
            (r#"{"\udc00\ud800":{"\udfff":["\uD83D"]},"room":"a"}"#, "a"),
            (r#"{"room":"a","room":"b"}"#, "b"),
            (r#"{"room":"a","r\u006fom":"b"}"#, "b"),
            (r#"{"\u0072\u006F\u006f\u006d":"b","room":"a"}"#, "a"),
            (r#"{"room":{"room":"x"},"room":"b"}"#, "b"),
            (r#"{"room":"\ud83c\udf31\/"}"#, "\u{1f331}/"),
            (r#"{"room\ud800":"x","room":"a","\ud800room":"y"}"#, "a"),
            (r#"{"\/\b\f\n\r\t\"\\":1,"room":"a"}"#, "a"),
            (r#"{"__proto__":{"room":"x"},"room":"a"}"#, "a"),
            (r#"{"room":"a","x":1e999,"y":-0,"z":-1E+2}"#, "a"),
            ("{\"\u{7f}\u{2028}\":1,\"room\":\"a\"}", "a"),
            (" \t\r\n{\t\"room\"\n:\r\"a\" }\n", "a"),
        ];
        for (payload, name) in rooms {
            assert_eq!(room(payload), Ok(name.into()), "{payload}");
        }
        let rejected = [
            // `JSON.parse` takes these six, but no browser can be in such a room.
            (r#"{"room":"\ud800"}"#, Rejected::NoRoom),
            (r#"{"room":"a","room":"\ud800"}"#, Rejected::NoRoom),
            (r#"{"room":"a","room":7}"#, Rejected::NoRoom),
            (r#"{"room":"a","r\u006fom":null}"#, Rejected::NoRoom),
            (r#"{"room\u0000":"x","Room":"y","room ":"z","\"room\"":"x","\\room":"y"}"#, Rejected::NoRoom),
            (r#"{"__proto__":{"room":"x"}}"#, Rejected::NoRoom),
            (r#"["\ud800"]"#, Rejected::NotAnObject),
            (r#""\ud800""#, Rejected::NotAnObject),
            (r#"{"\x":1,"room":"a"}"#, Rejected::NotJson),
            (r#"{"\u12g4":1,"room":"a"}"#, Rejected::NotJson),
            (r#"{"\u123":1,"room":"a"}"#, Rejected::NotJson),
            (r#"{"\U0041":1,"room":"a"}"#, Rejected::NotJson),
            (r#"{"room":"a","x":"\a"}"#, Rejected::NotJson),
            ("{\"a\tb\":1,\"room\":\"a\"}", Rejected::NotJson),
            ("{\"x\":\"\0\",\"room\":\"a\"}", Rejected::NotJson),
            (r#"{"room":"a",}"#, Rejected::NotJson),
            (r#"{,"room":"a"}"#, Rejected::NotJson),
            (r#"{"room":"a" "x":1}"#, Rejected::NotJson),
            (r#"{"room":"a","x"}"#, Rejected::NotJson),
            (r#"{"room":"a","x":}"#, Rejected::NotJson),
            (r#"{"room":"a","x":01}"#, Rejected::NotJson),
            (r#"{"room" "a"}"#, Rejected::NotJson),
            (r#"{room:"a"}"#, Rejected::NotJson),
            (r#"{7:1,"room":"a"}"#, Rejected::NotJson),
            (r#"{null:1,"room":"a"}"#, Rejected::NotJson),
            ("\u{a0}{\"room\":\"a\"}", Rejected::NotJson),
            ("\u{feff}{\"room\":\"a\"}", Rejected::NotJson),
            ("\u{c}{\"room\":\"a\"}", Rejected::NotJson),
            ("{\"room\":\"a\"}\u{b}", Rejected::NotJson),
            ("{\"room\":\"a\"}\0", Rejected::NotJson),
        ];
        for (payload, why) in rejected {
            assert_eq!(room(payload), Err(why), "{payload}");
        }
    }

    #[test]
    fn a_notice_may_hold_any_escape() {
        for payload in [r#""\ud800""#, r#"{"\udc00":["\uD83D\u0000"],"\udc00":1}"#] {
            assert_eq!(decode(SYSTEM_NOTICE, payload.as_bytes()), Ok(None));
        }
        for payload in [r#""\x""#, r#"{"\u12":1}"#, "\"\t\""] {
            assert_eq!(decode(SYSTEM_NOTICE, payload.as_bytes()), Err(Rejected::NotJson));
        }
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
            prop_assert_eq!(decode(RECORDS, payload.as_bytes()), Ok(Some(room.into())));
        }
    }
}
