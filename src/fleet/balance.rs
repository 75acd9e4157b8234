//! Who is to have which shard: so many for each that no two differ by more than one, with as few
//! moves as that takes.
//!
//! Any worker that sees the table decides for all, and all decide alike; the store takes a decision
//! only where the table is still the one that was seen. So a change is evened out in one pass, by
//! whoever sees it first. Where nothing is to be evened out there is nothing to decide, and a fleet
//! at rest makes no moves.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::exclusions::Exclusions;
use crate::record::ShardId;
use crate::store::lease::{Change, Lease, LeaseTable};

/// What evens out the table. `readable` are the shards that may be read; those that nobody is to be
/// given now are left out. No shard goes to a worker that refuses it.
///
/// Each shard counts as one. Were they to weigh by their lag or their throughput, it would be here.
pub(super) fn balance(
    table: &LeaseTable,
    readable: &BTreeSet<ShardId>,
    refusals: &Exclusions,
) -> Vec<Change> {
    let mut workers: Vec<_> = table.workers.iter().collect();
    workers.sort_by_key(|(name, member)| (member.joined, Arc::clone(name)));
    let is_taken = |shard| {
        workers.iter().any(|(name, member)| member.capacity > 0 && !refusals.has(shard, name))
    };
    // What each has, or is about to get, and what nobody has.
    let mut held: BTreeMap<&Arc<str>, Vec<&ShardId>> = BTreeMap::new();
    let mut free: Vec<&ShardId> = Vec::new();
    for (shard, lease) in &table.leases {
        match lease.holder() {
            Some(holder) if table.workers.contains_key(holder) => {
                held.entry(holder).or_default().push(shard);
            }
            _ if readable.contains(shard) && (!refusals.concern(shard) || is_taken(shard)) => {
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
        // A shard that a worker refuses stays rather than another, and what is only on its way to a
        // worker is redirected before anything is taken from one.
        held.sort_by_key(|shard| {
            (!refusals.concern(shard), table.leases[*shard].owner.as_ref() != Some(*name))
        });
        while held.len() > *quota {
            given.extend(held.pop());
        }
        let moves = refusals.moves_to(name);
        let (worker, held) = (*name, held.len());
        seats.push(Seats { worker, held, quota: *quota, capacity: *capacity, moves });
    }
    let mut changes = Vec::new();
    // First what not every worker takes.
    let (refused, others): (Vec<_>, Vec<_>) =
        given.into_iter().chain(free).partition(|shard| refusals.concern(shard));
    for shard in refused {
        let lease = &table.leases[shard];
        let takes = |seats: &&mut Seats| seats.admits(lease) && !refusals.has(shard, seats.worker);
        let seat = match seats.iter_mut().filter(takes).find(|seats| seats.held < seats.quota) {
            // An uneven table is better than an unread shard.
            None if lease.owner.is_none() => {
                let with_room = seats.iter_mut().filter(|seats| seats.held < seats.capacity);
                with_room.filter(takes).min_by_key(|seats| seats.held)
            }
            seat => seat,
        };
        changes.extend(seat.map(|seats| seats.take(shard, lease)));
    }
    // All workers that are full are passed over once, and those to which no lease is moved wait for the
    // free leases, which come last.
    let mut vacant: VecDeque<_> =
        seats.iter_mut().filter(|seats| seats.held < seats.quota).collect();
    for shard in others {
        let lease = &table.leases[shard];
        let Some(place) = vacant.iter().position(|seats| seats.admits(lease)) else { continue };
        changes.push(vacant[place].take(shard, lease));
        if vacant[place].held >= vacant[place].quota {
            vacant.remove(place);
        }
    }
    changes
}

/// The leases of a worker, and its limits for more.
struct Seats<'a> {
    worker: &'a Arc<str>,
    held: usize,
    quota: usize,
    capacity: usize,
    /// How many leases may be moved to it from other workers.
    moves: usize,
}

impl Seats<'_> {
    fn admits(&self, lease: &Lease) -> bool {
        lease.owner.is_none() || lease.owner.as_ref() == Some(self.worker) || self.moves > 0
    }

    fn take(&mut self, shard: &ShardId, lease: &Lease) -> Change {
        self.held += 1;
        let (shard, to) = (shard.clone(), Arc::clone(self.worker));
        match &lease.owner {
            Some(owner) => {
                self.moves -= usize::from(owner != self.worker && self.moves > 0);
                Change::Offer { shard, to }
            }
            None => Change::Assign { shard, to },
        }
    }
}

/// How many shards each worker is to have: as even as the capacities allow, and one more for those
/// who have more already, so that as few as possible move.
fn quotas(shards: usize, capacities: &[usize], held: impl Fn(usize) -> usize) -> Vec<usize> {
    let taken = |level: usize| {
        capacities.iter().fold(0, |sum: usize, most| sum.saturating_add(level.min(*most)))
    };
    // The highest level up to which all can be filled.
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

    /// A table in which the shards have these owners and heirs.
    fn table(capacities: &[u32], holders: &[(Option<usize>, Option<usize>)]) -> LeaseTable {
        let mut table = LeaseTable::default();
        for (number, capacity) in capacities.iter().enumerate() {
            let (joined, lease_duration) = (number as u64, Duration::from_secs(10));
            let member = WorkerEntry { incarnation: 0, joined, lease_duration, capacity: *capacity };
            table.workers.insert(worker(number), member);
        }
        for (number, (owner, next_owner)) in holders.iter().enumerate() {
            let owner = owner.map(worker);
            let next_owner =
                next_owner.map(worker).filter(|next_owner| owner.is_some() && owner.as_ref() != Some(next_owner));
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
                _ => unreachable!("balance moves leases and nothing else"),
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
        fn shares_differ_by_at_most_one_with_the_fewest_moves_and_then_rest(
            workers in 1..8_usize,
            holders in prop::collection::vec(
                (prop::option::of(0..8_usize), prop::option::of(0..8_usize)), 0..60),
        ) {
            // Names of workers that are gone are in no table.
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
            // Nobody gets and gives at once, so no even table is nearer.
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
        fn nobody_gets_more_than_it_takes(
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

    fn refusing(shards: &[(usize, usize)], barred: &[usize]) -> Exclusions {
        let mut refusals = Exclusions::default();
        for (number, by) in shards {
            refusals.shards.entry(shard(*number)).or_default().insert(worker(*by));
        }
        refusals.workers = barred.iter().map(|number| (worker(*number), 0)).collect();
        refusals
    }

    proptest! {
        #[test]
        fn no_shard_goes_to_a_worker_that_refuses_it_and_the_table_comes_to_rest(
            workers in 1..5_usize,
            owners in prop::collection::vec(prop::option::of(0..5_usize), 1..20),
            refused in prop::collection::vec((0..20_usize, 0..5_usize), 0..20),
            barred in prop::collection::vec(0..5_usize, 0..2),
        ) {
            let owners: Vec<_> =
                owners.iter().map(|owner| (owner.filter(|owner| *owner < workers), None)).collect();
            let mut table = table(&vec![u32::MAX; workers], &owners);
            let refusals = refusing(&refused, &barred);
            for _ in 0..=workers {
                let changes = balance(&table, &all(&table), &refusals);
                for change in &changes {
                    match change {
                        Change::Assign { shard, to } => prop_assert!(!refusals.has(shard, to)),
                        Change::Offer { shard, to } => {
                            let is_moved = table.leases[shard].owner.as_ref() != Some(to);
                            let is_open = refusals.moves_to(to) > 0 && !refusals.has(shard, to);
                            prop_assert!(is_open || !is_moved, "{:?}", change);
                        }
                        _ => unreachable!("balance moves leases and nothing else"),
                    }
                }
                apply(&mut table, &changes);
            }
            prop_assert_eq!(balance(&table, &all(&table), &refusals), []);
            let free = owners.iter().enumerate().filter(|(_, (owner, _))| owner.is_none());
            for number in free.map(|(number, _)| number) {
                let shard = &shard(number);
                let lease = &table.leases[shard];
                let is_refused = (0..workers).all(|number| refusals.has(shard, &worker(number)));
                prop_assert_eq!(lease.owner.is_none(), is_refused, "{}", shard);
            }
        }
    }

    #[test]
    fn free_shard_goes_over_the_quota_of_the_only_worker_that_takes_it() {
        let refusals = refusing(&[(0, 0)], &[0]);
        let holders = [(None, None), (Some(0), None), (Some(1), None), (Some(1), None)];
        let all = (0..4).map(shard).collect();
        let changes = balance(&table(&[9, 9], &holders), &all, &refusals);
        assert_eq!(changes, [Change::Assign { shard: shard(0), to: worker(1) }]);
        // It stays there, while one that the other worker takes evens the table out.
        let holders = [(Some(1), None), (Some(0), None), (Some(1), None), (Some(1), None)];
        let changes = balance(&table(&[9, 9], &holders), &all, &refusing(&[(0, 0)], &[]));
        assert_eq!(changes, [Change::Offer { shard: shard(3), to: worker(0) }]);
    }

    #[test]
    fn what_is_on_its_way_is_redirected_first() {
        // Worker 1 is to get two of worker 0's four; then worker 2 comes.
        let holders = [(Some(0), None), (Some(0), None), (Some(0), Some(1)), (Some(0), Some(1))];
        let changes = balance(
            &table(&[9, 9, 9], &holders),
            &(0..4).map(shard).collect(),
            &Exclusions::default(),
        );
        assert_eq!(changes, [Change::Offer { shard: shard(3), to: worker(2) }]);
    }
}
