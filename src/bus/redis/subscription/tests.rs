//! A subscription over bytes in memory, with time that passes as the test says.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    time::{advance, sleep},
};

use super::*;
use crate::bus::Gap;

const HELLO: &str = "%1\r\n$5\r\nproto\r\n:3\r\n";
const CHANNELS: &str = ">3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n>3\r\n$9\r\nsubscribe\r\n$1\r\nb\r\n:2\r\n";
const PATTERN: &str = ">3\r\n$10\r\npsubscribe\r\n$1\r\nc\r\n:3\r\n";
const NOPERM: &str = "-NOPERM no permission\r\n";

/// Subscribed by a server that speaks RESP2 only.
const RESP2: &str = "-ERR unknown command 'HELLO'\r\n\
                     *3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n*3\r\n$9\r\nsubscribe\r\n$1\r\nb\r\n:2\r\n\
                     *3\r\n$10\r\npsubscribe\r\n$1\r\nc\r\n:3\r\n\
                     -ERR Can't execute 'info'\r\n-ERR Can't execute 'info'\r\n-ERR Can't execute 'client'\r\n";

fn text(text: &str) -> String {
    format!("={}\r\ntxt:{text}\r\n", text.len() + 4)
}

fn stats(publishes: u64) -> String {
    text(&format!("# Commandstats\r\ncmdstat_publish:calls={publishes},usec=1\r\n"))
}

fn process() -> String {
    text("# Server\r\nrun_id:abc\r\nuptime_in_seconds:5\r\n") + &text("id=3 addr=/socket:0 laddr=/socket:0")
}

fn message(channel: &str, payload: &str) -> String {
    format!(">3\r\n$7\r\nmessage\r\n${}\r\n{channel}\r\n${}\r\n{payload}\r\n", channel.len(), payload.len())
}

fn granted() -> String {
    granted_at(7)
}

/// Everything is granted by a Redis that has counted so far.
fn granted_at(publishes: u64) -> String {
    [HELLO, CHANNELS, PATTERN, &stats(publishes), &process()].concat()
}

/// One that is given these answers, and the server's side of it with nothing unread.
async fn subscribed(answers: &str) -> (Subscription, DuplexStream) {
    let (client, mut server) = duplex(1 << 25);
    server.write_all(answers.as_bytes()).await.unwrap();
    let subscription = Subscription::over(Box::new(client), Ends::Unix).await.unwrap();
    let mut asked = vec![0; 1024];
    let length = server.read(&mut asked).await.unwrap();
    let mut expected = redis::cmd("HELLO").arg(3).get_packed_command();
    expected.extend(redis::cmd("SUBSCRIBE").arg(&[RECORDS, SYSTEM_NOTICE]).get_packed_command());
    expected.extend(redis::cmd("PSUBSCRIBE").arg(BOT).get_packed_command());
    expected.extend(info("commandstats"));
    expected.extend(info("server"));
    expected.extend(redis::cmd("CLIENT").arg("INFO").get_packed_command());
    assert_eq!(asked[..length], expected);
    (subscription, server)
}

fn info(section: &str) -> Vec<u8> {
    redis::cmd("INFO").arg(section).get_packed_command()
}

fn ping() -> Vec<u8> {
    redis::cmd("PING").get_packed_command()
}

/// Waits until exactly this is asked; when that was.
async fn asked(server: &mut DuplexStream, expected: &[u8]) -> Instant {
    let mut asked = vec![0; expected.len()];
    server.read_exact(&mut asked).await.unwrap();
    assert_eq!(asked, expected, "{}", asked.escape_ascii());
    Instant::now()
}

async fn say(server: &mut DuplexStream, words: &str) {
    server.write_all(words.as_bytes()).await.unwrap();
}

/// The next event must be a message with this payload.
async fn payload(subscription: &mut Subscription) -> Bytes {
    loop {
        match subscription.next().await.unwrap() {
            Heard::Inbound(Inbound::Message { payload: Some(payload), .. }) => return payload,
            Heard::Inbound(Inbound::Moved(_)) => {}
            other => panic!("no message: {other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn every_answer_is_a_sign_of_life_in_either_protocol() {
    for (answers, question, replies) in [
        (granted(), info("commandstats"), [&*stats(7), &stats(8), NOPERM, "-BUSY a script\r\n"]),
        (RESP2.to_owned(), ping(), ["*2\r\n$4\r\npong\r\n$0\r\n\r\n", NOPERM, "-BUSY a script\r\n", "+PONG\r\n"]),
        (
            [HELLO, CHANNELS, NOPERM, NOPERM, NOPERM, NOPERM].concat(),
            ping(),
            ["+PONG\r\n", NOPERM, "+PONG\r\n", NOPERM],
        ),
    ] {
        let (mut subscription, mut server) = subscribed(&answers).await;
        let mut last = Instant::now();
        for reply in replies {
            let serve = async {
                let now = asked(&mut server, &question).await;
                assert_eq!(now - last, ASK_INTERVAL);
                sleep(SILENCE_TIMEOUT * 9 / 10).await;
                last = Instant::now();
                say(&mut server, reply).await;
                say(&mut server, &message("/records", "end")).await;
            };
            let (heard, ()) = tokio::join!(payload(&mut subscription), serve);
            assert_eq!(heard, "end", "{reply}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_position_that_others_move_is_asked_for_sooner_and_at_the_end() {
    let (mut subscription, mut server) = subscribed(&granted()).await;
    let mut last = Instant::now();
    for (count, pause) in [(9, ASK_INTERVAL), (11, ASK_INTERVAL), (13, ASK_SOON), (14, ASK_SOON), (15, ASK_INTERVAL)] {
        let serve = async {
            let now = asked(&mut server, &info("commandstats")).await;
            assert_eq!(now - last, pause, "{count}");
            last = now;
            say(&mut server, &(stats(count) + &message("/records", "end"))).await;
        };
        let (heard, ()) = tokio::join!(payload(&mut subscription), serve);
        assert_eq!(heard, "end", "{count}");
    }
    subscription.drain();
    say(&mut server, &(stats(19) + "+PONG\r\n")).await;
    let moved = Inbound::Moved(Position { count: 19, ..subscription.before().unwrap() });
    assert_eq!(subscription.next().await.unwrap(), Heard::Inbound(moved));
    assert_eq!(subscription.next().await.unwrap(), Heard::Inbound(Inbound::Drained));
}

#[tokio::test(start_paused = true)]
async fn a_busy_connection_is_asked_as_well() {
    let (mut subscription, mut server) = subscribed(&granted()).await;
    let (started, mut questions) = (Instant::now(), 0);
    while started.elapsed() < ASK_INTERVAL * 3 {
        say(&mut server, &message("/records", "x")).await;
        payload(&mut subscription).await;
        advance(ASK_INTERVAL / 10).await;
        // Writing needs another read.
        say(&mut server, &message("/records", "y")).await;
        payload(&mut subscription).await;
        let mut question = vec![0; 1024];
        tokio::select! {
            biased;
            length = server.read(&mut question) => {
                assert_eq!(question[..length.unwrap()], info("commandstats"));
                say(&mut server, &stats(0)).await;
                questions += 1;
            }
            () = std::future::ready(()) => {}
        }
    }
    assert_eq!(questions, 3);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_falls_silent_is_read_on() {
    let (mut subscription, mut server) = subscribed(&granted()).await;
    let started = Instant::now();
    assert_eq!(subscription.next().await.unwrap(), Heard::Silent);
    assert_eq!(started.elapsed(), ASK_INTERVAL + SILENCE_TIMEOUT);
    let late = async {
        sleep(ASK_INTERVAL * 100).await;
        assert!(subscription.silent);
        asked(&mut server, &info("commandstats")).await;
        // Half a message is life.
        let (first, second) = (message("/records", "late"), stats(8));
        say(&mut server, &first[..10]).await;
        assert_eq!(subscription.next().await.unwrap(), Heard::Alive);
        assert!(!subscription.silent);
        say(&mut server, &first[10..]).await;
        assert_eq!(payload(&mut subscription).await, "late");
        say(&mut server, &second).await;
        // The question was answered, so that silence is asked about again.
        let resumed = Instant::now();
        assert_eq!(subscription.next().await.unwrap(), Heard::Silent);
        assert!(resumed.elapsed() >= SILENCE_TIMEOUT);
    };
    late.await;
}

#[tokio::test(start_paused = true)]
async fn there_is_time_to_answer_even_when_this_process_stood_still() {
    let (mut subscription, mut server) = subscribed(&granted()).await;
    let serve = async {
        advance(ASK_INTERVAL * 10).await;
        asked(&mut server, &info("commandstats")).await;
        sleep(SILENCE_TIMEOUT / 2).await;
        say(&mut server, &stats(7)).await;
        say(&mut server, &message("/records", "end")).await;
    };
    assert_eq!(tokio::join!(payload(&mut subscription), serve).0, "end");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_told() {
    let (client, mut server) = duplex(1 << 16);
    say(&mut server, &format!("{HELLO}-DENIED \x1b{}\r\n", "x".repeat(1_058))).await;
    let refused = Subscription::over(Box::new(client), Ends::Unix).await.err().unwrap().to_string();
    assert!(refused.contains(r"DENIED \x1bxxx"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn what_limits_the_proof_is_known() {
    let text = |words: &str| text(words);
    for (answers, limit) in [
        (granted(), None),
        (RESP2.to_owned(), Some("HELLO 3")),
        ([HELLO, CHANNELS, PATTERN, NOPERM, NOPERM, NOPERM].concat(), Some("+info")),
        ([HELLO, CHANNELS, PATTERN, &stats(7), NOPERM, NOPERM].concat(), Some("does not count")),
        ([HELLO, CHANNELS, PATTERN, &text("# Commandstats\r\n"), &process()].concat(), Some("does not count")),
        ([HELLO, CHANNELS, NOPERM, &stats(7), &process()].concat(), Some("&chatbot/*")),
    ] {
        let (subscription, _server) = subscribed(&answers).await;
        let told = subscription.limit();
        assert_eq!(told.is_some(), limit.is_some(), "{told:?}");
        assert!(told.unwrap_or_default().contains(limit.unwrap_or_default()), "{told:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn messages_before_the_first_answers_come_after_these_and_are_accounted_for() {
    let bot = ">4\r\n$8\r\npmessage\r\n$9\r\nchatbot/*\r\n$15\r\nchatbot/publish\r\n$1\r\nx\r\n";
    let early = [&message("/records", "1"), PATTERN, bot, &message("/records", "2"), &stats(10)].concat();
    let answers = [HELLO, CHANNELS, &early, &message("/records", "3"), &process()].concat();
    let (mut second, mut server) = subscribed(&answers).await;
    let (first, _server) = subscribed(&granted()).await;
    assert_eq!(second.ledger.gap_after(&first.ledger, None), Gap::Empty, "10 are 7 and 3 early ones");
    say(&mut server, &[bot, &message("/system_notice", "4"), bot].concat()).await;
    for expected in ["1", "2", "3", "4"] {
        assert_eq!(payload(&mut second).await, expected);
    }
    let (mut third, _server) = subscribed(&granted_at(13)).await;
    second.drain();
    say(&mut server, &(stats(14) + "+PONG\r\n")).await;
    assert_eq!(second.next().await.unwrap(), Heard::Inbound(Inbound::Drained));
    assert_eq!(third.ledger.gap_after(&second.ledger, None), Gap::Possible, "10, 1 since, 2 for the bot and itself");
    let (mut third, _server) = subscribed(&granted_at(14)).await;
    assert_eq!(third.ledger.gap_after(&second.ledger, None), Gap::Empty);
}

#[tokio::test(start_paused = true)]
async fn more_early_messages_than_are_kept_make_it_do_without_the_proof() {
    let large = message("/records", &"x".repeat(MAX_PAYLOAD));
    let (mut subscription, mut server) = subscribed(&[HELLO, CHANNELS, &large, &large].concat()).await;
    let (before, _server) = subscribed(&granted()).await;
    let gap = subscription.ledger.gap_after(&before.ledger, None);
    assert_eq!(gap, Gap::Possible);
    say(&mut server, &[PATTERN, &stats(9), &process(), &message("/records", "end")].concat()).await;
    for expected in [MAX_PAYLOAD, MAX_PAYLOAD, 3] {
        assert_eq!(payload(&mut subscription).await.len(), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn an_end_is_orderly_when_no_reply_is_cut_off() {
    let large = format!(">3\r\n$7\r\nmessage\r\n$1\r\na\r\n${}\r\nxx", MAX_PAYLOAD + 1);
    for (last, orderly) in [("", true), (">3\r\n", false), (&large, false)] {
        let (mut subscription, mut server) = subscribed(&granted()).await;
        say(&mut server, &message("/records", "1")).await;
        say(&mut server, last).await;
        drop(server);
        assert_eq!(payload(&mut subscription).await, "1");
        let ended = loop {
            match subscription.next().await {
                Ok(event) => {
                    assert!(matches!(event, Heard::Inbound(Inbound::Message { payload: None, .. })), "{event:?}");
                }
                Err(error) => break matches!(error, SubscriptionError::Closed),
            }
        };
        assert_eq!(ended, orderly, "{last}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_takes_no_question_is_still_read() {
    let (client, mut server) = duplex(256);
    let serve = async {
        let mut questions = vec![0; 1024];
        let mut read = 0;
        while !questions[..read].ends_with(b"CLIENT\r\n$4\r\nINFO\r\n") {
            read += server.read(&mut questions[read..]).await.unwrap();
        }
        say(&mut server, &granted()).await;
        server
    };
    let (subscription, mut server) = tokio::join!(Subscription::over(Box::new(client), Ends::Unix), serve);
    let mut subscription = subscription.unwrap();
    // Nothing is read from here on, and the pipe is small.
    for _ in 0..20 {
        subscription.ask(&[Ask::Ping], &redis::cmd("PING"));
    }
    let serve = async {
        for number in 0..100 {
            say(&mut server, &message("/records", &number.to_string())).await;
        }
    };
    let read = async {
        for number in 0..100 {
            assert_eq!(payload(&mut subscription).await, number.to_string());
        }
    };
    tokio::join!(serve, read);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_lost_by_cancelling() {
    let (mut subscription, mut server) = subscribed(&granted()).await;
    let wire: String = (0..50).map(|number| message("/records", &number.to_string())).collect();
    let mut got = 0;
    for piece in wire.as_bytes().chunks(7) {
        server.write_all(piece).await.unwrap();
        // Polled once for each message that is whole, and once more in vain.
        while let Ok(event) = tokio::time::timeout(Duration::ZERO, subscription.next()).await {
            let Heard::Inbound(Inbound::Message { payload: Some(payload), .. }) = event.unwrap() else {
                panic!("no message")
            };
            assert_eq!(payload, got.to_string());
            got += 1;
        }
    }
    assert_eq!(got, 50);
}

#[tokio::test(start_paused = true)]
async fn answers_that_nobody_asked_for_are_not_redis() {
    for words in ["+PONG\r\n", &stats(1), NOPERM, CHANNELS] {
        let (mut subscription, mut server) = subscribed(&granted()).await;
        say(&mut server, words).await;
        assert!(matches!(subscription.next().await, Err(SubscriptionError::NotRedis(_))), "{words}");
    }
}

#[tokio::test(start_paused = true)]
async fn memory_of_large_messages_is_not_kept() {
    let (mut subscription, mut server) = subscribed(&granted()).await;
    for length in [MAX_PAYLOAD, 10, MAX_PAYLOAD, CHUNK_BYTES + 1, 10] {
        say(&mut server, &message("a", &"x".repeat(length))).await;
        assert_eq!(payload(&mut subscription).await.len(), length);
    }
    subscription.drain();
    say(&mut server, &(stats(12) + "+PONG\r\n")).await;
    assert_eq!(subscription.next().await.unwrap(), Heard::Inbound(Inbound::Drained));
    assert!(subscription.buffer.capacity() <= 2 * CHUNK_BYTES, "{}", subscription.buffer.capacity());
}
