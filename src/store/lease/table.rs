//! The lease table as a value.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::load::WorkerLoad;
use crate::checkpoint::Checkpoint;
use crate::record::{SequenceNumber, ShardId};

/// The workers and the leases of one application and stream.
///
/// Every rule is a method that changes a table in memory; see the
/// [state diagram](super#the-state-machine). [`Leases`](super::Leases) turns the difference between
/// two tables into a step of a store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeaseTable {
    /// The creation time of the table, in microseconds by the store's clock. A store that has lost
    /// the table or a part of it gets a new one.
    pub generation: u64,
    /// Rises with each step; see [`Exchanged::version`](super::Exchanged::version).
    pub version: u64,
    /// The time at which the table was last cleared, in milliseconds by the store's clock; 0 if
    /// never. Epochs from this time or earlier are invalid.
    pub cleared: u64,
    /// The time of the [first poll](super::Change::Begin), in milliseconds since 1970, or 0. It is
    /// dropped when the first lease is added, since leases have their own positions.
    pub first_poll: u64,
    /// The workers.
    pub workers: BTreeMap<Arc<str>, WorkerEntry>,
    /// Every known shard. A shard with only a position is included without parents.
    pub leases: BTreeMap<ShardId, Lease>,
    /// The leases of shards whose position alone cannot be read.
    pub(crate) hidden: BTreeMap<ShardId, Lease>,
    /// The shards that have started a new epoch at another position, since the table was read.
    pub(crate) moved: BTreeSet<ShardId>,
    /// The highest epoch that was ahead of the clock when it was issued; 0 if there is none. A lease
    /// of this epoch may be lost.
    pub(crate) latest_epoch: u64,
    /// Words of the head that a later version has written.
    pub(crate) further: Further,
}

/// Words of a stored text that this version does not know. They are kept as they are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Further(pub(crate) Option<Arc<str>>);

/// A worker in the table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerEntry {
    /// The worker's incarnation; 0 if unknown. The next worker of this name that renews becomes the
    /// worker of an entry with incarnation 0.
    pub incarnation: u64,
    /// Rises with each worker that joins.
    pub joined: u64,
    /// The time for which the worker stays alive without another heartbeat.
    pub lease_duration: Duration,
    /// The most shards that the worker accepts.
    pub capacity: u32,
    /// The [load](crate::ConsumerBuilder::capacity) that the worker can take relative to others, in
    /// hundredths; `None` for a worker of a version that does not state it.
    pub size: Option<NonZeroU32>,
    /// The load of the worker's shards; `None` before the worker has measured it.
    pub load: Option<WorkerLoad>,
    /// Words that a later version has written.
    pub(crate) further: Further,
}

impl WorkerEntry {
    /// Creates the entry of a worker without a limit of shards.
    pub fn new(incarnation: u64, joined: u64, lease_duration: Duration) -> Self {
        Self { incarnation, joined, lease_duration, capacity: u32::MAX, ..Self::default() }
    }

    /// Returns this entry as it is after its worker has stated `entry` about itself.
    pub(super) fn restated(&self, entry: &Self) -> Self {
        Self { joined: self.joined, further: self.further.clone(), ..entry.clone() }
    }

    /// Returns the strain that the worker states, which is at most [`WorkerLoad::MAX_STRAIN`].
    pub(crate) fn strain(&self) -> u32 {
        self.load.as_ref().map_or(0, |load| load.strain.min(WorkerLoad::MAX_STRAIN))
    }
}

/// The lease of one shard.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Lease {
    /// Rises with each change of owner, by at least the milliseconds that have passed. 0 before the
    /// first owner.
    pub epoch: u64,
    /// The worker that reads the shard.
    pub owner: Option<Arc<str>>,
    /// The worker to which the owner is to hand the lease over.
    pub next_owner: Option<Arc<str>>,
    /// The generation of the table in which the lease's position began; 0 if only a position is
    /// stored, and no lease.
    pub origin: u64,
    /// The shards that it was split or merged from; `None` if only a position is known.
    pub parents: Option<Vec<ShardId>>,
    /// True if the shard has left retention before it was read to its end, or belongs to another
    /// stream than its position.
    pub is_shard_expired: bool,
    /// The first sequence number of the shard, which distinguishes it from a shard of the same id
    /// in another stream; `None` until a listing has shown it.
    pub start: Option<SequenceNumber>,
    /// The time since which no listing shows the finished shard, in milliseconds by the store's
    /// clock.
    pub unlisted: Option<u64>,
    /// The time at which the shard was added, or an operator set its position, in milliseconds by
    /// the store's clock. Until the first position is saved, a shard that began more than a
    /// retention period before this time may have lost records. `None` if an earlier version of
    /// this crate added the shard and no listing has shown it since.
    pub added: Option<u64>,
    /// The shard's position; `None` if the reader is to choose it.
    pub checkpoint: Option<Checkpoint>,
    /// The reason why the stored lease or position cannot be read, and where it is stored; `None`
    /// if both are readable. All other fields then have their defaults. The stored text stays as it
    /// is, the shard is not read, and its children wait, until the text is corrected or
    /// [`AdminEdit::Set`](super::AdminEdit::Set) replaces it.
    pub unreadable: Option<Arc<str>>,
    /// Words that a later version has written.
    pub(crate) further: Further,
}

impl Lease {
    /// Returns true if every record of the shard is finished.
    pub fn is_finished(&self) -> bool {
        self.checkpoint == Some(Checkpoint::ShardEnd)
    }

    /// Returns [`Self::added`] as a time.
    pub(crate) fn added_at(&self) -> Option<SystemTime> {
        UNIX_EPOCH.checked_add(Duration::from_millis(self.added?))
    }

    /// Returns the next owner, or the owner if there is no next owner.
    pub fn holder(&self) -> Option<&Arc<str>> {
        self.next_owner.as_ref().or(self.owner.as_ref())
    }

    /// Returns true if this is a lease, and not a position alone.
    pub(super) fn is_lease(&self) -> bool {
        self.origin > 0
    }
}
