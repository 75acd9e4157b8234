//! A store that keeps positions and no leases: one worker reads every shard.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::FutureExt;
use futures::future::BoxFuture;

use super::lease::{Answer, Change, Edit, Fenced, LeaseStore, Request, Table, Verdict};
use super::{CheckpointStore, MemoryStore, Scope, in_time};
use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::record::ShardId;

/// Leases of the consumer's own, in memory, above positions in a store that knows of none. A
/// worker that has begun needs the store for nothing but to save positions.
#[derive(Debug)]
pub(super) struct Alone {
    store: Arc<dyn CheckpointStore>,
    table: MemoryStore,
    /// The table has what is stored.
    is_loaded: AtomicBool,
}

impl Alone {
    pub(super) fn new(store: Arc<dyn CheckpointStore>) -> Self {
        Self { store, table: MemoryStore::new(), is_loaded: AtomicBool::new(false) }
    }

    async fn load(&self, scope: &Scope) -> Result<()> {
        let stored = in_time(self.store.load(scope)).await?;
        self.table.learn(scope, stored);
        self.is_loaded.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// Stores where shards begin, before they are added: who was first has pinned it for all, so
    /// what counts is what is stored then.
    async fn pin(&self, scope: &Scope, changes: &[Change]) -> Result<()> {
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
        // Dropped from here on, it is not known what is stored.
        self.is_loaded.store(false, Ordering::SeqCst);
        in_time(self.store.save(scope, &pins)).await?;
        self.load(scope).await
    }
}

impl LeaseStore for Alone {
    fn exchange<'a>(
        &'a self,
        scope: &'a Scope,
        request: &'a Request,
    ) -> BoxFuture<'a, Result<Answer>> {
        async move {
            if !self.is_loaded.load(Ordering::SeqCst) {
                self.load(scope).await?;
            }
            self.pin(scope, &request.changes).await?;
            self.table.exchange(scope, request).await
        }
        .boxed()
    }

    fn save_fenced<'a>(
        &'a self,
        scope: &'a Scope,
        positions: &'a [Fenced],
    ) -> BoxFuture<'a, Result<Vec<Verdict>>> {
        async move {
            let saved: Vec<_> = positions
                .iter()
                .map(|position| (position.shard.clone(), position.checkpoint.clone()))
                .collect();
            self.store.save(scope, &saved).await?;
            self.table.save_fenced(scope, positions).await
        }
        .boxed()
    }

    fn table<'a>(&'a self, scope: &'a Scope) -> BoxFuture<'a, Result<Table>> {
        async move {
            self.load(scope).await?;
            self.table.table(scope).await
        }
        .boxed()
    }

    fn edit<'a>(
        &'a self,
        scope: &'a Scope,
        edit: &'a Edit,
        forced: bool,
    ) -> BoxFuture<'a, Result<Option<Arc<str>>>> {
        // Positions of such a store only advance: moving one back is for whoever made it.
        let _ = (scope, edit, forced);
        async move { Err(super::no_leases()) }.boxed()
    }
}
