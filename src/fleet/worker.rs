//! The worker's state and its main loop.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::exclusions::ExclusionTracker;
use super::exhaustion::{Exhaustion, StreamEnd};
use super::load_meter::LoadMeter;
use super::moves::MoveTimes;
use super::owned_shards::OwnedShards;
use super::reachability::Reachability;
use super::{AssignedShard, WorkerDeps};
use crate::backoff::{Backoff, EXCHANGES};
use crate::discovery::{Loss, StreamShards};
use crate::error::Panic;
use crate::record::{KnownShard, ShardId};
use crate::shard::{CheckpointOn, LeaseDeadline};
use crate::store::lease::{Change, LeaseTable};
use crate::telemetry::ShardTelemetry;
use crate::worker_message::WorkerMessage;

/// The shortest time between two listings on request. A listing is requested, for example, after a
/// shard has ended and Kinesis did not name its children.
const MIN_LISTING_INTERVAL: Duration = Duration::from_secs(1);

/// A worker, from joining to leaving.
pub(crate) struct Worker {
    pub(super) deps: WorkerDeps,
    pub(super) incarnation: u64,
    pub(super) validity: Arc<LeaseDeadline>,
    /// The time until which the leases are valid; `None` while delivery is suspended.
    pub(super) valid_until: Option<Instant>,
    pub(super) owned: OwnedShards,
    /// The table that was read last.
    pub(super) table: Arc<LeaseTable>,
    /// The time of the next exchange that requests the whole table; `None` for the next one.
    pub(super) whole_table_at: Option<Instant>,
    pub(super) wanted_table: WantedTable,
    /// True if the worker is in the table.
    pub(super) joined: bool,
    /// The number under which the worker has joined.
    pub(super) joined_as: Option<u64>,
    /// True if the caller got an error about the current outage of the store, or about a worker id
    /// in use.
    pub(super) error_reported: bool,
    pub(super) started_at: Instant,
    /// The time of the first answer after which this worker was in the table.
    pub(super) joined_at: Option<Instant>,
    /// The time from then to the last request that the store has answered.
    pub(super) member_for: Duration,
    /// The time of the first failed exchange since the last successful one.
    pub(super) failing_since: Option<Instant>,
    pub(super) backoff: Backoff,
    pub(super) renew_at: Instant,
    /// Changes to send to the store, whatever the version of the table.
    pub(super) pending: Vec<Change>,
    /// Children that ended shards have named and that are not in the table yet.
    pub(super) added_children: Vec<KnownShard>,
    /// The admin operations that wait until the worker has read the table.
    pub(super) edit_waiters: Vec<oneshot::Sender<()>>,
    /// Shards that workers have released unread.
    pub(super) exclusions: ExclusionTracker,
    pub(super) load: LoadMeter,
    pub(super) move_times: MoveTimes,
    /// The shards that the store cannot read and that were reported to the caller.
    pub(super) unreadable: BTreeSet<ShardId>,
    /// The version of the table that is known to be balanced.
    pub(super) balanced: Option<BalancedTable>,
    /// True if shards may be read: the worker has listed the stream, or it joined other workers.
    pub(super) has_listed: bool,
    pub(super) listing: ListingSchedule,
    /// Losses that are not reported yet, because no table shows them as stored.
    pub(super) losses: Vec<Loss>,
    pub(super) reachability: Reachability,
    /// The time since which the table shows a lease of another worker that cannot reach Kinesis.
    pub(super) stranded: Option<Instant>,
    pub(super) exhaustion: Exhaustion,
    pub(super) tasks: JoinSet<TaskOutcome>,
}

/// A version of the table in which no lease has to move.
pub(super) struct BalancedTable {
    pub(super) version: u64,
    /// The time after which a lease may have to move: the end of an exclusion, or of the rest after a
    /// move.
    pub(super) until: Option<Instant>,
}

/// The table that the next exchange is to return.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum WantedTable {
    /// One that has changed.
    #[default]
    Changed,
    /// Any, even if it has not changed.
    Any,
}

/// The state of the stream's listings.
pub(super) struct ListingSchedule {
    /// The last listing, until its changes are in the table.
    pub(super) listed: Option<StreamShards>,
    pub(super) is_under_way: bool,
    /// The number of consecutive listings that panicked.
    pub(super) panics: u32,
    /// True if this worker must list the stream itself, for example after a shard has ended and
    /// Kinesis did not name its children.
    pub(super) is_requested: bool,
    pub(super) last: Option<Instant>,
    /// True once the changes of a listing of this worker are in the table.
    pub(super) is_applied: bool,
    /// The last listing whose changes are in the table; `None` as well if the reading has no bounds.
    pub(super) applied: Option<AppliedListing>,
    pub(super) due: Instant,
}

/// A listing whose changes are in the table.
pub(super) struct AppliedListing {
    /// The time at which the listing began.
    pub(super) began: Instant,
    pub(super) listed: StreamShards,
}

/// The result of a background task of the worker.
pub(super) enum TaskOutcome {
    /// The stream was listed; `None` if the stream no longer exists.
    Listed(Option<StreamShards>),
    /// The listing panicked.
    FailedToList(Panic),
    /// The start of a shard is stored, or its lease is over.
    StoredStart(Box<AssignedShard>),
    /// A handoff can complete: the shard's delivered records are acknowledged, or the handoff has
    /// timed out.
    Settled(ShardId, u64),
}

/// A marker that the worker has ended because the stream no longer exists.
pub(super) struct WorkerEnded;

impl Worker {
    pub(crate) fn new(deps: WorkerDeps) -> Self {
        let now = Instant::now();
        let incarnation = fastrand::u64(1..);
        Self {
            incarnation,
            validity: Arc::new(LeaseDeadline::new(deps.config.clock.clone())),
            valid_until: None,
            owned: OwnedShards::new(deps.config.worker_id.clone(), incarnation),
            table: Arc::default(),
            whole_table_at: Some(now + deps.config.discovery_interval),
            wanted_table: WantedTable::default(),
            joined: false,
            joined_as: None,
            error_reported: false,
            started_at: now,
            joined_at: None,
            member_for: Duration::ZERO,
            failing_since: None,
            backoff: Backoff::new(EXCHANGES.capped(deps.config.lease_duration / 3)),
            renew_at: now,
            pending: deps.discovery.first_poll_change(0).into_iter().collect(),
            added_children: Vec::new(),
            edit_waiters: Vec::new(),
            exclusions: ExclusionTracker::new(deps.config.worker_id.clone()),
            load: LoadMeter::new(deps.config.lease_duration / 3, now),
            move_times: MoveTimes::new(deps.config.lease_duration / 3, now),
            unreadable: BTreeSet::new(),
            balanced: None,
            has_listed: false,
            listing: ListingSchedule {
                listed: None,
                is_under_way: false,
                panics: 0,
                is_requested: false,
                last: None,
                is_applied: false,
                applied: None,
                due: now,
            },
            losses: Vec::new(),
            reachability: Reachability::new(deps.config.lease_duration, now),
            stranded: None,
            exhaustion: Exhaustion::default(),
            tasks: JoinSet::new(),
            deps,
        }
    }

    /// Runs until `ended` or until the stream no longer exists, then saves positions and leaves.
    pub(crate) async fn run(
        mut self,
        mut messages: mpsc::UnboundedReceiver<WorkerMessage>,
        ended: impl Future<Output = ()>,
    ) {
        {
            let mut ended = pin!(ended);
            tokio::select! {
                biased;
                () = &mut ended => {}
                _over = self.supervise(&mut messages) => {}
            }
        }
        self.leave().await;
    }

    pub(super) async fn work(
        &mut self,
        messages: &mut mpsc::UnboundedReceiver<WorkerMessage>,
    ) -> WorkerEnded {
        loop {
            // While the store fails, new changes wait for the next retry.
            let is_ready = self.joined && self.failing_since.is_none();
            let has_news = !self.pending.is_empty() || !self.added_children.is_empty();
            if self.renew_at <= Instant::now() || is_ready && has_news {
                self.check_callers();
                self.measure_load();
                self.release_reached();
                self.check_reachability();
                self.exchange().await;
                if self.joined && self.failing_since.is_none() {
                    for seen in self.edit_waiters.drain(..) {
                        let _dropped = seen.send(());
                    }
                }
                self.deps.telemetry.measure(self.owned.len());
            }
            self.end_when_exhausted();
            // Biased, so that the same inputs always lead to the same actions.
            tokio::select! {
                biased;
                message = messages.recv() => {
                    let mut next = message;
                    while let Some(message) = next {
                        self.handle(message);
                        next = messages.try_recv().ok();
                    }
                }
                Some(done) = self.tasks.join_next() => {
                    let mut next = Some(done);
                    while let Some(done) = next {
                        // No task is aborted, and each contains its own panics.
                        if let Ok(done) = done && self.finish(done).is_some() {
                            return WorkerEnded;
                        }
                        next = self.tasks.try_join_next();
                    }
                }
                () = sleep_until(self.listing.due), if self.lists() => self.list(),
                () = sleep_until(self.renew_at) => {}
                () = sleep_until_expiry(self.valid_until) => self.suspend(),
            }
        }
    }

    fn handle(&mut self, message: WorkerMessage) {
        match message {
            WorkerMessage::Read { shard, epoch, children, telemetry } => {
                self.note_stream_end(&shard, epoch, StreamEnd::Shard, telemetry);
                if children.is_empty() {
                    self.request_listing();
                }
                self.added_children.extend(children);
            }
            WorkerMessage::Reached { shard, epoch, telemetry } => {
                self.note_stream_end(&shard, epoch, StreamEnd::EndingPosition, telemetry);
            }
            WorkerMessage::Finished(shard, epoch) => {
                // The table shows which children can be read now. It may already have shown that
                // the shard is finished.
                if let Some(holding) = self.owned.get(&shard, epoch) {
                    holding.is_end_saved = true;
                    (self.wanted_table, self.renew_at) = (WantedTable::Any, Instant::now());
                }
                self.pending.push(Change::Finish { shard, epoch });
            }
            WorkerMessage::Dropped(shard, epoch) => {
                self.exclusions.dropped(&shard, self.renewal());
                self.hand_off(&shard, epoch, self.patience(&shard));
            }
            WorkerMessage::Failed { shard, epoch, has_delivered } => {
                self.exclusions.failed(&shard, has_delivered);
                self.hand_off(&shard, epoch, self.patience(&shard));
            }
            WorkerMessage::StateMismatch => self.renew_at = Instant::now(),
            // An unreadable field does not change the version.
            WorkerMessage::Unreadable => self.request_full_table(),
            WorkerMessage::TableEdited(seen) => {
                self.renew_at = Instant::now();
                self.edit_waiters.push(seen);
            }
        }
    }

    /// Notes the end of a shard's stream. The lease is kept.
    fn note_stream_end(
        &mut self,
        shard: &ShardId,
        epoch: u64,
        end: StreamEnd,
        telemetry: ShardTelemetry,
    ) {
        if let Some(holding) = self.owned.get(shard, epoch) {
            (holding.stream_end, holding.telemetry) = (Some(end), Some(telemetry));
        }
    }

    /// Returns the time to wait for a shard's records in flight after its stream has ended. Without
    /// calls of `ack`, only those that an adapter holds can still be acknowledged.
    fn patience(&self, shard: &ShardId) -> Duration {
        match self.deps.config.checkpoint_on {
            CheckpointOn::Pull if !self.owned.has_deferred(shard) => Duration::ZERO,
            CheckpointOn::Pull | CheckpointOn::Ack => self.deps.config.handoff_timeout,
        }
    }

    /// Requests the whole table with an immediate exchange.
    pub(super) fn request_full_table(&mut self) {
        (self.whole_table_at, self.renew_at) = (None, Instant::now());
    }

    /// Schedules a listing by this worker as early as allowed.
    pub(super) fn request_listing(&mut self) {
        self.request_listing_at(Instant::now());
    }

    /// Schedules a listing by this worker at `time`, or as early as allowed after that.
    pub(super) fn request_listing_at(&mut self, time: Instant) {
        let soon = self.listing.last.map_or(time, |listed| time.max(listed + MIN_LISTING_INTERVAL));
        self.listing.due = self.listing.due.min(soon).max(Instant::now());
        self.listing.is_requested = true;
    }

    fn finish(&mut self, done: TaskOutcome) -> Option<WorkerEnded> {
        match done {
            TaskOutcome::Listed(None) => return Some(WorkerEnded),
            TaskOutcome::Listed(listed) => {
                (self.listing.listed, self.listing.is_under_way) = (listed, false);
                self.listing.panics = 0;
                self.deps.telemetry.call_succeeded();
                self.renew_at = Instant::now();
            }
            TaskOutcome::FailedToList(panic) => self.retry_listing_after(panic),
            TaskOutcome::StoredStart(opening) => self.send(*opening),
            TaskOutcome::Settled(shard, epoch) => {
                if self.owned.remove(&shard, epoch) {
                    self.pending.push(Change::Release { shard, epoch });
                }
            }
        }
        None
    }
}

/// Completes at `until`; never completes if it is `None`.
pub(super) async fn sleep_until_expiry(until: Option<Instant>) {
    match until {
        Some(until) => sleep_until(until).await,
        None => std::future::pending().await,
    }
}
