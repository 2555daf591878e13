//! Who hears which channel.
//!
//! Answers for: subscriptions by name and by pattern, and handing a message to everyone it concerns.
//! Must not know: connections, commands, keys.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::glob::Pattern;
use super::outbox::Outbox;
use super::reply::{Protocol, Reply};

/// Most channels and patterns of one client.
pub(super) const MAX_SUBSCRIPTIONS: usize = 1024;
/// Longest channel or pattern. Matching a pattern may take time in proportion to both lengths multiplied.
pub(super) const MAX_NAME_BYTES: usize = 1024;

/// A connection, as redis numbers them.
pub(super) type ClientId = i64;

type Subscribers = HashMap<ClientId, Arc<Outbox>>;

/// All subscriptions of all clients.
#[derive(Debug, Default)]
pub(super) struct Subscriptions {
    channels: HashMap<Bytes, Subscribers>,
    patterns: HashMap<Bytes, (Pattern, Subscribers)>,
}

impl Subscriptions {
    pub(super) fn add_channel(&mut self, channel: &Bytes, client: ClientId, outbox: &Arc<Outbox>) {
        let subscribers = self.channels.entry(channel.clone()).or_default();
        subscribers.insert(client, Arc::clone(outbox));
    }

    pub(super) fn add_pattern(&mut self, pattern: &Bytes, client: ClientId, outbox: &Arc<Outbox>) {
        let (_, subscribers) =
            self.patterns.entry(pattern.clone()).or_insert_with(|| (Pattern::new(pattern), Subscribers::new()));
        subscribers.insert(client, Arc::clone(outbox));
    }

    pub(super) fn remove_channel(&mut self, channel: &Bytes, client: ClientId) {
        if let Some(subscribers) = self.channels.get_mut(channel) {
            subscribers.remove(&client);
            if subscribers.is_empty() {
                self.channels.remove(channel);
            }
        }
    }

    pub(super) fn remove_pattern(&mut self, pattern: &Bytes, client: ClientId) {
        if let Some((_, subscribers)) = self.patterns.get_mut(pattern) {
            subscribers.remove(&client);
            if subscribers.is_empty() {
                self.patterns.remove(pattern);
            }
        }
    }

    /// Returns how many got the message; a client that matches in several ways gets it, and counts, as often.
    pub(super) fn publish(&self, channel: &Bytes, payload: &Bytes) -> usize {
        let mut receivers = 0;
        if let Some(subscribers) = self.channels.get(channel) {
            let message = vec![Reply::bulk("message"), Reply::Bulk(channel.clone()), Reply::Bulk(payload.clone())];
            receivers += deliver(message, subscribers);
        }
        for (name, (pattern, subscribers)) in &self.patterns {
            if pattern.matches(channel) {
                let message = vec![
                    Reply::bulk("pmessage"),
                    Reply::Bulk(name.clone()),
                    Reply::Bulk(channel.clone()),
                    Reply::Bulk(payload.clone()),
                ];
                receivers += deliver(message, subscribers);
            }
        }
        receivers
    }
}

/// Encodes once for each version of the protocol; all subscribers share the bytes.
fn deliver(message: Vec<Reply>, subscribers: &Subscribers) -> usize {
    let message = Reply::Push(message);
    let encode = |protocol| {
        let mut wire = BytesMut::new();
        message.clone().encode(protocol, &mut wire);
        wire.freeze()
    };
    let (mut resp2, mut resp3) = (None, None);
    let reached = subscribers.values().filter(|outbox| {
        let protocol = outbox.protocol();
        let wire = match protocol {
            Protocol::Resp2 => &mut resp2,
            Protocol::Resp3 => &mut resp3,
        };
        outbox.push(wire.get_or_insert_with(|| encode(protocol)).clone())
    });
    reached.count()
}

#[cfg(test)]
mod tests {
    use super::super::outbox::{Deliveries, outbox};
    use super::*;

    fn client() -> (Arc<Outbox>, Deliveries) {
        let (outbox, deliveries) = outbox();
        (Arc::new(outbox), deliveries)
    }

    #[test]
    fn a_message_reaches_names_and_patterns_each_in_its_own_form() {
        let mut all = Subscriptions::default();
        let ((one, mut to_one), (two, mut to_two)) = (client(), client());
        two.set_protocol(Protocol::Resp3);
        all.add_channel(&"/records".into(), 1, &one);
        all.add_channel(&"/records".into(), 2, &two);
        all.add_pattern(&"/r*".into(), 2, &two);
        assert_eq!(all.publish(&"/records".into(), &"hi".into()), 3);
        assert_eq!(all.publish(&"/rooms".into(), &"hi".into()), 1);
        assert_eq!(all.publish(&"/others".into(), &"hi".into()), 0);
        assert_eq!(to_one.try_next().unwrap(), "*3\r\n$7\r\nmessage\r\n$8\r\n/records\r\n$2\r\nhi\r\n");
        assert!(to_one.try_next().is_none());
        assert_eq!(to_two.try_next().unwrap(), ">3\r\n$7\r\nmessage\r\n$8\r\n/records\r\n$2\r\nhi\r\n");
        assert_eq!(to_two.try_next().unwrap(), ">4\r\n$8\r\npmessage\r\n$3\r\n/r*\r\n$8\r\n/records\r\n$2\r\nhi\r\n");
        assert_eq!(to_two.try_next().unwrap(), ">4\r\n$8\r\npmessage\r\n$3\r\n/r*\r\n$6\r\n/rooms\r\n$2\r\nhi\r\n");
        assert!(to_two.try_next().is_none());
    }

    #[test]
    fn nothing_is_left_behind() {
        let mut all = Subscriptions::default();
        let (outbox, _deliveries) = client();
        all.add_channel(&"a".into(), 1, &outbox);
        all.add_channel(&"a".into(), 1, &outbox);
        all.add_pattern(&"a".into(), 1, &outbox);
        all.remove_channel(&"a".into(), 2);
        assert_eq!(all.publish(&"a".into(), &"x".into()), 2);
        all.remove_channel(&"a".into(), 1);
        all.remove_pattern(&"a".into(), 1);
        all.remove_pattern(&"never".into(), 1);
        assert_eq!(all.publish(&"a".into(), &"x".into()), 0);
        assert!(all.channels.is_empty() && all.patterns.is_empty());
    }
}
