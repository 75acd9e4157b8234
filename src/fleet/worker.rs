//! The task of one worker.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::exclusions::ExclusionTracker;
use super::owned_shards::OwnedShards;
use super::reachability::Reach;
use super::{AssignedShard, WorkerDeps, WorkerMessage};
use crate::backoff::{Backoff, EXCHANGES};
use crate::discovery::{Loss, StreamShards};
use crate::error::Panic;
use crate::record::ShardId;
use crate::shard::{CheckpointOn, LeaseDeadline};
use crate::source::KnownShard;
use crate::store::lease::{Change, LeaseTable};

/// Listings that are asked for, by the end of a shard whose children nobody names, come no closer
/// than this.
const SOON: Duration = Duration::from_secs(1);

/// A worker, from joining to leaving.
pub(crate) struct Worker {
    pub(super) deps: WorkerDeps,
    pub(super) incarnation: u64,
    pub(super) validity: Arc<LeaseDeadline>,
    /// Until when the leases are the worker's; `None` while that is in doubt.
    pub(super) valid_until: Option<Instant>,
    pub(super) owned: OwnedShards,
    /// The table as it was seen last.
    pub(super) table: Arc<LeaseTable>,
    /// When it was seen with all positions, of which the store does not tell otherwise; `None`
    /// where it is to be seen so once more.
    pub(super) seen_whole: Option<Instant>,
    /// The worker is in it.
    pub(super) joined: bool,
    /// The caller was told of a store that does not answer, or of what stands against joining.
    pub(super) error_reported: bool,
    pub(super) started_at: Instant,
    /// When the store was first asked of those times that it has not answered since.
    pub(super) failing_since: Option<Instant>,
    pub(super) backoff: Backoff,
    pub(super) renew_at: Instant,
    /// What the store is to be told, whatever is in the table.
    pub(super) pending: Vec<Change>,
    /// Children that their parents' ends have named, and that are not in the table yet.
    pub(super) added_children: Vec<KnownShard>,
    /// Who waits until the table was looked at.
    pub(super) edit_waiters: Vec<oneshot::Sender<()>>,
    /// Shards that workers have given back unread.
    pub(super) exclusions: ExclusionTracker,
    /// The shards that the store cannot read and that were reported to the caller.
    pub(super) unreadable: BTreeSet<ShardId>,
    /// The table that is known to be even.
    pub(super) balanced: Option<BalancedTable>,
    /// Shards may be read: if the worker came alone, it has listed the stream.
    pub(super) has_listed: bool,
    pub(super) listing: Listing,
    /// Losses that are not reported yet, because no table has shown them.
    pub(super) losses: Vec<Loss>,
    pub(super) reach: Reach,
    /// Since when the table shows a lease of another worker that does not reach Kinesis.
    pub(super) stranded: Option<Instant>,
    pub(super) tasks: JoinSet<TaskOutcome>,
}

/// A table in which no lease is to be moved.
pub(super) struct BalancedTable {
    pub(super) version: u64,
    /// The end of the next pause of a worker that has declined a shard.
    pub(super) until: Option<Instant>,
}

/// The listing of the stream.
pub(super) struct Listing {
    /// What was listed and is not in the table yet.
    pub(super) listed: Option<StreamShards>,
    pub(super) is_under_way: bool,
    /// How many listings in a row have panicked.
    pub(super) panics: u32,
    /// A shard has ended, and nobody has named its children.
    pub(super) is_asked_for: bool,
    pub(super) last: Option<Instant>,
    pub(super) due: Instant,
}

/// What a task of the worker has done.
pub(super) enum TaskOutcome {
    /// `None` when the stream is gone.
    Listed(Option<StreamShards>),
    /// The listing panicked.
    FailedToList(Panic),
    /// The start of a shard is stored, or its lease is over.
    StoredStart(Box<AssignedShard>),
    /// Every record of the shard is finished, or it is too late for that.
    Settled(ShardId, u64),
}

/// The worker's time is over.
pub(super) struct WorkerEnded;

impl Worker {
    pub(crate) fn new(deps: WorkerDeps) -> Self {
        let now = Instant::now();
        let incarnation = fastrand::u64(1..);
        Self {
            incarnation,
            validity: Arc::default(),
            valid_until: None,
            owned: OwnedShards::new(deps.config.worker_id.clone(), incarnation),
            table: Arc::default(),
            seen_whole: Some(now),
            joined: false,
            error_reported: false,
            started_at: now,
            failing_since: None,
            backoff: Backoff::new(EXCHANGES.capped(deps.config.lease_duration / 3)),
            renew_at: now,
            pending: deps.discovery.beginning(0).into_iter().collect(),
            added_children: Vec::new(),
            edit_waiters: Vec::new(),
            exclusions: ExclusionTracker::new(deps.config.worker_id.clone()),
            unreadable: BTreeSet::new(),
            balanced: None,
            has_listed: false,
            listing: Listing {
                listed: None,
                is_under_way: false,
                panics: 0,
                is_asked_for: false,
                last: None,
                due: now,
            },
            losses: Vec::new(),
            reach: Reach::new(deps.config.lease_duration, now),
            stranded: None,
            tasks: JoinSet::new(),
            deps,
        }
    }

    /// Runs until `ended`, or the stream is gone; then saves what is finished, and leaves.
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
            // What a store that fails is to be told waits for the next attempt.
            let is_ready = self.joined && self.failing_since.is_none();
            let has_news = !self.pending.is_empty() || !self.added_children.is_empty();
            if self.renew_at <= Instant::now() || is_ready && has_news {
                self.check_callers();
                self.look_at_reach();
                self.exchange().await;
                if self.joined && self.failing_since.is_none() {
                    for told in self.edit_waiters.drain(..) {
                        let _nobody_waits = told.send(());
                    }
                }
                self.deps.telemetry.measure(self.owned.len());
            }
            // In this order, so that what happens depends on nothing but what happened.
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
                        // None is aborted, and those that panic say so.
                        if let Ok(done) = done && self.finish(done).is_some() {
                            return WorkerEnded;
                        }
                        next = self.tasks.try_join_next();
                    }
                }
                () = sleep_until(self.listing.due), if self.lists() => self.list(),
                () = sleep_until(self.renew_at) => {}
                () = runs_out(self.valid_until) => self.doubt(),
            }
        }
    }

    fn handle(&mut self, message: WorkerMessage) {
        match message {
            WorkerMessage::Read { shard, epoch, children, telemetry } => {
                if let Some(holding) = self.owned.get(&shard, epoch) {
                    holding.telemetry = Some(telemetry);
                }
                if children.is_empty() {
                    self.ask_for_listing();
                }
                self.added_children.extend(children);
            }
            WorkerMessage::Finished(shard, epoch) => {
                self.pending.push(Change::Finish { shard, epoch })
            }
            WorkerMessage::Dropped(shard, epoch) => {
                self.exclusions.dropped(&shard, self.renewal());
                self.hand_over(&shard, epoch, self.patience());
            }
            WorkerMessage::Failed { shard, epoch, has_delivered } => {
                self.exclusions.failed(&shard, has_delivered);
                self.hand_over(&shard, epoch, self.patience());
            }
            WorkerMessage::StateMismatch => self.renew_at = Instant::now(),
            // Such a field makes no new version.
            WorkerMessage::Unreadable => self.look_whole(),
            WorkerMessage::TableEdited(told) => {
                self.renew_at = Instant::now();
                self.edit_waiters.push(told);
            }
        }
    }

    /// Returns the time to wait for the records in flight of a shard after its stream has ended. Without
    /// acknowledgements, none of them can still be finished.
    fn patience(&self) -> Duration {
        match self.deps.config.checkpoint_on {
            CheckpointOn::Pull => Duration::ZERO,
            CheckpointOn::Ack => self.deps.config.handoff_timeout,
        }
    }

    /// The table is seen anew with the next exchange, which comes at once.
    pub(super) fn look_whole(&mut self) {
        (self.seen_whole, self.renew_at) = (None, Instant::now());
    }

    /// A listing, as soon as it may be.
    pub(super) fn ask_for_listing(&mut self) {
        let soon = self.listing.last.map_or_else(Instant::now, |listed| listed + SOON);
        self.listing.due = self.listing.due.min(soon).max(Instant::now());
        self.listing.is_asked_for = true;
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
            TaskOutcome::FailedToList(panic) => self.list_after(panic),
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

/// When that moment has come; never, where there is none.
pub(super) async fn runs_out(until: Option<Instant>) {
    match until {
        Some(until) => sleep_until(until).await,
        None => std::future::pending().await,
    }
}
