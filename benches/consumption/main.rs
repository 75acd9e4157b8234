//! What reading costs, next to the bare loop of the SDK.
//!
//!     RUSTFLAGS='--cfg kinestream_unpaced' cargo bench --bench consumption
//!
//! The flag lets a shard that is behind be read without a pause. Behind `--`: `--rounds 5`, `--sizes 100,1000`, `--only records-16` or
//! `--only follow`, `--json FILE`.
//!
//! Canned answers come over loopback from a process of their own. Each measurement is a process of
//! its own as well, on one thread: its CPU time, of all its threads, from before the first call of
//! a reader to its last record, and the most memory it held. In each round every subject is
//! measured once, in a random order. It is compared with the bare loop twice: in each round, which
//! shows how far the machine's other work makes the figures spread, and the least of all rounds with
//! the least, which that work has added to the least.
// A benchmark that cannot go on says so by a panic.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../tests/support/bare.rs"]
mod bare;
#[path = "../../tests/support/canned.rs"]
mod canned;
#[path = "../../tests/support/drain.rs"]
mod drain;
#[path = "../../examples/support/mod.rs"]
mod ferrokinesis_server;
#[path = "../../tests/support/following.rs"]
mod following;
#[path = "../../tests/support/free_port.rs"]
mod free_port;
mod idle;
#[path = "../../tests/support/peak.rs"]
mod peak;
#[path = "../../tests/support/redis.rs"]
mod redis_server;
mod report;
mod server;
mod subject;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use idle::{Effort, Following};
use redis_server::RedisServer;
use report::Report;
use serde::Serialize;
use serde::de::DeserializeOwned;
use subject::{Reader, Subject, Task};

/// As many bytes as make a few seconds of reading.
const BYTES: usize = 1500 << 20;

/// As many answers at least, since a start costs one for each of 16 shards: nobody knows yet how
/// long they are, and those for which there is no room are turned away when they are on their way.
const FEWEST_ANSWERS: usize = 150;

const MOST_ANSWERS: usize = 600;

fn subjects() -> Vec<Subject> {
    let subject = |name: &str, reader, shards| Subject {
        name: name.to_owned(),
        reader,
        shards,
        ack: false,
        redis: false,
    };
    let records = |name: &str, shards| subject(name, Reader::Records, shards);
    vec![
        subject("bare", Reader::Bare, 1),
        subject("bare-16", Reader::Bare, 16),
        subject("shards-1", Reader::Shards, 1),
        records("records-1", 1),
        records("records-16", 16),
        records("records-256", 256),
        Subject { ack: true, ..records("records-16-ack", 16) },
        Subject { redis: true, ..records("records-16-redis", 16) },
        Subject { ack: true, redis: true, ..records("records-16-redis-ack", 16) },
    ]
}

struct Options {
    rounds: usize,
    sizes: Vec<usize>,
    only: Option<String>,
    json: Option<String>,
}

impl Options {
    fn of(arguments: &[String]) -> Self {
        let value = |name: &str| {
            let at = arguments.iter().position(|argument| argument == name)?;
            Some(arguments.get(at + 1).unwrap_or_else(|| panic!("{name} wants a value")).clone())
        };
        let sizes = value("--sizes").unwrap_or_else(|| "100,1000,10000,1000000".to_owned());
        Self {
            rounds: value("--rounds").map_or(5, |rounds| rounds.parse().expect("a number")),
            sizes: sizes.split(',').map(|size| size.parse().expect("a number")).collect(),
            only: value("--only"),
            json: value("--json"),
        }
    }
}

/// A process of this program, which is killed when it is dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn this_program(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(arguments);
    command
}

fn start_server() -> (Server, u16) {
    let mut child = this_program(&["serve"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut port = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut port).unwrap();
    (Server(child), port.trim().parse().unwrap())
}

/// What a process of its own finds.
fn run<T: DeserializeOwned>(what: &str, task: &impl Serialize) -> T {
    let task = serde_json::to_string(task).unwrap();
    let output = this_program(&[what, &task]).stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "{task}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What [`run`] asks for, in the process that finds it.
fn tell<T: DeserializeOwned, F: Serialize>(task: &str, measure: impl FnOnce(&T) -> F) {
    let task = serde_json::from_str(task).unwrap();
    println!("{}", serde_json::to_string(&measure(&task)).unwrap());
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("serve") => server::serve(),
        Some("read") => tell(&arguments[1], subject::measure),
        Some("follow") => tell(&arguments[1], idle::measure),
        // So do `cargo test --benches` and an accidental build with pauses end at once.
        _ if !cfg!(kinestream_unpaced) => {
            println!(
                "build it with RUSTFLAGS='--cfg kinestream_unpaced', or it measures the pauses of Kinesis"
            );
        }
        _ => compare(&Options::of(&arguments)),
    }
}

/// Compares what it takes to follow shards that have nothing new: the least CPU and the most memory
/// of some rounds.
fn follow() {
    const ROUNDS: u32 = 3;
    let (_server, kinesis) = start_server();
    let mut least = [Effort { cores: f64::MAX, peak_bytes: 0 }; 2];
    for round in 0..ROUNDS {
        for (by_crate, least) in [false, true].into_iter().zip(&mut least) {
            eprintln!("{} shards without news, by the crate: {by_crate}", idle::SHARDS);
            let effort: Effort = run("follow", &Following { by_crate, kinesis, round });
            least.cores = least.cores.min(effort.cores);
            least.peak_bytes = least.peak_bytes.max(effort.peak_bytes);
        }
    }
    let [bare, ours] = least;
    let mebibytes = |effort: Effort| effort.peak_bytes >> 20;
    println!(
        "{} shards without news, asked each second: {:.2} % of a core and {} MiB, beside {:.2} % \
         and {} MiB by loops of the SDK",
        idle::SHARDS,
        ours.cores * 100.0,
        mebibytes(ours),
        bare.cores * 100.0,
        mebibytes(bare),
    );
}

fn compare(options: &Options) {
    let redis = RedisServer::start(&[]);
    let mut report = Report::default();
    let mut unique = 0;
    let follows = options.only.as_deref().is_none_or(|only| only == "follow");
    let sizes = if options.only.as_deref() == Some("follow") { &[][..] } else { &options.sizes };
    for &record_bytes in sizes {
        for round in 0..options.rounds {
            // One for each round: it keeps the answers of every stream.
            let (_server, kinesis) = start_server();
            let mut subjects = subjects();
            let wanted = |subject: &Subject| {
                subject.name == "bare"
                    || options.only.as_ref().is_none_or(|only| subject.name == *only)
            };
            subjects.retain(wanted);
            fastrand::shuffle(&mut subjects);
            for subject in subjects {
                unique += 1;
                let an_answer =
                    canned::Contents { shards: 1, record_bytes, answers: 1 }.records_an_answer();
                let answers =
                    (BYTES / (an_answer * record_bytes)).clamp(FEWEST_ANSWERS, MOST_ANSWERS);
                let redis = redis.url();
                let task = Task { subject, kinesis, redis, record_bytes, answers, unique };
                eprintln!("{record_bytes} bytes, round {}: {}", round + 1, task.subject.name);
                report.add(record_bytes, round, &task.subject.name, run("read", &task));
            }
        }
    }
    if !sizes.is_empty() {
        println!("{report}");
    }
    if follows {
        follow();
    }
    if let Some(file) = &options.json {
        std::fs::write(file, report.to_json()).unwrap();
    }
}
