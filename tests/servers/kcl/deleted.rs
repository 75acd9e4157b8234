//! Finished shards of which a KCL has deleted the rows: they are not read again.

use std::time::Duration;

use futures::StreamExt;
use kinestream::store::lease::{HeartbeatRequest, Membership};
use kinestream::testing::Shard;
use kinestream::{Checkpoint, ErrorKind, IfLeased};
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use super::fake::{FakeKcl, Version};
use super::world::{LEASE, LIMIT, World};
use crate::lease_access::LeaseAccess;
use crate::redis_store::scope;

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
    world.wait_for_rows(3).await;
    kcl.stop().await;
    grandchildren[0].put("new");
    assert_eq!(world.delivered(Duration::from_secs(5)).await, ["new"]);
    assert_eq!(world.table.scan().await.len(), 3, "no row is added for a finished shard");
    assert_eq!(world.delivered(Duration::from_secs(2)).await, [""; 0], "nor after a restart");
}

/// The KCL deletes the rows of a finished shard and of its children.
#[tokio::test]
async fn shard_whose_children_a_kcl_has_finished_is_not_read_again() {
    let world = World::new(1).await;
    world.read_the_root().await;
    world.finish_two_generations().await;
    for _ in 0..2 {
        assert_eq!(world.delivered(Duration::from_secs(5)).await, [""; 0]);
    }
    assert_eq!(world.table.scan().await.len(), 4, "no row is added for a finished shard");
}

/// The lease of the root shows that it is finished once its children, of which only a listing tells,
/// have leases as well. A worker that joins others could assign it before.
#[tokio::test]
async fn worker_that_joins_others_does_not_read_such_a_shard_again() {
    let world = World::new(1).await;
    world.read_the_root().await;
    world.finish_two_generations().await;
    let leases = world.store().leases_of(&scope());
    let mut other = HeartbeatRequest::new("other", 1, LEASE);
    other.capacity = 0;
    let (joined, has_joined) = oneshot::channel();
    let renewing = tokio::spawn(async move {
        let mut joined = Some(joined);
        loop {
            let response = leases.exchange(&other).await;
            if response.is_ok_and(|response| response.membership == Membership::Joined) {
                joined.take().unwrap().send(()).unwrap();
            }
            sleep(LEASE / 4).await;
        }
    });
    timeout(LIMIT, has_joined).await.expect("expected to join after the KCL").unwrap();
    assert_eq!(world.delivered(Duration::from_secs(5)).await, [""; 0]);
    renewing.abort();
    assert_eq!(world.table.scan().await.len(), 4, "no row is added for a finished shard");
}

/// A limit: the children, by which the store sees that the root is finished, are no longer listed.
#[tokio::test]
async fn finished_shard_that_has_left_retention_is_reported_and_all_others_are_read() {
    let world = World::new(1).await;
    world.read_the_root().await;
    world.finish_two_generations().await;
    for shard in world.stream.shards().iter().filter(|shard| !shard.is_open()) {
        shard.expire();
    }
    for shard in world.stream.open_shards() {
        shard.put(shard.id().to_string());
    }
    let consumer = world.consumer().build().unwrap();
    let mut records = consumer.records();
    let (mut delivered, mut errors) = (Vec::new(), Vec::new());
    while delivered.len() < 4 || errors.is_empty() {
        match timeout(LIMIT, records.next()).await.unwrap().unwrap() {
            Ok(record) => {
                delivered.push(record.shard_id().clone());
                record.ack();
            }
            Err(error) => errors.push(error),
        }
    }
    let error = &errors[0];
    assert_eq!(error.kind(), ErrorKind::Trimmed, "{error}");
    assert_eq!(error.shard_id(), Some(&world.stream.shard(0).id()), "{error}");
    delivered.sort();
    let mut open: Vec<_> = world.stream.open_shards().iter().map(Shard::id).collect();
    open.sort();
    assert_eq!(delivered, open);
    // As the guide says.
    let root = world.stream.shard(0).id();
    consumer.set_position(&root, Checkpoint::ShardEnd, IfLeased::Refuse).await.unwrap();
    consumer.close().await.unwrap();
    assert_eq!(world.delivered(Duration::from_secs(4)).await, [""; 0], "and no error");
}
