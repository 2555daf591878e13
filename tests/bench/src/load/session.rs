//! What a browser keeps between two connections, and what it makes of a packet. Without I/O.

use std::{collections::HashSet, sync::atomic::Ordering::Relaxed};

use super::tally::Tally;
use crate::redis::now;

/// How a client answers a packet.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Nothing,
    /// Send CONNECT.
    Connect,
    Pong,
    /// The client is in its namespace.
    Joined,
    /// A message came that it had not seen before.
    Record,
    /// The server ended it.
    Left,
}

/// One browser.
pub(super) struct Session {
    /// Number of the newest message.
    last: u64,
    /// Numbers of all messages, where a newer one may come first.
    seen: Option<HashSet<u64>>,
    pid: Option<String>,
    offset: Option<String>,
    /// Whether it keeps its place for recovery, as the official client does.
    pub(super) recovers: bool,
    /// Whether it measures.
    pub(super) sampled: bool,
    /// When it dialled last, in microseconds since 1970.
    pub(super) dialled: u64,
}

impl Session {
    pub(super) fn new(recovers: bool, sampled: bool) -> Self {
        Self { last: 0, seen: None, pid: None, offset: None, recovers, sampled, dialled: 0 }
    }

    /// One that takes messages in any order, for memory of each.
    pub(super) fn in_any_order(self) -> Self {
        Self { seen: Some(HashSet::new()), ..self }
    }

    /// The CONNECT packet, without its Engine.IO type.
    pub(super) fn connect(&self) -> String {
        match (&self.pid, &self.offset) {
            (Some(pid), Some(offset)) => format!(r#"0{{"pid":"{pid}","offset":"{offset}"}}"#),
            (Some(pid), None) => format!(r#"0{{"pid":"{pid}"}}"#),
            (None, _) => "0".to_owned(),
        }
    }

    /// Takes an Engine.IO packet.
    pub(super) fn take(&mut self, packet: &[u8], tally: &Tally) -> Answer {
        match packet {
            [b'0', ..] => Answer::Connect,
            [b'2'] => Answer::Pong,
            [b'4', b'0', ..] => {
                self.join(packet, tally);
                Answer::Joined
            }
            [b'4', b'2', event @ ..] => self.event(event, tally),
            [b'1'] | [b'4', b'1' | b'4', ..] => Answer::Left,
            _ => Answer::Nothing,
        }
    }

    fn join(&mut self, packet: &[u8], tally: &Tally) {
        if !self.recovers {
            return;
        }
        let pid = after(packet, br#""pid":""#).and_then(|rest| rest.split(|&byte| byte == b'"').next());
        let pid = pid.map(|pid| String::from_utf8_lossy(pid).into_owned());
        if self.pid.is_some() {
            tally.returned.fetch_add(1, Relaxed);
            tally.recovered.fetch_add(u64::from(pid == self.pid), Relaxed);
        }
        self.pid = pid;
    }

    fn event(&mut self, event: &[u8], tally: &Tally) -> Answer {
        if self.recovers {
            self.keep_offset(event);
        }
        let Some(record) = event.strip_prefix(br#"["records","#) else {
            tally.notices.fetch_add(u64::from(event.starts_with(br#"["notice","#)), Relaxed);
            return Answer::Nothing;
        };
        let number = after(record, br#""id":"#).map_or(0, number);
        let is_new = self.seen.as_mut().map_or(number > self.last, |seen| seen.insert(number));
        if !is_new {
            tally.repeated.fetch_add(1, Relaxed);
            return Answer::Nothing;
        }
        tally.delivered.fetch_add(1, Relaxed);
        tally.note_progress(self.last, number);
        self.last = number;
        if self.sampled {
            self.measure(record, tally);
        }
        Answer::Record
    }

    fn measure(&self, record: &[u8], tally: &Tally) {
        let Some(sent) = after(record, br#""t":"#).map(number) else { return };
        let now = now();
        if sent < self.dialled {
            tally.note_replay(now.saturating_sub(self.dialled));
        } else {
            tally.note_latency(now.saturating_sub(sent));
        }
    }

    /// The official client takes any event's last argument for the offset if it is a string.
    fn keep_offset(&mut self, event: &[u8]) {
        let Some(rest) = event.strip_suffix(br#""]"#) else { return };
        let Some(offset) = rest.rsplit(|&byte| byte == b'"').next() else { return };
        let kept = self.offset.get_or_insert_default();
        kept.clear();
        kept.push_str(&String::from_utf8_lossy(offset));
    }
}

/// What follows the first `key`.
fn after<'a>(bytes: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    let start = bytes.windows(key.len()).position(|window| window == key)?;
    Some(&bytes[start + key.len()..])
}

fn number(digits: &[u8]) -> u64 {
    digits.iter().take_while(|byte| byte.is_ascii_digit()).fold(0, |sum, byte| sum * 10 + u64::from(byte - b'0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: &[u8] = br#"42["records",{"room":"group-0","records":{"events":[{"id":7,"t":5}]}},"ab.1"]"#;

    #[test]
    fn a_message_counts_once() {
        let (mut session, tally) = (Session::new(true, true), Tally::new());
        assert_eq!(session.take(FIRST, &tally), Answer::Record);
        assert_eq!(session.take(FIRST, &tally), Answer::Nothing);
        assert_eq!((tally.repeated.load(Relaxed), tally.latency().len()), (1, 1));
    }

    #[test]
    fn a_message_may_come_after_a_newer_one() {
        let (mut session, tally) = (Session::new(true, false).in_any_order(), Tally::new());
        let second = br#"42["records",{"room":"group-0","records":{"events":[{"id":8,"t":6}]}},"ab.2"]"#;
        let answers = [&second[..], FIRST, second, FIRST].map(|message| session.take(message, &tally));
        assert_eq!(answers, [Answer::Record, Answer::Record, Answer::Nothing, Answer::Nothing]);
    }

    #[test]
    fn it_comes_back_with_its_place() {
        let (mut session, tally) = (Session::new(true, false), Tally::new());
        assert_eq!(session.connect(), "0");
        let connected = br#"40{"sid":"s","pid":"p"}"#;
        assert_eq!(session.take(connected, &tally), Answer::Joined);
        assert_eq!(session.connect(), r#"0{"pid":"p"}"#);
        session.take(br#"42["session","ab.0"]"#, &tally);
        assert_eq!(session.connect(), r#"0{"pid":"p","offset":"ab.0"}"#);
        session.take(FIRST, &tally);
        assert_eq!(session.connect(), r#"0{"pid":"p","offset":"ab.1"}"#);
        session.take(connected, &tally);
        assert_eq!((tally.returned.load(Relaxed), tally.recovered.load(Relaxed)), (1, 1));
    }

    #[test]
    fn what_was_missed_is_measured_from_the_dialling() {
        let (mut session, tally) = (Session::new(false, true), Tally::new());
        session.dialled = 6;
        session.take(FIRST, &tally);
        assert_eq!((tally.replay().len(), tally.latency().len()), (1, 0));
    }

    #[test]
    fn packets_are_told_apart() {
        let (mut session, tally) = (Session::new(false, false), Tally::new());
        for (packet, answer) in [
            (&b"0{}"[..], Answer::Connect),
            (b"2", Answer::Pong),
            (b"40", Answer::Joined),
            (b"41", Answer::Left),
            (b"44{}", Answer::Left),
            (b"1", Answer::Left),
            (b"6", Answer::Nothing),
        ] {
            assert_eq!(session.take(packet, &tally), answer);
        }
    }
}
