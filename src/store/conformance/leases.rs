//! What every [`LeaseStore`] must do, as a suite that any of them can run.

mod actor;
mod beginning;
mod forgetting;
mod identity;
mod operating;
#[cfg(test)]
mod tests;

use std::time::Duration;

use futures::FutureExt;
use tokio::time::sleep;

use super::{checkpoint, shard, unique};
use crate::checkpoint::Checkpoint;
use crate::store::Scope;
use crate::store::lease::{Change, FencedCheckpoint, Lease, LeaseStore, Membership, SaveOutcome};

use actor::{Actor, assign, identify, offer, release};

/// Runs the whole suite on `store`, in scopes that no other run uses. What it has saved is left
/// there. It takes some seconds, since workers die in it, by the store's clock.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use kinestream::MemoryStore;
/// use kinestream::store::conformance;
///
/// conformance::check_leases(&MemoryStore::new()).await;
/// # }
/// ```
///
/// # Panics
///
/// Where the store does not do what [`LeaseStore`] asks for; the message names the rule.
pub async fn check_leases(store: &dyn LeaseStore) {
    let suite = Suite { store, run: unique() };
    suite.begins_empty().await;
    suite.keeps_the_first_poll().await;
    suite.workers_come_and_go().await;
    suite.leases_go_to_the_living().await;
    suite.positions_come_before_owners().await;
    suite.hands_over().await;
    suite.ends_shards().await;
    suite.knows_whose_position_it_is().await;
    suite.saves_by_epoch().await;
    suite.changes_all_or_nothing().await;
    suite.frees_what_the_dead_had().await;
    suite.all_live_on_after_an_outage().await;
    suite.restores_what_was_forgotten().await;
    suite.rewinds_what_was_begun_anew().await;
    suite.operators_are_asked_back().await;
    suite.clears().await;
    suite.survives_dropped_exchanges().await;
    suite.keeps_scopes_apart().await;
    suite.takes_many_at_once().await;
}

struct Suite<'a> {
    store: &'a dyn LeaseStore,
    run: String,
}

/// How long a worker that is to die lives.
const SHORT: Duration = Duration::from_millis(100);

impl Suite<'_> {
    fn scope(&self, name: &str) -> Scope {
        Scope::new(format!("{}-{name}", self.run), "orders")
    }

    async fn begins_empty(&self) {
        let scope = self.scope("empty");
        let table = Actor::new(self.store, &scope, "a").table().await;
        assert!(
            (table.generation, table.version, table.cleared, table.first_poll) == (0, 0, 0, 0)
                && table.workers.is_empty()
                && table.leases.is_empty(),
            "a scope in which nobody was has an empty table: {table:?}"
        );
    }

    async fn workers_come_and_go(&self) {
        let scope = self.scope("workers");
        let [mut a, mut b] = ["a", "b"].map(|name| Actor::new(self.store, &scope, name));
        let first = a.exchange([]).await;
        assert_eq!(first.standing, Membership::Joined, "who was not there joins");
        let first = a.known.clone();
        assert!(first.generation > 0 && first.version > 0, "the first makes the table: {first:?}");
        assert!(a.exchange([]).await.table.is_none(), "a table that is known is not given again");
        assert_eq!(a.exchange([]).await.standing, Membership::Renewed, "who is there renews");

        let mut other = Actor::new(self.store, &scope, "a");
        let answer = other.exchange([assign(0, "a")]).await;
        assert_eq!(answer.standing, Membership::Occupied, "a name belongs to one that is alive");
        assert!(!answer.applied && answer.table.is_none(), "who is turned away changes nothing");

        b.exchange([]).await;
        assert!(b.known.version > first.version, "the version rises when a worker joins");
        assert_eq!(b.known.generation, first.generation, "a generation lasts");
        let [of_a, of_b] = ["a", "b"].map(|name| b.known.workers[name].clone());
        assert!(of_b.joined > of_a.joined, "who comes later has joined later: {:?}", b.known);
        assert_eq!(of_a.incarnation, a.incarnation, "all bits of an incarnation are kept");

        b.capacity += 1;
        b.exchange([]).await;
        assert_eq!(a.look().await.workers["b"].capacity, b.capacity, "a capacity can change");
        b.leaving = true;
        assert_eq!(b.exchange([]).await.standing, Membership::Left, "who leaves has left");
        assert!(!a.look().await.workers.contains_key("b"), "who has left is gone");
        assert_eq!(b.exchange([]).await.standing, Membership::Left, "who has left may leave again");
        (a.lease_duration, b.leaving) = (Duration::MAX, false);
        a.exchange([]).await;
        b.exchange([]).await;
        assert!(b.known.workers.contains_key("a"), "a worker may live for as long as it likes");
    }

    async fn positions_come_before_owners(&self) {
        let scope = self.scope("positions");
        let mut a = Actor::new(self.store, &scope, "a");
        let add = |index, place: Option<&str>| Change::Add {
            shard: shard(index),
            parents: vec![shard(7)],
            start: None,
            checkpoint: place.map(checkpoint),
        };
        let at = Some("AT_TIMESTAMP:1000");
        a.exchange([add(1, None), add(2, None), assign(2, "a")]).await;
        a.exchange([add(1, at)]).await;
        a.changes_nothing([add(1, Some("AT_TIMESTAMP:2000"))], "the first start counts").await;
        assert_eq!(
            a.lease(1).checkpoint,
            Some(checkpoint("AT_TIMESTAMP:1000")),
            "a known shard that never had an owner takes a position where it has none"
        );
        a.changes_nothing([add(2, at)], "a shard that had an owner takes no start").await;
        let epoch = a.lease(2).epoch;
        a.exchange([release(2, epoch)]).await;
        a.changes_nothing([add(2, at)], "a shard that had an owner takes no start").await;
    }

    async fn leases_go_to_the_living(&self) {
        let scope = self.scope("assign");
        let [mut a, mut b] = ["a", "b"].map(|name| Actor::new(self.store, &scope, name));
        let [parent, child] = [shard(7), shard(0)];
        let add = |place: &str| Change::Add {
            shard: child.clone(),
            parents: vec![parent.clone()],
            start: None,
            checkpoint: Some(checkpoint(place)),
        };
        a.exchange([add("TRIM_HORIZON")]).await;
        let lease = a.lease(0);
        assert_eq!(lease.parents.as_deref(), Some(&[parent.clone()][..]), "parents are kept");
        assert_eq!(lease.checkpoint, Some(Checkpoint::TrimHorizon), "a beginning is stored");
        assert_eq!(lease.origin, a.known.generation, "a lease says in which table it began");
        assert_eq!((lease.epoch, &lease.owner), (0, &None), "a new lease is free, in epoch 0");
        a.changes_nothing([add("AT_TIMESTAMP:1000")], "a known shard stays as it is").await;
        let with_parents = |parents: &[usize]| Change::Add {
            shard: child.clone(),
            parents: parents.iter().map(|parent| shard(*parent)).collect(),
            start: None,
            checkpoint: None,
        };
        let all = [shard(7), shard(8), shard(9)];
        a.exchange([with_parents(&[8]), with_parents(&[9, 7])]).await;
        let parents = a.lease(0).parents;
        assert_eq!(parents.as_deref(), Some(&all[..]), "a lease without an epoch gets new parents");
        a.changes_nothing([with_parents(&[9, 8]), with_parents(&[])], "no parent is removed").await;
        a.changes_nothing([assign(0, "b")], "nothing is assigned to one who is not there").await;
        a.changes_nothing([assign(9, "a")], "an unknown shard is not assigned").await;

        a.exchange([assign(0, "a")]).await;
        assert_eq!(a.lease(0).owner.as_deref(), Some("a"), "a free lease is assigned");
        assert!(a.lease(0).epoch > 0, "an owner has an epoch");
        a.changes_nothing([with_parents(&[6])], "a lease that had an owner keeps its parents")
            .await;
        b.exchange([]).await;
        b.changes_nothing([assign(0, "b")], "a lease that is owned is not assigned").await;
        let epoch = a.lease(0).epoch;
        b.changes_nothing([release(0, epoch)], "only its owner gives back a lease").await;
        a.changes_nothing([release(0, epoch - 1)], "a lease is given back in its epoch").await;
        a.exchange([release(0, epoch), assign(0, "b")]).await;
        let lease = a.lease(0);
        assert_eq!(lease.owner.as_deref(), Some("b"), "what was given back is assigned");
        assert!(lease.epoch > epoch, "an epoch rises with each change of owner");
    }

    async fn hands_over(&self) {
        let scope = self.scope("offer");
        let [mut a, mut b] = ["a", "b"].map(|name| Actor::new(self.store, &scope, name));
        b.exchange([]).await;
        a.exchange([actor::add(0)]).await;
        a.changes_nothing([offer(0, "b")], "a free lease is not offered").await;
        a.exchange([assign(0, "a")]).await;
        let epoch = a.lease(0).epoch;
        a.changes_nothing([offer(0, "c")], "nothing is offered to one who is not there").await;
        a.exchange([offer(0, "b")]).await;
        assert_eq!(a.lease(0).next_owner.as_deref(), Some("b"), "a lease is offered to an heir");
        assert_eq!(a.lease(0).owner.as_deref(), Some("a"), "an offer leaves the owner");
        assert_eq!(a.lease(0).epoch, epoch, "an offer leaves the epoch");
        a.changes_nothing([offer(0, "b")], "the same offer changes nothing").await;
        a.exchange([offer(0, "a")]).await;
        assert_eq!(a.lease(0).next_owner, None, "an offer to the owner takes the offer back");
        a.exchange([offer(0, "b"), release(0, epoch)]).await;
        let lease = a.lease(0);
        assert_eq!(lease.owner.as_deref(), Some("b"), "what is given back goes to the heir");
        assert!(lease.epoch > epoch && lease.next_owner.is_none(), "an heir has an epoch of its own");

        b.look().await;
        b.exchange([offer(0, "a")]).await;
        a.leaving = true;
        a.exchange([]).await;
        let table = b.look().await.clone();
        assert_eq!(table.leases[&shard(0)].next_owner, None, "an heir who leaves is none any more");
        assert_eq!(table.leases[&shard(0)].owner.as_deref(), Some("b"), "its owner keeps it");
    }

    async fn ends_shards(&self) {
        let scope = self.scope("ends");
        let mut a = Actor::new(self.store, &scope, "a");
        a.exchange((0..3).flat_map(|index| [actor::add(index), assign(index, "a")])).await;
        let epoch = a.lease(0).epoch;
        let finish = |epoch| Change::Finish { shard: shard(0), epoch };
        a.changes_nothing([finish(epoch - 1)], "a shard is finished in its epoch").await;
        a.exchange([finish(epoch)]).await;
        assert!(a.lease(0).is_finished(), "a shard that is finished says so");
        assert_eq!(a.lease(0).owner, None, "a shard that is finished is free");
        a.changes_nothing([finish(epoch)], "a shard is finished once").await;
        a.changes_nothing([assign(0, "a")], "a finished shard is not assigned").await;
        a.changes_nothing([Change::Forget { shard: shard(1) }], "an unfinished shard is kept")
            .await;
        let forget = || Change::Forget { shard: shard(0) };
        a.exchange([forget()]).await;
        assert!(a.lease(0).is_finished(), "the mark of a finished shard outlives its listing");
        assert!(a.lease(0).unlisted.is_some(), "a finished shard that is not listed says so");
        a.changes_nothing([forget()], "an unlisted shard is noted once").await;
        a.exchange([identify(0, None)]).await;
        assert_eq!(a.lease(0).unlisted, None, "a shard that is listed again says so");
        let long_ago = Lease { unlisted: Some(1), ..a.lease(0) };
        a.exchange([a.restore(3, &long_ago), Change::Forget { shard: shard(3) }]).await;
        assert!(!a.known.leases.contains_key(&shard(3)), "nothing is kept of a forgotten shard");

        let lose = || Change::MarkExpired { shard: shard(1) };
        a.exchange([lose()]).await;
        assert!(a.lease(1).is_shard_expired, "a shard can be lost");
        a.changes_nothing([lose()], "a shard is lost once").await;
        let epoch = a.lease(1).epoch;
        a.exchange([release(1, epoch)]).await;
        a.changes_nothing([assign(1, "a")], "a lost shard is not assigned").await;

        // One who reads to the end when the lease was given back already.
        let epoch = a.lease(2).epoch;
        a.exchange([release(2, epoch)]).await;
        a.save(2, epoch, "SHARD_END", SaveOutcome::Saved).await;
        assert!(a.look().await.leases[&shard(2)].is_finished(), "the end of a shard is told");
    }

    async fn saves_by_epoch(&self) {
        let scope = self.scope("saves");
        let mut a = Actor::new(self.store, &scope, "a");
        a.exchange([actor::add(0), assign(0, "a")]).await;
        let epoch = a.lease(0).epoch;
        a.save(0, epoch, "AFTER_SEQUENCE_NUMBER:10", SaveOutcome::Saved).await;
        a.assert_at(0, "AFTER_SEQUENCE_NUMBER:10").await;
        assert!(a.exchange([]).await.table.is_none(), "a position is no change of the table");
        a.save(0, epoch, "AFTER_SEQUENCE_NUMBER:9", SaveOutcome::Saved).await;
        a.assert_at(0, "AFTER_SEQUENCE_NUMBER:10").await;
        a.save(0, epoch - 1, "AFTER_SEQUENCE_NUMBER:11", SaveOutcome::Lost).await;
        a.assert_at(0, "AFTER_SEQUENCE_NUMBER:10").await;
        a.save(0, epoch + 1, "AFTER_SEQUENCE_NUMBER:12", SaveOutcome::Forgotten).await;
        a.assert_at(0, "AFTER_SEQUENCE_NUMBER:12").await;
        a.save(1, epoch, "AFTER_SEQUENCE_NUMBER:1", SaveOutcome::Forgotten).await;
        let lease = a.table().await.leases[&shard(1)].clone();
        assert_eq!(lease.parents, None, "a shard that has only a position has no parents");
        a.save(9, 1, "AFTER_SEQUENCE_NUMBER:1", SaveOutcome::Lost).await;
        let table = a.table().await;
        assert!(!table.leases.contains_key(&shard(9)), "a forgotten shard is not begun again");

        let position = |index, epoch, place: &str| FencedCheckpoint {
            shard: shard(index),
            epoch,
            checkpoint: checkpoint(place),
        };
        let several = [
            position(0, epoch, "SHARD_END"),
            position(1, epoch, "AFTER_SEQUENCE_NUMBER:2"),
            position(0, epoch - 1, "AFTER_SEQUENCE_NUMBER:20"),
        ];
        let verdicts = self.store.save_fenced(&scope, &several).await;
        assert!(
            matches!(&verdicts, Ok(verdicts)
                if verdicts[..] == [SaveOutcome::Saved, SaveOutcome::Forgotten, SaveOutcome::Lost]),
            "each position has a verdict of its own: {verdicts:?}"
        );
        let lease = a.look().await.leases[&shard(0)].clone();
        assert!(lease.is_finished() && lease.owner.is_none(), "a shard's end frees it: {lease:?}");
        let none = self.store.save_fenced(&scope, &[]).await;
        assert!(matches!(&none, Ok(none) if none.is_empty()), "saving nothing is well: {none:?}");
    }

    async fn changes_all_or_nothing(&self) {
        let scope = self.scope("unchanged");
        let [mut a, mut b] = ["a", "b"].map(|name| Actor::new(self.store, &scope, name));
        a.exchange([]).await;
        b.exchange([]).await;
        a.only_if_unchanged = true;
        let answer = a.exchange([actor::add(0)]).await;
        assert!(!answer.applied, "nothing is changed in a table that is not the known one");
        assert!(a.known.leases.is_empty() && answer.table.is_some(), "but it is shown");
        let answer = a.exchange([actor::add(0)]).await;
        assert!(answer.applied && a.known.leases.len() == 1, "the known table is changed");
        let mut joining = Actor::new(self.store, &scope, "c");
        joining.only_if_unchanged = true;
        joining.known = a.known.clone();
        assert!(!joining.exchange([actor::add(1)]).await.applied, "to join is a change");
    }

    async fn survives_dropped_exchanges(&self) {
        let scope = self.scope("dropped");
        let mut a = Actor::new(self.store, &scope, "a");
        for index in 0..20 {
            let request = a.request([actor::add(index), assign(index, "a")]);
            // Polled once, and dropped.
            let _carried_out_or_not = self.store.exchange(&scope, &request).now_or_never();
        }
        a.exchange((0..20).flat_map(|index| [actor::add(index), assign(index, "a")])).await;
        let owned = a.known.leases.values().filter(|lease| lease.owner.as_deref() == Some("a"));
        assert_eq!(owned.count(), 20, "a store goes on after exchanges that were dropped");
    }

    async fn keeps_scopes_apart(&self) {
        let run = &self.run;
        let names = [("-a", "s"), ("-b", "s"), ("-a", "t"), ("-a:s", "s"), ("-a%3As", "s")];
        for (application, stream) in names {
            let scope = Scope::new(format!("{run}{application}"), stream);
            let mut a = Actor::new(self.store, &scope, "a");
            let answer = a.exchange([actor::add(0)]).await;
            assert!(
                answer.standing == Membership::Joined && a.known.workers.len() == 1,
                "every application and stream has a table of its own: {scope:?}"
            );
        }
    }

    async fn takes_many_at_once(&self) {
        let scope = self.scope("many");
        let mut a = Actor::new(self.store, &scope, "a");
        a.exchange((0..1000).map(actor::add)).await;
        a.exchange((0..1000).map(|index| assign(index, "a"))).await;
        let positions: Vec<_> = (0..1000)
            .map(|index| FencedCheckpoint {
                shard: shard(index),
                epoch: a.lease(index).epoch,
                checkpoint: checkpoint(&format!("AFTER_SEQUENCE_NUMBER:{index}")),
            })
            .collect();
        let verdicts = self.store.save_fenced(&scope, &positions).await;
        assert!(
            matches!(&verdicts, Ok(verdicts) if *verdicts == [SaveOutcome::Saved; 1000]),
            "1,000 positions are saved"
        );
        let table = a.table().await;
        for FencedCheckpoint { shard, checkpoint, .. } in &positions {
            let stored = table.leases.get(shard).and_then(|lease| lease.checkpoint.as_ref());
            assert_eq!(stored, Some(checkpoint), "1,000 shards are leased, and have positions");
        }
    }

    async fn frees_what_the_dead_had(&self) {
        let scope = self.scope("dead");
        let [mut a, mut b] = ["a", "b"].map(|name| Actor::new(self.store, &scope, name));
        a.lease_duration = SHORT;
        b.exchange([]).await;
        a.exchange([actor::add(0), assign(0, "a")]).await;
        let epoch = a.lease(0).epoch;
        // Whoever renews lives on.
        for _ in 0..3 {
            sleep(SHORT / 2).await;
            a.exchange([]).await;
        }
        assert!(b.look().await.workers.contains_key("a"), "who renews is alive");
        sleep(SHORT * 2).await;
        let table = b.table().await;
        assert!(
            !table.workers.contains_key("a") && table.leases[&shard(0)].owner.is_none(),
            "who has outlived its time is not seen from outside: {table:?}"
        );
        b.exchange([assign(0, "b")]).await;
        assert!(!b.known.workers.contains_key("a"), "who has outlived its time is removed");
        assert_eq!(b.lease(0).owner.as_deref(), Some("b"), "its leases are free for others");
        assert!(b.lease(0).epoch > epoch, "the next owner has an epoch of its own");
        a.save(0, epoch, "AFTER_SEQUENCE_NUMBER:1", SaveOutcome::Lost).await;
        assert_eq!(a.exchange([]).await.standing, Membership::Joined, "one who was dead joins anew");
    }

    async fn all_live_on_after_an_outage(&self) {
        let scope = self.scope("outage");
        let [mut a, mut b] = ["a", "b"].map(|name| Actor::new(self.store, &scope, name));
        (a.lease_duration, b.lease_duration) = (SHORT, SHORT * 10);
        a.exchange([]).await;
        b.exchange([actor::add(0), assign(0, "b")]).await;
        a.look().await;
        b.lease_duration = SHORT;
        b.exchange([]).await;
        sleep(SHORT * 2).await;
        let answer = a.exchange([]).await;
        assert_eq!(answer.standing, Membership::Renewed, "who is back first was not alone away");
        assert!(answer.table.is_none(), "after an outage the table is as it was");
        assert_eq!(b.exchange([]).await.standing, Membership::Renewed, "the others live on too");

        sleep(SHORT * 2).await;
        let mut next = Actor::new(self.store, &scope, "b");
        assert_eq!(next.exchange([]).await.standing, Membership::Joined, "a dead one's name is free");
        assert_eq!(next.lease(0).owner, None, "a namesake has none of the leases of a dead one");
    }
}
