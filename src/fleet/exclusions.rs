//! Exclusions: a worker that released a shard unread does not get that shard again for a while.
//!
//! A worker releases a shard without a next owner if an error ended the shard's stream, or if its
//! caller does not read the shard. A worker knows its own reasons; of other workers it only sees
//! that the lease was released. The lease table does not store exclusions: a worker that does not
//! know of one assigns the shard once, sees it released, and learns of it.
//!
//! The reason for which a worker cannot read one shard, such as a denied permission, may apply to
//! all shards. So no lease moves to that worker from another worker until a pause is over, and then
//! only one lease on trial. It can get free leases at any time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::backoff::{Backoff, FAILED_SHARDS};
use crate::record::ShardId;
use crate::store::lease::{Change, Lease, LeaseTable};

/// The time for which a pause is remembered after its end, so that the next one is longer: twice
/// the longest pause.
const REMEMBERED: Duration = Duration::from_secs(600);

/// The time after which an acquired shard counts as read: twice the time for which a source retries
/// calls that only the caller can fix, which is 60 s plus the longest pause of 30 s.
const TRIAL: Duration = Duration::from_secs(180);

/// The exclusions at one moment: shards by worker, and workers to which leases do not move freely.
#[derive(Debug, Default)]
pub(super) struct Exclusions {
    pub(super) shards: BTreeMap<ShardId, BTreeSet<Arc<str>>>,
    /// The number of leases that may move to the worker from other workers.
    pub(super) workers: BTreeMap<Arc<str>, usize>,
}

impl Exclusions {
    /// Returns true if the shard is excluded for any worker.
    pub(super) fn is_excluded_for_any(&self, shard: &ShardId) -> bool {
        self.shards.contains_key(shard)
    }

    pub(super) fn has(&self, shard: &ShardId, worker: &Arc<str>) -> bool {
        self.shards.get(shard).is_some_and(|by| by.contains(worker))
    }

    pub(super) fn moves_to(&self, worker: &Arc<str>) -> usize {
        self.workers.get(worker).copied().unwrap_or(usize::MAX)
    }
}

/// The pauses of all workers, as far as this worker knows them.
#[derive(Debug)]
pub(super) struct ExclusionTracker {
    me: Arc<str>,
    shards: BTreeMap<ShardId, BTreeMap<Arc<str>, Pause>>,
    workers: BTreeMap<Arc<str>, Pause>,
    /// The leases that this worker has assigned to others, with the worker and the time.
    assigned: BTreeMap<ShardId, (Arc<str>, Instant)>,
}

#[derive(Debug)]
struct Pause {
    until: Instant,
    backoff: Backoff,
    /// True if the worker has acquired a lease since.
    is_on_trial: bool,
}

impl Pause {
    fn new(now: Instant) -> Self {
        Self { until: now, backoff: Backoff::new(FAILED_SHARDS), is_on_trial: false }
    }

    fn extend(&mut self, now: Instant) {
        (self.until, self.is_on_trial) = (now + self.backoff.failed(), false);
    }
}

impl ExclusionTracker {
    pub(super) fn new(me: Arc<str>) -> Self {
        let (shards, workers, assigned) = Default::default();
        Self { me, shards, workers, assigned }
    }

    /// Excludes a shard for this worker for `time`, since the caller dropped its stream.
    pub(super) fn dropped(&mut self, shard: &ShardId, time: Duration) {
        let pause = self.pause(shard, self.me.clone());
        pause.until = pause.until.max(Instant::now() + time);
    }

    /// Excludes a shard for this worker with back-off, since an error ended its stream. Each pause
    /// is longer than the one before, until a record is delivered.
    pub(super) fn failed(&mut self, shard: &ShardId, has_delivered: bool) {
        let pause = self.pause(shard, self.me.clone());
        if has_delivered {
            pause.backoff.succeeded();
        }
        self.decline(shard, self.me.clone(), Instant::now());
    }

    /// Notes the leases that this worker has assigned. If the next table shows one in a later
    /// epoch, it was released in between.
    pub(super) fn assigned(&mut self, changes: &[Change]) {
        let now = Instant::now();
        for change in changes {
            if let Change::Assign { shard, to } = change
                && *to != self.me
            {
                self.assigned.insert(shard.clone(), (to.clone(), now));
            }
        }
    }

    /// Notes the leases that other live workers have released without a next owner, and those that
    /// paused workers have acquired.
    pub(super) fn observe(&mut self, before: &LeaseTable, table: &LeaseTable) {
        let now = Instant::now();
        self.forget(table, now);
        for (shard, lease) in &table.leases {
            let last = before.leases.get(shard);
            if let Some(owner) = &lease.owner
                && last.and_then(|last| last.owner.as_ref()) != Some(owner)
                && let Some(pause) = self.workers.get_mut(owner)
            {
                (pause.until, pause.is_on_trial) = (pause.until.max(now + TRIAL), true);
            }
            let Some(last) = last else { continue };
            let Some(worker) = last.holder().filter(|holder| **holder != self.me) else { continue };
            let is_same_life = match (before.workers.get(worker), table.workers.get(worker)) {
                (Some(last), Some(member)) => last.incarnation == member.incarnation,
                _ => false,
            };
            let is_assigned = self.assigned.get(shard).is_some_and(|(to, _)| to == worker);
            if is_same_life && is_released(last, lease, is_assigned) {
                self.decline(shard, worker.clone(), now);
                self.assigned.remove(shard);
            }
        }
    }

    fn decline(&mut self, shard: &ShardId, worker: Arc<str>, now: Instant) {
        let whole = self.workers.entry(worker.clone()).or_insert_with(|| Pause::new(now));
        // Leases that are released together count once.
        if whole.is_on_trial || whole.until <= now {
            whole.extend(now);
        }
        self.pause(shard, worker).extend(now);
    }

    fn forget(&mut self, table: &LeaseTable, now: Instant) {
        let is_recent = |worker: &Arc<str>, pause: &Pause| {
            table.workers.contains_key(worker) && now < pause.until + REMEMBERED
        };
        self.shards.retain(|shard, pauses| {
            pauses.retain(|worker, pause| is_recent(worker, pause));
            let is_open = table.leases.get(shard).is_some_and(|lease| !lease.is_finished());
            is_open && !pauses.is_empty()
        });
        self.assigned.retain(|_, (worker, at)| {
            let member = table.workers.get(worker);
            member.is_some_and(|member| now < *at + member.lease_duration)
        });
        self.workers.retain(|worker, pause| {
            let is_trusted = pause.is_on_trial && pause.until <= now;
            is_recent(worker, pause) && !is_trusted
        });
    }

    /// Returns true if the shard is excluded for this worker.
    pub(super) fn exclusions(&self, shard: &ShardId) -> bool {
        let pause = self.shards.get(shard).and_then(|pauses| pauses.get(&self.me));
        pause.is_some_and(|pause| Instant::now() < pause.until)
    }

    pub(super) fn active(&self, table: &LeaseTable, now: Instant) -> Exclusions {
        let refused = self.shards.iter().map(|(shard, pauses)| {
            let by = pauses.iter().filter(|(_, pause)| now < pause.until);
            (shard.clone(), by.map(|(worker, _)| worker.clone()).collect::<BTreeSet<_>>())
        });
        let shards = refused.filter(|(_, by)| !by.is_empty()).collect();
        let workers = self.workers.iter().filter_map(|(worker, pause)| {
            let gets_one =
                || table.leases.values().any(|lease| lease.next_owner.as_ref() == Some(worker));
            let is_trusted = pause.is_on_trial && pause.until <= now;
            (!is_trusted).then(|| (worker.clone(), usize::from(now >= pause.until && !gets_one())))
        });
        Exclusions { shards, workers: workers.collect() }
    }

    /// Returns the end of the pause that ends next.
    pub(super) fn next_end(&self, now: Instant) -> Option<Instant> {
        let pauses = self.shards.values().flat_map(BTreeMap::values).chain(self.workers.values());
        pauses.map(|pause| pause.until).filter(|until| now < *until).min()
    }

    fn pause(&mut self, shard: &ShardId, worker: Arc<str>) -> &mut Pause {
        let pauses = self.shards.entry(shard.clone()).or_default();
        pauses.entry(worker).or_insert_with(|| Pause::new(Instant::now()))
    }
}

/// Returns true if the holder released the lease unread and without a next owner.
///
/// Every other end of a lease finishes the shard, marks it expired, or starts another epoch.
/// Between two reads of the table a lease may be released and assigned again. That is detected if
/// this worker had just assigned the lease, or if the lease was to be handed off and is back with
/// its owner.
fn is_released(last: &Lease, lease: &Lease, is_assigned: bool) -> bool {
    let is_later = lease.epoch > last.epoch;
    let is_over = match &last.next_owner {
        Some(_) => is_later && (lease.owner.is_none() || lease.owner == last.owner),
        None => is_later && is_assigned || lease.epoch == last.epoch && lease.owner.is_none(),
    };
    is_over && !lease.is_finished() && !lease.is_shard_expired && lease.unreadable.is_none()
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::super::fixtures::{self, shard};
    use super::*;

    const LONGEST: Duration = Duration::from_secs(300);

    fn table(owners: &[Option<&str>]) -> LeaseTable {
        fixtures::table(&[("me", 1), ("other", 1)], owners)
    }

    #[tokio::test(start_paused = true)]
    async fn failed_shard_is_excluded_longer_each_time_until_a_record_is_delivered() {
        let mut exclusions = ExclusionTracker::new("me".into());
        for _ in 0..20 {
            exclusions.failed(&shard(0), false);
        }
        advance(Duration::from_secs(9)).await;
        assert!(exclusions.exclusions(&shard(0)), "the shortest pause is 10 s");
        assert!(!exclusions.exclusions(&shard(1)));
        advance(LONGEST).await;
        assert!(!exclusions.exclusions(&shard(0)), "the longest pause is 5 min");
        exclusions.failed(&shard(0), true);
        advance(Duration::from_secs(20)).await;
        assert!(!exclusions.exclusions(&shard(0)), "the first pause is at most 20 s");
    }

    #[tokio::test(start_paused = true)]
    async fn shard_released_by_a_live_worker_is_excluded_for_it() {
        let mut exclusions = ExclusionTracker::new("me".into());
        let before = table(&[Some("other"), Some("other"), Some("me"), Some("other")]);
        let mut after = table(&[None, Some("me"), None, Some("other")]);
        exclusions.observe(&before, &after);
        let refusals = exclusions.active(&after, Instant::now());
        assert!(refusals.shards.keys().eq([&shard(0)]), "{refusals:?}");
        assert!(refusals.has(&shard(0), &"other".into()));
        assert!(!exclusions.exclusions(&shard(0)), "this worker can acquire it");
        // A worker that left or restarted did not release its leases unread.
        for life in [None, Some(2)] {
            let mut exclusions = ExclusionTracker::new("me".into());
            after.workers.clone_from(&before.workers);
            if let Some(life) = life {
                after.workers.get_mut("other").unwrap().incarnation = life;
            } else {
                after.workers.remove("other");
            }
            exclusions.observe(&before, &after);
            assert!(exclusions.active(&after, Instant::now()).shards.is_empty());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn assigned_lease_in_a_later_epoch_counts_as_released() {
        let mut exclusions = ExclusionTracker::new("me".into());
        let (free, held) = (table(&[None]), table(&[Some("other")]));
        let mut again = held.clone();
        again.leases.get_mut(&shard(0)).unwrap().epoch = 8;
        exclusions.observe(&held, &again);
        let refusals =
            |exclusions: &ExclusionTracker| exclusions.active(&again, Instant::now()).shards;
        assert!(refusals(&exclusions).is_empty(), "an operator may have moved its position");
        exclusions.assigned(&[Change::Assign { shard: shard(0), to: "other".into() }]);
        exclusions.observe(&free, &held);
        assert!(refusals(&exclusions).is_empty());
        exclusions.observe(&held, &again);
        assert_eq!(refusals(&exclusions).len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn lease_returned_by_its_next_owner_counts_as_released() {
        let mut offered = table(&[Some("me")]);
        offered.leases.get_mut(&shard(0)).unwrap().next_owner = Some("other".into());
        for (owner, epoch, expected) in
            [(None, 8, 1), (Some("me"), 8, 1), (Some("other"), 8, 0), (Some("me"), 7, 0)]
        {
            let mut exclusions = ExclusionTracker::new("me".into());
            let mut after = table(&[owner]);
            after.leases.get_mut(&shard(0)).unwrap().epoch = epoch;
            exclusions.observe(&offered, &after);
            let found = exclusions.active(&after, Instant::now()).shards.len();
            assert_eq!(found, expected, "{owner:?} in epoch {epoch}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn worker_that_released_a_lease_gets_one_lease_on_trial() {
        let mut exclusions = ExclusionTracker::new("me".into());
        let (held, free) = (table(&[Some("other"); 2]), table(&[None, Some("other")]));
        let other: Arc<str> = "other".into();
        exclusions.observe(&held, &free);
        let moves = |exclusions: &ExclusionTracker, table| {
            exclusions.active(table, Instant::now()).moves_to(&other)
        };
        assert_eq!(moves(&exclusions, &free), 0);
        advance(Duration::from_secs(20)).await;
        assert_eq!(moves(&exclusions, &free), 1);
        let mut offered = table(&[Some("me"), Some("other")]);
        offered.leases.get_mut(&shard(0)).unwrap().next_owner = Some(other.clone());
        assert_eq!(moves(&exclusions, &offered), 0, "one lease is already moving to it");
        exclusions.observe(&free, &held);
        assert_eq!(moves(&exclusions, &held), 0, "the worker is on trial");
        advance(TRIAL).await;
        assert_eq!(moves(&exclusions, &held), usize::MAX, "the trial is over");
        exclusions.observe(&held, &held);
        assert!(exclusions.workers.is_empty());
    }
}
