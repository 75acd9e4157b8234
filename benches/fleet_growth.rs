//! Measures how the load of a fleet on its store grows with shards, workers and changes.
//!
//!     cargo bench --features testing --bench fleet_growth
//!
//! Kinesis and the store are in memory. Time is tokio's paused clock, so that a fleet of 500 workers
//! fits a small machine. Bytes are those of the keys and texts in requests and answers; a protocol adds
//! its own.
// A benchmark panics on any failure.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::cast_precision_loss)]

#[path = "../tests/support/lease_access.rs"]
mod lease_access;
#[path = "../tests/support/shares.rs"]
mod shares;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures::future::{BoxFuture, pending};
use futures::{FutureExt, StreamExt};
use kinestream::store::Scope;
use kinestream::store::lease::{
    AdminEdit, EntryKey, Exchange, Exchanged, FencedOutcome, FencedSave, Heartbeats, IfLeased,
    LastHeartbeat, LeaseStore, LeaseTable,
};
use kinestream::testing::Kinesis;
use kinestream::{Checkpoint, CheckpointStore, Consumer, MemoryStore, Result, ShardId};
use lease_access::LeaseAccess;
use shares::{are_even, shares_of};
use tokio::runtime::Builder;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

/// Shards and workers.
const SIZES: [(usize, usize); 6] =
    [(100, 10), (1000, 10), (1000, 100), (1000, 500), (10_000, 100), (10_000, 500)];

/// The time for which a fleet is observed.
const REST: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
struct Traffic {
    requests: AtomicU64,
    bytes: AtomicU64,
}

impl Traffic {
    fn count(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::SeqCst);
    }

    fn now(&self) -> (u64, u64) {
        (self.requests.load(Ordering::SeqCst), self.bytes.load(Ordering::SeqCst))
    }
}

/// A store that counts what passes.
#[derive(Debug, Clone)]
struct Metered {
    stored: MemoryStore,
    traffic: Arc<Traffic>,
    /// True once no call of the worker completes.
    is_cut: Arc<AtomicBool>,
}

impl Metered {
    async fn reach(&self, bytes: usize) {
        if self.is_cut.load(Ordering::SeqCst) {
            pending::<()>().await;
        }
        self.traffic.requests.fetch_add(1, Ordering::SeqCst);
        self.traffic.count(bytes);
    }
}

fn length(key: &EntryKey, texts: [Option<&Arc<str>>; 2]) -> usize {
    let (kind, name) = key.parts();
    kind.len() + name.len() + texts.into_iter().flatten().map(|text| text.len()).sum::<usize>()
}

fn length_of_heartbeats(heartbeats: &[LastHeartbeat]) -> usize {
    heartbeats.iter().map(|last| last.worker.len() + last.mark.len()).sum()
}

fn length_of_request(exchange: &Exchange) -> usize {
    let renewals = exchange.renewals.iter().map(|it| it.worker.len() + it.entry.len());
    let step = exchange.step.iter().map(|step| {
        let entries = step.entries.iter();
        let entries = entries.map(|it| length(&it.key, [it.expected.as_ref(), it.text.as_ref()]));
        entries.sum::<usize>() + length_of_heartbeats(&step.silent)
    });
    renewals.sum::<usize>() + step.sum::<usize>() + size_of::<u64>()
}

fn length_of_answer(answer: &Exchanged) -> usize {
    let entries = answer.entries.iter().map(|(key, text)| length(key, [text.as_ref(), None]));
    let (Heartbeats::Expired(heartbeats) | Heartbeats::Last(heartbeats)) = &answer.heartbeats
    else {
        panic!("expected one of the known kinds of heartbeats");
    };
    entries.sum::<usize>() + length_of_heartbeats(heartbeats) + 2 * size_of::<u64>()
}

impl CheckpointStore for Metered {
    fn load<'a>(&'a self, scope: &'a Scope) -> BoxFuture<'a, Result<HashMap<ShardId, Checkpoint>>> {
        self.stored.load(scope)
    }

    fn save<'a>(
        &'a self,
        scope: &'a Scope,
        checkpoints: &'a [(ShardId, Checkpoint)],
    ) -> BoxFuture<'a, Result<()>> {
        self.stored.save(scope, checkpoints)
    }

    fn leases(self: Arc<Self>) -> Option<Arc<dyn LeaseStore>> {
        Some(self)
    }
}

impl LeaseStore for Metered {
    fn exchange<'a>(
        &'a self,
        scope: &'a Scope,
        exchange: &'a Exchange,
    ) -> BoxFuture<'a, Result<Exchanged>> {
        async move {
            self.reach(length_of_request(exchange)).await;
            let answer = self.stored.exchange(scope, exchange).await?;
            self.traffic.count(length_of_answer(&answer));
            Ok(answer)
        }
        .boxed()
    }

    fn save_fenced<'a>(
        &'a self,
        scope: &'a Scope,
        saves: &'a [FencedSave],
    ) -> BoxFuture<'a, Result<Vec<FencedOutcome>>> {
        async move {
            self.reach(saves.iter().map(|save| save.text.len()).sum()).await;
            self.stored.save_fenced(scope, saves).await
        }
        .boxed()
    }
}

struct Fleet {
    kinesis: Kinesis,
    store: Metered,
    scope: Scope,
    workers: Vec<(Arc<AtomicBool>, JoinHandle<()>)>,
}

impl Fleet {
    fn new(shards: usize) -> Self {
        let kinesis = Kinesis::new();
        kinesis.create_stream("orders", shards);
        let (stored, traffic) = (MemoryStore::new(), Arc::default());
        let store = Metered { stored, traffic, is_cut: Arc::default() };
        Self { kinesis, store, scope: Scope::new("default", "orders"), workers: Vec::new() }
    }

    fn join(&mut self) {
        let is_cut = Arc::new(AtomicBool::new(false));
        let store = Metered { is_cut: Arc::clone(&is_cut), ..self.store.clone() };
        let consumer = Consumer::builder(self.kinesis.client(), "orders")
            .interval(Duration::from_secs(300))
            // Without the regular requests of the whole table, which are measured apart.
            .discovery_interval(Duration::from_secs(3600))
            .worker_id(format!("worker-{:03}", self.workers.len()))
            .store(store)
            .build()
            .unwrap();
        let reading = tokio::spawn(consumer.records().for_each(|record| async {
            record.unwrap();
        }));
        self.workers.push((is_cut, reading));
    }

    async fn table(&self) -> LeaseTable {
        self.store.stored.table(&self.scope).await.unwrap()
    }

    /// Returns the time until every shard has a live owner and the shares differ by at most one.
    async fn until_even(&self) -> Duration {
        let began = Instant::now();
        let alive = self.workers.iter().filter(|(is_cut, _)| !is_cut.load(Ordering::SeqCst));
        let alive = alive.count();
        loop {
            let table = self.table().await;
            let shares = shares_of(&table);
            if are_even(&shares, table.leases.len(), alive) {
                return began.elapsed();
            }
            assert!(began.elapsed() < Duration::from_secs(600), "{shares:?}");
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Returns the requests and bytes within the time.
    async fn traffic_of(&self, time: Duration) -> (f64, f64) {
        let (requests, bytes) = self.store.traffic.now();
        sleep(time).await;
        let (requests_after, bytes_after) = self.store.traffic.now();
        ((requests_after - requests) as f64, (bytes_after - bytes) as f64)
    }
}

async fn measure(shards: usize, workers: usize) {
    let mut fleet = Fleet::new(shards);
    for _ in 0..workers {
        fleet.join();
    }
    let started = fleet.until_even().await;
    sleep(REST).await;
    let (requests, at_rest) = fleet.traffic_of(REST).await;
    let rate = REST.as_secs_f64();
    // One change that every worker reads by its next renewal.
    let shard = "shardId-000000000000".parse().unwrap();
    let edit = AdminEdit::Set { positions: vec![(shard, Checkpoint::TrimHorizon)] };
    fleet.store.stored.edit(&fleet.scope, &edit, IfLeased::Force).await.unwrap();
    let (_requests, changed) = fleet.traffic_of(REST).await;
    let answer = fleet.store.stored.exchange(&fleet.scope, &Exchange::default()).await.unwrap();
    let whole = length_of_answer(&answer);
    fleet.join();
    let joined = fleet.until_even().await;
    sleep(REST).await;
    fleet.workers[0].0.store(true, Ordering::SeqCst);
    let taken = fleet.until_even().await;
    println!(
        "{shards:6} | {workers:7} | {:9.1} | {:10.2} | {:9.3} | {:5.0} | {:10.1} | {:9.1} | {:9.1}",
        requests / rate,
        at_rest / rate / 1000.0,
        (changed - at_rest) / 1000.0 / workers as f64,
        whole as f64 / 1000.0,
        started.as_secs_f64(),
        joined.as_secs_f64(),
        taken.as_secs_f64(),
    );
    fleet.workers.iter().for_each(|(_, reading)| reading.abort());
}

fn main() {
    println!(
        "requests and kB per second at rest; kB per worker after one change, and of the table;"
    );
    println!("seconds until the shares are even");
    println!(
        "shards | workers | request/s |    kB/s    | kB/change |    kB | from start | one joins | one fails"
    );
    for (shards, workers) in SIZES {
        let paused = Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        paused.block_on(measure(shards, workers));
    }
}
