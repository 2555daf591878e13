//! Cutting a client's bytes into requests.
//!
//! Answers for: every bound on what a client may send, and redis's wording when one is broken. The
//! codec crate turns a checked request into its arguments; it descends into nested arrays without a
//! limit and starts over on every read, so nothing reaches it before the outline has been verified here.
//! Must not know: what the arguments mean, who sent them, or how a reply looks.

use bytes::{Bytes, BytesMut};
use redis_protocol::resp2::decode::decode_bytes_mut;
use redis_protocol::resp2::types::BytesFrame;
use tokio_util::codec::Decoder;

/// Longest single argument. The largest payload Rails publishes is a few hundred kilobytes.
pub(super) const MAX_BULK_BYTES: usize = 16 * 1024 * 1024;
/// Longest whole request: one full argument and room for its companions.
const MAX_REQUEST_BYTES: usize = MAX_BULK_BYTES + 64 * 1024;
/// Most arguments of one request; each costs far more memory than the six bytes it takes on the wire.
const MAX_ARGUMENTS: usize = 64 * 1024;
/// Longest length line: a sign and twenty digits fit, with the line end.
const MAX_HEADER_BYTES: usize = 32;
/// Longest request typed by hand, as in redis.
const MAX_INLINE_BYTES: usize = 64 * 1024;

/// Why a client's bytes cannot be followed any further. Except where noted the text goes to the client.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    #[error("Protocol error: invalid multibulk length")]
    ArgumentCount,
    #[error("Protocol error: invalid bulk length")]
    BulkLength,
    #[error("Protocol error: expected '$', got '{}'", .0.escape_ascii())]
    ExpectedBulk(u8),
    #[error("Protocol error: too big mbulk count string")]
    LongArgumentCount,
    #[error("Protocol error: too big bulk count string")]
    LongBulkLength,
    #[error("Protocol error: too big inline request")]
    LongInline,
    #[error("Protocol error: request exceeds {MAX_REQUEST_BYTES} bytes")]
    LongRequest,
    #[error("Protocol error: malformed request")]
    Malformed,
    /// A web page can make a browser post anything to a local port. Not answered, as in redis.
    #[error("the client speaks HTTP")]
    Http,
    /// The socket failed or closed in the middle of a request. Not answered.
    #[error("connection lost")]
    Io(#[from] std::io::Error),
}

/// Decodes requests: arrays of bulk strings, or one line of words as typed into a raw connection
/// (words are separated by white space; there is no quoting).
#[derive(Debug, Default)]
pub(super) struct RequestCodec {
    /// Bytes of the buffer that are known to be well formed.
    checked: usize,
    /// Arguments still to come, once the count was read.
    missing: Option<usize>,
}

impl Decoder for RequestCodec {
    type Item = Vec<Bytes>;
    type Error = WireError;

    fn decode(&mut self, source: &mut BytesMut) -> Result<Option<Vec<Bytes>>, WireError> {
        while let Some(&first) = source.first() {
            let complete = if first == b'*' { self.check_array(source)? } else { self.check_line(source)? };
            if !complete {
                return Ok(None);
            }
            let request = source.split_to(std::mem::take(&mut self.checked));
            self.missing = None;
            let arguments = if first == b'*' { arguments(request)? } else { words(request)? };
            // Redis passes over empty requests in silence.
            if !arguments.is_empty() {
                return Ok(Some(arguments));
            }
        }
        Ok(None)
    }
}

impl RequestCodec {
    /// Goes on checking where the last call stopped; true when the request is complete.
    fn check_array(&mut self, source: &[u8]) -> Result<bool, WireError> {
        let mut missing = if let Some(missing) = self.missing {
            missing
        } else {
            let Some((count, after)) = header(source, 1, WireError::LongArgumentCount, WireError::ArgumentCount)?
            else {
                return Ok(false);
            };
            // Negative counts stand for an empty request.
            let count = usize::try_from(count).unwrap_or(0);
            if count > MAX_ARGUMENTS {
                return Err(WireError::ArgumentCount);
            }
            self.checked = after;
            count
        };
        while missing > 0 {
            self.missing = Some(missing);
            let Some(&kind) = source.get(self.checked) else {
                return Ok(false);
            };
            if kind != b'$' {
                return Err(WireError::ExpectedBulk(kind));
            }
            let Some((length, after)) =
                header(source, self.checked + 1, WireError::LongBulkLength, WireError::BulkLength)?
            else {
                return Ok(false);
            };
            let length = usize::try_from(length).map_err(|_| WireError::BulkLength)?;
            if length > MAX_BULK_BYTES {
                return Err(WireError::BulkLength);
            }
            let end = after + length + 2;
            if end > MAX_REQUEST_BYTES {
                return Err(WireError::LongRequest);
            }
            if source.len() < end {
                return Ok(false);
            }
            self.checked = end;
            missing -= 1;
        }
        Ok(true)
    }

    fn check_line(&mut self, source: &[u8]) -> Result<bool, WireError> {
        let fresh = source.get(self.checked..).unwrap_or_default();
        if let Some(end) = fresh.iter().position(|&byte| byte == b'\n') {
            self.checked += end + 1;
        } else {
            self.checked = source.len();
            if self.checked <= MAX_INLINE_BYTES {
                return Ok(false);
            }
        }
        if self.checked > MAX_INLINE_BYTES {
            return Err(WireError::LongInline);
        }
        Ok(true)
    }
}

/// The number on the length line that starts at `start`, and where the next line begins.
fn header(
    source: &[u8],
    start: usize,
    too_long: WireError,
    malformed: WireError,
) -> Result<Option<(i64, usize)>, WireError> {
    let line = source.get(start..).unwrap_or_default();
    let window = line.get(..MAX_HEADER_BYTES).unwrap_or(line);
    let Some(end) = window.iter().position(|&byte| byte == b'\r') else {
        return if window.len() == MAX_HEADER_BYTES { Err(too_long) } else { Ok(None) };
    };
    match line.get(end + 1) {
        None => Ok(None),
        Some(b'\n') => match line.get(..end).and_then(integer) {
            Some(number) => Ok(Some((number, start + end + 2))),
            None => Err(malformed),
        },
        Some(_) => Err(malformed),
    }
}

/// A decimal number as redis reads it: no plus sign, no leading zeros, no `-0`.
pub(super) fn integer(text: &[u8]) -> Option<i64> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    let canonical = match digits {
        [b'0'] => text.len() == 1,
        [b'1'..=b'9', rest @ ..] => rest.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    if !canonical {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn arguments(mut request: BytesMut) -> Result<Vec<Bytes>, WireError> {
    match decode_bytes_mut(&mut request) {
        Ok(Some((BytesFrame::Array(frames), _, _))) => frames
            .into_iter()
            .map(|frame| match frame {
                BytesFrame::BulkString(argument) => Ok(argument),
                _ => Err(WireError::Malformed),
            })
            .collect(),
        Ok(Some((BytesFrame::Null, _, _))) => Ok(Vec::new()),
        // A negative count other than -1 is an empty request to redis and an error to the codec.
        Err(_) if request.starts_with(b"*-") => Ok(Vec::new()),
        Ok(_) | Err(_) => Err(WireError::Malformed),
    }
}

fn words(request: BytesMut) -> Result<Vec<Bytes>, WireError> {
    let line = request.freeze();
    let words: Vec<Bytes> =
        line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).map(|word| line.slice_ref(word)).collect();
    let speaks_http =
        words.first().is_some_and(|first| first.eq_ignore_ascii_case(b"post") || first.eq_ignore_ascii_case(b"host:"));
    if speaks_http {
        return Err(WireError::Http);
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode_all(bytes: &[u8], step: usize) -> Result<Vec<Vec<Bytes>>, String> {
        let mut codec = RequestCodec::default();
        let mut buffer = BytesMut::new();
        let mut requests = Vec::new();
        for chunk in bytes.chunks(step.max(1)) {
            buffer.extend_from_slice(chunk);
            while let Some(request) = codec.decode(&mut buffer).map_err(|e| e.to_string())? {
                requests.push(request);
            }
        }
        Ok(requests)
    }

    #[test]
    fn requests_arrive_whole_however_the_bytes_are_split() {
        let bytes = b"*2\r\n$3\r\nGET\r\n$4\r\n\r\n\x00z\r\nPING  hello\r\n*0\r\n*-1\r\n*-7\r\n\r\n*1\r\n$0\r\n\r\n";
        for step in 1..=bytes.len() {
            let requests = decode_all(bytes, step).unwrap();
            assert_eq!(
                requests,
                [
                    vec![Bytes::from("GET"), Bytes::from("\r\n\0z")],
                    vec![Bytes::from("PING"), Bytes::from("hello")],
                    vec![Bytes::new()],
                ],
                "in steps of {step}"
            );
        }
    }

    #[test]
    fn broken_outlines_are_named_as_redis_names_them() {
        let long_line = vec![b'x'; MAX_INLINE_BYTES + 1];
        let cases: [(&[u8], &str); 11] = [
            (b"*x\r\n", "Protocol error: invalid multibulk length"),
            (b"*65537\r\n", "Protocol error: invalid multibulk length"),
            (b"*99999999999999999999\r\n", "Protocol error: invalid multibulk length"),
            (b"*1\rx", "Protocol error: invalid multibulk length"),
            (b"*1\r\n:1\r\n", "Protocol error: expected '$', got ':'"),
            (b"*1\r\n*1\r\n*1\r\n", "Protocol error: expected '$', got '*'"),
            (b"*1\r\n$-1\r\n", "Protocol error: invalid bulk length"),
            (b"*1\r\n$16777217\r\n", "Protocol error: invalid bulk length"),
            (b"*00000000000000000000000000000000001", "Protocol error: too big mbulk count string"),
            (b"*1\r\n$00000000000000000000000000000000001", "Protocol error: too big bulk count string"),
            (&long_line, "Protocol error: too big inline request"),
        ];
        for (bytes, text) in cases {
            assert_eq!(decode_all(bytes, bytes.len()).unwrap_err(), text);
        }
    }

    #[test]
    fn several_large_arguments_do_not_add_up_past_the_bound() {
        let mut bytes = b"*3\r\n$16777216\r\n".to_vec();
        bytes.resize(bytes.len() + MAX_BULK_BYTES, b'a');
        bytes.extend_from_slice(b"\r\n$70000\r\n");
        assert!(decode_all(&bytes, bytes.len()).unwrap_err().contains("request exceeds"));
    }

    #[test]
    fn a_form_posted_by_a_web_page_is_not_obeyed() {
        let form = b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nPUBLISH /records x\r\n";
        assert_eq!(decode_all(form, form.len()).unwrap_err(), "the client speaks HTTP");
    }

    #[test]
    fn numbers_are_canonical() {
        for (text, number) in [("0", 0), ("-1", -1), ("42", 42), ("9223372036854775807", i64::MAX)] {
            assert_eq!(integer(text.as_bytes()), Some(number));
        }
        for text in ["", "-", "-0", "+1", "01", "1 ", "9223372036854775808", "1e3"] {
            assert_eq!(integer(text.as_bytes()), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(
            prop_oneof![Just(b'*'), Just(b'$'), Just(b'\r'), Just(b'\n'), Just(b'1'), Just(b'-'), any::<u8>()], 0..200),
            step in 1_usize..50,
        ) {
            let _ = decode_all(&bytes, step);
        }

        #[test]
        fn any_arguments_survive(arguments in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..8),
            step in 1_usize..50,
        ) {
            let mut bytes = format!("*{}\r\n", arguments.len()).into_bytes();
            for argument in &arguments {
                bytes.extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
                bytes.extend_from_slice(argument);
                bytes.extend_from_slice(b"\r\n");
            }
            prop_assert_eq!(decode_all(&bytes, step).unwrap(), vec![arguments]);
        }
    }
}
