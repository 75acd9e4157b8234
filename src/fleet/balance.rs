//! Distribution of shards over workers: shares differ by at most one shard, with the fewest moves.
//!
//! Every worker that reads the table computes the distribution for the whole fleet, and all workers
//! compute the same one. The store applies it only to the table that it was computed from. So the
//! first worker that sees a change rebalances the fleet in one pass. A balanced table needs no
//! changes, so a fleet at rest moves no leases.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::exclusions::Exclusions;
use crate::record::ShardId;
use crate::store::lease::{Change, Lease, LeaseTable};

/// Returns the changes that balance the table. A free lease is assigned only if its shard is in
/// `readable`. No lease goes to a worker for which `exclusions` excludes its shard.
///
/// Every shard has the same weight. Weights by lag or throughput would be added here.
pub(super) fn balance(
    table: &LeaseTable,
    readable: &BTreeSet<ShardId>,
    exclusions: &Exclusions,
) -> Vec<Change> {
    let mut workers: Vec<_> = table.workers.iter().collect();
    workers.sort_by_key(|(name, member)| (member.joined, Arc::clone(name)));
    let is_taken = |shard| {
        workers.iter().any(|(name, member)| member.capacity > 0 && !exclusions.has(shard, name))
    };
    // The leases that each worker holds or is to receive, and the free leases.
    let mut held: BTreeMap<&Arc<str>, Vec<&ShardId>> = BTreeMap::new();
    let mut free: Vec<&ShardId> = Vec::new();
    for (shard, lease) in &table.leases {
        match lease.holder() {
            Some(holder) if table.workers.contains_key(holder) => {
                held.entry(holder).or_default().push(shard);
            }
            _ if readable.contains(shard)
                && (!exclusions.is_excluded_for_any(shard) || is_taken(shard)) =>
            {
                free.push(shard);
            }
            _ => {}
        }
    }
    let count = |name: &Arc<str>| held.get(name).map_or(0, Vec::len);
    let shards = free.len() + held.values().map(Vec::len).sum::<usize>();
    let capacities = workers.iter().map(|(_, member)| member.capacity as usize).collect::<Vec<_>>();
    let quotas = quotas(shards, &capacities, |worker| count(workers[worker].0));

    let mut given: Vec<&ShardId> = Vec::new();
    let mut seats = Vec::new();
    for (((name, _), quota), capacity) in workers.iter().zip(&quotas).zip(&capacities) {
        let mut nothing = Vec::new();
        let held = held.get_mut(name).unwrap_or(&mut nothing);
        // The last lease of the list is taken away first: one that no worker excludes before one
        // that some worker excludes, then one still moving to this worker before one that it owns.
        held.sort_by_key(|shard| {
            (
                !exclusions.is_excluded_for_any(shard),
                table.leases[*shard].owner.as_ref() != Some(*name),
            )
        });
        while held.len() > *quota {
            given.extend(held.pop());
        }
        let moves = exclusions.moves_to(name);
        let (worker, held) = (*name, held.len());
        seats.push(WorkerShare { worker, held, quota: *quota, capacity: *capacity, moves });
    }
    let is_owned =
        |lease: &Lease| lease.owner.as_ref().is_some_and(|it| table.workers.contains_key(it));
    let mut changes = Vec::new();
    // Shards that are excluded for some worker are placed first.
    let (refused, others): (Vec<_>, Vec<_>) =
        given.into_iter().chain(free).partition(|shard| exclusions.is_excluded_for_any(shard));
    for shard in refused {
        let lease = &table.leases[shard];
        let takes =
            |seats: &&mut WorkerShare| seats.admits(lease) && !exclusions.has(shard, seats.worker);
        let seat = match seats.iter_mut().filter(takes).find(|seats| seats.held < seats.quota) {
            // An unbalanced table is better than an unread shard.
            None if lease.owner.is_none() => {
                let with_room = seats.iter_mut().filter(|seats| seats.held < seats.capacity);
                with_room.filter(takes).min_by_key(|seats| seats.held)
            }
            seat => seat,
        };
        changes.extend(seat.map(|seats| seats.take(shard, lease, is_owned(lease))));
    }
    // A worker is removed from the queue when it is full. A worker to which no lease may move stays
    // in the queue for the free leases, which come last.
    let mut vacant: VecDeque<_> =
        seats.iter_mut().filter(|seats| seats.held < seats.quota).collect();
    for shard in others {
        let lease = &table.leases[shard];
        let Some(place) = vacant.iter().position(|seats| seats.admits(lease)) else { continue };
        changes.push(vacant[place].take(shard, lease, is_owned(lease)));
        if vacant[place].held >= vacant[place].quota {
            vacant.remove(place);
        }
    }
    changes
}

/// Returns the changes by which worker `me`, which reads only the shards that it `selects`, takes its
/// share of them.
///
/// The table does not show which shards other workers select. So the worker makes changes for itself
/// only: it takes each free shard that it reads, and then leases of the workers that hold more of
/// its shards than it does. Each move makes two workers more equal, so no moves alternate, whatever
/// the workers select. A worker that holds none of the shards takes its share itself.
pub(super) fn pull(
    table: &LeaseTable,
    readable: &BTreeSet<ShardId>,
    selects: impl Fn(&ShardId) -> bool,
    exclusions: &Exclusions,
    me: &Arc<str>,
) -> Vec<Change> {
    let holder = |lease: &Lease| {
        lease.holder().filter(|holder| table.workers.contains_key(*holder)).cloned()
    };
    let is_free = |shard: &&ShardId| {
        let lease = table.leases.get(*shard);
        lease.is_some_and(|lease| holder(lease).is_none()) && !exclusions.has(shard, me)
    };
    let free = readable.iter().filter(is_free);
    let taken = free.map(|shard| Change::Assign { shard: shard.clone(), to: Arc::clone(me) });
    let taken: Vec<Change> = taken.collect();
    if !taken.is_empty() {
        return taken;
    }
    let mut view = table.clone();
    view.leases.retain(|shard, lease| selects(shard) && holder(lease).is_some());
    let holders: BTreeSet<Arc<str>> = view.leases.values().filter_map(&holder).collect();
    view.workers.retain(|worker, _| worker == me || holders.contains(worker));
    for worker in view.workers.values_mut().filter(|worker| worker.capacity > 0) {
        // A worker that names its shards declares what it holds.
        worker.capacity = u32::MAX;
    }
    let mut changes = balance(&view, readable, exclusions);
    changes.retain(|change| matches!(change, Change::Offer { to, .. } if to == me));
    changes
}

/// The number of leases of a worker, and its limits for more.
struct WorkerShare<'a> {
    worker: &'a Arc<str>,
    held: usize,
    quota: usize,
    capacity: usize,
    /// The number of leases that may still move to the worker from other workers.
    moves: usize,
}

impl WorkerShare<'_> {
    fn admits(&self, lease: &Lease) -> bool {
        lease.owner.is_none() || lease.owner.as_ref() == Some(self.worker) || self.moves > 0
    }

    /// Takes a shard. `is_owned` is false if the lease has no owner, or one that the table lacks.
    fn take(&mut self, shard: &ShardId, lease: &Lease, is_owned: bool) -> Change {
        self.held += 1;
        let (shard, to) = (shard.clone(), Arc::clone(self.worker));
        match lease.owner.as_ref().filter(|_owner| is_owned) {
            Some(owner) => {
                self.moves -= usize::from(owner != self.worker && self.moves > 0);
                Change::Offer { shard, to }
            }
            None => Change::Assign { shard, to },
        }
    }
}

/// Returns the number of shards for each worker, as even as the capacities allow. The remainder
/// goes to the workers that hold the most shards already, so that the fewest shards move.
fn quotas(shards: usize, capacities: &[usize], held: impl Fn(usize) -> usize) -> Vec<usize> {
    let taken = |level: usize| {
        capacities.iter().fold(0, |sum: usize, most| sum.saturating_add(level.min(*most)))
    };
    // The highest level to which the shards fill every worker.
    let (mut level, mut above) = (0, shards + 1);
    while above - level > 1 {
        let middle = level.midpoint(above);
        if taken(middle) <= shards { level = middle } else { above = middle }
    }
    let mut quotas: Vec<usize> = capacities.iter().map(|most| level.min(*most)).collect();
    let mut more: Vec<usize> =
        (0..capacities.len()).filter(|worker| capacities[*worker] > level).collect();
    more.sort_by_key(|worker| std::cmp::Reverse(held(*worker)));
    for worker in more.into_iter().take(shards - taken(level)) {
        quotas[worker] += 1;
    }
    quotas
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::super::fixtures::shard;
    use super::*;
    use crate::store::lease::WorkerEntry;

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
            let changes = balance(&table, &all(&table), &Exclusions::default());
            apply(&mut table, &changes);
            let after = counts(&table);
            prop_assert_eq!(after.iter().sum::<usize>(), holders.len());
            let most = *after.iter().max().unwrap();
            prop_assert!(most - after.iter().min().unwrap() <= 1, "{:?}", after);
            // No worker both gains and loses leases, so no balanced table takes fewer moves.
            let given: usize =
                before.iter().zip(&after).map(|(old, new)| old.saturating_sub(*new)).sum();
            prop_assert_eq!(changes.len(), free + given);
            let even = holders.len() / workers;
            let over = before.iter().filter(|count| **count > even).count();
            let fewest: usize = before.iter().map(|count| count.saturating_sub(even)).sum();
            prop_assert_eq!(given, fewest - over.min(holders.len() % workers));
            prop_assert_eq!(balance(&table, &all(&table), &Exclusions::default()), []);
        }

        #[test]
        fn worker_receives_at_most_its_capacity(
            capacities in prop::collection::vec(0..6_u32, 1..6),
            holders in prop::collection::vec(prop::option::of(0..6_usize), 0..30),
        ) {
            let alive = |name: &Option<usize>| name.filter(|name| *name < capacities.len());
            let holders: Vec<_> = holders.iter().map(|owner| (alive(owner), None)).collect();
            let mut table = table(&capacities, &holders);
            let changes = balance(&table, &all(&table), &Exclusions::default());
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
                let changes = balance(&table, &all(&table), &exclusions);
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
            prop_assert_eq!(balance(&table, &all(&table), &exclusions), []);
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
        let changes = balance(&table(&[9, 9], &holders), &all, &exclusions);
        assert_eq!(changes, [Change::Assign { shard: shard(0), to: worker(1) }]);
        // The excluded shard stays; another shard moves to balance the table.
        let holders = [(Some(1), None), (Some(0), None), (Some(1), None), (Some(1), None)];
        let changes = balance(&table(&[9, 9], &holders), &all, &refusing(&[(0, 0)], &[]));
        assert_eq!(changes, [Change::Offer { shard: shard(3), to: worker(0) }]);
    }

    #[test]
    fn pending_handoff_is_redirected_first() {
        // Two of worker 0's four shards are moving to worker 1 when worker 2 joins.
        let holders = [(Some(0), None), (Some(0), None), (Some(0), Some(1)), (Some(0), Some(1))];
        let changes = balance(
            &table(&[9, 9, 9], &holders),
            &(0..4).map(shard).collect(),
            &Exclusions::default(),
        );
        assert_eq!(changes, [Change::Offer { shard: shard(3), to: worker(2) }]);
    }
}
