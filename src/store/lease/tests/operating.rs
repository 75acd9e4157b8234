//! Edits by operators.

use std::time::Duration;

use tokio::time::sleep;

use super::actor::{self, Actor, assign};
use super::{LeaseSuite, checkpoint, shard};
use crate::store::Scope;
use crate::store::lease::view::View;
use crate::store::lease::{AdminEdit, Change, EditOutcome, IfLeased, Lease, SaveOutcome};

fn refused_by(worker: &str) -> EditOutcome {
    EditOutcome::Refused { worker: worker.into() }
}

impl LeaseSuite<'_> {
    pub(super) async fn edit(
        &self,
        scope: &Scope,
        edit: &AdminEdit,
        if_leased: IfLeased,
    ) -> EditOutcome {
        let operator = Actor::new(self.store, scope, "operator");
        let outcome = operator.access().edit(&mut View::default(), edit, if_leased).await;
        outcome.unwrap_or_else(|error| panic!("an edit succeeds on a healthy store: {error}"))
    }

    pub(super) async fn edits_respect_live_owners(&self) {
        let scope = self.scope("set");
        let mut a = Actor::new(self.store, &scope, "a");
        let set = |index, place: &str| AdminEdit::Set {
            positions: vec![(shard(index), checkpoint(place))],
        };
        assert_eq!(
            self.edit(&scope, &set(5, "TRIM_HORIZON"), IfLeased::Refuse).await,
            EditOutcome::Applied
        );
        a.exchange([actor::add(0), actor::add(1), assign(0, "a")]).await;
        assert!(a.lease(5).parents.is_none(), "a position may be set for an unknown shard");
        let epoch = a.lease(0).epoch;
        a.save(0, epoch, "AFTER_SEQUENCE_NUMBER:9", SaveOutcome::Saved).await;
        let back = set(0, "AFTER_SEQUENCE_NUMBER:3");
        let outcome = self.edit(&scope, &back, IfLeased::Refuse).await;
        assert_eq!(outcome, refused_by("a"), "a live owner is named");
        a.assert_at(0, "AFTER_SEQUENCE_NUMBER:9").await;
        assert!(a.exchange([]).await.table.is_none(), "a refused edit changes nothing");

        assert_eq!(
            self.edit(&scope, &back, IfLeased::Force).await,
            EditOutcome::Applied,
            "a forced edit is applied"
        );
        a.assert_at(0, "AFTER_SEQUENCE_NUMBER:3").await;
        a.look().await;
        assert_eq!(a.lease(0).owner.as_deref(), Some("a"), "a live owner keeps the lease");
        assert!(a.lease(0).epoch > epoch, "setting a position starts a new epoch");
        assert_eq!(
            self.edit(&scope, &set(0, "SHARD_END"), IfLeased::Force).await,
            EditOutcome::Applied
        );
        a.look().await;
        assert!(a.lease(0).owner.is_none(), "a finished shard has no owner");
        assert_eq!(
            self.edit(&scope, &back, IfLeased::Refuse).await,
            EditOutcome::Applied,
            "no worker prevents the edit of a free lease"
        );
        a.save(0, epoch, "AFTER_SEQUENCE_NUMBER:10", SaveOutcome::Lost).await;

        a.exchange([Change::MarkExpired { shard: shard(1) }]).await;
        assert_eq!(
            self.edit(&scope, &set(1, "TRIM_HORIZON"), IfLeased::Refuse).await,
            EditOutcome::Applied
        );
        a.exchange([assign(1, "a")]).await;
        assert_eq!(
            a.lease(1).owner.as_deref(),
            Some("a"),
            "setting a position makes an expired shard assignable"
        );
        self.several_shards_are_set_in_one_step(&scope, &mut a).await;
    }

    /// Sets three shards at once: shard 1 has a live owner, shard 6 has none, and shard 7 is
    /// unknown.
    async fn several_shards_are_set_in_one_step(&self, scope: &Scope, a: &mut Actor<'_>) {
        a.exchange([actor::add(6)]).await;
        let epoch = a.lease(1).epoch;
        let place = "AFTER_SEQUENCE_NUMBER:4";
        let positions = [6, 1, 7].map(|index| (shard(index), checkpoint(place))).to_vec();
        let edit = AdminEdit::Set { positions };
        let outcome = self.edit(scope, &edit, IfLeased::Refuse).await;
        assert_eq!(outcome, refused_by("a"), "the owner of any of the shards is named");
        let table = a.table().await;
        assert_eq!(table.leases[&shard(6)].checkpoint, None, "a refused edit sets no position");
        assert_eq!(
            self.edit(scope, &edit, IfLeased::Force).await,
            EditOutcome::Applied,
            "a forced edit is applied"
        );
        for index in [6, 1, 7] {
            a.assert_at(index, place).await;
        }
        a.look().await;
        assert_eq!(a.lease(1).owner.as_deref(), Some("a"), "a live owner keeps its lease");
        assert!(a.lease(1).epoch > epoch, "a live owner has its lease in a new epoch");
        assert_eq!(a.lease(6).owner, None, "a free lease stays free");
    }

    /// A worker that knows an earlier table can neither save nor restore.
    async fn clears_an_empty_table(&self) {
        let scope = self.scope("clear-empty");
        let other = self.scope("clear-other");
        let mut a = Actor::new(self.store, &other, "a");
        a.exchange([actor::add(0), assign(0, "a")]).await;
        let lease = a.lease(0);
        assert_eq!(
            self.edit(&scope, &AdminEdit::Clear, IfLeased::Refuse).await,
            EditOutcome::Applied,
            "an empty table is cleared"
        );
        let mut b = Actor::new(self.store, &scope, "a");
        assert!(b.table().await.cleared > 0, "the time of the clearing is stored");
        b.save(0, lease.epoch.min(b.table().await.cleared), "SHARD_END", SaveOutcome::Lost).await;
        b.exchange([b.restore(0, &Lease { epoch: 1, ..lease })]).await;
        assert!(b.known.leases.is_empty(), "nothing from before the clearing is restored");
        b.exchange([actor::add(0), assign(0, "a")]).await;
        assert!(b.lease(0).epoch > b.known.cleared, "an epoch after the clearing is later than it");
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
        let outcome = self.edit(&scope, &AdminEdit::Clear, IfLeased::Refuse).await;
        assert_eq!(outcome, refused_by("a"), "a live worker is named");
        assert_eq!(a.table().await.leases.len(), 2, "a refused edit changes nothing");

        assert_eq!(
            self.edit(&scope, &AdminEdit::Clear, IfLeased::Force).await,
            EditOutcome::Applied,
            "a forced edit is applied"
        );
        let table = a.table().await;
        assert!(
            table.workers.is_empty() && table.leases.is_empty(),
            "clearing deletes all workers and leases: {table:?}"
        );
        assert!(
            table.generation > before.generation,
            "a cleared table has a new generation: {table:?}"
        );
        assert!(table.version > before.version, "a cleared table has a higher version: {table:?}");
        assert!(
            table.cleared >= ahead.epoch,
            "no epoch from before the clearing is valid: {table:?}"
        );
        a.save(0, lease.epoch, "AFTER_SEQUENCE_NUMBER:10", SaveOutcome::Lost).await;
        a.exchange([a.restore(0, &lease)]).await;
        assert!(a.known.leases.is_empty(), "a cleared lease is not restored");
        a.exchange([actor::add(0), assign(0, "a")]).await;
        assert!(a.lease(0).epoch > table.cleared, "epochs after the clearing are later than it");

        // An expired worker does not prevent an edit.
        a.lease_duration = Duration::from_millis(1);
        a.exchange([]).await;
        sleep(Duration::from_millis(20)).await;
        assert_eq!(
            self.edit(&scope, &AdminEdit::Clear, IfLeased::Refuse).await,
            EditOutcome::Applied,
            "an expired worker does not prevent an edit"
        );
        assert!(a.table().await.leases.is_empty(), "a table without live workers is cleared");
    }
}
