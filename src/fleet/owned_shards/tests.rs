//! Unit tests of the shards that a worker owns.

use tokio::time::advance;

use super::super::fixtures::{lease_handle, shard, table};
use super::*;

#[test]
fn reset_store_is_restored_with_leases_and_owner_incarnations() {
    let owned = OwnedShards::new("me".into(), 1);
    let workers = [("me", 1), ("other", 2), ("again", 3)];
    let known = table(&workers, &[Some("me"), Some("other"), Some("again"), None]);
    let changes = owned.restore_changes(&known);
    let vouched = changes.iter().filter_map(|change| match change {
        Change::ReviveWorker { worker, .. } => Some(&**worker),
        _ => None,
    });
    assert!(vouched.eq(["again", "other"]));
    let owners = changes.iter().filter_map(|change| match change {
        Change::Restore { incarnation, lease, .. } => Some((lease.owner.as_deref(), *incarnation)),
        _ => None,
    });
    // This worker owns no shard: it has released the lease that the table shows.
    assert!(owners.eq([(None, 0), (Some("other"), 2), (Some("again"), 3), (None, 0)]));
}

#[test]
fn lease_with_a_next_owner_or_a_past_epoch_is_released_unopened() {
    let mut owned = OwnedShards::new("me".into(), 1);
    let mut seen = table(&[("me", 1), ("other", 2)], &[Some("me"), Some("me"), Some("other")]);
    seen.leases.get_mut(&shard(0)).unwrap().next_owner = Some("other".into());
    let settled = owned.reconcile(&seen);
    assert_eq!(settled.changes, [Change::Release { shard: shard(0), epoch: 7 }]);
    let opened: Vec<_> = settled.opened.into_iter().map(|(shard, _)| shard).collect();
    assert_eq!(opened, [shard(1)]);
    owned.last.insert(shard(1), LastOwned { epoch: 7, gone: None });
    let settled = owned.reconcile(&seen);
    assert!(settled.opened.is_empty(), "a shard is opened once per epoch");
    assert_eq!(settled.changes.len(), 2);
}

#[test]
fn restored_lease_has_the_start_listed_after_its_acquisition() {
    let mut seen = table(&[("me", 1)], &[Some("me")]);
    let mut owned = OwnedShards::new("me".into(), 1);
    let lease = Lease { start: None, ..seen.leases[&shard(0)].clone() };
    let watermark = Arc::new(Watermark::default());
    let holding = OwnedShard::new(lease, lease_handle(), watermark, None);
    owned.take(shard(0), holding);
    let start = "49590338271490256608559692538361571095921575989136588898".parse().ok();
    seen.leases.get_mut(&shard(0)).unwrap().start = start.clone();
    assert!(owned.reconcile(&seen).changes.is_empty());
    let restored = |changes: Vec<Change>| match &changes[..] {
        [Change::Restore { lease, .. }] => lease.start.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(restored(owned.restore_changes(&seen)), start);
    seen.leases.clear();
    assert_eq!(restored(owned.reconcile(&seen).changes), start);
}

#[test]
fn rejected_lease_is_released_if_the_store_still_names_this_owner() {
    let seen = table(&[("me", 1)], &[Some("me"), Some("me")]);
    let mut owned = OwnedShards::new("me".into(), 1);
    for number in 0..2 {
        let lease = seen.leases[&shard(number)].clone();
        let lease_handle = lease_handle();
        let watermark = Arc::new(Watermark::default());
        let holding = OwnedShard::new(lease, lease_handle, watermark, None);
        owned.take(shard(number), holding);
    }
    assert!(owned.reconcile(&seen).changes.is_empty());
    // The writer does this when the store rejects a position.
    owned.shards[&shard(1)].lease_handle.end();
    let settled = owned.reconcile(&seen);
    assert_eq!(settled.changes, [Change::Release { shard: shard(1), epoch: 7 }]);
    assert_eq!(settled.lost, [(shard(1), 7)]);
    assert!(owned.shards.keys().eq([&shard(0)]));
    // The shard is not opened again in that epoch.
    let settled = owned.reconcile(&seen);
    assert!(settled.opened.is_empty() && settled.lost.is_empty());
}

#[test]
fn end_that_another_worker_has_stored_is_reported_once() {
    let mut seen = table(&[("me", 1)], &[Some("me"), Some("me"), Some("me")]);
    let mut owned = OwnedShards::new("me".into(), 1);
    for number in 0..3 {
        let lease = seen.leases[&shard(number)].clone();
        let watermark = Arc::new(Watermark::default());
        if number > 0 {
            assert!(watermark.end().is_some(), "every record is acknowledged");
        }
        owned.take(shard(number), OwnedShard::new(lease, lease_handle(), watermark, None));
    }
    // The writer has reported the end of shard 2, and is about to report that of shard 1.
    owned.get(&shard(2), 7).unwrap().is_end_saved = true;
    let handle = owned.shards[&shard(0)].lease_handle.clone();
    for lease in seen.leases.values_mut() {
        (lease.checkpoint, lease.owner) = (Some(Checkpoint::ShardEnd), None);
    }
    let settled = owned.reconcile(&seen);
    assert_eq!(settled.finished, [(shard(0), 7)]);
    assert!(settled.lost.is_empty() && settled.changes.is_empty());
    assert!(handle.is_over());
    assert!(owned.shards.keys().eq([&shard(1)]));
    assert!(owned.reconcile(&seen).finished.is_empty());
}

#[test]
fn lease_of_a_later_origin_is_lost_to_a_stored_lease_of_an_earlier_one() {
    let mut begun = table(&[("me", 1)], &[Some("me")]);
    begun.leases.get_mut(&shard(0)).unwrap().origin = 2;
    let mut owned = OwnedShards::new("me".into(), 1);
    let lease = begun.leases[&shard(0)].clone();
    let watermark = Arc::new(Watermark::default());
    let lease_handle = lease_handle();
    owned.take(shard(0), OwnedShard::new(lease, lease_handle, watermark, None));
    let mut found = table(&[("me", 1)], &[None]);
    let lease = found.leases.get_mut(&shard(0)).unwrap();
    (lease.epoch, lease.origin) = (6, 1);
    let settled = owned.reconcile(&found);
    assert_eq!(settled.lost, [(shard(0), 7)]);
    assert!(settled.changes.is_empty() && owned.shards.is_empty());
}

#[tokio::test(start_paused = true)]
async fn shard_that_a_store_loses_and_finds_again_is_not_reopened() {
    let mut owned = OwnedShards::new("me".into(), 1);
    let seen = table(&[("me", 1)], &[Some("me")]);
    owned.last.insert(shard(0), LastOwned { epoch: 7, gone: None });
    let forgotten = table(&[("me", 1)], &[]);
    // The time counts from the first table without the shard, in the second round as well.
    for _ in 0..2 {
        assert!(owned.reconcile(&seen).opened.is_empty());
        advance(30 * LONGEST_MEMORY).await;
        owned.reconcile(&forgotten);
        advance(LONGEST_MEMORY / 2).await;
        owned.reconcile(&forgotten);
    }
    // After the time limit, the epoch is forgotten.
    advance(LONGEST_MEMORY / 2).await;
    owned.reconcile(&forgotten);
    assert!(owned.last.is_empty());
}
