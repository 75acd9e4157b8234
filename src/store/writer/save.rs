//! One save of all pending positions.

use tokio::sync::mpsc;

use super::gate::Gate;
use super::tracked_shards::{ShardEpoch, TrackedShard};
use super::{Pending, WriterShared, WriterState};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::store::lease::{FencedCheckpoint, SaveOutcome};
use crate::store::{Scope, with_timeout};
use crate::telemetry::{Event, Telemetry, log_line};
use crate::wakers::wake_all;
use crate::worker_message::WorkerMessage;

impl WriterShared {
    /// Moves changed positions to `pending`. Returns a copy of all pending positions, and the
    /// number of advances at that time.
    fn collect(&self) -> (Vec<FencedCheckpoint>, u64) {
        let mut state = self.lock();
        let advanced = state.advanced;
        let WriterState { watched, pending, .. } = &mut *state;
        for (place, checkpoint, since) in watched.take_changed() {
            let since = pending.get(&place).map_or(since, |before| before.since);
            pending.insert(place, Pending { checkpoint, since });
        }
        let over = watched.sweep(|place| pending.contains_key(place));
        let fenced = |((shard, epoch), pending): (&ShardEpoch, &Pending)| FencedCheckpoint {
            shard: shard.clone(),
            epoch: *epoch,
            checkpoint: pending.checkpoint.clone(),
        };
        let positions = pending.iter().map(fenced).collect();
        drop(state);
        // Dropped without the lock, since they hold wakers.
        drop(over);
        (positions, advanced)
    }

    /// Attempts once to save all pending positions.
    pub(super) async fn save(&self) -> Result<()> {
        let (positions, advanced) = self.collect();
        let verdicts = if positions.is_empty() {
            Vec::new()
        } else {
            with_timeout(self.leases.save_fenced(&positions)).await?
        };
        let has_saved = !positions.is_empty();
        let mut state = self.lock();
        state.is_outage_reported &= !has_saved;
        let mut saved = 0;
        let mut settled = Vec::new();
        for (position, verdict) in positions.into_iter().zip(verdicts) {
            saved += usize::from(!verdict.is_refusal());
            settled.extend(state.settle(position, verdict));
        }
        state.failing = false;
        // An error that no reader has received yet is obsolete.
        state.report = None;
        // Positions that have advanced since the positions were collected wait for the next save,
        // for which they have already notified the task.
        state.saved = advanced;
        let waiting = self.set_gate(&mut state, Gate::Open);
        drop(state);
        wake_all(waiting);
        self.telemetry.saved(saved);
        for settled in settled {
            settled.report(&self.telemetry, &self.scope);
        }
        Ok(())
    }
}

impl WriterState {
    /// Applies the outcome of a save to one position. Returns what is to be reported, if anything.
    fn settle(&mut self, saved: FencedCheckpoint, outcome: SaveOutcome) -> Option<SettledPosition> {
        let place = (saved.shard.clone(), saved.epoch);
        let is_it = |pending: &Pending| pending.checkpoint == saved.checkpoint;
        if outcome.is_refusal() || self.pending.get(&place).is_some_and(is_it) {
            self.pending.remove(&place);
        }
        let is_end = saved.checkpoint == Checkpoint::ShardEnd;
        if outcome == SaveOutcome::Saved && !is_end {
            return None;
        }
        let worker = self.watched.get(&place).map(|it| it.worker.clone());
        let refused = if outcome.is_refusal() { self.watched.remove(&place) } else { None };
        Some(SettledPosition { saved, outcome, is_end, worker, refused })
    }
}

/// The outcome of saving a position, reported after the lock is released.
struct SettledPosition {
    saved: FencedCheckpoint,
    outcome: SaveOutcome,
    /// True if the position is the end of the shard.
    is_end: bool,
    /// The worker that holds the lease; `None` if the shard is no longer tracked.
    worker: Option<mpsc::UnboundedSender<WorkerMessage>>,
    /// The shard of a refused position. It is no longer tracked.
    refused: Option<TrackedShard>,
}

impl SettledPosition {
    fn report(self, telemetry: &Telemetry, scope: &Scope) {
        // At once: the worker may wait for the store and read its messages later.
        if let Some(refused) = &self.refused {
            refused.lease_over.close();
        }
        let FencedCheckpoint { shard, epoch, checkpoint } = self.saved;
        let (message, error) = match self.outcome {
            SaveOutcome::Saved | SaveOutcome::Forgotten if self.is_end => {
                telemetry.emit(Event::ShardFinished { shard_id: shard.clone() });
                (WorkerMessage::Finished(shard.clone(), epoch), None)
            }
            SaveOutcome::Saved => return,
            SaveOutcome::Forgotten => (WorkerMessage::StateMismatch, None),
            SaveOutcome::Lost => {
                let why = "the epoch of the lease is no longer valid";
                (WorkerMessage::StateMismatch, Some(Error::new(ErrorKind::LeaseLost, why)))
            }
            SaveOutcome::Unreadable => {
                let why = "the stored lease or position is unreadable";
                (WorkerMessage::Unreadable, Some(Error::new(ErrorKind::StoreCorrupt, why)))
            }
        };
        if let Some(worker) = self.worker {
            // The receiver is gone if the session was dropped.
            let _dropped = worker.send(message);
        }
        if let Some(error) = error {
            let error = error.in_stream(scope.shared_stream_name()).in_shard(&shard);
            log_line!(warn, %error, epoch, %checkpoint, "checkpoint not saved");
        }
    }
}
