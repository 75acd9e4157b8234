//! Stores without a clock: workers observe how long the heartbeats of others stay the same.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::time::{Instant, sleep};

use super::actor::{self, Actor, assign};
use super::{SHORT, shard};
use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::mutex::Mutex;
use crate::store::lease::{
    AdminEdit, EditOutcome, EntryKey, Exchange, Exchanged, FencedOutcome, FencedSave, Heartbeats,
    IfLeased, LastHeartbeat, LeaseStore, Leases, Membership,
};
use crate::store::{MemoryStore, Scope};

/// A store that counts the heartbeats of each worker.
#[derive(Debug, Default)]
struct ClocklessStore {
    stored: MemoryStore,
    counts: Mutex<BTreeMap<Arc<str>, u64>>,
    /// The most workers that a step has required to be silent.
    most_silent: AtomicUsize,
    /// The time that a call takes.
    delay: Mutex<Duration>,
}

impl ClocklessStore {
    fn marks(&self) -> Vec<LastHeartbeat> {
        let counts = self.counts.lock();
        counts
            .iter()
            .map(|(worker, count)| LastHeartbeat::new(Arc::clone(worker), count.to_string()))
            .collect()
    }
}

impl LeaseStore for ClocklessStore {
    fn exchange<'a>(
        &'a self,
        scope: &'a Scope,
        exchange: &'a Exchange,
    ) -> BoxFuture<'a, Result<Exchanged>> {
        async move {
            let delay = *self.delay.lock();
            sleep(delay).await;
            let before = self.marks();
            let mut exchange = exchange.clone();
            if let Some(step) = &mut exchange.step {
                let silent = std::mem::take(&mut step.silent);
                self.most_silent.fetch_max(silent.len(), Ordering::Relaxed);
                if !silent.iter().all(|last| before.contains(last)) {
                    // A version that the store never has.
                    step.version = Some(1);
                }
            }
            let mut answer = self.stored.exchange(scope, &exchange).await?;
            let whole = self.stored.exchange(scope, &Exchange::default()).await?;
            let mut counts = self.counts.lock();
            for renewal in &exchange.renewals {
                let entry = (
                    EntryKey::Worker(Arc::clone(&renewal.worker)),
                    Some(Arc::clone(&renewal.entry)),
                );
                if whole.entries.contains(&entry) {
                    *counts.entry(Arc::clone(&renewal.worker)).or_default() += 1;
                }
            }
            (answer.heartbeats, answer.time) = (Heartbeats::Last(before), None);
            Ok(answer)
        }
        .boxed()
    }

    fn save_fenced<'a>(
        &'a self,
        scope: &'a Scope,
        saves: &'a [FencedSave],
    ) -> BoxFuture<'a, Result<Vec<FencedOutcome>>> {
        self.stored.save_fenced(scope, saves)
    }
}

#[tokio::test(start_paused = true)]
async fn silent_worker_is_removed_after_its_lease_duration_and_two_renewals() {
    let (store, scope) = (ClocklessStore::default(), Scope::new("observed", "orders"));
    let [mut a, mut b] = ["a", "b"].map(|name| Actor::new(&store, &scope, name));
    (a.lease_duration, b.lease_duration) = (SHORT, SHORT);
    a.exchange([actor::add(0), assign(0, "a")]).await;
    for _ in 0..9 {
        sleep(SHORT / 3).await;
        b.exchange([]).await;
        a.exchange([]).await;
    }
    assert!(b.known.workers.contains_key("a"), "a worker that renews stays");
    let renewed = Instant::now();
    while b.look().await.workers.contains_key("a") {
        sleep(SHORT / 3).await;
    }
    let silent = renewed.elapsed();
    assert!(silent >= SHORT, "removed {silent:?} after its heartbeat");
    assert!(silent <= SHORT + SHORT * 2 / 3, "removed only {silent:?} after its heartbeat");
    b.exchange([assign(0, "b")]).await;
    assert_eq!(b.lease(0).owner.as_deref(), Some("b"), "the leases of a silent worker are free");
    assert_eq!(a.exchange([]).await.membership, Membership::Joined, "a removed worker joins again");
}

#[tokio::test(start_paused = true)]
async fn worker_that_was_away_removes_no_other() {
    let (store, scope) = (ClocklessStore::default(), Scope::new("away", "orders"));
    let [mut a, mut b] = ["a", "b"].map(|name| Actor::new(&store, &scope, name));
    (a.lease_duration, b.lease_duration) = (SHORT, SHORT);
    a.exchange([]).await;
    b.exchange([]).await;
    a.exchange([]).await;
    // The store is unreachable for both.
    sleep(5 * SHORT).await;
    a.exchange([]).await;
    assert!(a.known.workers.contains_key("b"), "the other worker was away as well");
    assert_eq!(b.exchange([]).await.membership, Membership::Renewed, "both have renewed");
}

#[tokio::test(start_paused = true)]
async fn operator_learns_by_observing_whether_a_worker_is_alive() {
    let (store, scope) = (Arc::new(ClocklessStore::default()), Scope::new("operated", "orders"));
    let mut a = Actor::new(&*store, &scope, "a");
    a.lease_duration = SHORT;
    a.exchange([actor::add(0), assign(0, "a")]).await;
    let operator = Leases::new(Arc::clone(&store) as Arc<dyn LeaseStore>, scope.clone());
    let edit = AdminEdit::Set { positions: vec![(shard(0), Checkpoint::TrimHorizon)] };
    let worker: Arc<str> = "a".into();
    let refused = EditOutcome::Refused { worker: Arc::clone(&worker) };
    assert_eq!(operator.edit(&edit, IfLeased::Refuse).await.unwrap(), refused);
    assert_eq!(operator.undecided(&worker).await, Some(SHORT), "one mark proves nothing");
    a.exchange([]).await;
    assert_eq!(operator.edit(&edit, IfLeased::Refuse).await.unwrap(), refused);
    assert_eq!(operator.undecided(&worker).await, None, "the worker is alive");
    sleep(SHORT).await;
    assert!(operator.table().await.unwrap().workers.is_empty());
    assert_eq!(operator.edit(&edit, IfLeased::Refuse).await.unwrap(), EditOutcome::Applied);
}

#[tokio::test(start_paused = true)]
async fn worker_whose_lease_ends_during_a_call_stays_undecided_until_the_next_one() {
    let (store, scope) = (Arc::new(ClocklessStore::default()), Scope::new("slow", "orders"));
    let mut a = Actor::new(&*store, &scope, "a");
    a.lease_duration = SHORT;
    a.exchange([actor::add(0), assign(0, "a")]).await;
    let operator = Leases::new(Arc::clone(&store) as Arc<dyn LeaseStore>, scope.clone());
    let worker: Arc<str> = "a".into();
    operator.table().await.unwrap();
    *store.delay.lock() = 2 * SHORT;
    // Begins before the end of the lease, so its answer does not show the worker as dead.
    assert_eq!(operator.table().await.unwrap().workers.len(), 1);
    assert_eq!(operator.undecided(&worker).await, Some(Duration::ZERO));
    assert!(operator.table().await.unwrap().workers.is_empty());
    assert_eq!(operator.undecided(&worker).await, None, "the worker is dead");
}

#[tokio::test(start_paused = true)]
async fn many_silent_workers_are_removed_in_portions() {
    let (store, scope) = (ClocklessStore::default(), Scope::new("many", "orders"));
    let mut gone: Vec<_> =
        (0..100).map(|index| Actor::new(&store, &scope, &format!("gone-{index}"))).collect();
    for actor in &mut gone {
        actor.lease_duration = SHORT;
        actor.exchange([]).await;
    }
    let mut last = Actor::new(&store, &scope, "last");
    last.lease_duration = SHORT;
    while last.look().await.workers.len() > 1 {
        last.exchange([]).await;
        sleep(SHORT / 3).await;
    }
    assert!(last.known.workers.contains_key("last"));
    assert_eq!(store.most_silent.load(Ordering::Relaxed), 30, "workers in one step");
}
