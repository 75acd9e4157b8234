//! Answers about a lease table that are short, repeated, empty, or without a row that exists.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use kinestream::DynamoDbStore;
use kinestream::store::lease::{EntryKey, Exchanged, FencedSave, LeaseStore};
use serde_json::{Value, json};

use super::world::World;
use crate::dynamodb_faults::{adding, asking, lease, position, text_of};
use crate::dynamodb_link::{Fault, Link};
use crate::redis_store::{scope, shard};

const LEASES: u32 = 9;

fn sorted(answer: &Exchanged) -> Vec<(EntryKey, Option<String>)> {
    let entries = answer.entries.iter();
    let mut entries: Vec<_> =
        entries.map(|(key, text)| (key.clone(), text.as_deref().map(str::to_owned))).collect();
    entries.sort();
    entries
}

/// Asserts that a store with such answers reads and writes what one with whole answers does.
async fn assert_reads_all(decide: impl Fn(&str, &mut Value) -> Fault + Send + Sync + 'static) {
    let world = World::new(1).await;
    let plain = world.store();
    let text = |index: u32| format!("AFTER_SEQUENCE_NUMBER:{}", 100 + index);
    let entries = (0..LEASES).flat_map(|index| [lease(index, 7), position(index, &text(index))]);
    let made = plain.exchange(&scope(), &asking(Some(adding(entries)), None)).await.unwrap();
    let before = plain.exchange(&scope(), &asking(None, None)).await.unwrap();
    let link = Link::new(&world.server, decide);
    let store: DynamoDbStore = link.store().kcl_table(&*world.table.name);
    let whole = store.exchange(&scope(), &asking(None, None)).await.unwrap();
    assert_eq!(sorted(&whole), sorted(&before));
    // The answer has the position of each lease that has moved.
    let mut moved = adding((0..LEASES).map(|index| lease(index, 8)));
    for (change, index) in moved.entries.iter_mut().zip(0..) {
        change.expected = Some(lease(index, 7).1.into());
    }
    let changed = store.exchange(&scope(), &asking(Some(moved), Some(made.version))).await.unwrap();
    assert!(changed.is_made && !changed.is_whole, "{changed:?}");
    for index in 0..LEASES {
        let (key, expected) = position(index, &text(index));
        assert_eq!(text_of(&changed, &key).as_deref(), Some(&*expected), "{key}");
    }
    let end = |index| FencedSave::new(shard(index), 8, Some(text(index).into()), "SHARD_END");
    let saves: Vec<FencedSave> = (0..LEASES).map(end).collect();
    let outcomes = store.save_fenced(&scope(), &saves).await.unwrap();
    assert!(outcomes.iter().all(|outcome| outcome.is_saved), "{outcomes:?}");
}

/// Returns the request of a page of the lease table.
fn is_page(operation: &str, body: &Value) -> bool {
    operation == "Scan" && body["TableName"] == "leases"
}

fn is_batch(operation: &str, body: &Value) -> bool {
    operation == "BatchGetItem" && body["RequestItems"]["leases"].is_object()
}

#[tokio::test]
async fn page_that_ends_early_is_continued() {
    assert_reads_all(|operation, body| {
        if is_page(operation, body) {
            body["Limit"] = json!(2);
        }
        Fault::None
    })
    .await;
}

#[tokio::test]
async fn page_without_rows_is_continued() {
    let begin = json!({ "leaseKey": { "S": "begin" } });
    assert_reads_all(move |operation, body| {
        if !is_page(operation, body) {
            return Fault::None;
        }
        if body["ExclusiveStartKey"] == begin {
            body.as_object_mut().unwrap().remove("ExclusiveStartKey");
            return Fault::None;
        }
        Fault::Answer(200, json!({ "Items": [], "Count": 0, "LastEvaluatedKey": begin }))
    })
    .await;
}

#[tokio::test]
async fn rows_of_a_repeated_page_count_once() {
    let repeated = Mutex::new(HashSet::new());
    assert_reads_all(move |operation, body| {
        if is_page(operation, body) {
            body["Limit"] = json!(2);
            let start = body["ExclusiveStartKey"].clone();
            if start.is_object() && repeated.lock().unwrap().insert(start.to_string()) {
                body.as_object_mut().unwrap().remove("ExclusiveStartKey");
            }
        }
        Fault::None
    })
    .await;
}

#[tokio::test]
async fn unprocessed_rows_are_read_again() {
    let calls = AtomicUsize::new(0);
    assert_reads_all(move |operation, body| {
        let is_first =
            is_batch(operation, body) && calls.fetch_add(1, Ordering::Relaxed).is_multiple_of(2);
        if is_first {
            let rest = json!({ "Responses": {}, "UnprocessedKeys": body["RequestItems"] });
            return Fault::Answer(200, rest);
        }
        Fault::None
    })
    .await;
}

/// DynamoDB does not do this. A position that seems to be missing must not be read from the beginning.
#[tokio::test]
async fn row_that_an_answer_lacks_is_found_by_a_scan() {
    assert_reads_all(|operation, body| {
        if is_batch(operation, body) {
            let keys = body["RequestItems"]["leases"]["Keys"].as_array_mut().unwrap();
            if keys.len() > 1 {
                keys.pop();
            }
        }
        Fault::None
    })
    .await;
}
