//! What one worker reads, and what a table means for it.
//!
//! ```text
//!             it has an heir, or its stream was dropped         settled, or too late
//!   reading ───────────────────────────────────────► leaving ─────────────────────► released
//!      │  │                                             │
//!      │  └── read to its end and finished ──► finished │
//!      └──── another has a higher epoch ──► lost ◄──────┘
//! ```
//!
//! In none of the states but the first is a record handed out.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::checkpoint::Watermark;
use crate::record::ShardId;
use crate::shard::{LeaseHandle, PollMonitor};
use crate::store::lease::{Change, Lease, LeaseTable};
use crate::telemetry::ShardTelemetry;

/// That a shard is finished is heard of in two ways, and told once.
#[derive(Debug, Clone, Default)]
pub(super) struct Once(Arc<AtomicBool>);

impl Once {
    pub(super) fn is_news(&self) -> bool {
        !self.0.swap(true, Ordering::Relaxed)
    }
}

/// A shard that the worker has the lease of.
#[derive(Debug)]
pub(super) struct OwnedShard {
    pub(super) lease_handle: LeaseHandle,
    pub(super) watermark: Arc<Watermark>,
    poll_monitor: Option<PollMonitor>,
    /// The lease as it was when it was taken, with the start that a listing has shown since.
    lease: Lease,
    pub(super) finish: Once,
    pub(super) is_leaving: bool,
    /// The stream is at its end, and records of it may be unacknowledged.
    pub(super) telemetry: Option<ShardTelemetry>,
}

impl OwnedShard {
    pub(super) fn new(
        lease: Lease,
        lease_handle: LeaseHandle,
        watermark: Arc<Watermark>,
        poll_monitor: Option<PollMonitor>,
    ) -> Self {
        let finish = Once::default();
        Self { lease_handle, watermark, poll_monitor, lease, finish, is_leaving: false, telemetry: None }
    }

    /// No record is handed out any more.
    pub(super) fn stop(&mut self) {
        self.is_leaving = true;
        self.watermark.retire();
        self.lease_handle.end();
    }

    /// Learns where the shard starts: the lease of a child that its parent named has no start before the next
    /// listing, and a restored lease must have it.
    fn identify(&mut self, stored: &Lease) {
        if self.lease.start.is_none() {
            self.lease.start.clone_from(&stored.start);
        }
    }

    /// A position was refused because another had the lease, and the stream has ended.
    fn is_given_up(&self) -> bool {
        self.lease_handle.is_over() && !self.is_leaving
    }

    /// The lease as the store should know it.
    fn lease(&self, me: &Arc<str>) -> Lease {
        let position = self.watermark.position().or_else(|| self.lease.checkpoint.clone());
        Lease { owner: Some(me.clone()), next_owner: None, checkpoint: position, ..self.lease.clone() }
    }
}

/// For how long a worker remembers what it had of a shard that is not in the table any more. By then it
/// has left retention and is in nobody's table, unless its worker was suspended all the time.
const LONGEST_MEMORY: Duration = Duration::from_secs(24 * 60 * 60);

/// What a worker had of a shard last.
#[derive(Debug)]
struct Last {
    epoch: u64,
    /// Since when no table has shown the shard.
    gone: Option<Instant>,
}

/// All that a worker has.
#[derive(Debug)]
pub(super) struct OwnedShards {
    me: Arc<str>,
    incarnation: u64,
    pub(super) shards: BTreeMap<ShardId, OwnedShard>,
    /// The last epoch in which each shard was the worker's. It never takes one up again: a store
    /// that has forgotten a handover must not make two workers read in the same epoch.
    last: BTreeMap<ShardId, Last>,
    /// Streams that their callers have stopped polling, and may poll again.
    neglected: Vec<PollMonitor>,
}

/// What a table means for a worker.
#[derive(Debug, Default)]
pub(super) struct Reconciliation {
    /// What the store is to be told.
    pub(super) changes: Vec<Change>,
    /// Shards to begin with.
    pub(super) opened: Vec<(ShardId, Lease)>,
    /// Shards to hand over.
    pub(super) leaving: Vec<ShardId>,
    /// Shards of which every record is finished.
    pub(super) finished: Vec<ShardId>,
    /// Shards that another worker has by now.
    pub(super) lost: Vec<(ShardId, u64)>,
}

impl OwnedShards {
    pub(super) fn new(me: Arc<str>, incarnation: u64) -> Self {
        let (shards, last) = (BTreeMap::new(), BTreeMap::new());
        Self { me, incarnation, shards, last, neglected: Vec::new() }
    }

    pub(super) fn take(&mut self, shard: ShardId, holding: OwnedShard) {
        self.last.insert(shard.clone(), Last { epoch: holding.lease_handle.epoch(), gone: None });
        self.shards.insert(shard, holding);
    }

    /// The shard, as long as it is held in this epoch.
    pub(super) fn get(&mut self, shard: &ShardId, epoch: u64) -> Option<&mut OwnedShard> {
        self.shards.get_mut(shard).filter(|holding| holding.lease_handle.epoch() == epoch)
    }

    /// Gives up a shard that is held in this epoch; whether it was.
    pub(super) fn remove(&mut self, shard: &ShardId, epoch: u64) -> bool {
        self.get(shard, epoch).is_some() && self.shards.remove(shard).is_some()
    }

    pub(super) fn epoch(&self, shard: &ShardId) -> Option<u64> {
        self.shards.get(shard).map(|holding| holding.lease_handle.epoch())
    }

    pub(super) fn len(&self) -> usize {
        self.shards.len()
    }

    /// The shards whose callers have just been found to poll no more.
    pub(super) fn neglected(&mut self, limit: Duration) -> Vec<(ShardId, u64)> {
        self.neglected.retain(|poll_monitor| !poll_monitor.is_abandoned() && poll_monitor.has_stopped(limit));
        let mut found = Vec::new();
        for (shard, holding) in &self.shards {
            if let Some(poll_monitor) = &holding.poll_monitor
                && !holding.is_leaving
                && poll_monitor.has_stopped(limit)
            {
                found.push((shard.clone(), holding.lease_handle.epoch()));
                self.neglected.push(poll_monitor.clone());
            }
        }
        found
    }

    /// Whether there is a stream that its caller has stopped polling.
    pub(super) fn is_neglected(&self) -> bool {
        !self.neglected.is_empty()
    }

    /// No record of any shard is handed out any more.
    pub(super) fn stop_all(&mut self) {
        self.shards.values_mut().for_each(OwnedShard::stop);
    }

    /// Holds what there is against a table: what is lost is stopped and gone, before anything else.
    pub(super) fn settle(&mut self, table: &LeaseTable) -> Reconciliation {
        let mut settled = Reconciliation::default();
        self.shards.retain(|shard, holding| {
            let epoch = holding.lease_handle.epoch();
            if holding.is_given_up() {
                // A store that has forgotten since may have it as the worker's own again: then it is
                // given back below.
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
                // One whose position began earlier stands, whatever its epoch is: this one was begun
                // when the store knew of nothing, and what it had forgotten is there again.
                Some(stored) if stored.epoch > epoch || stored.origin < holding.lease.origin => {
                    settled.lost.push((shard.clone(), epoch));
                    holding.stop();
                    return false;
                }
                Some(stored) if stored.epoch == epoch && stored.is_finished() => {
                    if holding.finish.is_news() {
                        settled.finished.push(shard.clone());
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
                // The store took the worker for dead, or has forgotten.
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
            // What is to go on at once is not begun, nor what has been given back before.
            let is_over = self.last.get(shard).is_some_and(|last| lease.epoch <= last.epoch);
            if is_over || lease.next_owner.is_some() {
                settled.changes.push(Change::Release { shard: shard.clone(), epoch: lease.epoch });
            } else {
                settled.opened.push((shard.clone(), lease.clone()));
            }
        }
        // A store that has forgotten a shard may remember it again, or hear of it from a worker that has
        // seen nothing since: also one that was finished, or cleared.
        self.last.retain(|shard, last| {
            if table.leases.contains_key(shard) {
                last.gone = None;
                return true;
            }
            last.gone.get_or_insert_with(Instant::now).elapsed() < LONGEST_MEMORY
        });
        settled
    }

    /// All that a worker knows, for a store that knows nothing of it: what was in the table that it
    /// has seen last, and what it has reached itself.
    pub(super) fn knowledge(&self, known: &LeaseTable) -> Vec<Change> {
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
                // What has been given back is nobody's.
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
mod tests {
    use tokio::time::advance;

    use super::super::fixtures::{shard, table};
    use super::*;

    #[test]
    fn a_store_is_told_what_is_known_and_of_which_life_of_a_worker() {
        let owned = OwnedShards::new("me".into(), 1);
        let workers = [("me", 1), ("other", 2), ("again", 3)];
        let known = table(&workers, &[Some("me"), Some("other"), Some("again"), None]);
        let changes = owned.knowledge(&known);
        let vouched = changes.iter().filter_map(|change| match change {
            Change::ReviveWorker { worker, .. } => Some(&**worker),
            _ => None,
        });
        assert!(vouched.eq(["again", "other"]));
        let owners = changes.iter().filter_map(|change| match change {
            Change::Restore { incarnation, lease, .. } => {
                Some((lease.owner.as_deref(), *incarnation))
            }
            _ => None,
        });
        // What was this worker's it has given back.
        assert!(owners.eq([(None, 0), (Some("other"), 2), (Some("again"), 3), (None, 0)]));
    }

    #[test]
    fn what_is_to_go_on_is_passed_on_and_what_was_given_back_is_given_back() {
        let mut owned = OwnedShards::new("me".into(), 1);
        let mut seen = table(&[("me", 1), ("other", 2)], &[Some("me"), Some("me"), Some("other")]);
        seen.leases.get_mut(&shard(0)).unwrap().next_owner = Some("other".into());
        let settled = owned.settle(&seen);
        assert_eq!(settled.changes, [Change::Release { shard: shard(0), epoch: 7 }]);
        let opened: Vec<_> = settled.opened.into_iter().map(|(shard, _)| shard).collect();
        assert_eq!(opened, [shard(1)]);
        owned.last.insert(shard(1), Last { epoch: 7, gone: None });
        let settled = owned.settle(&seen);
        assert!(settled.opened.is_empty(), "never twice in one epoch");
        assert_eq!(settled.changes.len(), 2);
    }

    #[test]
    fn restored_lease_has_the_start_that_was_identified_after_it_was_taken() {
        let mut seen = table(&[("me", 1)], &[Some("me")]);
        let mut owned = OwnedShards::new("me".into(), 1);
        let lease = Lease { start: None, ..seen.leases[&shard(0)].clone() };
        let watermark = Arc::new(Watermark::new(|_| {}));
        let holding = OwnedShard::new(lease, LeaseHandle::new(7, Arc::default()), watermark, None);
        owned.take(shard(0), holding);
        let start = "49590338271490256608559692538361571095921575989136588898".parse().ok();
        seen.leases.get_mut(&shard(0)).unwrap().start = start.clone();
        assert!(owned.settle(&seen).changes.is_empty());
        let restored = |changes: Vec<Change>| match &changes[..] {
            [Change::Restore { lease, .. }] => lease.start.clone(),
            other => panic!("{other:?}"),
        };
        assert_eq!(restored(owned.knowledge(&seen)), start);
        seen.leases.clear();
        assert_eq!(restored(owned.settle(&seen).changes), start);
    }

    #[test]
    fn what_was_given_up_is_given_back_where_the_store_knows_nothing_of_it() {
        let seen = table(&[("me", 1)], &[Some("me"), Some("me")]);
        let mut owned = OwnedShards::new("me".into(), 1);
        for number in 0..2 {
            let lease = seen.leases[&shard(number)].clone();
            let lease_handle = LeaseHandle::new(7, Arc::default());
            let watermark = Arc::new(Watermark::new(|_| {}));
            let holding = OwnedShard::new(lease, lease_handle, watermark, None);
            owned.take(shard(number), holding);
        }
        assert!(owned.settle(&seen).changes.is_empty());
        // As the writer does, whose position was refused.
        owned.shards[&shard(1)].lease_handle.end();
        let settled = owned.settle(&seen);
        assert_eq!(settled.changes, [Change::Release { shard: shard(1), epoch: 7 }]);
        assert_eq!(settled.lost, [(shard(1), 7)]);
        assert!(owned.shards.keys().eq([&shard(0)]));
        // Nor is it taken up again in that epoch.
        let settled = owned.settle(&seen);
        assert!(settled.opened.is_empty() && settled.lost.is_empty());
    }

    #[test]
    fn what_was_begun_when_the_store_knew_nothing_gives_way_to_what_it_finds_again() {
        let mut begun = table(&[("me", 1)], &[Some("me")]);
        begun.leases.get_mut(&shard(0)).unwrap().origin = 2;
        let mut owned = OwnedShards::new("me".into(), 1);
        let lease = begun.leases[&shard(0)].clone();
        let watermark = Arc::new(Watermark::new(|_| {}));
        let lease_handle = LeaseHandle::new(7, Arc::default());
        owned.take(shard(0), OwnedShard::new(lease, lease_handle, watermark, None));
        let mut found = table(&[("me", 1)], &[None]);
        let lease = found.leases.get_mut(&shard(0)).unwrap();
        (lease.epoch, lease.origin) = (6, 1);
        let settled = owned.settle(&found);
        assert_eq!(settled.lost, [(shard(0), 7)]);
        assert!(settled.changes.is_empty() && owned.shards.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_store_forgets_and_finds_again_is_not_begun_again() {
        let mut owned = OwnedShards::new("me".into(), 1);
        let seen = table(&[("me", 1)], &[Some("me")]);
        owned.last.insert(shard(0), Last { epoch: 7, gone: None });
        let forgotten = table(&[("me", 1)], &[]);
        // Also after weeks, and again.
        for _ in 0..2 {
            assert!(owned.settle(&seen).opened.is_empty());
            advance(30 * LONGEST_MEMORY).await;
            owned.settle(&forgotten);
            advance(LONGEST_MEMORY / 2).await;
            owned.settle(&forgotten);
        }
        // What has left retention is tidied away in the end.
        advance(LONGEST_MEMORY / 2).await;
        owned.settle(&forgotten);
        assert!(owned.last.is_empty());
    }
}
