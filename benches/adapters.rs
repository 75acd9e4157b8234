//! Measures what the adapters cost per record, beyond the combinators of `futures`.
//!
//!     cargo bench --features testing --bench adapters
//!
//! Options after `--`: `--rounds 9`.
//!
//! The records are read from the in-memory Kinesis before the measurement: 100,000 of 1,000 keys in
//! random order. A handler acknowledges its record, and is ready at its first poll (`ready`) or at
//! its second (`yields`), so that all slots are occupied.
//!
//! Each round measures every subject once, in random order, in CPU time of this thread. The table
//! has the minimum of all rounds, which other work affects least.
// A benchmark panics on any failure.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::cast_precision_loss)]

use std::collections::BTreeMap;
use std::time::Duration;

use cpu_time::ThreadTime;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use kinestream::testing::Kinesis;
use kinestream::{CheckpointOn, Consumer, Record, RecordStreamExt, Result, StartingPosition};
use tokio::runtime::{Builder, Runtime};

const KEYS: usize = 1000;
const RECORDS: usize = 100_000;
const SLOTS: usize = 64;

const SUBJECTS: [&str; 8] = [
    "buffer_unordered, ready",
    "buffer_by_key, ready",
    "buffer_unordered, yields",
    "buffer_by_key, yields",
    "try_chunks(500)",
    "batches(500, 1 s)",
    "map_ok",
    "decode",
];

fn paused() -> Runtime {
    Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
}

/// Reads all records, on a paused clock.
fn read() -> Vec<Record> {
    paused().block_on(async {
        let kinesis = Kinesis::new();
        let orders = kinesis.create_stream("orders", 1);
        for _ in 0..RECORDS {
            let key = format!("customer-{}", fastrand::usize(..KEYS));
            orders.shard(0).put_as(&key, vec![0; 100]);
        }
        let consumer = Consumer::builder(kinesis.client(), "orders")
            .starting_position(StartingPosition::TrimHorizon)
            .checkpoint_on(CheckpointOn::Ack)
            .max_in_flight(RECORDS)
            .build()
            .unwrap();
        consumer.records().take(RECORDS).try_collect().await.unwrap()
    })
}

async fn handle(record: Record, yields: bool) -> Result<()> {
    if yields {
        tokio::task::yield_now().await;
    }
    record.ack();
    Ok(())
}

async fn count<T>(outputs: impl Stream<Item = Result<T>>) -> usize {
    outputs.map(Result::unwrap).count().await
}

async fn run(subject: &str, records: impl Stream<Item = Result<Record>>) {
    let yields = subject.ends_with("yields");
    let (name, _) = subject.split_once([',', '(']).unwrap_or((subject, ""));
    match name {
        "buffer_unordered" => {
            let handlers = records.map(|record| async move { handle(record?, yields).await });
            assert_eq!(count(handlers.buffer_unordered(SLOTS)).await, RECORDS);
        }
        "buffer_by_key" => {
            let handled = records.buffer_by_key(SLOTS, |record| handle(record, yields));
            assert_eq!(count(handled).await, RECORDS);
        }
        "try_chunks" => {
            let acknowledged = records.try_chunks(500).map(|chunk| {
                chunk.unwrap().iter().for_each(Record::ack);
                Ok(())
            });
            assert_eq!(count(acknowledged).await, RECORDS / 500);
        }
        "batches" => {
            let batches = records.batches(500, Duration::from_secs(1));
            assert_eq!(count(batches.map_ok(|batch| batch.ack())).await, RECORDS / 500);
        }
        "map_ok" => {
            let lengths = records.map_ok(|record| {
                let length = record.data().len();
                (length, record)
            });
            assert_eq!(count(lengths.map_ok(|(_, record)| record.ack())).await, RECORDS);
        }
        "decode" => {
            let decoded = records.decode(|record| Ok::<_, kinestream::Error>(record.data().len()));
            let acknowledged = decoded.map(|decoded| {
                decoded.unwrap().ack();
                Ok(())
            });
            assert_eq!(count(acknowledged).await, RECORDS);
        }
        _ => unreachable!("expected a subject, got {name}"),
    }
}

/// Returns the nanoseconds of CPU time per record.
fn measure(subject: &str) -> f64 {
    let records = stream::iter(read()).map(Ok);
    let runtime = Builder::new_current_thread().enable_time().build().unwrap();
    let began = ThreadTime::now();
    runtime.block_on(run(subject, records));
    began.elapsed().as_nanos() as f64 / RECORDS as f64
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // `cargo test --benches` ends at once.
    if !arguments.iter().any(|argument| argument == "--bench") {
        println!("run with `cargo bench --features testing --bench adapters`");
        return;
    }
    let at = arguments.iter().position(|argument| argument == "--rounds");
    let rounds = at.map_or(9, |at| arguments[at + 1].parse().expect("--rounds needs a number"));
    let mut least = BTreeMap::from(SUBJECTS.map(|subject| (subject, f64::MAX)));
    for _ in 0..rounds {
        let mut subjects = SUBJECTS;
        fastrand::shuffle(&mut subjects);
        for subject in subjects {
            let cost = measure(subject);
            let least = least.get_mut(subject).unwrap();
            *least = least.min(cost);
        }
    }
    println!("{:<26}{:>16}{:>16}", "subject", "ns per record", "beyond futures");
    for pair in SUBJECTS.chunks_exact(2) {
        let [base, adapter] = [least[pair[0]], least[pair[1]]];
        println!("{:<26}{base:>16.0}", pair[0]);
        println!("{:<26}{adapter:>16.0}{:>16.0}", pair[1], adapter - base);
    }
}
