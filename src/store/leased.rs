//! A store with leases as a checkpoint store.

use std::collections::HashMap;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::time::sleep;

use super::lease::{EntryChange, EntryKey, Exchange, Exchanged, LeaseStore, Step};
use super::{CheckpointStore, Scope, all_or_error};
use crate::backoff::{Backoff, CONFLICTS};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::record::ShardId;

/// Makes a [`LeaseStore`] a [`CheckpointStore`], so that
/// [`ConsumerBuilder::store`](crate::ConsumerBuilder::store) accepts it.
///
/// Positions are loaded by reading the whole table. They are saved by a step, which is retried with
/// back-off if another worker was faster. Consumers save them by
/// [`LeaseStore::save_fenced`] instead.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> kinestream::Result<()> {
/// use kinestream::store::{CheckpointStore, Leased, Scope};
/// use kinestream::{Checkpoint, MemoryStore};
///
/// // Any `LeaseStore`.
/// let store = Leased::new(MemoryStore::new());
/// let scope = Scope::new("billing", "orders");
/// let shard = "shardId-000000000000".parse()?;
/// store.save(&scope, &[(shard, Checkpoint::ShardEnd)]).await?;
/// assert_eq!(store.load(&scope).await?.len(), 1);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Leased<S> {
    store: Arc<S>,
}

impl<S> Clone for Leased<S> {
    fn clone(&self) -> Self {
        Self { store: Arc::clone(&self.store) }
    }
}

impl<S: LeaseStore> Leased<S> {
    /// Creates a checkpoint store over a store with leases.
    pub fn new(store: S) -> Self {
        Self { store: Arc::new(store) }
    }

    fn parse(&self, scope: &Scope, shard: &ShardId, text: &str) -> Result<Checkpoint> {
        text.parse().map_err(|_unreadable| {
            let key = EntryKey::Position(shard.clone());
            Error::new(ErrorKind::StoreCorrupt, self.store.unreadable(scope, &key, text))
        })
    }

    async fn save(&self, scope: &Scope, checkpoints: &[(ShardId, Checkpoint)]) -> Result<()> {
        let mut conflicts = Backoff::new(CONFLICTS);
        loop {
            let table = self.store.exchange(scope, &Exchange::default()).await?;
            let known = Some(table.version);
            let stored: HashMap<ShardId, Arc<str>> = positions(table).collect();
            let mut step = Step::default();
            for (shard, checkpoint) in checkpoints {
                let text = stored.get(shard);
                let found = text.map(|text| self.parse(scope, shard, text)).transpose()?;
                if found.is_none_or(|found| checkpoint.supersedes(&found)) {
                    let new = checkpoint.to_string().into();
                    let key = EntryKey::Position(shard.clone());
                    step.entries.push(EntryChange::new(key, text.cloned(), Some(new)));
                }
            }
            if step.entries.is_empty() {
                return Ok(());
            }
            let exchange = Exchange { step: Some(step), known, ..Exchange::default() };
            if self.store.exchange(scope, &exchange).await?.is_made {
                return Ok(());
            }
            sleep(conflicts.failed()).await;
        }
    }
}

/// Returns the positions of a table.
fn positions(table: Exchanged) -> impl Iterator<Item = (ShardId, Arc<str>)> {
    table.entries.into_iter().filter_map(|(key, text)| match key {
        EntryKey::Position(shard) => Some((shard, text?)),
        _ => None,
    })
}

impl<S: LeaseStore> CheckpointStore for Leased<S> {
    fn load<'a>(&'a self, scope: &'a Scope) -> BoxFuture<'a, Result<HashMap<ShardId, Checkpoint>>> {
        async move { all_or_error(self.load_each(scope).await?) }.boxed()
    }

    fn load_each<'a>(
        &'a self,
        scope: &'a Scope,
    ) -> BoxFuture<'a, Result<HashMap<ShardId, Result<Checkpoint>>>> {
        async move {
            let table = self.store.exchange(scope, &Exchange::default()).await?;
            let found = positions(table).map(|(shard, text)| {
                let checkpoint = self.parse(scope, &shard, &text);
                (shard, checkpoint)
            });
            Ok(found.collect())
        }
        .boxed()
    }

    fn save<'a>(
        &'a self,
        scope: &'a Scope,
        checkpoints: &'a [(ShardId, Checkpoint)],
    ) -> BoxFuture<'a, Result<()>> {
        self.save(scope, checkpoints).boxed()
    }

    fn leases(self: Arc<Self>) -> Option<Arc<dyn LeaseStore>> {
        Some(Arc::clone(&self.store) as Arc<dyn LeaseStore>)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::lease::{FencedOutcome, FencedSave};
    use crate::store::{MemoryStore, conformance};

    #[tokio::test(start_paused = true)]
    async fn leased_memory_store_conforms() {
        let store = Leased::new(MemoryStore::new());
        conformance::check(&store).await;
        assert!(Arc::new(store).leases().is_some());
    }

    /// Another worker saves a position before each step of this store, while there are any left.
    #[derive(Debug)]
    struct Contended {
        store: MemoryStore,
        others: crate::mutex::Mutex<Vec<&'static str>>,
    }

    impl LeaseStore for Contended {
        fn exchange<'a>(
            &'a self,
            scope: &'a Scope,
            exchange: &'a Exchange,
        ) -> BoxFuture<'a, Result<Exchanged>> {
            async move {
                let other = exchange.step.as_ref().and_then(|_step| self.others.lock().pop());
                if let Some(text) = other {
                    self.store.save(scope, &[(shard(), text.parse()?)]).await?;
                }
                self.store.exchange(scope, exchange).await
            }
            .boxed()
        }

        fn save_fenced<'a>(
            &'a self,
            scope: &'a Scope,
            saves: &'a [FencedSave],
        ) -> BoxFuture<'a, Result<Vec<FencedOutcome>>> {
            self.store.save_fenced(scope, saves)
        }
    }

    fn shard() -> ShardId {
        "shardId-000000000000".parse().unwrap()
    }

    async fn saved_over(others: &[&'static str]) -> Checkpoint {
        let others = crate::mutex::Mutex::new(others.iter().rev().copied().collect());
        let store = Leased::new(Contended { store: MemoryStore::new(), others });
        let scope = Scope::new("billing", "orders");
        let saved = "AFTER_SEQUENCE_NUMBER:5".parse().unwrap();
        CheckpointStore::save(&store, &scope, &[(shard(), saved)]).await.unwrap();
        store.load(&scope).await.unwrap()[&shard()].clone()
    }

    #[tokio::test(start_paused = true)]
    async fn save_is_retried_after_another_save_and_never_moves_backwards() {
        let after = |number: u32| format!("AFTER_SEQUENCE_NUMBER:{number}").parse().unwrap();
        let passed = saved_over(&["AFTER_SEQUENCE_NUMBER:3", "AFTER_SEQUENCE_NUMBER:4"]).await;
        assert_eq!(passed, after(5));
        let passed_by = saved_over(&["AFTER_SEQUENCE_NUMBER:3", "AFTER_SEQUENCE_NUMBER:6"]).await;
        assert_eq!(passed_by, after(6));
    }

    #[tokio::test]
    async fn unreadable_position_is_an_error_of_its_shard_only() {
        let memory = MemoryStore::new();
        let scope = Scope::new("billing", "orders");
        let other: ShardId = "shardId-000000000001".parse().unwrap();
        let positions = [(shard(), Checkpoint::TrimHorizon), (other.clone(), Checkpoint::ShardEnd)];
        memory.save(&scope, &positions).await.unwrap();
        memory.mark_unreadable(&scope, HashMap::from([(shard(), "damaged".into())]));
        let store = Leased::new(memory);
        let each = store.load_each(&scope).await.unwrap();
        assert_eq!(each[&other].as_ref().unwrap(), &Checkpoint::ShardEnd);
        let error = each[&shard()].as_ref().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StoreCorrupt);
        assert!(error.to_string().contains("\"damaged\""), "{error}");
        assert_eq!(store.load(&scope).await.unwrap_err().kind(), ErrorKind::StoreCorrupt);
        let saved = CheckpointStore::save(&store, &scope, &positions[..1]).await;
        assert_eq!(saved.unwrap_err().kind(), ErrorKind::StoreCorrupt);
    }
}
