//! A fleet of worker processes over DynamoDB. The processes are killed, suspended and stopped, and the
//! server is killed and restarted.
//!
//! `FLEET_SECONDS` sets the duration in seconds; the default of 40 suits a run of all tests.
//! `FLEET_SEED` sets the seed of the faults; the default is random.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use kinestream::{Consumer, DynamoDbStore, StartingPosition};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

use crate::dynamodb_server::{self, DynamoDbServer, TABLE};
use crate::ferrokinesis_server::{client_of, create_stream, put_numbers, start_kinesis};
use crate::fleet_tally::{FleetTally, assert_epochs_held, now};

const STREAM: &str = "orders";
const SHARDS: i32 = 8;
const WORKERS: usize = 3;
const LEASE: Duration = Duration::from_secs(2);
const RENEWAL: Duration = LEASE.checked_div(3).unwrap();

/// The time after a fault within which every shard is read again: a lease duration and two renewals.
const READ_AGAIN: Duration = LEASE.saturating_add(RENEWAL.saturating_mul(2));

/// An allowance for a poll, a put and a machine that is busy with other builds and tests.
const DELAY: Duration = Duration::from_millis(1500);

/// The number of records that are put per second.
const RATE: usize = 100;

/// The most records that a fault redelivers: those that all workers acknowledge in two checkpoint
/// intervals of 200 ms, and while the server is away.
const MAX_REPEATED: usize = RATE;

struct Fleet {
    server: DynamoDbServer,
    port: u16,
    tally: Arc<Mutex<FleetTally>>,
    /// The time of the last read of each shard.
    last: Arc<Mutex<BTreeMap<String, Instant>>>,
    workers: Vec<(String, Child)>,
    begun: usize,
}

impl Fleet {
    fn start_worker(&mut self) {
        let name = format!("worker-{}", self.begun);
        self.begun += 1;
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["dynamodb_fleet::worker", "--exact", "--ignored", "--nocapture"])
            .env("TEST_KINESIS_PORT", self.port.to_string())
            .env("TEST_DYNAMODB_PORT", self.server.port().to_string())
            .env("TEST_WORKER", &name)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let (tally, worker) = (Arc::clone(&self.tally), name.clone());
        let last = Arc::clone(&self.last);
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                if let Some((_, fields)) = line.split_once("read ") {
                    let fields: Vec<&str> = fields.split(' ').collect();
                    let [shard, epoch, at, number] = fields[..] else { panic!("{fields:?}") };
                    let (epoch, number) = (epoch.parse().unwrap(), number.parse().unwrap());
                    let at = Duration::from_nanos(at.parse().unwrap());
                    tally.lock().unwrap().record_read(&worker, shard, epoch, at, number);
                    last.lock().unwrap().insert(shard.to_owned(), Instant::now());
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

    /// Returns the time until every shard was read after `since`, or the bound if one was not.
    async fn read_again(&self, since: Instant) -> Duration {
        let bound = READ_AGAIN + DELAY;
        loop {
            let last = self.last.lock().unwrap().clone();
            let is_read = |at: &&Instant| **at > since;
            if last.values().filter(is_read).count() == usize::try_from(SHARDS).unwrap()
                || since.elapsed() > bound
            {
                return since.elapsed();
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Runs a random fault. Returns its description, and the time until every shard was read again.
    async fn inject_fault(&mut self, rng: &mut fastrand::Rng) -> (&'static str, Duration) {
        let worker = rng.usize(..self.workers.len());
        match rng.u8(..6) {
            0 | 1 => {
                self.workers[worker].1.kill().await.unwrap();
                self.workers.remove(worker);
                let took = self.read_again(Instant::now()).await;
                self.start_worker();
                ("a worker is killed", took)
            }
            2 | 3 => {
                self.signal(worker, "-STOP");
                let began = Instant::now();
                let name = self.workers[worker].0.clone();
                *self.tally.lock().unwrap().suspended.entry(name).or_default() += 1;
                let took = self.read_again(began).await;
                sleep(LEASE * rng.u32(0..2) / 2).await;
                self.signal(worker, "-CONT");
                ("a worker is suspended", took)
            }
            4 => {
                let (_name, mut process) = self.workers.remove(worker);
                drop(process.stdin.take());
                let status = process.wait().await.unwrap();
                assert!(status.success(), "expected the worker to exit when its input ends");
                let took = self.read_again(Instant::now()).await;
                self.start_worker();
                ("a worker stops", took)
            }
            _ => {
                self.server.kill();
                sleep(LEASE * rng.u32(0..6) / 2).await;
                self.server.restart();
                ("the server restarts", self.read_again(Instant::now()).await)
            }
        }
    }
}

/// A worker process that prints one line per record. It closes its consumer when its input ends.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by fleet_with_faults_loses_no_record as a separate process"]
async fn worker() {
    let port = |name| std::env::var(name).unwrap().parse().unwrap();
    let client = dynamodb_server::client_of(port("TEST_DYNAMODB_PORT"));
    let consumer = Consumer::builder(client_of(port("TEST_KINESIS_PORT")), STREAM)
        .application("billing")
        .starting_position(StartingPosition::TrimHorizon)
        .interval(Duration::from_millis(200))
        .checkpoint_interval(Duration::from_millis(200))
        .discovery_interval(Duration::from_secs(1))
        .lease_duration(LEASE)
        .worker_id(std::env::var("TEST_WORKER").unwrap())
        .store(DynamoDbStore::new(client, TABLE))
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
async fn fleet_with_faults_loses_no_record() {
    let seconds = std::env::var("FLEET_SECONDS").map_or(40, |seconds| seconds.parse().unwrap());
    let seed = std::env::var("FLEET_SEED")
        .map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    println!("FLEET_SEED={seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let (client, port) = start_kinesis().await.unwrap();
    create_stream(&client, STREAM, SHARDS).await.unwrap();
    let (server, _store) = DynamoDbServer::with_table().await;
    let mut fleet = Fleet {
        server,
        port,
        tally: Arc::default(),
        last: Arc::default(),
        workers: Vec::new(),
        begun: 0,
    };
    for _ in 0..WORKERS {
        fleet.start_worker();
    }
    let put = Arc::new(Mutex::new(0));
    let writing = tokio::spawn({
        let put = Arc::clone(&put);
        async move {
            loop {
                let first = *put.lock().unwrap();
                put_numbers(&client, STREAM, first..first + RATE / 10).await.unwrap();
                *put.lock().unwrap() = first + RATE / 10;
                sleep(Duration::from_millis(100)).await;
            }
        }
    });
    let started = Instant::now();
    while fleet.last.lock().unwrap().len() < usize::try_from(SHARDS).unwrap() {
        assert!(started.elapsed() < Duration::from_secs(30), "expected the fleet to start");
        sleep(Duration::from_millis(50)).await;
    }
    let end = Instant::now() + Duration::from_secs(seconds);
    let (mut happened, mut longest) = (0, Duration::ZERO);
    while Instant::now() < end {
        let (what, took) = fleet.inject_fault(&mut rng).await;
        happened += 1;
        longest = longest.max(took);
        assert!(
            took <= READ_AGAIN + DELAY,
            "{what}: expected every shard to be read within {:?}; FLEET_SEED={seed}",
            READ_AGAIN + DELAY
        );
        sleep(Duration::from_millis(rng.u64(0..4000))).await;
    }
    writing.abort();
    let put = *put.lock().unwrap();
    let began = Instant::now();
    loop {
        let read: BTreeSet<usize> = fleet.tally.lock().unwrap().read.keys().copied().collect();
        let lost = (0..put).filter(|number| !read.contains(number)).count();
        if lost == 0 {
            break;
        }
        let waited = began.elapsed();
        assert!(waited < Duration::from_secs(60), "{lost} of {put} records are lost");
        sleep(Duration::from_millis(100)).await;
    }
    let tally = fleet.tally.lock().unwrap();
    println!(
        "{put} records, {} workers, {happened} faults: {} redelivered, {:?} late, every shard read \
         again within {longest:?}",
        fleet.begun,
        tally.repeated(),
        tally.late().0,
    );
    assert_epochs_held(&tally, seed);
    let allowed = happened * MAX_REPEATED;
    assert!(
        tally.repeated() <= allowed,
        "expected at most {allowed} redelivered records, got {}; FLEET_SEED={seed}",
        tally.repeated()
    );
}
