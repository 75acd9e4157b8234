//! Tests of `DynamoDbStore` with requests that fail, and answers that are lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use kinestream::store::lease::{
    EntryChange, EntryKey, Exchange, Exchanged, FencedSave, LeaseStore, Renewal, Step,
};
use kinestream::store::{CheckpointStore, Scope};
use kinestream::{DynamoDbStore, ErrorKind};
use serde_json::json;
use tokio::time::timeout;

use crate::alike::answers_like_memory_store;
use crate::dynamodb_link::{Fault, Link, cancelled, error};
use crate::dynamodb_server::{DynamoDbServer, TABLE};
use crate::redis_store::{scope, shard, whole_text};

const WORKER: &str = "7 1 10000 3";

/// Returns a step that adds entries of these texts.
pub(crate) fn adding(entries: impl IntoIterator<Item = (EntryKey, String)>) -> Step {
    let entries = entries.into_iter();
    let changes = entries.map(|(key, text)| EntryChange::new(key, None, Some(text.into())));
    let mut step = Step::default();
    step.entries = changes.collect();
    step
}

pub(crate) fn lease(index: u32, epoch: u64) -> (EntryKey, String) {
    (EntryKey::Lease(shard(index)), format!("{epoch} one - 5 - - - - -"))
}

pub(crate) fn position(index: u32, text: &str) -> (EntryKey, String) {
    (EntryKey::Position(shard(index)), text.to_owned())
}

pub(crate) fn asking(step: Option<Step>, known: Option<u64>) -> Exchange {
    let mut exchange = Exchange::default();
    (exchange.step, exchange.known) = (step, known);
    exchange
}

/// Returns the text of an entry in an answer.
pub(crate) fn text_of(answer: &Exchanged, key: &EntryKey) -> Option<Arc<str>> {
    answer.entries.iter().find(|(shown, _)| shown == key).and_then(|(_, text)| text.clone())
}

/// Makes each kind of request, and asserts that each has its effect once.
async fn assert_works(store: &DynamoDbStore, scope: &Scope) {
    let worker = EntryKey::Worker("one".into());
    let step = adding([lease(0, 7), position(0, "TRIM_HORIZON"), (worker, WORKER.to_owned())]);
    let mut exchange = asking(Some(step), None);
    exchange.renewals = vec![Renewal::new("one", WORKER, Duration::from_secs(10))];
    let answer = store.exchange(scope, &exchange).await.unwrap();
    assert!(answer.is_made, "{answer:?}");
    assert_eq!(answer.entries.len(), 3, "{answer:?}");
    let save = FencedSave::new(shard(0), 7, Some("TRIM_HORIZON".into()), "SHARD_END");
    let outcomes = store.save_fenced(scope, &[save]).await.unwrap();
    assert!(outcomes[0].is_saved, "{outcomes:?}");
    let next = asking(Some(adding([lease(1, 7)])), Some(answer.version));
    let next = store.exchange(scope, &next).await.unwrap();
    assert!(next.is_made && !next.is_whole, "{next:?}");
    assert_eq!(next.entries.len(), 2, "the lease and its position: {next:?}");
    let loaded = store.load(scope).await.unwrap();
    assert_eq!(loaded.len(), 1);
}

/// Counts the steps in the log.
async fn steps(server: &DynamoDbServer) -> usize {
    let items = server.client().scan().table_name(TABLE).send().await.unwrap().items.unwrap();
    let sort_keys = items.iter().map(|item| item["sk"].as_s().unwrap());
    sort_keys.filter(|sort_key| sort_key.starts_with("step:")).count()
}

#[tokio::test]
async fn temporary_error_is_retried() {
    let answers = [
        (400, error("ProvisionedThroughputExceededException", "slow down")),
        (400, error("ThrottlingException", "slow down")),
        (400, error("RequestLimitExceeded", "slow down")),
        (400, error("TransactionConflictException", "conflict")),
        (400, error("TransactionInProgressException", "in progress")),
        (500, error("InternalServerError", "try again")),
        (503, json!({})),
    ];
    let server = DynamoDbServer::start();
    server.store().create_table().await.unwrap();
    for (index, (status, body)) in answers.into_iter().enumerate() {
        let link = Link::failing_once(&server, Fault::Answer(status, body));
        assert_works(&link.store(), &Scope::new(format!("billing-{index}"), "orders")).await;
        let sent = link.take();
        for operation in ["Query", "BatchGetItem", "UpdateItem", "TransactWriteItems"] {
            let count = sent.iter().filter(|sent| sent.operation == operation).count();
            assert!(count >= 2, "{operation} was sent {count} times");
        }
    }
}

#[tokio::test]
async fn cancelled_transaction_is_retried() {
    let (server, _store) = DynamoDbServer::with_table().await;
    let reasons: [&[&str]; 3] = [&["None", "TransactionConflict"], &["ThrottlingError"], &[]];
    for (index, codes) in reasons.into_iter().enumerate() {
        let body = cancelled(codes);
        let calls = AtomicUsize::new(0);
        let link = Link::new(&server, move |operation, _| {
            let is_first = operation == "TransactWriteItems"
                && calls.fetch_add(1, Ordering::Relaxed).is_multiple_of(2);
            if is_first { Fault::Answer(400, body.clone()) } else { Fault::None }
        });
        assert_works(&link.store(), &Scope::new(format!("billing-{index}"), "orders")).await;
    }
}

/// The message of a cancelled transaction does not include those of its items.
#[tokio::test]
async fn cancelled_transaction_says_why() {
    let (server, _store) = DynamoDbServer::with_table().await;
    for (message, kind, advice) in [
        (
            "Item size to update has exceeded the maximum allowed size",
            ErrorKind::Rejected,
            "too many shards",
        ),
        (
            "The provided key element does not match the schema",
            ErrorKind::Configuration,
            "partition key pk",
        ),
    ] {
        let mut body = cancelled(&["None", "ValidationError"]);
        body["CancellationReasons"][1]["Message"] = json!(message);
        let link = Link::new(&server, move |operation, _| match operation {
            "TransactWriteItems" => Fault::Answer(400, body.clone()),
            _ => Fault::None,
        });
        let exchange = asking(Some(adding([lease(0, 7)])), None);
        let failed = link.store().exchange(&scope(), &exchange).await.unwrap_err();
        assert_eq!(failed.kind(), kind, "{failed}");
        let said = failed.to_string();
        assert!(said.contains(message) && said.contains(advice), "{said}");
    }
}

#[tokio::test]
async fn keys_that_are_never_processed_count_as_throttled() {
    let (server, store) = DynamoDbServer::with_table().await;
    let made = store.exchange(&scope(), &asking(Some(adding([lease(0, 7)])), None)).await.unwrap();
    let link = Link::new(&server, |operation, body| match operation {
        "BatchGetItem" => {
            let key = body["RequestItems"]["kinestream"]["Keys"][0].clone();
            let found = json!({ "kinestream": [key] });
            let rest = json!({ "Responses": found, "UnprocessedKeys": body["RequestItems"] });
            Fault::Answer(200, rest)
        }
        _ => Fault::None,
    });
    let exchange = asking(Some(adding([lease(1, 7)])), Some(made.version));
    let (linked, place) = (link.store(), scope());
    let call = linked.exchange(&place, &exchange);
    let failed = timeout(Duration::from_secs(20), call).await.expect("it ends").unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::StoreUnavailable, "{failed}");
}

#[tokio::test]
async fn table_is_created_despite_temporary_failures() {
    for fault in [
        Fault::Answer(400, error("ThrottlingException", "slow down")),
        Fault::Answer(400, error("LimitExceededException", "too many tables at once")),
        Fault::Lost,
        Fault::Hang,
    ] {
        let server = DynamoDbServer::start();
        let store = Link::failing_once(&server, fault).store();
        timeout(Duration::from_secs(30), store.create_table()).await.expect("it ends").unwrap();
        assert!(store.load(&scope()).await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn lost_connection_is_replaced() {
    let (server, _store) = DynamoDbServer::with_table().await;
    assert_works(&Link::failing_once(&server, Fault::Unsent).store(), &scope()).await;
}

#[tokio::test]
async fn write_with_a_lost_answer_is_made_once() {
    let (server, _store) = DynamoDbServer::with_table().await;
    assert_works(&Link::failing_once(&server, Fault::Lost).store(), &scope()).await;
    assert_eq!(steps(&server).await, 2, "each step was made once");
}

/// The second attempt finds its own text. It must not take the same text of another save for its
/// own.
#[tokio::test]
async fn save_with_a_lost_answer_is_recognized_by_its_mark() {
    let (server, store) = DynamoDbServer::with_table().await;
    let step = adding([lease(0, 7), position(0, "TRIM_HORIZON")]);
    store.exchange(&scope(), &asking(Some(step), None)).await.unwrap();
    let save = |expected: &str| FencedSave::new(shard(0), 7, Some(expected.into()), "SHARD_END");
    let linked = Link::failing_once(&server, Fault::Lost).store();
    let outcomes = linked.save_fenced(&scope(), &[save("TRIM_HORIZON")]).await.unwrap();
    assert!(outcomes[0].is_saved, "{outcomes:?}");
    let outcomes = linked.save_fenced(&scope(), &[save("AT_TIMESTAMP:1")]).await.unwrap();
    assert!(!outcomes[0].is_saved, "another text was expected: {outcomes:?}");
    assert_eq!(outcomes[0].position.as_deref(), Some("SHARD_END"));
}

#[tokio::test]
async fn lasting_error_is_reported_at_once_with_what_to_do() {
    let cases = [
        ("ResourceNotFoundException", "not found", ErrorKind::Configuration, "create_table"),
        ("AccessDeniedException", "no", ErrorKind::Denied, "grant dynamodb:Query on the table"),
        ("UnrecognizedClientException", "no", ErrorKind::Denied, "credentials rejected"),
        (
            "ValidationException",
            "Query condition missed key schema element: sk",
            ErrorKind::Configuration,
            "partition key pk and the sort key sk",
        ),
    ];
    let server = DynamoDbServer::start();
    for (code, message, kind, advice) in cases {
        let body = error(code, message);
        let link = Link::new(&server, move |_, _| Fault::Answer(400, body.clone()));
        let failed = link.store().exchange(&scope(), &Exchange::default()).await.unwrap_err();
        assert_eq!(failed.kind(), kind, "{failed}");
        let said = whole_text(&failed);
        assert!(said.contains(advice) && said.contains(code), "{said}");
        assert!(said.contains("DynamoDB table kinestream: Query failed"), "{said}");
        assert!(!said.contains("secret"), "{said}");
        assert_eq!(link.take().len(), 1, "it is not retried");
    }
    let missing = server.store().exchange(&scope(), &Exchange::default()).await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::Configuration, "{missing}");
}

#[tokio::test]
async fn lasting_throttle_is_temporary_for_the_crate() {
    let server = DynamoDbServer::start();
    let body = error("ThrottlingException", "slow down");
    let link = Link::new(&server, move |_, _| Fault::Answer(400, body.clone()));
    let failed = link.store().exchange(&scope(), &Exchange::default()).await.unwrap_err();
    assert!(failed.is_temporary(), "{failed}");
    assert_eq!(link.take().len(), 5, "it is repeated");
}

#[tokio::test]
async fn connection_without_an_answer_is_given_up() {
    let (server, _store) = DynamoDbServer::with_table().await;
    let calls = AtomicUsize::new(0);
    let link = Link::new(&server, move |_, _| {
        let is_first = calls.fetch_add(1, Ordering::Relaxed) == 0;
        if is_first { Fault::Hang } else { Fault::None }
    });
    let begun = std::time::Instant::now();
    link.store().exchange(&scope(), &Exchange::default()).await.unwrap();
    assert!(begun.elapsed() < Duration::from_millis(3_300), "within a third of a lease");
}

/// A page ends after 1 MB, and a `BatchGetItem` after 16 MB or when it is throttled.
#[tokio::test]
async fn partial_answers_are_completed() {
    let (server, store) = DynamoDbServer::with_table().await;
    let entries = (0..50).flat_map(|index| [lease(index, 7), position(index, "TRIM_HORIZON")]);
    let made = store.exchange(&scope(), &asking(Some(adding(entries)), None)).await.unwrap();
    let before = store.exchange(&scope(), &asking(None, None)).await.unwrap();
    let calls = AtomicUsize::new(0);
    let link = Link::new(&server, move |operation, body| {
        match operation {
            "Query" => body["Limit"] = json!(2),
            "BatchGetItem" if calls.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) => {
                let rest = json!({ "Responses": {}, "UnprocessedKeys": body["RequestItems"] });
                return Fault::Answer(200, rest);
            }
            _ => {}
        }
        Fault::None
    });
    let linked = link.store();
    let whole = linked.exchange(&scope(), &asking(None, None)).await.unwrap();
    let sorted = |answer: &Exchanged| {
        let mut entries = answer.entries.clone();
        entries.sort();
        entries
    };
    assert_eq!(sorted(&whole), sorted(&before));
    let mut moved = adding([lease(0, 8)]);
    moved.entries[0].expected = Some(lease(0, 7).1.into());
    let changed = linked.exchange(&scope(), &asking(Some(moved), Some(made.version))).await;
    let changed = changed.unwrap();
    assert!(changed.is_made && !changed.is_whole, "{changed:?}");
    let expected = [lease(0, 8), position(0, "TRIM_HORIZON")];
    for (key, text) in expected {
        assert_eq!(text_of(&changed, &key).as_deref(), Some(&*text));
    }
}

#[test]
fn store_with_random_faults_answers_like_the_memory_store() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (server, _store) = runtime.block_on(DynamoDbServer::with_table());
    let link = with_random_faults(&server);
    answers_like_memory_store(&runtime, &link.store(), 15);
    answers_like_memory_store(&runtime, &link.store().postponing(), 15);
}

/// Returns a link with faults that the store hides.
pub(crate) fn with_random_faults(server: &DynamoDbServer) -> Link {
    let calls = AtomicUsize::new(0);
    Link::new(server, move |operation, _| {
        // No call fails more often than it is repeated.
        let call = calls.fetch_add(1, Ordering::Relaxed);
        let is_transaction = operation == "TransactWriteItems";
        match fastrand::u8(..40) {
            _ if call.is_multiple_of(3) => Fault::None,
            0..2 => Fault::Lost,
            2 => Fault::Unsent,
            3 => Fault::Answer(500, error("InternalServerError", "try again")),
            4 => Fault::Answer(400, error("ThrottlingException", "slow down")),
            5 if is_transaction => Fault::Answer(400, cancelled(&["TransactionConflict"])),
            _ => Fault::None,
        }
    })
}
