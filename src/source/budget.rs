//! How many bytes may be buffered, over all shards of a consumer.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The unit of the account: a semaphore counts in `u32`, and budgets may be larger than 4 GiB.
const UNIT: usize = 1024;

/// The memory that all shards of a consumer share, or those of several consumers. First come, first
/// served. Cheap to clone: the clones are one.
///
/// For [`ConsumerBuilder::budget`](crate::ConsumerBuilder::budget), where consumers are to share one.
///
/// ```no_run
/// # fn example(client: aws_sdk_kinesis::Client) -> kinestream::Result<()> {
/// use kinestream::{Budget, Consumer};
///
/// let budget = Budget::new(256 * 1024 * 1024);
/// let orders = Consumer::builder(client.clone(), "orders").budget(&budget).build()?;
/// let payments = Consumer::builder(client, "payments").budget(&budget).build()?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Budget {
    free: Arc<Semaphore>,
    units: u32,
}

/// A part of a [`Budget`], given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Space {
    permit: OwnedSemaphorePermit,
    /// What it is for, which may be more than the whole budget.
    bytes: usize,
}

impl Budget {
    /// So many bytes, of which there is at least a kibibyte.
    pub fn new(bytes: usize) -> Self {
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).max(1);
        Self { free: Arc::new(Semaphore::new(units as usize)), units }
    }

    /// Waits for so many bytes, or for the whole budget where that is less: one batch always
    /// fits.
    ///
    /// Cancel safe: dropped before it is ready, it has taken nothing.
    pub(crate) async fn reserve(&self, bytes: usize) -> Space {
        let permit = Arc::clone(&self.free).acquire_many_owned(self.units_of(bytes)).await;
        match permit {
            Ok(permit) => Space { permit, bytes },
            // Nothing ever closes the semaphore.
            Err(_closed) => std::future::pending().await,
        }
    }

    /// How many bytes are taken, rounded to what is counted.
    pub(crate) fn taken(&self) -> usize {
        (self.units as usize).saturating_sub(self.free.available_permits()) * UNIT
    }

    /// Makes the space as large as so many bytes need; `false` where that is not free now.
    pub(crate) fn resize(&self, space: &mut Space, bytes: usize) -> bool {
        let (held, wanted) = (space.permit.num_permits(), self.units_of(bytes) as usize);
        if wanted <= held {
            drop(space.permit.split(held - wanted));
        } else {
            // Both are at most `units`.
            let missing = u32::try_from(wanted - held).unwrap_or(u32::MAX);
            match Arc::clone(&self.free).try_acquire_many_owned(missing) {
                Ok(more) => space.permit.merge(more),
                Err(_not_free) => return false,
            }
        }
        space.bytes = bytes;
        true
    }

    fn units_of(&self, bytes: usize) -> u32 {
        u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).min(self.units)
    }
}

impl Space {
    /// Takes out the part for so many bytes, or all that is left. What stays covers the rest, as
    /// far as the budget covered it at all: its last part is given back last.
    pub(crate) fn split(&mut self, bytes: usize) -> Self {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        let held = self.permit.num_permits();
        let kept = self.bytes.div_ceil(UNIT).min(held);
        match self.permit.split(held - kept) {
            Some(permit) => Self { permit, bytes },
            None => unreachable!("no more is split off than there is"),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn gives_back_what_is_dropped() {
        let budget = Budget::new(10 * UNIT);
        let mut space = budget.reserve(8 * UNIT).await;
        assert!(budget.reserve(3 * UNIT).now_or_never().is_none());
        let part = space.split(4 * UNIT);
        assert!(budget.reserve(3 * UNIT).now_or_never().is_none());
        drop(part);
        assert!(budget.reserve(3 * UNIT).now_or_never().is_some());
    }

    #[tokio::test]
    async fn one_batch_always_fits() {
        let budget = Budget::new(UNIT);
        let mut space = budget.reserve(10 << 20).await;
        assert!(budget.resize(&mut space, 10 << 20));
        assert!(budget.reserve(1).now_or_never().is_none());
    }

    #[tokio::test]
    async fn what_is_more_than_the_budget_is_covered_to_its_last_byte() {
        let budget = Budget::new(2 * UNIT);
        let mut space = budget.reserve(5 * UNIT).await;
        let mut parts = Vec::new();
        for left in [2, 2, 2, 0] {
            parts.push(space.split(UNIT + UNIT / 4));
            drop(parts.pop());
            let free = 2 - left;
            assert!(budget.reserve(free * UNIT).now_or_never().is_some());
            assert!(budget.reserve((free + 1) * UNIT).now_or_never().is_none() || left == 0);
        }
    }

    #[tokio::test]
    async fn grows_only_into_what_is_free() {
        let budget = Budget::new(10 * UNIT);
        let mut space = budget.reserve(4 * UNIT).await;
        let other = budget.reserve(4 * UNIT).await;
        assert!(!budget.resize(&mut space, 7 * UNIT));
        drop(other);
        assert!(budget.resize(&mut space, 7 * UNIT));
        assert!(budget.resize(&mut space, UNIT));
        assert!(budget.reserve(9 * UNIT).now_or_never().is_some());
    }
}
