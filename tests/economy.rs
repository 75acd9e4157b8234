//! The cost of reading beyond that of a bare loop around the SDK, in allocations and instructions.
//! Both are counted, so they are the same on any machine under any load. The benchmarks measure
//! time.
//!
//!     cargo test --features testing --test economy -- --include-ignored --skip subject
//!
//! Streams of two lengths are read. The cost of a record is computed from the difference, which
//! does not include the cost of the start.
// Tests and their helpers report failures by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/bare.rs"]
mod bare;
#[path = "support/canned.rs"]
mod canned;
#[path = "support/drain.rs"]
mod drain;
#[path = "support/in_memory.rs"]
mod in_memory;

use std::process::Command;
use std::time::Duration;

use allocation_counter::{AllocationInfo, measure};
use aws_sdk_kinesis::Client;
use canned::{Contents, MAX_RECORDS};
use drain::drain;
use kinestream::{CheckpointOn, Consumer, StartingPosition, WireFormat};

/// The two lengths of a stream, in responses.
const LENGTHS: [usize; 2] = [16, 48];

#[derive(Debug, Clone, Copy, PartialEq)]
enum Reader {
    Bare,
    Pull,
    Ack,
}

/// A reader and the size of its records. It reads a stream of 16 shards to its end, or of one shard
/// with the bare loop.
#[derive(Debug, Clone, Copy)]
struct Subject {
    reader: Reader,
    record_bytes: usize,
}

impl Subject {
    fn contents(self, answers: usize) -> Contents {
        let shards = if self.reader == Reader::Bare { 1 } else { 16 };
        Contents { shards, record_bytes: self.record_bytes, max_records: MAX_RECORDS, answers }
    }

    async fn read(self, client: Client, stream: &str, records: usize) {
        if self.reader == Reader::Bare {
            return bare::read(&client, stream, 1, records).await;
        }
        let acknowledged = self.reader == Reader::Ack;
        let consumer = Consumer::builder(client, stream)
            .starting_position(StartingPosition::TrimHorizon)
            .wire_format(WireFormat::Json)
            // Under valgrind, the wall clock runs ahead of the paused clock.
            .lease_duration(Duration::from_secs(24 * 60 * 60))
            .checkpoint_on(if acknowledged { CheckpointOn::Ack } else { CheckpointOn::Pull });
        drain(consumer.build().unwrap().records(), records, acknowledged).await;
    }

    /// Reads this many responses inside `watch`. The responses are built before.
    fn run<T>(self, answers: usize, watch: impl FnOnce(&mut dyn FnMut()) -> T) -> T {
        let contents = self.contents(answers);
        let stream = contents.stream(0);
        let client = in_memory::client(&stream);
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().start_paused(true).build().unwrap();
        watch(&mut || runtime.block_on(self.read(client.clone(), &stream, contents.records())))
    }

    /// Returns the number of records and the allocations for each of the two lengths.
    fn allocations(self) -> [(usize, AllocationInfo); 2] {
        LENGTHS.map(|answers| {
            (self.contents(answers).records(), self.run(answers, |read| measure(read)))
        })
    }

    /// Returns the instructions per record, as counted by valgrind.
    #[allow(clippy::cast_precision_loss)]
    fn instructions(self) -> f64 {
        // A start makes a few calls more or less, depending on the wall clock. A large difference
        // in length hides them.
        let [short, long] = [2, 14].map(|answers| {
            let output = Command::new("valgrind")
                .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
                .arg(std::env::current_exe().unwrap())
                .args(["--ignored", "--exact", "subject"])
                .env("SUBJECT", format!("{:?} {} {answers}", self.reader, self.record_bytes))
                .output()
                .expect("valgrind is installed");
            let text = String::from_utf8_lossy(&output.stderr);
            let count = text.lines().find_map(|line| line.split_once("Collected : "));
            let count = count
                .unwrap_or_else(|| {
                    panic!("no count of instructions in the output of valgrind: {text}")
                })
                .1;
            (self.contents(answers).records(), count.trim().parse::<usize>().unwrap())
        });
        (long.1 - short.1) as f64 / (long.0 - short.0) as f64
    }
}

/// The body of the child processes that run under valgrind.
#[test]
#[ignore = "run by record_takes_few_instructions under valgrind"]
fn subject() {
    let subject = std::env::var("SUBJECT").unwrap();
    let mut words = subject.split(' ');
    let reader = match words.next() {
        Some("Bare") => Reader::Bare,
        Some("Pull") => Reader::Pull,
        _ => Reader::Ack,
    };
    let mut number = || words.next().unwrap().parse().unwrap();
    let subject = Subject { reader, record_bytes: number() };
    subject.run(number(), |read| read());
}

/// Returns the allocations and bytes per record, from the difference of the two lengths.
#[allow(clippy::cast_precision_loss)]
fn per_record([short, long]: &[(usize, AllocationInfo); 2]) -> (f64, f64) {
    let records = (long.0 - short.0) as f64;
    let (count, bytes) =
        (long.1.count_total - short.1.count_total, long.1.bytes_total - short.1.bytes_total);
    (count as f64 / records, bytes as f64 / records)
}

#[test]
fn record_takes_no_allocation_and_no_copy_of_its_payload() {
    for record_bytes in [100, 1000] {
        let bare = per_record(&Subject { reader: Reader::Bare, record_bytes }.allocations());
        for reader in [Reader::Pull, Reader::Ack] {
            let ours = per_record(&Subject { reader, record_bytes }.allocations());
            let (count, bytes) = (ours.0 - bare.0, ours.1 - bare.1);
            println!(
                "{reader:?}, {record_bytes} bytes: {count:.3} allocations and {bytes:.0} bytes per \
                 record beyond the {:.2} and {:.0} of the bare loop",
                bare.0, bare.1
            );
            // A few allocations for each run of 128 records.
            assert!(count < 0.02, "{count}");
            assert!(bytes < 10.0, "{bytes}");
        }
    }
}

#[test]
#[ignore = "needs valgrind, and takes a minute"]
fn record_takes_few_instructions() {
    let record_bytes = 100;
    let bare = Subject { reader: Reader::Bare, record_bytes }.instructions();
    for reader in [Reader::Pull, Reader::Ack] {
        let more = Subject { reader, record_bytes }.instructions() - bare;
        println!(
            "{reader:?}: {more:.0} instructions per record beyond the {bare:.0} of the bare loop"
        );
        // In the build of the tests, `Pull` takes 1,350 instructions and `Ack` 1,440. About 250 of
        // them read the wall clock and the monotonic clock: a process that was suspended must
        // notice it before it delivers another record. The rest of the bound is a margin for
        // compilers that inline differently.
        assert!(more < 1500.0, "{more}");
    }
}
