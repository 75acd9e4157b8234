//! The requests and the capacity units of `DynamoDbStore`, as the server reports them. The guide page
//! `dynamodb` has these figures.

use std::collections::BTreeMap;
use std::time::Duration;

use kinestream::store::CheckpointStore;
use kinestream::store::lease::{
    Change, EntryKey, Exchange, FencedSave, HeartbeatRequest, LeaseStore, Leases, Renewal,
};
use kinestream::{Checkpoint, ShardId};

use crate::dynamodb_faults::{asking, text_of};
use crate::dynamodb_link::{Fault, Link, Sent};
use crate::dynamodb_server::DynamoDbServer;
use crate::redis_store::{scope, shard};

/// The cost of some requests.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Cost {
    requests: usize,
    reads: f64,
    writes: f64,
}

impl Cost {
    fn of(sent: &[Sent]) -> Self {
        let is_read = |sent: &&Sent| matches!(&*sent.operation, "Query" | "BatchGetItem");
        let sum = |sum, sent: &Sent| sum + sent.units;
        let reads = sent.iter().filter(is_read).fold(0.0, sum);
        Self { requests: sent.len(), reads, writes: sent.iter().fold(0.0, sum) - reads }
    }
}

fn worker(name: u32) -> String {
    format!("ip-10-0-0-{name}.eu-west-1.compute.internal-4711-0123456789abcdef")
}

/// Makes the start of an application with 1,000 shards and this many workers. Returns the lease
/// tables of the workers, and the cost of the first one.
async fn start(link: &Link, workers: u32) -> (Vec<Leases>, Cost) {
    let store = std::sync::Arc::new(link.store());
    let mut fleet = Vec::new();
    let mut first = None;
    for name in 0..workers {
        let leases = Leases::new(store.clone(), scope());
        let mut request = HeartbeatRequest::new(worker(name), 7, Duration::from_secs(10));
        if name == 0 {
            link.take();
            for index in 0..1000 {
                let shard: ShardId = shard(index);
                request.changes.push(Change::Add {
                    shard: shard.clone(),
                    parents: Vec::new(),
                    start: Some(
                        "49590338271490256608559692538361571095921575989136588898".parse().unwrap(),
                    ),
                    checkpoint: Some(Checkpoint::TrimHorizon),
                });
                request.changes.push(Change::Assign { shard, to: worker(0).into() });
            }
        }
        leases.exchange(&request).await.unwrap();
        first.get_or_insert_with(|| Cost::of(&link.take()));
        fleet.push(leases);
    }
    (fleet, first.unwrap())
}

#[tokio::test]
async fn requests_and_units_are_those_of_the_guide() {
    let mut shown = BTreeMap::new();
    for workers in [1, 10, 100] {
        let (server, _store) = DynamoDbServer::with_table().await;
        let link = Link::new(&server, |_, _| Fault::None);
        let (fleet, first) = start(&link, workers).await;
        shown.insert((workers, "first start, 1,000 shards"), first);
        let store = link.store();
        let mut request = HeartbeatRequest::new(worker(0), 7, Duration::from_secs(10));
        let table = fleet[0].exchange(&request).await.unwrap().table.unwrap();
        link.take();
        let whole = store.exchange(&scope(), &Exchange::default()).await.unwrap();
        shown.insert((workers, "whole table"), Cost::of(&link.take()));
        let key = EntryKey::Worker(worker(0).into());
        let mut exchange = asking(None, Some(table.version));
        let entry = text_of(&whole, &key).unwrap();
        exchange.renewals = vec![Renewal::new(worker(0), &*entry, Duration::from_secs(10))];
        store.exchange(&scope(), &exchange).await.unwrap();
        shown.insert((workers, "renewal"), Cost::of(&link.take()));
        // Frees one lease, and acquires it in a new epoch.
        let epoch = table.leases[&shard(0)].epoch;
        let assign = Change::Assign { shard: shard(0), to: worker(0).into() };
        request.changes = vec![Change::Release { shard: shard(0), epoch }, assign];
        request.known = Some((table.generation, table.version));
        fleet[0].exchange(&request).await.unwrap();
        shown.insert((workers, "renewal with a change of one lease"), Cost::of(&link.take()));
        exchange.renewals.clear();
        store.exchange(&scope(), &exchange).await.unwrap();
        shown.insert((workers, "reading that change"), Cost::of(&link.take()));
        let table = fleet[0].table().await.unwrap();
        assert!(table.leases[&shard(0)].epoch > epoch);
        link.take();
        let text = "AFTER_SEQUENCE_NUMBER:49590338271490256608559692538361571095921575989136588898";
        let save = |index: u32| {
            let epoch = table.leases[&shard(index)].epoch;
            FencedSave::new(shard(index), epoch, Some("TRIM_HORIZON".into()), text)
        };
        let outcomes = store.save_fenced(&scope(), &[save(1)]).await.unwrap();
        assert!(outcomes[0].is_saved);
        shown.insert((workers, "checkpoint of one shard"), Cost::of(&link.take()));
        assert_eq!(store.load(&scope()).await.unwrap().len(), 1000);
    }
    for ((workers, what), cost) in &shown {
        println!("{workers} workers, {what}: {cost:?}");
    }
    let cost = |requests, reads, writes| Cost { requests, reads, writes };
    for workers in [1, 10, 100] {
        let front = if workers == 100 { 4.0 } else { 1.0 };
        assert_eq!(shown[&(workers, "renewal")], cost(2, front, 1.0));
        assert_eq!(shown[&(workers, "checkpoint of one shard")], cost(1, 0.0, 1.0));
        assert_eq!(shown[&(workers, "reading that change")], cost(4, 3.0 + front, 0.0));
        let change = shown[&(workers, "renewal with a change of one lease")];
        assert_eq!(change.requests, 7);
        assert!(change.reads <= 4.0 + front && change.writes <= 17.0, "{change:?}");
        let whole = shown[&(workers, "whole table")];
        assert!(whole.requests == 1 && whole.reads <= 75.0, "{whole:?}");
        let first = shown[&(workers, "first start, 1,000 shards")];
        assert!(first.requests <= 140 && first.writes <= 3200.0, "{first:?}");
    }
}
