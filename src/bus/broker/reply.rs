//! What the broker says, in either version of the protocol.
//!
//! Answers for: one shape per kind of answer and its encoding as RESP2 or RESP3.
//! Must not know: commands, clients, sockets.

use bytes::{Bytes, BytesMut};
use redis_protocol::error::RedisProtocolError;
use redis_protocol::resp2::{encode::extend_encode as encode2, types::BytesFrame as Frame2};
use redis_protocol::resp3::encode::complete::extend_encode as encode3;
use redis_protocol::resp3::types::{BytesFrame as Frame3, VerbatimStringFormat};

/// The version of the protocol a client asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Protocol {
    #[default]
    Resp2,
    Resp3,
}

impl Protocol {
    /// As `HELLO` numbers it.
    pub(super) fn number(self) -> i64 {
        match self {
            Self::Resp2 => 2,
            Self::Resp3 => 3,
        }
    }
}

/// One answer, or one message to a subscriber.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Reply {
    Status(&'static str),
    /// With its code, for example `ERR syntax error`. Line ends inside become spaces.
    Error(String),
    Integer(i64),
    Bulk(Bytes),
    /// Prose for people, such as that of `INFO`.
    Text(String),
    Null,
    Array(Vec<Reply>),
    Map(Vec<(&'static str, Reply)>),
    /// What a client did not ask for; RESP2 has no word for it and sends an array.
    Push(Vec<Reply>),
}

impl Reply {
    pub(super) fn bulk(text: &'static str) -> Self {
        Self::Bulk(Bytes::from_static(text.as_bytes()))
    }

    pub(super) fn count(count: usize) -> Self {
        Self::Integer(i64::try_from(count).unwrap_or(i64::MAX))
    }

    /// Appends the wire form to `out`.
    pub(super) fn encode(self, protocol: Protocol, out: &mut BytesMut) {
        let before = out.len();
        let encoded = match protocol {
            Protocol::Resp2 => encode2(out, &self.into_resp2(), false).map(drop),
            Protocol::Resp3 => encode3(out, &self.into_resp3(), false).map(drop),
        };
        if let Err(error) = encoded {
            substitute(&error, before, out);
        }
    }

    fn into_resp2(self) -> Frame2 {
        match self {
            Self::Status(text) => Frame2::SimpleString(Bytes::from_static(text.as_bytes())),
            Self::Error(text) => Frame2::Error(one_line(&text).into()),
            Self::Integer(number) => Frame2::Integer(number),
            Self::Bulk(data) => Frame2::BulkString(data),
            Self::Text(text) => Frame2::BulkString(text.into()),
            Self::Null => Frame2::Null,
            Self::Array(items) | Self::Push(items) => Frame2::Array(items.into_iter().map(Self::into_resp2).collect()),
            Self::Map(entries) => Frame2::Array(
                entries
                    .into_iter()
                    .flat_map(|(key, value)| [Self::bulk(key).into_resp2(), value.into_resp2()])
                    .collect(),
            ),
        }
    }

    fn into_resp3(self) -> Frame3 {
        let attributes = None;
        match self {
            Self::Status(text) => Frame3::SimpleString { data: Bytes::from_static(text.as_bytes()), attributes },
            Self::Error(text) => Frame3::SimpleError { data: one_line(&text).into(), attributes },
            Self::Integer(data) => Frame3::Number { data, attributes },
            Self::Bulk(data) => Frame3::BlobString { data, attributes },
            Self::Text(text) => {
                Frame3::VerbatimString { data: text.into(), format: VerbatimStringFormat::Text, attributes }
            }
            Self::Null => Frame3::Null,
            Self::Array(items) => Frame3::Array { data: items.into_iter().map(Self::into_resp3).collect(), attributes },
            Self::Push(items) => Frame3::Push { data: items.into_iter().map(Self::into_resp3).collect(), attributes },
            Self::Map(entries) => Frame3::Map {
                data: entries
                    .into_iter()
                    .map(|(key, value)| (Self::bulk(key).into_resp3(), value.into_resp3()))
                    .collect(),
                attributes,
            },
        }
    }
}

/// Error replies end at the first line break, and part of their text comes from clients.
fn one_line(text: &str) -> String {
    text.replace(['\r', '\n'], " ")
}

/// The codec refuses only values that `Reply` cannot express. Should it ever refuse one of ours, the
/// client must still get exactly one answer, or it would match all later ones to the wrong questions.
#[cold]
fn substitute(error: &RedisProtocolError, before: usize, out: &mut BytesMut) {
    tracing::error!(%error, "broker reply could not be encoded");
    out.truncate(before);
    out.extend_from_slice(b"-ERR reply could not be encoded\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(reply: Reply, protocol: Protocol) -> String {
        let mut out = BytesMut::new();
        reply.encode(protocol, &mut out);
        String::from_utf8(out.to_vec()).unwrap()
    }

    #[test]
    fn each_version_has_its_own_words() {
        let cases = [
            (Reply::Status("OK"), "+OK\r\n", "+OK\r\n"),
            (Reply::Error("ERR a\r\nb".into()), "-ERR a  b\r\n", "-ERR a  b\r\n"),
            (Reply::Integer(-2), ":-2\r\n", ":-2\r\n"),
            (Reply::bulk("x"), "$1\r\nx\r\n", "$1\r\nx\r\n"),
            (Reply::Null, "$-1\r\n", "_\r\n"),
            (Reply::Text("x".into()), "$1\r\nx\r\n", "=5\r\ntxt:x\r\n"),
            (Reply::Array(vec![Reply::Null]), "*1\r\n$-1\r\n", "*1\r\n_\r\n"),
            (Reply::Push(vec![Reply::Integer(1)]), "*1\r\n:1\r\n", ">1\r\n:1\r\n"),
            (Reply::Map(vec![("a", Reply::Integer(1))]), "*2\r\n$1\r\na\r\n:1\r\n", "%1\r\n$1\r\na\r\n:1\r\n"),
        ];
        for (reply, two, three) in cases {
            assert_eq!(wire(reply.clone(), Protocol::Resp2), two);
            assert_eq!(wire(reply, Protocol::Resp3), three);
        }
    }

    #[test]
    fn lengths_are_right_on_both_sides_of_every_power_of_ten() {
        for length in [0, 9, 10, 99, 100, 999, 1000, 9_999, 10_000, 99_999, 100_000, 999_999, 1_000_000] {
            for protocol in [Protocol::Resp2, Protocol::Resp3] {
                let text = wire(Reply::Bulk(vec![b'x'; length].into()), protocol);
                assert_eq!(text, format!("${length}\r\n{}\r\n", "x".repeat(length)));
            }
        }
    }
}
