//! From the bus to the hub: the only place that decides where a message goes.
//!
//! Never waits for anything but the bus. What cannot be used is counted, said once a minute for each kind, and dropped.
//! When messages may have been lost, browsers are told so.

use std::{pin::pin, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::{
    admission::EVERYONE,
    bus::{Gap, Inbound, Rejected, Source, Update, decode},
    config::GapNotice,
    hub::{Hub, Subscriber},
    metrics::{Counter, Metrics},
    telemetry::Throttle,
};

/// Makes a message of an event's name, its argument as JSON, and the text of its offset.
pub type Encode<M> = fn(&str, &str, &str) -> M;

/// Least time between two notices of a gap: what comes sooner is told together, so that a subscription that is cut
/// again and again does not flood every browser.
const NOTICE_PAUSE: Duration = Duration::from_secs(10);

/// How long Redis may take to say what it had accepted when the stop came.
const DRAIN: Duration = Duration::from_millis(500);

/// The way from the bus to the hub.
pub struct Dispatch<S: Subscriber> {
    hub: Arc<Hub<S>>,
    encode: Encode<S::Message>,
    metrics: Metrics,
    notices: Notices,
}

impl<S: Subscriber> Dispatch<S> {
    /// To `hub`, in the form that `encode` gives to messages. Browsers are told of gaps as `notice` says.
    pub fn new(hub: Arc<Hub<S>>, encode: Encode<S::Message>, notice: &GapNotice, metrics: Metrics) -> Self {
        Self { hub, encode, metrics, notices: Notices::new(notice) }
    }

    /// Takes messages from `source` until `stop`, and then all that Redis had accepted by that time.
    pub async fn run(mut self, mut source: Source, stop: CancellationToken) {
        let (mut stopped, mut draining, mut end) = (pin!(stop.cancelled()), false, Instant::now());
        loop {
            let due = self.notices.due;
            if !draining && stop.is_cancelled() {
                (draining, end) = (true, Instant::now() + DRAIN);
                source.drain();
            }
            tokio::select! {
                biased;
                // First, as while messages come without a pause nothing after them has its turn.
                () = sleep_until(end), if draining => return,
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => self.notify(),
                inbound = source.next() => match inbound {
                    Inbound::Drained => return,
                    inbound => self.take(inbound),
                },
                () = &mut stopped, if !draining => {}
            }
        }
    }

    fn take(&mut self, inbound: Inbound) {
        match inbound {
            Inbound::Message { channel, payload } => {
                self.metrics.count(Counter::MessagesReceived);
                match decode(name(&channel), &payload) {
                    Ok(Update::Records { room, payload }) => self.publish("records", &room, payload),
                    Ok(Update::Notice { payload }) => self.publish("notice", EVERYONE, payload),
                    Err(rejected) => reject(&channel, rejected, &self.metrics),
                }
            }
            Inbound::TooLarge { channel } => {
                self.metrics.count(Counter::MessagesReceived);
                reject(&channel, Rejected::TooLarge, &self.metrics);
            }
            Inbound::Lost => self.hub.interrupt(),
            // Whoever connected before has not been told that it misses nothing, but need not reload for that either.
            Inbound::Subscribed { gap: Gap::Start } => self.hub.resume(false),
            Inbound::Subscribed { gap: Gap::Empty } => {
                self.metrics.count(Counter::GapsEmpty);
                self.hub.resume(true);
            }
            Inbound::Subscribed { gap: Gap::Possible } => {
                self.metrics.count(Counter::Gaps);
                self.hub.resume(false);
                if self.notices.note_gap(Instant::now()) {
                    self.notify();
                }
            }
            Inbound::Drained => {}
        }
    }

    fn publish(&self, event: &str, room: &str, payload: &str) {
        let now = std::time::Instant::now();
        self.hub.publish(room, payload.as_bytes(), now, |_, offset| (self.encode)(event, payload, offset));
    }

    /// Tells every browser of the gap: those that are connected now, and those that come back from before it.
    fn notify(&mut self) {
        if let Some(notice) = self.notices.take(Instant::now()) {
            self.publish("notice", EVERYONE, &notice);
        }
    }
}

/// When browsers are told of gaps.
struct Notices {
    /// As Loomio's own system notices are written; `None` to tell nothing.
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

    /// Whether browsers are to be told at once; if not, it is noted when.
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

/// Empty when it cannot be one that was subscribed to.
fn name(channel: &[u8]) -> &str {
    str::from_utf8(channel).unwrap_or_default()
}

fn reject(channel: &[u8], rejected: Rejected, metrics: &Metrics) {
    static KINDS: [Throttle; 7] = [const { Throttle::new() }; 7];
    metrics.count(Counter::MessagesRejected);
    let throttle = KINDS.get(rejected as usize);
    if let Some(more) = throttle.and_then(|throttle| throttle.allow(std::time::Instant::now())) {
        let channel = name(channel);
        tracing::warn!(channel, more_since_last = more, "dropped a message: it {rejected}");
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
