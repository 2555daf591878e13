//! From the bus to the hub: the only place that decides where a message goes.
//!
//! Never waits for anything but the bus. A message that cannot be used is counted, logged once a minute for each reason,
//! and dropped.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::OptionFuture;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    admission::EVERYONE,
    bus::{Gap, Inbound, Rejected, Source, decode},
    config::GapNotice,
    hub::{Hub, Kind},
    metrics::{Counter, Metrics},
    telemetry::Throttle,
};

/// Least time between two notices of a gap, for a subscription that is cut again and again. Gaps that follow sooner are
/// told together.
const NOTICE_PAUSE: Duration = Duration::from_secs(10);

/// How long Redis may take to yield what it had accepted when the stop came.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(500);

/// The way from the bus to the hub.
pub struct Dispatch {
    hub: Hub,
    metrics: Metrics,
    /// What browsers are told of a gap, written as Loomio's own system notices are; `None` to tell nothing.
    notice: Option<String>,
    /// When they were last told.
    notified: Option<Instant>,
    /// When they are to be told of a gap that followed too soon.
    due: Option<Instant>,
}

impl Dispatch {
    /// To `hub`. Browsers are told of gaps as `notice` says.
    pub fn new(hub: Hub, notice: &GapNotice, metrics: Metrics) -> Self {
        let notice = match notice {
            GapNotice::Off => None,
            GapNotice::Reload(text) => Some(serde_json::json!({ "notice": text, "reload": true }).to_string()),
        };
        Self { hub, metrics, notice, notified: None, due: None }
    }

    /// Takes messages from `source` until `stop`, and then all that Redis had accepted by that time.
    pub async fn run(mut self, mut source: impl Source, stop: CancellationToken) {
        stop.run_until_cancelled(self.follow(&mut source)).await;
        source.drain();
        let _ = timeout(DRAIN_TIMEOUT, self.follow(&mut source)).await;
    }

    /// Takes messages until the source is drained.
    async fn follow(&mut self, source: &mut impl Source) {
        loop {
            let inbound = tokio::select! {
                biased;
                // First: while messages come without a pause, no later branch has its turn.
                Some(()) = OptionFuture::from(self.due.map(sleep_until)) => {
                    self.notify();
                    continue;
                }
                inbound = source.next() => inbound,
            };
            match inbound {
                Inbound::Message { channel, payload, .. } => self.take(&channel, payload),
                Inbound::Lost => self.hub.interrupt(),
                // A browser that connected before was not told that it missed nothing, but need not reload either.
                Inbound::Subscribed(Gap::Start) => self.hub.resume(false),
                Inbound::Subscribed(Gap::Empty) => {
                    self.metrics.count(Counter::GapsEmpty);
                    self.hub.resume(true);
                }
                Inbound::Subscribed(Gap::Possible) => {
                    self.metrics.count(Counter::Gaps);
                    self.hub.resume(false);
                    self.notify();
                }
                Inbound::Drained => return,
            }
        }
    }

    fn take(&self, channel: &[u8], payload: Option<Bytes>) {
        self.metrics.count(Counter::MessagesReceived);
        // Empty when it is not text, which no channel of the subscription is.
        let channel = str::from_utf8(channel).unwrap_or_default();
        let Some(payload) = payload else { return self.reject(channel, Rejected::TooLarge) };
        match decode(channel, &payload) {
            Ok(Some(room)) => self.publish(Kind::Records, &room, payload.clone()),
            Ok(None) => self.publish(Kind::Notice, EVERYONE, payload),
            Err(rejected) => self.reject(channel, rejected),
        }
    }

    fn publish(&self, kind: Kind, room: &str, payload: Bytes) {
        self.hub.publish(kind, room, payload, std::time::Instant::now());
    }

    fn reject(&self, channel: &str, rejected: Rejected) {
        static KINDS: [Throttle; 7] = [const { Throttle::new() }; 7];
        self.metrics.count(Counter::MessagesRejected);
        if let Some(more) = KINDS.get(rejected as usize).and_then(|kind| kind.allow(std::time::Instant::now())) {
            tracing::warn!(channel, more_since_last = more, "dropped a message: it {rejected}");
        }
    }

    /// Tells every browser of the gap, also those that come back from before it; or sets when, after a notice just now.
    fn notify(&mut self) {
        let now = Instant::now();
        self.due = self.notified.map(|last| last + NOTICE_PAUSE).filter(|&next| next > now);
        if self.due.is_none() {
            self.notified = Some(now);
            if let Some(notice) = &self.notice {
                self.publish(Kind::Notice, EVERYONE, Bytes::copy_from_slice(notice.as_bytes()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;
    use crate::hub::{Clock, Epoch, HubOptions, LogBounds, OffsetKey, Shards};

    fn dispatch(notice: &GapNotice) -> (Dispatch, Shards) {
        let options = HubOptions {
            epoch: Epoch(1),
            key: OffsetKey::new(&[7; 32]),
            bounds: LogBounds { window: Duration::from_hours(1), bytes: 10_000, undelivered: 0, replay: 10_000 },
            shards: 1,
            clock: Clock { at: std::time::Instant::now(), unix: 0 },
        };
        let (hub, shards) = Hub::start(options, || ()).unwrap();
        (Dispatch::new(hub, notice, Metrics::default()), shards)
    }

    #[tokio::test(start_paused = true)]
    async fn gaps_in_quick_succession_are_told_together() {
        let (mut dispatch, _shards) = dispatch(&GapNotice::Reload(None));
        let start = Instant::now();
        dispatch.notify();
        let notice = dispatch.hub.log_bytes();
        assert!(notice > 0 && dispatch.due.is_none());
        advance(NOTICE_PAUSE / 2).await;
        dispatch.notify();
        dispatch.notify();
        assert_eq!((dispatch.hub.log_bytes(), dispatch.due), (notice, Some(start + NOTICE_PAUSE)));
        advance(NOTICE_PAUSE / 2).await;
        dispatch.notify();
        assert_eq!((dispatch.hub.log_bytes(), dispatch.due), (2 * notice, None));
        advance(NOTICE_PAUSE).await;
        dispatch.notify();
        assert_eq!(dispatch.hub.log_bytes(), 3 * notice);
    }

    #[test]
    fn a_notice_is_as_loomio_writes_it() {
        let payload = |notice| dispatch(&notice).0.notice;
        assert_eq!(payload(GapNotice::Off), None);
        assert_eq!(payload(GapNotice::Reload(None)).as_deref(), Some(r#"{"notice":null,"reload":true}"#));
        let text = GapNotice::Reload(Some("\"Reload\", please".to_owned()));
        assert_eq!(payload(text).as_deref(), Some(r#"{"notice":"\"Reload\", please","reload":true}"#));
    }
}
