//! A worker, and how it renews, takes and adopts leases.

use std::collections::{BTreeMap, HashMap};

use tokio::sync::watch;
use tokio::time::{Duration, Instant, sleep};

use super::super::ledger::Ledger;
use super::super::requests::{Lease, LeaseTable};
use super::{FAILOVER, Version};

/// The pause between two rounds of a worker.
const ROUND: Duration = Duration::from_millis(60);

/// A lease that a worker holds.
pub(super) struct Held {
    pub(super) lease: Lease,
    pub(super) iterator: Option<String>,
    /// The last processed user record.
    pub(super) processed: (String, u64),
    pub(super) is_started: bool,
    pub(super) read_at: Instant,
}

pub(super) struct Worker {
    pub(super) name: String,
    pub(super) version: Version,
    pub(super) is_leader: bool,
    pub(super) table: LeaseTable,
    pub(super) kinesis: aws_sdk_kinesis::Client,
    pub(super) ledger: Ledger,
    pub(super) held: BTreeMap<String, Held>,
    /// The last seen counter of each lease, and when it was seen first.
    pub(super) seen: HashMap<String, (u64, Instant)>,
    pub(super) stopped: watch::Receiver<bool>,
}

impl Worker {
    fn is_native(&self) -> bool {
        self.version == Version::Three
    }

    pub(super) async fn run(mut self) {
        let (mut renewed, mut taken, mut cleaned) = (Instant::now(), None, Instant::now());
        loop {
            if *self.stopped.borrow() {
                return self.checkpoint_all().await;
            }
            if renewed.elapsed() >= FAILOVER / 3 {
                renewed = Instant::now();
                self.renew().await;
            }
            if taken.is_none_or(|taken: Instant| taken.elapsed() >= FAILOVER) {
                taken = Some(Instant::now());
                if self.is_leader {
                    self.synchronize().await;
                }
                if self.is_native() { self.adopt().await } else { self.take().await }
            }
            if cleaned.elapsed() >= FAILOVER {
                cleaned = Instant::now();
                self.clean_up().await;
            }
            self.process().await;
            sleep(ROUND).await;
        }
    }

    /// Renews the held leases. The KCL 3 learns of a handoff by a failed renewal.
    async fn renew(&mut self) {
        for key in self.held.keys().cloned().collect::<Vec<_>>() {
            let Some(held) = self.held.get_mut(&key) else { continue };
            if self.table.renew(&held.lease, self.version == Version::Three).await {
                held.lease.counter += 1;
                continue;
            }
            let row = self.table.get(&key).await;
            match row {
                Some(row)
                    if self.is_native()
                        && row.checkpoint_owner.as_deref() == Some(&*self.name)
                        && row.counter == self.held[&key].lease.counter =>
                {
                    // The old owner saves, and then hands the lease over.
                    self.checkpoint(&key).await;
                    let next = row.owner.clone().unwrap();
                    self.table.assign(&row, &next).await;
                    self.held.remove(&key);
                }
                _ => {
                    self.held.remove(&key);
                }
            }
        }
    }

    /// Returns the leases, and those among them that have expired or are free.
    async fn look(&mut self) -> (Vec<Lease>, Vec<Lease>) {
        let leases = self.table.scan().await;
        let now = Instant::now();
        let mut expired = Vec::new();
        for lease in &leases {
            let known = self.seen.get(&lease.key).filter(|(counter, _)| *counter == lease.counter);
            let since = known.map_or(now, |(_, since)| *since);
            self.seen.insert(lease.key.clone(), (lease.counter, since));
            if lease.owner.is_none() || now - since >= FAILOVER {
                expired.push(lease.clone());
            }
        }
        (leases, expired)
    }

    /// Takes leases up to the worker's share, and steals one from the most loaded worker.
    async fn take(&mut self) {
        let (leases, expired) = self.look().await;
        let is_expired = |lease: &Lease| expired.iter().any(|it| it.key == lease.key);
        let mut loads: BTreeMap<&str, usize> = BTreeMap::from([(&*self.name, 0)]);
        for lease in leases.iter().filter(|lease| !is_expired(lease)) {
            *loads.entry(lease.owner.as_deref().unwrap()).or_default() += 1;
        }
        let target = leases.len().div_ceil(loads.len());
        let mut room = target.saturating_sub(loads[&*self.name]);
        let mut wanted: Vec<Lease> = expired.clone();
        fastrand::shuffle(&mut wanted);
        wanted.retain(|lease| lease.owner.as_deref() != Some(&*self.name) || room > 0);
        if wanted.is_empty() && room > 0 {
            let most = loads.iter().filter(|(name, _)| **name != self.name).max_by_key(|it| it.1);
            if let Some((victim, load)) = most
                && *load > target
            {
                wanted = leases
                    .iter()
                    .filter(|lease| lease.owner.as_deref() == Some(victim))
                    .take(1)
                    .cloned()
                    .collect();
            }
        }
        for mut lease in wanted {
            if room == 0 {
                return;
            }
            if self.table.take(&lease, &self.name).await {
                room -= 1;
                lease.counter += 1;
                self.hold(lease);
            }
        }
    }

    /// Picks up the leases that the leader has assigned to this worker.
    async fn adopt(&mut self) {
        for lease in self.table.scan().await {
            let is_mine =
                lease.owner.as_deref() == Some(&*self.name) && lease.checkpoint_owner.is_none();
            if is_mine && !self.held.contains_key(&lease.key) {
                self.hold(lease);
            }
        }
    }

    fn hold(&mut self, lease: Lease) {
        let processed = (lease.checkpoint.clone(), lease.sub_sequence_number);
        let read_at = Instant::now();
        let held = Held { iterator: None, processed, is_started: false, read_at, lease };
        self.held.insert(held.lease.key.clone(), held);
    }
}
