//! The consumer against a model of Kinesis in memory, on a paused clock: the real SDK client, no
//! socket, and no waiting.
// A test that cannot go on says so by a panic, in its helpers too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod approaching;
mod behind_loss;
mod checkpoints;
mod dropping;
mod errors;
mod evidence;
mod failing;
mod fan_out;
mod faulty;
mod fleets;
#[path = "../support/gated.rs"]
mod gated;
mod handovers;
mod identity;
#[path = "../support/inline.rs"]
mod inline;
mod judging;
#[path = "../support/listening.rs"]
mod listening;
mod listings;
mod lost;
#[cfg(feature = "metrics")]
mod metrics;
mod named;
mod operators;
mod outages;
mod overtaken;
mod pacing;
mod packed;
mod panics;
mod parents;
mod polling;
#[path = "../support/raw_waker.rs"]
mod raw_waker;
mod reach;
mod recipe;
mod refused;
mod resharding;
mod retention;
mod seen;
mod shared_calls;
mod sharing;
mod stalls;
mod starting;
mod takeover;
mod unanswered;
mod unreadable;
mod waiting;
mod wakers;
mod watched;

use std::time::Duration;

use futures::StreamExt;
use kinestream::testing::{Call, Kinesis, Outcome, Stream};
use kinestream::{Consumer, ConsumerBuilder, MemoryStore, Record, Records, StartingPosition};
use tokio::time::timeout;

/// A Kinesis with a stream `orders`.
fn orders(shards: usize) -> (Kinesis, Stream) {
    let kinesis = Kinesis::new();
    let orders = kinesis.create_stream("orders", shards);
    (kinesis, orders)
}

fn denied() -> Outcome {
    Outcome::failed(400, "AccessDeniedException", "no")
}

/// Refuses every call of an operation, for one of two reasons in turn.
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

/// The calls of an operation so far.
fn calls(kinesis: &Kinesis, operation: &str) -> Vec<Call> {
    let mut calls = kinesis.calls();
    calls.retain(|call| call.operation == operation);
    calls
}

/// A consumer of the stream `orders`, from its beginning.
fn consumer(kinesis: &Kinesis) -> ConsumerBuilder {
    Consumer::builder(kinesis.client(), "orders").starting_position(StartingPosition::TrimHorizon)
}

/// The next record, which comes within ten minutes and is no error.
async fn next(records: &mut Records) -> Record {
    timeout(Duration::from_secs(600), records.next())
        .await
        .expect("a record within ten minutes")
        .expect("the stream goes on")
        .expect("no error")
}

/// Reads the one record `0` of the first shard, by a consumer whose positions are in `store`.
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

/// The payload as the number that it was put as.
fn number(record: &Record) -> usize {
    std::str::from_utf8(record.data()).unwrap().parse().unwrap()
}

/// Nothing comes for a minute.
async fn assert_silent(records: &mut Records) {
    let quiet = timeout(Duration::from_secs(60), records.next()).await;
    assert!(quiet.is_err(), "{quiet:?}");
}

/// The number that the name of a record's shard ends with.
fn shard_of(record: &Record) -> usize {
    record.shard_id().as_str()[8..].parse().unwrap()
}
