//! What operators do.

use std::time::Duration;

use tokio::time::sleep;

use super::actor::{self, Actor, assign};
use super::{Suite, checkpoint, shard};
use crate::store::Scope;
use crate::store::lease::{Change, AdminEdit, Lease, SaveOutcome};

impl Suite<'_> {
    pub(super) async fn edit(&self, scope: &Scope, edit: &AdminEdit, forced: bool) -> Option<String> {
        match self.store.edit(scope, edit, forced).await {
            Ok(against) => against.map(|name| name.to_string()),
            Err(error) => panic!("an edit succeeds while the store is well: {error}"),
        }
    }

    pub(super) async fn operators_are_asked_back(&self) {
        let scope = self.scope("set");
        let mut a = Actor::new(self.store, &scope, "a");
        let set =
            |index, place: &str| AdminEdit::Set { positions: vec![(shard(index), checkpoint(place))] };
        assert_eq!(self.edit(&scope, &set(5, "TRIM_HORIZON"), false).await, None);
        a.exchange([actor::add(0), actor::add(1), assign(0, "a")]).await;
        assert!(a.lease(5).parents.is_none(), "a position may be set where no shard is known");
        let epoch = a.lease(0).epoch;
        a.save(0, epoch, "AFTER_SEQUENCE_NUMBER:9", SaveOutcome::Saved).await;
        let back = set(0, "AFTER_SEQUENCE_NUMBER:3");
        let against = self.edit(&scope, &back, false).await;
        assert_eq!(against.as_deref(), Some("a"), "a living owner is named");
        a.assert_at(0, "AFTER_SEQUENCE_NUMBER:9").await;
        assert!(a.exchange([]).await.table.is_none(), "what is not done changes nothing");

        assert_eq!(self.edit(&scope, &back, true).await, None, "what is forced is done");
        a.assert_at(0, "AFTER_SEQUENCE_NUMBER:3").await;
        a.look().await;
        assert_eq!(a.lease(0).owner.as_deref(), Some("a"), "a living owner keeps the lease");
        assert!(a.lease(0).epoch > epoch, "a lease has a new epoch after its position was set");
        assert_eq!(self.edit(&scope, &set(0, "SHARD_END"), true).await, None);
        a.look().await;
        assert!(a.lease(0).owner.is_none(), "nobody has what is finished");
        assert_eq!(self.edit(&scope, &back, false).await, None, "nobody stands against it");
        a.save(0, epoch, "AFTER_SEQUENCE_NUMBER:10", SaveOutcome::Lost).await;

        a.exchange([Change::MarkExpired { shard: shard(1) }]).await;
        assert_eq!(self.edit(&scope, &set(1, "TRIM_HORIZON"), false).await, None);
        a.exchange([assign(1, "a")]).await;
        assert_eq!(a.lease(1).owner.as_deref(), Some("a"), "a position brings a lost shard back");
        self.several_shards_are_set_in_one_step(&scope, &mut a).await;
    }

    /// Shard 1 has a living owner, shard 6 has none, and shard 7 is not known.
    async fn several_shards_are_set_in_one_step(&self, scope: &Scope, a: &mut Actor<'_>) {
        a.exchange([actor::add(6)]).await;
        let epoch = a.lease(1).epoch;
        let place = "AFTER_SEQUENCE_NUMBER:4";
        let positions = [6, 1, 7].map(|index| (shard(index), checkpoint(place))).to_vec();
        let edit = AdminEdit::Set { positions };
        let against = self.edit(scope, &edit, false).await;
        assert_eq!(against.as_deref(), Some("a"), "the owner of any of the shards is named");
        let table = a.table().await;
        assert_eq!(table.leases[&shard(6)].checkpoint, None, "a refused edit sets no position");
        assert_eq!(self.edit(scope, &edit, true).await, None, "a forced edit is done");
        for index in [6, 1, 7] {
            a.assert_at(index, place).await;
        }
        a.look().await;
        assert_eq!(a.lease(1).owner.as_deref(), Some("a"), "a living owner keeps its lease");
        assert!(a.lease(1).epoch > epoch, "and has it in a new epoch");
        assert_eq!(a.lease(6).owner, None, "a free lease stays free");
    }

    /// A worker that was told of an earlier table saves and restores nothing.
    async fn clears_an_empty_table(&self) {
        let scope = self.scope("clear-empty");
        let other = self.scope("clear-other");
        let mut a = Actor::new(self.store, &other, "a");
        a.exchange([actor::add(0), assign(0, "a")]).await;
        let lease = a.lease(0);
        assert_eq!(self.edit(&scope, &AdminEdit::Clear, false).await, None, "an empty table is cleared");
        let mut b = Actor::new(self.store, &scope, "a");
        assert!(b.table().await.cleared > 0, "the store notes when it was");
        b.save(0, lease.epoch.min(b.table().await.cleared), "SHARD_END", SaveOutcome::Lost).await;
        b.exchange([b.restore(0, &Lease { epoch: 1, ..lease })]).await;
        assert!(b.known.leases.is_empty(), "nothing from before is restored");
        b.exchange([actor::add(0), assign(0, "a")]).await;
        assert!(b.lease(0).epoch > b.known.cleared, "a shard begins after the clearing");
    }

    pub(super) async fn clears(&self) {
        self.clears_an_empty_table().await;
        let scope = self.scope("clear");
        let mut a = Actor::new(self.store, &scope, "a");
        a.exchange([actor::add(0), assign(0, "a")]).await;
        let (before, lease) = (a.known.clone(), a.lease(0));
        a.save(0, lease.epoch, "AFTER_SEQUENCE_NUMBER:9", SaveOutcome::Saved).await;
        let ahead = Lease { epoch: lease.epoch + 1_000_000, ..lease.clone() };
        a.exchange([a.restore(1, &ahead)]).await;
        let against = self.edit(&scope, &AdminEdit::Clear, false).await;
        assert_eq!(against.as_deref(), Some("a"), "a living worker is named");
        assert_eq!(a.table().await.leases.len(), 2, "what is not done changes nothing");

        assert_eq!(self.edit(&scope, &AdminEdit::Clear, true).await, None, "what is forced is done");
        let table = a.table().await;
        assert!(table.workers.is_empty() && table.leases.is_empty(), "all is cleared: {table:?}");
        assert!(table.generation > before.generation, "a cleared table is a new one: {table:?}");
        assert!(table.version > before.version, "the version goes on: {table:?}");
        assert!(table.cleared >= ahead.epoch, "no epoch from before is valid: {table:?}");
        a.save(0, lease.epoch, "AFTER_SEQUENCE_NUMBER:10", SaveOutcome::Lost).await;
        a.exchange([a.restore(0, &lease)]).await;
        assert!(a.known.leases.is_empty(), "what was cleared is not restored");
        a.exchange([actor::add(0), assign(0, "a")]).await;
        assert!(a.lease(0).epoch > table.cleared, "epochs go on after the clearing");

        // One who is dead stands against nothing.
        a.lease_duration = Duration::from_millis(1);
        a.exchange([]).await;
        sleep(Duration::from_millis(20)).await;
        assert_eq!(self.edit(&scope, &AdminEdit::Clear, false).await, None, "the dead are not asked");
        assert!(a.table().await.leases.is_empty(), "all is cleared where nobody is alive");
    }
}
