//! From the bus to the hub: the only place that decides where a message goes.
//!
//! Never waits for anything but the bus. What cannot be used is counted, said once a minute for each kind, and dropped.

use std::{sync::Arc, time::Instant};

use crate::{
    auth::EVERYONE,
    bus::{Gap, Inbound, Rejected, Source, Update, decode},
    hub::{Hub, Offset, Subscriber, fingerprint},
    metrics::{Counter, Metrics},
    telemetry::Throttle,
};

/// Makes a message of an event's name, its argument as JSON, and its offset.
pub type Encode<M> = fn(&str, &str, &Offset) -> M;

/// Takes messages from `source` to `hub` until cancelled.
pub async fn run<S: Subscriber>(mut source: Source, hub: Arc<Hub<S>>, encode: Encode<S::Message>, metrics: Metrics) {
    loop {
        match source.next().await {
            Inbound::Message { channel, payload } => {
                metrics.count(Counter::MessagesReceived);
                match decode(name(&channel), &payload) {
                    Ok(update) => publish(&hub, &update, encode),
                    Err(rejected) => reject(&channel, rejected, &metrics),
                }
            }
            Inbound::TooLarge { channel } => {
                metrics.count(Counter::MessagesReceived);
                reject(&channel, Rejected::TooLarge, &metrics);
            }
            Inbound::Subscribed { gap } => {
                match gap {
                    Gap::Start => {}
                    Gap::Empty => metrics.count(Counter::GapsEmpty),
                    Gap::Possible => metrics.count(Counter::Gaps),
                }
                if gap != Gap::Empty {
                    hub.note_gap();
                }
            }
            Inbound::Lost | Inbound::Drained => {}
        }
    }
}

fn publish<S: Subscriber>(hub: &Hub<S>, update: &Update<'_>, encode: Encode<S::Message>) {
    let (event, room, payload) = match update {
        Update::Records { room, payload } => ("records", &**room, *payload),
        Update::Notice { payload } => ("notice", EVERYONE, *payload),
    };
    hub.publish(room, fingerprint(payload.as_bytes()), Instant::now(), |offset| encode(event, payload, offset));
}

/// Empty when it cannot be one that was subscribed to.
fn name(channel: &[u8]) -> &str {
    str::from_utf8(channel).unwrap_or_default()
}

fn reject(channel: &[u8], rejected: Rejected, metrics: &Metrics) {
    static KINDS: [Throttle; 7] = [const { Throttle::new() }; 7];
    metrics.count(Counter::MessagesRejected);
    if let Some(more) = KINDS.get(rejected as usize).and_then(|throttle| throttle.allow(Instant::now())) {
        let channel = name(channel);
        tracing::warn!(channel, more_since_last = more, "dropped a message: it {rejected}");
    }
}
