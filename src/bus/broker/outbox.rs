//! What waits to be written to one subscriber.
//!
//! Answers for: the bound on what a subscriber may leave unread, and saying so when it is passed.
//! Must not know: channels, patterns, what a message says.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::reply::Protocol;

/// Most bytes left unread: where redis closes a subscriber by default.
pub(super) const MAX_BACKLOG_BYTES: usize = 32 * 1024 * 1024;
/// Most messages left unread, so that tiny ones do not cost far more in bookkeeping than they count in bytes.
pub(super) const MAX_BACKLOG_MESSAGES: usize = 64 * 1024;

/// The publishing end.
#[derive(Debug)]
pub(super) struct Outbox {
    sender: mpsc::Sender<Bytes>,
    waiting: Arc<AtomicUsize>,
    overflowed: CancellationToken,
    resp3: AtomicBool,
}

/// The writing end.
#[derive(Debug)]
pub(super) struct Deliveries {
    receiver: mpsc::Receiver<Bytes>,
    waiting: Arc<AtomicUsize>,
    overflowed: CancellationToken,
}

pub(super) fn outbox() -> (Outbox, Deliveries) {
    let (sender, receiver) = mpsc::channel(MAX_BACKLOG_MESSAGES);
    let waiting = Arc::new(AtomicUsize::new(0));
    let overflowed = CancellationToken::new();
    let outbox =
        Outbox { sender, waiting: Arc::clone(&waiting), overflowed: overflowed.clone(), resp3: AtomicBool::new(false) };
    (outbox, Deliveries { receiver, waiting, overflowed })
}

impl Outbox {
    /// Queues encoded bytes; false when the subscriber is gone, or has fallen too far behind and has to go.
    pub(super) fn push(&self, message: Bytes) -> bool {
        let length = message.len();
        let waiting = self.waiting.fetch_add(length, Ordering::Relaxed) + length;
        if waiting <= MAX_BACKLOG_BYTES && !self.overflowed.is_cancelled() && self.sender.try_send(message).is_ok() {
            return true;
        }
        self.overflowed.cancel();
        false
    }

    pub(super) fn protocol(&self) -> Protocol {
        if self.resp3.load(Ordering::Relaxed) { Protocol::Resp3 } else { Protocol::Resp2 }
    }

    pub(super) fn set_protocol(&self, protocol: Protocol) {
        self.resp3.store(protocol == Protocol::Resp3, Ordering::Relaxed);
    }
}

impl Deliveries {
    /// The next message; waits for one. May be dropped without losing any.
    pub(super) async fn next(&mut self) -> Option<Bytes> {
        let message = self.receiver.recv().await?;
        self.waiting.fetch_sub(message.len(), Ordering::Relaxed);
        Some(message)
    }

    /// The next message if there is one already.
    pub(super) fn try_next(&mut self) -> Option<Bytes> {
        let message = self.receiver.try_recv().ok()?;
        self.waiting.fetch_sub(message.len(), Ordering::Relaxed);
        Some(message)
    }

    /// Cancelled when the bound was passed: messages are missing from then on.
    pub(super) fn overflowed(&self) -> CancellationToken {
        self.overflowed.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_makes_room_again() {
        let (outbox, mut deliveries) = outbox();
        let half = Bytes::from(vec![0; MAX_BACKLOG_BYTES / 2]);
        for _ in 0..5 {
            assert!(outbox.push(half.clone()));
            assert!(outbox.push(half.clone()));
            assert_eq!(deliveries.try_next().as_ref(), Some(&half));
            assert_eq!(deliveries.try_next().as_ref(), Some(&half));
        }
        assert!(deliveries.try_next().is_none());
        assert!(!deliveries.overflowed().is_cancelled());
    }

    #[test]
    fn too_many_bytes_end_it_for_good() {
        let (outbox, mut deliveries) = outbox();
        assert!(outbox.push(vec![0; MAX_BACKLOG_BYTES].into()));
        assert!(!outbox.push(Bytes::from_static(b"x")));
        assert!(deliveries.overflowed().is_cancelled());
        assert!(deliveries.try_next().is_some());
        assert!(!outbox.push(Bytes::from_static(b"x")), "a hole must not be followed by messages");
    }

    #[test]
    fn too_many_messages_end_it_too() {
        let (outbox, deliveries) = outbox();
        for _ in 0..MAX_BACKLOG_MESSAGES {
            assert!(outbox.push(Bytes::from_static(b"x")));
        }
        assert!(!outbox.push(Bytes::from_static(b"x")));
        assert!(deliveries.overflowed().is_cancelled());
    }
}
