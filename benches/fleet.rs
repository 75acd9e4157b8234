//! Measures how quickly a fleet rebalances, and the load on Redis.
//!
//!     cargo bench --features testing --bench fleet
//!
//! The workers are consumers in this process. Each has its own connection to a real redis-server.
//! Kinesis is in memory, and its shards are idle. The clock is not paused: the times depend on the
//! lease renewals, every third of a lease of 10 s.
// A benchmark panics on any failure.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::cast_precision_loss)]

#[path = "../tests/support/free_port.rs"]
mod free_port;
#[path = "../tests/support/gated.rs"]
mod gated;
#[path = "../tests/support/lease_access.rs"]
mod lease_access;
#[path = "../tests/support/redis.rs"]
mod redis_server;
#[path = "../tests/support/server_process.rs"]
mod server_process;
#[path = "../tests/support/shares.rs"]
mod shares;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures::future::{pending, ready};
use futures::{FutureExt, StreamExt};
use gated::Gated;
use kinestream::store::Scope;
use kinestream::testing::Kinesis;
use kinestream::{Consumer, RedisStore};
use lease_access::LeaseAccess;
use redis_server::RedisServer;
use shares::{are_even, shares_of};
use tokio::task::JoinHandle;
use tokio::time::sleep;

const SHARDS: usize = 1000;
const REST: Duration = Duration::from_secs(30);

/// A worker's connection to Redis.
struct Line(Arc<AtomicBool>);

impl Line {
    fn cut(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    fn is_cut(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

struct Fleet {
    server: RedisServer,
    kinesis: Kinesis,
    workers: Vec<(Line, JoinHandle<()>)>,
    seen_by: RedisStore,
}

/// Counters of the server.
struct Load {
    scripts: u64,
    /// Commands, including those in scripts.
    commands: u64,
    /// Bytes that it received and sent.
    bytes: u64,
}

impl Fleet {
    async fn new() -> Self {
        let server = RedisServer::start(&[]);
        let kinesis = Kinesis::new();
        kinesis.create_stream("orders", SHARDS);
        let seen_by = RedisStore::connect(&server.url()).await.unwrap();
        Self { server, kinesis, workers: Vec::new(), seen_by }
    }

    async fn join(&mut self) {
        let redis = RedisStore::connect(&self.server.url()).await.unwrap();
        let line = Line(Arc::default());
        // Once the line is cut, the worker's calls never complete.
        let store = Gated::new(redis, {
            let is_cut = Arc::clone(&line.0);
            move |_call| {
                if is_cut.load(Ordering::SeqCst) {
                    pending().boxed()
                } else {
                    ready(Ok(())).boxed()
                }
            }
        });
        let consumer = Consumer::builder(self.kinesis.client(), "orders")
            .interval(Duration::from_secs(20))
            .discovery_interval(Duration::from_secs(30))
            .worker_id(format!("worker-{:03}", self.workers.len()))
            .store(store)
            .build()
            .unwrap();
        let reading = tokio::spawn(async move {
            // A busy machine may delay the answers of the store, which is tried again.
            consumer.records().for_each(|record| async { drop(record) }).await;
        });
        self.workers.push((line, reading));
    }

    /// Returns the seconds until every shard has a live owner and the shares differ by at most one.
    async fn until_even(&self) -> f64 {
        let began = Instant::now();
        let alive = self.workers.iter().filter(|(line, _)| !line.is_cut());
        let alive = alive.count();
        loop {
            let table = self.seen_by.table(&Scope::new("default", "orders")).await.unwrap();
            let shares = shares_of(&table);
            if are_even(&shares, SHARDS, alive) {
                return began.elapsed().as_secs_f64();
            }
            assert!(began.elapsed() < Duration::from_secs(300), "{shares:?}");
            // Poll slowly, since the table read is a load on Redis as well.
            sleep(Duration::from_millis(100)).await;
        }
    }

    fn load(&self) -> Load {
        let mut redis = redis::Client::open(self.server.url()).unwrap();
        let stats: String = redis::cmd("INFO").arg("commandstats").query(&mut redis).unwrap();
        let calls = |line: &str| -> Option<u64> {
            line.split_once("calls=")?.1.split(',').next()?.parse().ok()
        };
        let all = |name: &str| -> u64 {
            stats.lines().filter(|line| line.starts_with(name)).filter_map(calls).sum()
        };
        let network: String = redis::cmd("INFO").arg("stats").query(&mut redis).unwrap();
        let bytes = network.lines().filter_map(|line| line.strip_prefix("total_net_"));
        let bytes =
            bytes.filter_map(|line| line.split_once("_bytes:")?.1.trim().parse::<u64>().ok());
        let (scripts, commands) = (all("cmdstat_evalsha:"), all("cmdstat_"));
        Load { scripts, commands, bytes: bytes.sum() }
    }

    /// Returns the load per second of a fleet at rest: scripts, commands and bytes.
    async fn load_at_rest(&self) -> [f64; 3] {
        let before = self.load();
        sleep(REST).await;
        let after = self.load();
        let a_second = |before: u64, after: u64| (after - before) as f64 / REST.as_secs_f64();
        [
            a_second(before.scripts, after.scripts),
            a_second(before.commands, after.commands),
            a_second(before.bytes, after.bytes),
        ]
    }

    fn end(self) {
        for (_line, reading) in self.workers {
            reading.abort();
        }
    }
}

async fn measure(workers: usize) {
    let mut fleet = Fleet::new().await;
    for _ in 0..workers {
        fleet.join().await;
    }
    let started = fleet.until_even().await;
    sleep(REST).await;
    fleet.join().await;
    let joined = fleet.until_even().await;
    sleep(REST).await;
    let [scripts, commands, bytes] = fleet.load_at_rest().await;
    let (line, _reading) = &fleet.workers[0];
    line.cut();
    let taken = fleet.until_even().await;
    println!(
        "{workers:7} | {started:10.2} | {joined:8.2} | {taken:8.2} | {scripts:9.2} | {commands:10.2} | {:.1}",
        bytes / 1000.0
    );
    fleet.end();
}

#[tokio::main]
async fn main() {
    println!(
        "{SHARDS} shards; seconds until the shares are even; Redis calls and kB per second at rest"
    );
    println!("workers | from start | one joins | one fails | scripts/s | commands/s | kB/s");
    for workers in [1, 10, 100] {
        measure(workers).await;
    }
}
