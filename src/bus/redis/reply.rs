//! What Redis says to a subscriber, cut out of the bytes as they come.
//!
//! Pure, copies nothing, and follows RESP2 and RESP3 only as far as a subscriber meets them: flat arrays and pushes that
//! begin with a word, statuses, errors, the texts that answer `INFO`, and the map that answers `HELLO`, which is passed
//! over. See <https://redis.io/docs/latest/develop/reference/protocol-spec/> and, for the pushes,
//! <https://redis.io/docs/latest/develop/pubsub/>.

use std::ops::Range;

use bytes::{Buf, Bytes, BytesMut};

/// Longest line in bytes, with its end. Those with a number are far shorter; the longest error known has 1,067.
const MAX_LINE: usize = 4096;

/// Longest word and longest name of a channel in bytes. Those that were asked for are far shorter.
const MAX_NAME: usize = 1024;

/// Longest text that answers a command in bytes. `INFO commandstats` of a Redis on which every command of its 241 and
/// their subcommands was called has about 40,000.
const MAX_TEXT: usize = 256 * 1024;

/// Most elements of a map, on all its levels. The answer to `HELLO` has 14, and about 10 more for each module.
const MAX_ELEMENTS: usize = 512;

/// How a message begins, after the `>` or `*`. Nearly all replies begin like this, and comparing it at once in place of
/// piece by piece saves 195 of 1,018 instructions for a message of 100 bytes, from the buffer to the caller of
/// `Source::next` (callgrind, release build).
const MESSAGE: &[u8] = b"3\r\n$7\r\nmessage\r\n";

/// What stands before a verbatim string: its format and a colon.
const FORMAT: usize = 4;

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
    /// From now on messages of one more channel or pattern come.
    Subscribed,
    /// The answer to a command that is answered with a text; empty when it is too long.
    Text {
        /// The text.
        text: T,
    },
    /// Redis refuses.
    Error {
        /// Why.
        text: T,
    },
    /// The answer to `PING` or `HELLO`, of which only matters that it came.
    Other,
}

impl<T> Reply<T> {
    fn map<U>(self, piece: impl Fn(T) -> U) -> Reply<U> {
        match self {
            Self::Message { channel, payload } => Reply::Message { channel: piece(channel), payload: piece(payload) },
            Self::TooLarge { channel } => Reply::TooLarge { channel: piece(channel) },
            Self::Subscribed => Reply::Subscribed,
            Self::Text { text } => Reply::Text { text: piece(text) },
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

    /// Whether no reply has begun whose end is still to come, given what was read and not decoded.
    pub(super) fn is_between_replies(&self, source: &BytesMut) -> bool {
        self.unwanted == 0 && source.is_empty()
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
        if let [b'>' | b'*', rest @ ..] = self.bytes
            && rest.starts_with(MESSAGE)
        {
            self.at = 1 + MESSAGE.len();
            let channel = self.name()?;
            return self.message(channel, max_payload);
        }
        match self.line()? {
            ([b'>' | b'*', length @ ..], _) => match decimal(length)? {
                2 => self.pong(),
                3 => self.event(max_payload),
                4 => self.pattern_event(max_payload),
                _ => Err(Stop::Malformed),
            },
            ([b'-', ..], Range { start, end }) => Ok(Reply::Error { text: start + 1..end }),
            ([b'+', ..], _) => Ok(Reply::Other),
            ([b'$', length @ ..], _) => self.text(0, decimal(length)?),
            ([b'=', length @ ..], _) => self.text(FORMAT, decimal(length)?),
            ([b'%', entries @ ..], _) => self.map(decimal(entries)?),
            _ => Err(Stop::Malformed),
        }
    }

    /// The rest of `["pong", …]`.
    fn pong(&mut self) -> Result<Reply<Place>, Stop> {
        let word = self.name()?;
        self.name()?;
        if &self.bytes[word] == b"pong" { Ok(Reply::Other) } else { Err(Stop::Malformed) }
    }

    /// The rest of `["message", channel, payload]`, or of `["subscribe", channel, number]` and its like for patterns.
    fn event(&mut self, max_payload: usize) -> Result<Reply<Place>, Stop> {
        let (word, channel) = (self.name()?, self.name()?);
        match &self.bytes[word] {
            b"message" => self.message(channel, max_payload),
            b"subscribe" | b"psubscribe" => match self.line()? {
                ([b':', number @ ..], _) => decimal(number).map(|_| Reply::Subscribed),
                _ => Err(Stop::Malformed),
            },
            _ => Err(Stop::Malformed),
        }
    }

    /// The rest of `["pmessage", pattern, channel, payload]`.
    fn pattern_event(&mut self, max_payload: usize) -> Result<Reply<Place>, Stop> {
        let (word, _pattern, channel) = (self.name()?, self.name()?, self.name()?);
        match &self.bytes[word] {
            b"pmessage" => self.message(channel, max_payload),
            _ => Err(Stop::Malformed),
        }
    }

    /// The payload of a message.
    fn message(&mut self, channel: Place, max_payload: usize) -> Result<Reply<Place>, Stop> {
        let length = self.bulk_length()?;
        if length > max_payload {
            self.pass_over(length)?;
            return Ok(Reply::TooLarge { channel });
        }
        Ok(Reply::Message { channel, payload: self.bulk(length)? })
    }

    /// A text of `length` bytes, the first `format` of which do not belong to it.
    fn text(&mut self, format: usize, length: usize) -> Result<Reply<Place>, Stop> {
        if length > MAX_TEXT {
            let text = self.at..self.at;
            self.pass_over(length)?;
            return Ok(Reply::Text { text });
        }
        let Range { start, end } = self.bulk(length)?;
        if format > length { Err(Stop::Malformed) } else { Ok(Reply::Text { text: start + format..end }) }
    }

    /// The entries of a map, passed over. An element that has others counts them to those still to come, so that no
    /// depth needs a stack.
    fn map(&mut self, entries: usize) -> Result<Reply<Place>, Stop> {
        let (mut left, mut allowed) = (0, MAX_ELEMENTS);
        let mut more = entries.checked_mul(2).ok_or(Stop::Malformed)?;
        loop {
            allowed = allowed.checked_sub(more).ok_or(Stop::Malformed)?;
            left += more;
            if left == 0 {
                return Ok(Reply::Other);
            }
            left -= 1;
            more = match self.line()?.0 {
                [b'*' | b'~', length @ ..] => decimal(length)?,
                [b'%', entries @ ..] => decimal(entries)?.checked_mul(2).ok_or(Stop::Malformed)?,
                [b'$' | b'=', length @ ..] => match decimal(length)? {
                    length @ ..=MAX_LINE => self.bulk(length).map(|_| 0)?,
                    _ => return Err(Stop::Malformed),
                },
                [b'+' | b'-' | b':' | b',' | b'(' | b'#' | b'_', ..] => 0,
                _ => return Err(Stop::Malformed),
            };
        }
    }

    /// Ends the reply after `length` more bytes and the end of their line, read or not.
    fn pass_over(&mut self, length: usize) -> Result<(), Stop> {
        self.at = self.at.checked_add(length).and_then(|end| end.checked_add(2)).ok_or(Stop::Malformed)?;
        Ok(())
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

    /// As it says it to a subscriber that has said `HELLO 3`.
    const TALK3: &str = "%2\r\n$6\r\nserver\r\n$5\r\nredis\r\n+modules\r\n*2\r\n%1\r\n$3\r\nver\r\n:1\r\n_\r\n\
                         >3\r\n$9\r\nsubscribe\r\n$8\r\n/records\r\n:1\r\n\
                         >3\r\n$10\r\npsubscribe\r\n$9\r\nchatbot/*\r\n:3\r\n\
                         =9\r\ntxt:a\r\nb:\r\n\
                         $2\r\n\r\n\r\n\
                         >3\r\n$7\r\nmessage\r\n$8\r\n/records\r\n$1\r\nx\r\n\
                         >4\r\n$8\r\npmessage\r\n$9\r\nchatbot/*\r\n$9\r\nchatbot/a\r\n$2\r\n\r\n\r\n\
                         >4\r\n$8\r\npmessage\r\n$9\r\nchatbot/*\r\n$9\r\nchatbot/a\r\n$9\r\n123456789\r\n\
                         %0\r\n";

    #[test]
    fn replies_to_a_subscriber_of_resp3_are_read_however_they_are_cut() {
        let expected = [
            "Other".to_owned(),
            "Subscribed".to_owned(),
            "Subscribed".to_owned(),
            r#"Text { text: b"a\r\nb:" }"#.to_owned(),
            r#"Text { text: b"\r\n" }"#.to_owned(),
            message("/records", "x"),
            message("chatbot/a", "\r\n"),
            message("chatbot/a", "123456789"),
            "Other".to_owned(),
        ];
        for step in 1..TALK3.len() {
            assert_eq!(replies(TALK3, step), (expected.to_vec(), true), "in pieces of {step}");
        }
    }

    #[test]
    fn a_text_that_is_too_long_is_passed_over() {
        for (length, text) in [(MAX_TEXT + FORMAT + 1, String::new()), (MAX_TEXT, "x".repeat(MAX_TEXT - FORMAT))] {
            let wire = format!("={length}\r\ntxt:{}\r\n+PONG\r\n", "x".repeat(length - FORMAT));
            let expected = vec![format!("{:?}", Reply::Text { text: Bytes::from(text) }), "Other".to_owned()];
            assert_eq!(replies(&wire, 10_000), (expected, true));
        }
    }

    #[test]
    fn a_map_has_only_so_many_elements_on_all_its_levels() {
        let nested = |depth| format!("%1\r\n+a\r\n{}:1\r\n", "*1\r\n".repeat(depth));
        let flat = |entries| format!("%{entries}\r\n{}", ":1\r\n".repeat(2 * entries));
        for (text, well_formed) in [
            (nested(MAX_ELEMENTS - 2), true),
            (nested(MAX_ELEMENTS - 1), false),
            (flat(MAX_ELEMENTS / 2), true),
            (flat(MAX_ELEMENTS / 2 + 1), false),
        ] {
            assert_eq!(replies(&text, 1_000).1, well_formed);
        }
    }

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
            ">1\r\n",
            ">3\r\n$10\r\ninvalidate\r\n$1\r\na\r\n:1\r\n",
            ">4\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\na\r\n$1\r\na\r\n",
            "=3\r\ntxt\r\n",
            "$-1\r\n",
            "%18446744073709551615\r\n",
            "%9223372036854775808\r\n",
            "%1\r\n$5000\r\n",
            "%1\r\n>1\r\n",
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
