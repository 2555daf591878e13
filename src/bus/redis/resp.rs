//! The replies of Redis, cut out of the bytes as they come: RESP2 and RESP3.
//!
//! Pure, and copies nothing. What a subscriber has no use for is passed over, whatever its type. Streamed strings and
//! aggregates are refused: no Redis sends them. See <https://redis.io/docs/latest/develop/reference/protocol-spec/>
//! and, for the pushes, <https://redis.io/docs/latest/develop/pubsub/>.
//!
//! No library: a message of 1 kB takes 0.09 µs here, 0.7 µs in redis-protocol 6 (`decode_bytes_mut`) and 1.1 µs in redis
//! 1.8 (`parse_redis_value`), of 12 µs that the server takes for a message to one user. Both keep a payload of any size
//! until it is whole, and redis-protocol recurses as deep as the bytes say.

use std::ops::Range;

use bytes::{Buf, Bytes, BytesMut};

/// Longest line in bytes, with its end. Those with a number are far shorter; the longest error known has 1,067.
const MAX_LINE: usize = 4096;

/// Longest name of a channel in bytes.
const MAX_CHANNEL: usize = 1024;

/// Longest text that answers a command in bytes, and most bytes of a reply that is passed over. `INFO commandstats` has
/// about 40,000 when every command was called.
const MAX_TEXT: usize = 256 * 1024;

/// Most elements of a reply that is passed over, on all levels. The answer to `HELLO` has 14, and 10 or so per module.
const MAX_ELEMENTS: usize = 512;

/// Bytes before the text of a verbatim string: its format and a colon.
const FORMAT: usize = 4;

/// A reply, with `T` for pieces of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply<T = Bytes> {
    /// A message on a channel, subscribed by its name or by a pattern.
    Message {
        /// The channel.
        channel: T,
        /// `None` in place of a payload that is longer than is wanted.
        payload: Option<T>,
    },
    /// From now on messages of one more channel or pattern come.
    Subscribed,
    /// An answer that is a text; empty when it is longer than 256 KiB.
    Text(T),
    /// An answer that is an error.
    Error(T),
    /// Any other answer. Its content is passed over.
    Other,
}

impl<T> Reply<T> {
    fn map<U>(self, cut: impl Fn(T) -> U + Copy) -> Reply<U> {
        match self {
            Self::Message { channel, payload } => Reply::Message { channel: cut(channel), payload: payload.map(cut) },
            Self::Subscribed => Reply::Subscribed,
            Self::Text(text) => Reply::Text(cut(text)),
            Self::Error(text) => Reply::Error(cut(text)),
            Self::Other => Reply::Other,
        }
    }
}

/// The other side does not speak RESP as to a subscriber, or exceeds a bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("what answers is not redis")]
pub struct NotRedis;

/// Why there is no reply.
enum Unread {
    Incomplete,
    NotRedis,
}

/// Cuts replies off the front of what was read.
#[derive(Debug)]
pub struct ReplyDecoder {
    max_payload: usize,
    /// Bytes still to come of a payload or text that is too long, which are passed over.
    unwanted: usize,
}

impl ReplyDecoder {
    /// A decoder that passes over payloads of more than `max_payload` bytes.
    pub fn new(max_payload: usize) -> Self {
        Self { max_payload, unwanted: 0 }
    }

    /// Whether no reply has begun whose end is still to come, given what was read and not decoded.
    pub fn is_between_replies(&self, source: &BytesMut) -> bool {
        self.unwanted == 0 && source.is_empty()
    }

    /// The next reply, taken out of `source`; `None` when more must be read first. [`NotRedis`] when the bytes are no
    /// reply, or one that is beyond the bounds of this module.
    pub fn decode(&mut self, source: &mut BytesMut) -> Result<Option<Reply>, NotRedis> {
        loop {
            let passed = self.unwanted.min(source.len());
            source.advance(passed);
            self.unwanted -= passed;
            if source.is_empty() {
                return Ok(None);
            }
            let mut cursor = Cursor { bytes: source, at: 0 };
            let reply = match cursor.reply(self.max_payload) {
                Ok(reply) => reply,
                Err(Unread::Incomplete) => return Ok(None),
                Err(Unread::NotRedis) => return Err(NotRedis),
            };
            let length = cursor.at;
            self.unwanted = length.saturating_sub(source.len());
            let bytes = source.split_to(length - self.unwanted).freeze();
            if let Some(reply) = reply {
                return Ok(Some(reply.map(|place| bytes.slice(place))));
            }
        }
    }
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    /// `None` for a push that is of no use.
    fn reply(&mut self, max_payload: usize) -> Result<Option<Reply<Range<usize>>>, Unread> {
        let mut start = self.at;
        let (mut kind, mut rest) = self.line()?;
        if kind == b'|' {
            self.pass_over(pairs(rest)?)?;
            start = self.at;
            (kind, rest) = self.line()?;
        }
        Ok(Some(match kind {
            b'>' | b'*' => return self.event(kind, length(rest)?.unwrap_or(0), max_payload),
            b'-' => Reply::Error(start + 1..self.at - 2),
            b'!' | b'$' | b'=' => match length(rest)? {
                None => Reply::Other,
                Some(length) => {
                    let text = self.bulk(length, MAX_TEXT)?.unwrap_or(0..0);
                    match kind {
                        b'!' => Reply::Error(text),
                        b'=' => Reply::Text(text.end.min(text.start + FORMAT)..text.end),
                        _ => Reply::Text(text),
                    }
                }
            },
            b'|' => return Err(Unread::NotRedis),
            _ => {
                self.at = start;
                self.pass_over(1)?;
                Reply::Other
            }
        }))
    }

    /// The rest of an array or push of `count` elements, of which the first tells what it is. RESP2 has no pushes.
    fn event(&mut self, kind: u8, count: usize, max_payload: usize) -> Result<Option<Reply<Range<usize>>>, Unread> {
        if count == 3 && self.takes(b"$7\r\nmessage\r\n") {
            return self.message(max_payload).map(Some);
        }
        if count == 4 && self.takes(b"$8\r\npmessage\r\n") {
            self.pass_over(1)?;
            return self.message(max_payload).map(Some);
        }
        if count == 3 && (self.takes(b"$9\r\nsubscribe\r\n") || self.takes(b"$10\r\npsubscribe\r\n")) {
            self.pass_over(2)?;
            return Ok(Some(Reply::Subscribed));
        }
        // Messages would be missing from now on.
        if self.takes(b"$11\r\nunsubscribe\r\n") || self.takes(b"$12\r\npunsubscribe\r\n") {
            return Err(Unread::NotRedis);
        }
        self.pass_over(count)?;
        Ok((kind == b'*').then_some(Reply::Other))
    }

    /// Channel and payload of a message.
    fn message(&mut self, max_payload: usize) -> Result<Reply<Range<usize>>, Unread> {
        let mut string = |most| match self.line()? {
            (b'$', digits) => self.bulk(length(digits)?.ok_or(Unread::NotRedis)?, most),
            _ => Err(Unread::NotRedis),
        };
        Ok(Reply::Message { channel: string(MAX_CHANNEL)?.ok_or(Unread::NotRedis)?, payload: string(max_payload)? })
    }

    /// Passes over `left` values. The elements of one are counted to those still to come, so that no depth needs a stack.
    fn pass_over(&mut self, mut left: usize) -> Result<(), Unread> {
        let (end, mut passed) = (self.at + MAX_TEXT, 0_usize);
        while left > 0 {
            if passed.saturating_add(left) > MAX_ELEMENTS {
                return Err(Unread::NotRedis);
            }
            (passed, left) = (passed + 1, left - 1);
            let (kind, rest) = self.line()?;
            left = left.saturating_add(match kind {
                b'*' | b'~' | b'>' => length(rest)?.unwrap_or(0),
                b'%' => pairs(rest)?,
                // The value that the attributes belong to follows them.
                b'|' => pairs(rest)?.saturating_add(1),
                b'$' | b'=' | b'!' => {
                    if let Some(length) = length(rest)? {
                        self.bulk(length, end.saturating_sub(self.at))?.ok_or(Unread::NotRedis)?;
                    }
                    0
                }
                b'+' | b'-' | b':' | b',' | b'(' | b'#' | b'_' => 0,
                _ => return Err(Unread::NotRedis),
            });
        }
        Ok(())
    }

    /// Takes `bytes` if they come next. When too few were read to tell, the caller finds that in what it reads instead.
    fn takes(&mut self, bytes: &[u8]) -> bool {
        let found = self.bytes[self.at..].starts_with(bytes);
        self.at += if found { bytes.len() } else { 0 };
        found
    }

    /// `length` bytes and the end of their line; `None` when there are more than `most`, which need not have been read.
    fn bulk(&mut self, length: usize, most: usize) -> Result<Option<Range<usize>>, Unread> {
        let start = self.at;
        self.at = start.checked_add(length).and_then(|end| end.checked_add(2)).ok_or(Unread::NotRedis)?;
        if length > most {
            return Ok(None);
        }
        match self.bytes.get(self.at - 2..self.at) {
            Some(b"\r\n") => Ok(Some(start..start + length)),
            Some(_) => Err(Unread::NotRedis),
            None => Err(Unread::Incomplete),
        }
    }

    /// The first byte of a line, and the rest without its end.
    fn line(&mut self) -> Result<(u8, &'a [u8]), Unread> {
        let rest = &self.bytes[self.at..];
        let window = &rest[..rest.len().min(MAX_LINE)];
        let Some(length) = window.iter().position(|&byte| byte == b'\r') else {
            return Err(if window.len() < MAX_LINE { Unread::Incomplete } else { Unread::NotRedis });
        };
        match (rest.get(length + 1), &rest[..length]) {
            (None, _) => Err(Unread::Incomplete),
            (Some(b'\n'), [kind, line @ ..]) => {
                self.at += length + 2;
                Ok((*kind, line))
            }
            _ => Err(Unread::NotRedis),
        }
    }
}

/// A length; `None` for the -1 of a RESP2 null.
fn length(digits: &[u8]) -> Result<Option<usize>, Unread> {
    if digits == b"-1" {
        return Ok(None);
    }
    let digits = str::from_utf8(digits).ok().filter(|digits| !digits.starts_with('+'));
    digits.and_then(|digits| digits.parse().ok()).map(Some).ok_or(Unread::NotRedis)
}

/// The number of keys and values of a map or of attributes.
fn pairs(digits: &[u8]) -> Result<usize, Unread> {
    length(digits)?.and_then(|pairs| pairs.checked_mul(2)).ok_or(Unread::NotRedis)
}

#[cfg(test)]
mod tests;
