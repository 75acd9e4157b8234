//! A separate scenario: an application starts at `Latest` while listings fail and its workers
//! crash.
//!
//! Workers crash between any two calls to the store and lose responses. All records that are put
//! after the first heartbeat that the store carried out must be read. Records that are put long
//! before it must not be.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use fastrand::Rng;
use futures::StreamExt;
use kinestream::store::Scope;
use kinestream::testing::{Kinesis, Outcome, Shard, WallClock};
use kinestream::{
    CheckpointOn, Consumer, MemoryStore, ShardPosition, StartingPosition, WireFormat,
};
use tokio::time::sleep;

use crate::crashing_store::{CrashingStore, CrashingWorker};
use crate::lease_access::LeaseAccess;
use crate::seeds::{SeedResult, pick};
use crate::truth::Promise;
use crate::wire::Wire;
use crate::world::BEGINNING;

/// Mixed with the seed for the generator of this scenario.
const LATEST: u64 = 0x004c_4154_4553_5400;

const MAX_WORKERS: usize = 2;

/// Twice the maximum time by which the clock of a worker may be ahead.
const LONG_AGO: Duration = Duration::from_secs(10 * 60);

struct Latest {
    rng: Rng,
    kinesis: Kinesis,
    shard: Shard,
    /// True while listings fail.
    is_throttled: Arc<AtomicBool>,
    /// `Latest` is the position of this shard only, not of all shards.
    is_named: bool,
    wire_format: WireFormat,
    stored: MemoryStore,
    workers: Vec<CrashingWorker>,
    /// For each record, whether the application had started when the record was put.
    puts: Vec<bool>,
    /// The numbers of the records that the last worker has read.
    seen: Arc<Mutex<BTreeSet<usize>>>,
    trace: Vec<String>,
}

/// Runs the scenario of a seed.
pub(crate) async fn simulate(seed: u64) -> SeedResult {
    let mut world = Latest::begin(seed);
    world.put().await;
    sleep(LONG_AGO).await;
    for _ in 0..world.rng.usize(2..10) {
        world.step().await;
        let most = pick(&mut world.rng, &[100, 3000, 15_000, 600_000]);
        let time = Duration::from_millis(world.rng.u64(..most));
        sleep(time).await;
    }
    let broken = world.read_rest().await;
    SeedResult {
        broken,
        records: world.puts.len(),
        calls: world.kinesis.call_count(),
        trace: world.trace,
    }
}

impl Latest {
    fn begin(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed ^ LATEST);
        fastrand::seed(rng.u64(..));
        let kinesis = Kinesis::at(UNIX_EPOCH + BEGINNING);
        let wire = Wire::new(seed ^ LATEST);
        kinesis.set_cbor(wire.support);
        let shard = kinesis.create_stream("orders", 1).shard(0);
        let is_throttled = Arc::new(AtomicBool::new(rng.u8(..4) > 0));
        kinesis.on_call({
            let is_throttled = Arc::clone(&is_throttled);
            move |call| match call.operation.as_str() {
                "ListShards" if is_throttled.load(Ordering::SeqCst) => Outcome::throttled(),
                _ => Outcome::Served,
            }
        });
        Self {
            is_named: rng.u8(..4) == 0,
            rng,
            kinesis,
            shard,
            is_throttled,
            wire_format: wire.format,
            stored: MemoryStore::at(UNIX_EPOCH + BEGINNING),
            workers: Vec::new(),
            puts: Vec::new(),
            seen: Arc::default(),
            trace: Vec::new(),
        }
    }

    async fn step(&mut self) {
        match self.rng.u8(..7) {
            0 | 1 => self.put().await,
            2 | 3 if self.workers.len() < MAX_WORKERS => {
                let calls = (self.rng.u8(..3) > 0).then(|| self.rng.u32(..14));
                self.start(calls, false);
            }
            4 | 5 if !self.workers.is_empty() => {
                let index = self.rng.usize(..self.workers.len());
                self.kill(index);
            }
            6 => {
                let is_throttled = self.rng.bool();
                self.is_throttled.store(is_throttled, Ordering::SeqCst);
                self.trace.push(format!("listings fail: {is_throttled}"));
            }
            _ => {}
        }
    }

    /// Puts a record, and registers whether a worker had reached the store before.
    async fn put(&mut self) {
        let number = self.puts.len();
        let table = self.stored.table(&Scope::new("default", "orders")).await;
        let has_begun = table.expect("the memory store never fails").generation > 0;
        self.shard.put(number.to_string());
        self.puts.push(has_begun);
        self.trace.push(format!("put: record {number}, application started: {has_begun}"));
    }

    /// Starts a worker that crashes after `calls` calls to the store. Only the last worker
    /// acknowledges records.
    fn start(&mut self, calls: Option<u32>, is_last: bool) {
        let store = CrashingStore::new(self.stored.clone(), calls, self.rng.u64(..));
        let builder = Consumer::builder(self.kinesis.client(), "orders")
            .checkpoint_on(CheckpointOn::Ack)
            .discovery_interval(Duration::from_secs(5))
            .lease_duration(Duration::from_secs(6))
            .wire_format(self.wire_format)
            .worker_id(format!("w{}", self.trace.len()))
            .wall_clock(&WallClock::at(self.kinesis.now()))
            .store(store.clone());
        let builder = if self.is_named {
            builder
                .starting_position(StartingPosition::TrimHorizon)
                .starting_position_for(self.shard.id(), ShardPosition::Latest)
        } else {
            builder.starting_position(StartingPosition::Latest)
        };
        let consumer = builder.build().expect("the options are valid");
        self.trace.push(format!("a worker starts: crashes after {calls:?} calls, last: {is_last}"));
        let mut records = consumer.records();
        let seen = Arc::clone(&self.seen);
        let reading = tokio::spawn(async move {
            while let Some(next) = records.next().await {
                let Ok(record) = next else { continue };
                if is_last {
                    let number =
                        std::str::from_utf8(record.data()).expect("the payload is a number");
                    seen.lock().unwrap().insert(number.parse().expect("the payload is a number"));
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
    async fn read_rest(&mut self) -> Option<(String, String)> {
        while !self.workers.is_empty() {
            self.kill(0);
        }
        self.is_throttled.store(false, Ordering::SeqCst);
        self.start(None, true);
        self.workers[0].store.stop_faults();
        sleep(Duration::from_secs(30)).await;
        self.put().await;
        let puts = self.puts.iter().enumerate();
        let due: BTreeSet<usize> =
            puts.filter(|(_, has_begun)| **has_begun).map(|(number, _)| number).collect();
        for _ in 0..120 {
            if due.is_subset(&self.seen.lock().unwrap()) {
                break;
            }
            sleep(Duration::from_secs(1)).await;
        }
        self.kill(0);
        let seen = self.seen.lock().unwrap();
        let lost: Vec<usize> = due.difference(&seen).copied().collect();
        if !lost.is_empty() {
            let detail =
                format!("records {lost:?} were put after the first poll, but are not read");
            return Some((format!("{:?}", Promise::NothingIsLost), detail));
        }
        let detail = "a record from long before the first poll is read".to_owned();
        seen.contains(&0).then(|| (format!("{:?}", Promise::FewRepeats), detail))
    }
}
