//! The shards that one worker owns, and their reconciliation with the lease table.
//!
//! ```text
//!            has a next owner, or           records acknowledged,
//!            its stream ended early         or the handoff timed out
//!   reading ────────────────────────► leaving ──────────────────────► released
//!      │                                 │
//!      └────────────────┬────────────────┘
//!                       ├── end of the shard saved ──► finished
//!                       └── lease lost, such as by a higher epoch ──► lost
//! ```
//!
//! Records are delivered only in the state `reading`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::exhaustion::StreamEnd;
use crate::checkpoint::{Checkpoint, Watermark};
use crate::record::ShardId;
use crate::shard::{LeaseHandle, PollMonitor};
use crate::store::lease::{Change, Lease, LeaseTable};
use crate::telemetry::ShardTelemetry;

/// A shard that the worker owns.
#[derive(Debug)]
pub(super) struct OwnedShard {
    pub(super) lease_handle: LeaseHandle,
    pub(super) watermark: Arc<Watermark>,
    poll_monitor: Option<PollMonitor>,
    /// The lease at its acquisition, with the start that a listing has shown since.
    lease: Lease,
    /// True if the store has confirmed the end of the shard.
    pub(super) is_end_saved: bool,
    pub(super) is_leaving: bool,
    /// The end of the shard's stream; `None` while the shard is read.
    pub(super) stream_end: Option<StreamEnd>,
    /// Set when the stream has ended; the last records may be unacknowledged.
    pub(super) telemetry: Option<ShardTelemetry>,
}

impl OwnedShard {
    pub(super) fn new(
        lease: Lease,
        lease_handle: LeaseHandle,
        watermark: Arc<Watermark>,
        poll_monitor: Option<PollMonitor>,
    ) -> Self {
        Self {
            lease_handle,
            watermark,
            poll_monitor,
            lease,
            is_end_saved: false,
            is_leaving: false,
            stream_end: None,
            telemetry: None,
        }
    }

    /// Stops delivery from the shard.
    pub(super) fn stop(&mut self) {
        self.is_leaving = true;
        self.watermark.retire();
        self.lease_handle.end();
    }

    /// Takes the shard's start from the stored lease. The lease of a child that its parent named
    /// has no start before the next listing, and a restored lease must have it.
    fn identify(&mut self, stored: &Lease) {
        if self.lease.start.is_none() {
            self.lease.start.clone_from(&stored.start);
        }
    }

    /// Returns true if the writer has ended the lease, because the store rejected a position.
    fn is_given_up(&self) -> bool {
        self.lease_handle.is_over() && !self.is_leaving
    }

    /// Returns the lease as the store should have it.
    fn lease(&self, me: &Arc<str>) -> Lease {
        let position = self.watermark.position().or_else(|| self.lease.checkpoint.clone());
        Lease {
            owner: Some(me.clone()),
            next_owner: None,
            checkpoint: position,
            ..self.lease.clone()
        }
    }
}

/// The time for which a worker remembers its last epoch of a shard that is no longer in the table.
/// After that time the shard has left retention and no other worker knows it, unless that worker
/// was suspended all the time.
const LONGEST_MEMORY: Duration = Duration::from_secs(24 * 60 * 60);

/// The last lease of a shard that the worker held.
#[derive(Debug)]
struct LastOwned {
    epoch: u64,
    /// The time since which no table has shown the shard.
    gone: Option<Instant>,
}

/// All shards that a worker owns.
#[derive(Debug)]
pub(super) struct OwnedShards {
    me: Arc<str>,
    incarnation: u64,
    pub(super) shards: BTreeMap<ShardId, OwnedShard>,
    /// The last epoch in which the worker owned each shard. A worker never opens a shard twice in
    /// one epoch: if the store loses a handoff, two workers must not read in the same epoch.
    last: BTreeMap<ShardId, LastOwned>,
    /// The streams that their callers have stopped polling, and may poll again.
    neglected: Vec<PollMonitor>,
}

/// The consequences of a table for a worker.
#[derive(Debug, Default)]
pub(super) struct Reconciliation {
    /// Changes to send to the store.
    pub(super) changes: Vec<Change>,
    /// Shards to open.
    pub(super) opened: Vec<(ShardId, Lease)>,
    /// Shards to hand off.
    pub(super) leaving: Vec<ShardId>,
    /// Shards that another worker or process has finished, in the epoch of this worker.
    pub(super) finished: Vec<(ShardId, u64)>,
    /// Shards that the worker has lost, with the epochs of their leases.
    pub(super) lost: Vec<(ShardId, u64)>,
}

impl OwnedShards {
    pub(super) fn new(me: Arc<str>, incarnation: u64) -> Self {
        let (shards, last) = (BTreeMap::new(), BTreeMap::new());
        Self { me, incarnation, shards, last, neglected: Vec::new() }
    }

    pub(super) fn take(&mut self, shard: ShardId, holding: OwnedShard) {
        self.last
            .insert(shard.clone(), LastOwned { epoch: holding.lease_handle.epoch(), gone: None });
        self.shards.insert(shard, holding);
    }

    /// Returns the shard if the worker owns it in this epoch.
    pub(super) fn get(&mut self, shard: &ShardId, epoch: u64) -> Option<&mut OwnedShard> {
        self.shards.get_mut(shard).filter(|holding| holding.lease_handle.epoch() == epoch)
    }

    /// Removes a shard if the worker owns it in this epoch. Returns true if it was removed.
    pub(super) fn remove(&mut self, shard: &ShardId, epoch: u64) -> bool {
        self.get(shard, epoch).is_some() && self.shards.remove(shard).is_some()
    }

    pub(super) fn epoch(&self, shard: &ShardId) -> Option<u64> {
        self.shards.get(shard).map(|holding| holding.lease_handle.epoch())
    }

    /// Returns the end of the stream of a shard that the worker owns in this epoch.
    pub(super) fn stream_end(&self, shard: &ShardId, epoch: u64) -> Option<StreamEnd> {
        let holding = self.shards.get(shard)?;
        holding.stream_end.filter(|_| holding.lease_handle.epoch() == epoch)
    }

    pub(super) fn len(&self) -> usize {
        self.shards.len()
    }

    /// Returns the shards that deliver records and whose callers have stopped polling for `limit`.
    pub(super) fn neglected(&mut self, limit: Duration) -> Vec<(ShardId, u64)> {
        self.neglected
            .retain(|poll_monitor| !poll_monitor.is_abandoned() && poll_monitor.has_stopped(limit));
        let mut found = Vec::new();
        for (shard, holding) in &self.shards {
            if let Some(poll_monitor) = &holding.poll_monitor
                && !holding.is_leaving
                // A stream that has ended is not polled.
                && holding.stream_end != Some(StreamEnd::EndingPosition)
                && poll_monitor.has_stopped(limit)
            {
                found.push((shard.clone(), holding.lease_handle.epoch()));
                self.neglected.push(poll_monitor.clone());
            }
        }
        found
    }

    /// Returns the shards that are read to the ending position and have no record in flight.
    pub(super) fn reached(&self) -> Vec<(ShardId, u64)> {
        let is_reached = |(_, holding): &(&ShardId, &OwnedShard)| {
            holding.stream_end == Some(StreamEnd::EndingPosition)
                && !holding.is_leaving
                && holding.watermark.unacknowledged().0 == 0
        };
        let reached = self.shards.iter().filter(is_reached);
        reached.map(|(shard, holding)| (shard.clone(), holding.lease_handle.epoch())).collect()
    }

    /// Returns true if an adapter has deferred an acknowledgement of the shard.
    pub(super) fn has_deferred(&self, shard: &ShardId) -> bool {
        self.shards.get(shard).is_some_and(|holding| holding.watermark.has_deferred())
    }

    /// Returns true if the caller of any stream has stopped polling.
    pub(super) fn is_neglected(&self) -> bool {
        !self.neglected.is_empty()
    }

    /// Stops delivery from all shards.
    pub(super) fn stop_all(&mut self) {
        self.shards.values_mut().for_each(OwnedShard::stop);
    }

    /// Reconciles the owned shards with a table. Lost and finished shards are stopped and removed
    /// first.
    pub(super) fn reconcile(&mut self, table: &LeaseTable) -> Reconciliation {
        let mut settled = Reconciliation::default();
        self.shards.retain(|shard, holding| {
            let epoch = holding.lease_handle.epoch();
            if holding.is_given_up() {
                // If the store has lost data since, it may name this worker as the owner again. The
                // lease is then released below.
                settled.lost.push((shard.clone(), epoch));
                holding.stop();
                return false;
            }
            match table.leases.get(shard) {
                Some(Lease { unreadable: Some(_), .. }) => {
                    settled.lost.push((shard.clone(), epoch));
                    holding.stop();
                    return false;
                }
                // A stored lease of an earlier origin wins, whatever its epoch: the worker's lease
                // was created while the store had lost its data, and that data is back.
                Some(stored) if stored.epoch > epoch || stored.origin < holding.lease.origin => {
                    settled.lost.push((shard.clone(), epoch));
                    holding.stop();
                    return false;
                }
                Some(stored) if stored.epoch == epoch && stored.is_finished() => {
                    let is_complete = holding.watermark.position() == Some(Checkpoint::ShardEnd);
                    // The writer reports the outcome of its save. It may still be a refusal, if the
                    // answer to a first attempt was lost.
                    if is_complete && !holding.is_end_saved {
                        return true;
                    }
                    if !is_complete {
                        settled.finished.push((shard.clone(), epoch));
                    }
                    holding.stop();
                    return false;
                }
                Some(stored)
                    if stored.epoch == epoch && stored.owner.as_ref() == Some(&self.me) =>
                {
                    holding.identify(stored);
                    if stored.next_owner.is_some() && !holding.is_leaving {
                        settled.leaving.push(shard.clone());
                    }
                }
                _ if epoch <= table.cleared => {
                    settled.lost.push((shard.clone(), epoch));
                    holding.stop();
                    return false;
                }
                // The store considered the worker dead, or has lost the lease.
                _ => settled.changes.push(Change::Restore {
                    shard: shard.clone(),
                    incarnation: self.incarnation,
                    lease: holding.lease(&self.me),
                }),
            }
            true
        });
        for (shard, lease) in &table.leases {
            if lease.owner.as_ref() != Some(&self.me) || self.shards.contains_key(shard) {
                continue;
            }
            // A shard that moves on at once is not opened, nor one that was released in this epoch.
            let is_over = self.last.get(shard).is_some_and(|last| lease.epoch <= last.epoch);
            if is_over || lease.next_owner.is_some() {
                settled.changes.push(Change::Release { shard: shard.clone(), epoch: lease.epoch });
            } else {
                settled.opened.push((shard.clone(), lease.clone()));
            }
        }
        // A store that has lost a shard may find it again, or restore it from a worker that has
        // read no table since. This includes shards that were finished or cleared.
        self.last.retain(|shard, last| {
            if table.leases.contains_key(shard) {
                last.gone = None;
                return true;
            }
            last.gone.get_or_insert_with(Instant::now).elapsed() < LONGEST_MEMORY
        });
        settled
    }

    /// Returns the changes that restore a store which has lost its data: the workers and leases of
    /// the last table, with this worker's own positions.
    pub(super) fn restore_changes(&self, known: &LeaseTable) -> Vec<Change> {
        let workers = known.workers.iter().filter(|(worker, _)| **worker != self.me);
        let vouched = workers.map(|(worker, member)| Change::ReviveWorker {
            worker: worker.clone(),
            member: member.clone(),
        });
        let leases = known.leases.iter().filter(|(_, lease)| lease.parents.is_some());
        let restored = leases.map(|(shard, lease)| {
            let (incarnation, lease) = if let Some(holding) = self.shards.get(shard) {
                (self.incarnation, holding.lease(&self.me))
            } else {
                // A lease that this worker has released has no owner.
                let owner = lease.owner.as_ref().filter(|owner| **owner != self.me);
                let life = owner.and_then(|owner| known.workers.get(owner));
                let lease = Lease { owner: owner.cloned(), ..lease.clone() };
                (life.map_or(0, |member| member.incarnation), lease)
            };
            Change::Restore { shard: shard.clone(), incarnation, lease }
        });
        vouched.chain(restored).collect()
    }
}

#[cfg(test)]
mod tests;
