//! A fleet of worker processes that are killed, suspended and stopped, while the server of its store
//! restarts: Redis with and without its data, PostgreSQL, or DynamoDB in both layouts.
//!
//! `FLEET_SECONDS` sets the duration in seconds; the defaults of 60 for Redis, 30 for PostgreSQL and
//! 30 for each layout of DynamoDB suit a run of all tests.
//! `FLEET_SEED` sets the seed of the faults; the default is random.

mod server;
mod tally;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use kinestream::{Consumer, StartingPosition};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

#[cfg(feature = "dynamodb")]
use self::server::Layout;
use self::server::Server;
use self::tally::{FleetTally, assert_epochs_held, now};
#[cfg(all(feature = "dynamodb", feature = "testing"))]
use crate::dynamodb_kcl_layout::create_lease_table;
#[cfg(feature = "dynamodb")]
use crate::dynamodb_server::DynamoDbServer;
use crate::ferrokinesis_server::{client_of, create_stream, put_numbers, start_kinesis};
#[cfg(all(feature = "dynamodb", feature = "testing"))]
use crate::kcl::{LeaseTable, Watch};
#[cfg(feature = "testing")]
use crate::postgres_server::PostgresServer;
use crate::redis_server::RedisServer;
use crate::slowness::Slowness;

const STREAM: &str = "orders";
const SHARDS: usize = 8;
const WORKERS: usize = 4;
const LEASE: Duration = Duration::from_secs(2);
const RENEWAL: Duration = LEASE.checked_div(3).unwrap();

/// The time within which every shard is read again after a worker is killed or suspended, or after
/// the server has restarted: a lease duration and two renewals, plus an allowance for a poll and what
/// [`Slowness`] does not see.
const READ_AGAIN: Duration =
    LEASE.saturating_add(RENEWAL.saturating_mul(2)).saturating_add(Duration::from_millis(1500));

/// The number of records that are put per second.
const RATE: usize = 200;

/// The most records that a fault redelivers: those that one worker acknowledges in two checkpoint
/// intervals of 100 ms and during a save, or all workers if the store returns empty.
const MAX_REPEATED: usize = RATE / 2;

struct Fleet {
    server: Server,
    port: u16,
    tally: Arc<Mutex<FleetTally>>,
    slowness: Slowness,
    workers: Vec<(String, Child)>,
    begun: usize,
    last_start: Instant,
    last_forgotten: Option<Instant>,
    /// The number of records put so far.
    put: Arc<Mutex<usize>>,
    /// The number of redeliveries allowed to workers that started while Redis returned without its
    /// data. Such a worker may join before any worker that knows the checkpoints, and then starts
    /// from the beginning.
    allowed_rereads: usize,
}

impl Fleet {
    fn start_worker(&mut self) {
        let name = format!("worker-{}", self.begun);
        self.begun += 1;
        self.last_start = Instant::now();
        if self.last_forgotten.is_some_and(|forgotten| forgotten.elapsed() < LEASE) {
            self.allowed_rereads += *self.put.lock().unwrap();
        }
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["fleet::worker", "--exact", "--ignored", "--nocapture"])
            .env("TEST_KINESIS_PORT", self.port.to_string())
            .env("TEST_STORE_URL", self.server.url())
            .env("TEST_WORKER", &name)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let (tally, worker) = (Arc::clone(&self.tally), name.clone());
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                if let Some((_, fields)) = line.split_once("read ") {
                    let fields: Vec<&str> = fields.split(' ').collect();
                    let [shard, epoch, at, number] = fields[..] else { panic!("{fields:?}") };
                    let (epoch, number) = (epoch.parse().unwrap(), number.parse().unwrap());
                    let at = Duration::from_nanos(at.parse().unwrap());
                    tally.lock().unwrap().record_read(&worker, shard, epoch, at, number);
                }
            }
        });
        self.workers.push((name, process));
    }

    fn signal(&self, worker: usize, signal: &str) {
        let pid = self.workers[worker].1.id().unwrap().to_string();
        assert!(
            std::process::Command::new("kill").args([signal, &pid]).status().unwrap().success()
        );
    }

    /// Runs a random fault. Returns its description and, if reading is to resume within
    /// [`READ_AGAIN`], the time from which this counts.
    async fn inject_fault(&mut self, rng: &mut fastrand::Rng) -> (&'static str, Option<Duration>) {
        let worker = rng.usize(..self.workers.len());
        let faults = if matches!(self.server, Server::Redis(_)) { 7 } else { 6 };
        match rng.u8(..faults) {
            0 | 1 => {
                self.workers[worker].1.kill().await.unwrap();
                let killed = now();
                self.workers.remove(worker);
                sleep(LEASE * rng.u32(0..3) / 2).await;
                self.start_worker();
                ("a worker is killed, and another one starts", Some(killed))
            }
            2 | 3 => {
                self.signal(worker, "-STOP");
                let suspended = now();
                let name = self.workers[worker].0.clone();
                *self.tally.lock().unwrap().suspended.entry(name).or_default() += 1;
                sleep(LEASE * rng.u32(1..6) / 2).await;
                self.signal(worker, "-CONT");
                ("a worker is suspended", Some(suspended))
            }
            4 => {
                let (_name, mut process) = self.workers.remove(worker);
                drop(process.stdin.take());
                assert!(
                    process.wait().await.unwrap().success(),
                    "expected the worker to exit when its input ends"
                );
                let stopped = now();
                self.start_worker();
                ("a worker stops, and another one starts", Some(stopped))
            }
            5 => {
                self.server.kill();
                sleep(LEASE * rng.u32(0..6) / 2).await;
                self.server.restart();
                ("the server restarts", Some(now()))
            }
            _ => {
                self.lose_data(rng).await;
                ("the server restarts without its data", None)
            }
        }
    }

    async fn lose_data(&mut self, rng: &mut fastrand::Rng) {
        // The newest worker may not have connected to Redis yet.
        if self.last_start.elapsed() < LEASE {
            self.allowed_rereads += *self.put.lock().unwrap();
        }
        self.server.kill();
        sleep(LEASE * rng.u32(0..4) / 2).await;
        let Server::Redis(redis) = &mut self.server else {
            unreachable!("only Redis loses its data");
        };
        redis.forget();
        let began = now();
        redis.restart();
        self.last_forgotten = Some(Instant::now());
        let forgotten = (began, now() + LEASE);
        self.tally.lock().unwrap().data_losses.push(forgotten);
    }

    /// Waits until every shard was read again after a fault, and notes a finding if that took too
    /// long. Returns the time that it took.
    async fn resumes(&self, what: &str, since: Duration) -> Duration {
        loop {
            let read_again = self.tally.lock().unwrap().read_again(SHARDS, since);
            let took = read_again.unwrap_or_else(|| now().saturating_sub(since));
            let began = Instant::now().checked_sub(now().saturating_sub(since));
            let bound = READ_AGAIN + began.map_or(Duration::ZERO, |it| self.slowness.since(it));
            if read_again.is_none() && took < 2 * bound {
                sleep(Duration::from_millis(20)).await;
                continue;
            }
            if took > bound {
                let finding = format!("every shard was read again {took:?} after: {what}");
                self.tally.lock().unwrap().findings.push(finding);
            }
            return took;
        }
    }
}

/// A worker process that prints one line per record. It closes its consumer when its input ends.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by the tests below as a separate process"]
async fn worker() {
    let port = std::env::var("TEST_KINESIS_PORT").unwrap().parse().unwrap();
    let url = std::env::var("TEST_STORE_URL").unwrap();
    let store = loop {
        // The server may be restarting.
        match Server::connect(&url).await {
            Some(store) => break store,
            None => sleep(Duration::from_millis(100)).await,
        }
    };
    let consumer = Consumer::builder(client_of(port), STREAM)
        .application("billing")
        .starting_position(StartingPosition::TrimHorizon)
        .interval(Duration::from_millis(200))
        .checkpoint_interval(Duration::from_millis(100))
        .discovery_interval(Duration::from_secs(1))
        .lease_duration(LEASE)
        .worker_id(std::env::var("TEST_WORKER").unwrap())
        .store(store)
        .build()
        .unwrap();
    let mut records = consumer.records();
    let mut output = std::io::stdout();
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    std::thread::spawn(move || {
        let _end = std::io::stdin().read(&mut [0]);
        drop(stop);
    });
    loop {
        let record = tokio::select! {
            biased;
            _end = &mut stopped => break,
            record = records.next() => record.expect("expected no end").expect("expected no error"),
        };
        let (at, number) = (now().as_nanos(), std::str::from_utf8(record.data()).unwrap());
        writeln!(output, "read {} {} {at} {number}", record.shard_id(), record.epoch()).unwrap();
        output.flush().unwrap();
        record.ack();
    }
    drop(records);
    consumer.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn fleet_on_redis_with_faults_loses_no_record() {
    let server = RedisServer::start(&["--appendonly", "yes", "--appendfsync", "always"]);
    loses_no_record(Server::Redis(server), 60).await;
}

#[cfg(feature = "testing")]
#[tokio::test(flavor = "multi_thread")]
async fn fleet_on_postgres_with_faults_loses_no_record() {
    loses_no_record(Server::Postgres(PostgresServer::start()), 30).await;
}

#[cfg(feature = "dynamodb")]
#[tokio::test(flavor = "multi_thread")]
async fn fleet_on_dynamodb_with_faults_loses_no_record() {
    let (server, _store) = DynamoDbServer::with_table().await;
    loses_no_record(Server::DynamoDb(server, Layout::Own), 30).await;
}

/// A KCL can read the lease table at any moment, and its rows never move back.
#[cfg(all(feature = "dynamodb", feature = "testing"))]
#[tokio::test(flavor = "multi_thread")]
async fn fleet_on_a_kcl_table_with_faults_loses_no_record() {
    let (server, _store) = DynamoDbServer::with_table().await;
    let table = LeaseTable { client: server.client(), name: "leases".to_owned() };
    create_lease_table(&table.client, &table.name).await;
    let watch = Watch::start(&table);
    loses_no_record(Server::DynamoDb(server, Layout::Kcl("leases")), 30).await;
    watch.end().await;
}

async fn loses_no_record(server: Server, seconds: u64) {
    let seconds =
        std::env::var("FLEET_SECONDS").map_or(seconds, |seconds| seconds.parse().unwrap());
    let seed = std::env::var("FLEET_SEED")
        .map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    println!("FLEET_SEED={seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let (client, port) = start_kinesis().await.unwrap();
    create_stream(&client, STREAM, i32::try_from(SHARDS).unwrap()).await.unwrap();
    let mut fleet = Fleet {
        server,
        port,
        tally: Arc::default(),
        slowness: Slowness::measure(),
        workers: Vec::new(),
        begun: 0,
        last_start: Instant::now(),
        last_forgotten: None,
        put: Arc::default(),
        allowed_rereads: 0,
    };
    for _ in 0..WORKERS {
        fleet.start_worker();
    }
    let put = Arc::clone(&fleet.put);
    let writing = tokio::spawn({
        let put = Arc::clone(&put);
        async move {
            loop {
                let first = *put.lock().unwrap();
                put_numbers(&client, STREAM, first..first + RATE / 20).await.unwrap();
                *put.lock().unwrap() = first + RATE / 20;
                sleep(Duration::from_millis(50)).await;
            }
        }
    });
    let started = Instant::now();
    while fleet.tally.lock().unwrap().read_again(SHARDS, Duration::ZERO).is_none() {
        assert!(started.elapsed() < Duration::from_secs(30), "expected the fleet to start");
        sleep(Duration::from_millis(20)).await;
    }
    let end = Instant::now() + Duration::from_secs(seconds);
    let (mut happened, mut longest) = (0, Duration::ZERO);
    let mut repeated = 0;
    while Instant::now() < end {
        let (what, since) = fleet.inject_fault(&mut rng).await;
        if let Some(since) = since {
            longest = longest.max(fleet.resumes(what, since).await);
        }
        sleep(Duration::from_millis(rng.u64(0..4000))).await;
        happened += 1;
        let before = std::mem::replace(&mut repeated, fleet.tally.lock().unwrap().repeated());
        if repeated > before + MAX_REPEATED {
            println!("{what}: {} of {} redelivered", repeated - before, put.lock().unwrap());
        }
    }
    writing.abort();
    let put = *put.lock().unwrap();
    let began = Instant::now();
    loop {
        let read: BTreeSet<usize> = fleet.tally.lock().unwrap().read.keys().copied().collect();
        let lost: Vec<usize> = (0..put).filter(|number| !read.contains(number)).collect();
        if lost.is_empty() {
            break;
        }
        let waited = began.elapsed();
        assert!(
            waited < Duration::from_secs(60),
            "{} of {put} records are lost, the first is {}",
            lost.len(),
            lost[0]
        );
        sleep(Duration::from_millis(100)).await;
    }
    let tally = fleet.tally.lock().unwrap();
    let (late, excused) = tally.late();
    println!(
        "{put} records, {} workers, {happened} faults: {} redelivered, {late:?} late, {excused} late \
         after a loss of data, all read again after at most {longest:.1?}",
        fleet.begun,
        tally.repeated(),
    );
    assert_epochs_held(&tally, seed);
    let allowed = happened * MAX_REPEATED + fleet.allowed_rereads;
    assert!(
        tally.repeated() <= allowed,
        "expected at most {allowed} redelivered records, got {}; FLEET_SEED={seed}",
        tally.repeated()
    );
}
