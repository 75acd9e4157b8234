//! A store of leases that is away.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::{BoxFuture, ready};
use futures::{FutureExt, StreamExt};
use kinestream::store::Scope;
use kinestream::store::lease::{Answer, Edit, Fenced, LeaseStore, Request, Table, Verdict};
use kinestream::{Checkpoint, CheckpointStore, Error, ErrorKind, MemoryStore, ShardId};
use tokio::time::{Instant, sleep, timeout};

use crate::fleets::{Fleet, RENEWAL};
use crate::{next, number};

/// A store whose leases fail at once while it is down, and are counted.
#[derive(Debug, Clone, Default)]
struct Failing {
    stored: MemoryStore,
    is_down: Arc<AtomicBool>,
    exchanges: Arc<AtomicUsize>,
}

impl Failing {
    fn refusal(&self) -> kinestream::Result<()> {
        if self.is_down.load(Ordering::SeqCst) {
            return Err(Error::store_unavailable("the store is down", "by order"));
        }
        Ok(())
    }
}

impl CheckpointStore for Failing {
    fn load<'a>(
        &'a self,
        scope: &'a Scope,
    ) -> BoxFuture<'a, kinestream::Result<HashMap<ShardId, Checkpoint>>> {
        self.stored.load(scope)
    }

    fn save<'a>(
        &'a self,
        scope: &'a Scope,
        checkpoints: &'a [(ShardId, Checkpoint)],
    ) -> BoxFuture<'a, kinestream::Result<()>> {
        self.stored.save(scope, checkpoints)
    }

    fn leases(self: Arc<Self>) -> Option<Arc<dyn LeaseStore>> {
        Some(self)
    }
}

impl LeaseStore for Failing {
    fn exchange<'a>(
        &'a self,
        scope: &'a Scope,
        request: &'a Request,
    ) -> BoxFuture<'a, kinestream::Result<Answer>> {
        self.exchanges.fetch_add(1, Ordering::SeqCst);
        match self.refusal() {
            Ok(()) => self.stored.exchange(scope, request),
            Err(error) => ready(Err(error)).boxed(),
        }
    }

    fn save_fenced<'a>(
        &'a self,
        scope: &'a Scope,
        positions: &'a [Fenced],
    ) -> BoxFuture<'a, kinestream::Result<Vec<Verdict>>> {
        match self.refusal() {
            Ok(()) => self.stored.save_fenced(scope, positions),
            Err(error) => ready(Err(error)).boxed(),
        }
    }

    fn table<'a>(&'a self, scope: &'a Scope) -> BoxFuture<'a, kinestream::Result<Table>> {
        self.stored.table(scope)
    }

    fn edit<'a>(
        &'a self,
        scope: &'a Scope,
        edit: &'a Edit,
        forced: bool,
    ) -> BoxFuture<'a, kinestream::Result<Option<Arc<str>>>> {
        self.stored.edit(scope, edit, forced)
    }
}

/// It is asked again with a back-off, also where it is to be told something; and who reads is told
/// when it has held everything up for too long.
#[tokio::test(start_paused = true)]
async fn a_store_that_fails_is_asked_ever_more_rarely() {
    let fleet = Fleet::new(2);
    let store = Failing::default();
    let builder = fleet.builder("a").store(store.clone());
    let consumer = builder.max_unflushed(Duration::from_secs(30)).build().unwrap();
    let other = fleet.builder("b").store(store.clone()).build().unwrap();
    let (mut records, mut others) = (consumer.records(), other.records());
    let others = tokio::spawn(async move { while others.next().await.is_some() {} });
    fleet.orders.shard(0).put("0");
    next_of(&mut records, &fleet).await;
    sleep(2 * RENEWAL).await;
    store.is_down.store(true, Ordering::SeqCst);
    let before = store.exchanges.load(Ordering::SeqCst);
    let began = Instant::now();
    for shard in fleet.orders.open_shards() {
        // The end of a shard is something to be told.
        shard.split();
    }
    let error =
        timeout(Duration::from_secs(60), records.next()).await.unwrap().unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StoreUnavailable);
    let waited = began.elapsed();
    assert!(waited >= Duration::from_secs(30) && waited < Duration::from_secs(36), "{waited:?}");
    let quiet = timeout(Duration::from_secs(60), records.next()).await;
    assert!(quiet.is_err(), "it is told once: {quiet:?}");
    let asked = store.exchanges.load(Ordering::SeqCst) - before;
    assert!((40..150).contains(&asked), "{asked} times by two workers in a minute and a half");
    store.is_down.store(false, Ordering::SeqCst);
    for shard in fleet.orders.open_shards() {
        shard.put("1");
    }
    assert_eq!(number(&next(&mut records).await), 1, "and goes on");
    others.abort();
}

/// The next record, put again and again until one is this worker's.
async fn next_of(records: &mut kinestream::Records, fleet: &Fleet) {
    loop {
        match timeout(Duration::from_secs(2), records.next()).await {
            Ok(record) => return drop(record.unwrap().unwrap()),
            Err(_none) => fleet.orders.open_shards().iter().for_each(|shard| {
                shard.put("0");
            }),
        }
    }
}
