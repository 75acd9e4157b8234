//! Invariants of the rules, for random changes of several workers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::{checkpoint, shard};
use crate::record::ShardId;
use crate::store::lease::{
    AdminEdit, Change, EditOutcome, IfLeased, Lease, LeaseTable, WorkerEntry,
};

const WORKERS: [&str; 3] = ["a", "b", "c"];

/// A change, drawn without the epochs of the table that it meets.
#[derive(Debug, Clone)]
enum Drawn {
    Join(usize),
    Remove(usize),
    Add(usize, Option<u64>),
    Assign(usize, usize),
    Offer(usize, usize),
    Release(usize, usize, bool),
    Finish(usize, bool),
    MarkExpired(usize),
    Identify(usize, u64),
    Replace(usize, u64),
    Restore(usize, u64),
    Set(usize, u64, bool),
    Clear(bool),
    /// The clock moves by these milliseconds.
    Time(i64),
}

fn any_change() -> impl Strategy<Value = Drawn> {
    let (worker, index) = (0..3_usize, 0..3_usize);
    prop_oneof![
        3 => worker.clone().prop_map(Drawn::Join),
        1 => worker.clone().prop_map(Drawn::Remove),
        3 => (index.clone(), prop::option::of(0..9_u64)).prop_map(|(at, to)| Drawn::Add(at, to)),
        6 => (index.clone(), worker.clone()).prop_map(|(at, to)| Drawn::Assign(at, to)),
        3 => (index.clone(), worker.clone()).prop_map(|(at, to)| Drawn::Offer(at, to)),
        4 => (index.clone(), worker, any::<bool>()).prop_map(|(at, by, now)| Drawn::Release(at, by, now)),
        1 => (index.clone(), any::<bool>()).prop_map(|(at, now)| Drawn::Finish(at, now)),
        1 => index.clone().prop_map(Drawn::MarkExpired),
        1 => (index.clone(), 0..3_u64).prop_map(|(at, start)| Drawn::Identify(at, start)),
        1 => (index.clone(), 0..3_u64).prop_map(|(at, start)| Drawn::Replace(at, start)),
        1 => (index.clone(), 0..9_u64).prop_map(|(at, to)| Drawn::Restore(at, to)),
        1 => (index, 0..9_u64, any::<bool>()).prop_map(|(at, to, force)| Drawn::Set(at, to, force)),
        1 => any::<bool>().prop_map(Drawn::Clear),
        2 => (-5_000..5_000_i64).prop_map(Drawn::Time),
    ]
}

/// The table, and what was seen of it.
struct World {
    table: LeaseTable,
    now: Duration,
    /// The highest epoch of each shard, cleared ones included.
    epochs: BTreeMap<ShardId, u64>,
    known: Option<Lease>,
}

impl World {
    fn new() -> Self {
        let (table, epochs) = (LeaseTable::default(), BTreeMap::new());
        Self { table, now: Duration::from_secs(1_700_000_000), epochs, known: None }
    }

    fn after(number: u64) -> crate::Checkpoint {
        checkpoint(&format!("AFTER_SEQUENCE_NUMBER:{number}"))
    }

    fn epoch(&self, index: usize, is_present: bool) -> u64 {
        let epoch = self.table.lease(&shard(index)).map_or(0, |lease| lease.epoch);
        if is_present { epoch } else { epoch.saturating_sub(1) }
    }

    fn apply(&mut self, drawn: &Drawn) {
        let name = |worker: usize| -> Arc<str> { WORKERS[worker].into() };
        let (mut by, duration) = (name(0), Duration::from_secs(10));
        let change = match *drawn {
            Drawn::Time(by) if by < 0 => {
                self.now -= Duration::from_millis(by.unsigned_abs());
                return;
            }
            Drawn::Time(by) => {
                self.now += Duration::from_millis(by.unsigned_abs());
                return;
            }
            Drawn::Join(worker) => {
                self.table.join(self.now, &name(worker), &WorkerEntry::new(7, 0, duration));
                return;
            }
            Drawn::Remove(worker) => return self.table.remove(&name(worker)),
            Drawn::Set(index, to, force) => {
                let edit = AdminEdit::Set { positions: vec![(shard(index), Self::after(to))] };
                return self.edit(&edit, force);
            }
            Drawn::Clear(force) => return self.edit(&AdminEdit::Clear, force),
            Drawn::Add(index, to) => Change::Add {
                shard: shard(index),
                parents: Vec::new(),
                start: None,
                checkpoint: to.map(Self::after),
            },
            Drawn::Assign(index, to) => Change::Assign { shard: shard(index), to: name(to) },
            Drawn::Offer(index, to) => Change::Offer { shard: shard(index), to: name(to) },
            Drawn::Release(index, worker, is_present) => {
                by = name(worker);
                Change::Release { shard: shard(index), epoch: self.epoch(index, is_present) }
            }
            Drawn::Finish(index, is_present) => {
                Change::Finish { shard: shard(index), epoch: self.epoch(index, is_present) }
            }
            Drawn::MarkExpired(index) => Change::MarkExpired { shard: shard(index) },
            Drawn::Identify(index, start) => {
                Change::Identify { shard: shard(index), start: start.to_string().parse().ok() }
            }
            Drawn::Replace(index, start) => Change::Replace {
                shard: shard(index),
                parents: Vec::new(),
                start: start.to_string().parse().unwrap(),
                checkpoint: Self::after(0),
            },
            Drawn::Restore(index, to) => {
                let known = self.table.lease(&shard(index)).cloned().or(self.known.take());
                let Some(known) = known else { return };
                self.known = Some(known.clone());
                let lease = Lease { checkpoint: Some(Self::after(to)), ..known };
                Change::Restore { shard: shard(index), incarnation: 7, lease }
            }
        };
        self.table.apply(self.now, &by, duration, &change);
    }

    fn edit(&mut self, edit: &AdminEdit, force: bool) {
        let policy = if force { IfLeased::Force } else { IfLeased::Refuse };
        let before = self.table.clone();
        if self.table.edit(self.now, edit, policy, |_worker| true) != EditOutcome::Applied {
            assert!(!force, "a forced edit is applied");
            assert_eq!(self.table, before, "a refused edit changes nothing");
        }
    }

    /// Checks the table after a change from `before`.
    fn check(&mut self, drawn: &Drawn, before: &LeaseTable) {
        for (id, lease) in &self.table.leases {
            let rule = || format!("{drawn:?}: {lease:?}");
            assert!(lease.owner.is_some() || lease.next_owner.is_none(), "{}", rule());
            for worker in lease.owner.iter().chain(&lease.next_owner) {
                assert!(
                    self.table.workers.contains_key(worker),
                    "an owner is a worker: {}",
                    rule()
                );
            }
            let is_held = lease.owner.is_some() && lease.is_finished();
            assert!(!is_held, "a finished shard has no owner: {}", rule());
            let last = self.epochs.entry(id.clone()).or_insert(0);
            let old = before.lease(id);
            if let Some(old) = old {
                assert!(lease.epoch >= old.epoch, "an epoch never falls: {}", rule());
                // A restored owner has the epoch that it had.
                let is_restored = matches!(drawn, Drawn::Restore(..));
                let has_moved = old.owner != lease.owner && lease.owner.is_some() && !is_restored;
                assert!(!has_moved || lease.epoch > *last, "an owner has a new epoch: {}", rule());
            }
            if lease.epoch > 0 {
                assert!(lease.epoch > self.table.cleared, "a clear ends epochs: {}", rule());
            }
            *last = lease.epoch.max(*last);
            let is_reset =
                matches!(drawn, Drawn::Set(..) | Drawn::Replace(..) | Drawn::Restore(..));
            if let (Some(old), Some(new)) =
                (old.and_then(|it| it.checkpoint.as_ref()), &lease.checkpoint)
                && !is_reset
            {
                assert!(!old.supersedes(new), "a position never moves back: {}", rule());
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn rules_keep_the_invariants(changes in prop::collection::vec(any_change(), 1..60)) {
        let mut world = World::new();
        for change in &changes {
            let before = world.table.clone();
            world.apply(change);
            world.check(change, &before);
        }
    }
}
