use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt;
use futures::future::{BoxFuture, ready};

use super::{CheckpointStore, Scope};
use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::record::ShardId;

/// Keeps positions for as long as the process runs.
///
/// The clones of one store share what it holds: a consumer that is built again with a clone goes
/// on where the last one stopped. Never fails, never waits.
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
    scopes: Arc<Mutex<HashMap<Scope, HashMap<ShardId, Checkpoint>>>>,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    fn with<T>(
        &self,
        work: impl FnOnce(&mut HashMap<Scope, HashMap<ShardId, Checkpoint>>) -> T,
    ) -> T {
        // A panic under the lock cannot leave half a checkpoint: inserting is all that happens.
        work(&mut self.scopes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
impl MemoryStore {
    /// Forgets what is stored of these shards.
    pub(super) fn forget(&self, scope: &Scope, checkpoints: &[(ShardId, Checkpoint)]) {
        self.with(|scopes| {
            let shards = scopes.entry(scope.clone()).or_default();
            shards.retain(|shard, _| checkpoints.iter().all(|(other, _)| other != shard));
        });
    }
}

impl CheckpointStore for MemoryStore {
    fn load<'a>(&'a self, scope: &'a Scope) -> BoxFuture<'a, Result<HashMap<ShardId, Checkpoint>>> {
        ready(Ok(self.with(|scopes| scopes.get(scope).cloned().unwrap_or_default()))).boxed()
    }

    fn save<'a>(
        &'a self,
        scope: &'a Scope,
        checkpoints: &'a [(ShardId, Checkpoint)],
    ) -> BoxFuture<'a, Result<()>> {
        self.with(|scopes| {
            let shards = scopes.entry(scope.clone()).or_default();
            for (shard, checkpoint) in checkpoints {
                if shards.get(shard).is_none_or(|stored| checkpoint.supersedes(stored)) {
                    shards.insert(shard.clone(), checkpoint.clone());
                }
            }
        });
        ready(Ok(())).boxed()
    }
}
