//! Who reads which shard: the table of leases that the workers of an application share.
//!
//! A [`LeaseStore`] keeps the table beside the checkpoints. It decides nothing: workers read the
//! table, decide alike, and ask for changes, each of which the store carries out whole or not at
//! all, by its own clock.
//!
//! ```text
//!          Assign                     Offer
//!   free ─────────► owned by a worker ─────► owned, and on its way to an heir
//!    ▲                 │          ▲                        │
//!    └── Release, expiry, Finish ─┴────── Release ─────────┘
//! ```
//!
//! Every change of owner has an [epoch](Lease::epoch) of its own, greater than all before it. A
//! position is saved only with the epoch under which it was read, so one who has lost the lease
//! changes nothing, however late it comes.
//!
//! A worker is alive while it exchanges within its [lease duration](Request::lease_duration), by
//! the store's clock. The leases of one that is not are free. So renewing takes one call however
//! many leases there are.
//!
//! # A store that forgets
//!
//! A store may come back without what it was told last, or with nothing. Workers remember the
//! table that they last saw, and [tell](Change::Restore) the store what it has forgotten. Epochs
//! and versions follow the clock, so that what is counted anew still counts on.
//!
//! # A shard that goes from worker to worker
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> kinestream::Result<()> {
//! use std::time::Duration;
//!
//! use kinestream::store::Scope;
//! use kinestream::store::lease::{
//!     Change, Edit, Fenced, Lease, LeaseStore, Request, Standing, Table, Verdict,
//! };
//! use kinestream::{Checkpoint, MemoryStore, ShardId};
//!
//! fn request(worker: &str, changes: Vec<Change>) -> Request {
//!     Request {
//!         worker: worker.into(),
//!         incarnation: 1,
//!         lease_duration: Duration::from_secs(10),
//!         capacity: u32::MAX,
//!         leaving: false,
//!         known: None,
//!         only_if_unchanged: false,
//!         changes,
//!     }
//! }
//!
//! let store = MemoryStore::new();
//! let scope = Scope::new("billing", "orders");
//! let shard: ShardId = "shardId-000000000000".parse()?;
//! let lease = |table: &Table| -> Lease { table.leases[&shard].clone() };
//!
//! // The first worker joins, adds the shard and takes its lease, all in one step.
//! let (parents, checkpoint) = (Vec::new(), Some(Checkpoint::TrimHorizon));
//! let add = Change::Add { shard: shard.clone(), parents, start: None, checkpoint };
//! let assign = |to: &str| Change::Assign { shard: shard.clone(), to: to.into() };
//! let answer = store.exchange(&scope, &request("one", vec![add, assign("one")])).await?;
//! assert_eq!(answer.standing, Standing::Joined);
//! let first = lease(&answer.table.unwrap());
//!
//! // A second one joins. The first has its lease go on to that one, and hands it over.
//! let table = store.exchange(&scope, &request("two", vec![])).await?.table.unwrap();
//! assert_eq!(table.workers["two"].capacity, u32::MAX);
//! let offer = Change::Offer { shard: shard.clone(), to: "two".into() };
//! let release = Change::Release { shard: shard.clone(), epoch: first.epoch };
//! let answer = store.exchange(&scope, &request("one", vec![offer, release])).await?;
//! let second = lease(&answer.table.unwrap());
//! assert_eq!(second.owner, Some("two".into()));
//! assert!(second.epoch > first.epoch);
//!
//! // What the first one saves now comes too late.
//! let read = |epoch| Fenced {
//!     shard: shard.clone(),
//!     epoch,
//!     checkpoint: "AFTER_SEQUENCE_NUMBER:49590338".parse().unwrap(),
//! };
//! let verdicts = store.save_fenced(&scope, &[read(first.epoch), read(second.epoch)]).await?;
//! assert_eq!(verdicts, [Verdict::Lost, Verdict::Saved]);
//!
//! // Nor does an operator move it under a worker's hands, unless it is forced.
//! let back = Edit::Set { positions: vec![(shard.clone(), Checkpoint::TrimHorizon)] };
//! assert_eq!(store.edit(&scope, &back, false).await?, Some("two".into()));
//! assert_eq!(store.edit(&scope, &back, true).await?, None);
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
pub(super) use text::{lease_of, member_of, name_of, parents_of, start_of, word_of};

/// How long a finished shard is remembered after listings stopped showing it: the longest retention
/// of a stream, 365 days
/// (<https://docs.aws.amazon.com/streams/latest/dev/kinesis-extended-retention.html>). A listing that
/// leaves it out by mistake does not have it read again.
pub const MARK_KEPT: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Keeps leases beside checkpoints, so that workers can share the shards of a stream.
///
/// [`MemoryStore`](crate::MemoryStore) and `RedisStore` do; a store of your own may. Each call is
/// one step that no other call divides. [`conformance::check_leases`] holds a store to it.
///
/// # Cancel safety
///
/// A call that is dropped may have been carried out. Asked again, each says or does the same.
///
/// [`conformance::check_leases`]: super::conformance::check_leases
pub trait LeaseStore: Debug + Send + Sync + 'static {
    /// A worker joins, renews or leaves, asks for changes, and sees the table.
    ///
    /// In this order, by the store's clock:
    ///
    /// 1. A clock that went back shortens the lives of workers to their lease duration.
    /// 2. Where a worker of this name but another incarnation is alive, the answer is
    ///    [`Occupied`](Standing::Occupied), and nothing is done.
    /// 3. A worker that is there but has outlived its duration was not the only one that could
    ///    not reach the store, or another would have removed it: all workers live on for their
    ///    duration. Otherwise those that have outlived theirs are removed, and their leases free.
    /// 4. The worker joins, or lives on for its duration.
    /// 5. The changes are made: all of them, or none where [`HeartbeatRequest::only_if_unchanged`] is set and
    ///    the version is not the known one.
    /// 6. Where it is leaving, the worker is removed, and its leases are free.
    ///
    /// The version rises with every change but that of an expiry, or of a position short of the end
    /// of its shard. So whoever is told that a lease cannot be had is told why.
    fn exchange<'a>(
        &'a self,
        scope: &'a Scope,
        request: &'a HeartbeatRequest,
    ) -> BoxFuture<'a, Result<HeartbeatResponse>>;

    /// Saves positions, each if the lease of its shard is still of the epoch, and never backwards.
    /// What has become of each is in the order of the list.
    ///
    /// The end of a shard frees its lease, and is a change of the table.
    fn save_fenced<'a>(
        &'a self,
        scope: &'a Scope,
        positions: &'a [FencedCheckpoint],
    ) -> BoxFuture<'a, Result<Vec<SaveOutcome>>>;

    /// The table, seen from outside: nobody joins, and who has outlived its time is not in it.
    fn table<'a>(&'a self, scope: &'a Scope) -> BoxFuture<'a, Result<LeaseTable>>;

    /// What an operator changes. Where a worker is concerned that is alive, nothing is done unless
    /// it is forced, and the worker is named.
    fn edit<'a>(
        &'a self,
        scope: &'a Scope,
        edit: &'a AdminEdit,
        forced: bool,
    ) -> BoxFuture<'a, Result<Option<Arc<str>>>>;
}

/// What a worker tells and asks in one exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeartbeatRequest {
    /// Its name: one to a worker.
    pub worker: Arc<str>,
    /// A number of its own for each life of a worker of that name.
    pub incarnation: u64,
    /// How long it is taken to be alive without another exchange, in whole milliseconds.
    pub lease_duration: Duration,
    /// The most shards that it takes.
    pub capacity: u32,
    /// It goes, and gives back what it has.
    pub leaving: bool,
    /// The generation and the version of the table that it has seen; where they are still the
    /// same, the table is not given again.
    pub known: Option<(u64, u64)>,
    /// Whether the changes are made only to the table that is known.
    pub only_if_unchanged: bool,
    /// What it asks for, in this order.
    pub changes: Vec<Change>,
}

/// A change of the table. One that does not fit any more changes nothing, nor does one of a shard
/// that is [unreadable](Lease::unreadable).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Stores the moment at which the application polled the stream first, unless one is stored or the
    /// table has any shard.
    Begin {
        /// The moment, in milliseconds since 1970.
        first_poll: u64,
    },
    /// There is a shard, with these parents. A lease that ever had an owner keeps the parents that it
    /// has; any other gets those that it lacks. The position is stored unless there is one or the lease
    /// ever had an owner.
    Add {
        /// The shard.
        shard: ShardId,
        /// The shards it was split or merged from.
        parents: Vec<ShardId>,
        /// Its first sequence number, where that is known.
        start: Option<SequenceNumber>,
        /// Where it begins; `None` leaves that to who reads it.
        checkpoint: Option<Checkpoint>,
    },
    /// A listing shows the shard, and its first sequence number, which is stored unless there is one, and
    /// so is the time of [`Lease::added`]. A lost shard that starts there is not lost any more.
    Identify {
        /// The shard.
        shard: ShardId,
        /// Its first sequence number.
        start: Option<SequenceNumber>,
    },
    /// The shard is one of another stream than the lease was of: a stream that was deleted and created
    /// again has shards of the same names. The lease gets a new epoch and this position, and is neither
    /// finished nor lost. Its owner keeps it, so that no other worker starts before the owner has seen the
    /// new epoch. One that has this start already stays as it is.
    Replace {
        /// The shard.
        shard: ShardId,
        /// The shards it was split or merged from.
        parents: Vec<ShardId>,
        /// Its first sequence number.
        start: SequenceNumber,
        /// Where it begins.
        checkpoint: Checkpoint,
    },
    /// A lease that is free goes to a worker, in a new epoch. Where its owner is not in the table, the
    /// owner is added instead as a worker of incarnation 0 and capacity 0: it may be alive, and the
    /// lease is free when it has not renewed within the lease duration of the calling worker.
    Assign {
        /// The shard.
        shard: ShardId,
        /// The worker.
        to: Arc<str>,
    },
    /// The owner of a lease is to hand it over to a worker; to keep it, where that is the owner.
    Offer {
        /// The shard.
        shard: ShardId,
        /// The worker.
        to: Arc<str>,
    },
    /// The worker gives back a lease that it has in this epoch: to the heir, in a new epoch, or to
    /// whoever takes it.
    Release {
        /// The shard.
        shard: ShardId,
        /// The epoch.
        epoch: u64,
    },
    /// Every record of a shard is finished, said in the epoch of its lease.
    Finish {
        /// The shard.
        shard: ShardId,
        /// The epoch.
        epoch: u64,
    },
    /// A shard has left retention before it was read to its end. Nobody can read it, and its
    /// children wait. A lease that is owned is free in a new epoch.
    MarkExpired {
        /// The shard.
        shard: ShardId,
    },
    /// A complete listing does not show a finished shard. The store notes when it was told first
    /// ([`Lease::unlisted`]); [`MARK_KEPT`] later nothing is kept of the shard.
    Forget {
        /// The shard.
        shard: ShardId,
    },
    /// A worker was alive, as this one remembers.
    ReviveWorker {
        /// The worker's name.
        worker: Arc<str>,
        /// What was known of it.
        member: WorkerEntry,
    },
    /// A lease was like this, as this worker remembers.
    ///
    /// - Where there is none, it is again, unless everything was [cleared](Edit::Clear) since. Of one
    ///   without parents only the position is.
    /// - One of a later [origin](Lease::origin) was begun by somebody who knew of nothing: it takes
    ///   this position, even where that is further back, in a new epoch. Its owner keeps it, unless the
    ///   position is the shard's end.
    /// - One of the same origin and a lower epoch becomes this one, at the further position; one of
    ///   the same epoch moves to the further position, and is owned again where it was free, and
    ///   lost where it was lost.
    /// - One of a higher epoch stays as it is.
    Restore {
        /// The shard.
        shard: ShardId,
        /// Which life of its owner: a later one of the same name has nothing of what this one had.
        incarnation: u64,
        /// What was known of it.
        lease: Lease,
    },
}

/// How a worker stands after an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Membership {
    /// It was there, and has renewed.
    Renewed,
    /// It was not there before.
    Joined,
    /// Another one that is alive has its name.
    Occupied,
    /// It has left.
    Left,
}

/// What came of an exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeartbeatResponse {
    /// How the worker stands.
    pub standing: Membership,
    /// Whether the changes were made.
    pub applied: bool,
    /// The table, unless it is the known one.
    pub table: Option<LeaseTable>,
}

/// Who there is, and who has what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeaseTable {
    /// When it was made, in microseconds by the store's clock. A store that has forgotten everything,
    /// or a part of the table, makes a new one.
    pub generation: u64,
    /// Rises with each change, by at least the microseconds that have passed.
    pub version: u64,
    /// The last time it was cleared, in milliseconds by the store's clock: no epoch from then or
    /// before is valid. 0 where it never was.
    pub cleared: u64,
    /// The moment of the [first poll](Change::Begin), in milliseconds since 1970, or 0. The store drops it
    /// with the first lease that is added, since leases have positions of their own.
    pub first_poll: u64,
    /// The workers that are alive.
    pub workers: BTreeMap<Arc<str>, WorkerEntry>,
    /// Every shard that is known. One that has only a position is in it without parents.
    pub leases: BTreeMap<ShardId, Lease>,
}

impl LeaseTable {
    /// Leaves only these workers, and frees what the others have.
    pub(in crate::store) fn retain_workers(&mut self, mut stays: impl FnMut(&Arc<str>) -> bool) {
        self.workers.retain(|worker, _| stays(worker));
        for lease in self.leases.values_mut() {
            if lease.owner.as_ref().is_none_or(|owner| !self.workers.contains_key(owner)) {
                (lease.owner, lease.next_owner) = (None, None);
            } else if lease.next_owner.as_ref().is_some_and(|next_owner| !self.workers.contains_key(next_owner)) {
                lease.next_owner = None;
            }
        }
    }
}

/// A worker in the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerEntry {
    /// Which life of a worker of this name; 0 where that is unknown: the worker of this name that
    /// renews first is taken for it.
    pub incarnation: u64,
    /// Rises from worker to worker, as they join.
    pub joined: u64,
    /// How long it lives without another exchange.
    pub lease_duration: Duration,
    /// The most shards that it takes.
    pub capacity: u32,
}

/// The lease of one shard.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lease {
    /// Rises with each change of owner, by at least the milliseconds that have passed. 0 before
    /// the first.
    pub epoch: u64,
    /// Who reads it.
    pub owner: Option<Arc<str>>,
    /// Whom its owner is to hand it over to.
    pub next_owner: Option<Arc<str>>,
    /// The generation of the table in which its position began.
    pub origin: u64,
    /// The shards it was split or merged from; `None` where nothing but a position is known of it.
    pub parents: Option<Vec<ShardId>>,
    /// It has left retention before it was read to its end, or belongs to another stream than its
    /// position.
    pub is_shard_expired: bool,
    /// The first sequence number of the shard, which tells it from one of the same name in another
    /// stream; `None` where no listing has shown it yet.
    pub start: Option<SequenceNumber>,
    /// Since when no listing shows the finished shard, in milliseconds by the store's clock.
    pub unlisted: Option<u64>,
    /// When the shard was added, or an operator set its position, in milliseconds by the store's clock.
    /// Before its first position is saved, a shard that began more than a retention period ago may have
    /// lost records. `None` where an earlier version added it and no listing has shown it since.
    pub added: Option<u64>,
    /// Its position; `None` where that is left to who reads it.
    pub checkpoint: Option<Checkpoint>,
    /// Why the stored lease or position cannot be read, with the key and the field; `None` where both
    /// can. All other fields then have their defaults. The store keeps what it has, the shard is not
    /// read, and its children wait, until the stored text is corrected or [`AdminEdit::Set`] replaces it.
    pub unreadable: Option<Arc<str>>,
}

impl Lease {
    /// Whether every record of the shard is finished.
    pub fn is_finished(&self) -> bool {
        self.checkpoint == Some(Checkpoint::ShardEnd)
    }

    /// The time of [`Self::added`].
    pub(crate) fn added_at(&self) -> Option<SystemTime> {
        UNIX_EPOCH.checked_add(Duration::from_millis(self.added?))
    }

    /// Who has it, or is about to.
    pub fn holder(&self) -> Option<&Arc<str>> {
        self.next_owner.as_ref().or(self.owner.as_ref())
    }
}

/// A position, and the epoch of the lease under which it was reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FencedCheckpoint {
    /// The shard.
    pub shard: ShardId,
    /// The epoch.
    pub epoch: u64,
    /// The position.
    pub checkpoint: Checkpoint,
}

/// What has become of a position that was to be saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SaveOutcome {
    /// It is saved, or a further one is.
    Saved,
    /// It is saved, but the store knows no lease of this epoch, and none of a higher one: it has
    /// forgotten something.
    Forgotten,
    /// The lease is of a higher epoch, or everything was cleared since, or there is no lease and the
    /// epoch began more than [`MARK_KEPT`] ago, so that the shard may have been forgotten: nothing is
    /// saved.
    Lost,
    /// The stored lease or position cannot be read, and stays as it is: nothing is saved.
    Unreadable,
}

impl SaveOutcome {
    /// Whether the store did not take the position, and will not.
    pub(crate) fn is_refusal(self) -> bool {
        matches!(self, Self::Lost | Self::Unreadable)
    }
}

/// What an operator may change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdminEdit {
    /// Moves shards to these positions, which may be before or behind the stored ones: all of them in
    /// one step, or none.
    ///
    /// The lease of each, where there is one, gets a new epoch and is no longer lost. A living owner
    /// keeps it, so that no other worker starts before the owner has seen the new epoch, unless the
    /// position is the shard's end. A position or lease that cannot be read is replaced: the lease
    /// then has no known parents until a listing shows the shard.
    Set {
        /// Each shard and its position. A shard that is listed twice has the last of them.
        positions: Vec<(ShardId, Checkpoint)>,
    },
    /// Everything is forgotten, and who reads begins anew.
    Clear,
}
