//! The rules of the table, as workers meet them through a store.

mod actor;
mod beginning;
mod conflicts;
mod forgetting;
mod identity;
mod invariants;
mod observing;
mod operating;

use std::time::Duration;

use futures::FutureExt;
use tokio::time::sleep;

use super::{Change, FencedCheckpoint, Lease, LeaseStore, Membership, SaveOutcome};
use crate::checkpoint::Checkpoint;
use crate::record::ShardId;
use crate::store::{MemoryStore, Scope};

use actor::{Actor, assign, identify, offer, release};

fn shard(index: usize) -> ShardId {
    format!("shardId-{index:012}").parse().unwrap()
}

fn checkpoint(text: &str) -> Checkpoint {
    text.parse().unwrap()
}

#[tokio::test(start_paused = true)]
async fn rules_hold_in_memory_store() {
    check(&MemoryStore::new()).await;
}

/// Checks every rule, each in a scope of its own.
async fn check(store: &dyn LeaseStore) {
    let suite = LeaseSuite { store };
    suite.begins_empty().await;
    suite.keeps_the_first_poll().await;
    suite.workers_join_renew_and_leave().await;
    suite.free_leases_are_assigned().await;
    suite.add_stores_positions_before_owners().await;
    suite.offers_and_releases().await;
    suite.ends_shards().await;
    suite.distinguishes_streams_by_start().await;
    suite.saves_by_epoch().await;
    suite.changes_all_or_nothing().await;
    suite.expired_workers_lose_their_leases().await;
    suite.outage_renews_all_workers().await;
    suite.restores_lost_entries().await;
    suite.restores_earlier_origin().await;
    suite.edits_respect_live_owners().await;
    suite.clears().await;
    suite.survives_dropped_exchanges().await;
    suite.keeps_scopes_apart().await;
    suite.handles_many_shards().await;
}

struct LeaseSuite<'a> {
    store: &'a dyn LeaseStore,
}

/// The lease duration of workers that are to expire.
const SHORT: Duration = Duration::from_millis(100);

impl LeaseSuite<'_> {
    #[allow(clippy::unused_self, reason = "one suite has one store")]
    fn scope(&self, name: &str) -> Scope {
        Scope::new(name, "orders")
    }

    async fn begins_empty(&self) {
        let scope = self.scope("empty");
        let table = Actor::new(self.store, &scope, "a").table().await;
        assert!(
            (table.generation, table.version, table.cleared, table.first_poll) == (0, 0, 0, 0)
                && table.workers.is_empty()
                && table.leases.is_empty(),
            "an unused scope has an empty table: {table:?}"
        );
    }

    async fn workers_join_renew_and_leave(&self) {
        let scope = self.scope("workers");
        let [mut a, mut b] = ["a", "b"].map(|name| Actor::new(self.store, &scope, name));
        let first = a.exchange([]).await;
        assert_eq!(first.membership, Membership::Joined, "a new worker joins");
        let first = a.known.clone();
        assert!(
            first.generation > 0 && first.version > 0,
            "the first worker creates the table: {first:?}"
        );
        assert!(a.exchange([]).await.table.is_none(), "a known table is not returned again");
        assert_eq!(
            a.exchange([]).await.membership,
            Membership::Renewed,
            "a worker in the table renews"
        );

        let mut other = Actor::new(self.store, &scope, "a");
        let answer = other.exchange([assign(0, "a")]).await;
        assert_eq!(
            answer.membership,
            Membership::Occupied,
            "the name of a live worker is occupied"
        );
        assert!(
            !answer.applied && answer.table.is_none(),
            "a worker with an occupied name changes nothing"
        );

        b.exchange([]).await;
        assert!(b.known.version > first.version, "the version rises when a worker joins");
        assert_eq!(b.known.generation, first.generation, "the generation stays the same");
        let [of_a, of_b] = ["a", "b"].map(|name| b.known.workers[name].clone());
        assert!(of_b.joined > of_a.joined, "a later worker has a later `joined`: {:?}", b.known);
        assert_eq!(of_a.incarnation, a.incarnation, "all bits of an incarnation are stored");

        b.capacity += 1;
        b.exchange([]).await;
        assert_eq!(
            a.look().await.workers["b"].capacity,
            b.capacity,
            "a changed capacity is stored"
        );
        b.leaving = true;
        assert_eq!(b.exchange([]).await.membership, Membership::Left, "a leaving worker has left");
        assert!(!a.look().await.workers.contains_key("b"), "a worker that has left is removed");
        assert_eq!(b.exchange([]).await.membership, Membership::Left, "leaving is idempotent");
        (a.lease_duration, b.leaving) = (Duration::MAX, false);
        a.exchange([]).await;
        b.exchange([]).await;
        assert!(b.known.workers.contains_key("a"), "a lease duration may be arbitrarily long");
    }

    async fn add_stores_positions_before_owners(&self) {
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
        a.changes_nothing([add(1, Some("AT_TIMESTAMP:2000"))], "the first position is kept").await;
        assert_eq!(
            a.lease(1).checkpoint,
            Some(checkpoint("AT_TIMESTAMP:1000")),
            "a shard without a position whose lease never had an owner takes one"
        );
        a.changes_nothing([add(2, at)], "a shard that had an owner takes no starting position")
            .await;
        let epoch = a.lease(2).epoch;
        a.exchange([release(2, epoch)]).await;
        a.changes_nothing([add(2, at)], "a shard that had an owner takes no starting position")
            .await;
    }

    async fn free_leases_are_assigned(&self) {
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
        assert_eq!(lease.parents.as_deref(), Some(&[parent.clone()][..]), "parents are stored");
        assert_eq!(
            lease.checkpoint,
            Some(Checkpoint::TrimHorizon),
            "a starting position is stored"
        );
        assert_eq!(
            lease.origin, a.known.generation,
            "a lease has the generation of its table as origin"
        );
        assert_eq!((lease.epoch, &lease.owner), (0, &None), "a new lease is free, in epoch 0");
        a.changes_nothing([add("AT_TIMESTAMP:1000")], "adding a known shard changes nothing").await;
        let with_parents = |parents: &[usize]| Change::Add {
            shard: child.clone(),
            parents: parents.iter().map(|parent| shard(*parent)).collect(),
            start: None,
            checkpoint: None,
        };
        let all = [shard(7), shard(8), shard(9)];
        a.exchange([with_parents(&[8]), with_parents(&[9, 7])]).await;
        let parents = a.lease(0).parents;
        assert_eq!(
            parents.as_deref(),
            Some(&all[..]),
            "a lease that never had an owner gets missing parents"
        );
        a.changes_nothing([with_parents(&[9, 8]), with_parents(&[])], "no parent is removed").await;
        a.changes_nothing([assign(0, "b")], "a lease is not assigned to an unknown worker").await;
        a.changes_nothing([assign(9, "a")], "an unknown shard is not assigned").await;

        a.exchange([assign(0, "a")]).await;
        assert_eq!(a.lease(0).owner.as_deref(), Some("a"), "a free lease is assigned");
        assert!(a.lease(0).epoch > 0, "an owner has an epoch");
        a.changes_nothing([with_parents(&[6])], "a lease that had an owner keeps its parents")
            .await;
        b.exchange([]).await;
        b.changes_nothing([assign(0, "b")], "an owned lease is not assigned").await;
        let epoch = a.lease(0).epoch;
        b.changes_nothing([release(0, epoch)], "only the owner releases a lease").await;
        a.changes_nothing([release(0, epoch - 1)], "a lease is released only in its epoch").await;
        a.exchange([release(0, epoch), assign(0, "b")]).await;
        let lease = a.lease(0);
        assert_eq!(lease.owner.as_deref(), Some("b"), "a released lease is assigned");
        assert!(lease.epoch > epoch, "the epoch rises with each change of owner");
    }

    async fn offers_and_releases(&self) {
        let scope = self.scope("offer");
        let [mut a, mut b] = ["a", "b"].map(|name| Actor::new(self.store, &scope, name));
        b.exchange([]).await;
        a.exchange([actor::add(0)]).await;
        a.changes_nothing([offer(0, "b")], "a free lease is not offered").await;
        a.exchange([assign(0, "a")]).await;
        let epoch = a.lease(0).epoch;
        a.changes_nothing([offer(0, "c")], "a lease is not offered to an unknown worker").await;
        a.exchange([offer(0, "b")]).await;
        assert_eq!(a.lease(0).next_owner.as_deref(), Some("b"), "an offer sets the next owner");
        assert_eq!(a.lease(0).owner.as_deref(), Some("a"), "an offer keeps the owner");
        assert_eq!(a.lease(0).epoch, epoch, "an offer keeps the epoch");
        a.changes_nothing([offer(0, "b")], "a repeated offer changes nothing").await;
        a.exchange([offer(0, "a")]).await;
        assert_eq!(a.lease(0).next_owner, None, "an offer to the owner withdraws the offer");
        a.exchange([offer(0, "b"), release(0, epoch)]).await;
        let lease = a.lease(0);
        assert_eq!(lease.owner.as_deref(), Some("b"), "a released lease goes to the next owner");
        assert!(
            lease.epoch > epoch && lease.next_owner.is_none(),
            "the next owner has a new epoch"
        );

        b.look().await;
        b.exchange([offer(0, "a")]).await;
        a.leaving = true;
        a.exchange([]).await;
        let table = b.look().await.clone();
        assert_eq!(
            table.leases[&shard(0)].next_owner,
            None,
            "a next owner that leaves is removed from the lease"
        );
        assert_eq!(
            table.leases[&shard(0)].owner.as_deref(),
            Some("b"),
            "the owner keeps the lease"
        );
    }

    async fn ends_shards(&self) {
        let scope = self.scope("ends");
        let mut a = Actor::new(self.store, &scope, "a");
        a.exchange((0..3).flat_map(|index| [actor::add(index), assign(index, "a")])).await;
        let epoch = a.lease(0).epoch;
        let finish = |epoch| Change::Finish { shard: shard(0), epoch };
        a.changes_nothing([finish(epoch - 1)], "a shard is finished only in its epoch").await;
        a.exchange([finish(epoch)]).await;
        assert!(a.lease(0).is_finished(), "a finished shard is marked as finished");
        assert_eq!(a.lease(0).owner, None, "the lease of a finished shard is free");
        a.changes_nothing([finish(epoch)], "finishing a shard is idempotent").await;
        a.changes_nothing([assign(0, "a")], "a finished shard is not assigned").await;
        a.changes_nothing(
            [Change::Forget { shard: shard(1) }],
            "an unfinished shard is not removed",
        )
        .await;
        let forget = || Change::Forget { shard: shard(0) };
        a.exchange([forget()]).await;
        assert!(a.lease(0).is_finished(), "a finished shard that is not listed stays finished");
        assert!(
            a.lease(0).unlisted.is_some(),
            "a finished shard that is not listed has the time of that"
        );
        a.changes_nothing([forget()], "the time at which a shard was first not listed is kept")
            .await;
        a.exchange([identify(0, None)]).await;
        assert_eq!(a.lease(0).unlisted, None, "a shard that is listed again is no longer unlisted");
        let long_ago = Lease { unlisted: Some(1), ..a.lease(0) };
        a.exchange([a.restore(3, &long_ago), Change::Forget { shard: shard(3) }]).await;
        assert!(
            !a.known.leases.contains_key(&shard(3)),
            "a shard that was unlisted for long is removed"
        );

        let lose = || Change::MarkExpired { shard: shard(1) };
        a.exchange([lose()]).await;
        assert!(a.lease(1).is_shard_expired, "a shard can be marked as expired");
        a.changes_nothing([lose()], "marking a shard as expired is idempotent").await;
        let epoch = a.lease(1).epoch;
        a.exchange([release(1, epoch)]).await;
        a.changes_nothing([assign(1, "a")], "an expired shard is not assigned").await;

        // A worker may read to the end after it has released the lease.
        let epoch = a.lease(2).epoch;
        a.exchange([release(2, epoch)]).await;
        a.save(2, epoch, "SHARD_END", SaveOutcome::Saved).await;
        let finish = Change::Finish { shard: shard(2), epoch };
        a.changes_nothing([finish, assign(2, "a")], "a finished shard is not assigned").await;
        assert!(a.table().await.leases[&shard(2)].is_finished(), "the end of a shard is saved");
    }

    async fn saves_by_epoch(&self) {
        let scope = self.scope("saves");
        let mut a = Actor::new(self.store, &scope, "a");
        a.exchange([actor::add(0), assign(0, "a")]).await;
        let epoch = a.lease(0).epoch;
        a.save(0, epoch, "AFTER_SEQUENCE_NUMBER:10", SaveOutcome::Saved).await;
        a.assert_at(0, "AFTER_SEQUENCE_NUMBER:10").await;
        assert!(
            a.exchange([]).await.table.is_none(),
            "saving a position does not change the table"
        );
        a.save(0, epoch, "AFTER_SEQUENCE_NUMBER:9", SaveOutcome::Saved).await;
        a.assert_at(0, "AFTER_SEQUENCE_NUMBER:10").await;
        a.save(0, epoch - 1, "AFTER_SEQUENCE_NUMBER:11", SaveOutcome::Lost).await;
        a.assert_at(0, "AFTER_SEQUENCE_NUMBER:10").await;
        a.save(0, epoch + 1, "AFTER_SEQUENCE_NUMBER:12", SaveOutcome::Forgotten).await;
        a.assert_at(0, "AFTER_SEQUENCE_NUMBER:12").await;
        a.save(1, epoch, "AFTER_SEQUENCE_NUMBER:1", SaveOutcome::Forgotten).await;
        let lease = a.table().await.leases[&shard(1)].clone();
        assert_eq!(lease.parents, None, "a shard with only a position has unknown parents");
        a.save(9, 1, "AFTER_SEQUENCE_NUMBER:1", SaveOutcome::Lost).await;
        let table = a.table().await;
        assert!(!table.leases.contains_key(&shard(9)), "a removed shard is not added by a save");

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
        let verdicts = a.access().save_fenced(&several).await;
        assert!(
            matches!(&verdicts, Ok(verdicts)
                if verdicts[..] == [SaveOutcome::Saved, SaveOutcome::Forgotten, SaveOutcome::Lost]),
            "each position has a separate outcome: {verdicts:?}"
        );
        a.exchange([Change::Finish { shard: shard(0), epoch }]).await;
        let lease = a.lease(0);
        assert!(
            lease.is_finished() && lease.owner.is_none(),
            "the end of a shard frees its lease: {lease:?}"
        );
        let none = a.access().save_fenced(&[]).await;
        assert!(
            matches!(&none, Ok(none) if none.is_empty()),
            "saving an empty list succeeds: {none:?}"
        );
    }

    async fn changes_all_or_nothing(&self) {
        let scope = self.scope("unchanged");
        let [mut a, mut b] = ["a", "b"].map(|name| Actor::new(self.store, &scope, name));
        a.exchange([]).await;
        b.exchange([]).await;
        a.only_if_unchanged = true;
        let answer = a.exchange([actor::add(0)]).await;
        assert!(!answer.applied, "a table that is not the known one is not changed");
        assert!(
            a.known.leases.is_empty() && answer.table.is_some(),
            "the changed table is returned instead"
        );
        let answer = a.exchange([actor::add(0)]).await;
        assert!(
            answer.applied && a.known.leases.len() == 1,
            "changes are applied to the known table"
        );
        let mut joining = Actor::new(self.store, &scope, "c");
        joining.only_if_unchanged = true;
        joining.known = a.known.clone();
        assert!(!joining.exchange([actor::add(1)]).await.applied, "joining changes the table");
    }

    async fn survives_dropped_exchanges(&self) {
        let scope = self.scope("dropped");
        let mut a = Actor::new(self.store, &scope, "a");
        for index in 0..20 {
            // Polled once, then dropped.
            let _carried_out_or_not =
                a.exchange([actor::add(index), assign(index, "a")]).now_or_never();
        }
        a.exchange((0..20).flat_map(|index| [actor::add(index), assign(index, "a")])).await;
        let owned = a.known.leases.values().filter(|lease| lease.owner.as_deref() == Some("a"));
        assert_eq!(owned.count(), 20, "a store works after dropped exchanges");
    }

    async fn keeps_scopes_apart(&self) {
        let names = [("-a", "s"), ("-b", "s"), ("-a", "t"), ("-a:s", "s"), ("-a%3As", "s")];
        for (application, stream) in names {
            let scope = Scope::new(application, stream);
            let mut a = Actor::new(self.store, &scope, "a");
            let answer = a.exchange([actor::add(0)]).await;
            assert!(
                answer.membership == Membership::Joined && a.known.workers.len() == 1,
                "each application and stream has a separate table: {scope:?}"
            );
        }
    }

    async fn handles_many_shards(&self) {
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
        let verdicts = a.access().save_fenced(&positions).await;
        assert!(
            matches!(&verdicts, Ok(verdicts) if *verdicts == [SaveOutcome::Saved; 1000]),
            "1,000 positions are saved"
        );
        let table = a.table().await;
        for FencedCheckpoint { shard, checkpoint, .. } in &positions {
            let stored = table.leases.get(shard).and_then(|lease| lease.checkpoint.as_ref());
            assert_eq!(stored, Some(checkpoint), "1,000 shards have leases and positions");
        }
    }

    async fn expired_workers_lose_their_leases(&self) {
        let scope = self.scope("dead");
        let [mut a, mut b] = ["a", "b"].map(|name| Actor::new(self.store, &scope, name));
        a.lease_duration = SHORT;
        b.exchange([]).await;
        a.exchange([actor::add(0), assign(0, "a")]).await;
        let epoch = a.lease(0).epoch;
        // A worker that renews stays alive.
        for _ in 0..3 {
            sleep(SHORT / 2).await;
            a.exchange([]).await;
        }
        assert!(b.look().await.workers.contains_key("a"), "a worker that renews stays alive");
        sleep(SHORT * 2).await;
        let table = b.table().await;
        assert!(
            !table.workers.contains_key("a") && table.leases[&shard(0)].owner.is_none(),
            "an expired worker is not in the table: {table:?}"
        );
        b.look().await;
        assert!(!b.known.workers.contains_key("a"), "an expired worker is removed");
        b.exchange([assign(0, "b")]).await;
        assert_eq!(
            b.lease(0).owner.as_deref(),
            Some("b"),
            "the leases of an expired worker are free"
        );
        assert!(b.lease(0).epoch > epoch, "the new owner has a new epoch");
        a.save(0, epoch, "AFTER_SEQUENCE_NUMBER:1", SaveOutcome::Lost).await;
        assert_eq!(
            a.exchange([]).await.membership,
            Membership::Joined,
            "an expired worker joins again"
        );
    }

    async fn outage_renews_all_workers(&self) {
        let scope = self.scope("outage");
        let [mut a, mut b] = ["a", "b"].map(|name| Actor::new(self.store, &scope, name));
        (a.lease_duration, b.lease_duration) = (SHORT, SHORT * 10);
        a.exchange([]).await;
        b.exchange([actor::add(0), assign(0, "b")]).await;
        b.lease_duration = SHORT;
        b.exchange([]).await;
        a.look().await;
        sleep(SHORT * 2).await;
        let answer = a.exchange([]).await;
        assert_eq!(
            answer.membership,
            Membership::Renewed,
            "after an outage an expired worker renews"
        );
        assert!(answer.table.is_none(), "an outage does not change the table");
        assert_eq!(
            b.exchange([]).await.membership,
            Membership::Renewed,
            "after an outage the other workers renew too"
        );

        sleep(SHORT * 2).await;
        let mut next = Actor::new(self.store, &scope, "b");
        assert_eq!(
            next.exchange([]).await.membership,
            Membership::Joined,
            "the name of an expired worker is free"
        );
        assert_eq!(
            next.lease(0).owner,
            None,
            "a new incarnation does not get the leases of an expired one"
        );
    }
}
