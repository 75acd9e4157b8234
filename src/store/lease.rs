//! Leases: the table, shared by the workers of an application, that assigns each shard to a worker.
//!
//! Workers read the [`LeaseTable`], all decide by the same rules, and write what changes. The rules
//! are pure functions over the table; a [`LeaseStore`] only keeps its entries, and makes a step if
//! the entries still are as the worker has read them.
//!
//! # The state machine
//!
//! ```text
//!              Assign                      Offer
//!   unassigned ─────────► owned by a worker ─────► owned, with a next owner
//!       ▲                  │            ▲                       │
//!       └─ Release, expiry, Finish ─────┴─────── Release ───────┘
//! ```
//!
//! | rule | method or [`Change`] |
//! |---|---|
//! | a worker joins, or changes what it states about itself | [`join`](LeaseTable::join) |
//! | a worker leaves or has expired: its leases are free | [`remove`](LeaseTable::remove) |
//! | shards are added, identified, replaced and forgotten | `Add`, `Identify`, `Replace`, `Forget` |
//! | leases move | `Assign`, `Offer`, `Release` |
//! | shards end | `Finish`, `MarkExpired` |
//! | a store that has lost data is restored | `ReviveWorker`, `Restore` |
//! | an operator moves positions | [`edit`](LeaseTable::edit) |
//!
//! Every change of owner gets a new [epoch](Lease::epoch), greater than all earlier ones. A
//! position is saved only with the epoch under which it was read. A late save by a worker that has
//! lost the lease is therefore rejected.
//!
//! A worker is alive while it makes a [heartbeat](Leases::exchange) within its
//! [lease duration](HeartbeatRequest::lease_duration). The leases of an expired worker are free.
//! Renewal therefore takes one call, regardless of the number of leases. A store with a clock tells
//! which workers have expired. In a store without one, each worker observes how long the heartbeats
//! of the others stay the same; a worker is then removed up to two renewals later.
//!
//! # Data loss in the store
//!
//! After a failover or restart, a store may lack its last changes, or all data. Workers remember
//! the table that they saw last, and [restore](Change::Restore) what the store has lost. Epochs and
//! versions follow the clock, so they keep rising after a loss.
//!
//! # A store of your own
//!
//! Implement [`LeaseStore`], run [`conformance::check_leases`] on it in a test, and pass it to a
//! consumer with [`Leased`]. The example `postgres_store` is a complete store in 250 lines, with one
//! table in PostgreSQL. What its tests have shown to matter:
//!
//! - **Versions appear in order.** A reader that has seen a version must not miss an earlier one that
//!   is committed later. If the store does not order its commits, make steps one after another, under
//!   a lock.
//! - **A step reads and writes atomically**, against heartbeats and saves as well: it locks the rows
//!   that it compares, or compares again when it writes. An entry that does not exist has no row to
//!   lock. Lock rows in one order.
//! - **Deletions are changes.** Keep a mark of each deleted entry, and the versions themselves, for
//!   some minutes. A version that is not among them is unknown: it is older, or a backup that was
//!   restored has never had it. The answer is then the whole table.
//! - **Time is that of the answer**, after any wait for a lock, not that of the start of a transaction.
//! - **Locks end without their holder.** A worker that is suspended in a transaction must not keep its
//!   locks for longer than a fraction of the shortest lease duration.
//! - **A call may be dropped at any point.** Its transaction must end, and a connection that hangs must
//!   not be used again. A renewal is dropped after a third of the lease duration, a save after 10 s, and
//!   the first calls of a worker after 30 s: limit the time of a call and of a new connection yourself.
//! - **Failures have two kinds.** Return conflicts that the store reports as errors, lost connections,
//!   time limits and restarts as [`StoreUnavailable`](crate::ErrorKind::StoreUnavailable). A step whose
//!   conditions do not hold is an answer, not an error.
//!
//! [`conformance::check_leases`]: crate::store::conformance::check_leases
//! [`Leased`]: crate::store::Leased
//!
//! # Example: a handoff between two workers
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> kinestream::Result<()> {
//! use std::sync::Arc;
//! use std::time::Duration;
//!
//! use kinestream::store::Scope;
//! use kinestream::store::lease::{
//!     AdminEdit, Change, EditOutcome, FencedCheckpoint, HeartbeatRequest, IfLeased, Lease,
//!     LeaseTable, Leases, Membership, SaveOutcome,
//! };
//! use kinestream::{Checkpoint, MemoryStore, ShardId};
//!
//! fn request(worker: &str, changes: Vec<Change>) -> HeartbeatRequest {
//!     let mut request = HeartbeatRequest::new(worker, 1, Duration::from_secs(10));
//!     request.changes = changes;
//!     request
//! }
//!
//! let store = Arc::new(MemoryStore::new());
//! let scope = Scope::new("billing", "orders");
//! let [one, two] = [(); 2].map(|()| Leases::new(store.clone(), scope.clone()));
//! let shard: ShardId = "shardId-000000000000".parse()?;
//! let lease = |table: &LeaseTable| -> Lease { table.leases[&shard].clone() };
//!
//! // The first worker joins, adds the shard and acquires its lease, all in one step.
//! let (parents, checkpoint) = (Vec::new(), Some(Checkpoint::TrimHorizon));
//! let add = Change::Add { shard: shard.clone(), parents, start: None, checkpoint };
//! let assign = |to: &str| Change::Assign { shard: shard.clone(), to: to.into() };
//! let answer = one.exchange(&request("one", vec![add, assign("one")])).await?;
//! assert_eq!(answer.membership, Membership::Joined);
//! let first = lease(&answer.table.unwrap());
//!
//! // A second worker joins. The first worker offers its lease to the second, and releases it.
//! let table = two.exchange(&request("two", vec![])).await?.table.unwrap();
//! assert_eq!(table.workers["two"].capacity, u32::MAX);
//! let offer = Change::Offer { shard: shard.clone(), to: "two".into() };
//! let release = Change::Release { shard: shard.clone(), epoch: first.epoch };
//! let answer = one.exchange(&request("one", vec![offer, release])).await?;
//! let second = lease(&answer.table.unwrap());
//! assert_eq!(second.owner, Some("two".into()));
//! assert!(second.epoch > first.epoch);
//!
//! // A save by the first worker is now rejected.
//! let after: Checkpoint = "AFTER_SEQUENCE_NUMBER:49590338".parse()?;
//! let read = |epoch| FencedCheckpoint::new(shard.clone(), epoch, after.clone());
//! assert_eq!(one.save_fenced(&[read(first.epoch)]).await?, [SaveOutcome::Lost]);
//! assert_eq!(two.save_fenced(&[read(second.epoch)]).await?, [SaveOutcome::Saved]);
//!
//! // An edit of a position that a live worker owns is refused unless it is forced.
//! let back = AdminEdit::Set { positions: vec![(shard.clone(), Checkpoint::TrimHorizon)] };
//! let refused = EditOutcome::Refused { worker: "two".into() };
//! assert_eq!(one.edit(&back, IfLeased::Refuse).await?, refused);
//! assert_eq!(one.edit(&back, IfLeased::Force).await?, EditOutcome::Applied);
//! assert!(lease(&one.table().await?).epoch > second.epoch);
//! # Ok(()) }
//! ```

mod access;
mod change;
mod contract;
mod heartbeat;
mod leases;
mod load;
mod rules;
mod saves;
mod table;
#[cfg(test)]
mod tests;
mod text;
mod view;

pub use change::{AdminEdit, Change, EditOutcome, IfLeased};
pub(super) use contract::workers_of;
pub use contract::{
    EntryChange, EntryKey, Exchange, Exchanged, FencedOutcome, FencedSave, Heartbeats,
    LastHeartbeat, LeaseStore, OtherReader, Renewal, Step,
};
pub use heartbeat::{
    FencedCheckpoint, HeartbeatRequest, HeartbeatResponse, Membership, SaveOutcome,
};
pub use leases::Leases;
pub use load::WorkerLoad;
pub use rules::FINISHED_SHARD_RETENTION;
pub use table::{Lease, LeaseTable, WorkerEntry};
#[cfg(feature = "dynamodb")]
pub(super) use text::parse_lease;
#[cfg(feature = "redis")]
pub(super) use text::{format_name, parse_name};

/// Returns the text of a lease without its owner and next owner.
#[cfg(feature = "testing")]
pub(super) fn without_owner(lease: &str) -> String {
    let Some(parsed) = text::parse_lease(lease) else { return lease.to_owned() };
    text::format_lease(&Lease { owner: None, next_owner: None, ..parsed })
}
