//! The background task that saves checkpoints.
//!
//! ```text
//!            changed and the interval has passed, or urgent
//!   resting ───────────────────────────────────────────► saving
//!      ▲  ▲                                              │    │
//!      │  └──────────────── saved ───────────────────────┘    │ failed
//!      └──────────── back-off has passed ◄── waiting ◄────────┘
//! ```
//!
//! A position stays in `pending` until the store has confirmed it, so a failed or dropped save
//! loses no position. Each position is saved with the epoch under which it was reached. If its
//! lease is lost, the position is discarded, since the new owner saves its own. When the last
//! handle is dropped, the task tries for up to 10 s to save the positions of all acknowledged
//! records, and ends.
//!
//! # The end of a shard
//!
//! The writer alone finishes a shard that was read:
//!
//! ```text
//!   last acknowledgement, or end of the stream ──► the watermark is complete
//!                                                     │ at once, in the epoch of its lease
//!                                                     ▼
//!   the lease is over ◄── refused ──────────────── save of SHARD_END
//!                                                     │ stored: Event::ShardFinished
//!                                                     ▼
//!                               WorkerMessage::Finished ──► the worker reads the lease table,
//!                                                           and its children are readable
//! ```
//!
//! - The worker does not finish the shard itself by a [`Change::Finish`]. A worker ends with its
//!   session, while records may be acknowledged later. In a store that keeps only positions, its
//!   change would reach the table in memory and not the store: the children would be read first,
//!   and a crash would then deliver records of the parent again.
//! - The message is a hint: the save changes the version of the table, so the next renewal shows
//!   the end even if the message is lost.
//! - If saves fail while the worker still renews its leases, the lease may move to another worker
//!   before the end is saved. The save is then refused, and the new owner reads the shard from its
//!   last stored checkpoint.
//! - If the store loses the end after it has confirmed it, nothing is left to save. The worker
//!   finds its lease unfinished in the table and restores it with a [`Change::Restore`], like
//!   everything else that a store has lost.
//! - [`Change::Finish`] is left for shards that are not read and have no watermark: shards that the
//!   caller starts at their end, and shards that left retention.
//!
//! [`Change::Finish`]: super::lease::Change::Finish
//! [`Change::Restore`]: super::lease::Change::Restore

mod gate;
mod save;
mod task;
mod tracked_shards;
mod tracked_watermark;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;

use super::Scope;
use super::lease::Leases;
use crate::checkpoint::Checkpoint;
use crate::close_signal::CloseSignal;
use crate::error::{Error, Result};
use crate::mutex::Mutex;
use crate::record::ShardId;
use crate::telemetry::Telemetry;
use crate::wakers::Waiters;
use crate::worker_message::WorkerMessage;

use gate::Gate;
pub(crate) use gate::ReaderGate;
use task::{FlushTask, Request};
use tracked_shards::{ShardEpoch, TrackedShard, TrackedShards};
pub(crate) use tracked_watermark::TrackedWatermark;

/// The settings of the writer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FlushConfig {
    /// The shortest interval between writes; zero writes at each change.
    pub(crate) interval: Duration,
    /// The time for which the store may fail before delivery of records stops.
    pub(crate) max_unflushed: Duration,
}

/// A handle to the task. The task ends when the last handle is dropped.
#[derive(Debug, Clone)]
pub(crate) struct Writer {
    shared: Arc<WriterShared>,
    requests: mpsc::UnboundedSender<Request>,
}

#[derive(Debug)]
struct WriterShared {
    leases: Leases,
    scope: Scope,
    flush: FlushConfig,
    telemetry: Telemetry,
    state: Mutex<WriterState>,
    /// Notified if a position must be written at once.
    urgent: Notify,
    /// True if readers must check the gate. The only field that they read for each record.
    must_check_gate: AtomicBool,
    /// Closed if the task has ended early, with its runtime.
    gone: CloseSignal,
    /// The key of the next reader.
    keys: AtomicU64,
}

#[derive(Debug, Default)]
struct WriterState {
    /// The number of advances of all positions. Counted only if `interval` is zero: each position
    /// is then saved before the next record.
    advanced: u64,
    /// The number of those advances that completed saves contain.
    saved: u64,
    watched: TrackedShards,
    pending: BTreeMap<ShardEpoch, Pending>,
    gate: Gate,
    /// True if the last save failed.
    failing: bool,
    /// The error that the next reader receives, once.
    report: Option<Error>,
    /// True if an error was reported since the last save.
    is_outage_reported: bool,
    /// The wakers of readers that wait for the gate, by the keys of their handles.
    waiting: Waiters,
}

/// A position that is not saved yet.
#[derive(Debug)]
struct Pending {
    checkpoint: Checkpoint,
    /// The time since which the shard's position differs from the stored one.
    since: Instant,
}

impl Writer {
    /// Starts the task on the caller's runtime.
    pub(crate) fn spawn(
        leases: Leases,
        scope: Scope,
        flush: FlushConfig,
        telemetry: Telemetry,
    ) -> Self {
        let shared = Arc::new(WriterShared {
            leases,
            scope,
            flush,
            telemetry,
            state: Mutex::default(),
            urgent: Notify::new(),
            must_check_gate: AtomicBool::new(false),
            gone: CloseSignal::new(),
            keys: AtomicU64::new(0),
        });
        let (requests, received) = mpsc::unbounded_channel();
        tokio::spawn(FlushTask::new(&shared, received).run());
        Self { shared, requests }
    }

    /// Returns true while the task runs. It ends with the runtime on which it was started.
    pub(crate) fn is_running(&self) -> bool {
        !self.requests.is_closed()
    }

    /// Returns a signal that closes if the task has ended early, with the runtime on which it was
    /// started.
    pub(crate) fn gone(&self) -> CloseSignal {
        self.shared.gone.clone()
    }

    /// Starts saving the position of a shard, and returns the watermark on which it advances.
    /// `lease_over` is closed when the store refuses a position. `worker` receives each outcome that
    /// concerns the lease.
    pub(crate) fn track(
        &self,
        shard: ShardId,
        epoch: u64,
        lease_over: CloseSignal,
        worker: mpsc::UnboundedSender<WorkerMessage>,
    ) -> Arc<TrackedWatermark> {
        let (watermark, place) = (Arc::default(), (shard.clone(), epoch));
        let advancing =
            TrackedWatermark::new(Arc::clone(&watermark), Arc::clone(&self.shared), place);
        let tracked = TrackedShard { shard, epoch, watermark, lease_over, worker };
        let before = self.shared.lock().watched.insert(tracked);
        // Dropped without the lock, since it holds wakers.
        drop(before);
        Arc::new(advancing)
    }

    /// Stops saving the position of a shard, because another worker has stored its end.
    pub(crate) fn untrack(&self, shard: &ShardId, epoch: u64) {
        let before = self.shared.lock().watched.remove(&(shard.clone(), epoch));
        // Dropped without the lock, since it holds wakers.
        drop(before);
    }

    /// Returns true if the outage of the store was not reported yet. The caller then reports it.
    pub(crate) fn claim_outage_report(&self) -> bool {
        !std::mem::replace(&mut self.shared.lock().is_outage_reported, true)
    }

    /// Notes that another call of the store has succeeded, so that the next outage is reported
    /// again.
    pub(crate) fn store_answered(&self) {
        let mut state = self.shared.lock();
        state.is_outage_reported &= state.failing;
    }

    /// Returns the age of the oldest position that is not saved.
    pub(crate) fn unsaved_for(&self) -> Option<Duration> {
        let state = self.shared.lock();
        let pending = state.pending.values().map(|pending| pending.since.elapsed());
        pending.chain(state.watched.changed_for()).max()
    }

    /// Returns true if no record is delivered, since saves have failed for `max_unflushed`.
    pub(crate) fn is_gate_shut(&self) -> bool {
        self.shared.lock().gate == Gate::Shut
    }

    /// Saves the positions of all acknowledged records, and waits until they are saved.
    pub(crate) async fn flush(&self) -> Result<()> {
        let (flushed, is_flushed) = oneshot::channel();
        let gone = Error::runtime_shutdown;
        self.requests.send(flushed).map_err(|_closed| gone())?;
        is_flushed.await.unwrap_or_else(|_closed| Err(gone()))
    }

    /// Returns the gate for one reader. The gate keeps the task alive.
    pub(crate) fn gate(&self) -> ReaderGate {
        ReaderGate::new(self.clone())
    }
}

impl WriterShared {
    fn lock(&self) -> MutexGuard<'_, WriterState> {
        self.state.lock()
    }

    /// Reports an error to the caller at once, unless an error was reported since the last save.
    /// Returns the error if no caller receives it.
    fn report(&self, error: Error) -> Result<()> {
        if self.lock().is_outage_reported {
            return Ok(());
        }
        self.telemetry.report_error(error.in_stream(self.scope.shared_stream_name()))?;
        self.lock().is_outage_reported = true;
        Ok(())
    }
}
