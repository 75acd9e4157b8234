//! Tests how the oracle judges workers that have not seen that all positions were cleared.
//!
//! A worker reads on in its old epoch until its next exchange. Until the shard is added and assigned
//! again, the store has no lease of it, and its epoch in the table is 0.

use std::time::UNIX_EPOCH;

use fastrand::Rng;
use kinestream::store::lease::{AdminEdit, Lease, LeaseTable};
use kinestream::{Checkpoint, ShardId};

use crate::link::Life;
use crate::plan::Scene;
use crate::truth::{Facts, Place, Truth};

/// The epoch in which the shard is read when everything is cleared.
const BEFORE: u64 = 7;

const CLEARED: u64 = 9;

fn shard() -> ShardId {
    "shardId-000000000000".parse().expect("a name of a shard")
}

fn table(cleared: u64, lease: Option<Lease>) -> LeaseTable {
    let leases = lease.map(|lease| (shard(), lease)).into_iter().collect();
    LeaseTable { cleared, leases, ..LeaseTable::default() }
}

/// The stored lease of a shard after an operator has set its position and no worker has added it.
fn only_position() -> Lease {
    Lease { checkpoint: Some(Checkpoint::TrimHorizon), ..Lease::default() }
}

/// Has a worker read a shard with one record, and an operator clear everything.
fn clear(facts: &mut Facts) {
    let mut rng = Rng::with_seed(0);
    let plan = Scene::new(&mut rng).plan(&mut rng);
    facts.begin_life(Life::new("w0".to_owned(), &plan));
    facts.put(0, "1".parse().expect("a sequence number"), UNIX_EPOCH);
    let read = Lease { epoch: BEFORE, ..Lease::default() };
    facts.judge_edit(0, &AdminEdit::Clear, &table(0, Some(read)), &table(CLEARED, None));
}

#[test]
fn position_set_after_a_clear_keeps_old_epochs_over() {
    let truth = Truth::new(1);
    let mut facts = truth.lock();
    clear(&mut facts);
    let edit = AdminEdit::Set { positions: vec![(shard(), Checkpoint::TrimHorizon)] };
    let after = table(CLEARED, Some(only_position()));
    facts.judge_edit(0, &edit, &table(CLEARED, None), &after);
    facts.finish(Place { shard: 0, number: 0, epoch: BEFORE });
    assert!(!facts.shards[0].is_finished(), "a record of an epoch that is over counts");
    facts.finish(Place { shard: 0, number: 0, epoch: CLEARED + 1 });
    assert!(facts.shards[0].is_finished(), "a record of the first new epoch does not count");
}

#[test]
fn damage_after_a_clear_forbids_only_new_epochs() {
    let truth = Truth::new(1);
    let mut facts = truth.lock();
    clear(&mut facts);
    facts.damage(&shard(), &table(CLEARED, Some(only_position())), false);
    facts.judge_damaged(0, 0, BEFORE);
    assert_eq!(facts.end(0).broken, None, "the worker has not seen the clear");
    facts.judge_damaged(0, 0, CLEARED + 1);
    assert!(facts.end(0).broken.is_some(), "the shard begins although it cannot be read");
}
