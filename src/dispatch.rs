//! From the bus to the hub: the only place that decides where a message goes.
//!
//! Never waits for anything but the bus. A message that cannot be used is counted, logged once a minute for each reason,
//! and dropped. When messages may have been lost, browsers are told so.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    admission::EVERYONE,
    bus::{Gap, Inbound, Rejected, Source, Update, decode},
    config::GapNotice,
    hub::{Hub, Kind},
    metrics::{Counter, Metrics},
    telemetry::Throttle,
};

/// Least time between two notices of a gap. Gaps that follow sooner are told together, so that a subscription that is cut
/// again and again does not flood every browser.
const NOTICE_PAUSE: Duration = Duration::from_secs(10);

/// How long Redis may take to yield what it had accepted when the stop came.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(500);

/// The way from the bus to the hub.
pub struct Dispatch {
    hub: Hub,
    metrics: Metrics,
    notices: Notices,
}

impl Dispatch {
    /// To `hub`. Browsers are told of gaps as `notice` says.
    pub fn new(hub: Hub, notice: &GapNotice, metrics: Metrics) -> Self {
        Self { hub, metrics, notices: Notices::new(notice) }
    }

    /// Takes messages from `source` until `stop`, and then all that Redis had accepted by that time.
    pub async fn run(mut self, mut source: impl Source, stop: CancellationToken) {
        stop.run_until_cancelled(self.follow(&mut source)).await;
        source.drain();
        // A Redis that does not answer in time is not waited for.
        let _ = timeout(DRAIN_TIMEOUT, self.follow(&mut source)).await;
    }

    /// Takes messages until the source is drained.
    async fn follow(&mut self, source: &mut impl Source) {
        loop {
            let due = self.notices.due;
            tokio::select! {
                biased;
                // First: while messages come without a pause, no later branch has its turn.
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => self.notify(),
                inbound = source.next() => match inbound {
                    Inbound::Drained => return,
                    inbound => self.take(inbound),
                },
            }
        }
    }

    fn take(&mut self, inbound: Inbound) {
        match inbound {
            Inbound::Message { channel, payload } => {
                self.metrics.count(Counter::MessagesReceived);
                // Empty when it is not text, which no channel of the subscription is.
                let channel = str::from_utf8(&channel).unwrap_or_default();
                match payload.as_deref().ok_or(Rejected::TooLarge).and_then(|payload| decode(channel, payload)) {
                    Ok(Update::Records { room, payload }) => self.publish(Kind::Records, &room, payload),
                    Ok(Update::Notice { payload }) => self.publish(Kind::Notice, EVERYONE, payload),
                    Err(rejected) => self.reject(channel, rejected),
                }
            }
            Inbound::Lost => self.hub.interrupt(),
            // A browser that connected before was not told that it missed nothing, but need not reload for that either.
            Inbound::Subscribed(Gap::Start) => self.hub.resume(false),
            Inbound::Subscribed(Gap::Empty) => {
                self.metrics.count(Counter::GapsEmpty);
                self.hub.resume(true);
            }
            Inbound::Subscribed(Gap::Possible) => {
                self.metrics.count(Counter::Gaps);
                self.hub.resume(false);
                if self.notices.note_gap(Instant::now()) {
                    self.notify();
                }
            }
            Inbound::Drained => {}
        }
    }

    fn publish(&self, kind: Kind, room: &str, payload: &str) {
        self.hub.publish(kind, room, payload.as_bytes(), std::time::Instant::now());
    }

    fn reject(&self, channel: &str, rejected: Rejected) {
        static KINDS: [Throttle; 7] = [const { Throttle::new() }; 7];
        self.metrics.count(Counter::MessagesRejected);
        let throttle = KINDS.get(rejected as usize);
        if let Some(more) = throttle.and_then(|throttle| throttle.allow(std::time::Instant::now())) {
            tracing::warn!(channel, more_since_last = more, "dropped a message: it {rejected}");
        }
    }

    /// Tells every browser of the gap: those that are connected now, and those that come back from before it.
    fn notify(&mut self) {
        if let Some(notice) = self.notices.take(Instant::now()) {
            self.publish(Kind::Notice, EVERYONE, &notice);
        }
    }
}

/// When browsers are told of gaps.
struct Notices {
    /// Written as Loomio's own system notices are; `None` to tell nothing.
    payload: Option<Arc<str>>,
    last: Option<Instant>,
    due: Option<Instant>,
}

impl Notices {
    fn new(notice: &GapNotice) -> Self {
        let payload = match notice {
            GapNotice::Off => None,
            GapNotice::Reload(text) => Some(serde_json::json!({ "notice": text, "reload": true }).to_string().into()),
        };
        Self { payload, last: None, due: None }
    }

    /// Returns whether browsers are to be told at once; otherwise sets when they are.
    fn note_gap(&mut self, now: Instant) -> bool {
        let next = self.last.map_or(now, |last| last + NOTICE_PAUSE);
        if next > now {
            self.due = Some(next);
        }
        next <= now
    }

    fn take(&mut self, now: Instant) -> Option<Arc<str>> {
        (self.last, self.due) = (Some(now), None);
        self.payload.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn gaps_in_quick_succession_are_told_together() {
        let mut notices = Notices::new(&GapNotice::Reload(None));
        let start = Instant::now();
        assert!(notices.note_gap(start));
        assert_eq!(notices.take(start).as_deref(), Some(r#"{"notice":null,"reload":true}"#));
        let soon = start + NOTICE_PAUSE / 2;
        assert!(!notices.note_gap(soon) && !notices.note_gap(soon));
        assert_eq!(notices.due, Some(start + NOTICE_PAUSE));
        assert!(notices.take(start + NOTICE_PAUSE).is_some() && notices.due.is_none());
        assert!(notices.note_gap(start + NOTICE_PAUSE * 2));
    }

    #[test]
    fn a_notice_is_as_loomio_writes_it() {
        let payload = |notice| Notices::new(&notice).payload;
        assert_eq!(payload(GapNotice::Off), None);
        let text = GapNotice::Reload(Some("\"Reload\", please".to_owned()));
        assert_eq!(payload(text).as_deref(), Some(r#"{"notice":"\"Reload\", please","reload":true}"#));
    }
}
