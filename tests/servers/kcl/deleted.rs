//! Finished shards of which a KCL has deleted the rows: they are not read again.

use std::time::Duration;

use super::fake::{FakeKcl, Version};
use super::world::{LIMIT, World};

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
