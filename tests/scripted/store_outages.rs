//! A store of leases that is away.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::{BoxFuture, ready};
use futures::{FutureExt, StreamExt};
use kinestream::store::Scope;
use kinestream::store::lease::{Change, LeaseStore, HeartbeatRequest};
use kinestream::{Checkpoint, CheckpointStore, Error, ErrorKind, ShardId};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};

use crate::fleets::{Fleet, LEASE, RENEWAL};
use crate::gated::{Asked, Gated};
use crate::{next, number};

/// It is asked again with a back-off, also where it is to be told something; and who reads is told
/// when it has held everything up for too long.
#[tokio::test(start_paused = true)]
async fn a_store_that_fails_is_asked_ever_more_rarely() {
    let fleet = Fleet::new(2);
    let (is_down, exchanges) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    // It fails at once while it is down.
    let store = Gated::new(fleet.store.clone(), {
        let (is_down, exchanges) = (Arc::clone(&is_down), Arc::clone(&exchanges));
        move |asked| {
            exchanges.fetch_add(usize::from(asked == Asked::Exchange), Ordering::SeqCst);
            let is_down = is_down.load(Ordering::SeqCst);
            let refusal = || Error::store_unavailable("the store is down", "by order");
            ready(if is_down { Err(refusal()) } else { Ok(()) }).boxed()
        }
    });
    let builder = fleet.builder("a").store(store.clone());
    let consumer = builder.max_unflushed(Duration::from_secs(30)).build().unwrap();
    let other = fleet.builder("b").store(store.clone()).build().unwrap();
    let (mut records, mut others) = (consumer.records(), other.records());
    let others = tokio::spawn(async move { while others.next().await.is_some() {} });
    fleet.orders.shard(0).put("0");
    next_of(&mut records, &fleet).await;
    sleep(2 * RENEWAL).await;
    is_down.store(true, Ordering::SeqCst);
    let before = exchanges.load(Ordering::SeqCst);
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
    let asked = exchanges.load(Ordering::SeqCst) - before;
    assert!((40..150).contains(&asked), "{asked} times by two workers in a minute and a half");
    is_down.store(false, Ordering::SeqCst);
    for shard in fleet.orders.open_shards() {
        shard.put("1");
    }
    assert_eq!(number(&next(&mut records).await), 1, "and goes on");
    others.abort();
}

/// The only worker of an application reads for as long as its lease is valid, and no longer, while the
/// store is away for it: another worker may have joined. When the store answers again, the worker waits
/// until its leases are restored, since they may have gone to the other worker.
#[tokio::test(start_paused = true)]
async fn only_worker_without_its_store_reads_until_its_lease_expires() {
    let fleet = Fleet::new(1);
    // How many exchanges and saves are let through; the next one waits for more.
    let turns = [Asked::Exchange, Asked::Save].map(|_| Arc::new(Semaphore::new(100)));
    let is_down = Arc::new(AtomicBool::new(false));
    let store = Gated::new(fleet.store.clone(), {
        let (turns, is_down) = (turns.clone(), Arc::clone(&is_down));
        move |asked| {
            let turn = Arc::clone(&turns[usize::from(asked == Asked::Save)]);
            if is_down.load(Ordering::SeqCst) {
                return ready(Err(Error::store_unavailable("the store is down", "by order")))
                    .boxed();
            }
            async move {
                turn.acquire().await.unwrap().forget();
                Ok(())
            }
            .boxed()
        }
    });
    let consumer = fleet.builder("a").store(store).build().unwrap();
    let mut records = consumer.records();
    let shard = fleet.orders.shard(0);
    shard.put("0");
    assert_eq!(number(&next(&mut records).await), 0);
    is_down.store(true, Ordering::SeqCst);
    let began = Instant::now();
    shard.put("1");
    assert_eq!(number(&next(&mut records).await), 1, "its lease is still valid");
    sleep(LEASE).await;
    shard.put("2");
    let waiting = timeout(2 * LEASE, records.next()).await;
    assert!(waiting.is_err(), "its lease has expired {:?} ago: {waiting:?}", began.elapsed());
    // Another one comes, before whom it is dead; it is back itself before that one decides.
    let scope = Scope::new("default", "orders");
    let mut request = HeartbeatRequest {
        worker: "b".into(),
        incarnation: 1,
        lease_duration: LEASE,
        capacity: 1,
        leaving: false,
        known: None,
        only_if_unchanged: false,
        changes: Vec::new(),
    };
    let table = fleet.store.exchange(&scope, &request).await.unwrap().table.unwrap();
    assert!(!table.workers.contains_key("a"));
    for turns in &turns {
        turns.forget_permits(usize::MAX);
    }
    turns[0].add_permits(1);
    is_down.store(false, Ordering::SeqCst);
    while !fleet.store.table(&scope).await.unwrap().workers.contains_key("a") {
        sleep(Duration::from_millis(10)).await;
    }
    request.changes = vec![Change::Assign { shard: shard.id(), to: "b".into() }];
    fleet.store.exchange(&scope, &request).await.unwrap();
    let waiting = timeout(LEASE / 3, records.next()).await;
    assert!(waiting.is_err(), "another worker has the lease: {waiting:?}");
    // As soon as the other one gives it back, it goes on, from what was saved before it went away.
    for turns in turns {
        turns.add_permits(1000);
    }
    request.leaving = true;
    fleet.store.exchange(&scope, &request).await.unwrap();
    while number(&next(&mut records).await) < 2 {}
}

/// The leases of a store that keeps positions alone are in memory, where no other worker can take them:
/// nothing stops before `max_unflushed` says so.
#[tokio::test(start_paused = true)]
async fn store_without_leases_that_is_away_stops_no_reading_before_max_unflushed() {
    let fleet = Fleet::new(1);
    let store = Positions::default();
    let builder = fleet.builder("a").store(store.clone());
    let consumer = builder.max_unflushed(Duration::from_secs(60)).build().unwrap();
    let mut records = consumer.records();
    let shard = fleet.orders.shard(0);
    shard.put("0");
    assert_eq!(number(&next(&mut records).await), 0);
    store.0.is_down.store(true, Ordering::SeqCst);
    for place in 1..5 {
        sleep(LEASE).await;
        shard.put(place.to_string());
        assert_eq!(number(&next(&mut records).await), place);
    }
}

/// A store that is away before it has ever answered is told as late as one that is away later.
#[tokio::test(start_paused = true)]
async fn store_that_is_away_at_the_start_is_told_after_max_unflushed() {
    for limit in [2, 60] {
        let fleet = Fleet::new(1);
        let is_down = Arc::new(AtomicBool::new(true));
        let store = Gated::new(fleet.store.clone(), {
            let is_down = Arc::clone(&is_down);
            move |_asked| {
                let refusal = || Error::store_unavailable("the store is down", "by order");
                let is_down = is_down.load(Ordering::SeqCst);
                ready(if is_down { Err(refusal()) } else { Ok(()) }).boxed()
            }
        });
        let limit = Duration::from_secs(limit);
        let consumer = fleet.builder("a").store(store).max_unflushed(limit).build().unwrap();
        let mut records = consumer.records();
        let began = Instant::now();
        let error = timeout(2 * limit + LEASE, records.next()).await.unwrap().unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StoreUnavailable);
        let waited = began.elapsed();
        assert!(waited >= limit && waited < limit + LEASE, "{waited:?}");
        is_down.store(false, Ordering::SeqCst);
        fleet.orders.shard(0).put("0");
        assert_eq!(number(&next(&mut records).await), 0, "and reads when it answers");
    }
}

/// Keeps positions alone.
#[derive(Debug, Clone, Default)]
struct Positions(Arc<PositionsInner>);

#[derive(Debug, Default)]
struct PositionsInner {
    is_down: AtomicBool,
    stored: kinestream::MemoryStore,
}

impl Positions {
    fn reach(&self) -> kinestream::Result<()> {
        let is_down = self.0.is_down.load(Ordering::SeqCst);
        let refusal = || Error::store_unavailable("the store is down", "by order");
        if is_down { Err(refusal()) } else { Ok(()) }
    }
}

impl CheckpointStore for Positions {
    fn load<'a>(
        &'a self,
        scope: &'a Scope,
    ) -> BoxFuture<'a, kinestream::Result<HashMap<ShardId, Checkpoint>>> {
        async move {
            self.reach()?;
            self.0.stored.load(scope).await
        }
        .boxed()
    }

    fn save<'a>(
        &'a self,
        scope: &'a Scope,
        checkpoints: &'a [(ShardId, Checkpoint)],
    ) -> BoxFuture<'a, kinestream::Result<()>> {
        async move {
            self.reach()?;
            self.0.stored.save(scope, checkpoints).await
        }
        .boxed()
    }
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

#[tokio::test(start_paused = true)]
async fn each_outage_of_an_idle_stream_is_reported() {
    let fleet = Fleet::new(1);
    let is_down = Arc::new(AtomicBool::new(false));
    let store = Gated::new(fleet.store.clone(), {
        let is_down = Arc::clone(&is_down);
        move |_asked| {
            let is_down = is_down.load(Ordering::SeqCst);
            let refusal = || Error::store_unavailable("the store is down", "by order");
            ready(if is_down { Err(refusal()) } else { Ok(()) }).boxed()
        }
    });
    let consumer = fleet.builder("a").store(store).build().unwrap();
    let mut records = consumer.records();
    crate::assert_silent(&mut records).await;
    for round in 0..3 {
        is_down.store(true, Ordering::SeqCst);
        let told = timeout(Duration::from_secs(240), records.next()).await;
        is_down.store(false, Ordering::SeqCst);
        assert!(matches!(told, Ok(Some(Err(_)))), "outage {round}: {told:?}");
        crate::assert_silent(&mut records).await;
    }
}

#[tokio::test(start_paused = true)]
async fn lease_is_handed_over_while_checkpoints_cannot_be_saved() {
    let fleet = Fleet::new(2);
    let store = Gated::new(fleet.store.clone(), |asked| {
        let refusal = || Error::store_unavailable("checkpoints cannot be saved", "by order");
        ready(if asked == Asked::Save { Err(refusal()) } else { Ok(()) }).boxed()
    });
    let first = fleet.builder("a").store(store).build().unwrap();
    let mut records = first.records();
    fleet.orders.shard(0).put("0");
    fleet.orders.shard(1).put("1");
    next(&mut records).await;
    next(&mut records).await;
    let reading = tokio::spawn(async move { while records.next().await.is_some() {} });
    let second = fleet.builder("b").build().unwrap();
    let mut others = second.records();
    let handed_over = timeout(Duration::from_secs(120), others.next()).await;
    assert!(matches!(handed_over, Ok(Some(Ok(_)))), "{handed_over:?}");
    reading.abort();
}
