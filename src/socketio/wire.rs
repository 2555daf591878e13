//! Packets of the default namespace as frames, and the checks of packets from browsers. Without I/O.
//!
//! Source: `docs/socket.io-protocol/v5-current.md` in the public repository `socketio/socket.io`.

use bytes::Bytes;
use serde::{Deserialize, Deserializer, de::IgnoredAny};
use serde_json::value::RawValue;
use socketioxide_core::parser::ParseConfig;

use crate::{
    engineio::Frame,
    hub::{Event, Hub, Kind, Wire},
};

/// Most attachments of an event from a browser; they are discarded with it.
const MAX_ATTACHMENTS: usize = 100;

/// The parser's limits.
pub(super) fn parse_config() -> ParseConfig {
    ParseConfig { max_incoming_binaries: MAX_ATTACHMENTS, ..ParseConfig::default() }
}

/// Sends events as `42["<name>",<payload>,"<offset>"]`; every event must end with its offset, which the client keeps.
pub struct SocketIoWire(pub Hub);

impl Wire for SocketIoWire {
    type Form = Frame;

    fn form(&self, event: &Event, payload: &Bytes) -> (Frame, Option<Bytes>) {
        let name: &[u8] = match event.kind {
            Kind::Records => b"records",
            Kind::Notice | Kind::GapNotice => b"notice",
        };
        let offset = self.0.seal_offset(&event.offset);
        let frame = Frame::message(&[b"2[\"", name, b"\",", payload, b",\"", offset.as_bytes(), b"\"]"]);
        let start = b"42[\"".len() + name.len() + b"\",".len();
        let shared = frame.text_data().map(|packet| packet.slice(start..start + payload.len()));
        (frame, shared)
    }
}

/// Tells a browser an offset, in an event that no client listens to. A browser that never got an event would have no
/// offset to come back with, and a browser that got none for long would come back as if it had been away all that time.
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

/// The fields of a CONNECT that matter here; other fields, and fields of other types, are ignored.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Connect {
    /// The ticket of an earlier session.
    #[serde(deserialize_with = "text")]
    pub(super) pid: Option<String>,
    /// Offset of the last event the browser got.
    #[serde(deserialize_with = "text")]
    pub(super) offset: Option<String>,
    #[serde(deserialize_with = "text")]
    pub(super) channel_token: Option<String>,
}

impl Connect {
    /// Reads the packet's data; `None` when that is not a JSON object. A packet may have no data.
    pub(super) fn parse(data: Option<&str>) -> Option<Self> {
        // serde would accept an array for a struct.
        data.map_or_else(
            || Some(Self::default()),
            |data| serde_json::from_str(data).ok().filter(|_| data.starts_with('{')),
        )
    }
}

/// A string; `None` for any other JSON.
fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(serde_json::from_str(<&RawValue>::deserialize(deserializer)?.get()).ok())
}

/// Names that the reference server does not let a client use.
const RESERVED: [&str; 6] =
    ["connect", "connect_error", "disconnect", "disconnecting", "newListener", "removeListener"];

/// Whether `data` is an event: a JSON array that begins with a name, or with a number as some clients have it. The
/// reference server also takes empty data for an event.
pub(super) fn is_event(data: &str) -> bool {
    let items = data.trim_ascii_start().strip_prefix('[').unwrap_or_default();
    let first = serde_json::Deserializer::from_str(items).into_iter::<&RawValue>().next();
    let first = first.and_then(Result::ok).map_or("", RawValue::get);
    let is_number = first.starts_with(|c: char| c == '-' || c.is_ascii_digit());
    let is_name = || serde_json::from_str(first).is_ok_and(|name: String| !RESERVED.contains(&name.as_str()));
    data.is_empty() || ((is_number || is_name()) && is_array(data))
}

/// Whether `data` is a JSON array, or empty.
pub(super) fn is_array(data: &str) -> bool {
    data.is_empty() || (data.trim_ascii_start().starts_with('[') && serde_json::from_str::<IgnoredAny>(data).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(frame: &Frame) -> String {
        String::from_utf8(frame.text_data().unwrap().into()).unwrap()
    }

    #[test]
    fn packets_are_as_the_client_expects_them() {
        let offset = "AAAA_-";
        assert_eq!(packet(&prime(offset)), r#"42["session","AAAA_-"]"#);
        assert_eq!(packet(&connect("s", "p")), r#"40{"sid":"s","pid":"p"}"#);
        assert_eq!(packet(&invalid_namespace("/x")), r#"44/x,{"message":"Invalid namespace"}"#);
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
        assert!(is_event(" [\"a\"] ") && !is_event(r#"["\u0063onnect"]"#));
        assert!(is_array("[1,{}]") && !is_array("{}") && !is_array("[1"));
    }
}
