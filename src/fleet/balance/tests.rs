//! Tests of the distribution of leases by their number.

use std::num::NonZeroU32;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::fleet::fixtures::shard;
use crate::store::lease::{WorkerEntry, WorkerLoad};

fn worker(number: usize) -> Arc<str> {
    format!("worker-{number}").into()
}

/// Returns a table of shards with these owners and next owners.
fn table(capacities: &[u32], holders: &[(Option<usize>, Option<usize>)]) -> LeaseTable {
    let mut table = LeaseTable::default();
    for (number, capacity) in capacities.iter().enumerate() {
        let (joined, lease_duration) = (number as u64, Duration::from_secs(10));
        let member = WorkerEntry::new(0, joined, lease_duration);
        let member = WorkerEntry { capacity: *capacity, ..member };
        table.workers.insert(worker(number), member);
    }
    for (number, (owner, next_owner)) in holders.iter().enumerate() {
        let owner = owner.map(worker);
        let next_owner = next_owner
            .map(worker)
            .filter(|next_owner| owner.is_some() && owner.as_ref() != Some(next_owner));
        let lease = Lease { owner, next_owner, parents: Some(Vec::new()), ..Lease::default() };
        table.leases.insert(shard(number), lease);
    }
    table
}

fn all(table: &LeaseTable) -> BTreeSet<ShardId> {
    table.leases.keys().cloned().collect()
}

/// Returns the changes that make the numbers of shards even.
fn even(table: &LeaseTable, readable: &BTreeSet<ShardId>, exclusions: &Exclusions) -> Vec<Change> {
    balance(table, readable, exclusions, &Weights::even(), Moves::Urgent)
}

fn apply(table: &mut LeaseTable, changes: &[Change]) {
    for change in changes {
        match change {
            Change::Assign { shard, to } => {
                let lease = table.leases.get_mut(shard).unwrap();
                assert_eq!(lease.owner, None, "{change:?}");
                lease.owner = Some(to.clone());
            }
            Change::Offer { shard, to } => {
                let lease = table.leases.get_mut(shard).unwrap();
                lease.next_owner = (lease.owner.as_ref() != Some(to)).then(|| to.clone());
            }
            _ => unreachable!("balance returns only Assign and Offer"),
        }
    }
}

fn counts(table: &LeaseTable) -> Vec<usize> {
    let has = |name: &Arc<str>| {
        table.leases.values().filter(|lease| lease.holder() == Some(name)).count()
    };
    table.workers.keys().map(has).collect()
}

proptest! {
    #[test]
    fn shares_differ_by_at_most_one_after_the_fewest_moves(
        workers in 1..8_usize,
        holders in prop::collection::vec(
            (prop::option::of(0..8_usize), prop::option::of(0..8_usize)), 0..60),
    ) {
        // A table never names a worker that has left it.
        let alive = |name: &Option<usize>| name.filter(|name| *name < workers);
        let holders: Vec<_> =
            holders.iter().map(|(owner, next_owner)| (alive(owner), alive(next_owner))).collect();
        let mut table = table(&vec![u32::MAX; workers], &holders);
        let before = counts(&table);
        let free = table.leases.values().filter(|lease| lease.owner.is_none()).count();
        let changes = even(&table, &all(&table), &Exclusions::default());
        apply(&mut table, &changes);
        let after = counts(&table);
        prop_assert_eq!(after.iter().sum::<usize>(), holders.len());
        let most = *after.iter().max().unwrap();
        prop_assert!(most - after.iter().min().unwrap() <= 1, "{:?}", after);
        // No worker both gains and loses leases, so no balanced table takes fewer moves.
        let given: usize =
            before.iter().zip(&after).map(|(old, new)| old.saturating_sub(*new)).sum();
        prop_assert_eq!(changes.len(), free + given);
        let share = holders.len() / workers;
        let over = before.iter().filter(|count| **count > share).count();
        let fewest: usize = before.iter().map(|count| count.saturating_sub(share)).sum();
        prop_assert_eq!(given, fewest - over.min(holders.len() % workers));
        prop_assert_eq!(even(&table, &all(&table), &Exclusions::default()), []);
    }

    #[test]
    fn worker_receives_at_most_its_capacity(
        capacities in prop::collection::vec(0..6_u32, 1..6),
        holders in prop::collection::vec(prop::option::of(0..6_usize), 0..30),
    ) {
        let alive = |name: &Option<usize>| name.filter(|name| *name < capacities.len());
        let holders: Vec<_> = holders.iter().map(|owner| (alive(owner), None)).collect();
        let mut table = table(&capacities, &holders);
        let changes = even(&table, &all(&table), &Exclusions::default());
        apply(&mut table, &changes);
        let room: usize = capacities.iter().map(|most| *most as usize).sum();
        let after = counts(&table);
        if holders.len() <= room {
            prop_assert_eq!(after.iter().sum::<usize>(), holders.len());
            for (count, most) in after.iter().zip(&capacities) {
                prop_assert!(*count <= *most as usize, "{:?} of {:?}", after, capacities);
            }
        }
    }
}

proptest! {
    /// Each worker takes its share in turn, and knows only its own set.
    #[test]
    fn workers_with_any_sets_take_every_shard_and_stop(
        sets in prop::collection::vec(prop::collection::btree_set(0..12_usize, 1..12), 1..6),
        owners in prop::collection::vec(prop::option::of(0..6_usize), 12),
        are_equal in any::<bool>(),
    ) {
        let set = |worker: usize| if are_equal { &sets[0] } else { &sets[worker] };
        let owned = owners.iter().enumerate().map(|(number, owner)| {
            (owner.filter(|owner| *owner < sets.len() && set(*owner).contains(&number)), None)
        });
        let owned: Vec<_> = owned.collect();
        let mut table = table(&vec![1; sets.len()], &owned);
        let (mut rounds, mut is_settled) = (0, false);
        while !is_settled {
            is_settled = true;
            for number in 0..sets.len() {
                let set: BTreeSet<ShardId> = set(number).iter().copied().map(shard).collect();
                let me = worker(number);
                let selects = |shard: &ShardId| set.contains(shard);
                let changes = pull(&table, &set, selects, &Exclusions::default(), &me);
                for change in &changes {
                    let (Change::Assign { shard, to } | Change::Offer { shard, to }) = change
                    else {
                        unreachable!("pull returns only Assign and Offer")
                    };
                    prop_assert!(*to == me && set.contains(shard), "{:?}", change);
                }
                is_settled &= changes.is_empty();
                apply(&mut table, &changes);
                // A handoff completes before the next worker decides, or later.
                if rounds % 2 == 0 {
                    for lease in table.leases.values_mut() {
                        lease.owner = lease.next_owner.take().or(lease.owner.take());
                    }
                }
            }
            rounds += 1;
            prop_assert!(rounds < 30, "the leases move without an end");
        }
        for number in 0..12 {
            let lease = &table.leases[&shard(number)];
            let is_named = (0..sets.len()).any(|worker| set(worker).contains(&number));
            prop_assert_eq!(lease.holder().is_some(), is_named, "{}", number);
        }
        if are_equal {
            let counts = counts(&table);
            let (most, least) = (counts.iter().max(), counts.iter().min());
            prop_assert!(most.unwrap() - least.unwrap() <= 1, "{:?}", counts);
        }
    }
}

fn refusing(shards: &[(usize, usize)], barred: &[usize]) -> Exclusions {
    let mut exclusions = Exclusions::default();
    for (number, by) in shards {
        exclusions.shards.entry(shard(*number)).or_default().insert(worker(*by));
    }
    exclusions.workers = barred.iter().map(|number| (worker(*number), 0)).collect();
    exclusions
}

proptest! {
    #[test]
    fn excluded_worker_never_receives_the_shard_and_balance_converges(
        workers in 1..5_usize,
        owners in prop::collection::vec(prop::option::of(0..5_usize), 1..20),
        refused in prop::collection::vec((0..20_usize, 0..5_usize), 0..20),
        barred in prop::collection::vec(0..5_usize, 0..2),
    ) {
        let owners: Vec<_> =
            owners.iter().map(|owner| (owner.filter(|owner| *owner < workers), None)).collect();
        let mut table = table(&vec![u32::MAX; workers], &owners);
        let exclusions = refusing(&refused, &barred);
        for _ in 0..=workers {
            let changes = even(&table, &all(&table), &exclusions);
            for change in &changes {
                match change {
                    Change::Assign { shard, to } => prop_assert!(!exclusions.has(shard, to)),
                    Change::Offer { shard, to } => {
                        let is_moved = table.leases[shard].owner.as_ref() != Some(to);
                        let is_open = exclusions.moves_to(to) > 0 && !exclusions.has(shard, to);
                        prop_assert!(is_open || !is_moved, "{:?}", change);
                    }
                    _ => unreachable!("balance returns only Assign and Offer"),
                }
            }
            apply(&mut table, &changes);
        }
        prop_assert_eq!(even(&table, &all(&table), &exclusions), []);
        let free = owners.iter().enumerate().filter(|(_, (owner, _))| owner.is_none());
        for number in free.map(|(number, _)| number) {
            let shard = &shard(number);
            let lease = &table.leases[shard];
            let is_refused = (0..workers).all(|number| exclusions.has(shard, &worker(number)));
            prop_assert_eq!(lease.owner.is_none(), is_refused, "{}", shard);
        }
    }
}

#[test]
fn free_shard_exceeds_the_quota_of_the_only_worker_that_accepts_it() {
    let exclusions = refusing(&[(0, 0)], &[0]);
    let holders = [(None, None), (Some(0), None), (Some(1), None), (Some(1), None)];
    let all = (0..4).map(shard).collect();
    let changes = even(&table(&[9, 9], &holders), &all, &exclusions);
    assert_eq!(changes, [Change::Assign { shard: shard(0), to: worker(1) }]);
    // The excluded shard stays; another shard moves to balance the table.
    let holders = [(Some(1), None), (Some(0), None), (Some(1), None), (Some(1), None)];
    let changes = even(&table(&[9, 9], &holders), &all, &refusing(&[(0, 0)], &[]));
    assert_eq!(changes, [Change::Offer { shard: shard(3), to: worker(0) }]);
}

#[test]
fn pending_handoff_is_redirected_first() {
    // Two of worker 0's four shards are moving to worker 1 when worker 2 joins.
    let holders = [(Some(0), None), (Some(0), None), (Some(0), Some(1)), (Some(0), Some(1))];
    let changes =
        even(&table(&[9, 9, 9], &holders), &(0..4).map(shard).collect(), &Exclusions::default());
    assert_eq!(changes, [Change::Offer { shard: shard(3), to: worker(2) }]);
}

#[test]
fn load_moves_to_each_light_worker_up_to_the_mean() {
    let mut table = table(&[99, 99, 99], &[(Some(0), None); 10]);
    for entry in table.workers.values_mut() {
        entry.size = NonZeroU32::new(100);
        entry.load = Some(WorkerLoad::default());
    }
    let load = WorkerLoad::of((0..10).map(|number| (shard(number), 100)));
    table.workers.get_mut(&worker(0)).unwrap().load = Some(load);
    let weights = Weights::of(&table);
    let (all, exclusions) = (all(&table), Exclusions::default());
    let changes = balance(&table, &all, &exclusions, &weights, Moves::Urgent);
    assert_eq!(changes.len(), 6, "{changes:?}");
    let mut after = table.clone();
    apply(&mut after, &changes);
    assert_eq!(counts(&after), [4, 3, 3]);
}
