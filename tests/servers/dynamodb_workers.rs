//! Tests of `DynamoDbStore` with more workers than fit in a transaction, and of their heartbeats.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use kinestream::store::lease::{
    AdminEdit, Change, EditOutcome, EntryChange, EntryKey, Exchange, HeartbeatRequest, Heartbeats,
    IfLeased, LeaseStore, Leases, Membership, Renewal, Step, WorkerEntry,
};
use kinestream::{Checkpoint, DynamoDbStore};
use tokio::time::{sleep, timeout};

use crate::dynamodb_faults::{adding, asking, lease, position, text_of};
use crate::dynamodb_link::{Fault, Link};
use crate::dynamodb_server::{DynamoDbServer, TABLE};
use crate::lease_access::LeaseAccess;
use crate::redis_store::{scope, shard};

/// More than fit in a transaction.
const MANY: usize = 130;

const SHORT: Duration = Duration::from_millis(300);

fn name(index: usize) -> Arc<str> {
    format!("worker-{index}").into()
}

/// Returns the text of a worker's entry.
fn entry(index: usize, lease_duration: Duration) -> String {
    format!("{} {index} {} 3", index + 1, lease_duration.as_millis())
}

/// Returns a step that adds many workers, and leases with their positions.
fn many(shards: u32, lease_duration: Duration) -> Step {
    let workers = (0..MANY)
        .map(|index| (EntryKey::Worker(name(index)), entry(index, lease_duration)))
        .chain([(EntryKey::Head, "1 0 0 0".to_owned())]);
    let leases = (0..shards).flat_map(|index| [lease(index, 7), position(index, "TRIM_HORIZON")]);
    adding(workers.chain(leases))
}

fn workers(answer: &kinestream::store::lease::Exchanged) -> usize {
    answer.entries.iter().filter(|(key, _)| matches!(key, EntryKey::Worker(_))).count()
}

/// Returns the sort keys of all items.
async fn sort_keys(server: &DynamoDbServer) -> BTreeSet<String> {
    let found = server.client().scan().table_name(TABLE).send().await.unwrap();
    let items = found.items.unwrap().into_iter();
    items.map(|item| item["sk"].as_s().unwrap().clone()).collect()
}

async fn heartbeats(server: &DynamoDbServer) -> usize {
    sort_keys(server).await.iter().filter(|key| key.starts_with("heartbeat:")).count()
}

/// The worker that finds the table of a fleet empty restores all workers in one step.
#[tokio::test]
async fn lost_table_of_a_large_fleet_is_restored() {
    let (_server, store) = DynamoDbServer::with_table().await;
    let mut request = HeartbeatRequest::new("me", 7, Duration::from_secs(10));
    for index in 0..MANY {
        let member = WorkerEntry::new(9, 1, Duration::from_secs(10));
        request.changes.push(Change::ReviveWorker { worker: name(index), member });
    }
    for index in 0..300 {
        request.changes.push(Change::Add {
            shard: shard(index),
            parents: Vec::new(),
            start: None,
            checkpoint: Some(Checkpoint::TrimHorizon),
        });
        let to = name(usize::try_from(index).unwrap() % MANY);
        request.changes.push(Change::Assign { shard: shard(index), to });
    }
    let response = store.heartbeat(&scope(), &request).await.unwrap();
    assert!(response.applied && response.membership == Membership::Joined, "{response:?}");
    let table = store.table(&scope()).await.unwrap();
    assert_eq!((table.workers.len(), table.leases.len()), (MANY + 1, 300));
    // Each of them can renew.
    let other = HeartbeatRequest::new(name(MANY - 1), 9, Duration::from_secs(10));
    let response = store.heartbeat(&scope(), &other).await.unwrap();
    assert_eq!(response.membership, Membership::Renewed);
}

#[tokio::test]
async fn large_fleet_is_cleared_by_force() {
    let (server, store) = DynamoDbServer::with_table().await;
    let step = many(200, Duration::from_secs(10));
    assert!(store.exchange(&scope(), &asking(Some(step), None)).await.unwrap().is_made);
    let refused = store.edit(&scope(), &AdminEdit::Clear, IfLeased::Refuse).await.unwrap();
    assert!(matches!(refused, EditOutcome::Refused { .. }), "{refused:?}");
    let outcome = store.edit(&scope(), &AdminEdit::Clear, IfLeased::Force).await.unwrap();
    assert_eq!(outcome, EditOutcome::Applied);
    let shown = store.exchange(&scope(), &Exchange::default()).await.unwrap();
    assert_eq!(shown.entries.len(), 1, "the head alone: {shown:?}");
    assert_eq!(heartbeats(&server).await, 0);
}

/// Each dead worker must stay silent, which takes one condition per worker.
#[tokio::test]
async fn large_dead_fleet_is_cleared_and_moved() {
    let (_server, store) = DynamoDbServer::with_table().await;
    for edit in
        [AdminEdit::Set { positions: vec![(shard(0), Checkpoint::ShardEnd)] }, AdminEdit::Clear]
    {
        let mut step = many(1, SHORT);
        step.entries.iter_mut().for_each(|change| change.is_forced = true);
        assert!(store.exchange(&scope(), &asking(Some(step), None)).await.unwrap().is_made);
        let leases: Leases = store.leases_of(&scope());
        let first = leases.edit(&AdminEdit::Clear, IfLeased::Refuse).await.unwrap();
        assert!(matches!(first, EditOutcome::Refused { .. }), "not known to be dead: {first:?}");
        sleep(2 * SHORT).await;
        let outcome = leases.edit(&edit, IfLeased::Refuse).await.unwrap();
        assert_eq!(outcome, EditOutcome::Applied);
    }
    let shown = store.exchange(&scope(), &Exchange::default()).await.unwrap();
    assert_eq!(shown.entries.len(), 1, "the head alone: {shown:?}");
}

/// Returns a store that hangs after this number of transactions.
fn hanging_after(server: &DynamoDbServer, transactions: usize) -> DynamoDbStore {
    let calls = AtomicUsize::new(0);
    let link = Link::new(server, move |operation, _| {
        let is_later = operation == "TransactWriteItems"
            && calls.fetch_add(1, Ordering::Relaxed) >= transactions;
        if is_later { Fault::Hang } else { Fault::None }
    });
    link.store()
}

/// The step is made, and its worker dies before all entries of workers are written.
#[tokio::test]
async fn crash_before_all_workers_are_written_leaves_them_to_the_next_reader() {
    for transactions in [1, 2] {
        let (server, store) = DynamoDbServer::with_table().await;
        let (dying, place) = (hanging_after(&server, transactions), scope());
        let exchange = asking(Some(many(0, Duration::from_secs(10))), None);
        let call = dying.exchange(&place, &exchange);
        assert!(timeout(Duration::from_millis(500), call).await.is_err(), "it hangs");
        assert!(heartbeats(&server).await < MANY);
        let shown = store.exchange(&place, &Exchange::default()).await.unwrap();
        assert_eq!(workers(&shown), MANY, "after {transactions} transactions");
        let mut exchange = asking(None, None);
        exchange.renewals = vec![Renewal::new(name(0), entry(0, Duration::from_secs(10)), SHORT)];
        store.exchange(&place, &exchange).await.unwrap();
        assert_eq!(heartbeats(&server).await, MANY);

        // All of them are removed, and one of them joins again.
        let mut step = many(0, Duration::from_secs(10));
        for change in &mut step.entries {
            (change.expected, change.text) = (change.text.take(), None);
        }
        step.entries.retain(|change| change.key != EntryKey::Head);
        let dying = hanging_after(&server, transactions);
        let exchange = asking(Some(step), None);
        let call = dying.exchange(&place, &exchange);
        assert!(timeout(Duration::from_millis(500), call).await.is_err(), "it hangs");
        let key = EntryKey::Worker(name(0));
        let again = EntryChange::new(key.clone(), None, Some("5 5 5 5".into()));
        let mut step = Step::default();
        step.entries = vec![again];
        let made = store.exchange(&place, &asking(Some(step), None)).await.unwrap();
        assert!(made.is_made && workers(&made) == 1, "{made:?}");
        assert_eq!(text_of(&made, &key).as_deref(), Some("5 5 5 5"));
        let Heartbeats::Last(last) = made.heartbeats else { panic!("a store without a clock") };
        assert!(last.iter().all(|last| last.mark.is_empty()), "of the entry before: {last:?}");
        assert_eq!(heartbeats(&server).await, 1);
    }
}

/// Returns the mark of a worker.
async fn mark(store: &DynamoDbStore, worker: &str) -> Arc<str> {
    let shown = store.exchange(&scope(), &Exchange::default()).await.unwrap();
    let Heartbeats::Last(last) = shown.heartbeats else { panic!("a store without a clock") };
    last.iter().find(|last| &*last.worker == worker).unwrap().mark.clone()
}

/// Otherwise a worker that has just renewed is taken for silent.
#[tokio::test]
async fn heartbeat_that_arrives_late_does_not_bring_back_its_mark() {
    let (server, store) = DynamoDbServer::with_table().await;
    let text = entry(0, SHORT);
    let step = adding([(EntryKey::Worker("one".into()), text.clone())]);
    store.exchange(&scope(), &asking(Some(step), None)).await.unwrap();
    let calls = AtomicUsize::new(0);
    let link = Link::new(&server, move |operation, _| {
        let is_first = operation == "UpdateItem" && calls.fetch_add(1, Ordering::Relaxed) == 0;
        if is_first { Fault::Late(Duration::from_secs(3)) } else { Fault::None }
    });
    let mut exchange = Exchange::default();
    exchange.renewals = vec![Renewal::new("one", text, SHORT)];
    let linked = link.store();
    linked.exchange(&scope(), &exchange).await.unwrap();
    let first = mark(&store, "one").await;
    linked.exchange(&scope(), &exchange).await.unwrap();
    let second = mark(&store, "one").await;
    assert!(!first.is_empty() && first != second, "expected two heartbeats");
    sleep(Duration::from_secs(2)).await;
    assert_eq!(mark(&store, "one").await, second);
}

#[tokio::test]
async fn dead_worker_with_a_damaged_mark_is_removed() {
    let (server, store) = DynamoDbServer::with_table().await;
    let dead = HeartbeatRequest::new("dead", 1, SHORT);
    store.heartbeat(&scope(), &dead).await.unwrap();
    let update = server.client().update_item().table_name(TABLE);
    let update = update.key("pk", AttributeValue::S("billing:orders".to_owned()));
    let update = update.key("sk", AttributeValue::S("heartbeat:dead".to_owned()));
    let update = update.update_expression("SET mark = :m");
    let number = AttributeValue::N("7".to_owned());
    update.expression_attribute_values(":m", number).send().await.unwrap();
    let living = store.leases_of(&scope());
    let request = HeartbeatRequest::new("living", 2, SHORT);
    living.exchange(&request).await.unwrap();
    for _ in 0..6 {
        sleep(SHORT / 3).await;
        living.exchange(&request).await.unwrap();
    }
    let workers = living.table().await.unwrap().workers;
    assert_eq!(workers.keys().map(|name| &**name).collect::<Vec<_>>(), ["living"]);
}
