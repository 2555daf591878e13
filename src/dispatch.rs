//! From the bus to the hub: the only place that decides where a message goes.
//!
//! Waits for the bus, and for what comes before that: at the start, and after a gap that another node may fill. A message
//! that cannot be used is counted, logged once a minute for each reason, and dropped.

mod overlap;

use std::{collections::VecDeque, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::OptionFuture;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use self::overlap::Overlap;
use crate::{
    admission::EVERYONE,
    bus::{Gap, Inbound, Position, Rejected, Source, decode},
    config::GapNotice,
    history::{History, Loaded},
    hub::{Hub, Kind, LossNotice, Past},
    lifecycle::Readiness,
    metrics::{Counter, Metrics},
    telemetry::Throttle,
};

/// Least time between two notices of a gap, for a subscription that is cut again and again. Gaps that follow sooner are
/// told together.
const NOTICE_PAUSE: Duration = Duration::from_secs(10);

/// Bytes of messages that are kept while what came before them is read.
const WAITING_BYTES: usize = 64 << 20;

/// How long Redis may take to yield what it had accepted when the stop came.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(500);

/// The way from the bus to the hub.
pub struct Dispatch {
    hub: Hub,
    /// Where what came before is read, and what comes is kept; `None` for nowhere.
    history: Option<Arc<History>>,
    /// What the bus brought while something was read that comes before it, and when.
    waiting: VecDeque<(std::time::Instant, Inbound)>,
    /// Whether only what Redis had accepted is still taken, and nothing is waited for.
    is_stopping: bool,
    /// What the bus may still bring and the log has from the stream.
    overlap: Option<Overlap>,
    /// Sequence of the last message in the log.
    sequence: u64,
    /// Up to where the log reaches on the bus.
    noted: Option<Position>,
    /// Whether what came before the start has been read.
    is_begun: Readiness,
    metrics: Metrics,
    /// When browsers were last told of a gap.
    notified: Option<Instant>,
    /// When they are to be told of a gap that followed too soon.
    due: Option<Instant>,
}

impl Dispatch {
    /// To `hub`, which gets what was published before the start from `history`; after that it `is_begun`.
    pub fn new(hub: Hub, history: Option<Arc<History>>, is_begun: Readiness, metrics: Metrics) -> Self {
        Self {
            hub,
            history,
            waiting: VecDeque::new(),
            is_stopping: false,
            overlap: None,
            sequence: 0,
            noted: None,
            is_begun,
            metrics,
            notified: None,
            due: None,
        }
    }

    /// Takes messages from `source` until `stop`, and then all that Redis had accepted by that time.
    pub async fn run(mut self, mut source: impl Source, stop: CancellationToken) {
        stop.run_until_cancelled(self.follow(&mut source)).await;
        source.drain();
        self.is_stopping = true;
        let _ = timeout(DRAIN_TIMEOUT, self.follow(&mut source)).await;
    }

    /// Takes messages until the source is drained.
    async fn follow(&mut self, source: &mut impl Source) {
        loop {
            let waiting = &mut self.waiting;
            let next = async {
                if let Some(inbound) = waiting.pop_front() {
                    return inbound;
                }
                let inbound = source.next().await;
                (std::time::Instant::now(), inbound)
            };
            let (heard, inbound) = tokio::select! {
                biased;
                // First: while messages come without a pause, no later branch has its turn.
                Some(()) = OptionFuture::from(self.due.map(sleep_until)) => {
                    self.notify();
                    self.note(self.noted);
                    continue;
                }
                inbound = next => inbound,
            };
            match inbound {
                Inbound::Subscribed { gap: Gap::Start, before } if !self.is_stopping => {
                    self.begin(source, before).await;
                }
                Inbound::Subscribed { gap: Gap::Possible, before } if !self.is_stopping => {
                    self.fill(source, before).await;
                }
                Inbound::Drained => return,
                inbound => self.act(inbound, heard),
            }
        }
    }

    /// Reads what was published before this node listened, and keeps what the bus brings meanwhile until that is in the
    /// log.
    async fn begin(&mut self, source: &mut impl Source, before: Option<Position>) {
        // Browsers that were welcomed before, when Redis was not there in time, may have missed what was published since. They
        // are told, and what was restored is not delivered to them.
        let is_early = self.hub.has_listeners(EVERYONE);
        let Some(history) = self.history.clone() else {
            self.is_begun.set(true);
            return self.resume_after_start(false, is_early);
        };
        let start = Inbound::Subscribed { gap: Gap::Start, before };
        let mut loaded = self.wait_for(history.load(before), source, start).await;
        self.overlap = self.cut(&mut loaded, before);
        let Loaded { entries, position, gap, complete } = loaded;
        // Those that joined meanwhile miss what was published since this node listens and is restored.
        let is_ahead = self.overlap.as_ref().is_some_and(|overlap| overlap.first < entries.len());
        let is_early = is_early || (is_ahead && self.hub.has_listeners(EVERYONE));
        let complete = complete && !is_early;
        tracing::info!(events = entries.len(), complete, "read what was published before the start");
        self.sequence = self.hub.restore(entries, gap, std::time::Instant::now());
        self.resume_after_start(complete, is_early);
        // A gap counts as much as what was lost in it.
        self.note(if complete { position.filter(|_| self.waiting.is_empty()) } else { before });
        history.restored();
        self.is_begun.set(true);
    }

    /// Publishes what another node heard while this one did not, before what the bus brings now; or tells of the gap.
    async fn fill(&mut self, source: &mut impl Source, before: Option<Position>) {
        let gap = || Inbound::Subscribed { gap: Gap::Possible, before };
        let now = std::time::Instant::now();
        let (Some(history), Some(end)) = (self.history.clone(), before) else { return self.act(gap(), now) };
        let mut loaded = self.wait_for(history.fill(end), source, gap()).await;
        let overlap = self.cut(&mut loaded, before);
        if !loaded.complete {
            return self.act(gap(), now);
        }
        tracing::info!(events = loaded.entries.len(), "read what was published in the gap from another node's log");
        self.metrics.count(Counter::GapsFilled);
        // A second gap may have followed at once, and the first was filled beyond it.
        self.overlap = overlap.map(|overlap| overlap.after(self.overlap.take()));
        self.publish_all(loaded.entries);
        self.hub.resume(true);
        self.note(loaded.position.filter(|_| self.waiting.is_empty()));
    }

    /// Publishes what other nodes heard, but for their own notices of gaps.
    fn publish_all(&mut self, entries: VecDeque<Past>) {
        for entry in entries {
            let published = self.hub.published(&entry);
            if let Past::Event { kind: kind @ (Kind::Records | Kind::Notice), room, payload, .. } = entry {
                self.publish(kind, &room, payload, published);
            }
        }
    }

    /// Waits, and keeps what the bus brings meanwhile. What began this is kept too for as long: a stop may end the wait.
    async fn wait_for<T>(&mut self, answer: impl Future<Output = T>, source: &mut impl Source, began: Inbound) -> T {
        let size = |inbound: &Inbound| match inbound {
            Inbound::Message { payload: Some(payload), .. } => size_of::<Inbound>() + payload.len(),
            _ => size_of::<Inbound>(),
        };
        self.waiting.push_front((std::time::Instant::now(), began));
        let mut bytes = self.waiting.iter().map(|(_, inbound)| size(inbound)).sum::<usize>();
        let mut answer = pin!(answer);
        loop {
            tokio::select! {
                // What has come before the answer belongs to what is kept. More than this waits in Redis.
                biased;
                inbound = source.next(), if bytes < WAITING_BYTES => {
                    bytes += size(&inbound);
                    self.waiting.push_back((std::time::Instant::now(), inbound));
                }
                answer = &mut answer => {
                    self.waiting.pop_front();
                    return answer;
                }
            }
        }
    }

    /// Takes out of `loaded` what the bus has brought, after `before`.
    fn cut(&self, loaded: &mut Loaded, before: Option<Position>) -> Option<Overlap> {
        let payload = |(_, inbound): &_| match inbound {
            Inbound::Message { channel, payload: Some(payload), .. } => {
                decode(channel_name(channel), payload).is_ok().then(|| payload.clone())
            }
            _ => None,
        };
        let heard: Vec<_> = self.waiting.iter().filter_map(payload).collect();
        Overlap::cut(loaded, before, &heard, |payload| self.hub.fingerprint(payload))
    }

    /// Takes what the bus brought at the time `heard`.
    fn act(&mut self, inbound: Inbound, heard: std::time::Instant) {
        match inbound {
            Inbound::Message { position, channel, payload } => {
                if !self.has(position, payload.as_deref()) {
                    self.take(&channel, payload, heard);
                    self.note(position);
                }
            }
            Inbound::Moved(position) => self.note(Some(position)),
            Inbound::Lost => self.hub.interrupt(),
            Inbound::Subscribed { gap: Gap::Start, before } => {
                self.resume_after_start(false, true);
                self.note(before);
            }
            Inbound::Subscribed { gap: Gap::Empty, .. } => {
                self.metrics.count(Counter::GapsEmpty);
                self.hub.resume(true);
            }
            Inbound::Subscribed { gap: Gap::Possible, before } => {
                self.metrics.count(Counter::Gaps);
                // The stream must not say that it reaches a place after the gap before it has the gap.
                self.sequence = self.hub.resume(false);
                self.notify();
                self.note(before);
            }
            Inbound::Drained => {}
        }
    }

    fn resume_after_start(&mut self, complete: bool, is_early: bool) {
        self.sequence = self.hub.resume(complete);
        if is_early {
            self.notify();
        }
    }

    /// Whether a message is in the log already.
    fn has(&mut self, position: Option<Position>, payload: Option<&[u8]>) -> bool {
        let Some(overlap) = &mut self.overlap else { return false };
        let has = overlap.has(position, payload.map(|payload| self.hub.fingerprint(payload)));
        if has.is_none() {
            self.overlap = None;
        }
        has.unwrap_or(false)
    }

    fn note(&mut self, position: Option<Position>) {
        self.noted = position;
        if let Some(history) = &self.history {
            history.note(self.sequence, position);
        }
    }

    fn take(&mut self, channel: &[u8], payload: Option<Bytes>, heard: std::time::Instant) {
        self.metrics.count(Counter::MessagesReceived);
        let channel = channel_name(channel);
        let Some(payload) = payload else { return self.reject(channel, Rejected::TooLarge) };
        match decode(channel, &payload) {
            Ok(Some(room)) => self.publish(Kind::Records, &room, payload.clone(), heard),
            Ok(None) => self.publish(Kind::Notice, EVERYONE, payload, heard),
            Err(rejected) => self.reject(channel, rejected),
        }
    }

    fn publish(&mut self, kind: Kind, room: &str, payload: Bytes, published: std::time::Instant) {
        self.sequence = self.hub.publish(kind, room, payload, published).sequence;
    }

    fn reject(&self, channel: &str, rejected: Rejected) {
        static KINDS: [Throttle; 7] = [const { Throttle::new() }; 7];
        self.metrics.count(Counter::MessagesRejected);
        if let Some(more) = KINDS.get(rejected as usize).and_then(|kind| kind.allow(std::time::Instant::now())) {
            tracing::warn!(channel, more_since_last = more, "dropped a message: it {rejected}");
        }
    }

    /// Tells every browser that was there before the gap, also those that come back; or sets when, after a notice just now.
    fn notify(&mut self) {
        let now = Instant::now();
        self.due = self.notified.map(|last| last + NOTICE_PAUSE).filter(|&next| next > now);
        if self.due.is_none() {
            self.notified = Some(now);
            self.sequence = self.hub.tell_gap(now.into_std()).unwrap_or(self.sequence);
        }
    }
}

/// Empty when it is not text, which no channel of the subscription is.
fn channel_name(channel: &[u8]) -> &str {
    str::from_utf8(channel).unwrap_or_default()
}

/// What browsers are told of a gap, written as Loomio's own system notices are.
pub fn loss_notice(notice: &GapNotice) -> Option<LossNotice> {
    let GapNotice::Reload(text) = notice else { return None };
    let payload = serde_json::json!({ "notice": text, "reload": true }).to_string().into();
    Some(LossNotice { room: EVERYONE, payload })
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
            notice: loss_notice(notice),
        };
        let (hub, shards) = Hub::start(options, || ()).unwrap();
        (Dispatch::new(hub, None, Readiness::default(), Metrics::default()), shards)
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
        let payload = |notice| loss_notice(&notice).map(|notice| String::from_utf8(notice.payload.to_vec()).unwrap());
        assert_eq!(payload(GapNotice::Off), None);
        assert_eq!(payload(GapNotice::Reload(None)).as_deref(), Some(r#"{"notice":null,"reload":true}"#));
        let text = GapNotice::Reload(Some("\"Reload\", please".to_owned()));
        assert_eq!(payload(text).as_deref(), Some(r#"{"notice":"\"Reload\", please","reload":true}"#));
    }
}
