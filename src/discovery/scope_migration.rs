//! Migration of the positions under a stream's name alone to the scope of the stream's ARN.
//!
//! ```text
//!   read the scope of the name ◄────────────────────────────────────┐
//!     │  │  │                                                       │
//!     │  │  └─ positions of this stream, workers alive ──► wait ────┤
//!     │  │                                                          │
//!     │  └─ positions of this stream, no worker alive ──► claim ────┤ the table has changed
//!     │                                                     │       │
//!     │ no positions, of another stream,                    ▼       │
//!     │ or claimed by another ARN                  marked as claimed
//!     ▼                                                     │ crash here: the next worker
//!   start at the starting position                          ▼ finds the mark and continues
//!                 all shards with their positions are added to the scope of the ARN
//!                                                           │ crash here: the scope has shards,
//!                                                           ▼ and nothing is migrated again
//!                                                  marked as migrated
//! ```
//!
//! Claim and addition are each one step of the store, conditional on the table that was read. A
//! claim belongs to one ARN. The positions under the name stay unchanged. A scope that already has
//! shards, or that was [cleared](crate::store::lease::AdminEdit::Clear), inherits nothing.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::join_all;
use tokio::time::{Instant, sleep};

use super::identity::has_begun;
use super::listing::ShardDiscovery;
use super::migrated_positions::{MigratedPositions, StoredPositions};
use crate::backoff::{Backoff, LISTINGS};
use crate::error::{Error, ErrorKind, Result};
use crate::record::{SequenceNumber, ShardId};
use crate::source::{Listing, Position};
use crate::store::lease::{Change, HeartbeatRequest, LeaseTable, Leases};
use crate::store::{Mark, Scope, with_timeout};
use crate::telemetry::Event;

/// The pause between two reads of a scope in which workers are alive.
const CHECK_INTERVAL: Duration = Duration::from_secs(3);

/// The time for which workers that read by name may delay a migration, or the store may fail,
/// before the caller gets an error.
const TOLERATED_DELAY: Duration = Duration::from_secs(60);

/// The number of concurrent `GetShardIterator` calls. Each shard allows five per second.
const CONCURRENT_PROBES: usize = 16;

/// A part of the message with which Kinesis rejects a sequence number of another stream.
const OF_OTHER_STREAM: &str = "did not come from this stream";

/// The lease duration of a request that does not join the fleet.
const NO_LEASE: Duration = Duration::from_secs(2);

/// Migrates the positions of a stream's name to the scope of its ARN.
#[derive(Clone)]
pub(crate) struct ScopeMigration {
    /// The leases of the scope of the name.
    named: Leases,
    scope: Scope,
    worker_id: Arc<str>,
    /// True if the migration is marked as done, or there was none.
    is_settled: Arc<AtomicBool>,
}

/// The next step of a migration.
pub(super) enum MigrationStep {
    /// Start to read, with these positions if there are any.
    Begin(MigratedPositions),
    /// Wait: these workers are alive under the name.
    Wait(Vec<String>),
    /// Retry: the table has changed, or the listing was not confirmed.
    Retry,
}

impl ScopeMigration {
    /// Returns the migration into `scope`; `None` if that is the scope of a name alone.
    pub(crate) fn new(leases: &Leases, scope: &Scope, worker_id: &Arc<str>) -> Option<Self> {
        Some(Self {
            named: leases.of_scope(scope.by_name()?),
            scope: scope.clone(),
            worker_id: Arc::clone(worker_id),
            is_settled: Arc::default(),
        })
    }

    /// Compares the scope of the name with a new listing, and claims the positions of this stream.
    async fn step(&self, discovery: &ShardDiscovery, listing: &Listing) -> Result<MigrationStep> {
        let table = with_timeout(self.named.table()).await?;
        let claim = self.scope.mark(Mark::Claimed);
        let is_settled = table.leases.contains_key(&self.scope.mark(Mark::Migrated));
        let is_anothers = table.leases.keys().any(|id| Mark::is_claim(id) && *id != claim);
        let claimable = StoredPositions::new(&table, &listing.shards);
        if is_settled || is_anothers || claimable.is_empty() {
            return Ok(MigrationStep::Begin(MigratedPositions::default()));
        }
        if discovery.confirm_other_starts(listing, &table).await.is_err() {
            return Ok(MigrationStep::Retry);
        }
        let refuted = self.refuted(discovery, &claimable.unverified()).await;
        let migrated = claimable.settle(&refuted);
        if migrated.leases.is_empty() {
            return Ok(MigrationStep::Begin(migrated));
        }
        if !table.workers.is_empty() {
            return Ok(MigrationStep::Wait(
                table.workers.keys().map(ToString::to_string).collect(),
            ));
        }
        let is_mine = table.leases.contains_key(&claim)
            || self.mark(Mark::Claimed, Some((table.generation, table.version))).await?;
        Ok(if is_mine { MigrationStep::Begin(migrated) } else { MigrationStep::Retry })
    }

    /// Returns the shards with a sequence number that Kinesis rejects as one of another stream. The
    /// shard's reader handles any other response.
    async fn refuted<'a>(
        &self,
        discovery: &ShardDiscovery,
        positions: &[(&'a ShardId, &'a SequenceNumber)],
    ) -> BTreeSet<&'a ShardId> {
        let mut refuted = BTreeSet::new();
        for some in positions.chunks(CONCURRENT_PROBES) {
            let asked = some.iter().map(|(shard, number)| async move {
                let position = Position::AfterSequenceNumber((*number).clone(), None);
                let refusal = discovery.kinesis.shard_iterator(shard, &position).await.err()?;
                let is_other = refusal.error.to_string().contains(OF_OTHER_STREAM);
                discovery.note_panic(refusal);
                is_other.then_some(*shard)
            });
            refuted.extend(join_all(asked).await.into_iter().flatten());
        }
        refuted
    }

    /// Adds a mark to the scope of the name, without joining its fleet. With `known`, the mark is
    /// added only if the table still has that generation and version. Returns true if it was added.
    async fn mark(&self, done: Mark, known: Option<(u64, u64)>) -> Result<bool> {
        let worker = Arc::clone(&self.worker_id);
        let request = HeartbeatRequest {
            capacity: 0,
            leaving: true,
            known,
            only_if_unchanged: known.is_some(),
            changes: vec![Change::Add {
                shard: self.scope.mark(done),
                parents: Vec::new(),
                start: None,
                // Finished, so that no worker reads it.
                checkpoint: Some(crate::Checkpoint::ShardEnd),
            }],
            ..HeartbeatRequest::new(worker, fastrand::u64(1..), NO_LEASE)
        };
        Ok(with_timeout(self.named.exchange(&request)).await?.applied)
    }

    /// Marks the claimed positions as migrated, after the table of the ARN has shown them. If the
    /// store fails, a later listing adds the mark.
    async fn settle(&self) {
        if self.is_settled.load(Ordering::Relaxed) {
            return;
        }
        let Ok(table) = with_timeout(self.named.table()).await else { return };
        let has = |done| table.leases.contains_key(&self.scope.mark(done));
        let is_noted = !has(Mark::Claimed)
            || has(Mark::Migrated)
            || self.mark(Mark::Migrated, None).await.is_ok();
        self.is_settled.store(is_noted, Ordering::Relaxed);
    }
}

impl ShardDiscovery {
    /// Lists the stream until the listing is usable and the positions to migrate with it are known.
    /// Returns `None` if the stream does not exist.
    pub(super) async fn list_and_migrate(
        &self,
        before: &LeaseTable,
        begins: bool,
    ) -> Option<(Listing, MigratedPositions)> {
        let mut delay = Delay::new();
        loop {
            let listing = self.until_complete(before, begins).await?;
            let Some(takeover) = &self.scope_migration else {
                return Some((listing, <_>::default()));
            };
            if has_begun(before) {
                takeover.settle().await;
                return Some((listing, MigratedPositions::default()));
            }
            if before.cleared > 0 {
                return Some((listing, MigratedPositions::default()));
            }
            match takeover.step(self, &listing).await {
                Ok(MigrationStep::Begin(migrated)) => return Some((listing, migrated)),
                Ok(MigrationStep::Wait(workers)) => delay.by_workers(self, workers).await,
                Ok(MigrationStep::Retry) => sleep(delay.backoff.failed()).await,
                Err(error) => delay.by_store(self, error).await,
            }
        }
    }
}

/// The delay of a migration so far.
struct Delay {
    since: Option<Instant>,
    is_reported: bool,
    is_error_reported: bool,
    failed: u32,
    backoff: Backoff,
}

impl Delay {
    fn new() -> Self {
        Self {
            since: None,
            is_reported: false,
            is_error_reported: false,
            failed: 0,
            backoff: Backoff::new(LISTINGS),
        }
    }

    /// Returns true once, when the delay is long enough to report an error.
    fn is_overdue(&mut self) -> bool {
        let now = Instant::now();
        let delay = now.duration_since(*self.since.get_or_insert(now));
        delay >= TOLERATED_DELAY && !std::mem::replace(&mut self.is_error_reported, true)
    }

    async fn by_workers(&mut self, discovery: &ShardDiscovery, worker_ids: Vec<String>) {
        if !std::mem::replace(&mut self.is_reported, true) {
            let worker_ids = worker_ids.clone();
            discovery.telemetry.emit(Event::MigrationDelayed { worker_ids });
        }
        if self.is_overdue() {
            let message = format!(
                "workers that read the stream by name hold the positions of this application: {}; \
                 stop them, and this consumer, which reads by ARN, migrates the positions and starts",
                worker_ids.join(", ")
            );
            let error = Error::new(ErrorKind::InUse, message);
            discovery.report_error(error.in_stream(discovery.kinesis.name()));
        }
        self.backoff.succeeded();
        sleep(CHECK_INTERVAL).await;
    }

    async fn by_store(&mut self, discovery: &ShardDiscovery, error: Error) {
        let error = error.in_stream(discovery.kinesis.name());
        self.failed += 1;
        discovery.telemetry.emit(Event::retried(None, &error, self.failed));
        let is_lasting = self.is_overdue();
        if is_lasting
            || !error.is_temporary() && !std::mem::replace(&mut self.is_error_reported, true)
        {
            discovery.report_error(error);
        }
        sleep(self.backoff.failed()).await;
    }
}
