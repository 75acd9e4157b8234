use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::FutureExt;
use futures::future::{BoxFuture, ready};
use tokio::time::Instant;

use super::lease::{HeartbeatResponse, AdminEdit, FencedCheckpoint, LeaseStore, Ledger, HeartbeatRequest, LeaseTable, SaveOutcome};
use super::{CheckpointStore, Scope};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::record::ShardId;

/// Keeps positions and leases for as long as the process runs.
///
/// The clones of one store share what it holds: a consumer that is built again with a clone goes
/// on where the last one stopped, and consumers of one application share the shards among them.
/// Never fails, never waits.
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
    clock: Clock,
}

/// Time since 1970, by tokio's clock from the moment the store was made: no clock that is set
/// moves it, and a paused one does.
#[derive(Debug, Clone)]
struct Clock {
    began: Duration,
    since: Instant,
    /// By how many milliseconds it was moved.
    #[cfg(feature = "testing")]
    moved: Arc<std::sync::atomic::AtomicI64>,
}

impl Default for Clock {
    fn default() -> Self {
        Self::at(SystemTime::now())
    }
}

impl Clock {
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
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes over what another store has, of which no worker that has seen the table knows.
    pub(super) fn learn(
        &self,
        scope: &Scope,
        stored: HashMap<ShardId, Result<Checkpoint, Arc<str>>>,
    ) {
        self.with(scope, |ledger, now| ledger.learn(now, stored));
    }

    /// Takes the positions of these shards for unreadable.
    pub(super) fn refuse(&self, scope: &Scope, refused: HashMap<ShardId, Arc<str>>) {
        self.with(scope, |ledger, now| ledger.refuse(now, refused));
    }

    /// Each position, or why it cannot be read.
    fn positions(&self, scope: &Scope) -> HashMap<ShardId, Result<Checkpoint>> {
        let positions = self.with(scope, |ledger, _| ledger.positions()).into_iter();
        positions
            .map(|(shard, found)| (shard, found.map_err(|why| Error::store_corrupt(&*why))))
            .collect()
    }

    /// Whether what is stored of any shard cannot be read.
    pub(super) fn has_unreadable(&self, scope: &Scope) -> bool {
        self.with(scope, |ledger, _| ledger.has_unreadable())
    }

    fn with<T>(&self, scope: &Scope, work: impl FnOnce(&mut Ledger, Duration) -> T) -> T {
        let now = self.clock.now();
        // A panic under the lock cannot leave half a change: no step panics.
        let mut ledgers = self.ledgers.lock().unwrap_or_else(PoisonError::into_inner);
        work(ledgers.entry(scope.clone()).or_default(), now)
    }
}

/// What befalls a server that keeps leases, for testing what must bear it.
#[cfg(feature = "testing")]
impl MemoryStore {
    /// An empty store, whose clock shows `time` now.
    pub fn at(time: SystemTime) -> Self {
        Self { ledgers: Arc::default(), clock: Clock::at(time) }
    }

    /// A store of its own with what this one holds now, as a replica has it. They share the clock.
    #[must_use]
    pub fn replica(&self) -> Self {
        Self { ledgers: Arc::new(Mutex::new(self.copied())), clock: self.clock.clone() }
    }

    /// Holds what `other` does from now on, and nothing of its own: as after a failover to a
    /// replica that lags, or a restart without data.
    pub fn fall_back_to(&self, other: &Self) {
        let copied = other.copied();
        *self.ledgers.lock().unwrap_or_else(PoisonError::into_inner) = copied;
    }

    /// Moves the clock by so many milliseconds, forwards or backwards.
    pub fn move_clock(&self, millis: i64) {
        self.clock.moved.fetch_add(millis, std::sync::atomic::Ordering::SeqCst);
    }

    /// Damages the stored lease of a shard, or its stored position: it cannot be read until
    /// [`mend`](Self::mend), or until a position is set.
    pub fn damage(&self, scope: &Scope, shard: &ShardId, is_lease: bool) {
        self.with(scope, |ledger, _| ledger.damage(shard, is_lease));
    }

    /// Has what was damaged of a shard as it was before, as an operator who corrects it by hand.
    pub fn mend(&self, scope: &Scope, shard: &ShardId) {
        self.with(scope, |ledger, _| ledger.mend(shard));
    }

    fn copied(&self) -> HashMap<Scope, Ledger> {
        self.ledgers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
impl MemoryStore {
    /// Forgets what is stored of these shards.
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
        ready(refused.map_or(Ok(()), |why| Err(Error::store_corrupt(&*why)))).boxed()
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
        forced: bool,
    ) -> BoxFuture<'a, Result<Option<Arc<str>>>> {
        ready(Ok(self.with(scope, |ledger, now| ledger.edit(now, edit, forced)))).boxed()
    }
}
