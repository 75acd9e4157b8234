//! Leases: the table, shared by the workers of an application, that assigns each shard to a worker.
//!
//! A [`LeaseStore`] keeps the table together with the checkpoints. It makes no decisions. Workers
//! read the table, all decide by the same rules, and request changes. The store applies each change
//! completely or not at all, by its own clock.
//!
//! ```text
//!              Assign                      Offer
//!   unassigned ─────────► owned by a worker ─────► owned, with a next owner
//!       ▲                  │            ▲                       │
//!       └─ Release, expiry, Finish ─────┴─────── Release ───────┘
//! ```
//!
//! Every change of owner gets a new [epoch](Lease::epoch), greater than all earlier ones. A
//! position is saved only with the epoch under which it was read. A late save by a worker that has
//! lost the lease is therefore rejected.
//!
//! A worker is alive while it calls [`exchange`](LeaseStore::exchange) within its
//! [lease duration](HeartbeatRequest::lease_duration), by the store's clock. The leases of an
//! expired worker are free. Renewal therefore takes one call, regardless of the number of leases.
//!
//! # Data loss in the store
//!
//! After a failover or restart, a store may lack its last changes, or all data. Workers remember
//! the table that they saw last, and [restore](Change::Restore) what the store has lost. Epochs and
//! versions follow the clock, so they keep rising after a loss.
//!
//! # Example: a handoff between two workers
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> kinestream::Result<()> {
//! use std::time::Duration;
//!
//! use kinestream::store::Scope;
//! use kinestream::store::lease::{
//!     AdminEdit, Change, EditOutcome, FencedCheckpoint, HeartbeatRequest, IfLeased, Lease,
//!     LeaseStore, LeaseTable, Membership, SaveOutcome,
//! };
//! use kinestream::{Checkpoint, MemoryStore, ShardId};
//!
//! fn request(worker: &str, changes: Vec<Change>) -> HeartbeatRequest {
//!     let mut request = HeartbeatRequest::new(worker, 1, Duration::from_secs(10));
//!     request.changes = changes;
//!     request
//! }
//!
//! let store = MemoryStore::new();
//! let scope = Scope::new("billing", "orders");
//! let shard: ShardId = "shardId-000000000000".parse()?;
//! let lease = |table: &LeaseTable| -> Lease { table.leases[&shard].clone() };
//!
//! // The first worker joins, adds the shard and acquires its lease, all in one step.
//! let (parents, checkpoint) = (Vec::new(), Some(Checkpoint::TrimHorizon));
//! let add = Change::Add { shard: shard.clone(), parents, start: None, checkpoint };
//! let assign = |to: &str| Change::Assign { shard: shard.clone(), to: to.into() };
//! let answer = store.exchange(&scope, &request("one", vec![add, assign("one")])).await?;
//! assert_eq!(answer.membership, Membership::Joined);
//! let first = lease(&answer.table.unwrap());
//!
//! // A second worker joins. The first worker offers its lease to the second, and releases it.
//! let table = store.exchange(&scope, &request("two", vec![])).await?.table.unwrap();
//! assert_eq!(table.workers["two"].capacity, u32::MAX);
//! let offer = Change::Offer { shard: shard.clone(), to: "two".into() };
//! let release = Change::Release { shard: shard.clone(), epoch: first.epoch };
//! let answer = store.exchange(&scope, &request("one", vec![offer, release])).await?;
//! let second = lease(&answer.table.unwrap());
//! assert_eq!(second.owner, Some("two".into()));
//! assert!(second.epoch > first.epoch);
//!
//! // A save by the first worker is now rejected.
//! let after: Checkpoint = "AFTER_SEQUENCE_NUMBER:49590338".parse()?;
//! let read = |epoch| FencedCheckpoint::new(shard.clone(), epoch, after.clone());
//! let outcomes = store.save_fenced(&scope, &[read(first.epoch), read(second.epoch)]).await?;
//! assert_eq!(outcomes, [SaveOutcome::Lost, SaveOutcome::Saved]);
//!
//! // An edit of a position that a live worker owns is refused unless it is forced.
//! let back = AdminEdit::Set { positions: vec![(shard.clone(), Checkpoint::TrimHorizon)] };
//! let refused = EditOutcome::Refused { worker: "two".into() };
//! assert_eq!(store.edit(&scope, &back, IfLeased::Refuse).await?, refused);
//! assert_eq!(store.edit(&scope, &back, IfLeased::Force).await?, EditOutcome::Applied);
//! assert!(lease(&store.table(&scope).await?).epoch > second.epoch);
//! # Ok(()) }
//! ```

mod ledger;
#[cfg(feature = "redis")]
mod text;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::future::BoxFuture;

use super::Scope;
use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::record::{SequenceNumber, ShardId};

pub(crate) use ledger::Ledger;
#[cfg(feature = "redis")]
pub(super) use text::{
    format_name, format_parents, format_start, parse_lease, parse_name, parse_worker,
};

/// The time for which a finished shard is remembered after listings stopped showing it: the longest
/// retention of a stream, 365 days
/// (<https://docs.aws.amazon.com/streams/latest/dev/kinesis-extended-retention.html>). A listing
/// that omits the shard by mistake does not cause the shard to be read again.
pub const FINISHED_SHARD_RETENTION: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Stores leases together with checkpoints, so that workers can share the shards of a stream.
///
/// Implemented by [`MemoryStore`](crate::MemoryStore) and `RedisStore`; your own store may
/// implement it too. Each call is one atomic step. [`conformance::check_leases`] tests an
/// implementation.
///
/// # Cancel safety
///
/// A dropped call may have been carried out. All calls are idempotent, so they can be repeated.
///
/// [`conformance::check_leases`]: super::conformance::check_leases
pub trait LeaseStore: Debug + Send + Sync + 'static {
    /// Performs one heartbeat of a worker: renews it, applies its changes, and returns the table.
    ///
    /// The store performs these steps in order, by its own clock:
    ///
    /// 1. If the clock went back, each worker's expiry is lowered to at most its lease duration
    ///    from now.
    /// 2. If a worker of the same name and another incarnation is alive, the store answers
    ///    [`Occupied`](Membership::Occupied) and does nothing else.
    /// 3. If the calling worker is in the table but has expired, all workers are renewed for their
    ///    lease durations: the store was unreachable for all of them, or another worker would have
    ///    removed this one. Otherwise expired workers are removed, and their leases become free.
    /// 4. The worker joins, or is renewed for its lease duration.
    /// 5. The changes are applied. None is applied if [`HeartbeatRequest::only_if_unchanged`] is
    ///    set and the version is not the known one.
    /// 6. If the worker is leaving, it is removed, and its leases become free.
    ///
    /// The version rises with every change except that of an expiry, or of a position before the
    /// end of its shard. The response to a refused request for a lease therefore contains the
    /// changed table.
    fn exchange<'a>(
        &'a self,
        scope: &'a Scope,
        request: &'a HeartbeatRequest,
    ) -> BoxFuture<'a, Result<HeartbeatResponse>>;

    /// Saves each position unless its epoch is no longer valid, and never moves a position
    /// backwards. The outcomes are in the order of the list; see [`SaveOutcome`].
    ///
    /// The end of a shard frees its lease and counts as a change of the table.
    fn save_fenced<'a>(
        &'a self,
        scope: &'a Scope,
        positions: &'a [FencedCheckpoint],
    ) -> BoxFuture<'a, Result<Vec<SaveOutcome>>>;

    /// Returns the table without joining. Expired workers are left out.
    fn table<'a>(&'a self, scope: &'a Scope) -> BoxFuture<'a, Result<LeaseTable>>;

    /// Applies an operator's edit. If the edit concerns a live worker, `if_leased` decides whether
    /// it is applied. An unknown policy counts as [`IfLeased::Refuse`].
    fn edit<'a>(
        &'a self,
        scope: &'a Scope,
        edit: &'a AdminEdit,
        if_leased: IfLeased,
    ) -> BoxFuture<'a, Result<EditOutcome>>;
}

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
            leaving: false,
            known: None,
            only_if_unchanged: false,
            changes: Vec::new(),
        }
    }
}

/// A change of the table. A change that no longer applies has no effect, nor does a change of a
/// shard that is [unreadable](Lease::unreadable). A store that does not know a change fails the
/// heartbeat before it applies any of its changes.
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
    /// ([`Lease::unlisted`]); a note made [`FINISHED_SHARD_RETENTION`] later removes the shard.
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
    pub table: Option<LeaseTable>,
}

impl HeartbeatResponse {
    /// Creates a response with these fields.
    pub fn new(membership: Membership, applied: bool, table: Option<LeaseTable>) -> Self {
        Self { membership, applied, table }
    }
}

/// The live workers and the leases of one application and stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeaseTable {
    /// The creation time of the table, in microseconds by the store's clock. A store that has lost
    /// the table or a part of it creates a new one.
    pub generation: u64,
    /// Rises with each change, by at least the microseconds that have passed.
    pub version: u64,
    /// The time at which the table was last cleared, in milliseconds by the store's clock; 0 if
    /// never. Epochs from this time or earlier are invalid.
    pub cleared: u64,
    /// The time of the [first poll](Change::Begin), in milliseconds since 1970, or 0. The store
    /// drops it when the first lease is added, since leases have their own positions.
    pub first_poll: u64,
    /// The live workers.
    pub workers: BTreeMap<Arc<str>, WorkerEntry>,
    /// Every known shard. A shard with only a position is included without parents.
    pub leases: BTreeMap<ShardId, Lease>,
}

impl LeaseTable {
    /// Keeps only these workers, and frees the leases of all others.
    pub(in crate::store) fn retain_workers(&mut self, mut stays: impl FnMut(&Arc<str>) -> bool) {
        self.workers.retain(|worker, _| stays(worker));
        for lease in self.leases.values_mut() {
            if lease.owner.as_ref().is_none_or(|owner| !self.workers.contains_key(owner)) {
                (lease.owner, lease.next_owner) = (None, None);
            } else if lease
                .next_owner
                .as_ref()
                .is_some_and(|next_owner| !self.workers.contains_key(next_owner))
            {
                lease.next_owner = None;
            }
        }
    }
}

/// A worker in the table.
#[derive(Debug, Clone, PartialEq, Eq)]
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
}

impl WorkerEntry {
    /// Creates the entry of a worker without a limit of shards.
    pub fn new(incarnation: u64, joined: u64, lease_duration: Duration) -> Self {
        Self { incarnation, joined, lease_duration, capacity: u32::MAX }
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
    /// The generation of the table in which the lease's position began.
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
    /// The reason why the stored lease or position cannot be read, with the key and the field;
    /// `None` if both are readable. All other fields then have their defaults. The store keeps the
    /// stored text, the shard is not read, and its children wait, until the text is corrected or
    /// [`AdminEdit::Set`] replaces it.
    pub unreadable: Option<Arc<str>>,
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
    /// there is no lease and the epoch began more than [`FINISHED_SHARD_RETENTION`] ago, so that the
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
