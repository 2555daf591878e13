//! Packets of the default namespace as frames, and what browsers may send.
//!
//! Pure. Source: `docs/socket.io-protocol/v5-current.md` in the public repository `socketio/socket.io`.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{self, IgnoredAny, SeqAccess, Visitor},
};
use serde_json::value::RawValue;
use socketioxide_core::parser::ParseConfig;

use crate::engineio::Frame;

/// Attachments of an event from a browser, which are thrown away with it.
const MAX_ATTACHMENTS: usize = 100;

/// What the parser lets through.
pub(super) fn parse_config() -> ParseConfig {
    ParseConfig { max_incoming_binaries: MAX_ATTACHMENTS, ..ParseConfig::default() }
}

/// `42["<event>",<argument>,"<offset>"]`; every event must end with its offset, which the client keeps.
pub fn event(name: &str, argument: &str, offset: &str) -> Frame {
    Frame::message(&[b"2[\"", name.as_bytes(), b"\",", argument.as_bytes(), b",\"", offset.as_bytes(), b"\"]"])
}

/// Tells a browser an offset, in an event that no client listens to: one that never got any event would have nothing to
/// come back with, and one that got none for long would come back as if it had been away all that time.
pub(super) fn prime(offset: &str) -> Frame {
    Frame::message(&[b"2[\"session\",\"", offset.as_bytes(), b"\"]"])
}

/// `40{"sid":…,"pid":…}`; both are of letters, digits, `-` and `_`.
pub(super) fn connect(sid: &str, pid: &str) -> Frame {
    Frame::message(&[b"0{\"sid\":\"", sid.as_bytes(), b"\",\"pid\":\"", pid.as_bytes(), b"\"}"])
}

/// `44<namespace>,{"message":"Invalid namespace"}`.
pub(super) fn invalid_namespace(namespace: &str) -> Frame {
    Frame::message(&[b"4", namespace.as_bytes(), b",{\"message\":\"Invalid namespace\"}"])
}

/// What a CONNECT carries of interest here; other fields and other types are ignored.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Connect {
    /// The ticket of an earlier session.
    pub(super) pid: Option<String>,
    /// Offset of the last event the browser got.
    pub(super) offset: Option<String>,
    pub(super) channel_token: Option<String>,
}

impl Connect {
    /// Reads the packet's data, which must be an object if there is any.
    pub(super) fn parse(data: Option<&str>) -> Option<Self> {
        #[derive(Deserialize)]
        struct Fields<'a> {
            #[serde(borrow)]
            pid: Option<&'a RawValue>,
            #[serde(borrow)]
            offset: Option<&'a RawValue>,
            #[serde(borrow)]
            channel_token: Option<&'a RawValue>,
        }
        let Some(data) = data else { return Some(Self::default()) };
        // An array would pass for a struct.
        let fields: Fields<'_> = serde_json::from_str(Some(data).filter(|data| data.starts_with('{'))?).ok()?;
        let text = |raw: Option<&RawValue>| serde_json::from_str(raw?.get()).ok();
        Some(Self { pid: text(fields.pid), offset: text(fields.offset), channel_token: text(fields.channel_token) })
    }
}

/// Names that the reference server does not let a client use.
const RESERVED: [&str; 6] =
    ["connect", "connect_error", "disconnect", "disconnecting", "newListener", "removeListener"];

/// Whether `data` is an event: an array that begins with a name, or a number as some clients have it. The reference
/// takes none at all for an empty one.
pub(super) fn is_event(data: &str) -> bool {
    data.is_empty() || serde_json::from_str::<Event>(data).is_ok()
}

/// Whether `data` is a JSON array, or none at all.
pub(super) fn is_array(data: &str) -> bool {
    data.is_empty() || (data.trim_ascii_start().starts_with('[') && serde_json::from_str::<IgnoredAny>(data).is_ok())
}

struct Event;

impl<'de> Deserialize<'de> for Event {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Array;
        impl<'de> Visitor<'de> for Array {
            type Value = Event;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an event")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Event, A::Error> {
                let allowed = match items.next_element::<Name>()? {
                    Some(Name::Text(name)) => !RESERVED.contains(&name.as_str()),
                    Some(Name::Number(_)) => true,
                    None => false,
                };
                while items.next_element::<IgnoredAny>()?.is_some() {}
                if allowed { Ok(Event) } else { Err(de::Error::custom("not an event's name")) }
            }
        }
        deserializer.deserialize_seq(Array)
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Name {
    Text(String),
    Number(#[expect(dead_code, reason = "only the type matters")] f64),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(frame: &Frame) -> String {
        String::from_utf8(frame.text_data().unwrap().into()).unwrap()
    }

    #[test]
    fn packets_are_as_the_client_expects_them() {
        let offset = "AAAA_-";
        assert_eq!(text(&event("records", r#"{"a":1.0}"#, offset)), r#"42["records",{"a":1.0},"AAAA_-"]"#);
        assert_eq!(text(&prime(offset)), r#"42["session","AAAA_-"]"#);
        assert_eq!(text(&connect("s", "p")), r#"40{"sid":"s","pid":"p"}"#);
        assert_eq!(text(&invalid_namespace("/x")), r#"44/x,{"message":"Invalid namespace"}"#);
    }

    #[test]
    fn a_connect_may_carry_anything() {
        assert_eq!(Connect::parse(None), Some(Connect::default()));
        let parsed = Connect::parse(Some(r#"{"pid":"p","offset":7,"channel_token":"t","other":{}}"#));
        let expected = Connect { pid: Some("p".to_owned()), offset: None, channel_token: Some("t".to_owned()) };
        assert_eq!(parsed, Some(expected));
        for malformed in ["[]", "1", "null", "{", "{}x"] {
            assert_eq!(Connect::parse(Some(malformed)), None);
        }
    }

    #[test]
    fn events_are_told_from_nonsense() {
        for event in [r#"["a"]"#, "", r#"["a",1,{"b":[]}]"#, "[1]", "[-1.5,null]"] {
            assert!(is_event(event), "{event}");
        }
        for nonsense in ["{}", "[]", "[null]", "[[]]", r#"["connect"]"#, r#"["a""#, r#"["a"]x"#, "abc", "\"a\""] {
            assert!(!is_event(nonsense), "{nonsense}");
        }
        assert!(is_array("[1,{}]") && !is_array("{}") && !is_array("[1"));
    }
}
