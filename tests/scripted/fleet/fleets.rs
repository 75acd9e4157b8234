//! Fleets: workers of one application share the shards while workers join, close and are dropped.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use kinestream::store::Scope;
use kinestream::store::lease::LeaseTable;
use kinestream::testing::{Kinesis, Stream};
use kinestream::{Consumer, ConsumerBuilder, ErrorKind, MemoryStore, Record};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::lease_access::LeaseAccess;
use crate::{calls, consumer, next, number, orders, shard_of};

pub(crate) const LEASE: Duration = Duration::from_secs(9);
/// A third of the lease duration.
pub(crate) const RENEWAL: Duration = Duration::from_secs(3);
/// Time for the calls in between.
pub(crate) const MOMENT: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(crate) struct Delivered {
    pub(crate) worker: String,
    pub(crate) shard: usize,
    pub(crate) epoch: u64,
    pub(crate) number: usize,
    pub(crate) at: Instant,
}

/// Workers that share one store, and all records that they have read.
#[derive(Clone)]
pub(crate) struct Fleet {
    pub(crate) kinesis: Kinesis,
    pub(crate) orders: Stream,
    pub(crate) store: MemoryStore,
    pub(crate) seen: Arc<Mutex<Vec<Delivered>>>,
}

/// A worker that reads in its own task.
pub(crate) struct Worker {
    pub(crate) consumer: Consumer,
    pub(crate) reading: JoinHandle<()>,
}

impl Worker {
    /// Starts a worker that spends this time on each record and finishes it by the next poll.
    pub(crate) fn start(
        consumer: Consumer,
        time: Duration,
        seen: impl Fn(&Record) + Send + 'static,
    ) -> Self {
        let mut records = consumer.records();
        let reading = tokio::spawn(async move {
            while let Some(record) = records.next().await {
                seen(&record.expect("no error"));
                sleep(time).await;
            }
        });
        Self { consumer, reading }
    }
}

impl Fleet {
    pub(crate) fn new(shards: usize) -> Self {
        let (kinesis, orders) = orders(shards);
        Self { kinesis, orders, store: MemoryStore::new(), seen: Arc::default() }
    }

    pub(crate) fn builder(&self, name: &str) -> ConsumerBuilder {
        consumer(&self.kinesis).store(self.store.clone()).worker_id(name).lease_duration(LEASE)
    }

    /// Starts a worker that spends a millisecond on each record and finishes it by the next poll.
    pub(crate) fn start(&self, name: &str) -> Worker {
        let (fleet, worker) = (self.clone(), name.to_owned());
        let seen = move |record: &Record| fleet.note(&worker, record);
        Worker::start(self.builder(name).build().unwrap(), Duration::from_millis(1), seen)
    }

    pub(crate) fn note(&self, worker: &str, record: &Record) {
        self.seen.lock().unwrap().push(Delivered {
            worker: worker.to_owned(),
            shard: shard_of(record),
            epoch: record.epoch(),
            number: number(record),
            at: Instant::now(),
        });
    }

    /// Puts a record into the open shards in turn, one each `pause`, until [`Puts::end`].
    pub(crate) fn put_continuously(&self, pause: Duration) -> Puts {
        let (orders, puts) = (self.orders.clone(), Arc::new(Mutex::new(0)));
        let count = Arc::clone(&puts);
        let task = tokio::spawn(async move {
            loop {
                let number = {
                    let mut count = count.lock().unwrap();
                    *count += 1;
                    *count - 1
                };
                let open = orders.open_shards();
                open[number % open.len()].put(number.to_string());
                sleep(pause).await;
            }
        });
        Puts { puts, task }
    }

    pub(crate) async fn table(&self) -> LeaseTable {
        self.store.table(&Scope::new("default", "orders")).await.unwrap()
    }

    /// Returns the number of leases of each worker.
    pub(crate) async fn shares(&self) -> BTreeMap<String, usize> {
        let mut shares = BTreeMap::new();
        for lease in self.table().await.leases.values() {
            if let Some(owner) = &lease.owner {
                *shares.entry(owner.to_string()).or_default() += 1;
            }
        }
        shares
    }

    pub(crate) async fn assert_shares(&self, shares: &[(&str, usize)]) {
        let expected = shares.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        assert_eq!(self.shares().await, expected);
    }

    /// Asserts that every record was read once and in order, and no shard by two workers in one
    /// epoch.
    pub(crate) fn assert_each_once(&self, count: usize) {
        let seen = self.seen.lock().unwrap();
        let mut times = vec![0; count];
        let mut owners = BTreeMap::new();
        let mut last: BTreeMap<usize, (u64, usize)> = BTreeMap::new();
        for seen in seen.iter() {
            times[seen.number] += 1;
            let owner = owners.entry((seen.shard, seen.epoch)).or_insert(&seen.worker);
            assert_eq!(*owner, &seen.worker, "two workers read a shard in one epoch: {seen:?}");
            let place = (seen.epoch, seen.number);
            let before = last.insert(seen.shard, place);
            assert!(before.is_none_or(|before| before.0 <= place.0 && before.1 < place.1));
        }
        let wrong: Vec<_> = (0..count).filter(|number| times[*number] != 1).collect();
        assert_eq!(wrong, [0; 0], "expected each of {count} records once");
    }

    pub(crate) fn seen_by(&self, worker: &str, since: Instant) -> BTreeSet<usize> {
        let seen = self.seen.lock().unwrap();
        let by = seen.iter().filter(|seen| seen.worker == worker && seen.at >= since);
        by.map(|seen| seen.shard).collect()
    }
}

pub(crate) struct Puts {
    puts: Arc<Mutex<usize>>,
    task: JoinHandle<()>,
}

impl Puts {
    /// Stops putting records, waits until they are read, and returns their number.
    pub(crate) async fn end(self) -> usize {
        self.task.abort();
        sleep(Duration::from_secs(30)).await;
        *self.puts.lock().unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn new_worker_gets_its_share_within_two_renewals_without_redelivery() {
    let fleet = Fleet::new(10);
    let puts = fleet.put_continuously(Duration::from_millis(20));
    let _first = fleet.start("a");
    sleep(Duration::from_secs(20)).await;
    fleet.assert_shares(&[("a", 10)]).await;
    let _second = fleet.start("b");
    sleep(2 * RENEWAL + MOMENT).await;
    fleet.assert_shares(&[("a", 5), ("b", 5)]).await;
    let _third = fleet.start("c");
    sleep(2 * RENEWAL + MOMENT).await;
    fleet.assert_shares(&[("a", 4), ("b", 3), ("c", 3)]).await;
    let settled = Instant::now();
    sleep(Duration::from_secs(20)).await;
    let shares = ["a", "b", "c"].map(|worker| fleet.seen_by(worker, settled).len());
    assert_eq!(shares, [4, 3, 3], "expected each worker to read its shards");
    fleet.assert_each_once(puts.end().await);
    assert_eq!(
        fleet.kinesis.violations(),
        [""; 0],
        "expected calls within the limits of the shards"
    );
}

#[tokio::test(start_paused = true)]
async fn workers_that_start_together_share_evenly() {
    let fleet = Fleet::new(30);
    let puts = fleet.put_continuously(Duration::from_millis(20));
    let workers: Vec<_> = (0..7).map(|number| fleet.start(&format!("w{number}"))).collect();
    sleep(2 * RENEWAL + MOMENT).await;
    let shares = fleet.shares().await;
    assert_eq!(shares.len(), 7);
    assert!(shares.values().all(|count| [4, 5].contains(count)), "{shares:?}");
    fleet.assert_each_once(puts.end().await);
    drop(workers);
}

#[tokio::test(start_paused = true)]
async fn close_and_drop_release_leases_at_once() {
    for closed in [true, false] {
        let fleet = Fleet::new(6);
        let puts = fleet.put_continuously(Duration::from_millis(20));
        let [_a, b, _c] = ["a", "b", "c"].map(|name| fleet.start(name));
        sleep(Duration::from_secs(20)).await;
        fleet.assert_shares(&[("a", 2), ("b", 2), ("c", 2)]).await;
        if closed {
            b.consumer.close().await.unwrap();
            fleet.assert_shares(&[("a", 2), ("c", 2)]).await;
            b.reading.await.unwrap();
        } else {
            b.reading.abort();
            sleep(MOMENT).await;
        }
        sleep(RENEWAL).await;
        fleet.assert_shares(&[("a", 3), ("c", 3)]).await;
        let count = puts.end().await;
        if closed {
            fleet.assert_each_once(count);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn idle_fleet_moves_no_lease_and_lists_once_per_interval() {
    let fleet = Fleet::new(7);
    let _workers = ["a", "b", "c"].map(|name| fleet.start(name));
    sleep(Duration::from_secs(60)).await;
    let (version, listed) =
        (fleet.table().await.version, calls(&fleet.kinesis, "ListShards").len());
    sleep(Duration::from_secs(600)).await;
    assert_eq!(fleet.table().await.version, version);
    assert_eq!(
        calls(&fleet.kinesis, "ListShards").len() - listed,
        20,
        "expected one listing every 30 s"
    );
}

#[tokio::test(start_paused = true)]
async fn listing_worker_that_closes_is_replaced() {
    let fleet = Fleet::new(4);
    let a = fleet.start("a");
    sleep(MOMENT).await;
    let _b = fleet.start("b");
    sleep(Duration::from_secs(60)).await;
    a.consumer.close().await.unwrap();
    let listed = calls(&fleet.kinesis, "ListShards").len();
    sleep(Duration::from_secs(61)).await;
    assert!(calls(&fleet.kinesis, "ListShards").len() - listed >= 2);
}

#[tokio::test(start_paused = true)]
async fn children_are_shared_after_their_parents_are_finished() {
    for child_shards in [true, false] {
        let fleet = Fleet::new(4);
        fleet.kinesis.set_child_shards(child_shards);
        let puts = fleet.put_continuously(Duration::from_millis(20));
        let _workers = ["a", "b"].map(|name| fleet.start(name));
        sleep(Duration::from_secs(20)).await;
        for shard in fleet.orders.open_shards() {
            shard.split();
        }
        sleep(Duration::from_secs(20)).await;
        fleet.assert_shares(&[("a", 4), ("b", 4)]).await;
        let open = fleet.orders.open_shards();
        open[0].merge(&open[1]);
        sleep(Duration::from_secs(20)).await;
        let shares = fleet.shares().await;
        assert_eq!(shares.values().sum::<usize>(), 7, "{shares:?}");
        fleet.assert_each_once(puts.end().await);
    }
}

#[tokio::test(start_paused = true)]
async fn finished_shard_is_remembered_after_it_expires() {
    let fleet = Fleet::new(1);
    fleet.orders.shard(0).put("0");
    let _children = fleet.orders.shard(0).split();
    let _worker = fleet.start("a");
    sleep(Duration::from_secs(60)).await;
    assert_eq!(fleet.table().await.leases.len(), 3);
    fleet.orders.shard(0).expire();
    sleep(Duration::from_secs(60)).await;
    let table = fleet.table().await;
    let unlisted: Vec<_> = table.leases.values().map(|lease| lease.unlisted.is_some()).collect();
    assert_eq!(
        unlisted,
        [true, false, false],
        "expected the finished shard to be kept (for a year) and marked as unlisted"
    );
    let version = table.version;
    sleep(Duration::from_secs(60)).await;
    assert_eq!(fleet.table().await.version, version, "expected the mark to be stored once");
    fleet.assert_each_once(1);
}

#[tokio::test(start_paused = true)]
async fn second_worker_with_the_same_id_is_rejected() {
    let fleet = Fleet::new(2);
    let first = fleet.start("a");
    sleep(MOMENT).await;
    let second = fleet.builder("a").build().unwrap();
    let mut records = second.records();
    let error = timeout(3 * LEASE, records.next()).await.unwrap().unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Configuration);
    assert!(error.to_string().contains("worker_id"), "{error}");
    // After the first worker has closed, the second one reads.
    fleet.orders.shard(0).put("0");
    sleep(Duration::from_secs(5)).await;
    first.consumer.close().await.unwrap();
    fleet.orders.shard(1).put("1");
    assert_eq!(number(&next(&mut records).await), 1);
}

#[tokio::test(start_paused = true)]
async fn dropped_shard_stream_is_yielded_again() {
    let fleet = Fleet::new(2);
    for number in 0..4 {
        fleet.orders.shard(number % 2).put(number.to_string());
    }
    let consumer = fleet.builder("a").build().unwrap();
    let mut shards = consumer.shards();
    let mut first = shards.next().await.unwrap().unwrap();
    let _other = shards.next().await.unwrap().unwrap();
    let record = first.next().await.unwrap().unwrap();
    record.ack();
    let (id, epoch) = (first.shard_id().clone(), record.epoch());
    drop(first);
    let mut again = timeout(2 * RENEWAL, shards.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(again.shard_id(), &id);
    let next = again.next().await.unwrap().unwrap();
    assert!(next.epoch() > epoch);
    assert_eq!(
        number(&next),
        number(&record) + 2,
        "expected the record after the acknowledged one"
    );
}

#[tokio::test(start_paused = true)]
async fn unopened_shards_are_released_when_the_stream_of_shards_is_dropped() {
    let fleet = Fleet::new(3);
    let consumer = fleet.builder("a").build().unwrap();
    let mut shards = consumer.shards();
    let mut opened = shards.next().await.unwrap().unwrap();
    drop(shards);
    let other = fleet.start("b");
    sleep(2 * LEASE).await;
    for number in 0..3 {
        fleet.orders.shard(number).put(number.to_string());
    }
    let own = number(&opened.next().await.unwrap().unwrap());
    sleep(LEASE).await;
    let mut read: Vec<_> = fleet.seen.lock().unwrap().iter().map(|seen| seen.number).collect();
    read.push(own);
    read.sort_unstable();
    assert_eq!(read, [0, 1, 2]);
    other.reading.abort();
}

impl Fleet {
    pub(crate) fn assert_each_once_unordered(&self, count: usize) {
        let mut numbers: Vec<_> =
            self.seen.lock().unwrap().iter().map(|seen| seen.number).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (0..count).collect::<Vec<_>>());
    }
}

#[tokio::test(start_paused = true)]
async fn hundred_workers_rebalance_for_one_more_within_two_renewals() {
    let fleet = Fleet::new(1000);
    let mut workers: Vec<_> = (0..100).map(|number| fleet.start(&format!("w{number}"))).collect();
    sleep(2 * RENEWAL + MOMENT).await;
    let even = |shares: &BTreeMap<String, usize>, workers: usize| {
        let (least, most) = (1000 / workers, 1000_usize.div_ceil(workers));
        shares.len() == workers && shares.values().all(|count| (least..=most).contains(count))
    };
    let shares = fleet.shares().await;
    assert!(even(&shares, 100), "{shares:?}");
    workers.push(fleet.start("one-more"));
    sleep(2 * RENEWAL + MOMENT).await;
    let shares = fleet.shares().await;
    assert!(even(&shares, 101), "{shares:?}");
    let version = fleet.table().await.version;
    sleep(6 * RENEWAL).await;
    assert_eq!(fleet.table().await.version, version);
}

/// A lease that is reassigned before its worker has learned of the assignment moves at once.
#[tokio::test(start_paused = true)]
async fn worker_that_joins_a_starting_fleet_gets_its_share_at_the_next_renewal() {
    for pause in [1, 100, 1600] {
        let fleet = Fleet::new(60);
        let mut workers: Vec<_> = (0..9).map(|number| fleet.start(&format!("w{number}"))).collect();
        sleep(Duration::from_millis(pause)).await;
        workers.push(fleet.start("w9"));
        // A worker learns at its next renewal that it must hand over a lease.
        sleep(RENEWAL + MOMENT).await;
        let shares = fleet.shares().await;
        assert_eq!(shares.values().sum::<usize>(), 60, "{shares:?}");
        assert_eq!(shares.len(), 10, "after {pause} ms: {shares:?}");
        assert!(shares.values().all(|count| *count == 6), "{pause} ms: {shares:?}");
    }
}
