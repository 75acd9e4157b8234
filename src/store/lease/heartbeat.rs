//! The heartbeat of a worker, and the saves of its positions, as the worker states them.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use super::change::Change;
use super::load::WorkerLoad;
use super::table::LeaseTable;
use crate::checkpoint::Checkpoint;
use crate::record::ShardId;

/// A heartbeat of a worker, with the changes that it requests.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct HeartbeatRequest {
    /// The worker's name, unique among live workers.
    pub worker: Arc<str>,
    /// A number that differs each time a worker of this name starts.
    pub incarnation: u64,
    /// The time for which the worker stays alive without another heartbeat, in whole milliseconds.
    pub lease_duration: Duration,
    /// The most shards that the worker accepts.
    pub capacity: u32,
    /// The load that the worker can take relative to others, in hundredths; `None` to be treated as
    /// a worker of a version that does not state it.
    pub size: Option<NonZeroU32>,
    /// The load of the worker's shards, if it is measured.
    pub load: Option<WorkerLoad>,
    /// True if the worker leaves and releases its leases.
    pub leaving: bool,
    /// The generation and the version of the table that the worker knows. The response omits the
    /// table if both are unchanged.
    pub known: Option<(u64, u64)>,
    /// True if the changes are applied only if the table is still the known one.
    pub only_if_unchanged: bool,
    /// The requested changes, applied in this order.
    pub changes: Vec<Change>,
}

impl HeartbeatRequest {
    /// Creates the heartbeat of a worker without a limit of shards, without changes, and without
    /// knowledge of the table.
    pub fn new(worker: impl Into<Arc<str>>, incarnation: u64, lease_duration: Duration) -> Self {
        Self {
            worker: worker.into(),
            incarnation,
            lease_duration,
            capacity: u32::MAX,
            size: None,
            load: None,
            leaving: false,
            known: None,
            only_if_unchanged: false,
            changes: Vec::new(),
        }
    }
}

impl HeartbeatRequest {
    /// Returns true if the request has changes that depend on the known table.
    pub(super) fn is_conditional(&self) -> bool {
        self.only_if_unchanged && !self.changes.is_empty()
    }
}

/// The membership of a worker after a heartbeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Membership {
    /// The worker was in the table and has renewed.
    Renewed,
    /// The worker was not in the table before.
    Joined,
    /// Another live worker has this name.
    Occupied,
    /// The worker has left.
    Left,
    /// The worker was removed from the table, and a lease of the worker has moved. It is to stop
    /// reading, and then to join again.
    Absent,
}

/// The response to a heartbeat.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct HeartbeatResponse {
    /// The worker's membership.
    pub membership: Membership,
    /// True if the changes were applied.
    pub applied: bool,
    /// The table; `None` if it is the known one.
    pub table: Option<Arc<LeaseTable>>,
}

impl HeartbeatResponse {
    /// Creates a response with these fields.
    pub fn new(membership: Membership, applied: bool, table: Option<Arc<LeaseTable>>) -> Self {
        Self { membership, applied, table }
    }
}

/// A position, and the epoch of the lease under which it was reached.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FencedCheckpoint {
    /// The shard.
    pub shard: ShardId,
    /// The epoch.
    pub epoch: u64,
    /// The position.
    pub checkpoint: Checkpoint,
}

impl FencedCheckpoint {
    /// Creates a position of a shard, reached in this epoch.
    pub fn new(shard: ShardId, epoch: u64, checkpoint: Checkpoint) -> Self {
        Self { shard, epoch, checkpoint }
    }
}

/// The outcome of saving one position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SaveOutcome {
    /// The position is saved, or a further one is stored.
    Saved,
    /// The position is saved, but the store has no lease of this epoch or a higher one: it has lost
    /// data.
    Forgotten,
    /// The position is not saved: the lease has a higher epoch, or the table was cleared since, or
    /// there is no lease and the epoch began more than [`FINISHED_SHARD_RETENTION`](super::FINISHED_SHARD_RETENTION) ago, so that the
    /// shard may have been removed.
    Lost,
    /// The position is not saved: the stored lease or position cannot be read, and stays as it is.
    Unreadable,
}

impl SaveOutcome {
    /// Returns true if the position was not saved and will not be.
    pub(crate) fn is_refusal(self) -> bool {
        matches!(self, Self::Lost | Self::Unreadable)
    }
}
