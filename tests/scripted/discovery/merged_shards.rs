//! Merged shards that a response, a listing or the store shows with only one of their parents.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::StreamExt;
use kinestream::store::Scope;
use kinestream::store::lease::{Change, HeartbeatRequest};
use kinestream::testing::{Kinesis, Outcome, Shard, Stream, WrongListing};
use kinestream::{CheckpointOn, MemoryStore};
use tokio::time::timeout;

use crate::lease_access::LeaseAccess;
use crate::{assert_silent, consumer, next, number, orders, shard_of};

const HOUR: Duration = Duration::from_secs(3600);

/// Descriptions of the child in the response that ends shard 0.
const NAMED: [&str; 3] = [
    r#"{"ShardId":"shardId-000000000002","ParentShards":["shardId-000000000000"],"HashKeyRange":{"StartingHashKey":"0","EndingHashKey":"9"}}"#,
    r#"{"ShardId":"shardId-000000000002","ParentShards":["shardId-000000000000","no shard"],"HashKeyRange":{"StartingHashKey":"0","EndingHashKey":"9"}}"#,
    r#"{"ShardId":"shardId-000000000002","ParentShards":["no shard","shardId-000000000000"],"HashKeyRange":{"StartingHashKey":"0","EndingHashKey":"9"}}"#,
];

/// Creates two shards with one record each.
fn two_shards() -> (Kinesis, Stream) {
    let (kinesis, orders) = orders(2);
    orders.shard(0).put("0");
    orders.shard(1).put("1");
    (kinesis, orders)
}

/// Merges the two shards, and puts a record into their child.
fn merge(orders: &Stream) -> Shard {
    let child = orders.shard(0).merge(&orders.shard(1));
    child.put("2");
    child
}

/// Reads the records of both parents, calls `then`, and acknowledges first the left record, then
/// the right one. Asserts that the child is read only after both.
async fn assert_child_waits_for_both(
    kinesis: &Kinesis,
    store: MemoryStore,
    then: impl FnOnce(),
    why: &str,
) {
    let consumer = consumer(kinesis)
        .store(store)
        .checkpoint_on(CheckpointOn::Ack)
        .discovery_interval(HOUR)
        .build()
        .unwrap();
    let mut records = consumer.records();
    let mut held = Vec::new();
    for _ in 0..2 {
        held.push(next(&mut records).await);
    }
    then();
    held.sort_by_key(shard_of);
    held[0].ack();
    assert_silent(&mut records).await;
    held[1].ack();
    let child = timeout(Duration::from_secs(60), records.next()).await.expect(why);
    assert_eq!(number(&child.unwrap().unwrap()), 2, "{why}");
}

#[tokio::test(start_paused = true)]
async fn merged_child_named_with_one_parent_waits_for_both() {
    for child in NAMED {
        let (kinesis, orders) = two_shards();
        let (first, is_merged) = (orders.shard(0).id(), Arc::new(AtomicBool::new(false)));
        let body = format!(r#"{{"Records":[],"MillisBehindLatest":0,"ChildShards":[{child}]}}"#);
        kinesis.on_call({
            let is_merged = Arc::clone(&is_merged);
            move |call| {
                let is_of_first =
                    call.operation == "GetRecords" && call.shard_id.as_ref() == Some(&first);
                if is_of_first && is_merged.load(Ordering::SeqCst) {
                    return Outcome::Garbled { status: 200, body: body.clone() };
                }
                Outcome::Served
            }
        });
        let then = || {
            merge(&orders);
            is_merged.store(true, Ordering::SeqCst);
        };
        assert_child_waits_for_both(&kinesis, MemoryStore::new(), then, child).await;
    }
}

#[tokio::test(start_paused = true)]
async fn merged_child_listed_with_one_parent_waits_for_both() {
    let (kinesis, orders) = two_shards();
    kinesis.next_calls("ListShards", 3, Outcome::Mislisted(WrongListing::OneParent));
    merge(&orders);
    let why = "listed with one parent";
    assert_child_waits_for_both(&kinesis, MemoryStore::new(), || (), why).await;
}

#[tokio::test(start_paused = true)]
async fn merged_child_stored_with_one_parent_waits_for_both() {
    let (kinesis, orders) = two_shards();
    let child = merge(&orders);
    let store = MemoryStore::new();
    let add = |shard: &Shard, parents| Change::Add {
        shard: shard.id(),
        parents,
        start: None,
        checkpoint: None,
    };
    let mut request = HeartbeatRequest::new("before", 1, Duration::from_secs(2));
    request.leaving = true;
    request.changes = vec![
        add(&orders.shard(0), Vec::new()),
        add(&orders.shard(1), Vec::new()),
        add(&child, vec![orders.shard(0).id()]),
    ];
    store.heartbeat(&Scope::new("default", "orders"), &request).await.unwrap();
    assert_child_waits_for_both(&kinesis, store, || (), "stored with one parent").await;
}
