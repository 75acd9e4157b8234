//! The leases, in a fixed number of items.
//!
//! Each shard belongs to one of 64 buckets by a hash of its id. A bucket is one item:
//!
//! | attribute | content |
//! |---|---|
//! | `leases` | a map from shard ids to lease texts |
//! | `rev` | a mark that differs after each write of the item |
//! | `pending` | the positions that a large step has yet to write, see the [store](super) |
//!
//! So a step of any number of shards writes at most 64 items of leases, which leaves room for others
//! in a transaction of 100, and a change of one lease writes a 64th of them. With 1,000 shards, a
//! bucket has about 3 KB. An item may have 400 KB, and a transaction 4 MB, which is enough for the
//! leases and the pending positions of 15,000 shards.

use std::collections::HashMap;
use std::sync::Arc;

use aws_sdk_dynamodb::types::AttributeValue;
use md5::{Digest, Md5};

use super::expressions::{Expressions, Item, read_text, text, text_of};
use super::layout::{Kind, sort_key};
use super::positions::PositionWrite;
use crate::record::ShardId;

const BUCKETS: u8 = 64;

const LEASES: &str = "leases";
const PENDING: &str = "pending";
const REV: &str = "rev";

/// Returns the bucket of a shard. A change of this function changes the layout.
pub(super) fn bucket_of(shard: &ShardId) -> u8 {
    Md5::digest(shard.as_str())[0] % BUCKETS
}

/// The leases of a share of the shards.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Bucket {
    pub(super) number: u8,
    /// The mark of the last write; `None` if the item does not exist.
    rev: Option<Arc<str>>,
    /// The texts. Keys that are not shard ids stay as they are.
    leases: HashMap<String, AttributeValue>,
    pending: HashMap<String, AttributeValue>,
}

impl Bucket {
    /// Creates a bucket without leases.
    pub(super) fn empty(number: u8) -> Self {
        Self { number, ..Self::default() }
    }

    /// Reads an item; `None` for an item of another kind.
    pub(super) fn read(item: &Item) -> Option<Self> {
        let Kind::Leases(number) = Kind::of(sort_key(item)) else { return None };
        let map = |name: &str| item.get(name).and_then(|value| value.as_m().ok());
        Some(Self {
            number,
            rev: text_of(item, REV),
            leases: map(LEASES).cloned().unwrap_or_default(),
            pending: map(PENDING).cloned().unwrap_or_default(),
        })
    }

    /// Returns the text of a lease, if there is one.
    pub(super) fn lease(&self, shard: &ShardId) -> Option<Arc<str>> {
        self.leases.get(shard.as_str()).map(read_text)
    }

    /// Returns the shards with their lease texts. Keys that are not shard ids are left out.
    pub(super) fn leases(&self) -> impl Iterator<Item = (ShardId, Arc<str>)> {
        self.leases.iter().filter_map(|(id, value)| Some((shard_of(id)?, read_text(value))))
    }

    /// Sets the text of a lease; `None` removes it.
    pub(super) fn set(&mut self, shard: &ShardId, lease: Option<&str>) {
        match lease {
            Some(lease) => self.leases.insert(shard.to_string(), text(lease)),
            None => self.leases.remove(shard.as_str()),
        };
    }

    /// Notes the write of a position that is yet to be made.
    pub(super) fn postpone(&mut self, shard: &ShardId, write: &PositionWrite) {
        self.pending.insert(shard.to_string(), write.value());
    }

    /// Returns true if writes of positions are yet to be made.
    pub(super) fn is_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Returns true if the position of this shard is yet to be written.
    pub(super) fn is_pending_for(&self, shard: &ShardId) -> bool {
        self.pending.contains_key(shard.as_str())
    }

    /// Removes up to `limit` of the writes that are yet to be made, and returns them.
    pub(super) fn take_pending(&mut self, limit: usize) -> Vec<(ShardId, PositionWrite)> {
        let ids: Vec<String> = self.pending.keys().take(limit).cloned().collect();
        let taken = ids.into_iter().filter_map(|id| {
            let value = self.pending.remove(&id)?;
            Some((shard_of(&id)?, PositionWrite::read(&value)))
        });
        taken.collect()
    }

    /// Returns the condition that the item is as it was read.
    pub(super) fn condition(&self) -> Expressions {
        Expressions::default().require(REV, self.rev.as_deref().map(text))
    }

    /// Returns the update that writes the leases and the pending writes.
    pub(super) fn update(&self, condition: Expressions) -> Expressions {
        let pending = self.is_pending().then(|| AttributeValue::M(self.pending.clone()));
        condition
            .set(LEASES, Some(AttributeValue::M(self.leases.clone())))
            .set(PENDING, pending)
            .set(REV, Some(text(format!("{:016x}", fastrand::u64(..)))))
    }
}

fn shard_of(id: &str) -> Option<ShardId> {
    let shard = id.parse().ok();
    if shard.is_none() {
        tracing::warn!(key = id, "lease ignored: its key is not a shard id");
    }
    shard
}

#[cfg(test)]
mod tests {
    use super::super::layout;
    use super::super::positions::Named;
    use super::*;

    fn shard(index: usize) -> ShardId {
        format!("shardId-{index:012}").parse().unwrap()
    }

    /// Stored leases are found by this number.
    #[test]
    fn bucket_of_a_shard_never_changes() {
        let known = [0, 1, 2, 12_345].map(|index| bucket_of(&shard(index)));
        assert_eq!(known, [47, 29, 2, 22]);
    }

    #[test]
    fn shards_are_spread_over_all_buckets() {
        let mut counts = [0; BUCKETS as usize];
        for index in 0..6400 {
            counts[usize::from(bucket_of(&shard(index)))] += 1;
        }
        assert!(counts.iter().all(|count| (50..160).contains(count)), "{counts:?}");
    }

    #[test]
    fn bucket_keeps_what_it_does_not_know() {
        let mut item = layout::key("a:s", &layout::leases(7));
        let leases = HashMap::from([("{}".to_owned(), text("x"))]);
        item.insert(LEASES.to_owned(), AttributeValue::M(leases));
        let mut bucket = Bucket::read(&item).unwrap();
        assert_eq!(bucket.leases().count(), 0, "a key that is not a shard id is no lease");
        bucket.set(&shard(1), Some("1 -"));
        assert_eq!(bucket.lease(&shard(1)).as_deref(), Some("1 -"));
        assert_eq!(bucket.leases().count(), 1);
        assert_eq!(bucket.leases.len(), 2, "it is written again");
        bucket.set(&shard(1), None);
        assert_eq!(bucket.leases().count(), 0);
    }

    #[test]
    fn pending_writes_are_taken_in_portions() {
        let mut bucket = Bucket::empty(7);
        let write = PositionWrite { text: Named::Text(None), expected: Named::Open };
        for index in 0..5 {
            bucket.postpone(&shard(index), &write);
        }
        assert!(bucket.is_pending_for(&shard(3)));
        let mut taken = bucket.take_pending(3);
        assert_eq!((taken.len(), bucket.is_pending()), (3, true));
        taken.extend(bucket.take_pending(3));
        assert!(!bucket.is_pending());
        taken.sort_by(|one, other| one.0.cmp(&other.0));
        assert_eq!(taken, (0..5).map(|index| (shard(index), write.clone())).collect::<Vec<_>>());
    }
}
