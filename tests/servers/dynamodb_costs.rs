//! The requests and the capacity units of `DynamoDbStore`, as the server reports them. The guide page
//! `dynamodb` has these figures.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use kinestream::store::CheckpointStore;
use kinestream::store::lease::{
    Change, EntryKey, Exchange, FencedSave, HeartbeatRequest, LeaseStore, Leases, Renewal,
    WorkerLoad,
};
use kinestream::{Checkpoint, DynamoDbStore, ShardId};
use serde_json::Value;

use crate::dynamodb_faults::{asking, text_of};
use crate::dynamodb_kcl_layout::create_lease_table;
use crate::dynamodb_link::{Fault, Link, Sent, error};
use crate::dynamodb_server::DynamoDbServer;
use crate::redis_store::{scope, shard};

/// The lease table of a KCL.
const LEASES: &str = "leases";

/// The shards of the largest application, by the guide page `dynamodb`.
const MOST_SHARDS: u32 = 15_000;

/// The cost of some requests.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Cost {
    requests: usize,
    reads: f64,
    writes: f64,
}

impl Cost {
    fn of(sent: &[Sent]) -> Self {
        let is_read = |sent: &&Sent| matches!(&*sent.operation, "Query" | "Scan" | "BatchGetItem");
        let sum = |sum, sent: &Sent| sum + sent.units;
        let reads = sent.iter().filter(is_read).fold(0.0, sum);
        Self { requests: sent.len(), reads, writes: sent.iter().fold(0.0, sum) - reads }
    }
}

fn worker(name: u32) -> String {
    format!("ip-10-0-0-{name}.eu-west-1.compute.internal-4711-0123456789abcdef")
}

const NUMBER: &str = "49590338271490256608559692538361571095921575989136588898";

/// The table that has the positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    Own,
    Kcl,
}

impl Layout {
    fn store(self, link: &Link) -> DynamoDbStore {
        match self {
            Self::Own => link.store(),
            Self::Kcl => link.store().kcl_table(LEASES),
        }
    }
}

/// Adds the rows of a KCL that has stopped, one for each of 1,000 shards.
async fn add_rows(server: &DynamoDbServer) {
    let client = server.client();
    create_lease_table(&client, LEASES).await;
    let string = |text: &str| AttributeValue::S(text.to_owned());
    let number = |number: &str| AttributeValue::N(number.to_owned());
    for index in 0..1000 {
        let request = client.put_item().table_name(LEASES);
        let request = request.item("leaseKey", string(shard(index).as_str()));
        let request = request.item("leaseCounter", number("123456"));
        let request = request.item("ownerSwitchesSinceCheckpoint", number("0"));
        let request = request.item("checkpoint", string(NUMBER));
        let request = request.item("checkpointSubSequenceNumber", number("0"));
        let request = request.item("startingHashKey", string(&u128::MAX.to_string()));
        let request = request.item("endingHashKey", string(&u128::MAX.to_string()));
        let parents = AttributeValue::Ss(vec!["shardId-000000001000".to_owned()]);
        request.item("parentShardId", parents).send().await.unwrap();
    }
}

/// Adds the changes that add a shard and assign it to a worker.
fn add(request: &mut HeartbeatRequest, shard: ShardId, to: u32) {
    request.changes.push(Change::Add {
        shard: shard.clone(),
        parents: Vec::new(),
        start: Some(NUMBER.parse().unwrap()),
        checkpoint: Some(Checkpoint::TrimHorizon),
    });
    request.changes.push(Change::Assign { shard, to: worker(to).into() });
}

/// Makes the start of an application with 1,000 shards and this many workers. Returns the lease
/// tables of the workers, and the cost of the first one.
async fn start(link: &Link, layout: Layout, workers: u32) -> (Vec<Leases>, Cost) {
    let store = std::sync::Arc::new(layout.store(link));
    let mut fleet = Vec::new();
    let mut first = None;
    for name in 0..workers {
        let leases = Leases::new(store.clone(), scope());
        let mut request = HeartbeatRequest::new(worker(name), 7, Duration::from_secs(10));
        if name == 0 {
            link.take();
            for index in 0..1000 {
                add(&mut request, shard(index), 0);
            }
        }
        leases.exchange(&request).await.unwrap();
        first.get_or_insert_with(|| Cost::of(&link.take()));
        fleet.push(leases);
    }
    (fleet, first.unwrap())
}

/// Returns the costs in a fleet of this many workers.
///
/// A request that a busy machine does not answer in time is sent again, and costs twice. Such a
/// measurement does not count.
async fn costs(layout: Layout, workers: u32) -> BTreeMap<&'static str, Cost> {
    for _ in 0..5 {
        if let Some(costs) = measured_costs(layout, workers).await {
            return costs;
        }
    }
    panic!("expected a measurement in which the server answers each request in time");
}

/// Returns the costs, or `None` if the server did not answer a request in time.
async fn measured_costs(layout: Layout, workers: u32) -> Option<BTreeMap<&'static str, Cost>> {
    let mut shown = BTreeMap::new();
    let (server, _store) = DynamoDbServer::with_table().await;
    if layout == Layout::Kcl {
        add_rows(&server).await;
    }
    let link = Link::new(&server, |_, _| Fault::None);
    let (fleet, first) = start(&link, layout, workers).await;
    shown.insert("first start, 1,000 shards", first);
    let store = layout.store(&link);
    let mut request = HeartbeatRequest::new(worker(0), 7, Duration::from_secs(10));
    let table = fleet[0].exchange(&request).await.unwrap().table.unwrap();
    link.take();
    let whole = store.exchange(&scope(), &Exchange::default()).await.unwrap();
    shown.insert("whole table", Cost::of(&link.take()));
    let key = EntryKey::Worker(worker(0).into());
    let mut exchange = asking(None, Some(table.version));
    let entry = text_of(&whole, &key).unwrap();
    exchange.renewals = vec![Renewal::new(worker(0), &*entry, Duration::from_secs(10))];
    store.exchange(&scope(), &exchange).await.unwrap();
    shown.insert("renewal", Cost::of(&link.take()));
    // Frees one lease, and acquires it in a new epoch.
    let epoch = table.leases[&shard(0)].epoch;
    let assign = Change::Assign { shard: shard(0), to: worker(0).into() };
    request.changes = vec![Change::Release { shard: shard(0), epoch }, assign];
    request.known = Some((table.generation, table.version));
    fleet[0].exchange(&request).await.unwrap();
    shown.insert("renewal with a change of one lease", Cost::of(&link.take()));
    exchange.renewals.clear();
    store.exchange(&scope(), &exchange).await.unwrap();
    shown.insert("reading that change", Cost::of(&link.take()));
    let before = fleet[0].table().await.unwrap().version;
    link.take();
    request.changes.clear();
    request.size = NonZeroU32::new(100);
    request.load = Some(WorkerLoad::of((0..30).map(|index| (shard(index), 1000))));
    fleet[0].exchange(&request).await.unwrap();
    shown.insert("renewal that states another load", Cost::of(&link.take()));
    store.exchange(&scope(), &asking(None, Some(before))).await.unwrap();
    shown.insert("reading that load", Cost::of(&link.take()));
    let table = fleet[0].table().await.unwrap();
    assert!(table.leases[&shard(0)].epoch > epoch);
    link.take();
    let text = format!("AFTER_SEQUENCE_NUMBER:{}9", &NUMBER[1..]);
    let save = |index: u32| {
        let epoch = table.leases[&shard(index)].epoch;
        let expected = text_of(&whole, &EntryKey::Position(shard(index)));
        FencedSave::new(shard(index), epoch, expected, &*text)
    };
    for (what, shards) in [
        ("checkpoint of one shard", 0..1),
        ("checkpoints of 100 shards", 1..101),
        ("checkpoints of 800 shards", 101..901),
    ] {
        let saves: Vec<FencedSave> = shards.map(save).collect();
        let outcomes = store.save_fenced(&scope(), &saves).await.unwrap();
        assert!(outcomes.iter().all(|outcome| outcome.is_saved), "{outcomes:?}");
        shown.insert(what, Cost::of(&link.take()));
    }
    assert_eq!(store.load(&scope()).await.unwrap().len(), 1000);
    for (what, cost) in &shown {
        println!("{layout:?}, {workers} workers, {what}: {cost:?}");
    }
    (link.abandoned() == 0).then_some(shown)
}

fn cost(requests: usize, reads: f64, writes: f64) -> Cost {
    Cost { requests, reads, writes }
}

#[tokio::test]
async fn requests_and_units_are_those_of_the_guide() {
    for workers in [1, 10, 100] {
        let shown = costs(Layout::Own, workers).await;
        let front = if workers == 100 { 4.0 } else { 1.0 };
        assert_eq!(shown["renewal"], cost(2, front, 1.0));
        assert_eq!(shown["checkpoint of one shard"], cost(1, 0.0, 1.0));
        assert_eq!(shown["checkpoints of 800 shards"], cost(800, 0.0, 800.0));
        assert_eq!(shown["reading that change"], cost(4, 3.0 + front, 0.0));
        let change = shown["renewal with a change of one lease"];
        assert_eq!(change.requests, 7);
        assert!(change.reads <= 4.0 + front && change.writes <= 17.0, "{change:?}");
        let load = shown["renewal that states another load"];
        assert!(load.requests == 4 && load.writes <= 9.0, "{load:?}");
        assert_eq!(shown["reading that load"], cost(2, front + front.min(2.0), 0.0));
        let whole = shown["whole table"];
        assert!(whole.requests == 1 && whole.reads <= 75.0, "{whole:?}");
        let first = shown["first start, 1,000 shards"];
        assert!(first.requests <= 140 && first.writes <= 3200.0, "{first:?}");
    }
}

#[tokio::test]
async fn requests_and_units_with_the_table_of_a_kcl_are_those_of_the_guide() {
    for workers in [1, 100] {
        let shown = costs(Layout::Kcl, workers).await;
        let front = if workers == 100 { 4.0 } else { 1.0 };
        assert_eq!(shown["renewal"], cost(2, front, 1.0));
        assert_eq!(shown["checkpoint of one shard"], cost(2, 1.0, 1.0));
        assert_eq!(shown["checkpoints of 100 shards"], cost(101, 100.0, 100.0));
        let many = shown["checkpoints of 800 shards"];
        assert!(many.requests == 801 && many.reads <= 150.0 && many.writes <= 800.0, "{many:?}");
        assert_eq!(shown["reading that change"], cost(4, 3.0 + front, 0.0));
        let change = shown["renewal with a change of one lease"];
        assert_eq!(change.requests, 8);
        assert!(change.reads <= 5.0 + front && change.writes <= 17.0, "{change:?}");
        let whole = shown["whole table"];
        assert!(whole.requests == 2 && whole.reads <= 180.0, "{whole:?}");
        let first = shown["first start, 1,000 shards"];
        assert!(first.requests <= 145 && first.writes <= 3100.0, "{first:?}");
    }
}

/// Returns the size of an attribute, as DynamoDB counts it
/// (<https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/CapacityUnitCalculations.html>).
fn size(value: &Value) -> usize {
    let (kind, value) = value.as_object().unwrap().iter().next().unwrap();
    match (&**kind, value) {
        ("S", Value::String(text)) => text.len(),
        ("N", Value::String(digits)) => digits.len() / 2 + 2,
        ("M", Value::Object(map)) => {
            3 + map.iter().map(|(key, it)| 1 + key.len() + size(it)).sum::<usize>()
        }
        ("L", Value::Array(list)) => 3 + list.iter().map(|it| 1 + size(it)).sum::<usize>(),
        _ => 1,
    }
}

/// The first start is the largest step: it has the lease of each shard with its first sequence number
/// and its owner, and its position, which is pending.
#[tokio::test]
async fn first_start_with_the_most_shards_of_the_guide_fits_in_a_transaction() {
    let (server, _store) = DynamoDbServer::with_table().await;
    let bodies = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = std::sync::Arc::clone(&bodies);
    let link = Link::new(&server, move |operation, body| {
        if operation != "TransactWriteItems" {
            return Fault::None;
        }
        seen.lock().unwrap().push(body.clone());
        Fault::Answer(400, error("AccessDeniedException", "enough"))
    });
    let leases = Leases::new(std::sync::Arc::new(link.store()), scope());
    let mut request = HeartbeatRequest::new(worker(0), 7, Duration::from_secs(10));
    for index in 0..MOST_SHARDS {
        add(&mut request, shard(index), 0);
    }
    leases.exchange(&request).await.unwrap_err();
    let body = bodies.lock().unwrap().remove(0);
    let items: Vec<usize> = body["TransactItems"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|item| item["Update"]["ExpressionAttributeValues"].as_object())
        .map(|values| values.values().map(size).sum())
        .collect();
    let (largest, sum) = (items.iter().max().unwrap(), items.iter().sum::<usize>());
    println!("{} items, the largest of {largest} bytes, together {sum} bytes", items.len());
    assert!(*largest < 400_000 && sum < 4_000_000, "{largest} {sum}");
}
