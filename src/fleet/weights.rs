//! The weights of shards, by the loads that the workers state.

use std::collections::BTreeMap;

use crate::record::ShardId;
use crate::store::lease::{LeaseTable, WorkerEntry};

/// The weight of a shard without load, in KiB per second: what its empty responses cost. It is 1/256 of
/// what a shard can take in, so an idle shard counts little in relation to a busy one, and shards without
/// any load are distributed by their number.
pub(super) const IDLE: u64 = 4;

/// A transfer is made only if it makes the heavier of two workers lighter by this part of the mean
/// load of a worker, so that changes of a few per cent move nothing.
const LEAST_GAIN_PART: u64 = 16;

/// The size of a worker in relation to that of one with a degree less of strain.
const STRAINED_PERCENT: u64 = 80;

/// The size of a worker that does not state it, in hundredths.
const ONE: u64 = 100;

/// The weights of the shards of one table.
#[derive(Debug)]
pub(super) struct Weights<'a> {
    /// The KiB per second of the shards that some worker names.
    named: BTreeMap<&'a ShardId, u64>,
    /// The KiB per second of each other shard.
    others: BTreeMap<&'a ShardId, u64>,
    /// The KiB per second of a shard of which nothing is stated.
    unknown: u64,
    /// True if all shards have the same weight, and all workers the same size.
    are_even: bool,
    is_complete: bool,
    least_gain: u64,
}

impl<'a> Weights<'a> {
    /// Returns equal weights.
    pub(super) fn even() -> Self {
        let (named, others) = (BTreeMap::new(), BTreeMap::new());
        let least_gain = IDLE;
        Self { named, others, unknown: 0, are_even: true, is_complete: true, least_gain }
    }

    /// Returns the weights by the loads that the workers of the table state.
    ///
    /// They are equal while a worker of an earlier version is in the table: it moves leases until
    /// their numbers are even.
    pub(super) fn of(table: &'a LeaseTable) -> Self {
        let taking = || table.workers.values().filter(|worker| worker.capacity > 0);
        if taking().any(|worker| worker.size.is_none()) {
            return Self::even();
        }
        let loads = table.workers.iter().filter_map(|(name, it)| Some((name, it.load.as_ref()?)));
        let mut named: BTreeMap<&ShardId, u64> = BTreeMap::new();
        for (name, load) in loads.clone() {
            for (shard, load) in &load.heaviest {
                let lease = table.leases.get(shard);
                // A worker that has handed a shard off may still name it.
                if lease.is_some_and(|lease| lease.owner.as_ref() == Some(name)) {
                    named.insert(shard, *load);
                } else {
                    named.entry(shard).or_insert(*load);
                }
            }
        }
        let mut unnamed: BTreeMap<_, Vec<&ShardId>> = BTreeMap::new();
        for (shard, lease) in table.leases.iter().filter(|(shard, _)| !named.contains_key(shard)) {
            if let Some(owner) = &lease.owner {
                unnamed.entry(owner).or_default().push(shard);
            }
        }
        let mut others = BTreeMap::new();
        for (name, load) in loads.clone() {
            let shards = unnamed.remove(name).unwrap_or_default();
            let each = load.others / (shards.len() as u64).max(1);
            others.extend(shards.into_iter().map(|shard| (shard, each)));
        }
        let known = named.len() + others.len();
        let total = named.values().chain(others.values()).sum::<u64>();
        let unknown = total / (known as u64).max(1);
        let sizes: u64 = taking().map(size).sum();
        let mean = (total * ONE).checked_div(sizes).unwrap_or(0);
        Self {
            named,
            others,
            unknown,
            are_even: false,
            is_complete: taking().all(|worker| worker.load.is_some()),
            least_gain: IDLE + mean / LEAST_GAIN_PART,
        }
    }

    pub(super) fn of_shard(&self, shard: &ShardId) -> u64 {
        let load = self.named.get(shard).or_else(|| self.others.get(shard));
        IDLE + load.copied().unwrap_or(self.unknown)
    }

    /// Returns the KiB per second of a shard that some worker names.
    pub(super) fn stated(&self, shard: &ShardId) -> Option<u64> {
        self.named.get(shard).copied()
    }

    /// Returns the size of a worker: less if it falls behind.
    pub(super) fn size(&self, worker: &WorkerEntry) -> u64 {
        if self.are_even { ONE } else { size(worker) }
    }

    pub(super) fn are_even(&self) -> bool {
        self.are_even
    }

    /// Returns true if every worker has measured its load.
    pub(super) fn are_complete(&self) -> bool {
        self.is_complete
    }

    /// Returns the least weight, for a worker of size 1, by which a transfer must make the heavier of two
    /// workers lighter. With equal weights it is that of one shard.
    pub(super) fn least_gain(&self) -> u64 {
        self.least_gain
    }
}

/// Returns the size of a worker: what it states, less a fifth for each degree of strain.
fn size(worker: &WorkerEntry) -> u64 {
    let stated = worker.size.map_or(ONE, |size| u64::from(size.get()));
    (0..worker.strain()).fold(stated, |size, _| (size * STRAINED_PERCENT / 100).max(1))
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use crate::fleet::fixtures::{shard, table};
    use crate::store::lease::WorkerLoad;

    /// Returns a table of workers that state loads of their shards.
    fn loaded() -> LeaseTable {
        let mut table = table(&[("a", 1), ("b", 1)], &[Some("a"), Some("a"), Some("b"), None]);
        for entry in table.workers.values_mut() {
            entry.size = NonZeroU32::new(100);
            entry.load = Some(WorkerLoad::default());
        }
        table.workers.get_mut("a").unwrap().load =
            Some(WorkerLoad { others: 90, ..WorkerLoad::of([(shard(0), 300), (shard(2), 7)]) });
        table.workers.get_mut("b").unwrap().load = Some(WorkerLoad::of([(shard(2), 500)]));
        table
    }

    #[test]
    fn loads_are_those_that_the_owners_state() {
        let table = loaded();
        let weights = Weights::of(&table);
        assert_eq!(weights.of_shard(&shard(0)), IDLE + 300);
        assert_eq!(weights.of_shard(&shard(1)), IDLE + 90, "expected the part of an unnamed shard");
        assert_eq!(
            weights.of_shard(&shard(2)),
            IDLE + 500,
            "expected the load that its owner states"
        );
        assert_eq!(
            weights.of_shard(&shard(3)),
            IDLE + 890 / 3,
            "expected the mean for an unknown one"
        );
        assert!(weights.are_complete() && !weights.are_even());
    }

    #[test]
    fn load_of_a_shard_that_has_moved_is_that_of_the_worker_before() {
        let mut table = loaded();
        table.leases.get_mut(&shard(0)).unwrap().owner = Some("b".into());
        let weights = Weights::of(&table);
        assert_eq!(weights.stated(&shard(0)), Some(300));
    }

    #[test]
    fn weights_are_even_beside_a_worker_of_an_earlier_version() {
        let mut table = loaded();
        table.workers.get_mut("b").unwrap().size = None;
        let weights = Weights::of(&table);
        assert!(weights.are_even());
        assert_eq!(weights.of_shard(&shard(0)), weights.of_shard(&shard(1)));
        // It decides nothing if it accepts no lease.
        table.workers.get_mut("b").unwrap().capacity = 0;
        assert!(!Weights::of(&table).are_even());
    }

    #[test]
    fn strain_makes_a_worker_a_fifth_smaller() {
        let mut entry = loaded().workers["a"].clone();
        let sizes: Vec<u64> = [0, 1, 2, 5, 6, u32::MAX]
            .into_iter()
            .map(|strain| {
                entry.load = Some(WorkerLoad { strain, ..WorkerLoad::default() });
                size(&entry)
            })
            .collect();
        assert_eq!(sizes, [100, 80, 64, 32, 32, 32]);
    }
}
