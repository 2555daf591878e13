//! The broker as real clients meet it.

use std::net::SocketAddr;

use futures_util::StreamExt;
use redis::AsyncCommands;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::outbox::MAX_BACKLOG_BYTES;
use super::*;

const SOON: Duration = Duration::from_secs(10);

struct Running {
    broker: Broker,
    address: SocketAddr,
    stop: CancellationToken,
    tracker: TaskTracker,
}

impl Running {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (broker, tracker, stop) = (Broker::new(), TaskTracker::new(), CancellationToken::new());
        let (serving, tasks, stopping) = (broker.clone(), tracker.clone(), stop.clone());
        tracker.spawn(async move { serving.serve(listener, tasks, stopping).await });
        Self { broker, address, stop, tracker }
    }

    fn client(&self, protocol: &str) -> redis::Client {
        redis::Client::open(format!("redis://{}/?protocol={protocol}", self.address)).unwrap()
    }

    async fn raw(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends bytes, then reads until the broker closes.
    async fn until_closed(&self, bytes: &[u8]) -> String {
        let mut stream = self.raw().await;
        stream.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        timeout(SOON, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
        String::from_utf8(answer).unwrap()
    }
}

#[tokio::test]
async fn keys_work_over_both_protocols() {
    let running = Running::start().await;
    running.broker.set("/current_users/abc", r#"{"id":1}"#);
    for protocol in ["resp2", "resp3"] {
        let mut connection = running.client(protocol).get_multiplexed_async_connection().await.unwrap();
        assert_eq!(connection.get::<_, String>("/current_users/abc").await.unwrap(), r#"{"id":1}"#);
        assert_eq!(connection.get::<_, Option<String>>("absent").await.unwrap(), None);
        let lasting = redis::SetOptions::default().with_expiration(redis::SetExpiry::EX(100));
        connection.set_options::<_, _, ()>("k", "v", lasting).await.unwrap();
        assert_eq!(connection.ttl::<_, i64>("k").await.unwrap(), 100);
        assert_eq!(connection.exists::<_, i64>(&["k", "k", "absent"]).await.unwrap(), 2);
        assert_eq!(connection.del::<_, i64>(&["k", "absent"]).await.unwrap(), 1);
        let error = redis::cmd("FLUSHALL").arg("now").query_async::<()>(&mut connection).await.unwrap_err();
        assert!(error.to_string().contains("unknown command"), "{error}");
        let large = vec![7_u8; 3_000_000];
        connection.set::<_, _, ()>("large", &large).await.unwrap();
        assert_eq!(connection.get::<_, Vec<u8>>("large").await.unwrap(), large);
    }
}

#[tokio::test]
async fn messages_arrive_in_order_by_name_and_by_pattern() {
    let running = Running::start().await;
    for protocol in ["resp2", "resp3"] {
        let mut pubsub = running.client(protocol).get_async_pubsub().await.unwrap();
        pubsub.subscribe("/records").await.unwrap();
        pubsub.psubscribe("chatbot/*").await.unwrap();
        let mut publisher = running.client(protocol).get_multiplexed_async_connection().await.unwrap();
        for number in 0..500_i64 {
            assert_eq!(publisher.publish::<_, _, i64>("/records", number).await.unwrap(), 1);
        }
        assert_eq!(running.broker.publish("chatbot/test", Bytes::from_static(b"hello")), 1);
        assert_eq!(publisher.publish::<_, _, i64>("/other", "x").await.unwrap(), 0);
        let mut messages = pubsub.on_message();
        for number in 0..500_i64 {
            let message = timeout(SOON, messages.next()).await.unwrap().unwrap();
            assert_eq!((message.get_channel_name(), message.get_payload::<i64>().unwrap()), ("/records", number));
        }
        let message = timeout(SOON, messages.next()).await.unwrap().unwrap();
        assert_eq!((message.get_channel_name(), message.get_payload_bytes()), ("chatbot/test", b"hello".as_slice()));
        drop(messages);
        pubsub.unsubscribe("/records").await.unwrap();
        assert_eq!(publisher.publish::<_, _, i64>("/records", "x").await.unwrap(), 0);
    }
}

#[tokio::test]
async fn a_client_that_leaves_is_forgotten() {
    let running = Running::start().await;
    let mut pubsub = running.client("resp2").get_async_pubsub().await.unwrap();
    pubsub.subscribe("/records").await.unwrap();
    drop(pubsub);
    timeout(SOON, async {
        while running.broker.publish("/records", Bytes::from_static(b"x")) > 0 || running.broker.shared.clients() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn resp2_subscribers_are_held_to_pubsub() {
    let running = Running::start().await;
    let answer = running
        .until_closed(b"SUBSCRIBE a b\r\nGET k\r\nPING\r\nPING x\r\nUNSUBSCRIBE\r\nPUNSUBSCRIBE\r\nPING\r\nQUIT\r\n")
        .await;
    assert_eq!(
        answer,
        "*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n*3\r\n$9\r\nsubscribe\r\n$1\r\nb\r\n:2\r\n\
         -ERR Can't execute 'get': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed in this \
         context\r\n\
         *2\r\n$4\r\npong\r\n$0\r\n\r\n*2\r\n$4\r\npong\r\n$1\r\nx\r\n\
         *3\r\n$11\r\nunsubscribe\r\n$1\r\na\r\n:1\r\n*3\r\n$11\r\nunsubscribe\r\n$1\r\nb\r\n:0\r\n\
         *3\r\n$12\r\npunsubscribe\r\n$-1\r\n:0\r\n+PONG\r\n+OK\r\n"
    );
}

#[tokio::test]
async fn resp3_subscribers_may_say_anything() {
    let running = Running::start().await;
    let answer = running.until_closed(b"HELLO 3\r\nSUBSCRIBE a\r\nPUBLISH a x\r\nGET k\r\nQUIT\r\n").await;
    let pushed =
        ">3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n>3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\nx\r\n:1\r\n_\r\n+OK\r\n";
    assert!(answer.ends_with(pushed), "{answer}");
}

#[tokio::test]
async fn publishes_are_counted_in_the_place_of_the_answer_among_messages() {
    let running = Running::start().await;
    let mut stream = running.raw().await;
    stream.write_all(b"HELLO 3\r\nSUBSCRIBE a\r\n").await.unwrap();
    let (broker, stop) = (running.broker.clone(), running.stop.clone());
    let mut missed = None;
    // From another thread, so that messages come at any moment.
    let publisher = std::thread::spawn(move || {
        while !stop.is_cancelled() {
            broker.publish("a", Bytes::from_static(b"x"));
            // Slow enough for the reader to keep up, or it is dropped.
            std::thread::sleep(Duration::from_micros(50));
        }
    });
    let (mut read, mut messages, mut counts) = (BytesMut::new(), 0, Vec::<i64>::new());
    timeout(SOON, async {
        // Until many messages came before one answer or another.
        while counts.first().zip(counts.last()).is_none_or(|(first, last)| last - first < 200) {
            stream.write_all(b"INFO\r\n").await.unwrap();
            let asked = counts.len();
            while counts.len() == asked {
                let Some(end) = read.iter().position(|&byte| byte == b'\n') else {
                    assert_ne!(stream.read_buf(&mut read).await.unwrap(), 0);
                    continue;
                };
                let line = read.split_to(end + 1);
                if &line[..] == b"x\r\n" {
                    messages += 1;
                } else if let Some(calls) = line.strip_prefix(b"cmdstat_publish:calls=") {
                    let calls: i64 = str::from_utf8(calls).unwrap().split(',').next().unwrap().parse().unwrap();
                    counts.push(calls);
                    // The others were published before the subscription.
                    assert_eq!(calls - messages, *missed.get_or_insert(calls - messages));
                }
            }
        }
    })
    .await
    .unwrap();
    running.stop.cancel();
    publisher.join().unwrap();
}

#[tokio::test]
async fn no_message_follows_the_end_of_its_subscription() {
    let running = Running::start().await;
    let answer = running.until_closed(b"SUBSCRIBE a\r\nUNSUBSCRIBE a\r\nPUBLISH a x\r\nRESET\r\nQUIT\r\n").await;
    assert!(answer.ends_with("unsubscribe\r\n$1\r\na\r\n:0\r\n:0\r\n+RESET\r\n+OK\r\n"), "{answer}");
}

#[tokio::test]
async fn mistakes_in_the_protocol_end_the_connection_after_what_came_before() {
    let running = Running::start().await;
    assert_eq!(
        running.until_closed(b"PING\r\n*1\r\n:1\r\n").await,
        "+PONG\r\n-ERR Protocol error: expected '$', got ':'\r\n"
    );
    assert_eq!(running.until_closed(b"POST / HTTP/1.1\r\n").await, "");
}

#[tokio::test]
async fn subscriptions_are_bounded() {
    let running = Running::start().await;
    let names = |count| (0..count).map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
    let answer = running.until_closed(format!("SUBSCRIBE {}\r\nQUIT\r\n", names(1025)).as_bytes()).await;
    assert_eq!(answer, "-ERR more than 1024 subscriptions\r\n+OK\r\n");
    let answer = running.until_closed(format!("PSUBSCRIBE {}\r\nQUIT\r\n", "*a".repeat(600)).as_bytes()).await;
    assert_eq!(answer, "-ERR channel name exceeds 1024 bytes\r\n+OK\r\n");
}

#[tokio::test]
async fn a_subscriber_that_does_not_read_is_dropped_and_others_are_not() {
    let running = Running::start().await;
    let mut idle = running.raw().await;
    idle.write_all(b"SUBSCRIBE /records\r\n").await.unwrap();
    let mut answer = [0; 64];
    assert!(idle.read(&mut answer).await.unwrap() > 0);
    let mut keen = running.client("resp3").get_async_pubsub().await.unwrap();
    keen.subscribe("/records").await.unwrap();
    let mut messages = keen.on_message();
    let megabyte = Bytes::from(vec![b'x'; 1024 * 1024]);
    let mut sent = 0;
    // The kernel's buffers take some megabytes before the backlog begins to count.
    while running.broker.publish("/records", megabyte.clone()) == 2 {
        timeout(SOON, messages.next()).await.unwrap().unwrap();
        sent += megabyte.len();
        assert!(sent < 8 * MAX_BACKLOG_BYTES, "the idle subscriber is never dropped");
    }
    assert!(timeout(SOON, messages.next()).await.unwrap().is_some());
    let mut rest = Vec::new();
    let end = timeout(SOON, idle.read_to_end(&mut rest)).await.unwrap();
    assert!(end.is_err() || rest.len() <= sent);
}

#[tokio::test]
async fn one_client_too_many_is_told_so() {
    let running = Running::start().await;
    let slots = Arc::clone(&running.broker.shared.slots);
    let taken = slots.try_acquire_many(u32::try_from(MAX_CLIENTS).unwrap()).unwrap();
    let mut refused = running.raw().await;
    let mut answer = String::new();
    timeout(SOON, refused.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert_eq!(answer, "-ERR max number of clients reached\r\n");
    drop(taken);
    assert_eq!(running.until_closed(b"QUIT\r\n").await, "+OK\r\n");
}

#[tokio::test]
async fn stopping_ends_every_task() {
    let running = Running::start().await;
    let mut pubsub = running.client("resp2").get_async_pubsub().await.unwrap();
    pubsub.subscribe("/records").await.unwrap();
    running.stop.cancel();
    running.tracker.close();
    timeout(SOON, running.tracker.wait()).await.unwrap();
    assert!(timeout(SOON, pubsub.on_message().next()).await.unwrap().is_none());
}
