//! The bus of the demo: messages that are published in this process.

use tokio::sync::mpsc;

use super::{Gap, Inbound, Position, Publication, Source};
use crate::lifecycle::Readiness;

/// Messages that wait to be dispatched, of 8 MiB each at most; a publisher waits for room.
const WAITING: usize = 8;

/// Publishes to the one [`MemorySource`]. Clones publish to the same.
#[derive(Clone)]
pub struct MemoryBus(mpsc::Sender<Publication>);

impl MemoryBus {
    /// A bus, and the source that is `readiness` once it is used.
    pub fn new(readiness: Readiness) -> (Self, MemorySource) {
        let (sender, queue) = mpsc::channel(WAITING);
        (Self(sender), MemorySource { queue, readiness, yielded: 0, subscribed: false, draining: false })
    }

    /// Publishes a message; returns the number of subscribers, which is 0 once the source is gone.
    pub async fn publish(&self, publication: Publication) -> u64 {
        self.0.send(publication).await.is_ok().into()
    }
}

/// Yields what is published on a [`MemoryBus`].
pub struct MemorySource {
    queue: mpsc::Receiver<Publication>,
    readiness: Readiness,
    yielded: u64,
    subscribed: bool,
    draining: bool,
}

impl Source for MemorySource {
    async fn next(&mut self) -> Inbound {
        if !std::mem::replace(&mut self.subscribed, true) {
            return Inbound::Subscribed { gap: Gap::Start, before: None };
        }
        // Only now does the caller know of the subscription.
        self.readiness.set(true);
        let next = if self.draining { self.queue.try_recv().ok() } else { self.queue.recv().await };
        match next {
            Some(Publication { channel, payload }) => {
                self.yielded += 1;
                let position = Some(Position { run: 0, count: self.yielded });
                Inbound::Message { position, channel: channel.into(), payload: Some(payload) }
            }
            None if std::mem::take(&mut self.draining) => Inbound::Drained,
            // Nothing can be published any more.
            None => std::future::pending().await,
        }
    }

    fn drain(&mut self) {
        self.draining = true;
    }
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::bus::RECORDS;

    async fn drained(source: &mut MemorySource) -> Vec<String> {
        source.drain();
        let mut yielded = Vec::new();
        loop {
            match source.next().await {
                Inbound::Message { channel, payload: Some(payload), .. } => {
                    assert_eq!(channel, RECORDS);
                    yielded.push(String::from_utf8(payload.to_vec()).unwrap());
                }
                Inbound::Drained => return yielded,
                other => panic!("{other:?}"),
            }
        }
    }

    #[tokio::test]
    async fn what_is_published_is_yielded_in_order() {
        let readiness = Readiness::default();
        let is_ready = readiness.clone().until(CancellationToken::new());
        let (bus, mut source) = MemoryBus::new(readiness);
        let publication = |room: &str| Publication::new(room, b"{}").unwrap();
        assert_eq!(bus.publish(publication("group-1")).await, 1);
        assert_eq!(source.next().await, Inbound::Subscribed { gap: Gap::Start, before: None });
        assert!(!is_ready());
        bus.publish(publication("user-2")).await;
        assert_eq!(drained(&mut source).await, [r#"{"room":"group-1"}"#, r#"{"room":"user-2"}"#]);
        assert!(is_ready());
        bus.publish(publication("user-3")).await;
        assert_eq!(drained(&mut source).await, [r#"{"room":"user-3"}"#]);
        drop(source);
        assert_eq!(bus.publish(publication("group-1")).await, 0);
    }
}
