//! A lease store that fails, loses responses or violates the contract of `LeaseStore`.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use kinestream::store::Scope;
use kinestream::store::lease::{
    EntryChange, EntryKey, Exchange, Exchanged, FencedOutcome, FencedSave, LeaseStore,
};
use kinestream::{Checkpoint, CheckpointStore, Error, ErrorKind, MemoryStore, Result, ShardId};
use tokio::time::timeout;

use crate::{assert_silent, consumer, next, number, orders};

const SECOND: Duration = Duration::from_secs(1);

/// A lease store with faults that a test switches on and off.
#[derive(Debug, Clone, Default)]
pub(crate) struct FaultyStore {
    pub(crate) stored: MemoryStore,
    /// Exchanges fail without effect.
    pub(crate) fails: Arc<AtomicBool>,
    /// The number of responses still to lose, counting exchanges that finish, expire or replace a
    /// shard.
    pub(crate) lost_answers: Arc<AtomicUsize>,
    /// Saves return no outcome for their last position.
    omits_outcomes: Arc<AtomicBool>,
    /// Exchanges succeed without adding the shards that they should add.
    adds_no_shards: Arc<AtomicBool>,
    exchanges: Arc<AtomicUsize>,
}

impl FaultyStore {
    /// Returns true if the response to this exchange is lost.
    fn loses_answer(&self, exchange: &Exchange) -> bool {
        let stores_loss = |change: &EntryChange| {
            let text = change.text.as_deref().unwrap_or_default();
            match change.key {
                EntryKey::Lease(_) => text.contains(" LOST "),
                EntryKey::Position(_) => change.expected.is_some(),
                _ => false,
            }
        };
        let left = self.lost_answers.load(Ordering::SeqCst);
        let step = exchange.step.as_ref().filter(|step| left > 0 && step.version.is_some());
        let is_lost = step.is_some_and(|step| step.entries.iter().any(stores_loss));
        if is_lost {
            self.lost_answers.store(left - 1, Ordering::SeqCst);
        }
        is_lost
    }
}

/// Removes the shards that an exchange adds.
fn drop_added(exchange: &mut Exchange) {
    let Some(step) = &mut exchange.step else { return };
    let is_added = |change: &EntryChange| change.expected.is_none();
    step.entries.retain(|change| match change.key {
        EntryKey::Lease(_) | EntryKey::Position(_) => !is_added(change),
        _ => true,
    });
    if step.entries.is_empty() {
        exchange.step = None;
    }
}

fn unavailable() -> Error {
    Error::new(ErrorKind::StoreUnavailable, "the response was lost")
        .with_source(std::io::Error::other("reset"))
}

impl CheckpointStore for FaultyStore {
    fn load<'a>(&'a self, scope: &'a Scope) -> BoxFuture<'a, Result<HashMap<ShardId, Checkpoint>>> {
        self.stored.load(scope)
    }

    fn save<'a>(
        &'a self,
        scope: &'a Scope,
        checkpoints: &'a [(ShardId, Checkpoint)],
    ) -> BoxFuture<'a, Result<()>> {
        self.stored.save(scope, checkpoints)
    }

    fn leases(self: Arc<Self>) -> Option<Arc<dyn LeaseStore>> {
        Some(self)
    }
}

impl LeaseStore for FaultyStore {
    fn exchange<'a>(
        &'a self,
        scope: &'a Scope,
        exchange: &'a Exchange,
    ) -> BoxFuture<'a, Result<Exchanged>> {
        async move {
            self.exchanges.fetch_add(1, Ordering::SeqCst);
            if self.fails.load(Ordering::SeqCst) {
                return Err(unavailable());
            }
            let mut exchange = exchange.clone();
            if self.adds_no_shards.load(Ordering::SeqCst) {
                drop_added(&mut exchange);
            }
            let answer = self.stored.exchange(scope, &exchange).await?;
            if self.loses_answer(&exchange) { Err(unavailable()) } else { Ok(answer) }
        }
        .boxed()
    }

    fn save_fenced<'a>(
        &'a self,
        scope: &'a Scope,
        saves: &'a [FencedSave],
    ) -> BoxFuture<'a, Result<Vec<FencedOutcome>>> {
        async move {
            let mut outcomes = self.stored.save_fenced(scope, saves).await?;
            if self.omits_outcomes.load(Ordering::SeqCst) {
                outcomes.pop();
            }
            Ok(outcomes)
        }
        .boxed()
    }
}

#[tokio::test(start_paused = true)]
async fn save_without_an_outcome_fails_the_close() {
    let (kinesis, orders) = orders(1);
    let store = FaultyStore::default();
    let consumer = consumer(&kinesis).store(store.clone()).build().unwrap();
    let mut records = consumer.records();
    orders.shard(0).put("0");
    let record = next(&mut records).await;
    assert_silent(&mut records).await;
    store.omits_outcomes.store(true, Ordering::SeqCst);
    orders.shard(0).put("1");
    drop(record);
    next(&mut records).await.ack();
    let closed =
        timeout(60 * SECOND, consumer.close()).await.expect("close returns within a minute");
    assert_eq!(closed.expect_err("a position without an outcome").kind(), ErrorKind::StoreCorrupt);
}

#[tokio::test(start_paused = true)]
async fn worker_stays_responsive_while_the_store_adds_no_children() {
    let (kinesis, orders) = orders(2);
    let store = FaultyStore::default();
    let consumer = consumer(&kinesis).store(store.clone()).build().unwrap();
    let mut records = consumer.records();
    assert_silent(&mut records).await;
    store.adds_no_shards.store(true, Ordering::SeqCst);
    let [left, _right] = orders.shard(0).split();
    left.put("1");
    let before = store.exchanges.load(Ordering::SeqCst);
    assert_silent(&mut records).await;
    let exchanges = store.exchanges.load(Ordering::SeqCst) - before;
    assert!(exchanges < 120, "{exchanges} exchanges in a minute");
    orders.shard(1).put("0");
    assert_eq!(number(&next(&mut records).await), 0, "expected the other shard to be read");
    store.adds_no_shards.store(false, Ordering::SeqCst);
    assert_eq!(
        number(&next(&mut records).await),
        1,
        "expected the child to be read after it was added"
    );
}
