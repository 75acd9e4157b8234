//! Looks up the hash key range of each shard.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard};
use tokio::time::Instant;

use super::listing::{ListedShard, unusable_listing};
use crate::cooldown::Cooldown;
use crate::error::ClassifiedError;
use crate::record::ShardId;

/// The range of hash keys of a shard's records, including both ends. It never changes.
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

/// The time for which listings must lack a shard before every hash key counts as its own: far
/// longer than a listing lags behind a change of the stream.
const MISSING_FOR: Duration = Duration::from_secs(30);

/// The hash key ranges of all shards that were listed.
#[derive(Debug, Default)]
pub(super) struct HashRanges(Mutex<KnownRanges>);

#[derive(Debug, Default)]
struct KnownRanges {
    ranges: BTreeMap<ShardId, HashRange>,
    /// The time at which a requested shard was first missing from a listing.
    missing_since: BTreeMap<ShardId, Instant>,
    cooldown: Cooldown,
}

impl HashRanges {
    pub(super) async fn learn(&self, shards: &[ListedShard]) {
        self.0.lock().await.learn(shards);
    }

    /// Returns the range of a shard. Calls `list` if it is not known. A shard that is missing from
    /// listings for [`MISSING_FOR`] gets every hash key.
    ///
    /// Cancel safe: a dropped listing is repeated by the next caller.
    pub(super) async fn of(
        &self,
        shard: &ShardId,
        list: impl AsyncFnOnce() -> Result<Vec<ListedShard>, ClassifiedError>,
    ) -> Result<HashRange, ClassifiedError> {
        let mut known: MutexGuard<'_, KnownRanges> = self.0.lock().await;
        if !known.ranges.contains_key(shard) {
            known.cooldown.begin("ListShards failed")?;
            let listed = list().await.map_err(|failure| known.cooldown.failed(failure))?;
            known.learn(&listed);
            known.cooldown.succeeded();
        }
        match known.ranges.get(shard).copied() {
            Some(range) => Ok(range),
            // A shard that has left retention is in no listing, but a single listing may lack any
            // shard.
            None if known.is_missing(shard) => Ok(HashRange::WHOLE),
            None => Err(unusable_listing(format!(
                "lacks {shard}; aggregated records need its hash keys"
            ))),
        }
    }
}

impl KnownRanges {
    /// Returns true if listings, including this one, have lacked a shard for [`MISSING_FOR`].
    fn is_missing(&mut self, shard: &ShardId) -> bool {
        let since = self.missing_since.entry(shard.clone()).or_insert_with(Instant::now);
        since.elapsed() >= MISSING_FOR
    }

    fn learn(&mut self, shards: &[ListedShard]) {
        let range = |shard: &ListedShard| {
            let (first, last) = shard.keys;
            (shard.id.clone(), HashRange { first, last })
        };
        // The ranges of shards that this listing lacks remain valid.
        self.ranges.extend(shards.iter().map(range));
        self.missing_since.retain(|shard, _| !self.ranges.contains_key(shard));
    }
}
