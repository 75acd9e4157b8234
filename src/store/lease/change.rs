//! The changes of the table that workers and operators request.

use std::sync::Arc;

use super::table::{Lease, WorkerEntry};
use crate::checkpoint::Checkpoint;
use crate::record::{SequenceNumber, ShardId};

/// A change of the table. A change that no longer applies has no effect, nor does a change of a
/// shard that is [unreadable](Lease::unreadable).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// Stores the time at which the application first polled the stream, unless a time is stored or
    /// the table has any shard.
    Begin {
        /// The time, in milliseconds since 1970.
        first_poll: u64,
    },
    /// Adds a shard. If its lease exists and never had an owner, the missing parents are added to
    /// it; a lease that had an owner keeps its parents. The position is stored unless the shard has
    /// one or its lease had an owner.
    Add {
        /// The shard.
        shard: ShardId,
        /// The shards that it was split or merged from.
        parents: Vec<ShardId>,
        /// Its first sequence number, if known.
        start: Option<SequenceNumber>,
        /// Its starting position; `None` if the reader is to choose it.
        checkpoint: Option<Checkpoint>,
    },
    /// Notes that a listing shows the shard. Its first sequence number and the time of
    /// [`Lease::added`] are stored if they are missing. An expired shard with this first sequence
    /// number is no longer expired.
    Identify {
        /// The shard.
        shard: ShardId,
        /// The shard's first sequence number, if known.
        start: Option<SequenceNumber>,
    },
    /// Replaces the lease of a shard that belongs to another stream: a stream that was deleted and
    /// created again has shards of the same ids. The lease gets a new epoch and this position, and
    /// is neither finished nor expired. Its owner keeps it, so that no other worker starts before
    /// the owner has seen the new epoch. A lease that already has this first sequence number stays
    /// as it is.
    Replace {
        /// The shard.
        shard: ShardId,
        /// The shards that it was split or merged from.
        parents: Vec<ShardId>,
        /// Its first sequence number.
        start: SequenceNumber,
        /// Its starting position.
        checkpoint: Checkpoint,
    },
    /// Assigns a free lease to a worker, in a new epoch. If the lease has an owner that is not in
    /// the table, the owner may still be alive: it is added as a worker of incarnation 0 and
    /// capacity 0 instead, and the lease becomes free if it does not renew within the lease
    /// duration of the calling worker.
    Assign {
        /// The shard.
        shard: ShardId,
        /// The worker.
        to: Arc<str>,
    },
    /// Makes a worker the next owner of an owned lease. An offer to the current owner withdraws an
    /// earlier offer.
    Offer {
        /// The shard.
        shard: ShardId,
        /// The worker.
        to: Arc<str>,
    },
    /// Releases a lease that the calling worker owns in this epoch. The lease goes to the next
    /// owner, in a new epoch, or becomes free.
    Release {
        /// The shard.
        shard: ShardId,
        /// The epoch.
        epoch: u64,
    },
    /// Marks a shard as finished: all its records are acknowledged, in this epoch of its lease.
    Finish {
        /// The shard.
        shard: ShardId,
        /// The epoch.
        epoch: u64,
    },
    /// Marks a shard as expired: it has left retention before it was read to its end. It cannot be
    /// read, and its children wait. If the lease is owned, it becomes free in a new epoch.
    MarkExpired {
        /// The shard.
        shard: ShardId,
    },
    /// Notes that a complete listing does not show a finished shard. The first note stores the time
    /// ([`Lease::unlisted`]); a note made [`FINISHED_SHARD_RETENTION`](super::FINISHED_SHARD_RETENTION) later removes the shard.
    Forget {
        /// The shard.
        shard: ShardId,
    },
    /// Restores a worker that was alive when the calling worker last saw the table.
    ReviveWorker {
        /// The worker's name.
        worker: Arc<str>,
        /// The worker's last known entry.
        member: WorkerEntry,
    },
    /// Restores a lease as the calling worker last saw it.
    ///
    /// - If the table has no lease of the shard, the restored lease is added, unless the table was
    ///   [cleared](AdminEdit::Clear) since. If its parents are unknown, only its position is added.
    /// - If the stored lease has a later [origin](Lease::origin), the shard was begun again after
    ///   the store had lost its data. The stored lease takes the restored position, even if that is
    ///   further back, in a new epoch. Its owner keeps it, unless the position is the shard's end.
    /// - If the stored lease has the same origin and a lower epoch, the restored lease replaces it,
    ///   at the further of the two positions. At the same epoch, the stored lease moves to the
    ///   further position, takes the restored owner if it is free, and becomes expired if the
    ///   restored lease is expired.
    /// - A stored lease of an earlier origin or a higher epoch stays as it is.
    Restore {
        /// The shard.
        shard: ShardId,
        /// The incarnation of the owner. A later incarnation of the same name does not get the
        /// lease.
        incarnation: u64,
        /// The last known lease.
        lease: Lease,
    },
}

impl Change {
    /// Returns the shard that the change concerns.
    pub(super) fn shard(&self) -> Option<&ShardId> {
        match self {
            Self::Add { shard, .. }
            | Self::Identify { shard, .. }
            | Self::Replace { shard, .. }
            | Self::Assign { shard, .. }
            | Self::Offer { shard, .. }
            | Self::Release { shard, .. }
            | Self::Finish { shard, .. }
            | Self::MarkExpired { shard }
            | Self::Forget { shard }
            | Self::Restore { shard, .. } => Some(shard),
            Self::Begin { .. } | Self::ReviveWorker { .. } => None,
        }
    }
}

/// An edit by an operator. A store that does not know an edit returns an error.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum AdminEdit {
    /// Moves shards to these positions, which may be before or behind the stored ones. All of them
    /// move in one step, or none.
    ///
    /// Each lease gets a new epoch and is no longer expired. A live owner keeps it, so that no
    /// other worker starts before the owner has seen the new epoch, unless the position is the
    /// shard's end. An unreadable position or lease is replaced; the lease then has no known
    /// parents until a listing shows the shard.
    Set {
        /// Each shard and its position. If a shard is listed twice, the last position applies.
        positions: Vec<(ShardId, Checkpoint)>,
    },
    /// Deletes the table and all positions. Readers then begin at their starting position.
    Clear,
}

/// The policy for changes to the positions of shards that a worker is reading.
///
/// ```no_run
/// # async fn example(consumer: kinestream::Consumer) -> kinestream::Result<()> {
/// use kinestream::{Checkpoint, IfLeased};
///
/// let shard = "shardId-000000000000".parse()?;
/// consumer.set_position(&shard, Checkpoint::TrimHorizon, IfLeased::Refuse).await?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum IfLeased {
    /// Changes nothing. [`Consumer`](crate::Consumer) returns an error that names the worker.
    #[default]
    Refuse,
    /// Changes the position. The worker starts again from there, in a new epoch, when it reads the
    /// change: the worker of this consumer before the call returns, other workers at their next
    /// renewal.
    Force,
}

/// The outcome of an edit by an operator.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum EditOutcome {
    /// The edit is applied.
    Applied,
    /// The edit is not applied, because a live worker owns one of the shards, or, for
    /// [`AdminEdit::Clear`], because a worker is alive.
    Refused {
        /// The worker's name.
        worker: Arc<str>,
    },
}
