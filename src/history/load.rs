//! What a starting node reads, all that was published before it listened; and a running one, what it missed in a gap.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use tokio::time::{sleep, timeout};

use super::{
    batch::Batch,
    mirror::ATTEMPT,
    stream::{EntryId, Stream, StreamError},
};
use crate::{bus::Position, hub::Past};

/// How long a start waits for the node that writes the stream. What others publish, that node learns after five seconds at
/// the latest.
const PATIENCE: Duration = Duration::from_secs(8);

/// How long a start without a stream leaves the lease to running nodes, one of which may pause before it writes anew.
const PRECEDENCE: Duration = Duration::from_secs(3);

/// How long it reads at most. What it has by then is served, and everyone is told of a gap.
const LONGEST: Duration = Duration::from_secs(20);

/// Bytes of a page, about: then the next one has fewer entries. And most entries, so that those after many small ones are
/// not too large together.
const PAGE: usize = 1 << 20;
const PAGE_ENTRIES: usize = 256;

/// Entries of the first page that is read backwards, and bytes of all of them: a gap is short, and live updates wait.
const BACK_ENTRIES: usize = 4;
const BACK_BYTES: usize = 4 << 20;

/// How often it looks for more.
const GLANCE: Duration = Duration::from_millis(25);

/// How long a gap waits while no node has the lease: each that heard everything has tried for it three times then.
const UNHELD: Duration = ATTEMPT.saturating_mul(3);

/// A start that takes longer is told of in the log.
const SILENCE: Duration = Duration::from_secs(1);

/// What was published before a node listened.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Oldest first.
    pub entries: VecDeque<Past>,
    /// They reach up to here on the bus. What the bus brings up to here is among them.
    pub position: Option<Position>,
    /// When the newest gap was, in seconds since 1970; 0 if that is not known.
    pub gap: u32,
    /// Whether nothing is missing between them and what the bus brings.
    pub complete: bool,
}

/// What was read so far.
#[derive(Default)]
struct Loading {
    loaded: Loaded,
    bytes: usize,
    last: Option<EntryId>,
}

impl Loading {
    /// Takes the next entry of the stream. Of more than `most` bytes the newest are kept.
    fn take(&mut self, id: EntryId, batch: Batch, most: usize, now: u32) {
        let begins = |last: EntryId| id.number == 1 && id.generation > last.generation;
        let follows = |last: EntryId| id.generation == last.generation && last.number.checked_add(1) == Some(id.number);
        match self.last {
            // A later holder has written its whole log.
            Some(last) if begins(last) => *self = Self::default(),
            // Entries were lost, as in a failover.
            Some(last) if !follows(last) => {
                let hole = Past::Gap { fingerprint: rand::random(), at: now };
                self.bytes += hole.weight();
                self.loaded.entries.push_back(hole);
                self.loaded.gap = now;
            }
            _ => {}
        }
        self.last = Some(id);
        self.loaded.gap = self.loaded.gap.max(batch.gap);
        self.loaded.position = batch.position.or(self.loaded.position);
        self.bytes += batch.entries.iter().map(Past::weight).sum::<usize>();
        self.loaded.entries.extend(batch.entries);
        while self.bytes > most {
            let Some(oldest) = self.loaded.entries.pop_front() else { break };
            self.bytes -= oldest.weight();
        }
    }

    /// Whether all is there that was published up to `before`.
    fn reaches(&self, before: Option<Position>) -> bool {
        before.is_some_and(|before| reaches(self.loaded.position, before))
    }
}

fn reaches(position: Option<Position>, before: Position) -> bool {
    position.is_some_and(|position| position.run == before.run && position.count >= before.count)
}

fn decode(batch: &[u8]) -> Result<Batch, StreamError> {
    Batch::decode(batch)
        .ok_or(StreamError::Refused("another version of this program wrote it; it is written anew".into()))
}

/// Reads the stream until it has all that was published up to `before`, or that cannot be. With an error there is what was
/// read before it.
pub(super) async fn load(
    stream: &Stream,
    before: Option<Position>,
    most: usize,
    now: u32,
) -> (Loaded, Result<(), StreamError>) {
    let mut loading = Loading::default();
    let read = timeout(LONGEST, read(stream, &mut loading, before, most, now)).await;
    (Loaded { complete: loading.reaches(before), ..loading.loaded }, read.unwrap_or(Ok(())))
}

/// How many entries to read after a page of `count`.
fn next_count(count: usize, page: &[(EntryId, Vec<u8>)]) -> usize {
    let bytes: usize = page.iter().map(|(_, batch)| batch.len()).sum();
    if bytes < PAGE { (count * 2).min(PAGE_ENTRIES) } else { count.div_ceil(4) }
}

/// The node with the lease may be some seconds behind. When it has died, a node that is running takes the lease, and what
/// that node knows is not to be lost: a starting node takes it only where no stream is.
async fn read(
    stream: &Stream,
    loading: &mut Loading,
    before: Option<Position>,
    most: usize,
    now: u32,
) -> Result<(), StreamError> {
    let (started, mut told, mut is_last, mut count) = (Instant::now(), false, false, 1);
    loop {
        let page = match stream.read(loading.last, count).await {
            // As while it loads its own keys.
            Err(StreamError::Redis(_)) => {
                sleep(GLANCE).await;
                continue;
            }
            page => page?,
        };
        let is_end = page.len() < count;
        count = next_count(count, &page);
        for (id, batch) in page {
            loading.take(id, decode(&batch)?, most, now);
        }
        if loading.reaches(before) {
            return Ok(());
        }
        if started.elapsed() > SILENCE && !told {
            told = true;
            tracing::info!(bytes = loading.bytes, "reading what was published before the start");
        }
        if !is_end {
            continue;
        }
        let is_over = before.is_none() || started.elapsed() > PATIENCE;
        if is_last || is_over {
            return Ok(());
        }
        // What was written before the lease was given back is read once more.
        let may_take = loading.last.is_none() && started.elapsed() > PRECEDENCE;
        is_last = match stream.has_writer(may_take).await {
            Err(StreamError::Redis(_)) => false,
            has_writer => !has_writer?,
        };
        if !is_last {
            sleep(GLANCE).await;
        }
    }
}

/// What was published up to `before`, after the place that `place_in` finds among the newest entries, or all of them.
/// Incomplete when it is not found, when something was lost after it, or when no node writes the stream.
///
/// Reads backwards: a gap is short, and the stream may be long.
pub(super) async fn catch_up(
    stream: &Stream,
    before: Position,
    place_in: impl Fn(&VecDeque<Past>, bool) -> Option<usize>,
) -> Result<Loaded, StreamError> {
    let mut held = Instant::now();
    let (mut next, position) = loop {
        if let [(id, batch)] = &stream.read_back(None, 1).await?[..] {
            let position = decode(batch)?.position;
            if reaches(position, before) {
                break (*id, position);
            }
        }
        if stream.holder().await?.is_some() {
            held = Instant::now();
        } else if held.elapsed() > UNHELD {
            return Ok(Loaded::default());
        }
        sleep(GLANCE).await;
    };
    let (mut entries, mut bytes, mut count) = (VecDeque::new(), 0, BACK_ENTRIES);
    while bytes < BACK_BYTES {
        let page = stream.read_back(Some(next), count).await?;
        let are_all = page.len() < count;
        count = next_count(count, &page);
        for (id, batch) in page {
            if id != next {
                return Ok(Loaded::default());
            }
            bytes += batch.len();
            decode(&batch)?.entries.into_iter().rev().for_each(|entry| entries.push_front(entry));
            next.number = next.number.saturating_sub(1);
        }
        match place_in(&entries, are_all) {
            Some(place) => {
                drop(entries.drain(..place));
                let complete = entries.iter().all(|entry| matches!(entry, Past::Event { .. }));
                return Ok(Loaded { entries, position, gap: 0, complete });
            }
            None if are_all => break,
            None => {}
        }
    }
    Ok(Loaded::default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Position = Position { run: 1, count: 10 };

    fn batch(numbers: std::ops::Range<u64>, position: Option<Position>) -> Batch {
        Batch { entries: numbers.map(|fingerprint| Past::Gap { fingerprint, at: 0 }).collect(), position, gap: 0 }
    }

    fn id(generation: u64, number: u64) -> EntryId {
        EntryId { generation, number }
    }

    fn numbers(loading: &Loading) -> Vec<u64> {
        let number = |entry: &Past| match entry {
            Past::Gap { fingerprint, .. } if *fingerprint < 100 => *fingerprint,
            _ => 100,
        };
        loading.loaded.entries.iter().map(number).collect()
    }

    #[test]
    fn a_hole_in_the_stream_is_a_gap_and_a_new_generation_begins_anew() {
        let mut loading = Loading::default();
        loading.take(id(5, 3), batch(0..2, None), usize::MAX, 0);
        loading.take(id(5, 4), batch(2..3, Some(AT)), usize::MAX, 0);
        assert_eq!(numbers(&loading), [0, 1, 2]);
        loading.take(id(5, 6), batch(3..4, None), usize::MAX, 0);
        assert_eq!(numbers(&loading), [0, 1, 2, 100, 3]);
        loading.take(id(6, 2), batch(4..5, None), usize::MAX, 0);
        assert_eq!(numbers(&loading), [0, 1, 2, 100, 3, 100, 4], "it does not begin with its first entry");
        loading.take(id(7, 1), batch(5..6, None), usize::MAX, 0);
        assert_eq!(numbers(&loading), [5]);
        assert_eq!(loading.loaded.position, None, "of another generation");
    }

    #[test]
    fn only_the_newest_are_kept() {
        let mut loading = Loading::default();
        let most = 3 * Past::Gap { fingerprint: 0, at: 0 }.weight();
        loading.take(id(1, 1), batch(0..5, None), most, 0);
        loading.take(id(1, 2), batch(5..6, None), most, 0);
        assert_eq!(numbers(&loading), [3, 4, 5]);
    }

    #[test]
    fn a_stream_is_complete_when_it_reaches_the_subscription() {
        let at = |run, count| Some(Position { run, count });
        for (position, before, complete) in [
            (at(1, 10), at(1, 10), true),
            (at(1, 11), at(1, 10), true),
            (at(1, 9), at(1, 10), false),
            (at(2, 10), at(1, 10), false),
            (None, at(1, 0), false),
            (at(1, 10), None, false),
        ] {
            let mut loading = Loading::default();
            loading.take(id(1, 1), batch(0..1, position), usize::MAX, 0);
            assert_eq!(loading.reaches(before), complete, "{position:?} {before:?}");
        }
    }
}
