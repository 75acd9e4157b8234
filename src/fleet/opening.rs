//! Opens the shards that the worker has acquired, and hands off those that leave it.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::exchange::FINAL_SAVE_TIMEOUT;
use super::owned_shards::OwnedShard;
use super::worker::{TaskOutcome, Worker};
use super::{AssignedShard, Assignment};
use crate::backoff::{Backoff, SAVES};
use crate::checkpoint::Checkpoint;
use crate::discovery::ShardStart;
use crate::error::contain;
use crate::record::{KnownShard, ShardId};
use crate::shard::{LeaseHandle, PollMonitor, ReadReport};
use crate::store::lease::{Change, Lease};
use crate::telemetry::Event;

impl Worker {
    /// Opens a shard after the worker has acquired its lease.
    pub(super) fn open(&mut self, id: &ShardId, lease: Lease) {
        let epoch = lease.epoch;
        let Some(start) = self.deps.discovery.start_of(id, lease.checkpoint.clone()) else {
            // The caller has set the end of the shard as its starting position. Without a reader
            // there is no position that the writer could save.
            self.pending.push(Change::Finish { shard: id.clone(), epoch });
            return;
        };
        self.deps.telemetry.emit(Event::LeaseGained { shard_id: id.clone(), epoch });
        let lease_handle = LeaseHandle::new(epoch, Arc::clone(&self.validity));
        let (lease_over, worker) = (lease_handle.over().clone(), self.deps.messages.clone());
        let watermark = self.deps.writer.track(id.clone(), epoch, lease_over, worker);
        let poll_monitor = self.deps.config.poll_timeout.map(|_limit| PollMonitor::new());
        let holding = OwnedShard::new(
            lease.clone(),
            lease_handle.clone(),
            Arc::clone(watermark.watermark()),
            poll_monitor.clone(),
        );
        self.owned.take(id.clone(), holding);
        let added = lease.added_at();
        let shard = KnownShard { id: id.clone(), parents: lease.parents.unwrap_or_default() };
        let ShardStart { position, unstored } = start;
        let report = ReadReport::new(self.deps.messages.clone(), id.clone(), epoch);
        let opening =
            AssignedShard { shard, position, added, lease_handle, watermark, poll_monitor, report };
        match unstored {
            Some(checkpoint) => self.store_start(opening, checkpoint),
            None => self.send(opening),
        }
    }

    /// Stores the start of a shard, then sends the shard to the caller's stream.
    fn store_start(&mut self, opening: AssignedShard, start: Checkpoint) {
        opening.watermark.start_at(start);
        let (writer, discovery) = (self.deps.writer.clone(), self.deps.discovery.clone());
        self.tasks.spawn(async move {
            let mut backoff = Backoff::new(SAVES);
            while !opening.lease_handle.is_over()
                && let Err(error) = writer.flush().await
            {
                if writer.claim_outage_report() {
                    discovery.report_error(error);
                }
                sleep(backoff.failed()).await;
            }
            TaskOutcome::StoredStart(Box::new(opening))
        });
    }

    /// Sends a shard to the caller's stream, unless its lease is over.
    pub(super) fn send(&mut self, mut opening: AssignedShard) {
        if opening.lease_handle.is_over() {
            return opening.report.cancel();
        }
        // If the receiver is gone, dropping the report notifies the worker.
        let _unopened = self.deps.assignments.send(Assignment::Shard(Box::new(opening)));
    }

    /// Stops delivery from the shard, and releases its lease when all delivered records are
    /// acknowledged, or after `patience`.
    pub(super) fn hand_off(&mut self, shard: &ShardId, epoch: u64, patience: Duration) {
        let Some(holding) = self.owned.get(shard, epoch) else { return };
        if holding.is_leaving {
            return;
        }
        holding.stop();
        let watermark = Arc::clone(&holding.watermark);
        let (writer, shard) = (self.deps.writer.clone(), shard.clone());
        let telemetry = self.deps.telemetry.clone();
        telemetry.emit(Event::LeaseReleased { shard_id: shard.clone(), epoch });
        self.tasks.spawn(async move {
            // The lease is released in any case. If saving fails, the unsaved records are
            // redelivered.
            let _panicked = contain(async {
                let settled = poll_fn(|context| watermark.poll_settled(context));
                if timeout(patience, settled).await.is_err() && !patience.is_zero() {
                    telemetry.emit(Event::HandoffTimedOut { shard_id: shard.clone(), epoch });
                }
                // A store that cannot save must not keep the shard from other workers.
                let _reported_elsewhere = timeout(FINAL_SAVE_TIMEOUT, writer.flush()).await;
            })
            .await;
            TaskOutcome::Settled(shard, epoch)
        });
    }
}
