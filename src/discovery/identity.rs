//! Compares the leases of a table with the listed shards of the same names.

use crate::checkpoint::Checkpoint;
use crate::record::SequenceNumber;
use crate::source::ListedShard;
use crate::store::lease::{Lease, LeaseTable};

/// Returns true once a worker has added shards for this scope.
pub(super) fn has_begun(table: &LeaseTable) -> bool {
    table.leases.values().any(|lease| lease.parents.is_some())
}

/// Whether the readable lease of a listed shard belongs to another stream.
pub(super) fn is_of_other_stream(lease: &Lease, shard: &ListedShard) -> bool {
    let start = shard.start.as_ref();
    lease.unreadable.is_none() && start.is_some_and(|start| !is_same(lease, start))
}

/// Returns true if the listing names parents that a lease which never had an owner lacks.
pub(super) fn lacks_parents(lease: &Lease, shard: &ListedShard) -> bool {
    let Some(known) = &lease.parents else { return true };
    lease.epoch == 0
        && shard.start.as_ref().is_none_or(|start| is_same(lease, start))
        && shard.parents.iter().any(|parent| !known.contains(parent))
}

/// Whether a lease can be that of the listed shard that starts there.
pub(super) fn is_same(lease: &Lease, start: &SequenceNumber) -> bool {
    let position = lease.checkpoint.as_ref().and_then(Checkpoint::sequence_number);
    match &lease.start {
        Some(known) => known == start,
        None => position.is_none_or(|position| position >= start),
    }
}

/// Returns true for an unread shard that an earlier version added without its time.
pub(super) fn lacks_addition(lease: &Lease) -> bool {
    let is_unread = matches!(
        lease.checkpoint,
        None | Some(Checkpoint::TrimHorizon | Checkpoint::AtTimestamp(_))
    );
    lease.added.is_none() && is_unread
}
