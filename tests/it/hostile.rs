//! Clients that break every rule. Each is refused as it should be, and meanwhile a browser gets every message.

mod http;

use std::cell::Cell;

use crate::harness::{
    BINARY, Browser, CLOSE, Ended, PING, Polling, Redis, Server, TEXT, WebSocket, frame, header, record, start_with_ada,
};

/// Largest message, as the server announces it.
const LIMIT: usize = 1_000_000;

/// Runs the attack while a browser gets one message after the other, and some more afterwards.
async fn withstand(attack: impl AsyncFnOnce(&Server)) {
    let (redis, server, mut witness) = start_with_ada(&[1]).await;
    let over = Cell::new(false);
    let attacked = async {
        attack(&server).await;
        over.set(true);
    };
    let (published, ()) = tokio::join!(serve_while(&redis, &mut witness, || !over.get()), attacked);
    let mut left = 20;
    let more = serve_while(&redis, &mut witness, || {
        left -= 1;
        left > 0
    });
    assert!(more.await > 0 && published > 0);
    assert_eq!(server.readiness().await, 200);
    server.stop().await;
}

/// Publishes numbered records, each of which the witness must get before the next.
async fn serve_while(redis: &Redis, witness: &mut Browser, mut more: impl FnMut() -> bool) -> usize {
    let mut number = 0;
    while number == 0 || more() {
        redis.records(record("group-1", number)).await;
        assert_eq!(witness.number().await, number);
        number += 1;
    }
    number
}

#[tokio::test]
async fn frames_against_the_protocol_are_answered_with_their_code() {
    let close = |data: &[u8]| frame(CLOSE, data);
    let cases: [(&str, Vec<u8>, u16); 28] = [
        ("unmasked", vec![TEXT, 2, b'4', b'0'], 1002),
        ("unmasked and empty", vec![TEXT, 0], 1002),
        ("first reserved bit", frame(0xc1, "40"), 1002),
        ("second reserved bit", frame(0xa1, "40"), 1002),
        ("third reserved bit", frame(0x91, "40"), 1002),
        ("opcode 3", frame(0x83, "x"), 1002),
        ("opcode 7", frame(0x87, "x"), 1002),
        ("opcode 11", frame(0x8b, "x"), 1002),
        ("opcode 15", frame(0x8f, "x"), 1002),
        ("continuation of nothing", frame(0x80, "x"), 1002),
        ("text inside of a fragmented text", [frame(0x01, "4"), frame(TEXT, "40")].concat(), 1002),
        ("binary inside of a fragmented text", [frame(0x01, "4"), frame(BINARY, "x")].concat(), 1002),
        ("fragmented ping", frame(0x09, "x"), 1002),
        ("fragmented close", frame(0x08, ""), 1002),
        ("long ping", frame(PING, [b'x'; 126]), 1002),
        ("long close", frame(CLOSE, [3; 126]), 1002),
        ("close with half a code", close(&[3]), 1002),
        ("close with a code of no frame", close(&1005_u16.to_be_bytes()), 1002),
        ("close with code 0", close(&[0, 0]), 1002),
        ("close with code 5000", close(&5000_u16.to_be_bytes()), 1002),
        ("close with a reason that is no text", close(&[3, 232, 0xff]), 1007),
        ("text that is no text", frame(TEXT, b"4\xff"), 1007),
        ("text cut in the middle of a character", frame(TEXT, b"4\xe2\x82"), 1007),
        ("a surrogate", frame(TEXT, b"4\xed\xa0\x80"), 1007),
        ("fragments that are no text together", [frame(0x01, b"4\xe2"), frame(0x80, b"x")].concat(), 1007),
        ("one byte too long", header(TEXT, LIMIT as u64 + 1), 1009),
        ("as long as can be said", header(BINARY, u64::MAX), 1009),
        ("one byte too long in fragments", [frame(0x02, vec![1; LIMIT]), frame(0x80, "x")].concat(), 1009),
    ];
    withstand(async |server| {
        for (name, bytes, code) in cases {
            for mut socket in [WebSocket::open(server).await, WebSocket::connected(server).await] {
                socket.write(&bytes).await;
                assert_eq!(socket.end().await, Ended::Closed(Some(code)), "{name}");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn the_longest_message_is_taken() {
    withstand(async |server| {
        let event = |length: usize| format!("42[\"x\",\"{}\"]", "a".repeat(length - 10));
        let mut socket = WebSocket::connected(server).await;
        socket.send(event(LIMIT)).await;
        let whole = event(LIMIT);
        let (half, rest) = whole.split_at(LIMIT / 2);
        socket.write([frame(0x01, half), frame(PING, "between"), frame(0x00, ""), frame(0x80, rest)].concat()).await;
        assert!(socket.is_served().await);
    })
    .await;
}

#[tokio::test]
async fn packets_that_make_no_sense_end_the_connection() {
    let deep = format!("42[\"x\",{}", "[".repeat(400_000));
    let deep_first = format!("42{}", "[".repeat(400_000));
    let deep_connect = format!("40{}", "{\"a\":".repeat(10_000));
    let fresh = [
        "",
        "x",
        "9",
        "0",
        "0{}",
        "2",
        "2probe",
        "5",
        "4",
        "4x",
        "49",
        "47",
        "42",
        "42[\"x\"]",
        "41",
        "43[1]",
        "40[]",
        "40{",
        "40null",
        "40\"x\"",
        "40{}{}",
        "44{}",
        "45",
        "45-",
        "451-",
        "451-[\"x\"]4",
        "4\u{1e}",
        "\u{1e}",
        "40\u{1e}42",
        &deep_connect,
    ];
    let connected = [
        "40",
        "42[",
        "42[]",
        "42{}",
        "42null",
        "42[null]",
        "42[[]]",
        "42[{}]",
        "42[\"x\"",
        "42[\"x\"]x",
        "42[\"x\",]",
        "42[\"connect\"]",
        "42[\"disconnect\"]",
        "42[\"connect_error\"]",
        "42[\"newListener\"]",
        "42-1[\"x\"]",
        "421.5[\"x\"]",
        "43",
        "43{}",
        "43[",
        "44",
        "44{\"message\":\"x\"}",
        "45[\"x\"]",
        "45x-[\"x\"]",
        "45999-[\"x\"]",
        "4599999999999999999999-[\"x\"]",
        "45-1-[\"x\"]",
        "46[\"x\"]",
        "48",
        "42/other,[\"x\"]",
        "41/other,",
        "43/other,1[]",
        &deep,
        &deep_first,
    ];
    withstand(async |server| {
        for packet in fresh {
            let mut socket = WebSocket::open(server).await;
            socket.send(packet).await;
            assert_eq!(socket.end().await, Ended::Closed(None), "{packet:.40?}");
        }
        for packet in connected {
            let mut socket = WebSocket::connected(server).await;
            socket.send(packet).await;
            assert_eq!(socket.end().await, Ended::Closed(None), "{packet:.40?}");
        }
    })
    .await;
}

#[tokio::test]
async fn well_formed_packets_do_not_end_the_connection() {
    withstand(async |server| {
        let mut socket = WebSocket::connected(server).await;
        for packet in [
            "42[\"x\"]",
            "42[1]",
            "427[\"x\"]",
            "4218446744073709551615[\"x\"]",
            "42[\"x\",{\"a\":[1.0e5,null]}]",
            "430[1]",
            "42[\"\"]",
            "3",
            "42/,[\"x\"]",
            "42[\"x\",\"\\ud800\"]",
        ] {
            socket.send(packet).await;
            assert!(socket.is_served().await, "{packet}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_namespace_that_is_not_there_is_refused_whatever_its_name() {
    withstand(async |server| {
        let mut socket = WebSocket::open(server).await;
        for name in ["/admin", "/../../etc/passwd", "/\u{1f600}", "/a?token=b", "/ ", &format!("/{}", "n".repeat(200))]
        {
            socket.send(format!("40{name},")).await;
            let answer = socket.text().await;
            let refused = answer.starts_with("44/") && answer.ends_with(r#",{"message":"Invalid namespace"}"#);
            assert!(refused, "{name:.40}: {answer:.100}");
        }
        socket.send("40").await;
        assert!(socket.text().await.starts_with("40{"));
        // A name that long is not repeated in the answer.
        socket.write(frame(TEXT, format!("40/{},", "n".repeat(60_000)))).await;
        assert_eq!(socket.end().await, Ended::Closed(None));
    })
    .await;
}

#[tokio::test]
async fn nonsense_to_come_back_with_makes_a_new_session() {
    withstand(async |server| {
        let long = "p".repeat(60_000);
        let deep = "[".repeat(100);
        for data in [
            format!(r#"{{"pid":"{long}"}}"#),
            format!(r#"{{"pid":"x","offset":"{long}"}}"#),
            format!(r#"{{"channel_token":"{long}"}}"#),
            format!(r#"{{"pid":{deep}{}}}"#, deep.replace('[', "]")),
            r#"{"pid":7,"offset":{"a":1}}"#.to_owned(),
            r#"{"pid":"\u0000","offset":"\ud83d\ude00"}"#.to_owned(),
            r#"{"pid":"","offset":"","channel_token":""}"#.to_owned(),
            r#"{"offset":"ffffffff.18446744073709551615.ffffffffffffffff"}"#.to_owned(),
        ] {
            let mut socket = WebSocket::open(server).await;
            socket.send(format!("40{data}")).await;
            let answer = socket.text().await;
            assert!(answer.starts_with("40{"), "{data:.60}: {answer:.60}");
        }
    })
    .await;
}

#[tokio::test]
async fn floods_delay_no_other_client() {
    withstand(async |server| {
        let mut events = WebSocket::connected(server).await;
        for _ in 0..10 {
            events.write(frame(TEXT, "42[\"x\",{\"a\":1}]").repeat(1_000)).await;
        }
        assert!(events.is_served().await);

        let mut pings = WebSocket::connected(server).await;
        pings.write(frame(PING, "x").repeat(10_000)).await;
        assert!(pings.is_served().await);

        let mut namespaces = WebSocket::open(server).await;
        namespaces.write(frame(TEXT, "40/x,").repeat(10_000)).await;
        namespaces.closed().await;

        let mut connects = WebSocket::open(server).await;
        for _ in 0..1_000 {
            connects.write([frame(TEXT, "40"), frame(TEXT, "41")].concat()).await;
        }
        // CONNECT right after a leave may overtake its lookup, and is refused then.
        connects.finish().await;
        connects.end().await;
    })
    .await;
}

#[tokio::test]
async fn attachments_are_taken_as_announced() {
    let announced = |count: usize| {
        let places: Vec<_> = (0..count).map(|number| format!(r#"{{"_placeholder":true,"num":{number}}}"#)).collect();
        frame(TEXT, format!(r#"45{count}-["x",{}]"#, places.join(",")))
    };
    withstand(async |server| {
        let mut socket = WebSocket::connected(server).await;
        for (count, size) in [(1, 0), (3, 100_000), (100, 1_000)] {
            socket.write([announced(count), frame(BINARY, vec![1; size]).repeat(count)].concat()).await;
            assert!(socket.is_served().await, "{count} of {size}");
        }
        // The last attachment never comes.
        socket.write([announced(100), frame(BINARY, "x").repeat(99)].concat()).await;
        assert!(socket.is_served().await);

        for (name, bytes) in [
            ("too many", announced(10_000)),
            ("not announced", frame(BINARY, "x")),
            ("one more", [announced(2), frame(BINARY, "x").repeat(3)].concat()),
            ("an event in between", [announced(1), frame(TEXT, "42[\"x\"]")].concat()),
            ("announced twice", announced(1).repeat(2)),
        ] {
            let mut socket = WebSocket::connected(server).await;
            socket.write(&bytes).await;
            assert_eq!(socket.end().await, Ended::Closed(None), "{name}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_malformed_probe_leaves_the_session_polling() {
    withstand(async |server| {
        for bytes in
            [frame(TEXT, "2"), frame(TEXT, "5"), frame(TEXT, "x"), frame(BINARY, "x"), vec![TEXT, 0], frame(CLOSE, "")]
        {
            let session = Polling::connect(server, "nobody").await;
            let mut socket = session.websocket().await;
            socket.write(bytes).await;
            socket.closed().await;
            assert!(session.is_open().await);
        }
    })
    .await;
}
