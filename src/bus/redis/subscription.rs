//! One subscribed connection: its bytes, its replies, and whether Redis still answers on it.

use std::{collections::VecDeque, future::pending, io, time::Duration};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split},
    task::consume_budget,
    time::{Instant, timeout_at},
};

use super::{
    ledger::Ledger,
    resp::{NotRedis, Reply, ReplyDecoder},
};
use crate::{
    bus::{BOT, Inbound, MAX_PAYLOAD, Position, RECORDS, SYSTEM_NOTICE},
    redis_client::{ConnectionError, Ends, RawConnection},
};

/// How often Redis is asked for a sign of life, which is also the number of `PUBLISH` calls it has counted.
const ASK_INTERVAL: Duration = Duration::from_secs(5);

/// The same after an answer that others publish on channels that are not subscribed: the position is behind by their
/// messages, and a node that starts waits until it is not.
const ASK_SOON: Duration = Duration::from_secs(1);

/// How long Redis may send nothing after it was asked.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes read at once: a hundred messages as Rails writes them.
const CHUNK_BYTES: usize = 64 * 1024;

/// Most bytes of messages that are kept while the first answers are under way, so that it is known before them whether
/// something was missed. When there are more, the gap counts as [`Possible`](crate::bus::Gap::Possible).
const EARLY_BYTES: usize = 2 * MAX_PAYLOAD;

/// Why there is no subscription, or why it ended.
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
    #[error("redis was silent for {} s", (ASK_INTERVAL + SILENCE_TIMEOUT).as_secs())]
    Silent,
    #[error(transparent)]
    NotRedis(#[from] NotRedis),
}

/// What is heard on a subscription.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// A message on one of the channels for browsers, or the end of a [drain](Subscription::drain).
    Inbound(Inbound),
    /// Redis does not answer. Messages may still come.
    Silent,
    /// A silent Redis sends again.
    Alive,
}

/// A question. Redis answers in the order in which it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ask {
    Hello,
    Channel,
    Pattern,
    CommandStats,
    Process,
    Client,
    Ping,
    Drain,
}

/// What Redis grants beside the messages for browsers.
#[derive(Clone, Copy, Debug, Default)]
struct Granted {
    /// RESP3, in which a subscriber may also ask.
    resp3: bool,
    bot: bool,
    info: bool,
}

pub(super) struct Subscription {
    reader: ReadHalf<RawConnection>,
    writer: WriteHalf<RawConnection>,
    ends: Ends,
    buffer: BytesMut,
    decoder: ReplyDecoder,
    /// Commands that the socket has not taken yet: a few hundred bytes, as `asked` is short.
    outgoing: BytesMut,
    /// Unanswered questions: those of the beginning, then at most two signs of life and one drain.
    asked: VecDeque<Ask>,
    granted: Granted,
    /// What was received, beside what Redis has counted.
    pub(super) ledger: Ledger,
    /// The position that was yielded last.
    told: Option<Position>,
    /// Messages that came before the first answers, about [`EARLY_BYTES`] at most.
    early: VecDeque<Inbound>,
    /// When Redis counts as silent while a question is unanswered, and otherwise when a sign of life is asked for.
    deadline: Instant,
    /// Whether Redis does not answer.
    pub(super) silent: bool,
    /// Since when the connection is subscribed.
    pub(super) since: Instant,
}

impl Subscription {
    /// Subscribes, and has the first answers. All commands leave together; a refusal is an answer too, and an error if
    /// it is of a channel.
    pub(super) async fn over(connection: RawConnection, ends: Ends) -> Result<Self, SubscriptionError> {
        let now = Instant::now();
        let (reader, writer) = split(connection);
        let mut this = Self {
            reader,
            writer,
            ends,
            buffer: BytesMut::new(),
            decoder: ReplyDecoder::new(MAX_PAYLOAD),
            outgoing: BytesMut::new(),
            asked: VecDeque::new(),
            granted: Granted::default(),
            ledger: Ledger::default(),
            told: None,
            early: VecDeque::new(),
            deadline: now,
            silent: false,
            since: now,
        };
        this.ask(&[Ask::Hello], redis::cmd("HELLO").arg(3));
        this.ask(&[Ask::Channel; 2], redis::cmd("SUBSCRIBE").arg(&[RECORDS, SYSTEM_NOTICE]));
        this.ask(&[Ask::Pattern], redis::cmd("PSUBSCRIBE").arg(BOT));
        this.ask(&[Ask::CommandStats], redis::cmd("INFO").arg("commandstats"));
        this.ask(&[Ask::Process], redis::cmd("INFO").arg("server"));
        this.ask(&[Ask::Client], redis::cmd("CLIENT").arg("INFO"));
        let mut bytes = 0;
        while !this.asked.is_empty() && bytes < EARLY_BYTES {
            match this.step().await? {
                Some(Heard::Inbound(inbound)) => {
                    if let Inbound::Message { channel, payload, .. } = &inbound {
                        bytes += size_of::<Inbound>() + channel.len() + payload.as_ref().map_or(0, Bytes::len);
                    }
                    this.early.push_back(inbound);
                }
                Some(Heard::Silent) => return Err(SubscriptionError::Silent),
                Some(Heard::Alive) | None => {}
            }
        }
        this.since = Instant::now();
        Ok(this)
    }

    /// What comes next; an error when the connection ended, or what was read is no RESP. Cancel safe.
    pub(super) async fn next(&mut self) -> Result<Heard, SubscriptionError> {
        if let Some(mut inbound) = self.early.pop_front() {
            if let Inbound::Message { position, .. } = &mut inbound {
                *position = self.ledger.position(self.early.len());
                self.told = *position;
            }
            return Ok(Heard::Inbound(inbound));
        }
        loop {
            if let Some(event) = self.step().await? {
                return Ok(event);
            }
        }
    }

    /// Decodes a reply, or reads more when there is none.
    async fn step(&mut self) -> Result<Option<Heard>, SubscriptionError> {
        // Decoding waits for nothing, and other tasks need this thread as well.
        consume_budget().await;
        match self.decoder.decode(&mut self.buffer)? {
            Some(Reply::Message { channel, payload }) => {
                self.ledger.message();
                // Messages for the bot are subscribed so that the ledger has them, and not used yet.
                let bot = BOT.strip_suffix('*').is_some_and(|prefix| channel.starts_with(prefix.as_bytes()));
                let position = self.ledger.position(0);
                self.told = position;
                Ok((!bot).then_some(Heard::Inbound(Inbound::Message { position, channel, payload })))
            }
            Some(answer) => self.answer(&answer),
            None => self.read().await,
        }
    }

    /// Where the bus was when this began. To be called before the first message is yielded.
    pub(super) fn before(&self) -> Option<Position> {
        self.ledger.position(self.early.len())
    }

    /// Asks for [`Inbound::Drained`], and before that for the position.
    pub(super) fn drain(&mut self) {
        if !self.asked.contains(&Ask::Drain) {
            if self.granted.info {
                self.ask(&[Ask::CommandStats], redis::cmd("INFO").arg("commandstats"));
            }
            self.ask(&[Ask::Drain], &redis::cmd("PING"));
        }
    }

    /// Why gaps cannot be proved empty and how to mend it, for the log; `None` when they can.
    pub(super) fn limit(&self) -> Option<&'static str> {
        match self.ledger.proof() {
            _ if !self.granted.resp3 => {
                Some("redis speaks RESP2 only; use Redis 6 or later, and allow HELLO 3 for its user and in proxies")
            }
            _ if !self.granted.info => Some("the redis user may not use INFO; grant it +info"),
            Ok(_) if !self.granted.bot => Some(
                "the redis user may not subscribe to chatbot/*, so that a message for the bot counts as missed; grant \
                 it +psubscribe &chatbot/*",
            ),
            proof => proof.err(),
        }
    }

    /// Matches an answer with its question.
    fn answer(&mut self, answer: &Reply) -> Result<Option<Heard>, SubscriptionError> {
        let ask = self.asked.pop_front().ok_or(NotRedis)?;
        if self.asked.is_empty() {
            self.deadline = Instant::now() + ASK_INTERVAL;
        }
        match (ask, answer) {
            (Ask::Channel, Reply::Error(text)) => {
                return Err(SubscriptionError::Refused(text.escape_ascii().to_string()));
            }
            (Ask::Drain, Reply::Other | Reply::Error(_)) => return Ok(Some(Heard::Inbound(Inbound::Drained))),
            (Ask::Channel, Reply::Subscribed) | (Ask::Ping | Ask::Client, Reply::Other) | (_, Reply::Error(_)) => {}
            (Ask::Pattern, Reply::Subscribed) => self.granted.bot = true,
            (Ask::Hello, Reply::Other) => self.granted.resp3 = true,
            (Ask::CommandStats, Reply::Text(text)) => {
                self.granted.info = true;
                self.ledger.counted(text);
                let position = self.ledger.position(0);
                if position != self.told && self.early.is_empty() {
                    // The first answer is not news of others.
                    if self.told.is_some() && position.is_some() && self.asked.is_empty() {
                        self.deadline = Instant::now() + ASK_SOON;
                    }
                    self.told = position;
                    return Ok(position.map(|position| Heard::Inbound(Inbound::Moved(position))));
                }
            }
            (Ask::Process, Reply::Text(text)) => self.ledger.process(text),
            (Ask::Client, Reply::Text(text)) => {
                self.ledger.direct = str::from_utf8(text).is_ok_and(|text| self.ends.are_direct(text));
            }
            _ => return Err(NotRedis.into()),
        }
        Ok(None)
    }

    /// Reads more bytes, and asks for a sign of life when it is time to. Cancel safe.
    async fn read(&mut self) -> Result<Option<Heard>, SubscriptionError> {
        self.buffer.reserve(CHUNK_BYTES);
        if self.buffer.capacity() > 2 * CHUNK_BYTES && self.buffer.len() < CHUNK_BYTES {
            // It has grown for a large reply.
            self.buffer = BytesMut::from(&self.buffer[..]);
            self.buffer.reserve(CHUNK_BYTES);
        }
        if self.asked.is_empty() && Instant::now() >= self.deadline {
            if self.granted.info {
                self.ask(&[Ask::CommandStats], redis::cmd("INFO").arg("commandstats"));
            } else {
                self.ask(&[Ask::Ping], &redis::cmd("PING"));
            }
        }
        let read = timeout_at(self.deadline, self.exchange()).await;
        if !self.asked.is_empty() {
            self.deadline = Instant::now() + SILENCE_TIMEOUT;
        }
        match read {
            Ok(Ok(0)) if self.decoder.is_between_replies(&self.buffer) => Err(SubscriptionError::Closed),
            Ok(Ok(0)) => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(Ok(_)) => Ok(std::mem::take(&mut self.silent).then_some(Heard::Alive)),
            Ok(Err(error)) => Err(error.into()),
            // It is time to ask.
            Err(_) if self.asked.is_empty() => Ok(None),
            Err(_) => Ok((!std::mem::replace(&mut self.silent, true)).then_some(Heard::Silent)),
        }
    }

    /// Puts a command, which is answered by as many replies as `answers`, behind those that leave next.
    fn ask(&mut self, answers: &[Ask], command: &redis::Cmd) {
        self.deadline = Instant::now() + SILENCE_TIMEOUT;
        self.asked.extend(answers);
        self.outgoing.extend_from_slice(&command.get_packed_command());
    }

    /// Reads more bytes, and meanwhile writes what waits: Redis may take nothing and still send.
    async fn exchange(&mut self) -> io::Result<usize> {
        let write = async {
            // When the connection broke, what Redis sent before can still be read, and then how it ended.
            if self.writer.write_all_buf(&mut self.outgoing).await.is_err() {
                self.outgoing.clear();
            }
            // What TLS holds back.
            let _ = self.writer.flush().await;
            pending().await
        };
        tokio::select! {
            biased;
            read = write => read,
            read = self.reader.read_buf(&mut self.buffer) => read,
        }
    }
}

#[cfg(test)]
mod tests;
