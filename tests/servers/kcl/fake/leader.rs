//! The leader of the KCL 3, which assigns leases and hands them over.

use std::collections::{BTreeMap, HashMap};

use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::super::requests::{Lease, LeaseTable};
use super::FAILOVER;

/// The leader of the KCL 3.
pub(super) struct Leader {
    pub(super) workers: Vec<String>,
    pub(super) table: LeaseTable,
    pub(super) seen: HashMap<String, (u64, Instant)>,
}

impl Leader {
    pub(super) async fn run(mut self, stopped: watch::Receiver<bool>) {
        while !*stopped.borrow() {
            self.assign().await;
            sleep(FAILOVER / 2).await;
        }
    }

    /// Assigns free and expired leases, and hands one over from the most to the least loaded worker.
    async fn assign(&mut self) {
        let leases = self.table.scan().await;
        let now = Instant::now();
        let mut loads: BTreeMap<String, usize> =
            self.workers.iter().map(|worker| (worker.clone(), 0)).collect();
        let mut due = Vec::new();
        for lease in &leases {
            // Only a counter that rises counts as a renewal.
            let known = self.seen.get(&lease.key).filter(|(counter, _)| *counter >= lease.counter);
            let (counter, since) = known.copied().unwrap_or((lease.counter, now));
            self.seen.insert(lease.key.clone(), (counter, since));
            let is_expired = now - since >= FAILOVER + FAILOVER / 2;
            match &lease.owner {
                Some(owner) if !is_expired => *loads.entry(owner.clone()).or_default() += 1,
                _ => due.push(lease),
            }
        }
        loads.retain(|worker, _| self.workers.contains(worker));
        for lease in due {
            let Some((worker, load)) = loads.iter_mut().min_by_key(|(_, load)| **load) else {
                return;
            };
            if self.table.assign(lease, worker).await {
                *load += 1;
            }
        }
        let most = loads.iter().max_by_key(|(_, load)| **load);
        let least = loads.iter().min_by_key(|(_, load)| **load);
        let (Some((from, high)), Some((to, low))) = (most, least) else { return };
        let is_free =
            |lease: &&Lease| lease.owner.as_ref() == Some(from) && lease.checkpoint_owner.is_none();
        // Also without need, so that handoffs take place.
        if (*high > low + 1 || fastrand::u8(..3) == 0)
            && from != to
            && let Some(lease) = leases.iter().find(is_free)
        {
            self.table.begin_handoff(lease, from, to).await;
        }
    }
}
