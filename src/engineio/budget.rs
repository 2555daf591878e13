//! A bound on the bytes of unfinished messages, summed over all clients: each client's own bound, times the clients that
//! strangers can bring, is more memory than a machine has.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// Bytes for the unfinished messages of all clients together. Browsers of Loomio send next to nothing, and hardly ever
/// in more than one piece.
const TOTAL: usize = 64 << 20;

/// Capacity of a buffer that is not counted. The messages of a browser must arrive, in pieces too, while strangers use up
/// the budget; the longest is the CONNECT of a member of hundreds of groups, whose ticket names them all. A connection
/// that sends nothing unfinished has no buffer.
const FREE: usize = 4096;

/// There is no room for more bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unfinished messages take too much memory")]
pub(super) struct Exhausted;

/// What all buffers together may hold. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Budget(Arc<AtomicUsize>);

impl Budget {
    pub(super) fn new() -> Self {
        Self::of(TOTAL)
    }

    pub(super) fn of(bytes: usize) -> Self {
        Self(Arc::new(AtomicUsize::new(bytes)))
    }

    fn take(&self, bytes: usize) -> Result<(), Exhausted> {
        let taken = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes));
        taken.map(|_| ()).map_err(|_| Exhausted)
    }
}

/// Bytes of an unfinished message. The capacity counts against a budget until the buffer is dropped.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    charge: Option<(Budget, usize)>,
}

impl Buffer {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Appends bytes. The capacity grows with what has arrived, and never beyond `whole`, the length that the buffer
    /// will have in the end.
    ///
    /// # Errors
    /// When the budget is exhausted; nothing is appended then.
    pub(super) fn extend(&mut self, budget: &Budget, bytes: &[u8], whole: usize) -> Result<(), Exhausted> {
        let needed = self.bytes.len() + bytes.len();
        if needed > self.bytes.capacity() {
            let capacity = (self.bytes.capacity() * 2).min(whole).max(needed);
            self.charge(budget, capacity)?;
            self.bytes.reserve_exact(capacity - self.bytes.len());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    /// Drops bytes from the start, and all memory when none are left.
    pub(super) fn consume(&mut self, length: usize) {
        if length < self.bytes.len() {
            self.bytes.drain(..length);
        } else {
            *self = Self::default();
        }
    }

    fn charge(&mut self, budget: &Budget, capacity: usize) -> Result<(), Exhausted> {
        let counted = capacity.saturating_sub(FREE);
        if counted == 0 {
            return Ok(());
        }
        let (_, charged) = self.charge.get_or_insert_with(|| (budget.clone(), 0));
        budget.take(counted - *charged)?;
        *charged = counted;
        Ok(())
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some((Budget(left), charged)) = self.charge.take() {
            left.fetch_add(charged, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(budget: &Budget) -> usize {
        budget.0.load(Ordering::Relaxed)
    }

    #[test]
    fn capacity_counts_until_the_buffer_is_dropped() {
        let budget = Budget::of(100_000);
        let mut buffer = Buffer::default();
        buffer.extend(&budget, &vec![0; 60_000], 90_000).unwrap();
        buffer.extend(&budget, &[0; 1], 90_000).unwrap();
        assert_eq!((buffer.bytes.capacity(), left(&budget)), (90_000, 100_000 - 90_000 + FREE));
        let mut other = Buffer::default();
        assert_eq!(other.extend(&budget, &vec![0; 20_000], 20_000), Err(Exhausted));
        assert!(other.is_empty());
        buffer.consume(60_001);
        assert_eq!((buffer.bytes.capacity(), left(&budget)), (0, 100_000));
        other.extend(&budget, &vec![0; 20_000], 20_000).unwrap();
        drop(other);
        assert_eq!(left(&budget), 100_000);
    }

    #[test]
    fn memory_grows_with_what_arrives_and_never_past_the_end() {
        let (budget, mut buffer) = (Budget::new(), Buffer::default());
        for length in 1..=3_000 {
            buffer.extend(&budget, &[7], 3_000).unwrap();
            assert!(buffer.bytes.capacity() <= (length * 2).min(3_000), "{length}");
        }
    }

    #[test]
    fn small_buffers_are_free() {
        let budget = Budget::of(0);
        assert_eq!(Buffer::default().extend(&budget, &[0; FREE], FREE), Ok(()));
        assert_eq!(Buffer::default().extend(&budget, &[0; FREE + 1], FREE + 1), Err(Exhausted));
    }
}
