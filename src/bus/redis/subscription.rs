//! One connection that is subscribed: its bytes, its replies, and whether it is still alive.

use std::{collections::VecDeque, future::poll_fn, io, pin::Pin, pin::pin, task::Poll, time::Duration};

use bytes::{Buf, Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWrite},
    task::consume_budget,
    time::{Instant, timeout_at},
};

use super::{
    info::{CommandStats, Process},
    ledger::{Ledger, Unproved},
    reply::{Malformed, Reply, ReplyDecoder},
};
use crate::{
    bus::{BOT, Inbound, MAX_PAYLOAD, RECORDS, SYSTEM_NOTICE},
    redis_client::{ConnectionError, Connector, Stream},
};

/// How often the connection is asked for a sign of life, which is also how far Redis has counted, and how long it may
/// say nothing after that.
const ASK_INTERVAL: Duration = Duration::from_secs(5);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// What is read at once: a hundred messages as Rails writes them.
const CHUNK_BYTES: usize = 64 * 1024;

/// Most bytes of messages that are kept while the first answers are under way, so that they are passed on after it is
/// known whether something was missed before them. Subscription and questions leave together, so that more than a few
/// are rare. When there are more, the answers are not waited for, and something may have been missed.
const EARLY_BYTES: usize = 2 * MAX_PAYLOAD;

/// Why a subscription cannot be had, or is one no more.
#[derive(Debug, thiserror::Error)]
pub(super) enum SubscriptionError {
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    #[error("redis refuses the subscription: {0}")]
    Refused(String),
    #[error("redis closed the connection")]
    Closed,
    #[error("redis closed the connection within a message")]
    Truncated,
    #[error("the connection to redis broke")]
    Io(#[from] io::Error),
    #[error("redis was silent for {} s", (ASK_INTERVAL + ANSWER_TIMEOUT).as_secs())]
    Silent,
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

impl SubscriptionError {
    /// Whether Redis was reached and all that it sent has been read.
    pub(super) fn is_orderly_end(&self) -> bool {
        matches!(self, Self::Closed)
    }

    /// Whether nothing listens where Redis should.
    pub(super) fn is_refused_dial(&self) -> bool {
        use io::ErrorKind::{ConnectionRefused, NotFound};
        // A Unix socket is gone with its Redis.
        matches!(self, Self::Connection(ConnectionError::Io(error)) if matches!(error.kind(), ConnectionRefused | NotFound))
    }
}

/// What a subscription brings.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// To be passed on: a message on one of the channels that are wanted, or the end of a [drain](Subscription::drain).
    Inbound(Inbound),
    /// Redis does not answer. Messages may still come.
    Silent,
    /// It says something again.
    Alive,
}

/// What was asked, in the order in which Redis answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ask {
    Hello,
    Channel,
    Pattern,
    CommandStats,
    Process,
    Ping,
    Drain,
}

/// What Redis takes of what it is asked for beside the messages that browsers need.
#[derive(Clone, Copy, Debug, Default)]
struct Granted {
    /// RESP3, in which a subscriber may also ask.
    resp3: bool,
    bot: bool,
    info: bool,
}

pub(super) struct Subscription {
    stream: Stream,
    buffer: BytesMut,
    decoder: ReplyDecoder,
    /// Whether the buffer has grown for a large reply.
    grown: bool,
    /// Commands that the socket has not taken yet. A few hundred bytes: see `asked`.
    outgoing: BytesMut,
    flushed: bool,
    /// Unanswered commands: those of the beginning, then one sign of life and one drain at most.
    asked: VecDeque<Ask>,
    granted: Granted,
    ledger: Ledger,
    /// Messages that came before the first answers, at most [`EARLY_BYTES`].
    early: VecDeque<Event>,
    /// When a sign of life is asked for.
    ask_at: Instant,
    /// When Redis is silent, while there is something unanswered.
    silent_at: Option<Instant>,
    silent: bool,
    since: Instant,
}

impl Subscription {
    /// Dials and subscribes.
    pub(super) async fn dial(connector: &Connector) -> Result<Self, SubscriptionError> {
        Self::over(connector.stream().await?).await
    }

    /// Subscribes, and has the first answers. All commands leave together: what Redis refuses of them is an answer too.
    async fn over(stream: Stream) -> Result<Self, SubscriptionError> {
        let now = Instant::now();
        let mut this = Self {
            stream,
            buffer: BytesMut::new(),
            decoder: ReplyDecoder::new(MAX_PAYLOAD),
            grown: false,
            outgoing: BytesMut::new(),
            flushed: true,
            asked: VecDeque::new(),
            granted: Granted::default(),
            ledger: Ledger::default(),
            early: VecDeque::new(),
            ask_at: now + ASK_INTERVAL,
            silent_at: None,
            silent: false,
            since: now,
        };
        this.ask(&[Ask::Hello], redis::cmd("HELLO").arg(3));
        this.ask(&[Ask::Channel; 2], redis::cmd("SUBSCRIBE").arg(&[RECORDS, SYSTEM_NOTICE]));
        this.ask(&[Ask::Pattern], redis::cmd("PSUBSCRIBE").arg(BOT));
        this.ask(&[Ask::CommandStats], redis::cmd("INFO").arg("commandstats"));
        this.ask(&[Ask::Process], redis::cmd("INFO").arg("server"));
        let (mut early, mut bytes) = (VecDeque::new(), 0);
        while !this.asked.is_empty() && bytes < EARLY_BYTES {
            // Other tasks want this thread as well.
            consume_budget().await;
            let event = match this.decoder.decode(&mut this.buffer)? {
                Some(reply) => this.take(reply)?,
                None => this.read().await?,
            };
            let Some(event) = event else { continue };
            bytes += size_of::<Event>();
            match &event {
                Event::Inbound(Inbound::Message { channel, payload }) => bytes += channel.len() + payload.len(),
                Event::Inbound(_) => {}
                Event::Silent => return Err(SubscriptionError::Silent),
                Event::Alive => continue,
            }
            early.push_back(event);
        }
        this.early = early;
        this.since = Instant::now();
        Ok(this)
    }

    /// The next message or change in what was read so far; `None` when [more](Self::read) is needed.
    pub(super) fn decoded(&mut self) -> Result<Option<Event>, SubscriptionError> {
        if let Some(event) = self.early.pop_front() {
            return Ok(Some(event));
        }
        while let Some(reply) = self.decoder.decode(&mut self.buffer)? {
            if let Some(event) = self.take(reply)? {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    /// Asks for [`Inbound::Drained`].
    pub(super) fn drain(&mut self) {
        if !self.asked.contains(&Ask::Drain) {
            self.ask(&[Ask::Drain], &redis::cmd("PING"));
        }
    }

    /// What was received beside what was counted.
    pub(super) fn ledger(&mut self) -> &mut Ledger {
        &mut self.ledger
    }

    /// Whether Redis does not answer.
    pub(super) fn is_silent(&self) -> bool {
        self.silent
    }

    /// Since when it is subscribed.
    pub(super) fn since(&self) -> Instant {
        self.since
    }

    /// What keeps gaps from being proved empty, with the mend, for the log; `None` when nothing does.
    pub(super) fn limit(&self) -> Option<&'static str> {
        match self.ledger.proves() {
            _ if !self.granted.resp3 => Some(
                "gaps cannot be proved empty: redis refuses HELLO 3 and speaks RESP2 only; use Redis 6 or later, and \
                 allow HELLO for its user and in proxies",
            ),
            _ if !self.granted.info => {
                Some("gaps cannot be proved empty: the redis user may not use INFO; grant it +info")
            }
            Err(Unproved::Cluster) => {
                Some("gaps cannot be proved empty: redis is a cluster, whose nodes count apart; use a single Redis")
            }
            Err(Unproved::NoAnswer | Unproved::NoCount) => {
                Some("gaps cannot be proved empty: redis does not count PUBLISH in INFO commandstats")
            }
            Ok(()) if !self.granted.bot => Some(
                "gaps in which the bot is sent a message cannot be proved empty: the redis user may not subscribe to \
                 chatbot/*; grant it +psubscribe &chatbot/*",
            ),
            Ok(()) => None,
        }
    }

    fn take(&mut self, reply: Reply<Bytes>) -> Result<Option<Event>, SubscriptionError> {
        match reply {
            Reply::Message { channel, payload } => {
                self.ledger.message();
                self.grown |= payload.len() > CHUNK_BYTES;
                Ok((!is_for_the_bot(&channel)).then_some(Event::Inbound(Inbound::Message { channel, payload })))
            }
            Reply::TooLarge { channel } => {
                self.ledger.message();
                Ok((!is_for_the_bot(&channel)).then_some(Event::Inbound(Inbound::TooLarge { channel })))
            }
            answer => self.answer(&answer),
        }
    }

    /// Matches an answer to what was asked.
    fn answer(&mut self, answer: &Reply<Bytes>) -> Result<Option<Event>, SubscriptionError> {
        let ask = self.asked.pop_front().ok_or(Malformed)?;
        if self.asked.is_empty() {
            self.silent_at = None;
        }
        match (ask, answer) {
            (Ask::Channel, Reply::Error { text }) => {
                return Err(SubscriptionError::Refused(text.escape_ascii().to_string()));
            }
            (Ask::Drain, Reply::Other | Reply::Error { .. }) => return Ok(Some(Event::Inbound(Inbound::Drained))),
            (Ask::Channel, Reply::Subscribed) | (Ask::Ping, Reply::Other) | (_, Reply::Error { .. }) => {}
            (Ask::Pattern, Reply::Subscribed) => self.granted.bot = true,
            (Ask::Hello, Reply::Other) => self.granted.resp3 = true,
            (Ask::CommandStats, Reply::Text { text }) => {
                self.grown |= text.len() > CHUNK_BYTES;
                self.granted.info = true;
                self.ledger.counted(CommandStats::parse(text));
            }
            (Ask::Process, Reply::Text { text }) => self.ledger.process(Process::parse(text)),
            _ => return Err(Malformed.into()),
        }
        Ok(None)
    }

    /// Reads more bytes, and asks for a sign of life when it is time to. Loses nothing when it is cancelled: what was
    /// read is in the buffer.
    pub(super) async fn read(&mut self) -> Result<Option<Event>, SubscriptionError> {
        if self.grown && self.buffer.len() < CHUNK_BYTES {
            self.buffer = BytesMut::from(&self.buffer[..]);
            self.grown = false;
        }
        self.buffer.reserve(CHUNK_BYTES);
        if self.asked.is_empty() && Instant::now() >= self.ask_at {
            if self.granted.info {
                self.ask(&[Ask::CommandStats], redis::cmd("INFO").arg("commandstats"));
            } else {
                self.ask(&[Ask::Ping], &redis::cmd("PING"));
            }
        }
        let read = if self.silent {
            self.exchange().await
        } else {
            let deadline = self.silent_at.unwrap_or(self.ask_at);
            let Ok(read) = timeout_at(deadline, self.exchange()).await else {
                self.silent = self.silent_at.is_some();
                return Ok(self.silent.then_some(Event::Silent));
            };
            read
        };
        match read? {
            0 if self.decoder.is_between_replies(&self.buffer) => Err(SubscriptionError::Closed),
            0 => Err(SubscriptionError::Truncated),
            _ => {
                if let Some(silent_at) = &mut self.silent_at {
                    *silent_at = Instant::now() + ANSWER_TIMEOUT;
                }
                Ok(std::mem::take(&mut self.silent).then_some(Event::Alive))
            }
        }
    }

    /// Puts a command behind those that leave next.
    fn ask(&mut self, answers: &[Ask], command: &redis::Cmd) {
        let now = Instant::now();
        self.ask_at = now + ASK_INTERVAL;
        self.silent_at = Some(now + ANSWER_TIMEOUT);
        self.asked.extend(answers);
        self.outgoing.extend_from_slice(&command.get_packed_command());
        self.flushed = false;
    }

    /// Reads more bytes, and writes meanwhile what waits to be: Redis may not take it, and still send.
    async fn exchange(&mut self) -> io::Result<usize> {
        poll_fn(|context| {
            if !self.flushed {
                let mut stream = Pin::new(&mut self.stream);
                while !self.outgoing.is_empty() {
                    match stream.as_mut().poll_write(context, &self.outgoing) {
                        Poll::Ready(Ok(written @ 1..)) => self.outgoing.advance(written),
                        // What was sent before the connection broke can still be read, and then how it ended.
                        Poll::Ready(_) => self.outgoing.clear(),
                        Poll::Pending => break,
                    }
                }
                self.flushed = self.outgoing.is_empty() && stream.poll_flush(context).is_ready();
            }
            pin!(self.stream.read_buf(&mut self.buffer)).poll(context)
        })
        .await
    }
}

/// These are subscribed so that they can be told from what was missed, and not used yet.
fn is_for_the_bot(channel: &[u8]) -> bool {
    BOT.strip_suffix('*').is_some_and(|prefix| channel.starts_with(prefix.as_bytes()))
}

#[cfg(test)]
mod tests;
