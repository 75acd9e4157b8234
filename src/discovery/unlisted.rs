//! Detection of shards that are in the table and no longer in the stream.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::record::ShardId;
use crate::source::AbsentListings;

/// The shards that complete listings lack and that cannot be read.
#[derive(Debug, Default)]
pub(crate) struct AbsentShards(BTreeMap<ShardId, AbsentListings>);

impl AbsentShards {
    /// Notes that one more complete listing lacks exactly these shards, and that Kinesis gives no
    /// iterator for any of them. Returns the shards that count as gone: enough consecutive listings
    /// lack them, over at least the discovery interval.
    pub(super) fn note(
        &mut self,
        absent: impl IntoIterator<Item = ShardId>,
        discovery_interval: Duration,
        now: Instant,
    ) -> Vec<ShardId> {
        let mut before = std::mem::take(&mut self.0);
        for shard in absent {
            let mut absence = before.remove(&shard).unwrap_or_else(|| AbsentListings::begin(now));
            absence.note(now);
            self.0.insert(shard, absence);
        }
        let gone = self.0.iter().filter(|(_, absence)| absence.is_proven(discovery_interval, now));
        gone.map(|(shard, _)| shard.clone()).collect()
    }

    pub(super) fn contains(&self, shard: &ShardId) -> bool {
        self.0.contains_key(shard)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(30);

    fn shard() -> ShardId {
        "shardId-000000000000".parse().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn absent_shard_is_gone_after_three_listings_over_an_interval() {
        let (mut absences, now) = (AbsentShards::default(), Instant::now());
        let mut note = |seconds| {
            !absences.note([shard()], INTERVAL, now + Duration::from_secs(seconds)).is_empty()
        };
        assert_eq!([0, 1, 2, 29, 30].map(&mut note), [false, false, false, false, true]);
    }

    #[tokio::test(start_paused = true)]
    async fn listed_shard_resets_its_count() {
        let (mut absences, now) = (AbsentShards::default(), Instant::now());
        let at = |seconds| now + Duration::from_secs(seconds);
        for seconds in [0, 20] {
            assert!(absences.note([shard()], INTERVAL, at(seconds)).is_empty());
        }
        assert!(absences.note([], INTERVAL, at(25)).is_empty());
        assert!(!absences.contains(&shard()));
        for seconds in [40, 50, 60] {
            assert!(absences.note([shard()], INTERVAL, at(seconds)).is_empty());
        }
        assert_eq!(absences.note([shard()], INTERVAL, at(70)), [shard()]);
    }
}
