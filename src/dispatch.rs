//! From the bus to the hub: the only place that decides where a message goes.
//!
//! Never waits for anything but the bus. What cannot be used is counted, said once a minute for each kind, and dropped.

use std::{sync::Arc, time::Instant};

use crate::{
    auth::EVERYONE,
    bus::{Inbound, Rejected, Source, Update, decode},
    hub::{Hub, Subscriber},
    metrics::{Counter, Metrics},
    telemetry::Throttle,
};

/// Makes a message of an event's name, its argument as JSON, and the text of its offset.
pub type Encode<M> = fn(&str, &str, &str) -> M;

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
            Inbound::Subscribed => hub.resume(false),
            Inbound::Lost => {
                metrics.count(Counter::Gaps);
                hub.interrupt();
            }
        }
    }
}

fn publish<S: Subscriber>(hub: &Hub<S>, update: &Update<'_>, encode: Encode<S::Message>) {
    let (event, room, payload) = match update {
        Update::Records { room, payload } => ("records", &**room, *payload),
        Update::Notice { payload } => ("notice", EVERYONE, *payload),
    };
    hub.publish(room, payload.as_bytes(), Instant::now(), |_, offset| encode(event, payload, offset));
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
