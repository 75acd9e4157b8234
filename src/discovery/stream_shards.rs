//! The result of a listing.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::SystemTime;

use super::identity::is_of_other_stream;
use super::loss::{Loss, Report, ShownAs};
use super::migrated_positions::MigratedPositions;
use crate::error::Error;
use crate::record::ShardId;
use crate::source::{ListedShard, first_hole};
use crate::store::lease::{Change, Lease, LeaseTable};

/// The shards of a stream as listed, and the checks made with the listing.
pub(crate) struct StreamShards {
    pub(super) shards: Vec<ListedShard>,
    /// A moment by the server's clock that is not after the listing.
    pub(super) taken: SystemTime,
    /// The moment of the first poll, at which `Latest` starts.
    pub(super) latest: SystemTime,
    /// Shards that were closed before the starting time of a new application.
    pub(super) closed_before_start: BTreeSet<ShardId>,
    /// Shards of the table that are proven to have left retention.
    pub(super) gone: Vec<ShardId>,
    /// The table before the listing. The listing can show that a shard is gone only if this table
    /// has it.
    pub(super) before: Arc<LeaseTable>,
    /// True if the worker had not begun to read when it listed the stream.
    pub(super) begins: bool,
    /// The positions that a new scope inherits from the stream's name.
    pub(super) migrated: MigratedPositions,
}

impl StreamShards {
    /// Returns false if the store lost or cleared the table after the listing.
    pub(crate) fn is_of(&self, table: &LeaseTable) -> bool {
        self.before.generation == table.generation
    }

    /// Returns true if the listing is from before a reshard: it shows shards as open that have
    /// ended, and no other open shards have all of their hash keys.
    ///
    /// A shard with a listed child is closed, even if a server lists it without its last sequence
    /// number.
    pub(crate) fn is_outdated(&self, has_ended: impl Fn(&ShardId) -> bool) -> bool {
        let parents: BTreeSet<&ShardId> =
            self.shards.iter().flat_map(|shard| &shard.parents).collect();
        let is_open = |shard: &&ListedShard| {
            shard.is_open() && !parents.contains(&shard.id) && !has_ended(&shard.id)
        };
        first_hole(self.shards.iter().filter(is_open).map(|shard| shard.keys)).is_some()
    }

    /// Returns additions for the inherited shards that are not listed.
    pub(super) fn unlisted_migrated(&self, table: &LeaseTable) -> Vec<Change> {
        let ids: BTreeSet<&ShardId> = self.shards.iter().map(|shard| &shard.id).collect();
        let is_beyond = |shard: &ShardId| !ids.contains(shard) && !table.leases.contains_key(shard);
        let beyond = self.migrated.leases.iter().filter(|(shard, _)| is_beyond(shard));
        beyond
            .map(|(shard, lease)| Change::Add {
                shard: shard.clone(),
                parents: lease.parents.clone().unwrap_or_default(),
                start: lease.start.clone(),
                checkpoint: lease.checkpoint.clone(),
            })
            .collect()
    }

    /// Returns true if the listing has confirmed that the lease of the shard belongs to another
    /// stream.
    pub(super) fn has_confirmed(&self, shard: &ListedShard) -> bool {
        self.before.leases.get(&shard.id).is_some_and(|lease| is_of_other_stream(lease, shard))
    }

    /// Returns true if the start that was stored before the listing differs from the listed one,
    /// which is then unconfirmed.
    pub(super) fn has_other_start(&self, shard: &ListedShard) -> bool {
        let before = self.before.leases.get(&shard.id).and_then(|lease| lease.start.as_ref());
        before.is_some_and(|before| shard.start.as_ref() != Some(before))
    }

    /// Returns the loss of a shard that is being marked as expired. The first listing of a worker
    /// finds such a loss again.
    pub(super) fn lost(&self, shard: &ShardId, error: Error) -> Loss {
        let report = Report::Error(error);
        if self.begins {
            Loss::listed(report)
        } else {
            Loss::stored(report, ShownAs::Lost(shard.clone()))
        }
    }

    pub(super) fn had_finished(&self, shard: &ShardId) -> bool {
        self.before.leases.get(shard).is_some_and(Lease::is_finished)
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use proptest::prelude::*;

    use super::*;

    fn listed(shards: Vec<ListedShard>) -> StreamShards {
        StreamShards {
            shards,
            taken: UNIX_EPOCH,
            latest: UNIX_EPOCH,
            closed_before_start: BTreeSet::new(),
            gone: Vec::new(),
            before: Arc::default(),
            begins: false,
            migrated: MigratedPositions::default(),
        }
    }

    fn shard(number: usize, keys: (u128, u128)) -> ListedShard {
        let id = format!("shardId-{number:012}").parse().unwrap();
        ListedShard { id, parents: Vec::new(), start: None, end: None, keys }
    }

    proptest! {
        /// Splits open shards of a stream, and compares listings of each moment with the shards
        /// that have ended in the last one.
        #[test]
        fn listing_is_outdated_if_it_shows_an_ended_shard_as_open(
            splits in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
            has_ended in prop::collection::vec(any::<bool>(), 12),
            lacks_ends: bool,
        ) {
            let mut shards = vec![shard(0, (0, u128::MAX))];
            let mut moments = vec![shards.clone()];
            for split in splits {
                let open: Vec<usize> = (0..shards.len()).filter(|it| shards[*it].is_open()).collect();
                let parent = open[split.index(open.len())];
                let (first, last) = shards[parent].keys;
                let middle = first + (last - first) / 2;
                shards[parent].end = Some("9".parse().unwrap());
                for keys in [(first, middle), (middle + 1, last)] {
                    let parents = vec![shards[parent].id.clone()];
                    shards.push(ListedShard { parents, ..shard(shards.len(), keys) });
                }
                moments.push(shards.clone());
            }
            let closed = shards.iter().filter(|shard| !shard.is_open());
            let ended: BTreeSet<ShardId> =
                closed.zip(has_ended).filter(|(_, it)| *it).map(|(shard, _)| shard.id.clone()).collect();
            for mut shards in moments {
                let is_outdated =
                    shards.iter().any(|shard| shard.is_open() && ended.contains(&shard.id));
                if lacks_ends {
                    for shard in &mut shards {
                        shard.end = None;
                    }
                }
                let listed = listed(shards);
                prop_assert_eq!(listed.is_outdated(|shard| ended.contains(shard)), is_outdated);
            }
        }
    }
}
