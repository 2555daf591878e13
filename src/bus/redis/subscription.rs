//! One connection that is subscribed: its bytes, its replies, and whether it is still alive.

use std::{io, time::Duration};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::consume_budget,
    time::{Instant, timeout, timeout_at},
};

use super::reply::{Malformed, Reply, ReplyDecoder};
use crate::{
    bus::{MAX_PAYLOAD, RECORDS, SYSTEM_NOTICE},
    redis_client::{ConnectionError, Connector, Stream},
};

/// After this long without a byte it is asked whether it is alive, and how long it may take to answer.
const PING_INTERVAL: Duration = Duration::from_secs(5);
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// What is read at once: a hundred messages as Rails writes them.
const CHUNK_BYTES: usize = 64 * 1024;

/// Why a subscription cannot be had, or is one no more.
#[derive(Debug, thiserror::Error)]
pub(super) enum SubscriptionError {
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    #[error("redis refuses the subscription: {0}")]
    Refused(String),
    #[error("redis closed the connection")]
    Closed,
    #[error("the connection to redis broke")]
    Io(#[from] io::Error),
    #[error("redis is silent, and does not answer a ping within {} s", PING_TIMEOUT.as_secs())]
    Silent,
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

pub(super) struct Subscription {
    stream: Stream,
    buffer: BytesMut,
    decoder: ReplyDecoder,
    /// Whether the buffer has grown for a large message.
    grown: bool,
}

impl Subscription {
    /// Dials and subscribes.
    pub(super) async fn dial(connector: &Connector) -> Result<Self, SubscriptionError> {
        Self::over(connector.stream().await?).await
    }

    /// Subscribes. What comes before all is confirmed was missed, like everything before.
    async fn over(stream: Stream) -> Result<Self, SubscriptionError> {
        let decoder = ReplyDecoder::new(MAX_PAYLOAD);
        let mut this = Self { stream, buffer: BytesMut::new(), decoder, grown: false };
        let channels = [RECORDS, SYSTEM_NOTICE];
        this.send(redis::cmd("SUBSCRIBE").arg(&channels)).await?;
        let mut confirmed = 0;
        while confirmed < channels.len() {
            match this.next().await? {
                Reply::Subscribed => confirmed += 1,
                Reply::Error { text } => return Err(SubscriptionError::Refused(text.escape_ascii().to_string())),
                Reply::Message { .. } | Reply::TooLarge { .. } | Reply::Other => {}
            }
        }
        Ok(this)
    }

    /// The next reply.
    pub(super) async fn next(&mut self) -> Result<Reply<Bytes>, SubscriptionError> {
        // Reading from the buffer waits for nothing, and others want this thread as well.
        consume_budget().await;
        loop {
            if let Some(reply) = self.decoder.decode(&mut self.buffer)? {
                self.grown |= matches!(&reply, Reply::Message { payload, .. } if payload.len() > CHUNK_BYTES);
                return Ok(reply);
            }
            self.read().await?;
        }
    }

    /// Waits for more bytes, and asks for a sign of life when none come.
    async fn read(&mut self) -> Result<(), SubscriptionError> {
        if self.grown && self.buffer.len() < CHUNK_BYTES {
            self.buffer = BytesMut::from(&self.buffer[..]);
            self.grown = false;
        }
        self.buffer.reserve(CHUNK_BYTES);
        let (mut deadline, mut asked) = (Instant::now() + PING_INTERVAL, false);
        loop {
            match timeout_at(deadline, self.stream.read_buf(&mut self.buffer)).await {
                Ok(Ok(0)) => return Err(SubscriptionError::Closed),
                Ok(read) => return read.map(drop).map_err(SubscriptionError::Io),
                Err(_) if asked => return Err(SubscriptionError::Silent),
                Err(_) => {
                    let ping = redis::cmd("PING");
                    timeout(PING_TIMEOUT, self.send(&ping)).await.map_err(|_| SubscriptionError::Silent)??;
                    (deadline, asked) = (Instant::now() + PING_TIMEOUT, true);
                }
            }
        }
    }

    async fn send(&mut self, command: &redis::Cmd) -> io::Result<()> {
        self.stream.write_all(&command.get_packed_command()).await?;
        self.stream.flush().await
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{DuplexStream, duplex},
        time::{advance, sleep},
    };

    use super::*;

    const CONFIRMED: &[u8] = b"*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n*3\r\n$9\r\nsubscribe\r\n$1\r\nb\r\n:2\r\n";
    const PING: &[u8] = b"*1\r\n$4\r\nPING\r\n";

    /// One that is confirmed, and the server's side of it with nothing unread.
    async fn subscribed() -> (Subscription, DuplexStream) {
        let (client, mut server) = duplex(1 << 24);
        server.write_all(CONFIRMED).await.unwrap();
        let subscription = Subscription::over(Box::new(client)).await.unwrap();
        let mut asked = vec![0; 1024];
        let length = server.read(&mut asked).await.unwrap();
        assert_eq!(&asked[..length], redis::cmd("SUBSCRIBE").arg(&[RECORDS, SYSTEM_NOTICE]).get_packed_command());
        (subscription, server)
    }

    async fn pinged(server: &mut DuplexStream) -> Instant {
        let mut asked = [0; PING.len()];
        server.read_exact(&mut asked).await.unwrap();
        assert_eq!(asked, *PING);
        Instant::now()
    }

    #[tokio::test(start_paused = true)]
    async fn any_answer_to_a_ping_is_a_sign_of_life() {
        let (mut subscription, mut server) = subscribed().await;
        let mut heard = Instant::now();
        for answer in ["*2\r\n$4\r\npong\r\n$0\r\n\r\n", "-NOPERM no\r\n", "-BUSY a script\r\n", "+PONG\r\n"] {
            let serve = async {
                let asked = pinged(&mut server).await;
                assert_eq!(asked - heard, PING_INTERVAL);
                sleep(PING_TIMEOUT * 9 / 10).await;
                server.write_all(answer.as_bytes()).await.unwrap();
            };
            let (reply, ()) = tokio::join!(subscription.next(), serve);
            assert!(matches!(reply.unwrap(), Reply::Other | Reply::Error { .. }), "{answer}");
            heard = Instant::now();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_answer_a_ping_in_time_is_given_up() {
        let (mut subscription, _server) = subscribed().await;
        let started = Instant::now();
        assert!(matches!(subscription.next().await, Err(SubscriptionError::Silent)));
        assert_eq!(started.elapsed(), PING_INTERVAL + PING_TIMEOUT);
    }

    #[tokio::test(start_paused = true)]
    async fn there_is_time_to_answer_even_when_this_process_stood_still() {
        let (mut subscription, mut server) = subscribed().await;
        let serve = async {
            advance(PING_INTERVAL * 10).await;
            pinged(&mut server).await;
            sleep(PING_TIMEOUT / 2).await;
            server.write_all(b"+PONG\r\n").await.unwrap();
        };
        assert_eq!(tokio::join!(subscription.next(), serve).0.unwrap(), Reply::Other);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_told() {
        let (client, mut server) = duplex(1 << 16);
        server.write_all(b"-DENIED \x1b").await.unwrap();
        server.write_all(&[b'x'; 1_058]).await.unwrap();
        server.write_all(b"\r\n").await.unwrap();
        let refused = Subscription::over(Box::new(client)).await.err().unwrap().to_string();
        assert!(refused.contains(r"DENIED \x1bxxx"), "{refused}");
    }

    #[tokio::test(start_paused = true)]
    async fn memory_of_large_messages_is_not_kept() {
        let (mut subscription, mut server) = subscribed().await;
        for length in [MAX_PAYLOAD, 10, MAX_PAYLOAD, CHUNK_BYTES + 1, 10] {
            let head = format!("*3\r\n$7\r\nmessage\r\n$1\r\na\r\n${length}\r\n");
            server.write_all(&[head.as_bytes(), &vec![b'x'; length], b"\r\n"].concat()).await.unwrap();
            let Reply::Message { payload, .. } = subscription.next().await.unwrap() else { panic!("no message") };
            assert_eq!(payload.len(), length);
        }
        server.write_all(b"+PONG\r\n").await.unwrap();
        assert_eq!(subscription.next().await.unwrap(), Reply::Other);
        assert!(subscription.buffer.capacity() <= 2 * CHUNK_BYTES, "{}", subscription.buffer.capacity());
    }
}
