//! Tests the checks of workers that have not seen that all positions were cleared.
//!
//! A worker continues to read in its old epoch until its next heartbeat. Until the shard is added
//! and assigned again, the store has no lease of it, and its epoch in the table is 0.

use std::time::UNIX_EPOCH;

use fastrand::Rng;
use kinestream::store::lease::{Lease, LeaseTable};
use kinestream::{Checkpoint, ShardId};

use crate::link::WorkerState;
use crate::plan::Scene;
use crate::truth::{Facts, Place, Truth};

/// The epoch in which the shard is read when all positions are cleared.
const BEFORE: u64 = 7;

const CLEARED: u64 = 9;

fn shard() -> ShardId {
    "shardId-000000000000".parse().expect("a valid shard id")
}

fn table(cleared: u64, lease: Option<Lease>) -> LeaseTable {
    let leases = lease.map(|lease| (shard(), lease)).into_iter().collect();
    let mut table = LeaseTable::default();
    (table.cleared, table.leases) = (cleared, leases);
    table
}

/// Returns the stored lease of a shard after an operator has set its position and before a worker
/// has added it.
fn only_position() -> Lease {
    let mut lease = Lease::default();
    lease.checkpoint = Some(Checkpoint::TrimHorizon);
    lease
}

/// Makes a worker read a shard with one record, and an operator clear all positions.
fn clear(facts: &mut Facts) {
    let mut rng = Rng::with_seed(0);
    let plan = Scene::new(&mut rng).plan(&mut rng);
    facts.add_worker(WorkerState::new("w0".to_owned(), &plan));
    facts.put(0, "1".parse().expect("a valid sequence number"), UNIX_EPOCH);
    facts.check_cleared(0, &table(CLEARED, None));
}

#[test]
fn position_set_after_a_clear_keeps_old_epochs_over() {
    let truth = Truth::new(0, 1);
    let mut facts = truth.lock();
    clear(&mut facts);
    let after = table(CLEARED, Some(only_position()));
    facts.check_set(&shard(), &Checkpoint::TrimHorizon, &table(CLEARED, None), &after);
    facts.finish(Place { shard: 0, number: 0, epoch: BEFORE });
    assert!(
        !facts.shards[0].is_finished(),
        "a record that is finished in an old epoch does not count"
    );
    facts.finish(Place { shard: 0, number: 0, epoch: CLEARED + 1 });
    assert!(
        facts.shards[0].is_finished(),
        "a record that is finished in the first new epoch counts"
    );
}

#[test]
fn damage_after_a_clear_forbids_only_new_epochs() {
    let truth = Truth::new(0, 1);
    let mut facts = truth.lock();
    clear(&mut facts);
    facts.damage(&shard(), &table(CLEARED, Some(only_position())), false);
    facts.check_damaged(0, 0, BEFORE);
    assert_eq!(
        facts.end(0).broken,
        None,
        "a worker that has not seen the clear may read in its old epoch"
    );
    facts.check_damaged(0, 0, CLEARED + 1);
    assert!(facts.end(0).broken.is_some(), "a new epoch of an unreadable shard breaks a promise");
}
