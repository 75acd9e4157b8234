//! The result of a listing.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::SystemTime;

use super::identity::is_of_other_stream;
use super::loss::{Loss, Report, ShownAs};
use super::migrated_positions::MigratedPositions;
use crate::error::Error;
use crate::record::ShardId;
use crate::source::ListedShard;
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
