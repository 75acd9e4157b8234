//! The lease table of one application and stream in a store.

use std::sync::Arc;
use std::time::Duration;

use super::access::Access;
use super::change::{AdminEdit, EditOutcome, IfLeased};
use super::contract::{LeaseStore, OtherReader};
use super::heartbeat::{FencedCheckpoint, HeartbeatRequest, HeartbeatResponse, SaveOutcome};
use super::saves::Saves;
use super::table::LeaseTable;
use super::view::View;
use crate::clock::Clock;
use crate::error::Result;
use crate::record::ShardId;
use crate::store::Scope;

/// The lease table of one application and stream in a store.
///
/// A worker uses one value for all its calls: it remembers the table that it read last, so that the
/// store returns only what has changed since. Clones share it.
///
/// # Cancel safety
///
/// A dropped call may have changed the store. The next call finds out.
#[derive(Debug, Clone)]
pub struct Leases {
    store: Arc<dyn LeaseStore>,
    scope: Scope,
    clock: Clock,
    /// The table as a worker knows it.
    view: Arc<tokio::sync::Mutex<View>>,
    /// The heartbeats of workers, as operators have seen them.
    seen: Arc<tokio::sync::Mutex<View>>,
    saves: Arc<Saves>,
}

impl Leases {
    /// Creates access to the table of `scope` in a store, without a call.
    pub fn new(store: Arc<dyn LeaseStore>, scope: Scope) -> Self {
        Self::with_clock(store, scope, Clock::default())
    }

    /// Creates access to a table. `clock` is used for a store without a clock.
    pub(crate) fn with_clock(store: Arc<dyn LeaseStore>, scope: Scope, clock: Clock) -> Self {
        Self {
            store,
            scope,
            clock,
            view: Arc::default(),
            seen: Arc::default(),
            saves: Arc::default(),
        }
    }

    /// Returns access to the table of another scope in the same store.
    pub(crate) fn of_scope(&self, scope: Scope) -> Self {
        Self::with_clock(Arc::clone(&self.store), scope, self.clock.clone())
    }

    /// Returns the scope of the table.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// Makes one heartbeat of a worker: renews it, removes expired workers, makes its changes, and
    /// returns the table.
    ///
    /// 1. If another worker of this name and another incarnation is alive, the heartbeat is answered
    ///    [`Occupied`](super::Membership::Occupied), and nothing changes.
    /// 2. If the worker is in the table but has expired, all workers are renewed: the store was
    ///    unreachable for all of them, or another worker would have removed this one. Otherwise
    ///    expired workers are removed, and their leases become free.
    /// 3. The worker joins, or is renewed.
    /// 4. The changes are made. None is made if [`HeartbeatRequest::only_if_unchanged`] is set and
    ///    the table is not the known one. Otherwise changes that meet those of another worker are
    ///    tried again, with back-off, until they are made or this future is dropped. If a lease of
    ///    the worker has moved meanwhile, the table is returned at once, and none is made.
    /// 5. If the worker is leaving, it is removed, and its leases become free.
    ///
    /// # Errors
    ///
    /// Returns the errors of the store.
    pub async fn exchange(&self, request: &HeartbeatRequest) -> Result<HeartbeatResponse> {
        let mut view = self.view.lock().await;
        self.access().exchange(&mut view, request).await
    }

    /// Saves each position unless its epoch is no longer valid, and never moves a position
    /// backwards. The outcomes are in the order of the list; see [`SaveOutcome`].
    ///
    /// # Errors
    ///
    /// Returns the errors of the store. Some of the positions may be saved then.
    pub async fn save_fenced(&self, positions: &[FencedCheckpoint]) -> Result<Vec<SaveOutcome>> {
        self.access().save_fenced(positions).await
    }

    /// Returns the table without the workers that have expired.
    ///
    /// In a store without a clock, a dead worker is returned until calls of this value have seen no
    /// heartbeat of it for its lease duration.
    ///
    /// # Errors
    ///
    /// Returns the errors of the store.
    pub async fn table(&self) -> Result<LeaseTable> {
        let mut view = self.seen.lock().await;
        let table = self.access().table(&mut view).await;
        view.forget_table();
        table
    }

    /// Applies an operator's edit. If it concerns a live worker, `if_leased` decides whether it is
    /// applied. In a store without a clock, a dead worker counts as live until calls of this value
    /// have seen no heartbeat of it for its lease duration. An unknown policy counts as [`IfLeased::Refuse`]. An edit that meets the
    /// change of a worker is tried again, with back-off, until it is made or this future is dropped.
    ///
    /// # Errors
    ///
    /// Returns the errors of the store.
    pub async fn edit(&self, edit: &AdminEdit, if_leased: IfLeased) -> Result<EditOutcome> {
        let mut view = self.seen.lock().await;
        let outcome = self.access().edit(&mut view, edit, if_leased).await;
        view.forget_table();
        outcome
    }

    /// Returns the time after which a repeated [`edit`](Self::edit) or [`table`](Self::table) finds out
    /// whether a worker is alive; `None` if the last one has found out.
    pub(crate) async fn undecided(&self, worker: &Arc<str>) -> Option<Duration> {
        self.seen.lock().await.undecided(worker)
    }

    /// See [`LeaseStore::forgets_finished_shards`].
    pub(crate) fn forgets_finished_shards(&self) -> bool {
        self.store.forgets_finished_shards()
    }

    /// See [`LeaseStore::other_reader`].
    pub(crate) async fn other_reader(
        &self,
        shards: Option<&[ShardId]>,
        lease_duration: Duration,
    ) -> Result<Option<OtherReader>> {
        self.store.other_reader(&self.scope, shards, lease_duration).await
    }

    fn access(&self) -> Access<'_> {
        let Self { store, scope, clock, saves, .. } = self;
        Access { store: &**store, scope, clock, saves }
    }
}
