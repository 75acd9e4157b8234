//! Fault injection for stores: three workers read from an in-memory Kinesis while the network and the
//! servers fail.
//!
//! Each worker reaches a Redis master with a replica, or PostgreSQL, through its own TCP proxies. The
//! workers find the master at one address, by a sentinel, or as a node of a cluster.
//!
//! A seed determines the faults and their order. The clock is real, so two runs of one seed differ
//! in detail. Every time limit is derived from the configured durations.
//!
//! - `cargo test --all-features --test servers nemesis` runs the seeds of the regular test run;
//! - `SEED=7 cargo test --all-features --test servers -- --ignored --nocapture nemesis::one` runs
//!   one seed and prints its trace;
//! - `SEEDS=0..100 cargo test --all-features --test servers -- --ignored --nocapture nemesis::many`
//!   runs a range of seeds. Seeds from 1000 use a sentinel, seeds from 2000 a cluster, and seeds from
//!   3000 PostgreSQL.

mod faults;
mod postgres;
mod redis;
mod servers;
mod tally;
mod worker;

use std::ops::Range;
use std::time::Duration;

use fastrand::Rng;
use kinestream::testing::{Kinesis, Stream};
use tokio::time::{Instant, sleep, sleep_until};

use crate::seeds::{SeedResult, Simulation};
use crate::slowness::Slowness;
use faults::Fault;
use servers::{Deployment, Servers};
use tally::Tally;
use worker::Worker;

/// The seeds of the regular test run.
const EVERY_DAY: Range<u64> = 0..6;

/// The seeds of the regular test run with a sentinel.
#[cfg(feature = "redis-sentinel")]
const BEHIND_A_SENTINEL: Range<u64> = 1000..1004;

/// The seeds of the regular test run in a cluster.
#[cfg(feature = "redis-cluster")]
const IN_A_CLUSTER: Range<u64> = 2000..2004;

/// The seeds of the regular test run with PostgreSQL.
const ON_POSTGRES: Range<u64> = 3000..3006;

const SIMULATION: Simulation = Simulation { test: "servers", simulate };

const SHARDS: usize = 4;
const WORKERS: usize = 3;
const FAULTS: usize = 3;

/// The shortest permitted lease duration, which keeps the runs short.
const LEASE: Duration = Duration::from_secs(2);
const RENEWAL: Duration = LEASE.checked_div(3).unwrap();

/// The poll interval of the workers.
const INTERVAL: Duration = Duration::from_millis(200);

/// The pause between two records.
const PUT_PAUSE: Duration = Duration::from_millis(10);

/// The time from a put to the delivery: one poll, plus an allowance for what [`Slowness`] does not see,
/// such as a server that waits for a processor.
const DELAY: Duration = INTERVAL.saturating_add(Duration::from_millis(1500));

/// The time after the end of a fault within which every shard is read again: a lease duration and
/// two renewals.
const READ_AGAIN: Duration = LEASE.saturating_add(RENEWAL.saturating_mul(2));

fn simulate(seed: u64) -> SeedResult {
    on_real_time(async {
        let mut world = World::start(seed).await;
        world.run().await;
        world.end().await
    })
}

fn on_real_time(simulation: impl Future<Output = SeedResult>) -> SeedResult {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().build().unwrap().block_on(simulation)
}

fn deployment(seed: u64) -> Deployment {
    match seed / 1000 {
        1 if cfg!(feature = "redis-sentinel") => Deployment::Sentinel,
        2 if cfg!(feature = "redis-cluster") => Deployment::Cluster,
        3 => Deployment::Postgres,
        _ => Deployment::Address,
    }
}

#[test]
fn redis_faults_lose_no_record_and_stop_no_shard() {
    SIMULATION.run_seeds(EVERY_DAY);
}

#[cfg(feature = "redis-sentinel")]
#[test]
fn sentinel_faults_lose_no_record_and_stop_no_shard() {
    SIMULATION.run_seeds(BEHIND_A_SENTINEL);
}

#[cfg(feature = "redis-cluster")]
#[test]
fn cluster_faults_lose_no_record_and_stop_no_shard() {
    SIMULATION.run_seeds(IN_A_CLUSTER);
}

#[test]
fn postgres_faults_lose_no_record_and_stop_no_shard() {
    SIMULATION.run_seeds(ON_POSTGRES);
}

/// A script of another client loops for longer than a lease duration, so that Redis replies BUSY.
#[test]
fn busy_redis_loses_no_record_and_stops_no_shard() {
    let seed_result = on_real_time(async {
        let mut world = World::start(0).await;
        world.reads("the start", Instant::now(), 3 * READ_AGAIN).await;
        world.inject(Fault::Busy(2 * LEASE), |_| true).await;
        world.end().await
    });
    let trace = seed_result.trace.join("\n");
    assert!(seed_result.broken.is_none(), "{trace}");
    let refusal = "is busy with a script or function: BUSY Redis is busy running a script";
    let is_reported = |line: &String| line.contains("StoreFailed") && line.contains(refusal);
    assert!(seed_result.trace.iter().any(is_reported), "{trace}");
}

#[test]
#[ignore = "runs the seeds in SEEDS"]
fn many() {
    SIMULATION.run_seeds_from_env();
}

#[test]
#[ignore = "runs the seed in SEED and prints its trace"]
fn one() {
    SIMULATION.run_seed_from_env();
}

/// The participants of a run.
struct World {
    rng: Rng,
    deployment: Deployment,
    servers: Servers,
    workers: Vec<Worker>,
    tally: Tally,
    slowness: Slowness,
    _kinesis: Kinesis,
    writing: tokio::task::JoinHandle<()>,
}

impl World {
    async fn start(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let kinesis = Kinesis::new();
        let stream = kinesis.create_stream("orders", SHARDS);
        let deployment = deployment(seed);
        let servers = Servers::start(deployment).await;
        let tally = Tally::default();
        let acknowledges = rng.bool();
        let mut workers = Vec::new();
        for index in 0..WORKERS {
            workers.push(Worker::start(index, &kinesis, &servers, acknowledges, &tally).await);
        }
        let writing = tokio::spawn(write(stream, tally.clone()));
        let slowness = Slowness::measure();
        Self { rng, deployment, servers, workers, tally, slowness, _kinesis: kinesis, writing }
    }

    async fn run(&mut self) {
        self.reads("the start", Instant::now(), 3 * READ_AGAIN).await;
        assert!(
            self.servers.serve_proxies_alone().await,
            "expected all workers to connect through proxies"
        );
        for _ in 0..FAULTS {
            if self.tally.is_broken() {
                return;
            }
            let fault = Fault::draw(&mut self.rng, self.deployment);
            // Sometimes the next fault begins before the fleet has recovered from this one.
            self.inject(fault, |rng| rng.u8(..4) > 0).await;
            sleep(Duration::from_millis(self.rng.u64(0..500))).await;
        }
    }

    /// Runs a fault. If `recovers` returns true, waits until every shard is read again.
    async fn inject(&mut self, fault: Fault, recovers: impl FnOnce(&mut Rng) -> bool) {
        let what = format!("{fault:?}");
        self.tally.log(&what);
        let began = Instant::now();
        fault.happen(&mut self.servers, &self.workers).await;
        let ended = Instant::now();
        if fault.loses_a_key() {
            self.is_noticed(&what, began).await;
        }
        if recovers(&mut self.rng) {
            self.reads(&what, ended, READ_AGAIN + DELAY).await;
            // Waits until leases without renewal have expired, and checks again.
            sleep_until(ended + READ_AGAIN).await;
            self.reads(&what, Instant::now(), DELAY).await;
        }
    }

    /// Waits until every shard has delivered a record that was put after `since`. Exceeding `bound`
    /// breaks a promise.
    async fn reads(&self, what: &str, since: Instant, bound: Duration) {
        while let Some(shard) = self.tally.first_unread(since) {
            if since.elapsed() > bound + self.slowness.since(since) {
                let detail = format!("shard {shard} is not read within {bound:?} of {what}");
                return self.tally.break_promise("reads_on", detail);
            }
            sleep(PUT_PAUSE).await;
        }
        self.tally.log(&format!("every shard is read after {:?}", since.elapsed()));
    }

    /// Waits until every worker has reported the loss of stored data.
    async fn is_noticed(&self, what: &str, began: Instant) {
        let bound = 2 * RENEWAL + DELAY;
        while let Some(worker) = self.tally.first_unaware(WORKERS, began) {
            if began.elapsed() > bound + self.slowness.since(began) {
                let detail = format!("worker {worker} has not reported {what} within {bound:?}");
                return self.tally.break_promise("notices_loss", detail);
            }
            sleep(PUT_PAUSE).await;
        }
        self.tally.log(&format!("every worker has reported it after {:?}", began.elapsed()));
    }

    /// Stops the writer, waits until all records are read, and stops the workers.
    async fn end(self) -> SeedResult {
        self.writing.abort();
        let began = Instant::now();
        while let Some(lost) = self.tally.unread() {
            if self.tally.is_broken() {
                break;
            }
            if began.elapsed() > 3 * READ_AGAIN {
                self.tally.break_promise("loses_nothing", lost);
            }
            sleep(PUT_PAUSE).await;
        }
        for worker in self.workers {
            worker.end().await;
        }
        self.tally.seed_result()
    }
}

/// Puts consecutive numbers into the shards in turn.
async fn write(stream: Stream, tally: Tally) {
    for number in 0.. {
        let shard = number % SHARDS;
        tally.put(number, shard);
        stream.shard(shard).put(number.to_string());
        sleep(PUT_PAUSE).await;
    }
}
