//! A bound on the bytes of unfinished messages, summed over all connections: the bound of one connection, times the
//! connections that strangers can open, is more memory than a machine has.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes for the unfinished messages of all connections together. Browsers of Loomio send little, and hardly ever in
/// more than one piece.
const TOTAL: usize = 64 << 20;

/// Capacity of a buffer that is not counted. The messages of a browser must arrive, in pieces too, while strangers use up
/// the budget; the longest is the CONNECT of a member of hundreds of groups, whose ticket names them all. A connection
/// without an unfinished message has no buffer.
const FREE: usize = 4096;

/// The budget has no room for more bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unfinished messages take too much memory")]
pub struct Exhausted;

/// What all buffers together may hold: a permit a byte. Clones share it.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Semaphore>);

impl Default for Budget {
    /// 64 MiB.
    fn default() -> Self {
        Self::of(TOTAL)
    }
}

impl Budget {
    /// A budget of so many bytes.
    pub fn of(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes)))
    }

    fn take(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Exhausted> {
        let bytes = u32::try_from(bytes).map_err(|_| Exhausted)?;
        Arc::clone(&self.0).try_acquire_many_owned(bytes).map_err(|_| Exhausted)
    }
}

/// Bytes of an unfinished message. The capacity counts against a budget until the buffer is dropped.
#[derive(Debug, Default)]
pub struct Buffer {
    bytes: Vec<u8>,
    /// For the capacity beyond [`FREE`].
    permit: Option<OwnedSemaphorePermit>,
}

impl Buffer {
    /// What has been appended.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Appends bytes, or nothing when the budget has no room for the capacity. That grows with what has arrived, and
    /// never beyond `whole`, the final length of the message or its upper bound.
    pub fn extend(&mut self, budget: &Budget, bytes: &[u8], whole: usize) -> Result<(), Exhausted> {
        let needed = self.bytes.len() + bytes.len();
        if needed > self.bytes.capacity() {
            let capacity = (self.bytes.capacity() * 2).min(whole).max(needed);
            match (capacity.saturating_sub(FREE), &mut self.permit) {
                (0, _) => {}
                (counted, Some(permit)) => permit.merge(budget.take(counted - permit.num_permits())?),
                (counted, permit) => *permit = Some(budget.take(counted)?),
            }
            self.bytes.reserve_exact(capacity - self.bytes.len());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(budget: &Budget) -> usize {
        budget.0.available_permits()
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
        assert!(other.bytes().is_empty());
        drop(buffer);
        assert_eq!(left(&budget), 100_000);
        other.extend(&budget, &vec![0; 20_000], 20_000).unwrap();
        drop(other);
        assert_eq!(left(&budget), 100_000);
    }

    #[test]
    fn memory_grows_with_what_arrives_and_never_past_the_end() {
        let (budget, mut buffer) = (Budget::default(), Buffer::default());
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
