//! Leases for a store that keeps positions only: one worker reads every shard.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::time::Instant;

use super::lease::{
    AdminEdit, Change, EditOutcome, FencedCheckpoint, HeartbeatRequest, HeartbeatResponse,
    IfLeased, LeaseStore, LeaseTable, SaveOutcome,
};
use super::{CheckpointStore, MemoryStore, Scope, with_timeout};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::mutex::Mutex;
use crate::record::ShardId;
use crate::telemetry::log_line;

/// Keeps a consumer's leases in memory, on top of a store without lease support. Once a worker has
/// started, it uses the store only to save positions.
#[derive(Debug)]
pub(super) struct SingleWorkerLeases {
    store: Arc<dyn CheckpointStore>,
    table: MemoryStore,
    /// The scopes that are loaded from the store into the table.
    loaded: Mutex<HashSet<Scope>>,
    /// The time of the last load, which shows the unreadable positions.
    last_loaded: Mutex<Instant>,
}

/// The interval at which unreadable positions are loaded again.
const RELOAD_INTERVAL: Duration = Duration::from_secs(30);

impl SingleWorkerLeases {
    pub(super) fn new(store: Arc<dyn CheckpointStore>) -> Self {
        let (loaded, last_loaded) = (Mutex::default(), Mutex::new(Instant::now()));
        Self { store, table: MemoryStore::new(), loaded, last_loaded }
    }

    fn lock(&self) -> MutexGuard<'_, Instant> {
        self.last_loaded.lock()
    }

    fn loaded(&self) -> MutexGuard<'_, HashSet<Scope>> {
        self.loaded.lock()
    }

    async fn load(&self, scope: &Scope) -> Result<()> {
        let stored = with_timeout(self.store.load_each(scope)).await?;
        let text = |error: Error| error.to_string().into();
        let stored = stored.into_iter().map(|(shard, found)| (shard, found.map_err(text)));
        self.table.merge_loaded(scope, stored.collect());
        *self.lock() = Instant::now();
        self.loaded().insert(scope.clone());
        Ok(())
    }

    /// Stores the starting positions of shards before the shards are added. The first process that
    /// stores a starting position pins it for all, so the stored positions are then loaded.
    async fn store_starting_positions(&self, scope: &Scope, changes: &[Change]) -> Result<()> {
        let pins: Vec<(ShardId, Checkpoint)> = changes
            .iter()
            .filter_map(|change| match change {
                Change::Add { shard, checkpoint: Some(checkpoint), .. } => {
                    Some((shard.clone(), checkpoint.clone()))
                }
                _ => None,
            })
            .collect();
        if pins.is_empty() {
            return Ok(());
        }
        // If this future is dropped from here on, the stored positions are unknown.
        self.loaded().remove(scope);
        with_timeout(self.store.save(scope, &pins)).await?;
        self.load(scope).await
    }

    /// Saves positions. Returns the shards with a stored position that is unreadable and cannot be
    /// replaced.
    async fn save(
        &self,
        scope: &Scope,
        positions: &[(ShardId, Checkpoint)],
    ) -> Result<HashMap<ShardId, Arc<str>>> {
        let error = match self.store.save(scope, positions).await {
            Err(error) if error.kind() == ErrorKind::StoreCorrupt => error,
            saved => return saved.map(|()| HashMap::new()),
        };
        // The error may concern a single shard.
        let mut refused = HashMap::new();
        for position in positions {
            match self.store.save(scope, std::slice::from_ref(position)).await {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::StoreCorrupt => {
                    refused.insert(position.0.clone(), error.to_string().into());
                }
                Err(error) => return Err(error),
            }
        }
        if refused.len() == positions.len() {
            let Ok(found) = self.store.load_each(scope).await else { return Err(error) };
            if !refused.keys().all(|shard| found.get(shard).is_some_and(Result::is_err)) {
                return Err(error);
            }
        }
        Ok(refused)
    }

    /// Returns true if unreadable positions are due to be loaded again.
    fn is_reload_due(&self, scope: &Scope, request: &HeartbeatRequest) -> bool {
        let is_due = self.lock().elapsed() >= RELOAD_INTERVAL;
        is_due && request.known.is_none() && self.table.has_unreadable(scope)
    }
}

/// Returns each shard once, with its furthest position. A shard that was opened again may have
/// positions of two epochs.
fn furthest(positions: &[FencedCheckpoint]) -> Vec<(ShardId, Checkpoint)> {
    let mut furthest: BTreeMap<&ShardId, &Checkpoint> = BTreeMap::new();
    for FencedCheckpoint { shard, checkpoint, .. } in positions {
        let known = furthest.entry(shard).or_insert(checkpoint);
        if checkpoint.supersedes(known) {
            *known = checkpoint;
        }
    }
    furthest.into_iter().map(|(shard, checkpoint)| (shard.clone(), checkpoint.clone())).collect()
}

impl LeaseStore for SingleWorkerLeases {
    fn exchange<'a>(
        &'a self,
        scope: &'a Scope,
        request: &'a HeartbeatRequest,
    ) -> BoxFuture<'a, Result<HeartbeatResponse>> {
        async move {
            let is_loaded = self.loaded().contains(scope);
            if !is_loaded {
                self.load(scope).await?;
            } else if self.is_reload_due(scope, request)
                && let Err(error) = self.load(scope).await
            {
                // Not fatal: the other shards use the store only to save positions.
                log_line!(debug, %error, "checkpoint reload failed");
            }
            self.store_starting_positions(scope, &request.changes).await?;
            self.table.exchange(scope, request).await
        }
        .boxed()
    }

    fn save_fenced<'a>(
        &'a self,
        scope: &'a Scope,
        positions: &'a [FencedCheckpoint],
    ) -> BoxFuture<'a, Result<Vec<SaveOutcome>>> {
        async move {
            let refused = self.save(scope, &furthest(positions)).await?;
            if !refused.is_empty() {
                self.table.mark_unreadable(scope, refused);
                *self.lock() = Instant::now();
            }
            self.table.save_fenced(scope, positions).await
        }
        .boxed()
    }

    fn table<'a>(&'a self, scope: &'a Scope) -> BoxFuture<'a, Result<LeaseTable>> {
        async move {
            self.load(scope).await?;
            self.table.table(scope).await
        }
        .boxed()
    }

    fn edit<'a>(
        &'a self,
        scope: &'a Scope,
        edit: &'a AdminEdit,
        if_leased: IfLeased,
    ) -> BoxFuture<'a, Result<EditOutcome>> {
        // Positions in such a store only advance; moving one back requires a change in the store
        // itself.
        let _ = (scope, edit, if_leased);
        async move { Err(super::leases_unsupported()) }.boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn furthest_returns_each_shard_once_with_furthest_position() {
        let after = |number: &str| Checkpoint::AfterSequenceNumber {
            sequence_number: number.parse().unwrap(),
            sub_sequence_number: None,
        };
        let shard: ShardId = "shardId-000000000000".parse().unwrap();
        let fenced =
            |epoch, checkpoint| FencedCheckpoint { shard: shard.clone(), epoch, checkpoint };
        for positions in [
            [fenced(1, after("23")), fenced(2, Checkpoint::ShardEnd)],
            [fenced(1, Checkpoint::ShardEnd), fenced(2, after("23"))],
        ] {
            assert_eq!(furthest(&positions), [(shard.clone(), Checkpoint::ShardEnd)]);
        }
    }
}
