//! The task that saves checkpoints, apart from whoever reads.
//!
//! ```text
//!            changed and the interval is over, or urgent
//!   resting ───────────────────────────────────────────► saving
//!      ▲  ▲                                              │    │
//!      │  └──────────────── saved ───────────────────────┘    │ failed
//!      └──────────────── back-off is over ◄── waiting ◄───────┘
//! ```
//!
//! What is to be saved stands in `pending` until the store has said that it is saved, so a failed
//! or dropped save forgets nothing. A position goes with the epoch under which it was reached, and
//! one whose lease is lost is given up: who has it now saves its own. When the last handle is dropped
//! the task saves what is finished, as far as the store lets it within 10 s, and ends.

mod gate;
mod save;
mod task;
mod tracked_shards;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;

use super::{LeaseStore, Scope};
use crate::checkpoint::Checkpoint;
use crate::close_signal::CloseSignal;
use crate::error::{Error, Result};
use crate::record::ShardId;
use crate::telemetry::Telemetry;
use crate::wakers::Waiters;

use gate::Gate;
pub(crate) use gate::ReaderGate;
use task::{Request, Saving};
pub(crate) use tracked_shards::TrackedShard;
use tracked_shards::{Place, TrackedShards};

/// How the writer works.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FlushConfig {
    /// At most one write each; zero writes whenever there is something to write.
    pub(crate) interval: Duration,
    /// How long the store may fail before records stop.
    pub(crate) max_unflushed: Duration,
}

/// A handle of the task. The task ends when the last one is dropped.
#[derive(Debug, Clone)]
pub(crate) struct Writer {
    shared: Arc<Shared>,
    requests: mpsc::UnboundedSender<Request>,
}

#[derive(Debug)]
struct Shared {
    store: Arc<dyn LeaseStore>,
    scope: Scope,
    flush: FlushConfig,
    telemetry: Telemetry,
    state: Mutex<State>,
    /// Something is to be written at once.
    urgent: Notify,
    /// Whether readers have to look at the gate: the one word they read for each record.
    attention: AtomicBool,
    /// Closed where the task has ended before its time, with its runtime.
    gone: CloseSignal,
    /// The keys of readers, so far.
    keys: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    /// How many times a position has advanced, where each is saved before the next record.
    advanced: u64,
    /// How many of those a finished save holds.
    saved: u64,
    watched: TrackedShards,
    pending: BTreeMap<Place, Pending>,
    gate: Gate,
    /// The last save failed.
    failing: bool,
    /// What the reader is to be told, once.
    report: Option<Error>,
    /// It was, since the last save.
    is_outage_reported: bool,
    /// The readers that wait for the gate, by the keys of their handles.
    waiting: Waiters,
}

/// A position that is to be saved.
#[derive(Debug)]
struct Pending {
    checkpoint: Checkpoint,
    /// Since when the shard has another position than the store.
    since: Instant,
}

impl Writer {
    /// Starts the task, on the runtime of the caller.
    pub(crate) fn spawn(
        store: Arc<dyn LeaseStore>,
        scope: Scope,
        flush: FlushConfig,
        telemetry: Telemetry,
    ) -> Self {
        let shared = Arc::new(Shared {
            store,
            scope,
            flush,
            telemetry,
            state: Mutex::default(),
            urgent: Notify::new(),
            attention: AtomicBool::new(false),
            gone: CloseSignal::new(),
            keys: AtomicU64::new(0),
        });
        let (requests, received) = mpsc::unbounded_channel();
        tokio::spawn(Saving::new(&shared, received).run());
        Self { shared, requests }
    }

    /// Whether the task still runs: it does not outlive the runtime that it was started on.
    pub(crate) fn is_running(&self) -> bool {
        !self.requests.is_closed()
    }

    /// Closed where the task has ended before its time, with the runtime that it was started on.
    pub(crate) fn gone(&self) -> CloseSignal {
        self.shared.gone.clone()
    }

    /// Saves the position of a shard from now on.
    pub(crate) fn watch(&self, watched: TrackedShard) {
        let before = self.shared.lock().watched.insert(watched);
        // Not under the lock: it holds wakers.
        drop(before);
    }

    /// What tells the writer that the watermark of a shard has advanced. It keeps no handle, so that
    /// records that live on do not keep the task alive.
    pub(crate) fn notifier(&self, shard: ShardId, epoch: u64) -> FlushNotifier {
        FlushNotifier { shared: Arc::clone(&self.shared), place: (shard, epoch) }
    }

    /// Whether nobody has told yet of the store that fails; who asks tells of it.
    pub(crate) fn claim_outage_report(&self) -> bool {
        !std::mem::replace(&mut self.shared.lock().is_outage_reported, true)
    }

    /// Notes that the store has answered another call: the next outage is reported again.
    pub(crate) fn store_answered(&self) {
        let mut state = self.shared.lock();
        state.is_outage_reported &= state.failing;
    }

    /// For how long the oldest position that is not saved has been waiting for that.
    pub(crate) fn unsaved_for(&self) -> Option<Duration> {
        let state = self.shared.lock();
        let pending = state.pending.values().map(|pending| pending.since.elapsed());
        pending.chain(state.watched.changed_for()).max()
    }

    /// Saves everything that is finished, and waits until it is saved.
    pub(crate) async fn flush(&self) -> Result<()> {
        let (answer, answered) = oneshot::channel();
        let gone = Error::runtime_shutdown;
        self.requests.send(answer).map_err(|_closed| gone())?;
        answered.await.unwrap_or_else(|_closed| Err(gone()))
    }

    /// Returns the gate for one reader. It keeps a handle of the task.
    pub(crate) fn gate(&self) -> ReaderGate {
        ReaderGate::new(self.clone())
    }
}

/// Tells the writer that there is something to write of a shard.
#[derive(Debug, Clone)]
pub(crate) struct FlushNotifier {
    shared: Arc<Shared>,
    place: Place,
}

impl FlushNotifier {
    /// The position has advanced; `is_first` says that it has not since it was last taken.
    pub(crate) fn advanced(&self, is_first: bool) {
        let saves_each = self.shared.flush.interval.is_zero();
        if !is_first && !saves_each {
            return;
        }
        let mut state = self.shared.lock();
        if is_first {
            state.watched.note_changed(&self.place);
        }
        if saves_each {
            state.advanced += 1;
            if state.failing {
                // A store that fails holds nobody up until it has failed for too long.
                state.saved = state.advanced;
            }
            self.shared.look(&state);
            drop(state);
            self.shared.urgent.notify_one();
        }
    }

    /// The shard is finished: that is written at once.
    pub(crate) fn ended(&self) {
        self.shared.lock().watched.note_changed(&self.place);
        self.shared.urgent.notify_one();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the caller at once of an error, unless he was told since the last save. Gives it back
    /// where nobody is there.
    fn report(&self, error: Error) -> Result<()> {
        if self.lock().is_outage_reported {
            return Ok(());
        }
        self.telemetry.report_error(error.in_stream(self.scope.shared_stream_name()))?;
        self.lock().is_outage_reported = true;
        Ok(())
    }
}
