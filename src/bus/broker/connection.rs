//! One client's socket.
//!
//! Answers for: reading requests, writing answers and messages in redis's order, and ending a connection that
//! cannot go on.
//! Must not know: what any command means.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{FutureExt, StreamExt};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::{Instant, timeout};
use tokio_util::codec::FramedRead;
use tokio_util::sync::CancellationToken;

use super::outbox::Deliveries;
use super::reply::Reply;
use super::session::Session;
use super::wire::{RequestCodec, WireError};

/// Bytes gathered before they are written: enough to make a pipeline cheap, little enough to keep per client.
const WRITE_BATCH_BYTES: usize = 64 * 1024;
/// Requests of one pipeline answered in a row before other clients get their turn.
const REQUESTS_PER_TURN: usize = 256;
/// A client that takes nothing for this long is gone.
const WRITE_TIMEOUT: Duration = Duration::from_mins(1);

/// Why a connection ended, other than by the client's wish or ours.
#[derive(Debug, thiserror::Error)]
enum ConnectionError {
    #[error("subscriber does not read its messages")]
    Slow,
    #[error("client cannot be understood")]
    Wire(#[from] WireError),
    #[error("write failed")]
    Write(#[source] io::Error),
}

/// Serves one client until it leaves, misbehaves, or `stop`.
pub(super) async fn run(stream: TcpStream, session: Session, deliveries: Deliveries, stop: CancellationToken) {
    // Answers are gathered here already; waiting for more in the kernel only delays them.
    let _ = stream.set_nodelay(true);
    let (reader, writer) = stream.into_split();
    let requests = FramedRead::new(reader, RequestCodec::default());
    let connection =
        Connection { requests, writer, overflowed: deliveries.overflowed(), deliveries, session, out: BytesMut::new() };
    match stop.run_until_cancelled(connection.serve()).await {
        None | Some(Ok(())) => {}
        Some(Err(error)) => {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            if matches!(error, ConnectionError::Slow | ConnectionError::Wire(WireError::Http)) {
                tracing::warn!(%error, cause, "broker client disconnected");
            } else {
                tracing::debug!(%error, cause, "broker client disconnected");
            }
        }
    }
}

struct Connection {
    requests: FramedRead<OwnedReadHalf, RequestCodec>,
    writer: OwnedWriteHalf,
    session: Session,
    deliveries: Deliveries,
    overflowed: CancellationToken,
    out: BytesMut,
}

enum Turn {
    Request(Option<Result<Vec<Bytes>, WireError>>),
    Message(Option<Bytes>),
}

impl Connection {
    async fn serve(mut self) -> Result<(), ConnectionError> {
        loop {
            let turn = tokio::select! {
                biased;
                () = self.overflowed.cancelled() => return Err(ConnectionError::Slow),
                request = self.requests.next() => Turn::Request(request),
                message = self.deliveries.next() => Turn::Message(message),
            };
            let result = match turn {
                Turn::Request(request) => self.answer(request),
                Turn::Message(message) => {
                    self.out.extend(message.into_iter().flatten());
                    self.gather_messages(WRITE_BATCH_BYTES);
                    Ok(true)
                }
            };
            // What was answered before a mistake still goes out, and the mistake's name after it.
            let written = self.write().await;
            if !result? {
                return Ok(());
            }
            written?;
        }
    }

    /// Answers this request and those that arrived with it; false when the conversation is over.
    fn answer(&mut self, first: Option<Result<Vec<Bytes>, WireError>>) -> Result<bool, ConnectionError> {
        let mut next = Some(first);
        let mut answered = 0;
        while let Some(request) = next {
            let request = match request {
                None => return Ok(false),
                Some(Ok(request)) => request,
                Some(Err(error)) => {
                    if !matches!(error, WireError::Http | WireError::Io(_)) {
                        Reply::Error(format!("ERR {error}")).encode(self.session.protocol(), &mut self.out);
                    }
                    return Err(error.into());
                }
            };
            let outcome = self.session.execute(request, Instant::now());
            if outcome.messages_first {
                self.gather_messages(usize::MAX);
            }
            for reply in outcome.replies {
                reply.encode(self.session.protocol(), &mut self.out);
            }
            if outcome.close {
                return Ok(false);
            }
            answered += 1;
            if answered == REQUESTS_PER_TURN || self.out.len() >= WRITE_BATCH_BYTES {
                break;
            }
            next = self.requests.next().now_or_never();
        }
        Ok(true)
    }

    fn gather_messages(&mut self, limit: usize) {
        while self.out.len() < limit {
            let Some(message) = self.deliveries.try_next() else {
                return;
            };
            self.out.extend_from_slice(&message);
        }
    }

    async fn write(&mut self) -> Result<(), ConnectionError> {
        if self.out.is_empty() {
            return Ok(());
        }
        tokio::select! {
            biased;
            () = self.overflowed.cancelled() => return Err(ConnectionError::Slow),
            written = timeout(WRITE_TIMEOUT, self.writer.write_all_buf(&mut self.out)) => {
                written.unwrap_or_else(|late| Err(late.into())).map_err(ConnectionError::Write)?;
            }
        }
        if self.out.capacity() > WRITE_BATCH_BYTES {
            // One large answer must not be paid for until the client leaves.
            self.out = BytesMut::new();
        }
        Ok(())
    }
}
