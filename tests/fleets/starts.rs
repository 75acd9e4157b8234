//! A separate scenario: the caller starts a child shard at `Latest` that the store knows and of
//! which no record is acknowledged.
//!
//! Workers crash between any two calls to the store and lose responses. They acknowledge no record
//! of the child. All records that are put after the first fetch of the child must be read.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use fastrand::Rng;
use futures::StreamExt;
use kinestream::testing::{Kinesis, Shard, WallClock};
use kinestream::{
    CheckpointOn, Consumer, ConsumerBuilder, MemoryStore, ShardPosition, StartingPosition,
    WireFormat,
};
use tokio::time::{Instant, sleep, timeout};

use crate::crashing_store::{CrashingStore, CrashingWorker};
use crate::seeds::{SeedResult, pick};
use crate::truth::Promise;
use crate::wire::Wire;
use crate::world::BEGINNING;

/// Mixed with the seed for the generator of this scenario.
const STARTS: u64 = 0x5741_5254;

const MAX_WORKERS: usize = 3;

/// The numbers of records.
type Seen = Arc<Mutex<BTreeSet<usize>>>;

struct Starts {
    rng: Rng,
    kinesis: Kinesis,
    child: Shard,
    wire_format: WireFormat,
    stored: MemoryStore,
    workers: Vec<CrashingWorker>,
    /// The time of each put into the child.
    puts: Vec<Instant>,
    /// The numbers of the records that the last worker has read.
    seen: Seen,
    trace: Vec<String>,
}

/// Runs the scenario of a seed.
pub(crate) async fn simulate(seed: u64) -> SeedResult {
    let mut world = Starts::begin(seed).await;
    let calls = world.kinesis.call_count();
    for _ in 0..world.rng.usize(4..16) {
        world.step();
        let most = pick(&mut world.rng, &[100, 3000, 3000, 15_000]);
        let time = Duration::from_millis(world.rng.u64(..most));
        sleep(time).await;
    }
    let broken = world.read_rest(calls).await;
    SeedResult {
        broken,
        records: world.puts.len(),
        calls: world.kinesis.call_count(),
        trace: world.trace,
    }
}

impl Starts {
    /// Makes a first worker discover the child, or read it without an acknowledgement.
    async fn begin(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed ^ STARTS);
        fastrand::seed(rng.u64(..));
        let kinesis = Kinesis::at(UNIX_EPOCH + BEGINNING);
        let Wire { support, format: wire_format, .. } = Wire::new(seed ^ STARTS);
        kinesis.set_cbor(support);
        let parent = kinesis.create_stream("orders", 1).shard(0);
        parent.put("parent");
        let stored = MemoryStore::at(UNIX_EPOCH + BEGINNING);
        let consumer = builder(&kinesis, wire_format)
            .store(stored.clone())
            .build()
            .expect("the options are valid");
        let mut records = consumer.records();
        let held = records.next().await.expect("the stream is open").expect("no call fails");
        let [child, _] = parent.split();
        child.put("old");
        let acknowledges = rng.bool();
        if acknowledges {
            held.ack();
        }
        let unacknowledged = timeout(Duration::from_secs(15), records.next()).await;
        drop((held, unacknowledged, records));
        consumer.close().await.expect("the store does not fail");
        let trace = vec![format!("the child was read: {acknowledges}")];
        let (workers, puts) = (Vec::new(), Vec::new());
        let new = Seen::default();
        Self { rng, kinesis, child, wire_format, stored, workers, puts, seen: new, trace }
    }

    fn step(&mut self) {
        match self.rng.u8(..6) {
            0 | 1 => self.put(),
            2 | 3 if self.workers.len() < MAX_WORKERS => {
                let calls = (self.rng.u8(..3) > 0).then(|| self.rng.u32(..14));
                self.start(calls, false);
            }
            4 if !self.workers.is_empty() => {
                let index = self.rng.usize(..self.workers.len());
                self.kill(index);
            }
            _ => {}
        }
    }

    fn put(&mut self) {
        let number = self.puts.len();
        self.child.put(number.to_string());
        self.puts.push(Instant::now());
        self.trace.push(format!("put: record {number}"));
    }

    /// Starts a worker that crashes after `calls` calls to the store. Only the last worker
    /// acknowledges records of the child.
    fn start(&mut self, calls: Option<u32>, is_last: bool) {
        let store = CrashingStore::new(self.stored.clone(), calls, self.rng.u64(..));
        let interval = pick(&mut self.rng, &[100, 1000, 5000]);
        let consumer = builder(&self.kinesis, self.wire_format)
            .starting_position_for(self.child.id(), ShardPosition::Latest)
            .checkpoint_interval(Duration::from_millis(interval))
            .worker_id(format!("w{}", self.trace.len()))
            .store(store.clone())
            .build()
            .expect("the options are valid");
        self.trace.push(format!("a worker starts: crashes after {calls:?} calls, last: {is_last}"));
        let mut records = consumer.records();
        let (child, seen) = (self.child.id(), Arc::clone(&self.seen));
        let reading = tokio::spawn(async move {
            while let Some(next) = records.next().await {
                let Ok(record) = next else { continue };
                let number = std::str::from_utf8(record.data()).ok();
                if let Some(number) = number.and_then(|text| text.parse().ok())
                    && is_last
                {
                    seen.lock().unwrap().insert(number);
                }
                if is_last || *record.shard_id() != child {
                    record.ack();
                }
            }
        });
        self.workers.push(CrashingWorker { store, reading });
    }

    fn kill(&mut self, index: usize) {
        self.workers.remove(index).kill();
        self.trace.push("a worker is killed".to_owned());
    }

    /// Starts a last worker that reads the remaining records. Returns the broken promise, if any.
    async fn read_rest(&mut self, calls: usize) -> Option<(String, String)> {
        while !self.workers.is_empty() {
            self.kill(0);
        }
        let calls = self.kinesis.calls().split_off(calls);
        let fetched = calls
            .iter()
            .find(|call| call.operation == "GetRecords" && call.shard_id == Some(self.child.id()));
        let fetched = fetched.map_or_else(Instant::now, |call| call.at);
        sleep(Duration::from_secs(2)).await;
        self.start(None, true);
        self.workers[0].store.stop_faults();
        sleep(Duration::from_secs(30)).await;
        self.put();
        let puts = self.puts.iter().enumerate();
        let due: BTreeSet<usize> =
            puts.filter(|(_, at)| **at > fetched).map(|(number, _)| number).collect();
        for _ in 0..120 {
            if due.is_subset(&self.seen.lock().unwrap()) {
                break;
            }
            sleep(Duration::from_secs(1)).await;
        }
        self.kill(0);
        let lost: Vec<usize> = due.difference(&self.seen.lock().unwrap()).copied().collect();
        let detail = format!("records {lost:?} of the child are not read");
        (!lost.is_empty()).then(|| (format!("{:?}", Promise::NothingIsLost), detail))
    }
}

fn builder(kinesis: &Kinesis, wire_format: WireFormat) -> ConsumerBuilder {
    Consumer::builder(kinesis.client(), "orders")
        .wall_clock(&WallClock::at(kinesis.now()))
        .wire_format(wire_format)
        .starting_position(StartingPosition::TrimHorizon)
        .checkpoint_on(CheckpointOn::Ack)
        .discovery_interval(Duration::from_secs(5))
        .lease_duration(Duration::from_secs(6))
}
