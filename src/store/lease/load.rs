//! The load of a worker, as its entry states it.

use std::collections::BTreeMap;

use crate::record::ShardId;

/// The bytes per second of a worker's shards, and how far the worker keeps up.
///
/// An entry names at most [`MAX_NAMED`](Self::MAX_NAMED) shards, so that its size does not grow with
/// the stream. The others count as equal.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerLoad {
    /// The KiB per second of each of the heaviest shards.
    pub heaviest: BTreeMap<ShardId, u64>,
    /// The KiB per second of all other shards together.
    pub others: u64,
    /// The degree to which the worker falls behind because its caller holds it up: 0 if it keeps up, and
    /// at most [`MAX_STRAIN`](Self::MAX_STRAIN). With each degree, the worker counts as a fifth smaller.
    pub strain: u32,
}

impl WorkerLoad {
    /// The most shards that an entry names. With their ids, they take half a KiB: a heartbeat in
    /// DynamoDB costs more above one KiB.
    pub const MAX_NAMED: usize = 20;

    /// The highest strain: the worker then counts as a third of its size.
    pub const MAX_STRAIN: u32 = 5;

    /// Returns the load, without strain, of shards with these KiB per second.
    pub fn of(shards: impl IntoIterator<Item = (ShardId, u64)>) -> Self {
        let mut shards: Vec<(ShardId, u64)> = shards.into_iter().collect();
        shards.sort_by(|(a, of_a), (b, of_b)| of_b.cmp(of_a).then_with(|| a.cmp(b)));
        let is_light = |(_, load): &(ShardId, u64)| *load == 0;
        let named = shards.len().min(Self::MAX_NAMED);
        let named = shards.iter().take(named).position(is_light).unwrap_or(named);
        let others = shards.split_off(named).iter().map(|(_, load)| load).sum();
        Self { heaviest: shards.into_iter().collect(), others, strain: 0 }
    }

    /// Returns the KiB per second of all shards.
    pub fn total(&self) -> u64 {
        self.heaviest.values().sum::<u64>().saturating_add(self.others)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(number: usize) -> ShardId {
        format!("shardId-{number:012}").parse().unwrap()
    }

    #[test]
    fn heaviest_shards_are_named_and_all_count() {
        let load = WorkerLoad::of((0..50).map(|number| (shard(number), number as u64)));
        assert_eq!(load.heaviest.len(), WorkerLoad::MAX_NAMED);
        assert_eq!(load.heaviest[&shard(49)], 49);
        assert_eq!(load.heaviest.get(&shard(29)), None);
        assert_eq!(load.total(), 49 * 50 / 2);
        let light = WorkerLoad::of([(shard(0), 0), (shard(1), 3)]);
        assert_eq!(light.heaviest.keys().collect::<Vec<_>>(), [&shard(1)], "no load has no name");
    }
}
