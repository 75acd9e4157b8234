//! Shards that workers have released unread, and for how long those workers do not get them again.
//!
//! A worker releases a shard without an heir if an error has ended its stream, or if its caller does
//! not read it. It knows its own reasons; of other workers it sees that the lease was released. The
//! lease table holds none of this: a worker that does not know assigns the shard once, sees it released,
//! and knows.
//!
//! What keeps a worker from one shard may keep it from all of them, such as a denied permission. So no
//! lease is moved to it from another worker until a pause is over, and then one lease as a trial. Free
//! leases it gets at any time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::backoff::{Backoff, FAILED_SHARDS};
use crate::record::ShardId;
use crate::store::lease::{Change, Lease, LeaseTable};

/// The time for which the length of a pause is remembered after its end: twice the longest pause.
const REMEMBERED: Duration = Duration::from_secs(600);

/// The time after which an acquired shard counts as read: twice as long as a source retries calls that
/// only the caller can cure, 60 s and the longest pause of 30 s.
const TRIAL: Duration = Duration::from_secs(180);

/// The shards that workers do not take now, and the workers to which leases are not moved freely.
#[derive(Debug, Default)]
pub(super) struct Exclusions {
    pub(super) shards: BTreeMap<ShardId, BTreeSet<Arc<str>>>,
    /// How many leases may be moved to the worker from other workers.
    pub(super) workers: BTreeMap<Arc<str>, usize>,
}

impl Exclusions {
    /// Whether some worker does not take the shard.
    pub(super) fn concern(&self, shard: &ShardId) -> bool {
        self.shards.contains_key(shard)
    }

    pub(super) fn has(&self, shard: &ShardId, worker: &Arc<str>) -> bool {
        self.shards.get(shard).is_some_and(|by| by.contains(worker))
    }

    pub(super) fn moves_to(&self, worker: &Arc<str>) -> usize {
        self.workers.get(worker).copied().unwrap_or(usize::MAX)
    }
}

/// The pauses of all workers, as far as one of them knows.
#[derive(Debug)]
pub(super) struct ExclusionTracker {
    me: Arc<str>,
    shards: BTreeMap<ShardId, BTreeMap<Arc<str>, Pause>>,
    workers: BTreeMap<Arc<str>, Pause>,
    /// The leases that this worker has assigned, and when.
    assigned: BTreeMap<ShardId, (Arc<str>, Instant)>,
}

#[derive(Debug)]
struct Pause {
    until: Instant,
    backoff: Backoff,
    /// The worker has acquired a lease since.
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

    /// The caller has dropped the stream of a shard, which this worker rests for `time`.
    pub(super) fn dropped(&mut self, shard: &ShardId, time: Duration) {
        let pause = self.pause(shard, self.me.clone());
        pause.until = pause.until.max(Instant::now() + time);
    }

    /// An error has ended the stream of a shard, which this worker rests with back-off: longer each
    /// time, until a record was delivered.
    pub(super) fn failed(&mut self, shard: &ShardId, has_delivered: bool) {
        let pause = self.pause(shard, self.me.clone());
        if has_delivered {
            pause.backoff.succeeded();
        }
        self.decline(shard, self.me.clone(), Instant::now());
    }

    /// Notes leases that this worker has assigned. A lease that is assigned again may have been released
    /// meanwhile.
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

    /// Notes the leases that other live workers have released without an heir, and those that workers
    /// on trial have acquired.
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

    /// Whether this worker rests the shard.
    pub(super) fn exclusions(&self, shard: &ShardId) -> bool {
        let pause = self.shards.get(shard).and_then(|pauses| pauses.get(&self.me));
        pause.is_some_and(|pause| Instant::now() < pause.until)
    }

    pub(super) fn refusals(&self, table: &LeaseTable, now: Instant) -> Exclusions {
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

    /// When the next of the pauses ends.
    pub(super) fn next_end(&self, now: Instant) -> Option<Instant> {
        let pauses = self.shards.values().flat_map(BTreeMap::values).chain(self.workers.values());
        pauses.map(|pause| pause.until).filter(|until| now < *until).min()
    }

    fn pause(&mut self, shard: &ShardId, worker: Arc<str>) -> &mut Pause {
        let pauses = self.shards.entry(shard.clone()).or_default();
        pauses.entry(worker).or_insert_with(|| Pause::new(Instant::now()))
    }
}

/// Returns whether the holder released the lease unread and without an heir. Every other end of a lease
/// finishes or loses the shard, or starts another epoch. Between two looks at the table a lease may be
/// released and assigned again: that is seen where it had just been assigned, or was to be handed over
/// and is back.
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
    async fn failed_shard_rests_longer_each_time_until_a_record_is_delivered() {
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
    async fn lease_that_a_live_worker_releases_is_not_assigned_to_it_again() {
        let mut exclusions = ExclusionTracker::new("me".into());
        let before = table(&[Some("other"), Some("other"), Some("me"), Some("other")]);
        let mut after = table(&[None, Some("me"), None, Some("other")]);
        exclusions.observe(&before, &after);
        let refusals = exclusions.refusals(&after, Instant::now());
        assert!(refusals.shards.keys().eq([&shard(0)]), "{refusals:?}");
        assert!(refusals.has(&shard(0), &"other".into()));
        assert!(!exclusions.exclusions(&shard(0)), "this worker may take it");
        // A worker that has left or restarted has released nothing.
        for life in [None, Some(2)] {
            let mut exclusions = ExclusionTracker::new("me".into());
            after.workers.clone_from(&before.workers);
            if let Some(life) = life {
                after.workers.get_mut("other").unwrap().incarnation = life;
            } else {
                after.workers.remove("other");
            }
            exclusions.observe(&before, &after);
            assert!(exclusions.refusals(&after, Instant::now()).shards.is_empty());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn assigned_lease_in_another_epoch_was_released_in_between() {
        let mut exclusions = ExclusionTracker::new("me".into());
        let (free, held) = (table(&[None]), table(&[Some("other")]));
        let mut again = held.clone();
        again.leases.get_mut(&shard(0)).unwrap().epoch = 8;
        exclusions.observe(&held, &again);
        let refusals =
            |exclusions: &ExclusionTracker| exclusions.refusals(&again, Instant::now()).shards;
        assert!(refusals(&exclusions).is_empty(), "an operator may have moved its position");
        exclusions.assigned(&[Change::Assign { shard: shard(0), to: "other".into() }]);
        exclusions.observe(&free, &held);
        assert!(refusals(&exclusions).is_empty());
        exclusions.observe(&held, &again);
        assert_eq!(refusals(&exclusions).len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn lease_returned_by_its_heir_was_released() {
        let mut offered = table(&[Some("me")]);
        offered.leases.get_mut(&shard(0)).unwrap().next_owner = Some("other".into());
        for (owner, epoch, expected) in
            [(None, 8, 1), (Some("me"), 8, 1), (Some("other"), 8, 0), (Some("me"), 7, 0)]
        {
            let mut exclusions = ExclusionTracker::new("me".into());
            let mut after = table(&[owner]);
            after.leases.get_mut(&shard(0)).unwrap().epoch = epoch;
            exclusions.observe(&offered, &after);
            let found = exclusions.refusals(&after, Instant::now()).shards.len();
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
            exclusions.refusals(table, Instant::now()).moves_to(&other)
        };
        assert_eq!(moves(&exclusions, &free), 0);
        advance(Duration::from_secs(20)).await;
        assert_eq!(moves(&exclusions, &free), 1);
        let mut offered = table(&[Some("me"), Some("other")]);
        offered.leases.get_mut(&shard(0)).unwrap().next_owner = Some(other.clone());
        assert_eq!(moves(&exclusions, &offered), 0, "it gets one already");
        exclusions.observe(&free, &held);
        assert_eq!(moves(&exclusions, &held), 0, "it is on trial");
        advance(TRIAL).await;
        assert_eq!(moves(&exclusions, &held), usize::MAX, "it has read for long enough");
        exclusions.observe(&held, &held);
        assert!(exclusions.workers.is_empty());
    }
}
