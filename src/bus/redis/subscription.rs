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
    #[error("redis has been silent for {} s", (PING_INTERVAL + PING_TIMEOUT).as_secs())]
    Silent,
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

pub(super) struct Subscription {
    stream: Stream,
    buffer: BytesMut,
    decoder: ReplyDecoder,
    /// When the last byte came.
    heard: Instant,
    /// Whether it was asked since then if it is alive.
    asked: bool,
}

impl Subscription {
    /// Dials and subscribes. What comes before all is confirmed was missed, like everything before.
    pub(super) async fn dial(connector: &Connector) -> Result<Self, SubscriptionError> {
        let stream = connector.stream().await?;
        let decoder = ReplyDecoder::new(MAX_PAYLOAD);
        let mut this = Self { stream, buffer: BytesMut::new(), decoder, heard: Instant::now(), asked: false };
        let channels = [RECORDS, SYSTEM_NOTICE];
        this.send(redis::cmd("SUBSCRIBE").arg(&channels)).await?;
        let mut confirmed = 0;
        while confirmed < channels.len() {
            confirmed += usize::from(this.next().await? == Reply::Subscribed);
        }
        Ok(this)
    }

    /// The next reply, which is no error. Nothing is lost when this is cancelled.
    pub(super) async fn next(&mut self) -> Result<Reply<Bytes>, SubscriptionError> {
        // Reading from the buffer waits for nothing, and others want this thread as well.
        consume_budget().await;
        loop {
            match self.decoder.decode(&mut self.buffer)? {
                Some(Reply::Error { text }) => return Err(SubscriptionError::Refused(text.escape_ascii().to_string())),
                Some(reply) => {
                    if matches!(&reply, Reply::Message { payload, .. } if payload.len() > CHUNK_BYTES) {
                        // Its memory is not kept for the next ones.
                        self.buffer = BytesMut::from(&self.buffer[..]);
                    }
                    return Ok(reply);
                }
                None => self.read().await?,
            }
        }
    }

    /// Waits for more bytes, and asks for a sign of life when none come.
    async fn read(&mut self) -> Result<(), SubscriptionError> {
        self.buffer.reserve(CHUNK_BYTES);
        loop {
            let patience = if self.asked { PING_INTERVAL + PING_TIMEOUT } else { PING_INTERVAL };
            match timeout_at(self.heard + patience, self.stream.read_buf(&mut self.buffer)).await {
                Ok(Ok(0)) => return Err(SubscriptionError::Closed),
                Ok(Ok(_)) => break,
                Ok(Err(error)) => return Err(error.into()),
                Err(_) if self.asked => return Err(SubscriptionError::Silent),
                Err(_) => {
                    self.asked = true;
                    let ping = redis::cmd("PING");
                    timeout(PING_TIMEOUT, self.send(&ping)).await.map_err(|_| SubscriptionError::Silent)??;
                }
            }
        }
        (self.heard, self.asked) = (Instant::now(), false);
        Ok(())
    }

    async fn send(&mut self, command: &redis::Cmd) -> io::Result<()> {
        self.stream.write_all(&command.get_packed_command()).await?;
        self.stream.flush().await
    }
}
