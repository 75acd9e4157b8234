//! Operators' edits beside a KCL.

use std::time::Duration;

use kinestream::{Checkpoint, ErrorKind, IfLeased, StartingPosition};
use tokio::time::{Instant, sleep, timeout};

use super::fake::{FakeKcl, Version};
use super::world::{LEASE, LIMIT, World, row, string};

impl World {
    /// Waits until a KCL holds all rows.
    async fn wait_for_holders(&self) {
        timeout(LIMIT, async {
            let is_held = |rows: &[super::requests::Lease]| {
                !rows.is_empty() && rows.iter().all(|row| row.owner.is_some())
            };
            while !is_held(&self.table.scan().await) {
                sleep(Duration::from_millis(50)).await;
            }
        })
        .await
        .expect("expected the KCL to take all leases");
    }
}

#[tokio::test]
async fn positions_of_a_live_kcl_are_not_cleared() {
    let world = World::new(2).await;
    let kcl = FakeKcl::start(Version::Two, 1, &world.table, &world.kinesis, &world.ledger);
    world.wait_for_holders().await;
    let operator = world.consumer().build().unwrap();
    let clear = operator.clear_positions(IfLeased::Refuse);
    let error = timeout(LEASE, clear).await.expect("its renewals show it").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InUse, "{error}");
    assert!(error.to_string().contains("kcl-"), "{error}");
    assert_eq!(world.table.scan().await.len(), 2, "expected all rows");
    // The KCL would not follow a seek.
    let error = operator.seek(StartingPosition::TrimHorizon).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InUse, "{error}");
    kcl.assert_alive();
    kcl.kill().await;
    let killed = Instant::now();
    // One that has not seen the KCL renew. To the first one, it counts as live for a lease duration.
    let operator = world.consumer().build().unwrap();
    let clear = operator.clear_positions(IfLeased::Refuse);
    timeout(LIMIT, clear).await.expect("expected an end of the wait").unwrap();
    let waited = killed.elapsed();
    assert!(waited < 2 * LEASE, "expected to wait for one lease duration, not {waited:?}");
    assert_eq!(world.table.scan().await.len(), 0, "expected no rows");
}

#[tokio::test]
async fn forced_edit_beside_a_live_kcl_is_made() {
    let world = World::new(2).await;
    let kcl = FakeKcl::start(Version::Two, 1, &world.table, &world.kinesis, &world.ledger);
    world.wait_for_holders().await;
    let operator = world.consumer().build().unwrap();
    let clear = operator.clear_positions(IfLeased::Force);
    timeout(LIMIT, clear).await.expect("expected no wait").unwrap();
    // The KCL starts again with an empty table.
    world.wait_for_holders().await;
    kcl.assert_alive();
}

#[tokio::test]
async fn position_is_set_unless_a_live_kcl_holds_the_shard() {
    let world = World::new(2).await;
    let [held, free] = [0, 1].map(|index| world.stream.shard(index).id());
    let mut of_kcl = row(held.as_str(), "TRIM_HORIZON");
    of_kcl.insert("leaseOwner".to_owned(), string("kcl-7"));
    world.put_row(of_kcl).await;
    world.put_row(row(free.as_str(), "TRIM_HORIZON")).await;
    let table = world.table.clone();
    let renewing = tokio::spawn(async move {
        loop {
            for lease in table.scan().await.iter().filter(|lease| lease.owner.is_some()) {
                table.renew(lease, false).await;
            }
            sleep(LEASE / 5).await;
        }
    });
    let operator = world.consumer().build().unwrap();
    let set = |shard| operator.set_position(shard, Checkpoint::ShardEnd, IfLeased::Refuse);
    timeout(LIMIT, set(&free)).await.expect("expected no wait").unwrap();
    let error = timeout(LIMIT, set(&held)).await.expect("expected a decision").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InUse, "{error}");
    let said = error.to_string();
    assert!(said.contains("kcl-7") && said.contains(held.as_str()), "{said}");
    renewing.abort();
    sleep(LEASE).await;
    timeout(LIMIT, set(&held)).await.expect("expected a decision").unwrap();
}
