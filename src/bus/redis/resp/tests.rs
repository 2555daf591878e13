//! Replies as Redis writes them, however they are cut, and bytes that are none.

use proptest::{collection::vec, prelude::*};

use super::*;

const MAX_PAYLOAD: usize = 8;

/// The replies in bytes that arrive in pieces of `step`, and whether all of it is well formed.
fn replies(text: &str, step: usize) -> (Vec<Reply>, bool) {
    let (mut decoder, mut source, mut replies) = (ReplyDecoder::new(MAX_PAYLOAD), BytesMut::new(), Vec::new());
    for piece in text.as_bytes().chunks(step) {
        source.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut source) {
                Ok(Some(reply)) => replies.push(reply),
                Ok(None) => break,
                Err(NotRedis) => return (replies, false),
            }
        }
    }
    (replies, true)
}

fn message(channel: &str, payload: &str) -> Reply {
    let [channel, payload] = [channel, payload].map(|text| Bytes::copy_from_slice(text.as_bytes()));
    Reply::Message { channel, payload: Some(payload).filter(|payload| payload.len() <= MAX_PAYLOAD) }
}

fn text(text: &'static str) -> Reply {
    Reply::Text(Bytes::from_static(text.as_bytes()))
}

fn error(text: &'static str) -> Reply {
    Reply::Error(Bytes::from_static(text.as_bytes()))
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

/// The other types, and pushes that are of no use here.
const TYPES: &str = ":-7\r\n,1.5e3\r\n,inf\r\n(3492890328409238509324850943850943825024385\r\n#t\r\n#f\r\n_\r\n\
                     $-1\r\n*-1\r\n*0\r\n!9\r\nERR a\r\nbc\r\n~2\r\n+a\r\n*1\r\n$-1\r\n\
                     |1\r\n+ttl\r\n:3600\r\n*2\r\n|1\r\n+key\r\n,0.1\r\n:1\r\n:2\r\n\
                     *2\r\n*2\r\n$1\r\na\r\n=5\r\ntxt:b\r\n!3\r\nERR\r\n\
                     |1\r\n+a\r\n#t\r\n>3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\nb\r\n\
                     >2\r\n$10\r\ninvalidate\r\n*1\r\n$3\r\nkey\r\n>1\r\n+other\r\n>0\r\n$3\r\nend\r\n";

#[test]
fn replies_are_read_however_they_are_cut() {
    let talk = vec![
        Reply::Subscribed,
        message("/records", "{\r\n\"a\""),
        Reply::Other,
        message("/records", "*3\r\n$7\r\nx"),
        message("/n", ""),
        Reply::Other,
        error("NOPERM no permission"),
    ];
    let talk3 = vec![
        Reply::Other,
        Reply::Subscribed,
        Reply::Subscribed,
        text("a\r\nb:"),
        text("\r\n"),
        message("/records", "x"),
        message("chatbot/a", "\r\n"),
        message("chatbot/a", "123456789"),
        Reply::Other,
    ];
    let mut types = vec![Reply::Other; 10];
    types.push(error("ERR a\r\nbc"));
    types.extend(vec![Reply::Other; 3]);
    types.extend([message("a", "b"), text("end")]);
    for (wire, expected) in [(TALK, talk), (TALK3, talk3), (TYPES, types)] {
        for step in 1..wire.len() {
            assert_eq!(replies(wire, step), (expected.clone(), true), "in pieces of {step}");
        }
    }
}

#[test]
fn a_text_that_is_too_long_is_left_out() {
    for (length, text) in [(MAX_TEXT + 1, String::new()), (MAX_TEXT, "x".repeat(MAX_TEXT - FORMAT))] {
        let wire = format!("={length}\r\ntxt:{}\r\n+PONG\r\n", "x".repeat(length - FORMAT));
        assert_eq!(replies(&wire, 10_000), (vec![Reply::Text(text.into()), Reply::Other], true));
    }
}

#[test]
fn what_is_passed_over_has_bounds_on_all_its_levels() {
    let nested = |depth| format!("{}:1\r\n", "*1\r\n".repeat(depth));
    let flat = |entries| format!("%{entries}\r\n{}", ":1\r\n".repeat(2 * entries));
    let long =
        |texts: usize| format!("*{texts}\r\n{}", format!("$100000\r\n{}\r\n", "x".repeat(100_000)).repeat(texts));
    for (text, well_formed) in [
        (nested(MAX_ELEMENTS), true),
        (nested(MAX_ELEMENTS + 1), false),
        (nested(100_000), false),
        ("|1\r\n+a\r\n".repeat(MAX_ELEMENTS), false),
        (flat((MAX_ELEMENTS - 1) / 2), true),
        (flat(MAX_ELEMENTS / 2), false),
        (long(2), true),
        (long(3), false),
    ] {
        assert_eq!(replies(&text, 1_000).1, well_formed, "{}", &text[..20]);
    }
}

#[test]
fn what_is_no_reply_is_found_out() {
    let long = format!("-{}", "x".repeat(MAX_LINE));
    for text in [
        "HTTP/1.1 400 Bad Request\r\n",
        "\r\n",
        "*3\n$7\r\n",
        "*3\rx",
        "*3\r\n$11\r\nunsubscribe\r\n$1\r\na\r\n",
        "*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\nabc",
        "*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$18446744073709551615\r\n",
        "*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$18446744073709551616\r\n",
        "*3\r\n$7\r\nmessage\r\n$-1\r\n",
        "*3\r\n$7\r\nmessage\r\n:1\r\n",
        "*3\r\n$7\r\nmessage\r\n$2000\r\n",
        "*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\nx1\r\n",
        "*2\r\n$1000000\r\n",
        "*x\r\n",
        "*-2\r\n",
        "*?\r\n",
        "$+1\r\n",
        "%18446744073709551615\r\n",
        "%9223372036854775808\r\n",
        "%-1\r\n",
        "|0\r\n|0\r\n",
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
