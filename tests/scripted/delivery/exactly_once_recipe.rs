//! The exactly-once recipe of the guide: results and checkpoints in one transaction.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use futures::StreamExt;
use kinestream::testing::{Kinesis, Shard, aggregate};
use kinestream::{Checkpoint, Consumer, IfLeased, Record};
use tokio::time::{sleep, timeout};

use crate::{next, orders};

#[path = "../../../examples/pipeline/exactly_once.rs"]
mod exactly_once;

use exactly_once::Sink;

fn database() -> Sink {
    Sink::open(Path::new(":memory:")).unwrap()
}

fn consumer(kinesis: &Kinesis, sink: &Sink) -> Consumer {
    exactly_once::consumer(kinesis.client(), "orders", sink).unwrap()
}

fn put_aggregate(shard: &Shard, numbers: std::ops::Range<usize>) {
    shard.put(aggregate(numbers.map(|number| (format!("key-{number}"), number.to_string()))));
}

/// Reads from the stored checkpoints and stores `count` batches of one record each. Then it stops
/// like a crashed process: only the database is left.
async fn read_and_crash(kinesis: &Kinesis, sink: &mut Sink, count: usize) {
    let mut records = consumer(kinesis, sink).records();
    for _ in 0..count {
        let record = next(&mut records).await;
        sink.store(std::slice::from_ref(&record)).unwrap();
        record.ack();
    }
}

/// Reads from the stored checkpoints and stores batches until no record arrives for a minute.
async fn read_all(kinesis: &Kinesis, sink: &mut Sink) {
    let batches = consumer(kinesis, sink).records().ready_chunks(100);
    let mut batches = std::pin::pin!(batches);
    while let Ok(Some(batch)) = timeout(Duration::from_secs(60), batches.next()).await {
        let batch: Vec<Record> = batch.into_iter().map(Result::unwrap).collect();
        sink.store(&batch).unwrap();
        batch.iter().for_each(Record::ack);
    }
}

/// Returns the number of rows of each order.
fn stored(sink: &Sink) -> BTreeMap<usize, usize> {
    let mut select = sink.0.prepare("SELECT number, count(*) FROM orders GROUP BY number").unwrap();
    let rows = select
        .query_map([], |row| {
            let (number, count): (String, i64) = (row.get(0)?, row.get(1)?);
            Ok((number.parse().unwrap(), usize::try_from(count).unwrap()))
        })
        .unwrap();
    rows.map(Result::unwrap).collect()
}

fn assert_once(sink: &Sink, orders: usize) {
    assert_eq!(stored(sink), (0..orders).map(|number| (number, 1)).collect());
}

#[tokio::test(start_paused = true)]
async fn crash_inside_an_aggregate_stores_each_user_record_once() {
    for read in 0..=8 {
        let (kinesis, orders) = orders(1);
        let shard = orders.shard(0);
        shard.put("0");
        put_aggregate(&shard, 1..6);
        put_aggregate(&shard, 6..7);
        shard.put("7");
        let mut sink = database();
        read_and_crash(&kinesis, &mut sink, read).await;
        assert_once(&sink, read);
        read_all(&kinesis, &mut sink).await;
        assert_once(&sink, 8);
    }
}

#[tokio::test(start_paused = true)]
async fn split_between_runs_stores_records_of_children_once() {
    for child_shards in [true, false] {
        let (kinesis, orders) = orders(1);
        kinesis.set_child_shards(child_shards);
        let parent = orders.shard(0);
        parent.put("0");
        parent.put("1");
        let mut sink = database();
        read_and_crash(&kinesis, &mut sink, 1).await;
        parent.put("2");
        let [left, right] = parent.split();
        left.put("3");
        right.put("4");
        left.split()[1].put("5");
        read_and_crash(&kinesis, &mut sink, 3).await;
        read_all(&kinesis, &mut sink).await;
        assert_once(&sink, 6);
        read_all(&kinesis, &mut sink).await;
        assert_once(&sink, 6);
    }
}

#[tokio::test(start_paused = true)]
async fn batch_of_an_earlier_epoch_is_rejected_and_stores_nothing() {
    let (kinesis, orders) = orders(1);
    orders.shard(0).put("0");
    orders.shard(0).put("1");
    let mut sink = database();
    let consumer = consumer(&kinesis, &sink);
    let mut records = consumer.records();
    let late = [next(&mut records).await, next(&mut records).await];
    let shard = orders.shard(0).id();
    consumer.set_position(&shard, Checkpoint::TrimHorizon, IfLeased::Force).await.unwrap();
    let record = next(&mut records).await;
    assert!(record.epoch() > late[0].epoch());
    sink.store(&[record]).unwrap();
    let error = sink.store(&late).unwrap_err().to_string();
    assert!(error.contains("another worker has the lease"), "{error}");
    assert_once(&sink, 1);
}

#[tokio::test(start_paused = true)]
async fn shard_that_was_quiet_for_longer_than_retention_is_read_on() {
    const HOUR: Duration = Duration::from_secs(3600);
    let (kinesis, orders) = orders(1);
    kinesis.set_retention(24 * HOUR);
    orders.shard(0).put("0");
    let mut sink = database();
    read_and_crash(&kinesis, &mut sink, 1).await;
    sleep(26 * HOUR).await;
    orders.shard(0).put("1");
    read_all(&kinesis, &mut sink).await;
    assert_once(&sink, 2);
}

#[test]
fn guide_shows_the_tested_recipe() {
    let page = include_str!("../../../src/guide/delivery.md");
    let (_, rest) = page.split_once("# Exactly once").unwrap();
    let (_, rest) = rest.split_once("```no_run\n").unwrap();
    let (block, _) = rest.split_once("\n```").unwrap();
    // The lines that a reader of the page sees, without the hidden lines of the doctest.
    let shown: Vec<&str> = block.lines().filter(|line| !line.starts_with("# ")).collect();
    let source = include_str!("../../../examples/pipeline/exactly_once.rs");
    let (_, code) = source.split_once("\n\n").unwrap();
    assert_eq!(shown.join("\n"), code.trim_end());
}
