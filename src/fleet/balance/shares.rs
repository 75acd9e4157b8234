//! The shares of the workers of one table, and the changes made to them.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::fleet::exclusions::Exclusions;
use crate::fleet::weights::Weights;
use crate::record::ShardId;
use crate::store::lease::{Change, Lease, LeaseTable};

/// The leases that a worker holds or is to receive.
pub(super) struct Share<'a> {
    pub(super) name: &'a Arc<str>,
    pub(super) held: BTreeSet<&'a ShardId>,
    pub(super) weight: u64,
    pub(super) size: u64,
    /// The most shards that the worker accepts.
    pub(super) capacity: usize,
    /// The worker's share of the shards, by its size.
    pub(super) even: usize,
    /// The number of leases that may still move to the worker from other workers.
    pub(super) moves: usize,
}

impl Share<'_> {
    /// Returns the weight of the shards in relation to the worker's size.
    pub(super) fn load(&self) -> u64 {
        self.relative(self.weight)
    }

    /// Returns a weight in relation to the worker's size.
    pub(super) fn relative(&self, weight: u64) -> u64 {
        relative(weight, self.size)
    }

    pub(super) fn has_room(&self) -> bool {
        self.held.len() < self.capacity
    }
}

/// Returns a weight in relation to a size.
pub(super) fn relative(weight: u64, size: u64) -> u64 {
    // Weights are KiB per second, and sizes hundredths.
    weight.saturating_mul(100_000) / size.max(1)
}

/// The shares of all workers, and the changes made to the table so far.
pub(super) struct Fleet<'a> {
    pub(super) table: &'a LeaseTable,
    exclusions: &'a Exclusions,
    pub(super) weights: &'a Weights<'a>,
    /// In the order in which the workers joined.
    pub(super) shares: Vec<Share<'a>>,
    pub(super) changes: Vec<Change>,
    pub(super) moved: BTreeSet<&'a ShardId>,
    /// The mean of the relative weights.
    pub(super) mean: u64,
}

impl<'a> Fleet<'a> {
    pub(super) fn new(
        table: &'a LeaseTable,
        exclusions: &'a Exclusions,
        weights: &'a Weights<'a>,
    ) -> Self {
        let mut workers: Vec<_> = table.workers.iter().collect();
        workers.sort_by_key(|(name, member)| (member.joined, Arc::clone(name)));
        let share = |(name, member): (&'a Arc<str>, _)| Share {
            name,
            held: BTreeSet::new(),
            weight: 0,
            size: weights.size(member),
            capacity: member.capacity as usize,
            even: 0,
            moves: exclusions.moves_to(name),
        };
        let shares: Vec<_> = workers.into_iter().map(share).collect();
        let (changes, moved) = (Vec::new(), BTreeSet::new());
        let mut fleet = Self { table, exclusions, weights, shares, changes, moved, mean: 0 };
        let places: BTreeMap<&Arc<str>, usize> =
            fleet.shares.iter().enumerate().map(|(place, worker)| (worker.name, place)).collect();
        for (shard, lease) in &table.leases {
            if let Some(place) = lease.holder().and_then(|holder| places.get(holder)) {
                fleet.shares[*place].held.insert(shard);
                fleet.shares[*place].weight += weights.of_shard(shard);
            }
        }
        fleet
    }

    /// Returns the leases that no live worker holds and that some worker can take.
    pub(super) fn free(&self, readable: &BTreeSet<ShardId>) -> Vec<&'a ShardId> {
        let is_taken = |shard: &ShardId| {
            let takes = |worker: &Share<'_>| {
                worker.capacity > 0 && !self.exclusions.has(shard, worker.name)
            };
            self.shares.iter().any(takes)
        };
        let is_free = |(shard, lease): &(&ShardId, &Lease)| {
            !lease.holder().is_some_and(|holder| self.table.workers.contains_key(holder))
                && readable.contains(*shard)
                && (!self.exclusions.is_excluded_for_any(shard) || is_taken(shard))
        };
        self.table.leases.iter().filter(is_free).map(|(shard, _)| shard).collect()
    }

    /// Sets the share of each worker by its size, as far as its capacity allows, and the mean. Returns
    /// the number of shards.
    pub(super) fn set_shares(&mut self, free: &[&ShardId]) -> usize {
        let sizes: u64 = self.shares.iter().filter(|it| it.capacity > 0).map(|it| it.size).sum();
        let shards = free.len() + self.shares.iter().map(|worker| worker.held.len()).sum::<usize>();
        for worker in &mut self.shares {
            let even = shards as u64 * worker.size / sizes.max(1);
            worker.even = usize::try_from(even).unwrap_or(usize::MAX).min(worker.capacity);
        }
        let of_free = free.iter().map(|shard| self.weights.of_shard(shard)).sum::<u64>();
        let held = self.shares.iter().map(|worker| worker.weight).sum::<u64>();
        self.mean = relative(of_free + held, sizes);
        shards
    }

    /// Returns true if a worker has less than half of its share of shards and of weight, as after it has
    /// joined.
    pub(super) fn is_urgent(&self) -> bool {
        self.shares.iter().any(|worker| {
            worker.held.len() < worker.even.div_ceil(2)
                && worker.load() < self.mean / 2
                && worker.has_room()
                && worker.moves > 0
        })
    }

    /// Takes the leases from workers that hold more than they accept.
    pub(super) fn take_excess(&mut self) -> Vec<&'a ShardId> {
        let mut taken = Vec::new();
        for place in 0..self.shares.len() {
            while self.shares[place].held.len() > self.shares[place].capacity {
                let worker = &self.shares[place];
                let last =
                    worker.held.iter().copied().max_by_key(|shard| self.preference(place, shard));
                let Some(shard) = last else { break };
                self.remove(place, shard);
                taken.push(shard);
            }
        }
        taken
    }

    /// Orders the leases of a worker by the reasons to take them away: the last one is taken first. One
    /// that some worker excludes stays, and one that is still moving to the worker moves on.
    pub(super) fn preference(&self, place: usize, shard: &'a ShardId) -> (bool, bool, &'a ShardId) {
        let is_moving = self.table.leases[shard].owner.as_ref() != Some(self.shares[place].name);
        (!self.exclusions.is_excluded_for_any(shard), is_moving, shard)
    }

    pub(super) fn remove(&mut self, place: usize, shard: &'a ShardId) {
        let worker = &mut self.shares[place];
        worker.held.remove(shard);
        worker.weight -= self.weights.of_shard(shard);
    }

    /// Returns true if the lease may go to the worker.
    pub(super) fn admits(&self, place: usize, shard: &ShardId) -> bool {
        let (worker, lease) = (&self.shares[place], &self.table.leases[shard]);
        let is_moved = lease.owner.as_ref().is_some_and(|owner| owner != worker.name);
        worker.has_room()
            && (!is_moved || worker.moves > 0)
            && !self.exclusions.has(shard, worker.name)
    }

    /// Gives a lease to a worker.
    pub(super) fn give(&mut self, place: usize, shard: &'a ShardId) {
        let lease = &self.table.leases[shard];
        let worker = &mut self.shares[place];
        worker.held.insert(shard);
        worker.weight += self.weights.of_shard(shard);
        let (id, to) = (shard.clone(), Arc::clone(worker.name));
        let is_live = |owner: &&Arc<str>| self.table.workers.contains_key(*owner);
        self.changes.push(match lease.owner.as_ref().filter(is_live) {
            Some(owner) => {
                worker.moves -= usize::from(owner != worker.name && worker.moves > 0);
                Change::Offer { shard: id, to }
            }
            None => Change::Assign { shard: id, to },
        });
        self.moved.insert(shard);
    }

    /// Gives each of these leases to the worker that is then the lightest: those that some worker
    /// excludes first, then the heaviest.
    pub(super) fn place(&mut self, mut shards: Vec<&'a ShardId>) {
        let order = |shard: &&ShardId| {
            (!self.exclusions.is_excluded_for_any(shard), Reverse(self.weights.of_shard(shard)))
        };
        shards.sort_by_key(order);
        for shard in shards {
            let weight = self.weights.of_shard(shard);
            let admitting = (0..self.shares.len()).filter(|place| self.admits(*place, shard));
            let lightest = admitting.min_by_key(|place| {
                let worker = &self.shares[*place];
                worker.relative(worker.weight + weight)
            });
            if let Some(place) = lightest {
                self.give(place, shard);
            }
        }
    }
}
