//! What Redis says to a subscriber, cut out of the bytes as they come.
//!
//! Pure, copies nothing, and follows RESP 2 only as far as a subscriber meets it: flat arrays that begin with a word,
//! statuses and errors. See <https://redis.io/docs/latest/develop/reference/protocol-spec/> and, for the arrays,
//! <https://redis.io/docs/latest/develop/pubsub/>.

use std::ops::Range;

use bytes::{Buf, Bytes, BytesMut};

/// Longest line in bytes, with its end. Those with a number are far shorter; the longest error known has 1,067.
const MAX_LINE: usize = 4096;

/// Longest word and longest name of a channel in bytes. Those that were asked for are far shorter.
const MAX_NAME: usize = 1024;

/// One reply, with `T` for pieces of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reply<T> {
    /// A message.
    Message {
        /// The channel it came on.
        channel: T,
        /// Its bytes.
        payload: T,
    },
    /// A message with a longer payload than is wanted.
    TooLarge {
        /// The channel it came on.
        channel: T,
    },
    /// From now on messages of one more channel come.
    Subscribed,
    /// Redis refuses.
    Error {
        /// Why.
        text: T,
    },
    /// The answer to a ping, and whatever else needs nothing done.
    Other,
}

impl<T> Reply<T> {
    fn map<U>(self, piece: impl Fn(T) -> U) -> Reply<U> {
        match self {
            Self::Message { channel, payload } => Reply::Message { channel: piece(channel), payload: piece(payload) },
            Self::TooLarge { channel } => Reply::TooLarge { channel: piece(channel) },
            Self::Subscribed => Reply::Subscribed,
            Self::Error { text } => Reply::Error { text: piece(text) },
            Self::Other => Reply::Other,
        }
    }
}

/// Where in the bytes a piece lies.
type Place = Range<usize>;

/// The other side does not speak RESP, or not as to a subscriber.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("what answers is not redis")]
pub(super) struct Malformed;

/// Why there is no reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    Incomplete,
    Malformed,
}

/// Cuts replies off the front of what was read.
#[derive(Debug)]
pub(super) struct ReplyDecoder {
    max_payload: usize,
    /// Bytes still to come of a payload over that, which are passed over.
    unwanted: usize,
}

impl ReplyDecoder {
    /// For payloads of up to `max_payload` bytes.
    pub(super) fn new(max_payload: usize) -> Self {
        Self { max_payload, unwanted: 0 }
    }

    /// The next reply, taken out of `source`; `None` when more must be read first.
    ///
    /// # Errors
    /// When no reply begins like this.
    pub(super) fn decode(&mut self, source: &mut BytesMut) -> Result<Option<Reply<Bytes>>, Malformed> {
        let passed = self.unwanted.min(source.len());
        source.advance(passed);
        self.unwanted -= passed;
        if self.unwanted > 0 {
            return Ok(None);
        }
        let mut cursor = Cursor { bytes: source, at: 0 };
        let reply = match cursor.reply(self.max_payload) {
            Ok(reply) => reply,
            Err(Stop::Incomplete) => return Ok(None),
            Err(Stop::Malformed) => return Err(Malformed),
        };
        let length = cursor.at;
        self.unwanted = length.saturating_sub(source.len());
        let bytes = source.split_to(length - self.unwanted).freeze();
        Ok(Some(reply.map(|place| bytes.slice(place))))
    }
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn reply(&mut self, max_payload: usize) -> Result<Reply<Place>, Stop> {
        match self.line()? {
            ([b'*', length @ ..], _) => match decimal(length)? {
                2 => self.pong(),
                3 => self.event(max_payload),
                _ => Err(Stop::Malformed),
            },
            ([b'-', ..], Range { start, end }) => Ok(Reply::Error { text: start + 1..end }),
            ([b'+', ..], _) => Ok(Reply::Other),
            _ => Err(Stop::Malformed),
        }
    }

    /// The rest of `["pong", …]`.
    fn pong(&mut self) -> Result<Reply<Place>, Stop> {
        let word = self.name()?;
        self.name()?;
        if &self.bytes[word] == b"pong" { Ok(Reply::Other) } else { Err(Stop::Malformed) }
    }

    /// The rest of `["message", channel, payload]` or `["subscribe", channel, number]`.
    fn event(&mut self, max_payload: usize) -> Result<Reply<Place>, Stop> {
        let (word, channel) = (self.name()?, self.name()?);
        match &self.bytes[word] {
            b"message" => {
                let length = self.bulk_length()?;
                if length > max_payload {
                    self.at = self.at.checked_add(length).and_then(|end| end.checked_add(2)).ok_or(Stop::Malformed)?;
                    return Ok(Reply::TooLarge { channel });
                }
                Ok(Reply::Message { channel, payload: self.bulk(length)? })
            }
            b"subscribe" => match self.line()? {
                ([b':', number @ ..], _) => decimal(number).map(|_| Reply::Subscribed),
                _ => Err(Stop::Malformed),
            },
            _ => Err(Stop::Malformed),
        }
    }

    fn name(&mut self) -> Result<Place, Stop> {
        let length = self.bulk_length()?;
        if length > MAX_NAME { Err(Stop::Malformed) } else { self.bulk(length) }
    }

    fn bulk_length(&mut self) -> Result<usize, Stop> {
        match self.line()? {
            ([b'$', length @ ..], _) => decimal(length),
            _ => Err(Stop::Malformed),
        }
    }

    /// `length` bytes and the end of the line after them.
    fn bulk(&mut self, length: usize) -> Result<Place, Stop> {
        let end = self.at + length;
        let after = self.bytes.get(end..end + 2).ok_or(Stop::Incomplete)?;
        if after != b"\r\n" {
            return Err(Stop::Malformed);
        }
        let start = std::mem::replace(&mut self.at, end + 2);
        Ok(start..end)
    }

    /// A line without its end, and its place.
    fn line(&mut self) -> Result<(&'a [u8], Place), Stop> {
        let (start, rest) = (self.at, &self.bytes[self.at..]);
        let window = &rest[..rest.len().min(MAX_LINE)];
        let length = window.iter().position(|&byte| byte == b'\r');
        let length = length.ok_or(if window.len() < MAX_LINE { Stop::Incomplete } else { Stop::Malformed })?;
        match rest.get(length + 1) {
            None => return Err(Stop::Incomplete),
            Some(b'\n') => self.at += length + 2,
            Some(_) => return Err(Stop::Malformed),
        }
        Ok((&rest[..length], start..start + length))
    }
}

fn decimal(digits: &[u8]) -> Result<usize, Stop> {
    if digits.is_empty() {
        return Err(Stop::Malformed);
    }
    digits.iter().try_fold(0_usize, |number, digit| {
        let digit = digit.is_ascii_digit().then(|| usize::from(digit - b'0')).ok_or(Stop::Malformed)?;
        number.checked_mul(10).and_then(|tens| tens.checked_add(digit)).ok_or(Stop::Malformed)
    })
}

/// The replies in bytes that arrive in pieces of `step`, and whether all of it is well formed.
#[doc(hidden)]
pub fn fuzz_replies(data: &[u8], step: usize, max_payload: usize) -> (Vec<String>, bool) {
    let (mut decoder, mut source, mut replies) = (ReplyDecoder::new(max_payload), BytesMut::new(), Vec::new());
    for piece in data.chunks(step) {
        source.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut source) {
                Ok(Some(reply)) => replies.push(format!("{reply:?}")),
                Ok(None) => break,
                Err(Malformed) => return (replies, false),
            }
        }
    }
    (replies, true)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const MAX_PAYLOAD: usize = 8;

    fn replies(text: &str, step: usize) -> (Vec<String>, bool) {
        fuzz_replies(text.as_bytes(), step, MAX_PAYLOAD)
    }

    /// As `replies` has it.
    fn message(channel: &str, payload: &str) -> String {
        let [channel, payload] = [channel, payload].map(|text| Bytes::copy_from_slice(text.as_bytes()));
        match payload.len() {
            ..=MAX_PAYLOAD => format!("{:?}", Reply::Message { channel, payload }),
            _ => format!("{:?}", Reply::TooLarge { channel }),
        }
    }

    /// As a `redis-server` 7.0 says it.
    const TALK: &str = "*3\r\n$9\r\nsubscribe\r\n$8\r\n/records\r\n:1\r\n\
                        *3\r\n$7\r\nmessage\r\n$8\r\n/records\r\n$6\r\n{\r\n\"a\"\r\n\
                        *2\r\n$4\r\npong\r\n$0\r\n\r\n\
                        *3\r\n$7\r\nmessage\r\n$8\r\n/records\r\n$9\r\n*3\r\n$7\r\nx\r\n\
                        *3\r\n$7\r\nmessage\r\n$2\r\n/n\r\n$0\r\n\r\n\
                        +PONG\r\n\
                        -NOPERM no permission\r\n";

    #[test]
    fn replies_are_read_however_they_are_cut() {
        let expected = [
            "Subscribed".to_owned(),
            message("/records", "{\r\n\"a\""),
            "Other".to_owned(),
            message("/records", "*3\r\n$7\r\nx"),
            message("/n", ""),
            "Other".to_owned(),
            r#"Error { text: b"NOPERM no permission" }"#.to_owned(),
        ];
        for step in 1..TALK.len() {
            assert_eq!(replies(TALK, step), (expected.to_vec(), true), "in pieces of {step}");
        }
    }

    #[test]
    fn what_is_no_reply_is_found_out() {
        let long = format!("-{}", "x".repeat(MAX_LINE));
        for text in [
            "HTTP/1.1 400 Bad Request\r\n",
            "\r\n",
            "*1\r\n",
            "*-1\r\n",
            "*3\n$7\r\n",
            "*3\rx",
            "*2\r\n$4\r\nping\r\n$0\r\n\r\n",
            "*3\r\n:1\r\n",
            "*3\r\n$-1\r\n",
            "*3\r\n$2000\r\n",
            "*3\r\n$11\r\nunsubscribe\r\n$1\r\na\r\n",
            "*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\nabc",
            "*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$18446744073709551615\r\n",
            "*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$18446744073709551616\r\n",
            "*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n$1\r\n",
            &long,
        ] {
            assert_eq!(replies(text, 7), (Vec::new(), false), "{text}");
        }
    }

    proptest! {
        #[test]
        fn messages_come_as_they_were_sent(sent in vec(("[a\r\n$]{0,20}", "[a\r\n$]{0,20}"), 0..20), step in 1_usize..50) {
            let wire = |(channel, payload): &(String, String)| {
                format!("*3\r\n$7\r\nmessage\r\n${}\r\n{channel}\r\n${}\r\n{payload}\r\n", channel.len(), payload.len())
            };
            let expected = sent.iter().map(|(channel, payload)| message(channel, payload)).collect();
            prop_assert_eq!(replies(&sent.iter().map(wire).collect::<String>(), step), (expected, true));
        }
    }
}
