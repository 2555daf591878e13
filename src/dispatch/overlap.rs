//! What is both in the stream and on the bus after the beginning of a subscription: each message is taken once. Pure.

use std::collections::{HashSet, VecDeque};

use bytes::Bytes;

use crate::{
    bus::Position,
    history::Loaded,
    hub::{Kind, Past},
};

/// Messages beyond the position of a batch that are looked at. A batch has such when its node was killed before it wrote
/// the next one: only the last of several written together names the position that they reach.
const MOST_UNSAID: usize = 64;

/// Messages that were taken from the stream, and that the bus may still bring.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Overlap {
    /// The bus brings them up to here.
    until: Position,
    /// Their fingerprints, oldest first.
    awaited: VecDeque<u64>,
    /// Index among what was loaded before which there is none of them.
    pub(super) first: usize,
}

impl Overlap {
    /// Takes out of `loaded` what is taken from the bus: a subscription that began at `before` has `heard` that.
    pub(super) fn cut(
        loaded: &mut Loaded,
        before: Option<Position>,
        heard: &[Bytes],
        fingerprint: impl Fn(&[u8]) -> u64,
    ) -> Option<Self> {
        let Loaded { entries, position, complete, .. } = loaded;
        let (true, &mut Some(until), Some(before)) = (*complete, position, before) else {
            let heard: HashSet<_> = heard.iter().collect();
            entries.retain(|entry| !payload(entry).is_some_and(|payload| heard.contains(payload)));
            return None;
        };
        let first = newest(entries, until.count.saturating_sub(before.count));
        // The node that wrote this did not hear all of it, so its place among what was heard here is not known.
        if let Some(gap) = entries.range(first..).position(|entry| matches!(entry, Past::Gap { .. })) {
            entries.truncate(first + gap);
            *complete = false;
        }
        // A batch may have some more than it says. Then these are the first that were heard, all of them in order.
        let begins = |from: &usize| {
            let rest = entries.range(*from..);
            rest.len() <= heard.len() && rest.zip(heard).all(|(entry, heard)| payload(entry) == Some(heard))
        };
        let rest = (first.saturating_sub(MOST_UNSAID)..entries.len()).find(begins).unwrap_or(entries.len());
        entries.truncate(rest);
        let first = first.min(rest);
        let awaited = entries.range(first..).filter_map(payload);
        Some(Self { until, awaited: awaited.map(|payload| fingerprint(payload)).collect(), first })
    }

    /// This, with what is still awaited of the `earlier` one.
    pub(super) fn after(mut self, earlier: Option<Self>) -> Self {
        if let Some(mut earlier) = earlier {
            earlier.awaited.append(&mut self.awaited);
            self.awaited = earlier.awaited;
        }
        self
    }

    /// Whether a message that the bus brings was taken from the stream. `None` when no later one is.
    pub(super) fn has(&mut self, position: Option<Position>, fingerprint: Option<u64>) -> Option<bool> {
        let Self { until, awaited, .. } = self;
        let is_before = position.is_some_and(|position| position.run == until.run && position.count <= until.count);
        if !is_before || awaited.is_empty() {
            return None;
        }
        let index = awaited.iter().position(|&awaited| Some(awaited) == fingerprint);
        Some(index.map(|index| awaited.drain(..=index)).is_some())
    }
}

/// The message of an entry that came from the bus.
fn payload(entry: &Past) -> Option<&Bytes> {
    match entry {
        Past::Gap { .. } | Past::Event { kind: Kind::GapNotice, .. } => None,
        Past::Event { payload, .. } => Some(payload),
    }
}

/// Where the newest entries begin that have so many messages.
fn newest(entries: &VecDeque<Past>, messages: u64) -> usize {
    let mut left = messages;
    let begins = |(_, entry): &(usize, &Past)| {
        left = left.saturating_sub(u64::from(payload(entry).is_some()));
        left == 0
    };
    match messages {
        0 => entries.len(),
        _ => entries.iter().enumerate().rev().find(begins).map_or(0, |(index, _)| index),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(count: u64) -> Position {
        Position { run: 1, count }
    }

    fn bytes(letter: char) -> Bytes {
        letter.to_string().into()
    }

    /// The first byte.
    fn fingerprint(payload: &[u8]) -> u64 {
        payload[0].into()
    }

    /// Letters are messages, `-` is a gap and `!` its notice.
    fn loaded(entries: &str, position: Option<Position>, complete: bool) -> Loaded {
        let entry = |letter| match letter {
            '-' => Past::Gap { fingerprint: 1, at: 0 },
            '!' => Past::Event { kind: Kind::GapNotice, room: "".into(), payload: bytes('!'), at: 0 },
            _ => Past::Event { kind: Kind::Records, room: "a".into(), payload: bytes(letter), at: 0 },
        };
        Loaded { entries: entries.chars().map(entry).collect(), position, gap: 0, complete }
    }

    fn text(loaded: &Loaded) -> String {
        let letter = |entry: &Past| match entry {
            Past::Gap { .. } => '-',
            Past::Event { payload, .. } => payload[0].into(),
        };
        loaded.entries.iter().map(letter).collect()
    }

    /// What is left of `entries`, which reach the count `until`, and what the bus may still bring of it.
    fn cut(entries: &str, until: u64, heard: &str) -> (String, String, bool) {
        let mut loaded = loaded(entries, Some(at(until)), true);
        let heard: Vec<_> = heard.chars().map(bytes).collect();
        let overlap = Overlap::cut(&mut loaded, Some(at(100)), &heard, fingerprint).unwrap();
        let awaited = overlap.awaited.iter().map(|&letter| char::from(u8::try_from(letter).unwrap())).collect();
        (text(&loaded), awaited, loaded.complete)
    }

    fn is(left: &str, awaited: &str, complete: bool) -> (String, String, bool) {
        (left.to_owned(), awaited.to_owned(), complete)
    }

    #[test]
    fn what_was_heard_comes_from_the_bus_and_the_rest_is_known_when_it_comes() {
        assert_eq!(cut("abc", 100, ""), is("abc", "", true), "the stream ends where the subscription begins");
        assert_eq!(cut("abc", 100, "de"), is("abc", "", true));
        assert_eq!(cut("abcde", 102, ""), is("abcde", "de", true), "the stream is ahead");
        assert_eq!(cut("abcde", 102, "d"), is("abcde", "de", true));
        assert_eq!(cut("abcde", 102, "def"), is("abc", "", true));
        assert_eq!(cut("abc!de", 102, "de"), is("abc!", "", true));
    }

    #[test]
    fn a_batch_may_have_more_than_it_says() {
        assert_eq!(cut("abcde", 100, "def"), is("abc", "", true));
        assert_eq!(cut("abcde", 101, "def"), is("abc", "", true));
        assert_eq!(cut("abcde", 100, "ef"), is("abcd", "", true), "the same as was published before");
    }

    #[test]
    fn what_was_published_twice_takes_nothing_with_it() {
        assert_eq!(cut("abc", 103, "a"), is("abc", "abc", true), "others were published to, and then the same again");
        assert_eq!(cut("abca", 101, "a"), is("abc", "", true));
    }

    #[test]
    fn after_a_gap_of_the_node_that_wrote_only_the_bus_is_in_order() {
        assert_eq!(cut("ab-hi", 110, "cde"), is("ab", "ab", false));
        assert_eq!(cut("ab-", 100, "c"), is("ab-", "", true), "it was before the subscription");
        assert_eq!(cut("a-bcd", 101, ""), is("a-bcd", "d", true), "likewise");
    }

    #[test]
    fn nothing_is_awaited_of_a_stream_that_does_not_reach_the_subscription() {
        for (position, complete) in [(Some(at(90)), false), (None, false), (None, true)] {
            let mut loaded = loaded("ab-cd", position, complete);
            assert_eq!(Overlap::cut(&mut loaded, Some(at(100)), &[bytes('c')], fingerprint), None);
            assert_eq!(text(&loaded), "ab-d");
        }
    }

    #[test]
    fn what_is_awaited_of_one_stream_stays_awaited_after_the_next() {
        let overlap =
            |count, awaited: &[u64]| Overlap { until: at(count), awaited: awaited.iter().copied().collect(), first: 0 };
        assert_eq!(overlap(109, &[3, 4]).after(Some(overlap(105, &[1, 2]))), overlap(109, &[1, 2, 3, 4]));
        assert_eq!(overlap(109, &[3]).after(None), overlap(109, &[3]));
    }

    #[test]
    fn what_the_bus_brings_is_known_up_to_the_position_and_in_order() {
        let mut overlap = Overlap { until: at(105), awaited: [1, 2, 3, 2].into(), first: 0 };
        assert_eq!(overlap.has(Some(at(101)), Some(1)), Some(true));
        assert_eq!(overlap.has(Some(at(102)), Some(9)), Some(false), "the writer did not hear it");
        assert_eq!(overlap.has(Some(at(103)), Some(3)), Some(true));
        assert_eq!(overlap.has(Some(at(104)), None), Some(false));
        assert_eq!(overlap.has(Some(at(106)), Some(2)), None, "the same again");
        assert_eq!(overlap.has(Some(Position { run: 2, count: 1 }), Some(2)), None);
        assert_eq!(overlap.has(Some(at(105)), Some(2)), Some(true));
        assert_eq!(overlap.has(Some(at(105)), Some(2)), None);
    }
}
