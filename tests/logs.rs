//! The log: few lines in normal operation, a warning for each problem, and no contents of records.
// Tests and their helpers report failures by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::cell::RefCell;
use std::io::Write;
use std::sync::Once;
use std::time::Duration;

use futures::StreamExt;
use kinestream::testing::{Kinesis, Outcome, aggregate};
use kinestream::{Consumer, ConsumerBuilder, MemoryStore, OnTrimmed, StartingPosition};
use tokio::time::timeout;
use tracing_subscriber::EnvFilter;

const SECOND: Duration = Duration::from_secs(1);

thread_local! {
    /// The log of this thread. All tasks of a test run on its thread.
    static LOG: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Appends to the log of the current thread. One subscriber serves the whole process, since a
/// subscriber of a single thread misses events that another thread was the first to reach.
struct ThreadLog;

impl Write for ThreadLog {
    fn write(&mut self, some: &[u8]) -> std::io::Result<usize> {
        LOG.with_borrow_mut(|log| log.write(some))
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn start_logging() {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        tracing_subscriber::fmt()
            .with_env_filter(EnvFilter::new("kinestream=trace"))
            .with_ansi(false)
            .with_writer(|| ThreadLog)
            .init();
    });
}

fn logged() -> String {
    LOG.with_borrow(|log| String::from_utf8(log.clone()).unwrap())
}

fn lines(level: &str) -> Vec<String> {
    let text = logged();
    let of_level = |line: &&str| line.split_whitespace().nth(1) == Some(level);
    text.lines().filter(of_level).map(str::to_owned).collect()
}

fn consumer(kinesis: &Kinesis) -> ConsumerBuilder {
    Consumer::builder(kinesis.client(), "orders").starting_position(StartingPosition::TrimHorizon)
}

#[tokio::test(start_paused = true)]
async fn healthy_consumer_logs_few_lines_and_no_contents_of_records() {
    start_logging();
    let kinesis = Kinesis::new();
    let orders = kinesis.create_stream("orders", 20);
    let consumer = consumer(&kinesis).build().unwrap();
    let mut records = consumer.records();
    for shard in orders.shards() {
        shard.put_as("a-secret-key", "a secret payload");
        records.next().await.unwrap().unwrap();
    }
    kinesis.next_calls("GetRecords", 5, Outcome::throttled());
    orders.shard(0).split();
    assert!(timeout(600 * SECOND, records.next()).await.is_err());
    consumer.close().await.unwrap();
    assert!(records.next().await.is_none());

    assert_eq!(lines("WARN"), [""; 0]);
    assert_eq!(lines("ERROR"), [""; 0]);
    let info = lines("INFO");
    assert_eq!(info.len(), 3, "expected one line for the worker and two for the split: {info:#?}");
    assert!(info[0].contains("worker joined"));
    let throttled = lines("DEBUG").into_iter().find(|line| line.contains("throttled"));
    let throttled = throttled.expect("a debug line of a throttled call");
    for field in ["shard{stream=\"orders\"", "application=\"default\"", "shardId-0000", "attempt=1"]
    {
        assert!(throttled.contains(field), "{field} in {throttled}");
    }
    let fetched = lines("TRACE").into_iter().find(|line| line.contains("fetched"));
    let fetched = fetched.expect("a trace line of a fetch");
    for field in ["shard{", "records=1", "sequence_number=\"4", "millis_behind_latest=0"] {
        assert!(fetched.contains(field), "{field} in {fetched}");
    }
    let all = logged();
    assert!(!all.contains("secret"), "{all}");
}

#[tokio::test(start_paused = true)]
async fn lost_records_are_logged_as_a_warning() {
    start_logging();
    let kinesis = Kinesis::new();
    let orders = kinesis.create_stream("orders", 1);
    let store = MemoryStore::new();
    let numbers: Vec<_> = (0..3).map(|number| orders.shard(0).put(number.to_string())).collect();
    let read = async || {
        let builder = consumer(&kinesis).store(store.clone()).on_trimmed(OnTrimmed::TrimHorizon);
        let consumer = builder.build().unwrap();
        consumer.records().next().await.unwrap().unwrap().ack();
        consumer.close().await.unwrap();
    };
    read().await;
    orders.shard(0).trim(2);
    read().await;
    let warnings = lines("WARN");
    assert_eq!(warnings.len(), 1, "{warnings:#?}");
    for part in ["records lost", "shardId-000000000000", numbers[0].as_str(), "TRIM_HORIZON"] {
        assert!(warnings[0].contains(part), "{part} in {}", warnings[0]);
    }
}

#[tokio::test(start_paused = true)]
async fn left_out_user_records_are_logged_as_one_warning_per_shard() {
    start_logging();
    let kinesis = Kinesis::new();
    let orders = kinesis.create_stream("orders", 2);
    let mut records = consumer(&kinesis).build().unwrap().records();
    let user_records = (0..10).map(|number| (format!("a-secret-key-{number}"), "a secret"));
    let all = aggregate(user_records);
    for _ in 0..3 {
        for shard in orders.shards() {
            shard.put(all.clone());
        }
        while let Ok(record) = timeout(5 * SECOND, records.next()).await {
            record.unwrap().unwrap();
        }
    }
    let mut warnings = lines("WARN");
    warnings.sort_by_key(|line| line.contains("shardId-000000000001"));
    assert_eq!(warnings.len(), 2, "expected one warning for each shard: {warnings:#?}");
    for (shard, warning) in orders.shards().iter().zip(&warnings) {
        let shard = format!("shard={}", shard.id());
        for part in ["user records left out", &shard, "application=\"default\"", "records="] {
            assert!(warning.contains(part), "{part} in {warning}");
        }
    }
    assert!(!logged().contains("secret"));
}
