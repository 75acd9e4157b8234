//! How soon a fleet is even again, and what it asks of Redis.
//!
//!     cargo bench --features testing --bench fleet
//!
//! Workers are consumers in this process, each with a connection of its own to a real redis-server;
//! Kinesis is in memory, and its shards are without news. Time is real: what counts are renewals, every
//! third of a lease of 10 s.
// A benchmark that cannot go on says so by a panic.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::cast_precision_loss)]

#[path = "../tests/support/free_port.rs"]
mod free_port;
#[path = "../tests/support/redis.rs"]
mod redis_server;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures::future::{BoxFuture, pending};
use futures::{FutureExt, StreamExt};
use kinestream::store::Scope;
use kinestream::store::lease::{Answer, Edit, Fenced, Lease, LeaseStore, Request, Table, Verdict};
use kinestream::testing::Kinesis;
use kinestream::{Checkpoint, CheckpointStore, Consumer, RedisStore, Result, ShardId};
use redis_server::RedisServer;
use tokio::task::JoinHandle;
use tokio::time::sleep;

const SHARDS: usize = 1000;
const REST: Duration = Duration::from_secs(30);

/// A worker's way to Redis, which can be cut: nothing that it asks for arrives any more.
#[derive(Debug, Clone)]
struct Line {
    redis: RedisStore,
    is_cut: Arc<AtomicBool>,
}

impl Line {
    async fn open(&self) {
        if self.is_cut.load(Ordering::SeqCst) {
            pending::<()>().await;
        }
    }
}

impl CheckpointStore for Line {
    fn load<'a>(&'a self, scope: &'a Scope) -> BoxFuture<'a, Result<HashMap<ShardId, Checkpoint>>> {
        self.redis.load(scope)
    }

    fn save<'a>(
        &'a self,
        scope: &'a Scope,
        checkpoints: &'a [(ShardId, Checkpoint)],
    ) -> BoxFuture<'a, Result<()>> {
        self.redis.save(scope, checkpoints)
    }

    fn leases(self: Arc<Self>) -> Option<Arc<dyn LeaseStore>> {
        Some(self)
    }
}

impl LeaseStore for Line {
    fn exchange<'a>(
        &'a self,
        scope: &'a Scope,
        request: &'a Request,
    ) -> BoxFuture<'a, Result<Answer>> {
        async move {
            self.open().await;
            self.redis.exchange(scope, request).await
        }
        .boxed()
    }

    fn save_fenced<'a>(
        &'a self,
        scope: &'a Scope,
        positions: &'a [Fenced],
    ) -> BoxFuture<'a, Result<Vec<Verdict>>> {
        async move {
            self.open().await;
            self.redis.save_fenced(scope, positions).await
        }
        .boxed()
    }

    fn table<'a>(&'a self, scope: &'a Scope) -> BoxFuture<'a, Result<Table>> {
        self.redis.table(scope)
    }

    fn edit<'a>(
        &'a self,
        scope: &'a Scope,
        edit: &'a Edit,
        forced: bool,
    ) -> BoxFuture<'a, Result<Option<Arc<str>>>> {
        self.redis.edit(scope, edit, forced)
    }
}

struct Fleet {
    server: RedisServer,
    kinesis: Kinesis,
    workers: Vec<(Line, JoinHandle<()>)>,
    seen_by: RedisStore,
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
        let line = Line { redis, is_cut: Arc::default() };
        let consumer = Consumer::builder(self.kinesis.client(), "orders")
            .interval(Duration::from_secs(20))
            .worker_id(format!("worker-{:03}", self.workers.len()))
            .store(line.clone())
            .build()
            .unwrap();
        let reading = tokio::spawn(async move {
            consumer.records().for_each(|record| async { drop(record.unwrap()) }).await;
        });
        self.workers.push((line, reading));
    }

    /// How long it takes until every shard has an owner that is alive, and none has more than one
    /// more than another.
    async fn until_even(&self) -> f64 {
        let began = Instant::now();
        let alive = self.workers.iter().filter(|(line, _)| !line.is_cut.load(Ordering::SeqCst));
        let alive = alive.count();
        loop {
            let table = self.seen_by.table(&Scope::new("default", "orders")).await.unwrap();
            let mut shares: BTreeMap<&str, usize> = BTreeMap::new();
            let owned = table.leases.values().filter_map(|lease: &Lease| lease.owner.as_deref());
            for owner in owned {
                *shares.entry(owner).or_default() += 1;
            }
            let least = shares.values().min().copied().unwrap_or(0);
            let most = shares.values().max().copied().unwrap_or(0);
            if shares.values().sum::<usize>() == SHARDS
                && shares.len() == alive
                && most <= least + 1
            {
                return began.elapsed().as_secs_f64();
            }
            assert!(began.elapsed() < Duration::from_secs(120), "{shares:?}");
            // Looking costs Redis something, too.
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// How many scripts have been called, and how many commands have run, those in scripts too.
    fn commands(&self) -> (u64, u64) {
        let mut redis = redis::Client::open(self.server.url()).unwrap();
        let stats: String = redis::cmd("INFO").arg("commandstats").query(&mut redis).unwrap();
        let calls = |line: &str| -> Option<u64> {
            line.split_once("calls=")?.1.split(',').next()?.parse().ok()
        };
        let all = |name: &str| -> u64 {
            stats.lines().filter(|line| line.starts_with(name)).filter_map(calls).sum()
        };
        (all("cmdstat_evalsha:"), all("cmdstat_"))
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
    let before = fleet.commands();
    sleep(REST).await;
    let after = fleet.commands();
    let a_second = |before: u64, after: u64| (after - before) as f64 / REST.as_secs_f64();
    let (scripts, commands) = (a_second(before.0, after.0), a_second(before.1, after.1));
    let (line, _reading) = &fleet.workers[0];
    line.is_cut.store(true, Ordering::SeqCst);
    let taken = fleet.until_even().await;
    println!(
        "{workers:7} | {started:10.2} | {joined:8.2} | {taken:8.2} | {scripts:9.2} | {commands:10.2}"
    );
    for (_line, reading) in fleet.workers {
        reading.abort();
    }
}

#[tokio::main]
async fn main() {
    println!("{SHARDS} shards; seconds until even, and what Redis is asked a second at rest");
    println!("workers | from start | one joins | one dies | scripts/s | commands/s");
    for workers in [1, 10, 100] {
        measure(workers).await;
    }
}
