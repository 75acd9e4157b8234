//! The epoch of each shard in a batch.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, RandomState};

use crate::record::Record;

/// The epoch of each shard that has a record in the batch.
///
/// Shards are known by their hash, which needs no copy of their name. Two shards with one hash
/// would end a batch early, and never mix epochs.
#[derive(Debug, Default)]
pub(super) struct ShardEpochs {
    hasher: RandomState,
    epochs: HashMap<u64, u64>,
}

impl ShardEpochs {
    /// Adds the shard of a record. Returns false if the batch has records of its shard in another
    /// epoch.
    pub(super) fn admit(&mut self, record: &Record) -> bool {
        let shard = self.hasher.hash_one((record.stream(), record.shard_id()));
        match self.epochs.entry(shard) {
            Entry::Occupied(epoch) => *epoch.get() == record.epoch(),
            Entry::Vacant(epoch) => {
                epoch.insert(record.epoch());
                true
            }
        }
    }

    pub(super) fn clear(&mut self) {
        self.epochs.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::fixtures::RecordFixture;

    #[test]
    fn shard_is_admitted_in_its_first_epoch_only() {
        let mut epochs = ShardEpochs::default();
        let mut admit = |stream, shard, epoch| {
            let fixture = RecordFixture { stream, shard, epoch, ..RecordFixture::default() };
            epochs.admit(&fixture.record(b""))
        };
        assert!(admit("orders", 0, 7) && admit("orders", 1, 8) && admit("orders", 0, 7));
        assert!(!admit("orders", 0, 8), "a later epoch of shard 0");
        assert!(!admit("orders", 1, 7), "an earlier epoch of shard 1");
        assert!(admit("others", 0, 8), "shard 0 of another stream");
        epochs.clear();
        assert!(epochs.admit(&RecordFixture::default().record(b"")));
    }
}
