use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::FutureExt;
use futures::future::{BoxFuture, ready};
use tokio::time::Instant;

use super::lease::{
    AdminEdit, EditOutcome, FencedCheckpoint, HeartbeatRequest, HeartbeatResponse, IfLeased,
    LeaseStore, LeaseTable, Ledger, SaveOutcome,
};
use super::{CheckpointStore, Scope};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::mutex::Mutex;
use crate::record::ShardId;

/// Keeps positions and leases in memory, for the lifetime of the process.
///
/// Clones of a store share its contents: a consumer that is built with a clone resumes where the
/// previous one stopped, and consumers of one application share the shards. Calls never fail and
/// never wait.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> kinestream::Result<()> {
/// use kinestream::store::{CheckpointStore, Scope};
/// use kinestream::{Checkpoint, MemoryStore};
///
/// let store = MemoryStore::new();
/// let scope = Scope::new("billing", "orders");
/// let shard = "shardId-000000000000".parse()?;
/// store.clone().save(&scope, &[(shard, Checkpoint::ShardEnd)]).await?;
/// assert_eq!(store.load(&scope).await?.len(), 1);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Default)]
pub struct MemoryStore {
    ledgers: Arc<Mutex<HashMap<Scope, Ledger>>>,
    clock: StoreClock,
}

/// The time since 1970, measured by tokio's clock from the creation of the store. Changes of the
/// system clock do not affect it; tokio's paused clock controls it.
#[derive(Debug, Clone)]
struct StoreClock {
    began: Duration,
    since: Instant,
    /// The shift of the clock in milliseconds.
    #[cfg(feature = "testing")]
    moved: Arc<std::sync::atomic::AtomicI64>,
}

impl Default for StoreClock {
    fn default() -> Self {
        Self::at(SystemTime::now())
    }
}

impl StoreClock {
    fn at(time: SystemTime) -> Self {
        Self {
            began: time.duration_since(UNIX_EPOCH).unwrap_or_default(),
            since: Instant::now(),
            #[cfg(feature = "testing")]
            moved: Arc::default(),
        }
    }

    fn now(&self) -> Duration {
        let now = self.began + self.since.elapsed();
        #[cfg(feature = "testing")]
        let now = {
            let moved = self.moved.load(std::sync::atomic::Ordering::SeqCst);
            let by = Duration::from_millis(moved.unsigned_abs());
            if moved < 0 { now.saturating_sub(by) } else { now + by }
        };
        now
    }
}

impl MemoryStore {
    /// Creates an empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Merges positions that were loaded from another store and that no worker has seen yet.
    pub(super) fn merge_loaded(
        &self,
        scope: &Scope,
        stored: HashMap<ShardId, Result<Checkpoint, Arc<str>>>,
    ) {
        self.with(scope, |ledger, now| ledger.merge_loaded(now, stored));
    }

    /// Marks the positions of these shards as unreadable.
    pub(super) fn mark_unreadable(&self, scope: &Scope, refused: HashMap<ShardId, Arc<str>>) {
        self.with(scope, |ledger, now| ledger.mark_unreadable(now, refused));
    }

    /// Returns each position, or why it cannot be read.
    fn positions(&self, scope: &Scope) -> HashMap<ShardId, Result<Checkpoint>> {
        let positions = self.with(scope, |ledger, _| ledger.positions()).into_iter();
        positions
            .map(|(shard, found)| {
                (shard, found.map_err(|why| Error::new(ErrorKind::StoreCorrupt, &*why)))
            })
            .collect()
    }

    /// Returns true if any shard has an unreadable lease or position.
    pub(super) fn has_unreadable(&self, scope: &Scope) -> bool {
        self.with(scope, |ledger, _| ledger.has_unreadable())
    }

    fn with<T>(&self, scope: &Scope, work: impl FnOnce(&mut Ledger, Duration) -> T) -> T {
        let now = self.clock.now();
        let mut ledgers = self.ledgers.lock();
        work(ledgers.entry(scope.clone()).or_default(), now)
    }
}

/// Simulates failures of a lease store, for tests.
#[cfg(feature = "testing")]
impl MemoryStore {
    /// Creates an empty store whose clock shows `time` now.
    pub fn at(time: SystemTime) -> Self {
        Self { ledgers: Arc::default(), clock: StoreClock::at(time) }
    }

    /// Returns a separate store with a copy of the current contents, like a replica. Both share one
    /// clock.
    #[must_use]
    pub fn replica(&self) -> Self {
        Self { ledgers: Arc::new(Mutex::new(self.copied())), clock: self.clock.clone() }
    }

    /// Replaces the contents by a copy of those of `other`, as after a failover to a lagging
    /// replica or a restart without data.
    pub fn replace_with_copy_of(&self, other: &Self) {
        let copied = other.copied();
        *self.ledgers.lock() = copied;
    }

    /// Moves the clock by `millis` milliseconds, forwards or backwards.
    pub fn move_clock(&self, millis: i64) {
        self.clock.moved.fetch_add(millis, std::sync::atomic::Ordering::SeqCst);
    }

    /// Makes the stored lease of a shard, or its stored position, unreadable until
    /// [`repair`](Self::repair) is called or a position is set.
    pub fn damage(&self, scope: &Scope, shard: &ShardId, is_lease: bool) {
        self.with(scope, |ledger, _| ledger.damage(shard, is_lease));
    }

    /// Makes the lease and the position of a shard readable again, like an operator who corrects
    /// them by hand.
    pub fn repair(&self, scope: &Scope, shard: &ShardId) {
        self.with(scope, |ledger, _| ledger.repair(shard));
    }

    fn copied(&self) -> HashMap<Scope, Ledger> {
        self.ledgers.lock().clone()
    }
}

#[cfg(test)]
impl MemoryStore {
    /// Removes the stored positions of these shards.
    pub(super) fn forget(&self, scope: &Scope, checkpoints: &[(ShardId, Checkpoint)]) {
        self.with(scope, |ledger, _| {
            ledger
                .checkpoints
                .retain(|shard, _| checkpoints.iter().all(|(other, _)| other != shard));
        });
    }
}

impl CheckpointStore for MemoryStore {
    fn load<'a>(&'a self, scope: &'a Scope) -> BoxFuture<'a, Result<HashMap<ShardId, Checkpoint>>> {
        let positions = self.positions(scope);
        let found = positions.into_iter().map(|(shard, found)| found.map(|found| (shard, found)));
        ready(found.collect::<Result<_>>()).boxed()
    }

    fn load_each<'a>(
        &'a self,
        scope: &'a Scope,
    ) -> BoxFuture<'a, Result<HashMap<ShardId, Result<Checkpoint>>>> {
        ready(Ok(self.positions(scope))).boxed()
    }

    fn save<'a>(
        &'a self,
        scope: &'a Scope,
        checkpoints: &'a [(ShardId, Checkpoint)],
    ) -> BoxFuture<'a, Result<()>> {
        let refused = self.with(scope, |ledger, _| {
            for (shard, checkpoint) in checkpoints {
                ledger.save(shard, checkpoint);
            }
            checkpoints.iter().find_map(|(shard, _)| ledger.unreadable_position(shard))
        });
        ready(refused.map_or(Ok(()), |why| Err(Error::new(ErrorKind::StoreCorrupt, &*why)))).boxed()
    }

    fn leases(self: Arc<Self>) -> Option<Arc<dyn LeaseStore>> {
        Some(self)
    }
}

impl LeaseStore for MemoryStore {
    fn exchange<'a>(
        &'a self,
        scope: &'a Scope,
        request: &'a HeartbeatRequest,
    ) -> BoxFuture<'a, Result<HeartbeatResponse>> {
        ready(Ok(self.with(scope, |ledger, now| ledger.exchange(now, request)))).boxed()
    }

    fn save_fenced<'a>(
        &'a self,
        scope: &'a Scope,
        positions: &'a [FencedCheckpoint],
    ) -> BoxFuture<'a, Result<Vec<SaveOutcome>>> {
        ready(Ok(self.with(scope, |ledger, now| ledger.save_fenced(now, positions)))).boxed()
    }

    fn table<'a>(&'a self, scope: &'a Scope) -> BoxFuture<'a, Result<LeaseTable>> {
        ready(Ok(self.with(scope, |ledger, now| ledger.table(now)))).boxed()
    }

    fn edit<'a>(
        &'a self,
        scope: &'a Scope,
        edit: &'a AdminEdit,
        if_leased: IfLeased,
    ) -> BoxFuture<'a, Result<EditOutcome>> {
        ready(Ok(self.with(scope, |ledger, now| ledger.edit(now, edit, if_leased)))).boxed()
    }
}
