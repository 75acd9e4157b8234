//! Shards of the same id in two streams.

use super::actor::{self, Actor, assign, identify, number};
use tokio::time::sleep;

use super::{LeaseSuite, SHORT, checkpoint, shard};
use crate::store::lease::{AdminEdit, Change, EditOutcome, IfLeased, Lease, SaveOutcome};

impl LeaseSuite<'_> {
    pub(super) async fn distinguishes_streams_by_start(&self) {
        let scope = self.scope("identity");
        let mut a = Actor::new(self.store, &scope, "a");
        let replace = |index, start: &str| Change::Replace {
            shard: shard(index),
            parents: vec![shard(7)],
            start: number(start),
            checkpoint: checkpoint("TRIM_HORIZON"),
        };
        a.exchange((0..2).flat_map(|index| [actor::add(index), assign(index, "a")])).await;
        a.changes_nothing([identify(0, None)], "a listing without a start changes nothing").await;
        a.changes_nothing([identify(9, Some("5"))], "an unknown shard is not identified").await;
        a.changes_nothing([replace(9, "5")], "an unknown shard is not replaced").await;
        let epoch = a.lease(0).epoch;
        let added = a.lease(0).added;
        assert!(added.is_some(), "an added shard has the time of the addition");
        sleep(SHORT).await;
        a.exchange([identify(0, Some("5"))]).await;
        assert_eq!(a.lease(0).added, added, "the time of the addition is kept");
        assert_eq!(a.lease(0).start, Some(number("5")), "a listed start is stored");
        assert_eq!(a.lease(0).epoch, epoch, "identifying a shard keeps the epoch");
        a.changes_nothing([identify(0, Some("6"))], "a known start is kept").await;
        a.changes_nothing([replace(0, "5")], "a shard of the same start is not replaced").await;

        a.exchange([Change::Finish { shard: shard(0), epoch }, replace(0, "90")]).await;
        let lease = a.lease(0);
        assert_eq!(
            lease.checkpoint,
            Some(checkpoint("TRIM_HORIZON")),
            "a replaced shard gets the new position"
        );
        assert_eq!(
            lease.start,
            Some(number("90")),
            "a replaced shard has the start of the new stream"
        );
        assert_eq!(
            lease.parents,
            Some(vec![shard(7)]),
            "a replaced shard has the parents of the new stream"
        );
        assert!(
            lease.epoch > epoch && lease.owner.is_none(),
            "a replaced finished shard is free in a new epoch"
        );
        assert!(lease.added > added, "a replaced shard has a new time of addition");
        a.save(0, epoch, "AFTER_SEQUENCE_NUMBER:7", SaveOutcome::Lost).await;

        a.exchange([actor::add(2), assign(2, "a"), identify(2, Some("5"))]).await;
        let owned = a.lease(2);
        a.exchange([replace(2, "90")]).await;
        let lease = a.lease(2);
        assert_eq!(lease.start, Some(number("90")), "an owned shard is replaced");
        assert!(lease.epoch > owned.epoch, "an owned shard that is replaced has a new epoch");
        assert_eq!(lease.owner, owned.owner, "the owner keeps the lease of a replaced shard");
        a.save(2, owned.epoch, "AFTER_SEQUENCE_NUMBER:7", SaveOutcome::Lost).await;

        let owned = a.lease(1);
        a.exchange([identify(1, Some("5")), Change::MarkExpired { shard: shard(1) }]).await;
        let lost = a.lease(1);
        assert!(
            lost.is_shard_expired && lost.owner.is_none(),
            "an owned shard that expires is free"
        );
        assert!(lost.epoch > owned.epoch, "an owned shard that expires has a new epoch");
        a.save(1, owned.epoch, "AFTER_SEQUENCE_NUMBER:7", SaveOutcome::Lost).await;
        a.changes_nothing(
            [identify(1, Some("6"))],
            "an expired shard stays expired if another start is listed",
        )
        .await;
        a.changes_nothing(
            [identify(1, None)],
            "an expired shard stays expired if no start is listed",
        )
        .await;
        a.exchange([identify(1, Some("5"))]).await;
        assert!(!a.lease(1).is_shard_expired, "a shard that is listed again is not expired");
        a.exchange([Change::MarkExpired { shard: shard(1) }, replace(1, "90")]).await;
        assert!(!a.lease(1).is_shard_expired, "a replaced shard is not expired");

        let positions = vec![(shard(1), checkpoint("AFTER_SEQUENCE_NUMBER:8"))];
        let set = AdminEdit::Set { positions };
        assert_eq!(self.edit(&scope, &set, IfLeased::Refuse).await, EditOutcome::Applied);
        a.look().await;
        assert_eq!(a.lease(1).start, None, "setting a position drops the start");
        assert!(a.lease(1).added > added, "setting a position renews the time of addition");

        // The lease as an earlier version stored it.
        let old = Lease { added: None, epoch: a.lease(1).epoch + 1000, ..a.lease(1) };
        a.exchange([a.restore(6, &old)]).await;
        assert_eq!(
            a.lease(6).added,
            None,
            "a restored lease without a time of addition stays without one"
        );
        a.exchange([identify(6, None)]).await;
        assert!(a.lease(6).added > added, "a listing stores a missing time of addition");
    }
}
