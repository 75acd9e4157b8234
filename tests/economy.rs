//! The cost of a record in allocations and instructions, from the SDK's HTTP connector to the
//! caller. Both are counted, so they are the same on any machine under any load. The benchmarks
//! measure time.
//!
//!     cargo test --features testing --test economy -- --include-ignored --skip subject
//!
//! The instructions have bounds for the build of the tests, and lower ones for `--release`.
//!
//! Streams of two lengths are read, and the cost of a record is computed from the difference, which
//! does not include the cost of the start. For allocations, the responses differ in length, so that
//! the cost of a call is not included: nearly all of its 550 allocations are the SDK's. For
//! instructions, the number of responses differs.
// Tests and their helpers report failures by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/canned.rs"]
mod canned;
#[path = "support/drain.rs"]
mod drain;
#[path = "support/in_memory.rs"]
mod in_memory;

use std::process::Command;
use std::time::Duration;

use allocation_counter::measure;
use aws_sdk_kinesis::Client;
use canned::{Contents, MAX_RECORDS};
use drain::drain;
use kinestream::{CheckpointOn, Consumer, StartingPosition, WireFormat};

/// The two lengths of a response, in records.
const LENGTHS: [usize; 2] = [MAX_RECORDS / 2, MAX_RECORDS];

/// The responses whose allocations are counted.
const ANSWERS: usize = 32;

/// A consumer and the size of its records. It reads a stream of one shard to its end.
#[derive(Debug, Clone, Copy)]
struct Subject {
    wire_format: WireFormat,
    checkpoint_on: CheckpointOn,
    record_bytes: usize,
}

impl Subject {
    fn contents(self, max_records: usize, answers: usize) -> Contents {
        let record_bytes = self.record_bytes;
        Contents { shards: 1, record_bytes, max_records, answers, is_packed: false }
    }

    async fn read(self, client: Client, stream: &str, records: usize) {
        let consumer = Consumer::builder(client, stream)
            .starting_position(StartingPosition::TrimHorizon)
            // Under valgrind, the wall clock runs ahead of the paused clock.
            .lease_duration(Duration::from_secs(24 * 60 * 60))
            .wire_format(self.wire_format)
            .checkpoint_on(self.checkpoint_on);
        let is_ack = self.checkpoint_on == CheckpointOn::Ack;
        drain(consumer.build().unwrap().records(), records, is_ack).await;
    }

    /// Reads these contents inside `watch`. The responses are built before.
    fn run<T>(self, contents: Contents, watch: impl FnOnce(&mut dyn FnMut()) -> T) -> T {
        let stream = contents.stream(0);
        let client = in_memory::client(&stream);
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().start_paused(true).build().unwrap();
        watch(&mut || runtime.block_on(self.read(client.clone(), &stream, contents.records())))
    }

    /// Returns the allocations and bytes per record.
    #[allow(clippy::cast_precision_loss)]
    fn allocations(self) -> (f64, f64) {
        let [short, long] = LENGTHS.map(|records| {
            let contents = self.contents(records, ANSWERS);
            (contents.records(), self.run(contents, |read| measure(read)))
        });
        let records = (long.0 - short.0) as f64;
        let count = long.1.count_total - short.1.count_total;
        let bytes = long.1.bytes_total - short.1.bytes_total;
        (count as f64 / records, bytes as f64 / records)
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
                .env("SUBJECT", self.to_words(answers))
                .output()
                .expect("valgrind is installed");
            let text = String::from_utf8_lossy(&output.stderr);
            let count = text.lines().find_map(|line| line.split_once("Collected : "));
            let count = count
                .unwrap_or_else(|| {
                    panic!("no count of instructions in the output of valgrind: {text}")
                })
                .1;
            (self.contents(MAX_RECORDS, answers).records(), count.trim().parse::<usize>().unwrap())
        });
        (long.1 - short.1) as f64 / (long.0 - short.0) as f64
    }

    /// Describes the subject and the number of responses for [`subject`].
    fn to_words(self, answers: usize) -> String {
        let is_json = self.wire_format == WireFormat::Json;
        let is_ack = self.checkpoint_on == CheckpointOn::Ack;
        format!("{is_json} {is_ack} {} {answers}", self.record_bytes)
    }

    fn of_words(words: &str) -> (Self, usize) {
        let mut words = words.split(' ');
        let mut is = || words.next() == Some("true");
        let wire_format = if is() { WireFormat::Json } else { WireFormat::Auto };
        let checkpoint_on = if is() { CheckpointOn::Ack } else { CheckpointOn::Pull };
        let mut number = || words.next().unwrap().parse().unwrap();
        (Self { wire_format, checkpoint_on, record_bytes: number() }, number())
    }
}

/// The body of the child processes that run under valgrind.
#[test]
#[ignore = "run by record_takes_few_instructions under valgrind"]
fn subject() {
    let (subject, answers) = Subject::of_words(&std::env::var("SUBJECT").unwrap());
    subject.run(subject.contents(MAX_RECORDS, answers), |read| read());
}

#[test]
fn record_takes_no_allocation_and_no_second_copy_of_its_response() {
    for record_bytes in [100, 1000] {
        for wire_format in [WireFormat::Auto, WireFormat::Json] {
            for checkpoint_on in [CheckpointOn::Pull, CheckpointOn::Ack] {
                let subject = Subject { wire_format, checkpoint_on, record_bytes };
                let (count, bytes) = subject.allocations();
                let is_cbor = wire_format == WireFormat::Auto;
                let response = subject.contents(MAX_RECORDS, 1).response_bytes_a_record(is_cbor);
                println!(
                    "{subject:?}: {count:.4} allocations and {bytes:.0} bytes per record, of which \
                     the response has {response:.0}"
                );
                // Two allocations for each run of 128 records, and some for each second of a pause.
                assert!(count < 0.03, "{count}");
                // The buffer of the response, and the index with its 48 bytes for each record.
                assert!(bytes < 1.1 * response + 60.0, "{bytes}");
            }
        }
    }
}

#[test]
#[ignore = "needs valgrind, and takes a minute"]
fn record_takes_few_instructions() {
    use CheckpointOn::{Ack, Pull};
    use WireFormat::{Auto, Json};
    // The instructions in the build of the tests, and 15 % more as a margin for compilers that inline
    // differently; the instructions in a release build, and 5 % more. About 100 of them read the wall
    // clock and the monotonic clock: a process that was suspended must notice it before it delivers
    // another record.
    let bounds = [
        (Auto, Pull, 100, 4_640.0, 1_430.0),
        (Auto, Ack, 100, 4_680.0, 1_490.0),
        (Auto, Pull, 1000, 4_790.0, 1_560.0),
        (Auto, Pull, 10_000, 6_980.0, 3_180.0),
        (Json, Pull, 100, 7_520.0, 4_080.0),
        (Json, Pull, 1000, 10_700.0, 6_080.0),
        (Json, Pull, 10_000, 41_950.0, 25_670.0),
    ];
    for (wire_format, checkpoint_on, record_bytes, of_tests, of_release) in bounds {
        let subject = Subject { wire_format, checkpoint_on, record_bytes };
        let bound = if cfg!(debug_assertions) { of_tests } else { of_release };
        let instructions = subject.instructions();
        println!("{subject:?}: {instructions:.0} instructions per record");
        assert!(instructions < bound, "expected fewer than {bound:.0} instructions");
    }
}
