//! Which hash keys belong into which shard.

use std::collections::BTreeMap;

use tokio::sync::{Mutex, MutexGuard};

use super::listing::ListedShard;
use crate::backoff::Cooldown;
use crate::error::Failure;
use crate::record::ShardId;

/// The hash keys of the records that belong into a shard, both ends among them. They never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HashRange {
    pub(super) first: u128,
    pub(super) last: u128,
}

impl HashRange {
    /// Every hash key.
    pub(super) const WHOLE: Self = Self { first: 0, last: u128::MAX };

    pub(super) fn contains(&self, hash: u128) -> bool {
        (self.first..=self.last).contains(&hash)
    }
}

/// Those of all shards, as they were listed last.
#[derive(Debug, Default)]
pub(super) struct HashRanges(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    ranges: BTreeMap<ShardId, HashRange>,
    cooldown: Cooldown,
}

impl HashRanges {
    pub(super) async fn learn(&self, shards: &[ListedShard]) {
        self.0.lock().await.learn(shards);
    }

    /// That of a shard, by `list` where it is not known.
    ///
    /// Cancel safe: a listing that is dropped is made by whoever asks next.
    pub(super) async fn of(
        &self,
        shard: &ShardId,
        list: impl AsyncFnOnce() -> Result<Vec<ListedShard>, Failure>,
    ) -> Result<HashRange, Failure> {
        let mut known: MutexGuard<'_, Known> = self.0.lock().await;
        if !known.ranges.contains_key(shard) {
            known.cooldown.begin("ListShards failed")?;
            match list().await {
                Ok(listed) => known.learn(&listed),
                Err(failure) => {
                    known.cooldown.failed();
                    return Err(failure);
                }
            }
            known.cooldown.succeeded();
        }
        // One that is not listed has left retention meanwhile, and is read no further.
        Ok(known.ranges.get(shard).copied().unwrap_or(HashRange::WHOLE))
    }
}

impl Known {
    fn learn(&mut self, shards: &[ListedShard]) {
        let range = |shard: &ListedShard| {
            let (first, last) = shard.keys;
            (shard.id.clone(), HashRange { first, last })
        };
        self.ranges = shards.iter().map(range).collect();
    }
}
