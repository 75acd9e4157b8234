//! Measures the cost of reading, in comparison with the bare SDK loop.
//!
//!     cargo bench --bench consumption
//!
//! Options after `--`: `--rounds 5`, `--sizes 100,1000`, `--only records-16` or `--only follow`,
//! `--json FILE`.
//!
//! Every reader keeps the limits of Kinesis, so it pauses as it would there; CPU time counts no
//! pauses. The responses are those of shards at their write limit: 1,000 records or 1 MB.
//!
//! A separate process serves canned responses over loopback. Each measurement is a process of its
//! own as well, on one thread. It measures the CPU time of all its threads, from before the
//! reader's first call to its last record, and the peak memory. Each round measures every subject
//! once, in random order.
//!
//! Each subject is compared with the bare loop in two ways. The ratios within each round show how
//! far other work on the machine spreads the figures. The ratio of the minima of all rounds is the
//! one that other work affects least.
// A benchmark panics on any failure.
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

/// The number of responses to read: about ten seconds of reading from 16 shards.
const ANSWERS: usize = 400;

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
        subject("bare", Reader::Bare, 16),
        records("records-16", 16),
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
            Some(arguments.get(at + 1).unwrap_or_else(|| panic!("{name} needs a value")).clone())
        };
        let sizes = value("--sizes").unwrap_or_else(|| "100,1000,10000".to_owned());
        Self {
            rounds: value("--rounds")
                .map_or(5, |rounds| rounds.parse().expect("--rounds needs a number")),
            sizes: sizes
                .split(',')
                .map(|size| size.parse().expect("--sizes needs numbers"))
                .collect(),
            only: value("--only"),
            json: value("--json"),
        }
    }
}

/// A process of this program. Dropping it kills the process.
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

/// Runs a measurement in a separate process and returns its result.
fn run<T: DeserializeOwned>(what: &str, task: &impl Serialize) -> T {
    let task = serde_json::to_string(task).unwrap();
    let output = this_program(&[what, &task]).stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "{task}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Runs the measurement in the process that [`run`] has started, and prints the result.
fn print_result<T: DeserializeOwned, F: Serialize>(task: &str, measure: impl FnOnce(&T) -> F) {
    let task = serde_json::from_str(task).unwrap();
    println!("{}", serde_json::to_string(&measure(&task)).unwrap());
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("serve") => server::serve(),
        Some("read") => print_result(&arguments[1], subject::measure),
        Some("follow") => print_result(&arguments[1], idle::measure),
        // `cargo test --benches` ends at once.
        _ if !arguments.iter().any(|argument| argument == "--bench") => {
            println!("run with `cargo bench --bench consumption`");
        }
        _ => compare(&Options::of(&arguments)),
    }
}

/// Compares the cost of following shards without new records: the minimum CPU and the maximum
/// memory of several rounds.
fn follow() {
    const ROUNDS: u32 = 3;
    let (_server, kinesis) = start_server();
    let mut least = [Effort { cores: f64::MAX, peak_bytes: 0 }; 2];
    for round in 0..ROUNDS {
        for (by_crate, least) in [false, true].into_iter().zip(&mut least) {
            eprintln!("{} idle shards, by the crate: {by_crate}", idle::SHARDS);
            let effort: Effort = run("follow", &Following { by_crate, kinesis, round });
            least.cores = least.cores.min(effort.cores);
            least.peak_bytes = least.peak_bytes.max(effort.peak_bytes);
        }
    }
    let [bare, ours] = least;
    let mebibytes = |effort: Effort| effort.peak_bytes >> 20;
    println!(
        "{} idle shards, polled every second: {:.2} % of a core and {} MiB; SDK loops: {:.2} % \
         and {} MiB",
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
            // A new server for each round, since it keeps the responses of every stream.
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
                let redis = redis.url();
                let task = Task { subject, kinesis, redis, record_bytes, unique };
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
