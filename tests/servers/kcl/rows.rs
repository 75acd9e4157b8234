//! Single rows: those that a KCL has deleted, that cannot be read, and of other streams.

use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use futures::StreamExt;
use kinestream::{Checkpoint, Consumer, ErrorKind, IfLeased};
use tokio::time::{sleep, timeout};

use super::fake::{FakeKcl, Version};
use super::requests::{Item, Lease};
use super::world::{LEASE, World};

const LIMIT: Duration = Duration::from_secs(20);

fn string(text: &str) -> AttributeValue {
    AttributeValue::S(text.to_owned())
}

/// Returns the row of a lease without an owner.
fn row(key: &str, checkpoint: &str) -> Item {
    let number = || AttributeValue::N("0".to_owned());
    let attributes = [
        ("leaseKey", string(key)),
        ("leaseCounter", number()),
        ("ownerSwitchesSinceCheckpoint", number()),
        ("checkpoint", string(checkpoint)),
        ("checkpointSubSequenceNumber", number()),
    ];
    attributes.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

impl World {
    async fn put_row(&self, item: Item) {
        let request = self.table.client.put_item().table_name(&self.table.name);
        request.set_item(Some(item)).send().await.unwrap();
    }

    async fn row(&self, key: &str) -> Option<Item> {
        let request = self.table.client.get_item().table_name(&self.table.name);
        request.key("leaseKey", string(key)).send().await.unwrap().item
    }

    /// Returns the data of the records that a worker of this crate delivers within a time.
    async fn delivered(&self, time: Duration) -> Vec<String> {
        let consumer = self.consumer().build().unwrap();
        let mut records = consumer.records();
        let mut found = Vec::new();
        let _over = timeout(time, async {
            while let Some(record) = records.next().await {
                let record = record.unwrap();
                found.push(String::from_utf8(record.data().to_vec()).unwrap());
                record.ack();
            }
        })
        .await;
        consumer.close().await.unwrap();
        found
    }
}

#[tokio::test]
async fn finished_shards_without_rows_are_not_read_again() {
    let world = World::new(1).await;
    let kcl = FakeKcl::start(Version::Two, 1, &world.table, &world.kinesis, &world.ledger);
    let root = world.stream.shard(0);
    world.ledger.put(&root, 1);
    let [left, right] = root.split();
    world.ledger.put(&left, 1);
    let grandchildren = left.split();
    for shard in [&right, &grandchildren[0], &grandchildren[1]] {
        world.ledger.put(shard, 1);
    }
    world.drain(LIMIT).await;
    // The KCL deletes the rows of the root and of its first child.
    timeout(LIMIT, async {
        while world.table.scan().await.len() > 3 {
            sleep(Duration::from_millis(100)).await;
        }
    })
    .await
    .expect("expected the KCL to delete the rows of finished shards");
    kcl.stop().await;
    grandchildren[0].put("new");
    assert_eq!(world.delivered(Duration::from_secs(5)).await, ["new"]);
    assert_eq!(world.table.scan().await.len(), 3, "no row is added for a finished shard");
    assert_eq!(world.delivered(Duration::from_secs(2)).await, [""; 0], "nor after a restart");
}

#[tokio::test]
async fn kcl_reads_the_children_of_a_shard_that_this_crate_has_ended() {
    let world = World::new(1).await;
    let fleet = world.start(1);
    let root = world.stream.shard(0);
    sleep(Duration::from_secs(1)).await;
    world.ledger.put(&root, 1);
    let [left, right] = root.split();
    timeout(LIMIT, async {
        while !world.table.scan().await.iter().any(Lease::is_ended) {
            sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .expect("expected the end of the parent");
    fleet.close().await;
    let rows = world.table.scan().await;
    assert_eq!(rows.len(), 3, "{rows:?}");
    assert!(rows.iter().all(|row| row.owner.is_none()), "expected released rows: {rows:?}");
    let parent = rows.iter().find(|row| row.key == root.id().as_str()).unwrap();
    let mut children = parent.children.clone();
    children.sort();
    assert_eq!(children, [left.id().to_string(), right.id().to_string()]);
    world.ledger.put(&left, 1);
    world.ledger.put(&right, 1);
    let _kcl = FakeKcl::start(Version::Three, 1, &world.table, &world.kinesis, &world.ledger);
    world.drain(LIMIT).await;
}

#[tokio::test]
async fn unreadable_row_is_reported_and_left_as_it_is_until_a_position_is_set() {
    let world = World::new(2).await;
    let [good, bad] = [0, 1].map(|index| world.stream.shard(index));
    world.put_row(row(good.id().as_str(), "TRIM_HORIZON")).await;
    let mut damaged = row(bad.id().as_str(), "AT_TIMESTAMP");
    damaged.insert("later".to_owned(), string("kept"));
    world.put_row(damaged.clone()).await;
    good.put("good");
    bad.put("bad");
    let consumer = world.consumer().build().unwrap();
    let mut records = consumer.records();
    let (mut delivered, mut errors) = (Vec::new(), Vec::new());
    while delivered.len() + errors.len() < 2 {
        match timeout(LIMIT, records.next()).await.unwrap().unwrap() {
            Ok(record) => delivered.push(record.data().to_vec()),
            Err(error) => errors.push(error),
        }
    }
    assert_eq!(delivered, [b"good"]);
    assert_eq!(errors[0].kind(), ErrorKind::StoreCorrupt);
    let said = errors[0].to_string();
    assert!(said.contains("KCL table leases") && said.contains("AT_TIMESTAMP"), "{said}");
    let now = world.row(bad.id().as_str()).await.unwrap();
    for name in ["checkpoint", "leaseCounter", "later"] {
        assert_eq!(now.get(name), damaged.get(name), "{name}");
    }
    consumer.set_position(&bad.id(), Checkpoint::TrimHorizon, IfLeased::Refuse).await.unwrap();
    let record = timeout(LIMIT, records.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(record.data(), b"bad");
    assert_eq!(world.row(bad.id().as_str()).await.unwrap()["later"], string("kept"));
}

#[tokio::test]
async fn rows_of_other_kinds_and_streams_stay_as_they_are() {
    let world = World::new(1).await;
    let id = world.stream.shard(0).id();
    let key = |stream: &str| format!("123456789012:{stream}:1700000000:{id}");
    // With the same shard, finished, before and after the row of this stream in any order.
    let others = ["alpha", "payments", "zeta"].map(|name| row(&key(name), "SHARD_END"));
    let mut leader = Item::from([("leaseKey".to_owned(), string("Leader"))]);
    leader.insert("entityType".to_owned(), string("LEADER"));
    let own = [row(&key("orders"), "TRIM_HORIZON"), leader.clone()];
    for item in own.iter().chain(&others) {
        world.put_row(item.clone()).await;
    }
    world.stream.shard(0).put("first");
    assert_eq!(world.delivered(Duration::from_secs(3)).await, ["first"]);
    for other in others {
        let name = other["leaseKey"].as_s().unwrap();
        assert_eq!(world.row(name).await.as_ref(), Some(&other));
    }
    assert_eq!(world.row("Leader").await, Some(leader));
    let moved = world.row(&key("orders")).await.unwrap();
    assert_ne!(moved["checkpoint"], string("TRIM_HORIZON"), "{moved:?}");
    assert_eq!(world.row(id.as_str()).await, None, "no row of a single stream is added");
}

#[tokio::test]
async fn consumer_by_arn_continues_in_the_rows_of_the_name() {
    let world = World::new(1).await;
    let shard = world.stream.shard(0);
    world.put_row(row(shard.id().as_str(), "TRIM_HORIZON")).await;
    shard.put("first");
    assert_eq!(world.delivered(Duration::from_secs(3)).await, ["first"]);
    shard.put("second");
    let arn = "arn:aws:kinesis:eu-west-1:123456789012:stream/orders";
    let by_arn = Consumer::builder(world.kinesis.client(), arn).application("billing");
    let consumer = by_arn.store(world.store()).lease_duration(LEASE).build().unwrap();
    let record = timeout(LIMIT, consumer.records().next()).await.unwrap().unwrap().unwrap();
    assert_eq!(record.data(), b"second");
    consumer.close().await.unwrap();
    assert_eq!(world.table.scan().await.len(), 1, "a mark of the migration is no row");
}

#[tokio::test]
async fn rows_of_another_application_are_refused() {
    let world = World::new(1).await;
    assert_eq!(world.delivered(Duration::from_secs(2)).await, [""; 0]);
    let consumer = world.consumer().application("another").build().unwrap();
    let error = timeout(LIMIT, consumer.records().next()).await.unwrap().unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Configuration);
    assert!(error.to_string().contains("belongs to billing:orders"), "{error}");
}
