//! Who is to have which shard: so many for each that no two differ by more than one, with as few
//! moves as that takes.
//!
//! Any worker that sees the table decides for all, and all decide alike; the store takes a decision
//! only where the table is still the one that was seen. So a change is evened out in one pass, by
//! whoever sees it first. Where nothing is to be evened out there is nothing to decide, and a fleet
//! at rest makes no moves.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::record::ShardId;
use crate::store::lease::{Change, Table};

/// What evens out the table. `readable` are the shards that may be read; those that nobody is to be
/// given now are left out.
///
/// Each shard counts as one. Were they to weigh by their lag or their throughput, it would be here.
pub(super) fn balance(table: &Table, readable: &BTreeSet<ShardId>) -> Vec<Change> {
    let mut workers: Vec<_> = table.workers.iter().collect();
    workers.sort_by_key(|(name, member)| (member.joined, Arc::clone(name)));
    // What each has, or is about to get, and what nobody has.
    let mut held: BTreeMap<&Arc<str>, Vec<&ShardId>> = BTreeMap::new();
    let mut free: Vec<&ShardId> = Vec::new();
    for (shard, lease) in &table.leases {
        match lease.holder() {
            Some(holder) if table.workers.contains_key(holder) => {
                held.entry(holder).or_default().push(shard);
            }
            _ if readable.contains(shard) => free.push(shard),
            _ => {}
        }
    }
    let count = |name: &Arc<str>| held.get(name).map_or(0, Vec::len);
    let shards = free.len() + held.values().map(Vec::len).sum::<usize>();
    let capacities = workers.iter().map(|(_, member)| member.capacity as usize).collect::<Vec<_>>();
    let quotas = quotas(shards, &capacities, |worker| count(workers[worker].0));

    let mut given: Vec<&ShardId> = Vec::new();
    for ((name, _), quota) in workers.iter().zip(&quotas) {
        let Some(held) = held.get_mut(name) else { continue };
        // What is only on its way to a worker is redirected before anything is taken from one.
        held.sort_by_key(|shard| table.leases[*shard].owner.as_ref() != Some(*name));
        while held.len() > *quota {
            given.extend(held.pop());
        }
    }
    let mut vacant = workers.iter().zip(&quotas).flat_map(|((name, _), quota)| {
        let missing = quota.saturating_sub(held.get(name).map_or(0, Vec::len));
        std::iter::repeat_n(*name, missing)
    });
    let mut changes = Vec::new();
    for shard in given.into_iter().chain(free) {
        let Some(to) = vacant.next() else { break };
        let (shard, to) = (shard.clone(), Arc::clone(to));
        changes.push(match table.leases[&shard].owner {
            Some(_) => Change::Offer { shard, to },
            None => Change::Assign { shard, to },
        });
    }
    changes
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

    use super::*;
    use crate::store::lease::{Lease, Member};

    fn shard(number: usize) -> ShardId {
        format!("shardId-{number:012}").parse().unwrap()
    }

    fn worker(number: usize) -> Arc<str> {
        format!("worker-{number}").into()
    }

    /// A table in which the shards have these owners and heirs.
    fn table(capacities: &[u32], holders: &[(Option<usize>, Option<usize>)]) -> Table {
        let mut table = Table::default();
        for (number, capacity) in capacities.iter().enumerate() {
            let (joined, lease_duration) = (number as u64, Duration::from_secs(10));
            let member = Member { incarnation: 0, joined, lease_duration, capacity: *capacity };
            table.workers.insert(worker(number), member);
        }
        for (number, (owner, heir)) in holders.iter().enumerate() {
            let owner = owner.map(worker);
            let heir =
                heir.map(worker).filter(|heir| owner.is_some() && owner.as_ref() != Some(heir));
            let lease = Lease { owner, heir, parents: Some(Vec::new()), ..Lease::default() };
            table.leases.insert(shard(number), lease);
        }
        table
    }

    fn all(table: &Table) -> BTreeSet<ShardId> {
        table.leases.keys().cloned().collect()
    }

    fn apply(table: &mut Table, changes: &[Change]) {
        for change in changes {
            match change {
                Change::Assign { shard, to } => {
                    let lease = table.leases.get_mut(shard).unwrap();
                    assert_eq!(lease.owner, None, "{change:?}");
                    lease.owner = Some(to.clone());
                }
                Change::Offer { shard, to } => {
                    let lease = table.leases.get_mut(shard).unwrap();
                    lease.heir = (lease.owner.as_ref() != Some(to)).then(|| to.clone());
                }
                _ => unreachable!("balance moves leases and nothing else"),
            }
        }
    }

    fn counts(table: &Table) -> Vec<usize> {
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
                holders.iter().map(|(owner, heir)| (alive(owner), alive(heir))).collect();
            let mut table = table(&vec![u32::MAX; workers], &holders);
            let before = counts(&table);
            let free = table.leases.values().filter(|lease| lease.owner.is_none()).count();
            let changes = balance(&table, &all(&table));
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
            prop_assert_eq!(balance(&table, &all(&table)), []);
        }

        #[test]
        fn nobody_gets_more_than_it_takes(
            capacities in prop::collection::vec(0..6_u32, 1..6),
            holders in prop::collection::vec(prop::option::of(0..6_usize), 0..30),
        ) {
            let alive = |name: &Option<usize>| name.filter(|name| *name < capacities.len());
            let holders: Vec<_> = holders.iter().map(|owner| (alive(owner), None)).collect();
            let mut table = table(&capacities, &holders);
            let changes = balance(&table, &all(&table));
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

    #[test]
    fn what_is_on_its_way_is_redirected_first() {
        // Worker 1 is to get two of worker 0's four; then worker 2 comes.
        let holders = [(Some(0), None), (Some(0), None), (Some(0), Some(1)), (Some(0), Some(1))];
        let changes = balance(&table(&[9, 9, 9], &holders), &(0..4).map(shard).collect());
        assert_eq!(changes, [Change::Offer { shard: shard(3), to: worker(2) }]);
    }
}
