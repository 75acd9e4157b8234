mod entries;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::FutureExt;
use futures::future::{BoxFuture, ready};
use tokio::time::Instant;

use entries::Entries;

use super::lease::{EntryKey, Exchange, Exchanged, FencedOutcome, FencedSave, LeaseStore};
use super::{CheckpointStore, Scope};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::mutex::Mutex;
use crate::record::ShardId;

/// A text that is neither a lease nor a position.
#[cfg(feature = "testing")]
const DAMAGED: &str = "damaged";

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
    scopes: Arc<Mutex<HashMap<Scope, Entries>>>,
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

    /// Merges positions that were loaded from another store and that no worker has seen yet. The
    /// text of a position that cannot be read is the reason.
    pub(super) fn merge_loaded(
        &self,
        scope: &Scope,
        stored: &HashMap<ShardId, Result<Checkpoint, Arc<str>>>,
    ) {
        self.with(scope, |entries, now| {
            let repaired = entries.positions().filter(|(shard, text)| {
                parse(text).is_none() && !stored.get(*shard).is_some_and(Result::is_err)
            });
            let mut changes: HashMap<ShardId, Option<Arc<str>>> =
                repaired.map(|(shard, _)| (shard.clone(), None)).collect();
            let mut advanced = Vec::new();
            for (shard, found) in stored {
                let known = entries.position(shard);
                match (found, known.map(|text| parse(text))) {
                    (Err(why), _) if known == Some(why) => {}
                    (Err(why), _) => {
                        changes.insert(shard.clone(), Some(Arc::clone(why)));
                    }
                    (Ok(found), Some(Some(known))) if found.supersedes(&known) => {
                        advanced.push((shard.clone(), found.to_string()));
                    }
                    (Ok(_), Some(Some(_))) => {}
                    (Ok(found), _) => {
                        changes.insert(shard.clone(), Some(found.to_string().into()));
                    }
                }
            }
            for (shard, text) in advanced {
                entries.place(&shard, text.into());
            }
            entries.replace(now, changes.into_iter().collect());
        });
    }

    /// Marks the positions of these shards as unreadable, for these reasons.
    pub(super) fn mark_unreadable(&self, scope: &Scope, refused: HashMap<ShardId, Arc<str>>) {
        let refused = refused.into_iter().map(|(shard, why)| (shard, Some(why)));
        self.with(scope, |entries, now| entries.replace(now, refused.collect()));
    }

    /// Returns the saves that would be made now.
    pub(super) fn accepted(&self, scope: &Scope, saves: &[FencedSave]) -> Vec<FencedSave> {
        self.with(scope, |entries, _| {
            saves.iter().filter(|save| entries.accepts(save)).cloned().collect()
        })
    }

    /// Returns the stored position of a shard.
    pub(super) fn position(&self, scope: &Scope, shard: &ShardId) -> Option<Arc<str>> {
        self.with(scope, |entries, _| entries.position(shard).cloned())
    }

    /// Returns each position, or why it cannot be read.
    fn positions(&self, scope: &Scope) -> HashMap<ShardId, Result<Checkpoint>> {
        let position = |(shard, text): (&ShardId, &Arc<str>)| {
            let found = parse(text).ok_or_else(|| self.corrupt(scope, shard, text));
            (shard.clone(), found)
        };
        self.with(scope, |entries, _| entries.positions().map(position).collect())
    }

    fn corrupt(&self, scope: &Scope, shard: &ShardId, text: &str) -> Error {
        let key = EntryKey::Position(shard.clone());
        Error::new(ErrorKind::StoreCorrupt, self.unreadable(scope, &key, text))
    }

    /// Returns true if any position cannot be read.
    pub(super) fn has_unreadable(&self, scope: &Scope) -> bool {
        self.with(scope, |entries, _| entries.positions().any(|(_, text)| parse(text).is_none()))
    }

    fn with<T>(&self, scope: &Scope, work: impl FnOnce(&mut Entries, Duration) -> T) -> T {
        let now = self.clock.now();
        let mut scopes = self.scopes.lock();
        work(scopes.entry(scope.clone()).or_default(), now)
    }
}

/// Simulates failures of a lease store, for tests.
#[cfg(feature = "testing")]
impl MemoryStore {
    /// Creates an empty store whose clock shows `time` now.
    pub fn at(time: SystemTime) -> Self {
        Self { scopes: Arc::default(), clock: StoreClock::at(time) }
    }

    /// Returns a separate store with a copy of the current contents, like a replica. Both share one
    /// clock.
    #[must_use]
    pub fn replica(&self) -> Self {
        Self { scopes: Arc::new(Mutex::new(self.copied())), clock: self.clock.clone() }
    }

    /// Replaces the contents by a copy of those of `other`, as after a failover to a lagging
    /// replica or a restart without data.
    pub fn replace_with_copy_of(&self, other: &Self) {
        let copied = other.copied();
        *self.scopes.lock() = copied;
    }

    /// Moves the clock by `millis` milliseconds, forwards or backwards.
    pub fn move_clock(&self, millis: i64) {
        self.clock.moved.fetch_add(millis, std::sync::atomic::Ordering::SeqCst);
    }

    /// Makes the stored lease of a shard, or its stored position, unreadable until
    /// [`repair`](Self::repair) is called or a position is set.
    pub fn damage(&self, scope: &Scope, shard: &ShardId, is_lease: bool) {
        let key = if is_lease { EntryKey::Lease } else { EntryKey::Position };
        self.with(scope, |entries, _| entries.damage(key(shard.clone())));
    }

    /// Makes the lease and the position of a shard readable again, like an operator who corrects
    /// them by hand.
    pub fn repair(&self, scope: &Scope, shard: &ShardId) {
        self.with(scope, |entries, _| {
            // The owner may have left since, or a new incarnation may have its name.
            entries.repair(&EntryKey::Lease(shard.clone()), super::lease::without_owner);
            entries.repair(&EntryKey::Position(shard.clone()), str::to_owned);
        });
    }

    fn copied(&self) -> HashMap<Scope, Entries> {
        self.scopes.lock().clone()
    }
}

#[cfg(test)]
impl MemoryStore {
    /// Removes the stored positions of these shards.
    pub(super) fn forget(&self, scope: &Scope, checkpoints: &[(ShardId, Checkpoint)]) {
        let removed = checkpoints.iter().map(|(shard, _)| (shard.clone(), None));
        self.with(scope, |entries, now| entries.replace(now, removed.collect()));
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
        let refused = self.with(scope, |entries, _| {
            let mut refused = None;
            for (shard, checkpoint) in checkpoints {
                match entries.position(shard).map(|text| (parse(text), text)) {
                    Some((None, text)) => {
                        refused = refused.or_else(|| Some(self.corrupt(scope, shard, text)));
                    }
                    Some((Some(stored), _)) if !checkpoint.supersedes(&stored) => {}
                    _ => entries.place(shard, checkpoint.to_string().into()),
                }
            }
            refused
        });
        ready(refused.map_or(Ok(()), Err)).boxed()
    }

    fn leases(self: Arc<Self>) -> Option<Arc<dyn LeaseStore>> {
        Some(self)
    }
}

impl LeaseStore for MemoryStore {
    fn exchange<'a>(
        &'a self,
        scope: &'a Scope,
        exchange: &'a Exchange,
    ) -> BoxFuture<'a, Result<Exchanged>> {
        ready(Ok(self.with(scope, |entries, now| entries.exchange(now, exchange)))).boxed()
    }

    fn save_fenced<'a>(
        &'a self,
        scope: &'a Scope,
        saves: &'a [FencedSave],
    ) -> BoxFuture<'a, Result<Vec<FencedOutcome>>> {
        ready(Ok(self.with(scope, |entries, _| entries.save_fenced(saves)))).boxed()
    }
}

fn parse(text: &str) -> Option<Checkpoint> {
    text.parse().ok()
}
