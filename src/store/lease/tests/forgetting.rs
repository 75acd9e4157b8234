//! Restores: workers write back what a store has lost.

use super::actor::{self, Actor, assign, release};
use super::{LeaseSuite, checkpoint, shard};
use crate::store::lease::{Change, Lease, WorkerEntry};

impl LeaseSuite<'_> {
    pub(super) async fn restores_lost_entries(&self) {
        let scope = self.scope("restore");
        let mut a = Actor::new(self.store, &scope, "a");
        a.exchange([]).await;
        let member = WorkerEntry { joined: 1, ..a.known.workers["a"].clone() };
        let vouch =
            |name: &str| Change::ReviveWorker { worker: name.into(), member: member.clone() };
        a.exchange([vouch("b")]).await;
        assert_eq!(a.known.workers.get("b"), Some(&member), "a restored worker is alive");
        let other = WorkerEntry { joined: 7, ..member.clone() };
        let again = Change::ReviveWorker { worker: "b".into(), member: other };
        a.changes_nothing([again], "a worker in the table is not restored").await;

        let known = Lease {
            epoch: 1000,
            owner: Some("b".into()),
            next_owner: Some("a".into()),
            origin: a.known.generation,
            parents: Some(vec![shard(7), shard(8)]),
            is_shard_expired: false,
            start: Some(actor::number("4")),
            unlisted: None,
            added: Some(3),
            checkpoint: Some(checkpoint("AFTER_SEQUENCE_NUMBER:5")),
            ..Lease::default()
        };
        a.exchange([a.restore(0, &known)]).await;
        assert_eq!(a.lease(0), known, "a missing lease is restored");
        a.changes_nothing([a.restore(0, &known)], "restoring a lease is idempotent").await;
        let of_the_dead = Lease { owner: Some("absent".into()), ..known.clone() };
        a.exchange([a.restore(1, &of_the_dead)]).await;
        let free = Lease { owner: None, next_owner: None, ..known.clone() };
        assert_eq!(a.lease(1), free, "a restored lease of an unknown worker is free");
        let of_an_earlier_life = Change::Restore {
            shard: shard(4),
            incarnation: a.incarnation - 1,
            lease: known.clone(),
        };
        a.exchange([of_an_earlier_life]).await;
        assert_eq!(a.lease(4), free, "a restored lease of an earlier incarnation is free");

        let lower =
            Lease { epoch: 999, owner: Some("a".into()), next_owner: None, ..known.clone() };
        let rule = "a lease of a higher epoch is kept";
        a.changes_nothing([a.restore(0, &lower)], rule).await;
        let place = checkpoint("AFTER_SEQUENCE_NUMBER:6");
        let same = Lease { owner: Some("a".into()), checkpoint: Some(place), ..known.clone() };
        a.exchange([a.restore(0, &same), a.restore(1, &same)]).await;
        a.assert_at(0, "AFTER_SEQUENCE_NUMBER:6").await;
        assert_eq!(a.lease(0).owner, known.owner, "a lease of the same epoch keeps its owner");
        assert_eq!(
            a.lease(1).owner,
            same.owner,
            "a free lease of the same epoch gets the restored owner"
        );
        let higher = Lease { epoch: 1001, next_owner: None, ..same };
        a.exchange([
            a.restore(0, &Lease { checkpoint: known.checkpoint.clone(), ..higher.clone() })
        ])
        .await;
        assert_eq!(
            a.lease(0),
            higher,
            "a lease of a lower epoch is replaced, at the further position"
        );

        let unidentified = Lease { start: None, added: None, ..higher.clone() };
        let rule = "a start and a time of addition are kept";
        a.changes_nothing([a.restore(0, &unidentified)], rule).await;
        a.exchange([a.restore(5, &unidentified), a.restore(5, &higher)]).await;
        assert_eq!(a.lease(5).start, known.start, "a missing start is restored");
        assert_eq!(a.lease(5).added, known.added, "a missing time of addition is restored");
        let (later, earlier) = (Some(4), Some(2));
        a.changes_nothing([a.restore(5, &Lease { added: later, ..higher.clone() })], rule).await;
        a.exchange([a.restore(5, &Lease { added: earlier, ..higher.clone() })]).await;
        assert_eq!(
            a.lease(5).added,
            earlier,
            "the earlier of two times of addition in one epoch is kept"
        );

        let position = Lease { checkpoint: known.checkpoint.clone(), ..Lease::default() };
        a.exchange([a.restore(2, &position)]).await;
        assert_eq!(a.lease(2), position, "without known parents only the position is restored");
        a.exchange([actor::add(2)]).await;
        assert_eq!(a.lease(2).parents, Some(Vec::new()), "unknown parents are added later");
        let finished = Lease { checkpoint: Some(checkpoint("SHARD_END")), ..known };
        a.exchange([a.restore(3, &finished)]).await;
        assert!(
            a.lease(3).is_finished() && a.lease(3).owner.is_none(),
            "a restored finished lease is free"
        );
    }

    pub(super) async fn restores_earlier_origin(&self) {
        let scope = self.scope("origin");
        let mut a = Actor::new(self.store, &scope, "a");
        let anew = |index| {
            let checkpoint = Some(checkpoint("AFTER_SEQUENCE_NUMBER:9"));
            Change::Add { shard: shard(index), parents: Vec::new(), start: None, checkpoint }
        };
        a.exchange([anew(0), anew(1), assign(0, "a")]).await;
        let begun = a.lease(0);
        let known = Lease {
            epoch: 1000,
            origin: begun.origin - 1,
            checkpoint: Some(checkpoint("AFTER_SEQUENCE_NUMBER:3")),
            ..begun.clone()
        };
        let known = Lease { added: Some(3), ..known };
        let nowhere = Lease { checkpoint: None, ..known.clone() };
        a.exchange([a.restore(0, &known), a.restore(1, &nowhere)]).await;
        let lease = a.lease(0);
        assert_eq!(
            lease.checkpoint, known.checkpoint,
            "a lease of a later origin takes the restored position"
        );
        assert!(lease.epoch > begun.epoch, "a lease of a later origin gets a new epoch");
        assert_eq!(lease.owner.as_deref(), Some("a"), "the owner keeps a lease of a later origin");
        assert_eq!(a.lease(1).owner, None, "a free lease stays free");
        assert_eq!(lease.start, known.start, "a lease of a later origin takes the restored start");
        assert_eq!(
            lease.added, known.added,
            "a lease of a later origin takes the restored time of addition"
        );
        assert_eq!(
            lease.origin, known.origin,
            "a lease of a later origin takes the restored origin"
        );
        assert_eq!(a.lease(1).checkpoint, None, "a missing position is restored too");
        a.changes_nothing([a.restore(0, &begun)], "a lease of an earlier origin is kept").await;
        a.changes_nothing(
            [release(0, begun.epoch)],
            "a release in the earlier epoch changes nothing",
        )
        .await;
        a.exchange([anew(2), assign(2, "a")]).await;
        let finished = Lease { checkpoint: Some(checkpoint("SHARD_END")), ..known };
        a.exchange([a.restore(2, &finished)]).await;
        assert!(
            a.lease(2).is_finished() && a.lease(2).owner.is_none(),
            "a lease that is restored as finished is free"
        );
    }
}
