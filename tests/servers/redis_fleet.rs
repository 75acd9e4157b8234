//! Worker processes that share the shards: they are killed, suspended and ended, and so is their
//! Redis, with what it had written and without.
//!
//! `FLEET_SECONDS` says for how long; the default suits a run of all tests.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::StreamExt;
use kinestream::{Consumer, RedisStore, StartingPosition};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

use crate::ferrokinesis_server::{client_of, create_stream, put_numbers, start_kinesis};
use crate::redis_server::RedisServer;

const STREAM: &str = "orders";
const SHARDS: i32 = 8;
const WORKERS: usize = 4;
const LEASE: Duration = Duration::from_secs(2);

/// Records are put at this rate, a second.
const RATE: usize = 200;

/// What is finished in two checkpoint intervals of 100 ms and what a save takes, of the shards of
/// one worker; a store that comes back empty has it from all of them.
const MOST_REPEATED: usize = RATE / 2;

/// What was read of a shard in one epoch: by whom, and when each record.
struct Tenancy {
    worker: String,
    read: Vec<Duration>,
}

/// What the workers say together.
#[derive(Default)]
struct Tally {
    /// How often each record was read.
    read: BTreeMap<usize, usize>,
    /// By shard and epoch.
    tenancies: BTreeMap<(String, u64), Tenancy>,
    /// How often each worker was suspended.
    suspended: BTreeMap<String, usize>,
    /// From when to when it could show that Redis had forgotten.
    forgotten: Vec<(Duration, Duration)>,
    findings: Vec<String>,
}

impl Tally {
    fn hear(&mut self, worker: &str, shard: &str, epoch: u64, at: Duration, number: usize) {
        *self.read.entry(number).or_default() += 1;
        let new = || Tenancy { worker: worker.to_owned(), read: Vec::new() };
        let tenancy = self.tenancies.entry((shard.to_owned(), epoch)).or_insert_with(new);
        tenancy.read.push(at);
        if tenancy.worker != worker {
            let finding =
                format!("{} and {worker} have read {shard} in epoch {epoch}", tenancy.worker);
            self.findings.push(finding);
        }
    }

    fn repeated(&self) -> usize {
        self.read.values().map(|times| times - 1).sum()
    }

    /// How many records each worker has read after somebody had begun in a later epoch; and how
    /// many of them while Redis had forgotten who had the shard, which a worker hears with its next
    /// renewal.
    fn late(&self) -> (BTreeMap<&str, usize>, usize) {
        let (mut late, mut excused) = (BTreeMap::new(), 0);
        for ((shard, epoch), tenancy) in &self.tenancies {
            let later = (shard.clone(), epoch + 1)..=(shard.clone(), u64::MAX);
            let later =
                self.tenancies.range(later).filter_map(|(_, later)| later.read.iter().min());
            let Some(over) = later.min() else { continue };
            for at in tenancy.read.iter().filter(|at| *at > over) {
                if self.forgotten.iter().any(|(from, to)| from <= at && at <= to) {
                    excused += 1;
                } else {
                    *late.entry(&*tenancy.worker).or_default() += 1;
                }
            }
        }
        (late, excused)
    }
}

/// The time by the clock that all processes share.
fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

struct Fleet {
    redis: RedisServer,
    port: u16,
    tally: Arc<Mutex<Tally>>,
    workers: Vec<(String, Child)>,
    begun: usize,
    last_start: Instant,
    last_forgotten: Option<Instant>,
    /// How many records there are so far.
    put: Arc<Mutex<usize>>,
    /// How many may have been read anew by a worker that started as Redis came back without its data,
    /// and was there before anybody who knew of it.
    anew: usize,
}

impl Fleet {
    fn start_worker(&mut self) {
        let name = format!("worker-{}", self.begun);
        self.begun += 1;
        self.last_start = Instant::now();
        if self.last_forgotten.is_some_and(|forgotten| forgotten.elapsed() < LEASE) {
            self.anew += *self.put.lock().unwrap();
        }
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["redis_fleet::worker", "--exact", "--ignored", "--nocapture"])
            .env("TEST_KINESIS_PORT", self.port.to_string())
            .env("TEST_REDIS_URL", self.redis.url())
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
                if let Some((_, said)) = line.split_once("read ") {
                    let said: Vec<&str> = said.split(' ').collect();
                    let [shard, epoch, at, number] = said[..] else { panic!("{said:?}") };
                    let (epoch, number) = (epoch.parse().unwrap(), number.parse().unwrap());
                    let at = Duration::from_nanos(at.parse().unwrap());
                    tally.lock().unwrap().hear(&worker, shard, epoch, at, number);
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

    /// One of the things that happen, and what it was.
    async fn one_thing_happens(&mut self, rng: &mut fastrand::Rng) -> &'static str {
        let worker = rng.usize(..self.workers.len());
        let what = match rng.u8(..7) {
            0 | 1 => {
                self.workers[worker].1.kill().await.unwrap();
                self.workers.remove(worker);
                sleep(LEASE * rng.u32(0..3) / 2).await;
                self.start_worker();
                "a worker is killed, and another one starts"
            }
            2 | 3 => {
                self.signal(worker, "-STOP");
                let name = self.workers[worker].0.clone();
                *self.tally.lock().unwrap().suspended.entry(name).or_default() += 1;
                sleep(LEASE * rng.u32(1..6) / 2).await;
                self.signal(worker, "-CONT");
                "a worker is suspended"
            }
            4 => {
                let (_name, mut process) = self.workers.remove(worker);
                drop(process.stdin.take());
                assert!(
                    process.wait().await.unwrap().success(),
                    "a worker ends when it is told to"
                );
                self.start_worker();
                "a worker ends, and another one starts"
            }
            5 => {
                self.redis.kill();
                sleep(LEASE * rng.u32(0..6) / 2).await;
                self.redis.restart();
                "Redis restarts"
            }
            _ => {
                // Its process may not have reached Redis yet.
                if self.last_start.elapsed() < LEASE {
                    self.anew += *self.put.lock().unwrap();
                }
                self.redis.kill();
                sleep(LEASE * rng.u32(0..4) / 2).await;
                self.redis.forget();
                let began = now();
                self.redis.restart();
                self.last_forgotten = Some(Instant::now());
                let forgotten = (began, now() + LEASE);
                self.tally.lock().unwrap().forgotten.push(forgotten);
                "Redis restarts without its data"
            }
        };
        sleep(Duration::from_millis(rng.u64(0..4000))).await;
        what
    }
}

/// Like the readers of the other tests; it closes when its input ends.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by a_fleet_loses_nothing, as a process that it can kill"]
async fn worker() {
    let port = std::env::var("TEST_KINESIS_PORT").unwrap().parse().unwrap();
    let url = std::env::var("TEST_REDIS_URL").unwrap();
    let store = loop {
        // It may just be away.
        match RedisStore::connect(&url).await {
            Ok(store) => break store,
            Err(_error) => sleep(Duration::from_millis(100)).await,
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
    let (tell, mut told) = tokio::sync::oneshot::channel::<()>();
    std::thread::spawn(move || {
        let _end = std::io::stdin().read(&mut [0]);
        drop(tell);
    });
    loop {
        let record = tokio::select! {
            biased;
            _end = &mut told => break,
            record = records.next() => record.expect("goes on").expect("no error"),
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
async fn a_fleet_loses_nothing() {
    let seconds = std::env::var("FLEET_SECONDS").map_or(60, |seconds| seconds.parse().unwrap());
    let seed = std::env::var("FLEET_SEED")
        .map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    println!("FLEET_SEED={seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let (client, port) = start_kinesis().await.unwrap();
    create_stream(&client, STREAM, SHARDS).await.unwrap();
    let mut fleet = Fleet {
        redis: RedisServer::start(&["--appendonly", "yes", "--appendfsync", "always"]),
        port,
        tally: Arc::default(),
        workers: Vec::new(),
        begun: 0,
        last_start: Instant::now(),
        last_forgotten: None,
        put: Arc::default(),
        anew: 0,
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
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut happened = 0;
    let mut repeated = 0;
    while Instant::now() < end {
        let what = fleet.one_thing_happens(&mut rng).await;
        happened += 1;
        let before = std::mem::replace(&mut repeated, fleet.tally.lock().unwrap().repeated());
        if repeated > before + MOST_REPEATED {
            println!("{what}: {} repeated, of {}", repeated - before, put.lock().unwrap());
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
            "{} of {put} are lost, from {}",
            lost.len(),
            lost[0]
        );
        sleep(Duration::from_millis(100)).await;
    }
    let tally = fleet.tally.lock().unwrap();
    let (late, excused) = tally.late();
    println!(
        "{put} records, {happened} things happened to {} workers: {} repeated, {late:?} late, and \
         {excused} where Redis had forgotten",
        fleet.begun,
        tally.repeated(),
    );
    assert_eq!(tally.findings, [""; 0], "FLEET_SEED={seed}");
    for (worker, late) in late {
        // The one that it had in hand when it was suspended.
        let allowed = tally.suspended.get(worker).copied().unwrap_or(0);
        assert!(late <= allowed, "{worker} has read {late} records too late; FLEET_SEED={seed}");
    }
    let allowed = happened * MOST_REPEATED + fleet.anew;
    assert!(tally.repeated() <= allowed, "{} repeated; FLEET_SEED={seed}", tally.repeated());
}
