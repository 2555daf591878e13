//! The cases of the Autobahn test suite (`autobahntestsuite` 25.10, sections 1 to 10), on a socket that is no TCP
//! stream. Each has the suite's number and strict outcome; sizes and repetitions of sections 9 and 10 are scaled down.
//! `tests/conformance/autobahn` runs the suite itself.

use std::ops::Range;

use self::driver::{
    BINARY_BEGINS, CONTINUES, Case, Cases, ENDS, Frame, PONG, TEXT_BEGINS, WHOLE, bytes, chopped, close, fragments, of,
    run,
};
use crate::harness::{BINARY, CLOSE, PING, TEXT, frame};

mod driver;
#[path = "../conformance/echo.rs"]
mod echo;

#[tokio::test]
async fn section_1_framing() {
    let mut cases = Cases::default();
    for (section, first, byte) in [(1, TEXT, b'*'), (2, BINARY, 0xfe)] {
        let lengths = [0, 125, 126, 127, 128, 65_535, 65_536, 65_536];
        for (number, length) in (1..).zip(lengths) {
            let message = [of(first, vec![byte; length])];
            cases.pass(format!("1.{section}.{number}"), if number == 8 { 997 } else { WHOLE }, &message, &message);
        }
    }
    run(cases).await;
}

#[tokio::test]
async fn section_2_pings_and_pongs() {
    let mut cases = Cases::default();
    let longest = vec![0xfe; 125];
    for (number, chop, data) in [
        ("2.1", WHOLE, &b""[..]),
        ("2.2", WHOLE, b"Hello, world!"),
        ("2.3", WHOLE, b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff"),
        ("2.4", WHOLE, &longest),
        ("2.6", 1, &longest),
    ] {
        cases.pass(number, chop, &[of(PING, data)], &[of(PONG, data)]);
    }
    cases.fail("2.5", WHOLE, &[of(PING, [0xfe; 126])], &[], 1002);
    cases.pass("2.7", WHOLE, &[of(PONG, "")], &[]);
    cases.pass("2.8", WHOLE, &[of(PONG, "unsolicited")], &[]);
    cases.pass("2.9", WHOLE, &[of(PONG, "unsolicited"), of(PING, "ping")], &[of(PONG, "ping")]);
    let [sent, answers] =
        [PING, PONG].map(|first| (0..10).map(|n| of(first, format!("payload-{n}"))).collect::<Vec<_>>());
    cases.pass("2.10", WHOLE, &sent, &answers);
    cases.pass("2.11", 1, &sent, &answers);
    run(cases).await;
}

#[tokio::test]
async fn section_3_reserved_bits() {
    let mut cases = Cases::default();
    let (text, ping) = (of(TEXT, "Hello, world!"), of(PING, ""));
    let with = |rsv: u8, (first, data): &Frame| (first | rsv << 4, data.clone());
    cases.fail("3.1", WHOLE, &[with(1, &text)], &[], 1002);
    for (number, chop, rsv) in [("3.2", WHOLE, 2), ("3.3", 19, 3), ("3.4", 1, 4)] {
        let sent = [text.clone(), with(rsv, &text), ping.clone()];
        cases.fail(number, chop, &sent, std::slice::from_ref(&text), 1002);
    }
    cases.fail("3.5", WHOLE, &[with(5, &of(BINARY, [0, 255, 254]))], &[], 1002);
    cases.fail("3.6", WHOLE, &[with(6, &of(PING, "Hello, world!"))], &[], 1002);
    cases.fail("3.7", WHOLE, &[with(7, &close(1000))], &[], 1002);
    run(cases).await;
}

#[tokio::test]
async fn section_4_opcodes() {
    let mut cases = Cases::default();
    let text = of(TEXT, "Hello, world!");
    for (section, opcodes) in [(1, 0x83..0x88), (2, 0x8b..0x90)] as [(u8, Range<u8>); 2] {
        for (number, opcode) in (1..).zip(opcodes) {
            let reserved = of(opcode, if number % 2 == 0 { "reserved opcode payload" } else { "" });
            let chop = if number == 5 { 1 } else { WHOLE };
            let after_text = [text.clone(), reserved, of(PING, "")];
            let (sent, answers) =
                if number < 3 { (&after_text[1..2], &[][..]) } else { (&after_text[..], &after_text[..1]) };
            cases.fail(format!("4.{section}.{number}"), chop, sent, answers, 1002);
        }
    }
    run(cases).await;
}

#[tokio::test]
async fn section_5_fragmentation() {
    let mut cases = Cases::default();
    let [ping, answer] = [PING, PONG].map(|first| vec![of(first, "ping payload")]);
    for (number, first) in [("5.1", PING & !ENDS), ("5.2", PONG & !ENDS)] {
        cases.fail(number, WHOLE, &fragments(first, [&b"fragment1"[..], b"fragment2"]), &[], 1002);
    }
    let text = fragments(TEXT_BEGINS, [&b"fragment1"[..], b"fragment2"]);
    let whole = [of(TEXT, "fragment1fragment2")];
    let pinged = [&text[..1], &ping, &text[1..]].concat();
    let stray = |first| [of(first, "non-continuation payload"), of(TEXT, "Hello, world!")];
    for (position, chop) in [(0, WHOLE), (1, 15), (2, 1)] {
        cases.pass(format!("5.{}", 3 + position), chop, &text, &whole);
        cases.pass(format!("5.{}", 6 + position), chop, &pinged, &[&answer[..], &whole].concat());
        cases.fail(format!("5.{}", 9 + position), chop, &stray(CONTINUES | ENDS), &[], 1002);
        cases.fail(format!("5.{}", 12 + position), chop, &stray(CONTINUES), &[], 1002);
    }
    let again = [&text[..], &[of(CONTINUES, "fragment3"), of(TEXT, "fragment4")]].concat();
    cases.fail("5.15", WHOLE, &again, &whole, 1002);
    for (number, first) in [("5.16", CONTINUES), ("5.17", CONTINUES | ENDS)] {
        cases.fail(number, WHOLE, &[of(first, "fragment1"), of(TEXT, "fragment2")], &[], 1002);
    }
    cases.fail("5.18", WHOLE, &[of(TEXT_BEGINS, "fragment1"), of(TEXT, "fragment2")], &[], 1002);
    let five = fragments(TEXT_BEGINS, (1..6).map(|_| &b"fragment"[..]));
    let pinged = [&five[..2], &ping, &five[2..4], &ping, &five[4..]].concat();
    for (number, chop) in [("5.19", WHOLE), ("5.20", 1)] {
        cases.pass(number, chop, &pinged, &[&answer[..], &answer, &[of(TEXT, "fragment".repeat(5))]].concat());
    }
    run(cases).await;
}

#[tokio::test]
async fn section_6_utf8() {
    let mut cases = Cases::default();
    cases.pass("6.1.1", WHOLE, &[of(TEXT, "")], &[of(TEXT, "")]);
    cases.pass("6.1.2", WHOLE, &fragments(TEXT_BEGINS, [&b""[..]; 3]), &[of(TEXT, "")]);
    cases.pass(
        "6.1.3",
        WHOLE,
        &fragments(TEXT_BEGINS, [&b""[..], b"middle frame payload", b""]),
        &[of(TEXT, "middle frame payload")],
    );
    let text = "Hello-\u{b5}@\u{df}\u{f6}\u{e4}\u{fc}\u{e0}\u{e1}-UTF-8!!";
    let greek = "\u{3ba}\u{1f79}\u{3c3}\u{3bc}\u{3b5}";
    for (number, text, cut) in [("6.2.1", text, 99), ("6.2.2", text, 9), ("6.2.3", text, 1), ("6.2.4", greek, 1)] {
        cases.pass(number, WHOLE, &fragments(TEXT_BEGINS, text.as_bytes().chunks(cut)), &[of(TEXT, text)]);
    }
    let invalid = [greek.as_bytes(), b"\xed\xa0\x80edited"].concat();
    cases.fail("6.3.1", WHOLE, &[of(TEXT, &invalid)], &[], 1007);
    cases.fail("6.3.2", WHOLE, &fragments(TEXT_BEGINS, invalid.chunks(1)), &[], 1007);
    for (number, middle, step) in
        [("6.4.1", &b"\xf4\x90\x80\x80"[..], 99), ("6.4.2", b"\xf4\x90", 1), ("6.4.3", b"\xf4\x90\x80\x80", 0)]
    {
        // The end of the message never comes.
        let begun = [greek.as_bytes(), middle].concat();
        let pieces = if step == 0 {
            let mut whole = frame(TEXT, [&begun[..], b"edited"].concat());
            whole.truncate(whole.len() - 6);
            vec![whole]
        } else {
            let mut frames = fragments(TEXT_BEGINS, begun.chunks(step));
            frames.last_mut().unwrap().0 &= !ENDS;
            vec![bytes(&frames)]
        };
        let more = pieces.iter().flat_map(|piece| chopped(piece, 1)).collect();
        for (chop, pieces) in [("", pieces), (" in octets (6.4.4)", more)] {
            let (number, expected) = (format!("{number}{chop}"), vec![close(1007)]);
            cases.0.push(Case { number, pieces, closes: false, expected });
        }
    }
    let valid: [(&str, &[&[u8]]); 6] = [
        ("6.5", &[greek.as_bytes(), b"\xce\xba\xe1\xbd\xb9"]),
        ("6.6", &[b"\xce\xba", b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5"]),
        ("6.7", &[b"\x00", b"\xc2\x80", b"\xe0\xa0\x80", b"\xf0\x90\x80\x80"]),
        ("6.9", &[b"\x7f", b"\xdf\xbf", b"\xef\xbf\xbf", b"\xf4\x8f\xbf\xbf"]),
        ("6.11", &[b"\xed\x9f\xbf", b"\xee\x80\x80", b"\xef\xbf\xbd"]),
        ("6.22 and 6.23", &[b"\xef\xbf\xbe", b"\xf0\x9f\xbf\xbe", b"\xf4\x8f\xbf\xbe", b"\xef\xbf\xbd"]),
    ];
    for (number, texts) in valid {
        for text in texts {
            cases.pass(format!("{number} {text:x?}"), WHOLE, &[of(TEXT, text)], &[of(TEXT, text)]);
        }
    }
    let invalid: [(&str, &[&[u8]]); 13] = [
        ("6.6", &[b"\xce", b"\xce\xba\xe1", b"\xce\xba\xe1\xbd", b"\xce\xba\xe1\xbd\xb9\xcf"]),
        ("6.8", &[b"\xf8\x88\x80\x80\x80", b"\xfc\x84\x80\x80\x80\x80"]),
        ("6.10", &[b"\xf7\xbf\xbf\xbf", b"\xfb\xbf\xbf\xbf\xbf", b"\xfd\xbf\xbf\xbf\xbf\xbf"]),
        ("6.11", &[b"\xf4\x90\x80\x80"]),
        ("6.12", &[b"\x80", b"\xbf", b"\x80\xbf", b"\x80\xbf\x80\xbf\x80\xbf", b"\x80\x81\xbe\xbf"]),
        ("6.13", &[b"\xc0 \xc1 \xdf ", b"\xe0 \xef ", b"\xf0 \xf7 ", b"\xf8 \xfb ", b"\xfc \xfd "]),
        ("6.14", &[b"\xc0", b"\xe0\x80", b"\xf0\x80\x80", b"\xf8\x80\x80\x80", b"\xdf", b"\xef\xbf", b"\xf7\xbf\xbf"]),
        ("6.15", &[b"\xc0\xe0\x80\xf0\x80\x80\xf8\x80\x80\x80"]),
        ("6.16", &[b"\xfe", b"\xff", b"\xfe\xfe\xff\xff"]),
        ("6.17", &[b"\xc0\xaf", b"\xe0\x80\xaf", b"\xf0\x80\x80\xaf", b"\xf8\x80\x80\x80\xaf"]),
        ("6.18", &[b"\xc1\xbf", b"\xe0\x9f\xbf", b"\xf0\x8f\xbf\xbf", b"\xf8\x87\xbf\xbf\xbf"]),
        ("6.19", &[b"\xc0\x80", b"\xe0\x80\x80", b"\xf0\x80\x80\x80", b"\xf8\x80\x80\x80\x80"]),
        ("6.20 and 6.21", &[b"\xed\xa0\x80", b"\xed\xad\xbf", b"\xed\xbf\xbf", b"\xed\xa0\x80\xed\xb0\x80"]),
    ];
    for (number, texts) in invalid {
        for text in texts {
            cases.fail(format!("{number} {text:x?}"), WHOLE, &[of(TEXT, text)], &[], 1007);
        }
    }
    run(cases).await;
}

#[tokio::test]
async fn section_7_close() {
    let mut cases = Cases::default();
    let text = of(TEXT, "Hello World!");
    cases.pass("7.1.1", WHOLE, &[text.clone(), close(1000)], std::slice::from_ref(&text));
    cases.pass("7.1.2", WHOLE, &[close(1000), close(1000)], &[]);
    cases.pass("7.1.3", WHOLE, &[close(1000), of(PING, "")], &[]);
    cases.pass("7.1.4", WHOLE, &[close(1000), text], &[]);
    let fragments = fragments(TEXT_BEGINS, [&b"fragment1"[..], b"fragment2"]);
    cases.pass("7.1.5", WHOLE, &[&fragments[..1], &[close(1000)], &fragments[1..]].concat(), &[]);
    // Scaled, so that the socket takes it before the close.
    let long = of(TEXT, "BAsd7&jh23".repeat(2_000));
    let sent = [long.clone(), close(1000), of(PING, "")];
    cases.pass("7.1.6", WHOLE, &sent, &[long]);
    cases.add("7.3.1", WHOLE, &[of(CLOSE, "")], false, &[of(CLOSE, "")]);
    cases.fail("7.3.2", WHOLE, &[of(CLOSE, "a")], &[], 1002);
    let with = |reason: &[u8]| of(CLOSE, [&1000u16.to_be_bytes(), reason].concat());
    cases.pass("7.3.3", WHOLE, &[with(b"")], &[]);
    cases.pass("7.3.4", WHOLE, &[with(b"Hello World!")], &[]);
    cases.pass("7.3.5", WHOLE, &[with(&[b'*'; 123])], &[]);
    cases.fail("7.3.6", WHOLE, &[with(&[b'*'; 124])], &[], 1002);
    cases.fail("7.5.1", WHOLE, &[with(b"\xce\xba\xe1\xbd\xb9\xed\xa0\x80edited")], &[], 1007);
    let valid = [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999];
    for (number, code) in (1..).zip(valid) {
        cases.add(format!("7.7.{number}"), WHOLE, &[close(code)], false, &[close(code)]);
    }
    let invalid = [0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999];
    let numbers = (1..10).map(|number| format!("7.9.{number}"));
    let out_of_range = [("7.13.1".to_owned(), 5000), ("7.13.2".to_owned(), 65_535)];
    for (number, code) in numbers.zip(invalid).chain(out_of_range) {
        cases.fail(number, WHOLE, &[close(code)], &[], 1002);
    }
    run(cases).await;
}

#[tokio::test]
async fn sections_9_and_10_limits() {
    let mut cases = Cases::default();
    for (section, whole, begins) in [(0, TEXT, TEXT_BEGINS), (1, BINARY, BINARY_BEGINS)] {
        for (number, length) in (1..).zip([1 << 12, 1 << 14, 1 << 16, 1 << 17]) {
            let message = [of(whole, vec![b'*'; length])];
            cases.pass(format!("9.{}.{number}", 1 + section), WHOLE, &message, &message);
        }
        let message = [of(whole, vec![b'*'; 1 << 16])];
        for (number, length) in (1..).zip([64, 256, 1 << 10, 1 << 12, 1 << 14, 1 << 16]) {
            let fragments = fragments(begins, message[0].1.chunks(length));
            cases.pass(format!("9.{}.{number}", 3 + section), WHOLE, &fragments, &message);
        }
        for (number, chop) in (1..).zip([64, 128, 256, 512, 1024, 2048]) {
            cases.pass(format!("9.{}.{number}", 5 + section), chop, &message, &message);
        }
        for (number, length) in (1..).zip([0, 16, 64, 256, 1024, 4096]) {
            let messages = vec![of(whole, vec![b'*'; length]); 20];
            cases.pass(format!("9.{}.{number}", 7 + section), WHOLE, &messages, &messages);
        }
    }
    let message = [of(TEXT, vec![b'*'; 65_536])];
    let fragments = fragments(TEXT_BEGINS, message[0].1.chunks(1_300));
    cases.pass("10.1.1", WHOLE, &fragments, &message);
    run(cases).await;
}
