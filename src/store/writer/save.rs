//! One save of all pending positions.

use std::sync::Arc;

use super::gate::Gate;
use super::tracked_shards::{ShardEpoch, TrackedShard};
use super::{Pending, WriterShared, WriterState};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::store::lease::{FencedCheckpoint, SaveOutcome};
use crate::store::{Scope, with_timeout};
use crate::telemetry::log_line;
use crate::wakers::wake_all;

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
        // Dropped without the lock, since they hold wakers and the callbacks of callers.
        drop(over);
        (positions, advanced)
    }

    /// Attempts once to save all pending positions.
    pub(super) async fn save(&self) -> Result<()> {
        let (positions, advanced) = self.collect();
        let verdicts = if positions.is_empty() {
            Vec::new()
        } else {
            with_timeout(self.store.save_fenced(&self.scope, &positions)).await?
        };
        if verdicts.len() != positions.len() {
            return Err(wrong_outcome_count(positions.len(), verdicts.len()));
        }
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
            settled.on_outcome(&self.scope);
        }
        Ok(())
    }
}

impl WriterState {
    /// Applies the outcome of a save to one position. Returns the notification to send, if any.
    fn settle(&mut self, saved: FencedCheckpoint, verdict: SaveOutcome) -> Option<SettledPosition> {
        let place = (saved.shard.clone(), saved.epoch);
        let is_it = |pending: &Pending| pending.checkpoint == saved.checkpoint;
        if verdict.is_refusal() || self.pending.get(&place).is_some_and(is_it) {
            self.pending.remove(&place);
        }
        if verdict == SaveOutcome::Saved && saved.checkpoint != Checkpoint::ShardEnd {
            return None;
        }
        let on_outcome = self.watched.get(&place).map(|it| Arc::clone(&it.on_outcome));
        let given_up = if verdict.is_refusal() { self.watched.remove(&place) } else { None };
        Some(SettledPosition { saved, verdict, on_outcome, _given_up: given_up })
    }
}

/// The outcome of saving a position, reported after the lock is released.
struct SettledPosition {
    saved: FencedCheckpoint,
    verdict: SaveOutcome,
    on_outcome: Option<Arc<dyn Fn(SaveOutcome) + Send + Sync>>,
    /// The shard, no longer tracked.
    _given_up: Option<TrackedShard>,
}

impl SettledPosition {
    fn on_outcome(self, scope: &Scope) {
        if let Some(on_outcome) = &self.on_outcome {
            on_outcome(self.verdict);
        }
        let error = match self.verdict {
            SaveOutcome::Saved | SaveOutcome::Forgotten => return,
            SaveOutcome::Lost => {
                Error::new(ErrorKind::LeaseLost, "the epoch of the lease is no longer valid")
            }
            SaveOutcome::Unreadable => {
                Error::new(ErrorKind::StoreCorrupt, "the stored lease or position is unreadable")
            }
        };
        let FencedCheckpoint { shard, epoch, checkpoint } = &self.saved;
        let error = error.in_stream(scope.shared_stream_name()).in_shard(shard);
        log_line!(warn, %error, epoch, %checkpoint, "checkpoint not saved");
    }
}

/// Returns the error for a store that responds with a wrong number of outcomes.
fn wrong_outcome_count(positions: usize, verdicts: usize) -> Error {
    Error::new(
        ErrorKind::StoreCorrupt,
        format!(
            "save_fenced returned {verdicts} outcomes for {positions} positions, but must return one \
         for each; fix the LeaseStore"
        ),
    )
}
