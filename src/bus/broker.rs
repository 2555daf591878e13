//! A small Redis-protocol broker inside the process, so that `loomio-channels demo` needs nothing installed.
//!
//! Answers for: pub/sub and keys with expiry as Rails and the channel server use them, in the words of redis,
//! for any client on the network including hostile ones: every queue, key space and request is bounded.
//! It keeps nothing on disk and knows one database and one user.
//! Must not know: what the channels mean, rooms, browsers, configuration.

mod command;
mod connection;
mod glob;
mod outbox;
mod pubsub;
mod reply;
mod session;
mod store;
#[cfg(test)]
mod tests;
mod wire;

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rand::RngExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};
use tokio_util::codec::Decoder;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::command::{Expiry, SetCommand};
use self::pubsub::Subscriptions;
use self::session::Session;
use self::store::Store;

/// Most clients at a time.
const MAX_CLIENTS: usize = 1024;
/// Rest after a failed accept. The usual cause, no file descriptor left, does not pass by trying at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The broker; clones share one state.
#[derive(Clone, Debug)]
pub struct Broker {
    shared: Arc<Shared>,
}

/// What all clients have in common. The locks are held for one command at most and never both at once.
#[derive(Debug)]
struct Shared {
    store: Mutex<Store>,
    subscriptions: Mutex<Subscriptions>,
    slots: Arc<Semaphore>,
    last_client: AtomicI64,
    /// Messages that were published.
    publishes: AtomicU64,
    /// Different for each broker, as redis has one for each start.
    run_id: String,
    started: Instant,
}

impl Shared {
    /// A panic elsewhere leaves the key space whole: every change to it is complete before anything can fail.
    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn subscriptions(&self) -> MutexGuard<'_, Subscriptions> {
        self.subscriptions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counted under the lock, so that a subscriber that asks for the count has been sent everything in it.
    fn publish(&self, channel: &Bytes, payload: &Bytes) -> usize {
        let subscriptions = self.subscriptions();
        self.publishes.fetch_add(1, Ordering::Relaxed);
        subscriptions.publish(channel, payload)
    }

    fn clients(&self) -> usize {
        MAX_CLIENTS - self.slots.available_permits()
    }
}

impl Default for Broker {
    fn default() -> Self {
        Self::new()
    }
}

impl Broker {
    /// An empty broker that listens nowhere yet.
    pub fn new() -> Self {
        Self {
            shared: Arc::new(Shared {
                store: Mutex::default(),
                subscriptions: Mutex::default(),
                slots: Arc::new(Semaphore::new(MAX_CLIENTS)),
                last_client: AtomicI64::new(0),
                publishes: AtomicU64::new(0),
                run_id: format!("{:040x}", rand::rng().random::<u128>()),
                started: Instant::now(),
            }),
        }
    }

    /// Serves clients on an already bound listener until `stop`, which also ends their connections.
    /// Connection tasks are spawned on `tracker`.
    pub async fn serve(&self, listener: TcpListener, tracker: TaskTracker, stop: CancellationToken) {
        while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
            match accepted {
                Ok((stream, _)) => self.admit(stream, &tracker, &stop),
                Err(error) => {
                    tracing::warn!(%error, "broker cannot accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn admit(&self, stream: TcpStream, tracker: &TaskTracker, stop: &CancellationToken) {
        let Ok(slot) = Arc::clone(&self.shared.slots).try_acquire_owned() else {
            tracing::warn!(limit = MAX_CLIENTS, "broker is full, connection refused");
            // A fresh socket takes this much; if it does not, the client learns from the close alone.
            let _ = stream.try_write(b"-ERR max number of clients reached\r\n");
            return;
        };
        let id = self.shared.last_client.fetch_add(1, Ordering::Relaxed) + 1;
        let (session, deliveries) = Session::new(Arc::clone(&self.shared), id);
        let stop = stop.clone();
        tracker.spawn(async move {
            connection::run(stream, session, deliveries, stop).await;
            drop(slot);
        });
    }

    /// Sets a key that does not expire. In a full store (100,000 keys, 256 MiB) nothing happens.
    pub fn set(&self, key: &str, value: impl Into<Bytes>) {
        let command = SetCommand {
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: value.into(),
            expiry: Expiry::Never,
            condition: None,
            get: false,
        };
        if let Err(error) = self.shared.store().set(&command, Instant::now()) {
            tracing::warn!(%error, "broker did not store a key");
        }
    }

    /// Hands a message to all subscribers of `channel`; returns how many received it.
    #[expect(clippy::needless_pass_by_value, reason = "callers hand the message over and are done with it")]
    pub fn publish(&self, channel: &str, payload: Bytes) -> usize {
        let channel = Bytes::copy_from_slice(channel.as_bytes());
        self.shared.publish(&channel, &payload)
    }
}

/// The requests that a client's bytes come to when they arrive in pieces of `step`, and why it ends, if it does. Two
/// clients carry out each of them.
#[doc(hidden)]
pub fn fuzz_requests(data: &[u8], step: usize) -> (Vec<Vec<Bytes>>, Option<String>) {
    let broker = Broker::new();
    let mut clients = [1, 2].map(|id| Session::new(Arc::clone(&broker.shared), id));
    let (mut codec, mut buffer, mut requests) = (wire::RequestCodec::default(), BytesMut::new(), Vec::new());
    for piece in data.chunks(step) {
        buffer.extend_from_slice(piece);
        loop {
            let request = match codec.decode(&mut buffer) {
                Ok(Some(request)) => request,
                Ok(None) => break,
                Err(error) => return (requests, Some(error.to_string())),
            };
            for (session, deliveries) in &mut clients {
                let (outcome, mut out) = (session.execute(request.clone(), Instant::now()), BytesMut::new());
                outcome.replies.into_iter().for_each(|reply| reply.encode(session.protocol(), &mut out));
                while deliveries.try_next().is_some() {}
            }
            requests.push(request);
        }
    }
    (requests, None)
}
