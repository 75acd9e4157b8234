//! Tests of the consumer against an in-memory model of Kinesis on a paused clock: the real SDK
//! client, no sockets, no waiting.
// Tests and their helpers report failures by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod after_loss;
mod aggregation;
mod cancellation;
mod checkpoints;
mod corrupt_positions;
mod errors;
mod events_and_status;
mod exactly_once_recipe;
mod failed_shards;
mod fan_out;
mod faulty_store;
mod fleets;
#[path = "../support/gated.rs"]
mod gated;
mod handoffs;
mod incomplete_responses;
#[path = "../support/inline.rs"]
mod inline;
mod lagging_readers;
#[path = "../support/listening.rs"]
mod listening;
mod listings;
mod loss_detection;
mod lost_shards;
mod lost_store_responses;
mod merged_shards;
#[cfg(feature = "metrics")]
mod metrics;
mod multiple_consumers;
mod operators;
mod pacing;
mod panics;
mod polling;
#[path = "../support/raw_waker.rs"]
mod raw_waker;
mod reachability;
mod recording_store;
mod recreated_streams;
mod refused_sequence_numbers;
mod resharding;
mod retention;
mod scope_migration;
mod shared_calls;
mod sparse_shards;
mod stalls;
mod starting_position_for;
mod starting_positions;
mod store_outages;
mod waiting_children;
mod wakers;

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use kinestream::testing::{Call, Kinesis, Outcome, Stream};
use kinestream::{
    Consumer, ConsumerBuilder, MemoryStore, Record, Records, ShardId, ShardStatus, StartingPosition,
};
use tokio::time::timeout;

/// Creates a Kinesis with a stream `orders`.
fn orders(shards: usize) -> (Kinesis, Stream) {
    let kinesis = Kinesis::new();
    let orders = kinesis.create_stream("orders", shards);
    (kinesis, orders)
}

fn denied() -> Outcome {
    Outcome::failed(400, "AccessDeniedException", "no")
}

/// Fails every call of an operation, alternating between two error codes.
fn refuse_in_turn(kinesis: &Kinesis, operation: &'static str) {
    let mut calls = 0;
    kinesis.on_call(move |call| {
        if call.operation != operation {
            return Outcome::Served;
        }
        calls += 1;
        let rejected = Outcome::failed(400, "MalformedHttpRequestException", "no");
        if calls % 2 == 0 { denied() } else { rejected }
    });
}

/// Returns the calls of an operation so far.
fn calls(kinesis: &Kinesis, operation: &str) -> Vec<Call> {
    let mut calls = kinesis.calls();
    calls.retain(|call| call.operation == operation);
    calls
}

/// Returns the builder of a consumer that reads the stream `orders` from its oldest record.
fn consumer(kinesis: &Kinesis) -> ConsumerBuilder {
    Consumer::builder(kinesis.client(), "orders").starting_position(StartingPosition::TrimHorizon)
}

/// Returns the next record, which must arrive within ten minutes and without an error.
async fn next(records: &mut Records) -> Record {
    timeout(Duration::from_secs(600), records.next())
        .await
        .expect("a record within ten minutes")
        .expect("an open stream")
        .expect("no error")
}

/// Puts record `0` into the first shard and reads it with a consumer that stores its positions in
/// `store`.
async fn read_first(
    kinesis: &Kinesis,
    orders: &Stream,
    store: &MemoryStore,
) -> (Consumer, Records) {
    orders.shard(0).put("0");
    let first = consumer(kinesis).store(store.clone()).build().unwrap();
    let mut records = first.records();
    assert_eq!(number(&next(&mut records).await), 0);
    assert_silent(&mut records).await;
    (first, records)
}

/// Parses the payload as the number of the record.
fn number(record: &Record) -> usize {
    std::str::from_utf8(record.data()).unwrap().parse().unwrap()
}

/// Returns the status of each shard.
async fn shards(consumer: &Consumer) -> BTreeMap<ShardId, ShardStatus> {
    consumer.status().await.expect("the memory store does not fail").shards
}

/// Asserts that the stream yields nothing for a minute.
async fn assert_silent(records: &mut Records) {
    let quiet = timeout(Duration::from_secs(60), records.next()).await;
    assert!(quiet.is_err(), "expected no item within a minute: {quiet:?}");
}

/// Returns the number at the end of the record's shard ID.
fn shard_of(record: &Record) -> usize {
    record.shard_id().as_str()[8..].parse().unwrap()
}
