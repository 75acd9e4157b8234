//! Limits the bytes that all shards of a consumer buffer.
//!
//! ```text
//!   demand          takes                                    if that is not free
//!   ─────────────── ──────────────────────────────────────── ──────────────────────────────────
//!   Held            nothing                                  waits until the caller wants more
//!   Ahead           the shard's reserve, and free memory     waits for memory, or until urgent
//!   Urgent          the shard's reserve, and free memory     requests fewer records, at least one
//!
//!   the response    more of both, once its length is known   is rejected; an urgent response to a
//!                                                            request for one record is read anyway
//! ```
//!
//! There is no queue for memory: released memory is never set aside for a fetch that cannot begin
//! yet. Each shard has its own reserve, so a shard with a waiting caller makes progress regardless
//! of the memory that other shards hold.
//!
//! A response that is not delivered counts with its buffer, its index and the tables of its aggregated
//! records. Once all of its records are delivered, what the caller keeps of it counts with the buffer,
//! and no longer takes the reserve. The tables and what is kept count even beyond the budget's size.
//!
//! Buffers of dropped responses are kept for the next ones in memory that is free, and dropped as
//! soon as it is taken.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::demand::{Demand, Urgency};
use super::spare_buffers::SpareBuffers;
use crate::mutex::Mutex;

/// The bytes that each shard may hold in addition to the budget: enough to read a response of 48 KiB.
pub(super) const RESERVE: usize = 64 * 1024;

/// Returns the memory that a message takes while the SDK reads and decodes it: its text, and the
/// records decoded from it, which hold three quarters of the text as payloads, plus their keys and
/// sequence numbers.
pub(super) fn while_parsed(length: usize) -> usize {
    length.saturating_mul(2)
}

/// A limit of buffered bytes, shared by all shards of one or several consumers.
///
/// Pass one budget to [`ConsumerBuilder::memory_budget`](crate::ConsumerBuilder::memory_budget) of
/// each consumer that is to share it. Cloning is cheap, and all clones share one limit.
///
/// Each shard has a reserve of 64 KiB in addition to the budget. A shard with a waiting
/// caller therefore makes progress regardless of the memory that other shards and consumers hold,
/// and of the records that the caller keeps.
///
/// ```no_run
/// # fn example(client: aws_sdk_kinesis::Client) -> kinestream::Result<()> {
/// use kinestream::{Consumer, MemoryBudget};
///
/// let budget = MemoryBudget::new(256 * 1024 * 1024);
/// let orders = Consumer::builder(client.clone(), "orders").memory_budget(&budget).build()?;
/// let payments = Consumer::builder(client, "payments").memory_budget(&budget).build()?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
#[doc(alias = "backpressure")]
pub struct MemoryBudget(Arc<BudgetState>);

#[derive(Debug)]
struct BudgetState {
    pool: Pool,
    /// Notifies waiting fetches of released memory.
    released: Notify,
    /// Lie in memory that is not taken from the pool.
    spare_buffers: SpareBuffers,
}

/// A number of bytes that reservations take from and release to.
#[derive(Debug)]
struct Pool {
    size: usize,
    taken: Arc<AtomicUsize>,
}

/// The memory available to one shard: its reserve first, then the shared budget.
#[derive(Debug, Clone)]
pub(super) struct ShardBudget(Arc<Both>);

#[derive(Debug)]
struct Both {
    reserve: Pool,
    shared: Arc<BudgetState>,
}

/// Memory taken by a shard. Dropping the reservation releases it.
#[derive(Debug)]
pub(crate) struct Reservation {
    memory: ShardBudget,
    reserved: usize,
    shared: usize,
}

/// The memory of a response, held by all of its parts: its records, and its batches.
#[derive(Debug, Clone)]
pub(crate) struct HeldMemory(Arc<Mutex<Reservation>>);

impl MemoryBudget {
    /// Creates a budget of `bytes` bytes. A response counts with its length until the last of its
    /// records is dropped, and with the index of its records and the tables of its aggregated records
    /// until all of them are delivered.
    ///
    /// With less free memory, a shard reads fewer records at a time. Free memory may hold up to
    /// 16 MiB of buffers of earlier responses for the next ones, until a shard ends or makes a call
    /// 10 s later. A budget of 0 bytes is refused by [`build`](crate::ConsumerBuilder::build).
    pub fn new(bytes: usize) -> Self {
        let (pool, released) = (Pool::new(bytes), Notify::new());
        Self(Arc::new(BudgetState { pool, released, spare_buffers: SpareBuffers::default() }))
    }

    /// Returns the size of the budget in bytes.
    pub(crate) fn size(&self) -> usize {
        self.0.pool.size
    }

    /// Returns the counter of the bytes taken from the budget, without the reserves of the shards.
    pub(crate) fn taken_counter(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.0.pool.taken)
    }

    #[cfg(test)]
    pub(super) fn taken(&self) -> usize {
        self.0.pool.taken.load(Ordering::Acquire)
    }

    /// Returns the memory of another shard.
    pub(super) fn shard(&self) -> ShardBudget {
        let shared = Arc::clone(&self.0);
        ShardBudget(Arc::new(Both { reserve: Pool::new(RESERVE), shared }))
    }
}

/// Taking memory drops the spare buffers that lie in it.
impl BudgetState {
    fn take(&self, bytes: usize) -> usize {
        let taken = self.pool.take(bytes);
        self.spare_buffers.shrink(self.pool.free());
        taken
    }

    fn try_take(&self, bytes: usize) -> bool {
        let is_taken = self.pool.try_take(bytes);
        self.spare_buffers.shrink(self.pool.free());
        is_taken
    }

    fn overdraw(&self, bytes: usize) {
        self.pool.overdraw(bytes);
        self.spare_buffers.shrink(self.pool.free());
    }
}

impl Pool {
    fn new(size: usize) -> Self {
        Self { size, taken: Arc::default() }
    }

    fn free(&self) -> usize {
        self.size.saturating_sub(self.taken.load(Ordering::Acquire))
    }

    /// Takes `bytes`, or all free bytes if fewer are free. Returns the number taken.
    fn take(&self, bytes: usize) -> usize {
        let part = |taken| bytes.min(self.size.saturating_sub(taken));
        let add = |taken| Some(taken + part(taken));
        let before = self.taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, add);
        part(before.unwrap_or(self.size))
    }

    /// Takes `bytes` if that many are free, otherwise none. Returns true if they were taken.
    fn try_take(&self, bytes: usize) -> bool {
        let add = |taken: usize| taken.checked_add(bytes).filter(|taken| *taken <= self.size);
        self.taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, add).is_ok()
    }

    /// Takes `bytes` even if fewer are free.
    fn overdraw(&self, bytes: usize) {
        self.taken.fetch_add(bytes, Ordering::AcqRel);
    }

    fn release(&self, bytes: usize) {
        self.taken.fetch_sub(bytes, Ordering::AcqRel);
    }
}

impl ShardBudget {
    /// Returns a reservation of zero bytes.
    pub(super) fn empty(&self) -> Reservation {
        Reservation { memory: self.clone(), reserved: 0, shared: 0 }
    }

    /// Waits until a fetch may begin, and takes the memory that the fetch is expected to need. An
    /// urgent fetch does not wait, and takes as much of that memory as is free.
    ///
    /// Cancel safe: if the future is dropped before it is ready, no memory is taken.
    pub(super) async fn grant(&self, demand: &Demand, bytes: usize) -> Reservation {
        self.0.shared.spare_buffers.expire(Instant::now());
        loop {
            let mut released = pin!(self.0.shared.released.notified());
            let mut changed = pin!(demand.changed());
            // From here on, neither notification is missed.
            released.as_mut().enable();
            changed.as_mut().enable();
            let mut space = self.empty();
            match demand.urgency() {
                Urgency::Urgent => {
                    space.resize_up_to(bytes);
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

    /// Returns the number of bytes that the shard could take now.
    pub(super) fn free(&self) -> usize {
        self.0.reserve.free().saturating_add(self.0.shared.pool.free())
    }
}

impl Reservation {
    /// Returns an empty reservation of the same shard.
    pub(super) fn empty(&self) -> Self {
        self.memory.empty()
    }

    /// Returns the number of bytes taken.
    pub(super) fn taken(&self) -> usize {
        self.reserved + self.shared
    }

    /// Resizes the reservation to `bytes`. Returns false, without a change, if too few bytes are
    /// free now.
    pub(super) fn resize(&mut self, bytes: usize) -> bool {
        let Both { reserve, shared } = &*self.memory.0;
        let missing = bytes.saturating_sub(self.taken());
        let reserved = reserve.take(missing);
        if !shared.try_take(missing - reserved) {
            // No notification: a waiting fetch would wake itself after each failed attempt.
            reserve.release(reserved);
            return false;
        }
        self.reserved += reserved;
        self.shared += missing - reserved;
        self.shrink(bytes);
        true
    }

    /// Resizes the reservation to `bytes`, or as close to it as free memory allows.
    pub(super) fn resize_up_to(&mut self, bytes: usize) {
        self.shrink(bytes);
        let Both { reserve, shared } = &*self.memory.0;
        self.reserved += reserve.take(bytes - self.taken());
        self.shared += shared.take(bytes - self.taken());
    }

    /// Returns an empty buffer for a response of `length` bytes. The reservation covers that
    /// length, and grows if the buffer is longer.
    pub(super) fn buffer(&mut self, length: usize) -> Vec<u8> {
        let buffer = self.memory.0.shared.spare_buffers.take(length);
        let surplus = buffer.capacity() - length;
        if surplus == 0 || self.resize(self.taken() + surplus) {
            return buffer;
        }
        Vec::with_capacity(length)
    }

    /// Keeps a buffer for another response, as far as memory is free.
    fn give(&self, buffer: Vec<u8>) {
        let BudgetState { pool, spare_buffers, .. } = &*self.memory.0.shared;
        spare_buffers.give(buffer, pool.free(), Instant::now());
        // Another response may have taken memory since it was counted.
        spare_buffers.shrink(pool.free());
    }

    /// Returns the buffer as bytes that keep the reservation until the last of them is dropped.
    pub(super) fn hold(self, buffer: Vec<u8>) -> (Bytes, HeldMemory) {
        let memory = HeldMemory(Arc::new(Mutex::new(self)));
        (Bytes::from_owner(CountedBuffer { buffer, memory: memory.clone() }), memory)
    }

    /// Takes `bytes` more, even if fewer are free.
    fn overdraw(&mut self, bytes: usize) {
        let Both { reserve, shared } = &*self.memory.0;
        let reserved = reserve.take(bytes);
        shared.overdraw(bytes - reserved);
        self.reserved += reserved;
        self.shared += bytes - reserved;
    }

    /// Takes the reserved bytes from the budget instead, even if too few are free there.
    fn free_reserve(&mut self) {
        let Both { reserve, shared } = &*self.memory.0;
        let reserved = std::mem::take(&mut self.reserved);
        shared.overdraw(reserved);
        reserve.release(reserved);
        self.shared += reserved;
    }

    /// Keeps at most `bytes`, and releases the rest: shared memory first, so that other shards can
    /// use it.
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

impl HeldMemory {
    /// Counts `bytes` that were allocated for records which are in memory already.
    pub(super) fn count(&self, bytes: usize) {
        if bytes > 0 {
            self.0.lock().overdraw(bytes);
        }
    }

    /// Releases `dropped` bytes, and frees the reserve of the shard for its next response, once all
    /// records of this one are delivered. The caller may keep some of them for any time.
    pub(super) fn end_delivery(self, dropped: usize) {
        // Otherwise nothing is kept, and the drop releases the memory.
        if Arc::strong_count(&self.0) > 1 {
            let mut space = self.0.lock();
            let left = space.taken().saturating_sub(dropped);
            space.shrink(left);
            space.free_reserve();
        }
    }
}

impl Drop for Both {
    fn drop(&mut self) {
        // Other shards soon have spare buffers again.
        self.shared.spare_buffers.shrink(0);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.shrink(0);
    }
}

/// A buffer, and the memory that is reserved for it.
struct CountedBuffer {
    buffer: Vec<u8>,
    memory: HeldMemory,
}

impl Drop for CountedBuffer {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.buffer);
        self.memory.0.lock().give(buffer);
    }
}

impl AsRef<[u8]> for CountedBuffer {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

#[cfg(test)]
mod tests;
