//! A separate scenario: streams of the same name in two regions are read by ARN, with one store and
//! one application. Positions may be stored under the name alone.
//!
//! The stream of the second region was created later, so that its shards have the same ids and
//! higher sequence numbers. Workers crash between any two calls to the store, lose responses, and
//! are started while a worker that reads by name is still alive.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use fastrand::Rng;
use futures::StreamExt;
use kinestream::store::Scope;
use kinestream::testing::{Kinesis, Stream, WallClock};
use kinestream::{
    Checkpoint, CheckpointStore, Consumer, ErrorKind, MemoryStore, SequenceNumber, ShardId,
    StartingPosition, WireFormat,
};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::crashing_store::CrashingStore;
use crate::lease_access::LeaseAccess;
use crate::seeds::{SeedResult, pick};
use crate::truth::Promise;
use crate::wire::Wire;
use crate::world::BEGINNING;

/// Mixed with the seed for the generator of this scenario.
const REGIONS: u64 = 0x5C0_9E0F_AA12;

const ARNS: [&str; 2] = [
    "arn:aws:kinesis:eu-west-1:123456789012:stream/orders",
    "arn:aws:kinesis:us-east-1:123456789012:stream/orders",
];

const MAX_SHARDS: usize = 6;
const MAX_WORKERS: usize = 4;

/// The data that is stored under the name before a consumer reads by ARN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    Nothing,
    /// Timestamps, which may belong to either stream.
    Times,
    /// The leases of a worker.
    Leases,
}

/// The numbers of the records that the workers of one region have read.
type Seen = Arc<Mutex<BTreeSet<usize>>>;

struct Region {
    kinesis: Kinesis,
    orders: Stream,
    /// The shard and the sequence number of each record.
    put: Vec<(ShardId, SequenceNumber)>,
    seen: Seen,
}

struct RegionWorker {
    /// The region of the worker; `None` if it reads by name.
    region: Option<usize>,
    consumer: Consumer,
    store: CrashingStore,
    reading: JoinHandle<()>,
}

struct Regions {
    rng: Rng,
    before: Before,
    streams: [Region; 2],
    wire_format: WireFormat,
    stored: MemoryStore,
    workers: Vec<RegionWorker>,
    /// The records that are finished under the name.
    finished: BTreeSet<usize>,
    trace: Vec<String>,
    broken: Arc<Mutex<Option<(String, String)>>>,
}

/// Runs the scenario of a seed.
pub(crate) async fn simulate(seed: u64) -> SeedResult {
    let mut world = Regions::new(seed);
    world.begin().await;
    for _ in 0..world.rng.usize(4..16) {
        world.step().await;
        let most = pick(&mut world.rng, &[100, 3000, 3000, 15_000]);
        let time = Duration::from_millis(world.rng.u64(..most));
        sleep(time).await;
    }
    world.check_at_rest().await;
    world.seed_result()
}

impl Regions {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed ^ REGIONS);
        fastrand::seed(rng.u64(..));
        let before =
            pick(&mut rng, &[Before::Nothing, Before::Times, Before::Leases, Before::Leases]);
        let wire = Wire::new(seed ^ REGIONS);
        let mut region = |is_later: bool| {
            let kinesis = Kinesis::at(UNIX_EPOCH + BEGINNING);
            kinesis.set_cbor(wire.support);
            if is_later {
                kinesis.create_stream("orders", 1).put("key", "of an earlier stream");
                kinesis.delete_stream("orders");
            }
            let orders = kinesis.create_stream("orders", rng.usize(1..4));
            Region { kinesis, orders, put: Vec::new(), seen: Seen::default() }
        };
        let regions = [region(false), region(true)];
        Self {
            before,
            streams: regions,
            wire_format: wire.format,
            stored: MemoryStore::at(UNIX_EPOCH + BEGINNING),
            workers: Vec::new(),
            finished: BTreeSet::new(),
            trace: vec![format!("two regions: {before:?}")],
            broken: Arc::default(),
            rng,
        }
    }

    async fn begin(&mut self) {
        for _ in 0..self.rng.usize(1..8) {
            self.put(0);
            self.put(1);
        }
        match self.before {
            Before::Nothing => {}
            Before::Times => {
                sleep(Duration::from_secs(1)).await;
                let here = &self.streams[0];
                let now = Checkpoint::AtTimestamp(here.kinesis.now());
                let shards = here.orders.shards();
                let all: Vec<_> = shards.iter().map(|shard| (shard.id(), now.clone())).collect();
                self.stored.save(&by_name(), &all).await.expect("the memory store never fails");
                self.finished.extend(0..here.put.len());
            }
            Before::Leases => {
                self.start(None, None);
                let has_begun = async {
                    while self
                        .stored
                        .load(&by_name())
                        .await
                        .expect("the memory store never fails")
                        .is_empty()
                    {
                        sleep(Duration::from_millis(100)).await;
                    }
                };
                has_begun.await;
            }
        }
    }

    async fn step(&mut self) {
        match self.rng.u8(..9) {
            0 | 1 => self.put(0),
            2 => self.put(1),
            3 | 4 => self.start_by_arn(0).await,
            5 => self.start_by_arn(1).await,
            6 => {
                if let Some(index) = self.any_worker(|worker| worker.region.is_some()) {
                    self.end(index).await;
                }
            }
            7 => self.split(),
            _ => self.end_by_name().await,
        }
    }

    fn put(&mut self, region: usize) {
        let place = self.streams[region].put.len();
        let open = self.streams[region].orders.open_shards();
        let shard = &open[self.rng.usize(..open.len())];
        let number = shard.put(place.to_string());
        self.streams[region].put.push((shard.id(), number));
        self.log(format!("put: region {region} record {place} into {}", shard.id()));
    }

    fn split(&mut self) {
        let region = self.rng.usize(..2);
        let orders = &self.streams[region].orders;
        if orders.shards().len() + 2 <= MAX_SHARDS {
            let open = orders.open_shards();
            open[self.rng.usize(..open.len())].split();
            self.log(format!("split: region {region}"));
        }
    }

    async fn start_by_arn(&mut self, region: usize) {
        // Timestamps belong to the ARN that claims them first, which must be the ARN of region 0.
        let is_undecided = self.before == Before::Times && region == 1 && !self.is_claimed().await;
        if self.workers.len() < MAX_WORKERS && !is_undecided {
            let calls = (self.rng.u8(..3) > 0).then(|| self.rng.u32(..14));
            self.start(Some(region), calls);
        }
    }

    async fn is_claimed(&self) -> bool {
        let stored = self.stored.load(&by_name()).await.expect("the memory store never fails");
        stored.keys().any(|shard| shard.as_str().starts_with("positions-claimed."))
    }

    /// Starts a worker that crashes after `calls` calls to the store.
    fn start(&mut self, region: Option<usize>, calls: Option<u32>) {
        let Region { kinesis, seen, .. } = &self.streams[region.unwrap_or(0)];
        let store = CrashingStore::new(self.stored.clone(), calls, self.rng.u64(..));
        let stream = region.map_or("orders", |region| ARNS[region]);
        let consumer = Consumer::builder(kinesis.client(), stream)
            .starting_position(StartingPosition::TrimHorizon)
            .checkpoint_interval(Duration::from_millis(100))
            .wire_format(self.wire_format)
            .discovery_interval(Duration::from_secs(5))
            .worker_id(format!("w{}", self.trace.len()))
            .wall_clock(&WallClock::at(kinesis.now()))
            .store(store.clone())
            .build()
            .expect("the options are valid");
        let mut records = consumer.records();
        let seen = if region.is_some() { Arc::clone(seen) } else { Seen::default() };
        let broken = Arc::clone(&self.broken);
        let reading = tokio::spawn(async move {
            while let Some(next) = records.next().await {
                match next {
                    Ok(record) => {
                        let place =
                            std::str::from_utf8(record.data()).expect("the payload is a number");
                        seen.lock()
                            .unwrap()
                            .insert(place.parse().expect("the payload is a number"));
                    }
                    Err(error) => {
                        let is_expected =
                            [ErrorKind::InUse, ErrorKind::StoreUnavailable].contains(&error.kind());
                        if !is_expected {
                            breaks(&broken, Promise::FewErrors, error.to_string());
                        }
                    }
                }
            }
        });
        self.log(format!("a worker starts: region {region:?}, crashes after {calls:?} calls"));
        self.workers.push(RegionWorker { region, consumer, store, reading });
    }

    fn any_worker(&mut self, of_kind: impl Fn(&RegionWorker) -> bool) -> Option<usize> {
        let numbered = self.workers.iter().enumerate().filter(|(_, worker)| of_kind(worker));
        let found: Vec<usize> = numbered.map(|(index, _)| index).collect();
        (!found.is_empty()).then(|| found[self.rng.usize(..found.len())])
    }

    /// Closes a worker, or kills its process.
    async fn end(&mut self, index: usize) {
        let worker = self.workers.remove(index);
        let is_closed = self.rng.bool();
        self.log(format!("a worker ends: region {:?}, closed {is_closed}", worker.region));
        if is_closed {
            worker.reading.abort();
            let _no_answer = worker.consumer.close().await;
        } else {
            worker.store.crash();
            worker.reading.abort();
        }
    }

    async fn end_by_name(&mut self) {
        let Some(index) = self.any_worker(|worker| worker.region.is_none()) else { return };
        let early = self.streams[0].seen.lock().unwrap().len();
        if early > 0 {
            let detail = format!("{early} records are read by ARN while a worker reads by name");
            breaks(&self.broken, Promise::OneReader, detail);
        }
        self.end(index).await;
        let stored =
            self.stored.table(&by_name()).await.expect("the memory store never fails").leases;
        let is_finished = |(shard, number): &(ShardId, SequenceNumber)| {
            stored.get(shard).is_some_and(|lease| match &lease.checkpoint {
                Some(
                    Checkpoint::AfterSequenceNumber { sequence_number: passed, .. }
                    | Checkpoint::CaughtUp { after: Some(passed), .. },
                ) => number <= passed,
                checkpoint => *checkpoint == Some(Checkpoint::ShardEnd),
            })
        };
        let put = self.streams[0].put.iter().enumerate();
        self.finished = put.filter(|(_, at)| is_finished(at)).map(|(place, _)| place).collect();
    }

    /// Ends all workers, and starts one worker of each region, which reads the remaining records.
    async fn check_at_rest(&mut self) {
        self.end_by_name().await;
        while !self.workers.is_empty() {
            self.end(0).await;
        }
        for region in 0..2 {
            self.put(region);
            self.start(Some(region), None);
            self.workers[region].store.stop_faults();
            // The worker of region 0 claims the positions first.
            sleep(Duration::from_secs(60)).await;
        }
        let all = |region: &Region| region.seen.lock().unwrap().len() >= region.put.len();
        for _ in 0..200 {
            if all(&self.streams[0]) && all(&self.streams[1]) {
                break;
            }
            sleep(Duration::from_secs(1)).await;
        }
        for (index, region) in self.streams.iter().enumerate() {
            let seen = region.seen.lock().unwrap();
            let finished = if index == 0 { self.finished.clone() } else { BTreeSet::new() };
            let is_unread = |place: &usize| !seen.contains(place) && !finished.contains(place);
            if let Some(lost) = (0..region.put.len()).find(is_unread) {
                let detail = format!("record {lost} of region {index} is not read");
                breaks(&self.broken, Promise::NothingIsLost, detail);
            }
            if let Some(again) = finished.intersection(&seen).next() {
                let detail =
                    format!("record {again} was finished under the name, but is read again");
                breaks(&self.broken, Promise::FewRepeats, detail);
            }
        }
        for worker in self.workers.drain(..) {
            worker.reading.abort();
            worker.consumer.close().await.expect("the store does not fail");
        }
    }

    fn log(&mut self, line: String) {
        self.trace.push(line);
    }

    fn seed_result(self) -> SeedResult {
        let [here, there] = &self.streams;
        SeedResult {
            broken: self.broken.lock().unwrap().clone(),
            records: here.put.len() + there.put.len(),
            calls: here.kinesis.call_count() + there.kinesis.call_count(),
            trace: self.trace,
        }
    }
}

/// Returns the scope of the name alone.
fn by_name() -> Scope {
    Scope::new("default", "orders")
}

/// Registers the first broken promise.
fn breaks(broken: &Mutex<Option<(String, String)>>, promise: Promise, detail: String) {
    broken.lock().unwrap().get_or_insert((format!("{promise:?}"), detail));
}
