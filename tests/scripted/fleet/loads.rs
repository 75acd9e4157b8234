//! Fleets that follow the load: leases move by the bytes of the shards, not by their number.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use kinestream::store::Scope;
use kinestream::store::lease::{HeartbeatRequest, Lease, LeaseTable, Leases};
use kinestream::{ApplicationStatus, Consumer};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::fleet::fleets::{Fleet, LEASE, RENEWAL, Worker};

/// Puts this number of KiB per second into each shard, in the order of their indices.
fn put(fleet: &Fleet, kib: &[usize]) -> JoinHandle<()> {
    let (orders, kib) = (fleet.orders.clone(), kib.to_vec());
    tokio::spawn(async move {
        let mut number = 0;
        loop {
            for (shard, kib) in kib.iter().enumerate().filter(|(_, kib)| **kib > 0) {
                let mut data = vec![b' '; kib * 1024];
                data.extend(number.to_string().bytes());
                orders.shard(shard).put(data);
                number += 1;
            }
            sleep(Duration::from_secs(1)).await;
        }
    })
}

/// Returns the KiB per second of each worker, if the shards have these.
async fn loads(fleet: &Fleet, kib: &[usize]) -> BTreeMap<String, usize> {
    let table = fleet.table().await;
    let mut loads: BTreeMap<String, usize> =
        table.workers.keys().map(|name| (name.to_string(), 0)).collect();
    for (shard, kib) in kib.iter().enumerate() {
        let owner = table.leases[&fleet.orders.shard(shard).id()].owner.as_ref();
        *loads.entry(owner.expect("a reader").to_string()).or_default() += kib;
    }
    loads
}

/// Starts a worker that takes a time for each record.
fn start(fleet: &Fleet, name: &str, capacity: f64, pause: Duration) -> Worker {
    Worker::start(fleet.builder(name).capacity(capacity).build().unwrap(), pause, |_record| {})
}

const QUICK: Duration = Duration::from_millis(1);

/// Waits until the leases have moved, and asserts that none moves afterwards.
async fn settle(fleet: &Fleet) {
    sleep(12 * RENEWAL).await;
    let owners = |table: LeaseTable| {
        let owner = |(id, lease): (_, Lease)| (id, lease.owner);
        table.leases.into_iter().map(owner).collect::<BTreeMap<_, _>>()
    };
    let before = owners(fleet.table().await);
    sleep(60 * RENEWAL).await;
    assert_eq!(owners(fleet.table().await), before, "expected leases that stay where they are");
}

#[tokio::test(start_paused = true)]
async fn hot_shards_are_shared_and_then_no_lease_moves() {
    let fleet = Fleet::new(8);
    let workers = [start(&fleet, "a", 1.0, QUICK), start(&fleet, "b", 1.0, QUICK)];
    sleep(3 * RENEWAL).await;
    let table = fleet.table().await;
    let is_of_a =
        |shard| table.leases[&fleet.orders.shard(shard).id()].owner.as_deref() == Some("a");
    let kib: Vec<usize> = (0..8).map(|shard| if is_of_a(shard) { 400 } else { 0 }).collect();
    let putting = put(&fleet, &kib);
    settle(&fleet).await;
    let expected = [("a".to_owned(), 800), ("b".to_owned(), 800)].into();
    assert_eq!(loads(&fleet, &kib).await, expected);
    putting.abort();
    for Worker { consumer, reading } in workers {
        consumer.close().await.unwrap();
        reading.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn newcomer_receives_its_share_of_load() {
    let fleet = Fleet::new(9);
    let kib = [600, 300, 300, 0, 0, 0, 0, 0, 0];
    let putting = put(&fleet, &kib);
    let _first = start(&fleet, "a", 1.0, QUICK);
    sleep(5 * RENEWAL).await;
    let began = Instant::now();
    let _second = start(&fleet, "b", 1.0, QUICK);
    while loads(&fleet, &kib).await.get("b") != Some(&600) {
        assert!(began.elapsed() < 3 * RENEWAL, "{:?}", loads(&fleet, &kib).await);
        sleep(Duration::from_millis(100)).await;
    }
    settle(&fleet).await;
    putting.abort();
}

#[tokio::test(start_paused = true)]
async fn larger_worker_receives_more() {
    let fleet = Fleet::new(12);
    let kib = [100; 12];
    let putting = put(&fleet, &kib);
    let _small = start(&fleet, "small", 1.0, QUICK);
    let _large = start(&fleet, "large", 2.0, QUICK);
    settle(&fleet).await;
    let expected = [("large".to_owned(), 800), ("small".to_owned(), 400)].into();
    assert_eq!(loads(&fleet, &kib).await, expected);
    putting.abort();
}

fn strain(status: &ApplicationStatus, worker: &str) -> u32 {
    status.worker_status[worker].strain
}

async fn status(consumer: &Consumer) -> ApplicationStatus {
    consumer.status().await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn worker_that_falls_behind_gives_leases_away_until_it_keeps_up() {
    let fleet = Fleet::new(12);
    let kib = [100; 12];
    let putting = put(&fleet, &kib);
    // It takes four records in a second, and receives six.
    let slow = start(&fleet, "slow", 1.0, Duration::from_millis(240));
    let quick = start(&fleet, "quick", 1.0, QUICK);
    sleep(30 * RENEWAL).await;
    assert!(strain(&status(&quick.consumer).await, "slow") > 0);
    sleep(30 * RENEWAL).await;
    let status = status(&slow.consumer).await;
    assert_eq!(strain(&status, "quick"), 0);
    let loads = loads(&fleet, &kib).await;
    assert!(loads["slow"] <= 400 && loads["slow"] > 0, "{loads:?}");
    let stated = status.worker_status["quick"].bytes_per_second.unwrap();
    assert!(stated.abs_diff(loads["quick"] as u64 * 1024) < stated / 5, "{stated} of {loads:?}");
    putting.abort();
}

/// A worker of a version that does not state its load moves leases until their numbers are even.
#[tokio::test(start_paused = true)]
async fn numbers_are_even_while_a_worker_of_an_earlier_version_takes_part() {
    let fleet = Fleet::new(8);
    let kib = [700, 100, 100, 100, 0, 0, 0, 0];
    let putting = put(&fleet, &kib);
    let workers = [start(&fleet, "a", 1.0, QUICK), start(&fleet, "b", 5.0, QUICK)];
    sleep(2 * RENEWAL).await;
    let scope = Scope::new("default", "orders");
    let earlier = fleet.store.clone();
    let earlier = tokio::spawn(async move {
        let leases = Leases::new(Arc::new(earlier), scope);
        let mut request = HeartbeatRequest::new("earlier", 1, LEASE);
        assert_eq!(request.size, None::<NonZeroU32>);
        request.capacity = 1;
        loop {
            leases.exchange(&request).await.unwrap();
            sleep(RENEWAL).await;
        }
    });
    settle(&fleet).await;
    let shares = fleet.shares().await;
    let (most, least) = (shares.values().max().unwrap(), shares.values().min().unwrap());
    assert!(*most == 4 && *least == 1, "{shares:?}");
    earlier.abort();
    settle(&fleet).await;
    let loads = loads(&fleet, &kib).await;
    assert!(loads["b"] > 3 * loads["a"], "expected shares by capacity, got {loads:?}");
    putting.abort();
    drop(workers);
}
