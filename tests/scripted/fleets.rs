//! Workers of one application that share the shards: who joins, leaves, is slow, or stops.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::{BoxFuture, ready};
use futures::{FutureExt, StreamExt};
use kinestream::store::Scope;
use kinestream::store::lease::{Answer, Edit, Fenced, LeaseStore, Request, Table, Verdict};
use kinestream::testing::{Kinesis, Stream};
use kinestream::{
    Checkpoint, CheckpointOn, CheckpointStore, Consumer, ConsumerBuilder, Error, ErrorKind,
    MemoryStore, Record, ShardId,
};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::{calls, consumer, next, number, orders, shard_of};

const LEASE: Duration = Duration::from_secs(9);
/// A third of it.
const RENEWAL: Duration = Duration::from_secs(3);
/// For the calls between.
const MOMENT: Duration = Duration::from_millis(500);

#[derive(Debug)]
struct Seen {
    worker: String,
    shard: usize,
    epoch: u64,
    number: usize,
    at: Instant,
}

/// Workers on one store, and what they have read together.
#[derive(Clone)]
struct Fleet {
    kinesis: Kinesis,
    orders: Stream,
    store: MemoryStore,
    seen: Arc<Mutex<Vec<Seen>>>,
}

/// A worker that reads in a task of its own.
struct Worker {
    consumer: Consumer,
    reading: JoinHandle<()>,
}

impl Fleet {
    fn new(shards: usize) -> Self {
        let (kinesis, orders) = orders(shards);
        Self { kinesis, orders, store: MemoryStore::new(), seen: Arc::default() }
    }

    fn builder(&self, name: &str) -> ConsumerBuilder {
        consumer(&self.kinesis).store(self.store.clone()).worker_id(name).lease_duration(LEASE)
    }

    /// A worker that takes a moment for each record, and is done with it then.
    fn start(&self, name: &str) -> Worker {
        let consumer = self.builder(name).build().unwrap();
        let (mut records, fleet, name) = (consumer.records(), self.clone(), name.to_owned());
        let reading = tokio::spawn(async move {
            while let Some(record) = records.next().await {
                fleet.note(&name, &record.expect("no error"));
                sleep(Duration::from_millis(1)).await;
            }
        });
        Worker { consumer, reading }
    }

    fn note(&self, worker: &str, record: &Record) {
        self.seen.lock().unwrap().push(Seen {
            worker: worker.to_owned(),
            shard: shard_of(record),
            epoch: record.epoch(),
            number: number(record),
            at: Instant::now(),
        });
    }

    /// Puts a record into some shard every so often, until it is dropped.
    fn put_all_along(&self, pause: Duration) -> Puts {
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

    async fn table(&self) -> Table {
        self.store.table(&Scope::new("default", "orders")).await.unwrap()
    }

    /// How many shards each worker has.
    async fn shares(&self) -> BTreeMap<String, usize> {
        let mut shares = BTreeMap::new();
        for lease in self.table().await.leases.values() {
            if let Some(owner) = &lease.owner {
                *shares.entry(owner.to_string()).or_default() += 1;
            }
        }
        shares
    }

    async fn assert_shares(&self, shares: &[(&str, usize)]) {
        let expected = shares.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        assert_eq!(self.shares().await, expected);
    }

    /// Every record was read once, in order, and no shard by two workers in one epoch.
    fn assert_each_once(&self, count: usize) {
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
        assert_eq!(wrong, [0; 0], "not read once each, of {count}");
    }

    fn seen_by(&self, worker: &str, since: Instant) -> BTreeSet<usize> {
        let seen = self.seen.lock().unwrap();
        let by = seen.iter().filter(|seen| seen.worker == worker && seen.at >= since);
        by.map(|seen| seen.shard).collect()
    }
}

struct Puts {
    puts: Arc<Mutex<usize>>,
    task: JoinHandle<()>,
}

impl Puts {
    /// How many there were, after enough time to read them.
    async fn end(self) -> usize {
        self.task.abort();
        sleep(Duration::from_secs(30)).await;
        *self.puts.lock().unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn a_newcomer_gets_its_share_within_two_renewals_and_nothing_is_repeated() {
    let fleet = Fleet::new(10);
    let puts = fleet.put_all_along(Duration::from_millis(20));
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
    assert_eq!(shares, [4, 3, 3], "each reads what it has");
    fleet.assert_each_once(puts.end().await);
    assert_eq!(fleet.kinesis.violations(), [""; 0], "and no shard is asked too often");
}

#[tokio::test(start_paused = true)]
async fn many_that_start_together_share_evenly() {
    let fleet = Fleet::new(30);
    let puts = fleet.put_all_along(Duration::from_millis(20));
    let workers: Vec<_> = (0..7).map(|number| fleet.start(&format!("w{number}"))).collect();
    sleep(2 * RENEWAL + MOMENT).await;
    let shares = fleet.shares().await;
    assert_eq!(shares.len(), 7);
    assert!(shares.values().all(|count| [4, 5].contains(count)), "{shares:?}");
    fleet.assert_each_once(puts.end().await);
    drop(workers);
}

#[tokio::test(start_paused = true)]
async fn close_and_drop_give_back_at_once() {
    for closed in [true, false] {
        let fleet = Fleet::new(6);
        let puts = fleet.put_all_along(Duration::from_millis(20));
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
async fn a_fleet_at_rest_makes_no_moves_and_lists_once() {
    let fleet = Fleet::new(7);
    let _workers = ["a", "b", "c"].map(|name| fleet.start(name));
    sleep(Duration::from_secs(60)).await;
    let (version, listed) =
        (fleet.table().await.version, calls(&fleet.kinesis, "ListShards").len());
    sleep(Duration::from_secs(600)).await;
    assert_eq!(fleet.table().await.version, version);
    assert_eq!(calls(&fleet.kinesis, "ListShards").len() - listed, 20, "every 30 s");
}

#[tokio::test(start_paused = true)]
async fn who_lists_is_followed_by_another() {
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
async fn children_are_shared_when_their_parents_are_finished() {
    for child_shards in [true, false] {
        let fleet = Fleet::new(4);
        fleet.kinesis.set_child_shards(child_shards);
        let puts = fleet.put_all_along(Duration::from_millis(20));
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
async fn finished_shards_are_tidied_away_when_retention_has_passed_them() {
    let fleet = Fleet::new(1);
    fleet.orders.shard(0).put("0");
    let _children = fleet.orders.shard(0).split();
    let _worker = fleet.start("a");
    sleep(Duration::from_secs(60)).await;
    assert_eq!(fleet.table().await.leases.len(), 3);
    fleet.orders.shard(0).expire();
    sleep(Duration::from_secs(60)).await;
    let table = fleet.table().await;
    let left: Vec<_> = table.leases.keys().map(ToString::to_string).collect();
    assert_eq!(left, ["shardId-000000000001", "shardId-000000000002"]);
    fleet.assert_each_once(1);
}

/// A worker that holds what it has pulled; another one joins.
async fn held(handoff: Duration) -> (Fleet, Consumer, kinestream::Records, Vec<Record>) {
    let fleet = Fleet::new(2);
    for number in 0..8 {
        fleet.orders.shard(number % 2).put(number.to_string());
    }
    let builder = fleet.builder("a").checkpoint_on(CheckpointOn::Ack).limit(1);
    let consumer = builder.handoff_timeout(handoff).build().unwrap();
    let mut records = consumer.records();
    let held = vec![next(&mut records).await, next(&mut records).await];
    assert_ne!(shard_of(&held[0]), shard_of(&held[1]));
    (fleet, consumer, records, held)
}

#[tokio::test(start_paused = true)]
async fn a_handover_waits_for_what_was_pulled() {
    let (fleet, _consumer, mut records, held) = held(Duration::from_secs(60)).await;
    let _b = fleet.start("b");
    sleep(Duration::from_secs(40)).await;
    fleet.assert_shares(&[("a", 2)]).await;
    // One of the two shards is on its way: nothing more comes of it, and what was is awaited.
    let given = fleet
        .table()
        .await
        .leases
        .iter()
        .find_map(|(shard, lease)| lease.heir.as_ref().map(|_| shard.clone()));
    let given = given.expect("one is to be handed over");
    for _ in 0..3 {
        let record = next(&mut records).await;
        assert_ne!(record.shard_id(), &given);
        record.ack();
        fleet.note("a", &record);
    }
    for record in &held {
        record.ack();
        fleet.note("a", record);
    }
    sleep(RENEWAL + MOMENT).await;
    fleet.assert_shares(&[("a", 1), ("b", 1)]).await;
    sleep(Duration::from_secs(10)).await;
    fleet.assert_each_once_unordered(8);
}

#[tokio::test(start_paused = true)]
async fn a_handover_waits_no_longer_than_it_may() {
    let (fleet, _consumer, _records, held) = held(Duration::from_secs(5)).await;
    let _b = fleet.start("b");
    sleep(2 * RENEWAL + Duration::from_secs(5) + MOMENT).await;
    fleet.assert_shares(&[("a", 1), ("b", 1)]).await;
    sleep(RENEWAL + MOMENT).await;
    // What was not finished comes again, in a later epoch; an ack for it changes nothing any more.
    let given = fleet.seen_by("b", Instant::now() - Duration::from_secs(60));
    assert_eq!(given.len(), 1);
    let given = *given.first().unwrap();
    let old = held.iter().find(|record| shard_of(record) == given).unwrap();
    let again = {
        let seen = fleet.seen.lock().unwrap();
        seen.iter().find(|seen| seen.number == number(old)).unwrap().epoch
    };
    assert!(again > old.epoch());
    let stored = || async { fleet.table().await.leases[old.shard_id()].clone() };
    sleep(Duration::from_secs(5)).await;
    let before = stored().await;
    old.ack();
    sleep(Duration::from_secs(5)).await;
    assert_eq!(stored().await, before);
}

#[tokio::test(start_paused = true)]
async fn what_is_acknowledged_after_a_close_counts_until_another_has_the_shard() {
    let (fleet, consumer, _records, held) = held(Duration::from_secs(5)).await;
    consumer.close().await.unwrap();
    assert!(fleet.shares().await.is_empty(), "given back at once");
    held[0].ack();
    consumer.close().await.unwrap();
    let b = fleet.start("b");
    sleep(MOMENT).await;
    held[1].ack();
    sleep(Duration::from_secs(10)).await;
    let numbers: BTreeSet<usize> =
        fleet.seen.lock().unwrap().iter().map(|seen| seen.number).collect();
    assert!(!numbers.contains(&number(&held[0])), "it was finished");
    assert!(numbers.contains(&number(&held[1])), "it was not when another began");
    drop(b);
}

#[tokio::test(start_paused = true)]
async fn a_sink_refuses_what_bears_an_old_epoch() {
    /// The highest epoch of each shard, and what was written.
    #[derive(Default)]
    struct Sink {
        epochs: BTreeMap<usize, u64>,
        written: Vec<usize>,
    }
    impl Sink {
        fn write(&mut self, record: &Record) -> bool {
            let highest = self.epochs.entry(shard_of(record)).or_default();
            if record.epoch() < *highest {
                return false;
            }
            *highest = record.epoch();
            self.written.push(number(record));
            true
        }
    }
    let (fleet, _zombie, _its_records, held) = held(Duration::ZERO).await;
    let mut sink = Sink::default();
    let b = fleet.builder("b").build().unwrap();
    let mut records = b.records();
    for _ in 0..4 {
        assert!(sink.write(&next(&mut records).await));
    }
    let outcome: Vec<bool> = held.iter().map(|record| sink.write(record)).collect();
    assert_eq!(outcome.iter().filter(|written| !**written).count(), 1, "the one handed over");
    sink.written.sort_unstable();
    sink.written.dedup();
    assert_eq!(sink.written.len(), 5, "each once");
}

#[tokio::test(start_paused = true)]
async fn who_stops_polling_gives_its_shards_to_those_who_read() {
    let fleet = Fleet::new(4);
    let puts = fleet.put_all_along(Duration::from_millis(100));
    let stopped = fleet.builder("a").poll_timeout(Some(Duration::from_secs(20))).build().unwrap();
    let mut records = stopped.records();
    let _in_hand = next(&mut records).await;
    let _b = fleet.start("b");
    sleep(Duration::from_secs(10)).await;
    fleet.assert_shares(&[("a", 2), ("b", 2)]).await;
    sleep(Duration::from_secs(20) + 2 * RENEWAL).await;
    fleet.assert_shares(&[("b", 4)]).await;
    // It polls again, and gets its share back.
    let polling = tokio::spawn(async move { records.for_each(|_| async {}).await });
    sleep(3 * RENEWAL).await;
    fleet.assert_shares(&[("a", 2), ("b", 2)]).await;
    polling.abort();
    puts.end().await;
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_records_has_not_stopped_polling() {
    let fleet = Fleet::new(2);
    let consumer = fleet.builder("a").poll_timeout(Some(Duration::from_secs(5))).build().unwrap();
    let (mut shards, mut merged) = (Vec::new(), consumer.shards());
    for _ in 0..2 {
        let mut shard = merged.next().await.unwrap().unwrap();
        shards.push(tokio::spawn(async move {
            shard.next().await.map(|record| number(&record.unwrap()))
        }));
    }
    sleep(Duration::from_secs(300)).await;
    fleet.assert_shares(&[("a", 2)]).await;
    fleet.orders.shard(0).put("0");
    fleet.orders.shard(1).put("1");
    let numbers = futures::future::join_all(shards).await;
    let numbers: BTreeSet<_> = numbers.into_iter().map(|number| number.unwrap().unwrap()).collect();
    assert_eq!(numbers, BTreeSet::from([0, 1]));
}

#[tokio::test(start_paused = true)]
async fn a_name_is_one_workers_alone() {
    let fleet = Fleet::new(2);
    let first = fleet.start("a");
    sleep(MOMENT).await;
    let second = fleet.builder("a").build().unwrap();
    let mut records = second.records();
    let error = timeout(3 * LEASE, records.next()).await.unwrap().unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Configuration);
    assert!(error.to_string().contains("worker_id"), "{error}");
    // When the first has gone, the second is the one.
    fleet.orders.shard(0).put("0");
    sleep(Duration::from_secs(5)).await;
    first.consumer.close().await.unwrap();
    fleet.orders.shard(1).put("1");
    assert_eq!(number(&next(&mut records).await), 1);
}

#[tokio::test(start_paused = true)]
async fn a_shard_stream_that_is_dropped_comes_again() {
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
    assert_eq!(number(&next), number(&record) + 2, "from where it was finished");
}

impl Fleet {
    fn assert_each_once_unordered(&self, count: usize) {
        let mut numbers: Vec<_> =
            self.seen.lock().unwrap().iter().map(|seen| seen.number).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (0..count).collect::<Vec<_>>());
    }
}

#[tokio::test(start_paused = true)]
async fn a_hundred_workers_make_room_for_one_more_within_two_renewals() {
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
    sleep(Duration::from_secs(60)).await;
    assert_eq!(fleet.table().await.version, version);
}

/// A share that goes on to another before its worker has heard of it goes on at once.
#[tokio::test(start_paused = true)]
async fn one_that_joins_while_all_are_starting_is_given_its_share_with_the_next_renewal() {
    for pause in [1, 100, 1600] {
        let fleet = Fleet::new(60);
        let mut workers: Vec<_> = (0..9).map(|number| fleet.start(&format!("w{number}"))).collect();
        sleep(Duration::from_millis(pause)).await;
        workers.push(fleet.start("w9"));
        // Who has one to give hears of it with the next renewal.
        sleep(RENEWAL + MOMENT).await;
        let shares = fleet.shares().await;
        assert_eq!(shares.values().sum::<usize>(), 60, "{shares:?}");
        assert_eq!(shares.len(), 10, "after {pause} ms: {shares:?}");
        assert!(shares.values().all(|count| *count == 6), "{pause} ms: {shares:?}");
    }
}

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
