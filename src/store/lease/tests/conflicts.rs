//! Steps of other workers between the reading of the table and the step that was decided by it.

use std::sync::atomic::{AtomicBool, Ordering};

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::time::sleep;

use super::actor::{Actor, add, assign};
use super::{SHORT, shard};
use crate::error::{Error, ErrorKind, Result};
use crate::mutex::Mutex;
use crate::store::lease::text::format_lease;
use crate::store::lease::{
    Change, EntryChange, EntryKey, Exchange, Exchanged, FencedOutcome, FencedSave, Lease,
    LeaseStore, Membership, Step,
};
use crate::store::{MemoryStore, Scope};

/// A call of another worker, made before the next step.
type Before = Mutex<Option<BoxFuture<'static, ()>>>;

/// A store that other callers reach before the next step arrives.
#[derive(Default)]
struct BusyStore {
    stored: MemoryStore,
    before: Before,
    /// True if the next answer is lost.
    loses: AtomicBool,
}

impl std::fmt::Debug for BusyStore {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("BusyStore").field("stored", &self.stored).finish_non_exhaustive()
    }
}

impl LeaseStore for BusyStore {
    fn exchange<'a>(
        &'a self,
        scope: &'a Scope,
        exchange: &'a Exchange,
    ) -> BoxFuture<'a, Result<Exchanged>> {
        async move {
            let before = exchange.step.as_ref().and_then(|_step| self.before.lock().take());
            if let Some(before) = before {
                before.await;
            }
            let answer = self.stored.exchange(scope, exchange).await?;
            if self.loses.swap(false, Ordering::SeqCst) {
                return Err(Error::new(ErrorKind::StoreUnavailable, "the answer is lost"));
            }
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

impl BusyStore {
    /// Lets a worker make an exchange before the next step arrives.
    fn interpose(&self, scope: &Scope, worker: &Actor<'_>, change: Option<Change>) {
        let (stored, scope, name) = (self.stored.clone(), scope.clone(), worker.name());
        let (incarnation, leaving) = (worker.incarnation, worker.leaving);
        let lease_duration = worker.lease_duration;
        let before = async move {
            let mut worker = Actor::new(&stored, &scope, &name);
            (worker.incarnation, worker.leaving) = (incarnation, leaving);
            worker.lease_duration = lease_duration;
            worker.exchange(change).await;
        };
        *self.before.lock() = Some(before.boxed());
    }

    /// Lets a step that gives a lease to a worker arrive before the next one. Its sender has decided
    /// before that worker expired.
    fn interpose_assignment(&self, scope: &Scope, owned: &Lease, to: &str) {
        let (stored, scope) = (self.stored.clone(), scope.clone());
        let key = EntryKey::Lease(shard(0));
        let mut lease = owned.clone();
        let expected = format_lease(&lease);
        (lease.owner, lease.epoch) = (Some(to.into()), lease.epoch + 1);
        let change =
            EntryChange::new(key, Some(expected.into()), Some(format_lease(&lease).into()));
        let step = Some(Step { entries: vec![change], ..Step::default() });
        let before = async move {
            let exchange = Exchange { step, ..Exchange::default() };
            let answer = stored.exchange(&scope, &exchange).await.unwrap();
            assert!(answer.is_made);
        };
        *self.before.lock() = Some(before.boxed());
    }

    fn is_interposed(&self) -> bool {
        self.before.lock().is_none()
    }
}

/// Every owner has an entry. A lease of a worker without one would stay with it forever.
fn assert_owners_exist(worker: &Actor<'_>) {
    for (shard, lease) in &worker.known.leases {
        for owner in lease.owner.iter().chain(&lease.next_owner) {
            assert!(
                worker.known.workers.contains_key(owner),
                "{shard} is of {owner}, which is gone"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn lease_that_is_assigned_to_a_worker_before_its_removal_becomes_free() {
    let (store, scope) = (BusyStore::default(), Scope::new("removed", "orders"));
    let [mut a, mut b] = ["a", "b"].map(|name| Actor::new(&store, &scope, name));
    b.lease_duration = SHORT;
    a.exchange([add(0)]).await;
    b.exchange([]).await;
    sleep(2 * SHORT).await;
    store.interpose_assignment(&scope, &a.lease(0), "b");
    a.exchange([]).await;
    assert!(store.is_interposed());
    a.exchange([]).await;
    assert!(!a.known.workers.contains_key("b"));
    assert!(a.lease(0).epoch > 0, "the lease was assigned");
    assert_owners_exist(&a);
}

#[tokio::test]
async fn lease_is_assigned_to_no_worker_that_has_just_left() {
    let (store, scope) = (BusyStore::default(), Scope::new("left", "orders"));
    let [mut a, mut b] = ["a", "b"].map(|name| Actor::new(&store, &scope, name));
    a.exchange([add(0)]).await;
    b.exchange([]).await;
    a.exchange([]).await;
    b.leaving = true;
    store.interpose(&scope, &b, None);
    a.exchange([assign(0, "b")]).await;
    assert!(store.is_interposed());
    a.exchange([]).await;
    assert!(!a.known.workers.contains_key("b"));
    assert_owners_exist(&a);
}

#[tokio::test(start_paused = true)]
async fn worker_that_renews_before_its_removal_stays() {
    let (store, scope) = (BusyStore::default(), Scope::new("late", "orders"));
    let [mut a, mut b] = ["a", "b"].map(|name| Actor::new(&store, &scope, name));
    b.lease_duration = SHORT;
    a.exchange([]).await;
    b.exchange([add(0), assign(0, "b")]).await;
    sleep(2 * SHORT).await;
    // The first answer shows that `b` has expired, and the next step is to remove it.
    store.interpose(&scope, &b, None);
    a.exchange([]).await;
    assert!(store.is_interposed());
    assert!(a.known.workers.contains_key("b"), "it has renewed in time: {:?}", a.known);
    assert_eq!(a.lease(0).owner.as_deref(), Some("b"));
}

#[tokio::test(start_paused = true)]
async fn outage_spares_other_workers_although_an_answer_is_lost() {
    let (store, scope) = (BusyStore::default(), Scope::new("outage", "orders"));
    let [mut a, mut b] = ["a", "b"].map(|name| Actor::new(&store, &scope, name));
    (a.lease_duration, b.lease_duration) = (SHORT, SHORT);
    a.exchange([]).await;
    b.exchange([add(0), assign(0, "b")]).await;
    a.exchange([]).await;
    sleep(2 * SHORT).await;
    store.loses.store(true, Ordering::SeqCst);
    a.try_exchange([]).await.unwrap_err();
    a.exchange([]).await;
    assert!(a.known.workers.contains_key("b"), "it could not renew either: {:?}", a.known);
    assert_eq!(b.exchange([]).await.membership, Membership::Renewed);
    assert_eq!(b.lease(0).owner.as_deref(), Some("b"));
}

#[tokio::test]
async fn worker_that_was_removed_learns_of_its_moved_lease_before_it_joins_again() {
    let (store, scope) = (BusyStore::default(), Scope::new("absent", "orders"));
    let mut a = Actor::new(&store, &scope, "a");
    a.exchange([add(0), assign(0, "a")]).await;
    let (stored, of, mut lease) = (store.stored.clone(), scope.clone(), a.lease(0).clone());
    let before = async move {
        // As after a loss of data: another worker has made the table again.
        let entries = stored.exchange(&of, &Exchange::default()).await.unwrap().entries;
        let mine = EntryKey::Worker("a".into());
        let text = entries.into_iter().find(|(key, _)| *key == mine).unwrap().1;
        let expected = Some(format_lease(&lease).into());
        (lease.owner, lease.epoch) = (None, lease.epoch + 1);
        let moved = Some(format_lease(&lease).into());
        let entries = vec![
            EntryChange::new(mine, text, None),
            EntryChange::new(EntryKey::Lease(shard(0)), expected, moved),
        ];
        let step = Some(Step { entries, ..Step::default() });
        let exchange = Exchange { step, ..Exchange::default() };
        assert!(stored.exchange(&of, &exchange).await.unwrap().is_made);
    };
    *store.before.lock() = Some(before.boxed());
    assert_eq!(a.exchange([add(1)]).await.membership, Membership::Absent);
    assert_eq!(a.lease(0).owner, None);
    assert_eq!(a.exchange([]).await.membership, Membership::Joined);
}

#[cfg(feature = "testing")]
#[tokio::test]
async fn worker_is_given_a_text_that_was_damaged_without_a_step() {
    let (store, scope) = (BusyStore::default(), Scope::new("damaged", "orders"));
    let mut a = Actor::new(&store, &scope, "a");
    a.exchange([add(0)]).await;
    let (stored, damaged) = (store.stored.clone(), scope.clone());
    let before = async move { stored.damage(&damaged, &shard(0), true) };
    *store.before.lock() = Some(before.boxed());
    let version = a.known.version;
    a.only_if_unchanged = true;
    assert!(!a.exchange([assign(0, "a")]).await.applied);
    assert_eq!(a.known.version, version);
    assert!(a.lease(0).unreadable.is_some(), "the rejected step has shown it: {:?}", a.known);
}
