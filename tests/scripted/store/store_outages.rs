//! Outages of the store of leases and positions.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::{BoxFuture, ready};
use futures::{FutureExt, StreamExt};
use kinestream::store::Scope;
use kinestream::store::lease::{Change, HeartbeatRequest};
use kinestream::{Checkpoint, CheckpointOn, CheckpointStore, Error, ErrorKind, IfLeased, ShardId};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};

use crate::fleet::fleets::{Fleet, LEASE, RENEWAL};
use crate::gated::{Gated, GatedCall};
use crate::lease_access::LeaseAccess;
use crate::{next, number};

/// Calls to a failing store are retried with back-off, also if a change waits to be stored. The
/// stream yields one error when the outage lasts longer than `max_unflushed`.
#[tokio::test(start_paused = true)]
async fn failing_store_is_retried_with_back_off() {
    let fleet = Fleet::new(2);
    let (is_down, exchanges) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    // Calls fail immediately while the store is down.
    let store = Gated::new(fleet.store.clone(), {
        let (is_down, exchanges) = (Arc::clone(&is_down), Arc::clone(&exchanges));
        move |call| {
            exchanges.fetch_add(usize::from(call == GatedCall::Exchange), Ordering::SeqCst);
            let is_down = is_down.load(Ordering::SeqCst);
            let refusal = || {
                Error::new(ErrorKind::StoreUnavailable, "the store is down")
                    .with_source("injected by the test")
            };
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
        // The end of a shard is a change to store.
        shard.split();
    }
    let error =
        timeout(Duration::from_secs(60), records.next()).await.unwrap().unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StoreUnavailable);
    let waited = began.elapsed();
    assert!(waited >= Duration::from_secs(30) && waited < Duration::from_secs(36), "{waited:?}");
    let quiet = timeout(Duration::from_secs(60), records.next()).await;
    assert!(quiet.is_err(), "expected one error: {quiet:?}");
    let count = exchanges.load(Ordering::SeqCst) - before;
    assert!((40..150).contains(&count), "{count} exchanges of two workers in a minute and a half");
    is_down.store(false, Ordering::SeqCst);
    for shard in fleet.orders.open_shards() {
        shard.put("1");
    }
    assert_eq!(
        number(&next(&mut records).await),
        1,
        "expected reading to continue after the outage"
    );
    others.abort();
}

/// While the store is down, the only worker of an application reads as long as its lease is valid
/// and no longer, since another worker may have joined. When the store responds again, the worker
/// waits until its leases are restored, since another worker may own them.
#[tokio::test(start_paused = true)]
async fn sole_worker_without_its_store_reads_until_its_lease_expires() {
    let fleet = Fleet::new(1);
    // The numbers of exchanges and saves that pass. Further ones wait.
    let turns = [GatedCall::Exchange, GatedCall::Save].map(|_| Arc::new(Semaphore::new(100)));
    let is_down = Arc::new(AtomicBool::new(false));
    let store = Gated::new(fleet.store.clone(), {
        let (turns, is_down) = (turns.clone(), Arc::clone(&is_down));
        move |call| {
            let turn = Arc::clone(&turns[usize::from(call == GatedCall::Save)]);
            if is_down.load(Ordering::SeqCst) {
                return ready(Err(Error::new(ErrorKind::StoreUnavailable, "the store is down")
                    .with_source("injected by the test")))
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
    assert_eq!(number(&next(&mut records).await), 1, "expected a record while the lease is valid");
    sleep(LEASE).await;
    shard.put("2");
    let waiting = timeout(2 * LEASE, records.next()).await;
    assert!(
        waiting.is_err(),
        "expected no record {:?} into the outage: {waiting:?}",
        began.elapsed()
    );
    // Another worker joins, for which worker `a` has expired. Worker `a` returns before the other
    // one assigns the lease.
    let scope = Scope::new("default", "orders");
    let mut request = HeartbeatRequest::new("b", 1, LEASE);
    request.capacity = 1;
    let table = fleet.store.heartbeat(&scope, &request).await.unwrap().table.unwrap();
    assert!(!table.workers.contains_key("a"));
    for turns in &turns {
        turns.forget_permits(usize::MAX);
    }
    // One exchange shows that worker `a` was removed, and one joins again.
    turns[0].add_permits(2);
    is_down.store(false, Ordering::SeqCst);
    while !fleet.store.table(&scope).await.unwrap().workers.contains_key("a") {
        sleep(Duration::from_millis(10)).await;
    }
    request.changes = vec![Change::Assign { shard: shard.id(), to: "b".into() }];
    fleet.store.heartbeat(&scope, &request).await.unwrap();
    let waiting = timeout(LEASE / 3, records.next()).await;
    assert!(waiting.is_err(), "expected no record while another worker has the lease: {waiting:?}");
    // When the other worker releases the lease, worker `a` resumes from the position saved before
    // the outage.
    for turns in turns {
        turns.add_permits(1000);
    }
    request.leaving = true;
    fleet.store.heartbeat(&scope, &request).await.unwrap();
    while number(&next(&mut records).await) < 2 {}
}

/// A store that keeps only positions has its leases in memory, where no other worker can take them
/// over. Reading stops only after `max_unflushed`.
#[tokio::test(start_paused = true)]
async fn outage_of_a_store_without_leases_stops_no_reading_before_max_unflushed() {
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

/// An outage before the first response of the store is reported after the same time as a later one.
#[tokio::test(start_paused = true)]
async fn store_outage_at_the_start_is_reported_after_max_unflushed() {
    for limit in [2, 60] {
        let fleet = Fleet::new(1);
        let is_down = Arc::new(AtomicBool::new(true));
        let store = Gated::new(fleet.store.clone(), {
            let is_down = Arc::clone(&is_down);
            move |_call| {
                let refusal = || {
                    Error::new(ErrorKind::StoreUnavailable, "the store is down")
                        .with_source("injected by the test")
                };
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
        assert_eq!(number(&next(&mut records).await), 0, "expected a record after the outage");
    }
}

/// A store that keeps positions and no leases.
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
        let refusal = || {
            Error::new(ErrorKind::StoreUnavailable, "the store is down")
                .with_source("injected by the test")
        };
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

/// Waits for a record of this worker, and puts one into each open shard every two seconds until
/// then.
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
        move |_call| {
            let is_down = is_down.load(Ordering::SeqCst);
            let refusal = || {
                Error::new(ErrorKind::StoreUnavailable, "the store is down")
                    .with_source("injected by the test")
            };
            ready(if is_down { Err(refusal()) } else { Ok(()) }).boxed()
        }
    });
    let consumer = fleet.builder("a").store(store).build().unwrap();
    let mut records = consumer.records();
    crate::assert_silent(&mut records).await;
    for round in 0..3 {
        is_down.store(true, Ordering::SeqCst);
        let next = timeout(Duration::from_secs(240), records.next()).await;
        is_down.store(false, Ordering::SeqCst);
        assert!(matches!(next, Ok(Some(Err(_)))), "outage {round}: {next:?}");
        crate::assert_silent(&mut records).await;
    }
}

#[tokio::test(start_paused = true)]
async fn lease_is_handed_off_while_checkpoint_writes_fail() {
    let fleet = Fleet::new(2);
    let store = Gated::new(fleet.store.clone(), |call| {
        let refusal = || {
            Error::new(ErrorKind::StoreUnavailable, "checkpoints cannot be saved")
                .with_source("injected by the test")
        };
        ready(if call == GatedCall::Save { Err(refusal()) } else { Ok(()) }).boxed()
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
    let taken_over = timeout(Duration::from_secs(120), others.next()).await;
    assert!(matches!(taken_over, Ok(Some(Ok(_)))), "{taken_over:?}");
    reading.abort();
}

/// Returns the store of a fleet behind a gate that refuses all calls while the flag is set.
pub(crate) fn store_that_goes_down(
    fleet: &Fleet,
) -> (Gated<kinestream::MemoryStore>, Arc<AtomicBool>) {
    let is_down = Arc::new(AtomicBool::new(false));
    let store = Gated::new(fleet.store.clone(), {
        let is_down = Arc::clone(&is_down);
        move |_| {
            let refusal = || {
                Error::new(ErrorKind::StoreUnavailable, "the store is down")
                    .with_source("injected by the test")
            };
            let is_down = is_down.load(Ordering::SeqCst);
            ready(if is_down { Err(refusal()) } else { Ok(()) }).boxed()
        }
    });
    (store, is_down)
}

/// A run of records ends when its lease expires. If the lease is restored, reading continues with the
/// record after the last one delivered, and the checkpoint follows.
#[tokio::test(start_paused = true)]
async fn records_left_in_a_run_are_delivered_after_its_lease_is_restored() {
    for delivered in [1, 2, 50, 128, 129, 200] {
        let fleet = Fleet::new(1);
        let (store, is_down) = store_that_goes_down(&fleet);
        for number in 0..300 {
            fleet.orders.shard(0).put(number.to_string());
        }
        let consumer = fleet.builder("a").store(store).build().unwrap();
        let mut records = consumer.records();
        for expected in 0..delivered {
            assert_eq!(number(&next(&mut records).await), expected);
        }
        is_down.store(true, Ordering::SeqCst);
        sleep(2 * LEASE).await;
        let quiet = timeout(LEASE, records.next()).await;
        assert!(quiet.is_err(), "expected no record without a valid lease: {quiet:?}");
        is_down.store(false, Ordering::SeqCst);
        for expected in delivered..300 {
            assert_eq!(number(&next(&mut records).await), expected);
        }
        // The records that the run did not deliver hold no checkpoint.
        let quiet = timeout(LEASE, records.next()).await;
        assert!(quiet.is_err(), "expected no further record: {quiet:?}");
        let (shard, scope) = (fleet.orders.shard(0), Scope::new("default", "orders"));
        let stored = fleet.store.load(&scope).await.unwrap().remove(&shard.id());
        let last = format!("AFTER_SEQUENCE_NUMBER:{}", shard.sequence_numbers()[299]);
        let stored = stored.map(|stored| stored.to_string());
        assert_eq!(stored, Some(last), "{delivered} before the outage");
    }
}

/// An operator moves a shard while its worker waits for the store. The refusal of its next save shows
/// that the lease is over, before the worker has read the table.
#[tokio::test(start_paused = true)]
async fn refused_save_ends_delivery_while_the_worker_waits_for_the_store() {
    let fleet = Fleet::new(1);
    let is_held = Arc::new(AtomicBool::new(false));
    let store = Gated::new(fleet.store.clone(), {
        let is_held = Arc::clone(&is_held);
        move |call| {
            let is_held = Arc::clone(&is_held);
            async move {
                while call == GatedCall::Exchange && is_held.load(Ordering::SeqCst) {
                    sleep(RENEWAL / 30).await;
                }
                Ok(())
            }
            .boxed()
        }
    });
    for number in 0..10 {
        fleet.orders.shard(0).put(number.to_string());
    }
    let consumer = fleet.builder("a").store(store).build().unwrap();
    let mut records = consumer.records();
    for expected in 0..2 {
        assert_eq!(number(&next(&mut records).await), expected);
    }
    is_held.store(true, Ordering::SeqCst);
    let (operator, shard) = (fleet.builder("operator").build().unwrap(), fleet.orders.shard(0));
    operator.set_position(&shard.id(), Checkpoint::TrimHorizon, IfLeased::Force).await.unwrap();
    assert_eq!(number(&next(&mut records).await), 2);
    // Shorter than the lease is valid, and longer than the interval of saves.
    sleep(RENEWAL / 2).await;
    let quiet = timeout(RENEWAL / 6, records.next()).await;
    assert!(quiet.is_err(), "expected no record in the old epoch: {quiet:?}");
    is_held.store(false, Ordering::SeqCst);
    assert_eq!(number(&next(&mut records).await), 0);
}

/// The bytes of the records that a run has not delivered are free when its lease ends, and those of
/// the others stay in flight.
#[tokio::test(start_paused = true)]
async fn bytes_in_flight_are_those_of_delivered_records_after_a_lease_is_restored() {
    let fleet = Fleet::new(1);
    let (store, is_down) = store_that_goes_down(&fleet);
    for number in 0..20 {
        fleet.orders.shard(0).put_as("k", format!("{number:02}"));
    }
    // Ten records of two bytes and a key of one byte.
    let builder = fleet.builder("a").store(store).max_in_flight_bytes(30);
    let consumer = builder.checkpoint_on(CheckpointOn::Ack).build().unwrap();
    let mut records = consumer.records();
    let mut held = Vec::new();
    for expected in 0..4 {
        held.push(next(&mut records).await);
        assert_eq!(number(&held[expected]), expected);
    }
    is_down.store(true, Ordering::SeqCst);
    sleep(2 * LEASE).await;
    let quiet = timeout(LEASE, records.next()).await;
    assert!(quiet.is_err(), "expected no record without a valid lease: {quiet:?}");
    is_down.store(false, Ordering::SeqCst);
    for expected in 4..10 {
        held.push(next(&mut records).await);
        assert_eq!(number(&held[expected]), expected);
    }
    let quiet = timeout(LEASE, records.next()).await;
    assert!(quiet.is_err(), "expected no record beyond the limit: {quiet:?}");
    held.iter().for_each(kinestream::Record::ack);
    assert_eq!(number(&next(&mut records).await), 10);
}
