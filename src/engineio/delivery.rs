//! The body of an answer to a GET: shared bytes, given to the HTTP server as the socket takes them.

use std::{
    collections::VecDeque,
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::body::HttpBody;
use bytes::Bytes;
use hyper::body::{Frame as BodyFrame, SizeHint};

use super::{CloseReason, Handler, Session};

/// Bytes given to the HTTP server at a time, so that what has left is known while a long answer is on its way, and that
/// hundreds of such answers do not hold up other tasks: the kernel may take megabytes at once.
const CHUNK: usize = 64 * 1024;

/// An answer on its way, or in the making. Messages in it have left the outbox: if its client goes away before all of
/// it was taken, the session ends, as they could be lost.
pub(super) struct Delivery<H: Handler> {
    session: Arc<Session<H>>,
    /// `None` while it is not known yet what will be sent.
    pieces: Option<VecDeque<Bytes>>,
    length: u64,
    /// Others run before the next chunk.
    yields: bool,
}

impl<H: Handler> Delivery<H> {
    pub(super) fn to(session: &Arc<Session<H>>) -> Self {
        Self { session: Arc::clone(session), pieces: None, length: 0, yields: false }
    }

    pub(super) fn of(mut self, pieces: VecDeque<Bytes>) -> Self {
        self.length = pieces.iter().map(|piece| piece.len() as u64).sum();
        if pieces.is_empty() {
            self.session.answered();
        }
        self.pieces = Some(pieces);
        self
    }
}

impl<H: Handler> HttpBody for Delivery<H> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<BodyFrame<Bytes>, Infallible>>> {
        if std::mem::take(&mut self.yields) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let Some(pieces) = &mut self.pieces else { return Poll::Ready(None) };
        let Some(first) = pieces.front_mut() else { return Poll::Ready(None) };
        let chunk = first.split_to(first.len().min(CHUNK));
        if first.is_empty() {
            pieces.pop_front();
            if pieces.is_empty() {
                // Before the last bytes leave, as the client may then ask again at once.
                self.session.answered();
            }
        }
        self.length -= chunk.len() as u64;
        self.yields = chunk.len() == CHUNK;
        self.session.progress(chunk.len());
        Poll::Ready(Some(Ok(BodyFrame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.as_ref().is_some_and(VecDeque::is_empty)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.length)
    }
}

impl<H: Handler> Drop for Delivery<H> {
    fn drop(&mut self) {
        if !self.is_end_stream() {
            self.session.close(CloseReason::TransportClose);
        }
    }
}
