//! Measures the cost of reading, in comparison with the bare SDK loop.
//!
//!     cargo bench --features testing --bench consumption
//!
//! Options after `--`: `--rounds 5`, `--sizes 100,1000`, `--only cbor,json` or `--only follow`,
//! `--behind`, `--threads 2` (1 is a current-thread runtime), `--tls`, `--json FILE`.
//!
//! | subject | reads |
//! |---|---|
//! | `bare` | by `GetRecords` of the SDK, one task per shard; all shards call at the same time |
//! | `bare-spread` | the same, but each shard at its own time, as those of the consumer |
//! | `floor` | CBOR by a blocking socket, unsigned, one thread: see `floor.rs` |
//! | `floor-paced` | the same, with the calls as far apart as those of all shards |
//! | `cbor`, `cbor-ack` | by `Consumer::records`, with the default wire format |
//! | `json`, `json-ack` | by `Consumer::records`, with `WireFormat::Json` |
//! | `aggregated` | as `cbor`, user records of 100 B packed by a thousand |
//!
//! There are 16 shards, and the consumer saves its checkpoints in Redis. Every reader but `floor`
//! keeps the limits of Kinesis, so it pauses as it would there; CPU time counts no pauses. The
//! responses are those of shards at their write limit: 1,000 records or 1 MB. With `--behind`, they
//! are those of shards far behind: 10,000 records or 10 MB.
//!
//! A separate process serves canned responses over loopback. Each measurement is a process of its
//! own as well. It measures the CPU time of all its threads, and the peak memory. The first sixth
//! of the records is not measured: the consumer starts, and compares CBOR with JSON. Each round
//! measures every subject once, in random order.
//!
//! Each subject is compared with the bare loop in two ways. The ratios within each round show how
//! far other work on the machine spreads the figures. The ratio of the minima of all rounds is the
//! one that other work affects least. The last column is the ratio of the minima to the floor.
// A benchmark panics on any failure.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../tests/support/bare.rs"]
mod bare;
#[path = "../../tests/support/canned.rs"]
mod canned;
#[path = "../../tests/support/certificates.rs"]
mod certificates;
#[path = "../../tests/support/drain.rs"]
mod drain;
#[path = "../../examples/support/mod.rs"]
mod ferrokinesis_server;
mod floor;
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
#[path = "../../tests/support/server_process.rs"]
mod server_process;
mod subject;
mod tls;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use idle::{Effort, Following};
use redis_server::RedisServer;
use report::Report;
use serde::Serialize;
use serde::de::DeserializeOwned;
use subject::{Reader, Subject, Task};
use tls::Folder;

/// The size of the user records that are packed.
const PACKED_BYTES: usize = 100;

fn subjects(record_bytes: usize) -> Vec<Subject> {
    let subject = |name: &str, reader| Subject { name: name.to_owned(), reader };
    let records = |is_json, is_ack| Reader::Records { is_json, is_ack, is_packed: false };
    let mut subjects = vec![
        subject("bare", Reader::Bare { are_spread: false }),
        subject("bare-spread", Reader::Bare { are_spread: true }),
        subject("floor", Reader::Floor { is_paced: false }),
        subject("floor-paced", Reader::Floor { is_paced: true }),
        subject("cbor", records(false, false)),
        subject("cbor-ack", records(false, true)),
        subject("json", records(true, false)),
        subject("json-ack", records(true, true)),
    ];
    if record_bytes == PACKED_BYTES {
        let packed = Reader::Records { is_json: false, is_ack: false, is_packed: true };
        subjects.push(subject("aggregated", packed));
    }
    subjects
}

struct Options {
    rounds: usize,
    sizes: Vec<usize>,
    is_behind: bool,
    threads: usize,
    is_tls: bool,
    only: Option<Vec<String>>,
    json: Option<String>,
}

impl Options {
    fn of(arguments: &[String]) -> Self {
        let flag = |name: &str| arguments.iter().any(|argument| argument == name);
        let value = |name: &str| {
            let at = arguments.iter().position(|argument| argument == name)?;
            Some(arguments.get(at + 1).unwrap_or_else(|| panic!("{name} needs a value")).clone())
        };
        let number = |name: &str, default: usize| {
            value(name).map_or(default, |number| {
                number.parse().unwrap_or_else(|_| panic!("{name} needs a number"))
            })
        };
        let sizes = value("--sizes").unwrap_or_else(|| "100,1000,10000".to_owned());
        Self {
            rounds: number("--rounds", 5),
            sizes: sizes
                .split(',')
                .map(|size| size.parse().expect("--sizes needs numbers"))
                .collect(),
            is_behind: flag("--behind"),
            threads: number("--threads", 2),
            is_tls: flag("--tls"),
            only: value("--only").map(|names| names.split(',').map(str::to_owned).collect()),
            json: value("--json"),
        }
    }

    fn includes(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|only| only.iter().any(|wanted| wanted == name))
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

/// Starts a server, which serves over TLS if there are certificates.
fn start_server(certificates: Option<&Folder>) -> (Server, u16) {
    let mut arguments = vec!["serve"];
    arguments.extend(certificates.map(|folder| folder.path().to_str().unwrap()));
    let mut child = this_program(&arguments).stdout(Stdio::piped()).spawn().unwrap();
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
        Some("serve") => {
            server::serve(arguments.get(1).map(|path| Folder::of(path)).as_ref());
        }
        Some("read") => print_result(&arguments[1], subject::measure),
        Some("follow") => print_result(&arguments[1], idle::measure),
        // `cargo test --benches` ends at once.
        _ if !arguments.iter().any(|argument| argument == "--bench") => {
            println!("run with `cargo bench --features testing --bench consumption`");
        }
        _ => compare(&Options::of(&arguments)),
    }
}

/// Compares the cost of following shards without new records: the minimum CPU and the maximum
/// memory of several rounds.
fn follow() {
    const ROUNDS: u32 = 3;
    let (_server, kinesis) = start_server(None);
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
    let certificates = options.is_tls.then(Folder::create);
    let mut report = Report::default();
    let mut unique = 0;
    let follows = options.includes("follow");
    let only_follows = options.only.as_deref().is_some_and(|only| *only == ["follow"]);
    let sizes = if only_follows { &[][..] } else { &options.sizes };
    for &record_bytes in sizes {
        for round in 0..options.rounds {
            // A new server for each round, since it keeps the responses of every stream.
            let (_server, kinesis) = start_server(certificates.as_ref());
            let mut subjects = subjects(record_bytes);
            let is_reference =
                |name: &str| ["bare", "bare-spread", "floor", "floor-paced"].contains(&name);
            subjects
                .retain(|subject| is_reference(&subject.name) || options.includes(&subject.name));
            fastrand::shuffle(&mut subjects);
            for subject in subjects {
                unique += 1;
                let task = Task {
                    subject,
                    kinesis,
                    redis: redis.url(),
                    certificates: certificates.clone(),
                    record_bytes,
                    is_behind: options.is_behind,
                    threads: options.threads,
                    unique,
                };
                eprintln!("{record_bytes} bytes, round {}: {}", round + 1, task.subject.name);
                report.add(record_bytes, round, &task.subject.name, run("read", &task));
            }
        }
    }
    if let Some(folder) = certificates {
        folder.remove();
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
