//! Tests of the consumer against an in-memory model of Kinesis on a paused clock: the real SDK
//! client, no sockets, no waiting.
// Tests and their helpers report failures by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../support/gated.rs"]
mod gated;
#[path = "../support/inline.rs"]
mod inline;
#[path = "../support/lease_access.rs"]
mod lease_access;
#[path = "../support/listening.rs"]
mod listening;
#[path = "../support/raw_waker.rs"]
mod raw_waker;
#[path = "../support/simulated_clock.rs"]
mod simulated_clock;

/// Adapters of streams of records.
mod adapters {
    mod acknowledgement;
    mod guarantees;
    mod throughput;
}

/// Reads that end, and reads of some shards.
mod bounds {
    mod closed_shards;
    mod endings;
    mod jobs;
    mod only_shards;
    mod outdated_listings;
}

/// Delivery and acknowledgement.
mod delivery {
    mod cancellation;
    mod checkpoints;
    mod exactly_once_recipe;
    #[cfg(feature = "metrics")]
    mod kept_records;
    mod panics;
    pub(crate) mod polling;
    mod stalls;
    mod wakers;
}

/// The shards of a stream, and their starting positions.
mod discovery {
    mod listings;
    mod lost_shards;
    mod merged_shards;
    mod recreated_streams;
    mod resharding;
    mod scope_migration;
    mod starting_position_for;
    mod starting_positions;
    mod waiting_children;
}

/// Fetching within the limits of Kinesis, and decoding.
mod fetching {
    mod aggregation;
    pub(crate) mod errors;
    mod false_ends;
    mod fan_out;
    mod incomplete_responses;
    mod multiple_consumers;
    mod pacing;
    mod shared_calls;
    mod wire_format;
    mod wire_format_changes;
}

/// Workers that share shards.
mod fleet {
    mod data_loss;
    mod failed_shards;
    pub(crate) mod fleets;
    mod handoffs;
    mod loads;
    mod reachability;
}

/// Operators' calls, events, status and metrics.
mod operations {
    mod client_regions;
    mod events_and_status;
    #[cfg(feature = "metrics")]
    mod metrics;
    mod operators;
    mod other_readers;
    mod readiness;
    mod unconfirmed_workers;
}

/// Records that leave retention.
mod losses {
    mod after_loss;
    mod lagging_readers;
    mod loss_detection;
    mod quiet_shards;
    pub(crate) mod refused_sequence_numbers;
    pub(crate) mod retention;
    pub(crate) mod sparse_shards;
}

/// Stores that fail or hold corrupt values.
mod store {
    mod corrupt_positions;
    pub(crate) mod faulty_store;
    mod lost_store_responses;
    pub(crate) mod recording_store;
    mod shard_ends;
    pub(crate) mod store_outages;
}

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use kinestream::testing::{Call, Kinesis, Outcome, Stream};
use kinestream::{
    Consumer, ConsumerBuilder, MemoryStore, Record, Records, ShardId, ShardStatus, StartingPosition,
};
use simulated_clock::consumer_of;
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
    consumer_of(kinesis, kinesis.client(), "orders")
        .starting_position(StartingPosition::TrimHorizon)
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

/// Puts records with these numbers into the first shard, each with a key of its own.
fn put(orders: &Stream, numbers: std::ops::Range<usize>) {
    for number in numbers {
        orders.shard(0).put_as(&format!("key-{number}"), number.to_string());
    }
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
