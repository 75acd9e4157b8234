//! Whose position it is: shards of the same name in two streams.

use super::actor::{self, Actor, assign, identify, number};
use tokio::time::sleep;

use super::{SHORT, Suite, checkpoint, shard};
use crate::store::lease::{Change, AdminEdit, Lease, SaveOutcome};

impl Suite<'_> {
    pub(super) async fn knows_whose_position_it_is(&self) {
        let scope = self.scope("identity");
        let mut a = Actor::new(self.store, &scope, "a");
        let replace = |index, start: &str| Change::Replace {
            shard: shard(index),
            parents: vec![shard(7)],
            start: number(start),
            checkpoint: checkpoint("TRIM_HORIZON"),
        };
        a.exchange((0..2).flat_map(|index| [actor::add(index), assign(index, "a")])).await;
        a.changes_nothing([identify(0, None)], "a listing may lack the start").await;
        a.changes_nothing([identify(9, Some("5"))], "an unknown shard is not identified").await;
        a.changes_nothing([replace(9, "5")], "an unknown shard is not replaced").await;
        let epoch = a.lease(0).epoch;
        let added = a.lease(0).added;
        assert!(added.is_some(), "a shard has the time at which it was added");
        sleep(SHORT).await;
        a.exchange([identify(0, Some("5"))]).await;
        assert_eq!(a.lease(0).added, added, "a shard is added once");
        assert_eq!(a.lease(0).start, Some(number("5")), "a start is learned");
        assert_eq!(a.lease(0).epoch, epoch, "an owner keeps a lease that is identified");
        a.changes_nothing([identify(0, Some("6"))], "a start that is known stays").await;
        a.changes_nothing([replace(0, "5")], "the same shard is not replaced").await;

        a.exchange([Change::Finish { shard: shard(0), epoch }, replace(0, "90")]).await;
        let lease = a.lease(0);
        assert_eq!(lease.checkpoint, Some(checkpoint("TRIM_HORIZON")), "it begins anew");
        assert_eq!(lease.start, Some(number("90")), "it has the start of the other stream");
        assert_eq!(lease.parents, Some(vec![shard(7)]), "it has the parents of the other stream");
        assert!(lease.epoch > epoch && lease.owner.is_none(), "it is free in a new epoch");
        assert!(lease.added > added, "it is added again");
        a.save(0, epoch, "AFTER_SEQUENCE_NUMBER:7", SaveOutcome::Lost).await;

        a.exchange([actor::add(2), assign(2, "a"), identify(2, Some("5"))]).await;
        let owned = a.lease(2);
        a.exchange([replace(2, "90")]).await;
        let lease = a.lease(2);
        assert_eq!(lease.start, Some(number("90")), "a shard that is read is replaced");
        assert!(lease.epoch > owned.epoch, "a shard that is replaced while read has a new epoch");
        assert_eq!(lease.owner, owned.owner, "its owner keeps it, so that no other begins");
        a.save(2, owned.epoch, "AFTER_SEQUENCE_NUMBER:7", SaveOutcome::Lost).await;

        let owned = a.lease(1);
        a.exchange([identify(1, Some("5")), Change::MarkExpired { shard: shard(1) }]).await;
        let lost = a.lease(1);
        assert!(lost.is_shard_expired && lost.owner.is_none(), "a shard that is lost while read is free");
        assert!(lost.epoch > owned.epoch, "a shard that is lost while read has a new epoch");
        a.save(1, owned.epoch, "AFTER_SEQUENCE_NUMBER:7", SaveOutcome::Lost).await;
        a.changes_nothing([identify(1, Some("6"))], "a shard of another start stays lost").await;
        a.changes_nothing([identify(1, None)], "a listing without a start proves nothing").await;
        a.exchange([identify(1, Some("5"))]).await;
        assert!(!a.lease(1).is_shard_expired, "a shard that is listed again is not lost");
        a.exchange([Change::MarkExpired { shard: shard(1) }, replace(1, "90")]).await;
        assert!(!a.lease(1).is_shard_expired, "a replaced shard is not lost");

        let positions = vec![(shard(1), checkpoint("AFTER_SEQUENCE_NUMBER:8"))];
        let set = AdminEdit::Set { positions };
        assert!(matches!(self.store.edit(&scope, &set, false).await, Ok(None)));
        a.look().await;
        assert_eq!(a.lease(1).start, None, "a position that was set is of any stream");
        assert!(a.lease(1).added > added, "a position that was set counts from then");

        // As an earlier version has stored it.
        let old = Lease { added: None, epoch: a.lease(1).epoch + 1000, ..a.lease(1) };
        a.exchange([a.restore(6, &old)]).await;
        assert_eq!(a.lease(6).added, None, "the time of an addition is not made up");
        a.exchange([identify(6, None)]).await;
        assert!(a.lease(6).added > added, "a listing says until when nothing was lost");
    }
}
