//! An application leaves the lease table of a KCL for the layout of the store.

use std::time::Duration;

use kinestream::store::{CheckpointStore, Scope};
use kinestream::{Checkpoint, ShardId};

use super::world::{LIMIT, World};
use crate::redis_store::scope;

/// The recipe of the guide, after a KCL has deleted the rows of finished shards, and this crate has read
/// a part of an aggregated record.
#[tokio::test]
async fn copied_positions_continue_without_the_lease_table() {
    let world = World::new(1).await;
    world.read_the_root().await;
    world.finish_two_generations().await;
    let fleet = world.start(2);
    for shard in world.stream.open_shards() {
        world.ledger.put(&shard, 3);
    }
    world.drain(LIMIT).await;
    fleet.close().await;
    let rows = world.table.scan().await;

    let with_kcl_table = world.store();
    let without = world.server.store();
    let positions = with_kcl_table.load(&scope()).await.unwrap();
    let positions: Vec<(ShardId, Checkpoint)> = positions.into_iter().collect();
    without.save(&Scope::new("billing-2", "orders"), &positions).await.unwrap();

    assert_eq!(positions.len(), 7, "also of the shards without a row: {positions:?}");
    for shard in world.stream.open_shards() {
        shard.put(format!("new in {}", shard.id()));
    }
    let consumer = || world.consumer().application("billing-2").store(world.server.store());
    let mut delivered = world.delivered_by(consumer(), Duration::from_secs(4)).await;
    delivered.sort();
    let shards = world.stream.open_shards();
    let expected: Vec<String> = shards.iter().map(|it| format!("new in {}", it.id())).collect();
    assert_eq!(delivered, expected);
    let unchanged = world.table.scan().await;
    assert_eq!(format!("{unchanged:?}"), format!("{rows:?}"), "the lease table is not used");
}
