//! Which hash keys belong into which shard.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard};
use tokio::time::Instant;

use super::listing::{ListedShard, unusable};
use crate::cooldown::Cooldown;
use crate::error::ClassifiedError;
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

/// How long listings lack a shard before its hash keys are taken to be known to nobody: far longer than
/// a listing is behind a change of the stream.
const MISSING_FOR: Duration = Duration::from_secs(30);

/// Those of all shards that were listed.
#[derive(Debug, Default)]
pub(super) struct HashRanges(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    ranges: BTreeMap<ShardId, HashRange>,
    /// Since when listings have lacked a shard that was asked for.
    missing_since: BTreeMap<ShardId, Instant>,
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
        list: impl AsyncFnOnce() -> Result<Vec<ListedShard>, ClassifiedError>,
    ) -> Result<HashRange, ClassifiedError> {
        let mut known: MutexGuard<'_, Known> = self.0.lock().await;
        if !known.ranges.contains_key(shard) {
            known.cooldown.begin("ListShards failed")?;
            let listed = list().await.map_err(|failure| known.cooldown.failed(failure))?;
            known.learn(&listed);
            known.cooldown.succeeded();
        }
        match known.ranges.get(shard).copied() {
            Some(range) => Ok(range),
            // A shard that has left retention is in no listing, but one listing may lack any shard.
            None if known.is_missing(shard) => Ok(HashRange::WHOLE),
            None => Err(unusable(format!("lacks {shard}, whose hash keys are needed"))),
        }
    }
}

impl Known {
    /// Whether listings have lacked a shard for [`MISSING_FOR`], this one among them.
    fn is_missing(&mut self, shard: &ShardId) -> bool {
        let since = self.missing_since.entry(shard.clone()).or_insert_with(Instant::now);
        since.elapsed() >= MISSING_FOR
    }

    fn learn(&mut self, shards: &[ListedShard]) {
        let range = |shard: &ListedShard| {
            let (first, last) = shard.keys;
            (shard.id.clone(), HashRange { first, last })
        };
        // What an earlier listing showed stays true of the shards that this one lacks.
        self.ranges.extend(shards.iter().map(range));
        self.missing_since.retain(|shard, _| !self.ranges.contains_key(shard));
    }
}
