//! Comparison of leases with the listed shards of the same ids.

use crate::checkpoint::Checkpoint;
use crate::record::SequenceNumber;
use crate::source::ListedShard;
use crate::store::lease::{Lease, LeaseTable};

/// Returns true once a worker has added shards for this scope.
pub(super) fn has_begun(table: &LeaseTable) -> bool {
    table.leases.values().any(|lease| lease.parents.is_some())
}

/// Returns true if the lease can be read and belongs to a shard of another stream than the listed
/// one.
pub(super) fn is_of_other_stream(lease: &Lease, shard: &ListedShard) -> bool {
    let start = shard.start.as_ref();
    lease.unreadable.is_none() && start.is_some_and(|start| !is_same(lease, start))
}

/// Returns true if the lease lacks parents that the listing names. A lease that ever had an owner
/// keeps the parents that it has.
pub(super) fn lacks_parents(lease: &Lease, shard: &ListedShard) -> bool {
    let Some(known) = &lease.parents else { return true };
    lease.epoch == 0
        && shard.start.as_ref().is_none_or(|start| is_same(lease, start))
        && shard.parents.iter().any(|parent| !known.contains(parent))
}

/// Returns true if the lease may belong to the shard with this first sequence number.
pub(super) fn is_same(lease: &Lease, start: &SequenceNumber) -> bool {
    let position = lease.checkpoint.as_ref().and_then(Checkpoint::sequence_number);
    match &lease.start {
        Some(known) => known == start,
        None => position.is_none_or(|position| position >= start),
    }
}

/// Returns true for an unread shard that an earlier version of this crate added without the time of
/// the addition.
pub(super) fn lacks_addition(lease: &Lease) -> bool {
    let is_unread = matches!(
        lease.checkpoint,
        None | Some(Checkpoint::TrimHorizon | Checkpoint::AtTimestamp(_))
    );
    lease.added.is_none() && is_unread
}
