//! How many bytes may be buffered, over all shards of a consumer.
//!
//! ```text
//!   a fetch of      takes                                    where that is not free
//!   ─────────────── ──────────────────────────────────────── ──────────────────────────────────
//!   Held            nothing                                  waits until the caller wants more
//!   Ahead           the shard's reserve, and free memory     waits for memory, or until it is urgent
//!   Urgent          the shard's reserve, and free memory     asks for fewer records, at least one
//!
//!   its answer      more of both, once its length is known   is turned away; an urgent one of one
//!                                                            record is read all the same
//! ```
//!
//! Nobody queues for memory, so memory that is released is never set aside for a fetch that cannot
//! begin yet. The reserve is each shard's own: a shard whose caller waits makes progress, whatever
//! other shards hold.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

use super::demand::{Demand, Urgency};

/// What each shard may hold beside the budget: an answer of 32 KiB while it is read.
pub(super) const RESERVE: usize = 64 * 1024;

/// The memory that all shards of a consumer share, or those of several consumers. Cheap to clone: the
/// clones are one.
///
/// For [`ConsumerBuilder::memory_budget`](crate::ConsumerBuilder::budget), where consumers are to share one.
///
/// Each shard has a reserve of 64 KiB beside it, so a shard whose records are asked for makes progress
/// whatever other shards and consumers hold.
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
pub struct MemoryBudget(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    pool: Pool,
    /// Some of the pool was released.
    released: Notify,
}

/// Bytes to be taken and released.
#[derive(Debug)]
struct Pool {
    size: usize,
    taken: AtomicUsize,
}

/// What one shard may take: of its reserve first, and then of the budget.
#[derive(Debug, Clone)]
pub(super) struct ShardBudget(Arc<Both>);

#[derive(Debug)]
struct Both {
    reserve: Pool,
    shared: Arc<Shared>,
}

/// Memory that a shard has taken, released when it is dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    memory: ShardBudget,
    reserved: usize,
    shared: usize,
    /// What it is for, which may be more than was taken.
    bytes: usize,
}

impl MemoryBudget {
    /// A budget of so many bytes.
    pub fn new(bytes: usize) -> Self {
        Self(Arc::new(Shared { pool: Pool::new(bytes), released: Notify::new() }))
    }

    /// How many bytes are taken, without the reserves of the shards.
    pub(crate) fn taken(&self) -> usize {
        self.0.pool.taken.load(Ordering::Acquire)
    }

    /// The memory of one more shard.
    pub(super) fn shard(&self) -> ShardBudget {
        let shared = Arc::clone(&self.0);
        ShardBudget(Arc::new(Both { reserve: Pool::new(RESERVE), shared }))
    }
}

impl Pool {
    fn new(size: usize) -> Self {
        Self { size, taken: AtomicUsize::new(0) }
    }

    fn free(&self) -> usize {
        self.size.saturating_sub(self.taken.load(Ordering::Acquire))
    }

    /// Takes so many bytes, or what is free of them.
    fn take(&self, bytes: usize) -> usize {
        let part = |taken| bytes.min(self.size.saturating_sub(taken));
        let add = |taken| Some(taken + part(taken));
        let before = self.taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, add);
        part(before.unwrap_or(self.size))
    }

    /// Takes so many bytes, or none.
    fn try_take(&self, bytes: usize) -> bool {
        let add = |taken: usize| taken.checked_add(bytes).filter(|taken| *taken <= self.size);
        self.taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, add).is_ok()
    }

    fn release(&self, bytes: usize) {
        self.taken.fetch_sub(bytes, Ordering::AcqRel);
    }
}

impl ShardBudget {
    /// Memory for nothing yet.
    pub(super) fn empty(&self) -> Reservation {
        Reservation { memory: self.clone(), reserved: 0, shared: 0, bytes: 0 }
    }

    /// Waits until a fetch may begin, and takes the memory that it is expected to need. An urgent
    /// one takes what is free of that.
    ///
    /// Cancel safe: dropped before it is ready, it has taken nothing.
    pub(super) async fn grant(&self, demand: &Demand, bytes: usize) -> Reservation {
        loop {
            let mut released = pin!(self.0.shared.released.notified());
            let mut changed = pin!(demand.changed());
            // Neither is missed from here on.
            released.as_mut().enable();
            changed.as_mut().enable();
            let mut space = self.empty();
            match demand.urgency() {
                Urgency::Urgent => {
                    space.stretch(bytes);
                    return space;
                }
                Urgency::Ahead if space.resize(bytes) => return space,
                Urgency::Ahead => {
                    tokio::select! {
                        () = changed => {}
                        () = released => {}
                    }
                }
                Urgency::Held => changed.await,
            }
        }
    }

    /// How many bytes the shard could take now.
    pub(super) fn free(&self) -> usize {
        self.0.reserve.free().saturating_add(self.0.shared.pool.free())
    }
}

impl Reservation {
    /// An empty space of the same shard.
    pub(super) fn none(&self) -> Self {
        self.memory.empty()
    }

    /// How many bytes were taken.
    pub(super) fn taken(&self) -> usize {
        self.reserved + self.shared
    }

    /// Makes the space as large as so many bytes need; `false`, and no change, where that is not
    /// free now.
    pub(super) fn resize(&mut self, bytes: usize) -> bool {
        let Both { reserve, shared } = &*self.memory.0;
        let missing = bytes.saturating_sub(self.taken());
        let reserved = reserve.take(missing);
        if !shared.pool.try_take(missing - reserved) {
            // Wakes nobody: a waiting fetch that tries in vain would wake itself.
            reserve.release(reserved);
            return false;
        }
        self.reserved += reserved;
        self.shared += missing - reserved;
        self.shrink(bytes);
        self.bytes = bytes;
        true
    }

    /// Makes the space as large as so many bytes need, or as large as it may become.
    pub(super) fn stretch(&mut self, bytes: usize) {
        self.shrink(bytes);
        self.reserved += self.memory.0.reserve.take(bytes - self.taken());
        self.shared += self.memory.0.shared.pool.take(bytes - self.taken());
        self.bytes = bytes;
    }

    /// Releases what so many bytes took. The last part is released last, where less was taken than
    /// the bytes are.
    pub(crate) fn release(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_sub(bytes);
        self.shrink(self.bytes);
    }

    /// Keeps at most so many bytes: other shards have the first of what is released.
    fn shrink(&mut self, bytes: usize) {
        let surplus = self.taken().saturating_sub(bytes);
        let shared = surplus.min(self.shared);
        let reserved = surplus - shared;
        if reserved > 0 {
            self.reserved -= reserved;
            self.memory.0.reserve.release(reserved);
        }
        if shared > 0 {
            self.shared -= shared;
            self.memory.0.shared.pool.release(shared);
            self.memory.0.shared.released.notify_waiters();
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.shrink(0);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    const KIBIBYTE: usize = 1024;

    fn demand(urgency: Urgency) -> Demand {
        let demand = Demand::default();
        match urgency {
            Urgency::Held => demand.hold(),
            Urgency::Ahead => demand.fetch_ahead(),
            Urgency::Urgent => demand.urge(0),
        }
        demand
    }

    #[test]
    fn space_is_released_when_it_is_dropped() {
        let budget = MemoryBudget::new(10 * KIBIBYTE);
        let memory = budget.shard();
        let mut space = memory.empty();
        assert!(space.resize(RESERVE + 8 * KIBIBYTE));
        assert_eq!(budget.taken(), 8 * KIBIBYTE, "the reserve is taken first");
        assert!(!memory.empty().resize(3 * KIBIBYTE));
        space.release(4 * KIBIBYTE);
        assert_eq!(budget.taken(), 4 * KIBIBYTE, "shared memory is released first");
        drop(space);
        assert_eq!((budget.taken(), memory.free()), (0, RESERVE + 10 * KIBIBYTE));
    }

    #[test]
    fn space_beyond_the_budget_is_covered_to_its_last_byte() {
        let budget = MemoryBudget::new(2 * KIBIBYTE);
        let mut space = budget.shard().empty();
        space.stretch(RESERVE + 5 * KIBIBYTE);
        for (released, taken) in [(3, 2), (1, 1), (1, 0)] {
            space.release(released * KIBIBYTE);
            assert_eq!(budget.taken(), taken * KIBIBYTE);
        }
    }

    #[test]
    fn space_grows_only_into_free_memory() {
        let budget = MemoryBudget::new(10 * KIBIBYTE);
        let (mut space, mut other) = (budget.shard().empty(), budget.shard().empty());
        assert!(space.resize(RESERVE + 4 * KIBIBYTE));
        assert!(other.resize(RESERVE + 4 * KIBIBYTE));
        assert!(!space.resize(RESERVE + 7 * KIBIBYTE));
        assert_eq!(space.taken(), RESERVE + 4 * KIBIBYTE, "a failed growth changes nothing");
        drop(other);
        assert!(space.resize(RESERVE + 7 * KIBIBYTE));
    }

    #[tokio::test]
    async fn urgent_fetch_begins_whatever_other_shards_hold() {
        let budget = MemoryBudget::new(10 * KIBIBYTE);
        let mut held = budget.shard().empty();
        held.stretch(usize::MAX);
        let space = budget.shard().grant(&demand(Urgency::Urgent), 1 << 20).now_or_never();
        assert_eq!(space.expect("no wait").taken(), RESERVE);
    }

    #[tokio::test]
    async fn fetch_ahead_waits_for_memory_until_it_is_urgent() {
        let budget = MemoryBudget::new(10 * KIBIBYTE);
        let (memory, demand) = (budget.shard(), demand(Urgency::Ahead));
        let mut held = budget.shard().empty();
        held.stretch(RESERVE + 10 * KIBIBYTE);
        let bytes = RESERVE + 5 * KIBIBYTE;
        let mut first = pin!(memory.grant(&demand, bytes));
        assert!(first.as_mut().now_or_never().is_none());
        held.release(4 * KIBIBYTE);
        assert!(first.as_mut().now_or_never().is_none(), "too little is free");
        held.release(KIBIBYTE);
        let space = first.as_mut().now_or_never().expect("enough is free");
        drop(space);
        held.stretch(RESERVE + 10 * KIBIBYTE);
        let mut second = pin!(memory.grant(&demand, bytes));
        assert!(second.as_mut().now_or_never().is_none());
        demand.hold();
        assert!(second.as_mut().now_or_never().is_none());
        demand.urge(0);
        assert_eq!(second.as_mut().now_or_never().expect("urgent").taken(), RESERVE);
    }
}
