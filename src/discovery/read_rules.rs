//! The rules by which a worker reads: which shards, and in which order.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::ShardOrdering;
use crate::record::ShardId;
use crate::store::lease::{Lease, LeaseTable};

/// The shards that a worker reads, and their order.
#[derive(Debug, Clone, Default)]
pub(crate) struct ReadRules {
    pub(crate) ordering: ShardOrdering,
    /// The only shards that are read; `None` to read all shards.
    pub(crate) only: Option<Arc<BTreeSet<ShardId>>>,
}

impl ReadRules {
    /// Returns true if the worker reads some shards only.
    pub(crate) fn is_partial(&self) -> bool {
        self.only.is_some()
    }

    /// Returns true if the worker reads the shard, now or later.
    pub(crate) fn selects(&self, shard: &ShardId) -> bool {
        self.only.as_ref().is_none_or(|only| only.contains(shard))
    }

    /// Returns the shards that the caller has named.
    pub(crate) fn named(&self) -> impl Iterator<Item = &ShardId> {
        self.only.iter().flat_map(|only| only.iter())
    }

    /// Returns the shards that may be read now.
    pub(crate) fn readable<'a>(&self, table: &'a LeaseTable) -> impl Iterator<Item = &'a ShardId> {
        let readable =
            table.leases.iter().filter(|(shard, lease)| self.is_readable(table, shard, lease));
        readable.map(|(shard, _)| shard)
    }

    /// Returns true if the shard of the lease may be read now.
    pub(crate) fn is_readable(&self, table: &LeaseTable, shard: &ShardId, lease: &Lease) -> bool {
        self.selects(shard) && self.may_begin(table, lease) && is_open(lease)
    }

    /// Returns true if no parent of the shard holds it back.
    pub(crate) fn may_begin(&self, table: &LeaseTable, lease: &Lease) -> bool {
        // Without known parents, no listing has shown the shard yet.
        let Some(parents) = &lease.parents else { return false };
        let is_over = |parent: &ShardId| table.leases.get(parent).is_none_or(Lease::is_finished);
        self.ordering == ShardOrdering::Unordered
            || parents.iter().all(|parent| !self.selects(parent) || is_over(parent))
    }
}

/// Returns true if the shard has records to read, as far as its lease shows.
pub(crate) fn is_open(lease: &Lease) -> bool {
    !lease.is_finished() && !lease.is_shard_expired && lease.unreadable.is_none()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::checkpoint::Checkpoint;

    fn id(number: usize) -> ShardId {
        format!("shardId-{number:012}").parse().unwrap()
    }

    fn table(shards: &[(usize, &[usize])]) -> LeaseTable {
        let mut table = LeaseTable::default();
        for (number, parents) in shards {
            let parents = Some(parents.iter().copied().map(id).collect());
            table.leases.insert(id(*number), Lease { parents, ..Lease::default() });
        }
        table
    }

    fn finish(table: &mut LeaseTable, shard: &ShardId) {
        table.leases.get_mut(shard).unwrap().checkpoint = Some(Checkpoint::ShardEnd);
    }

    fn shards(table: &LeaseTable, ordering: ShardOrdering) -> Vec<ShardId> {
        ReadRules { ordering, only: None }.readable(table).cloned().collect()
    }

    fn only(table: &LeaseTable, numbers: &[usize]) -> Vec<ShardId> {
        let only = Some(Arc::new(numbers.iter().copied().map(id).collect()));
        ReadRules { only, ..ReadRules::default() }.readable(table).cloned().collect()
    }

    #[test]
    fn merged_child_waits_for_both_parents() {
        let mut table = table(&[(2, &[0, 1]), (1, &[]), (0, &[])]);
        assert_eq!(shards(&table, ShardOrdering::ParentFirst), [id(0), id(1)]);
        assert_eq!(shards(&table, ShardOrdering::Unordered), [id(0), id(1), id(2)]);
        finish(&mut table, &id(0));
        assert_eq!(shards(&table, ShardOrdering::ParentFirst), [id(1)]);
        finish(&mut table, &id(1));
        assert_eq!(shards(&table, ShardOrdering::ParentFirst), [id(2)]);
    }

    #[test]
    fn child_of_an_unknown_parent_is_readable() {
        assert_eq!(shards(&table(&[(7, &[3])]), ShardOrdering::ParentFirst), [id(7)]);
    }

    #[test]
    fn child_of_an_expired_parent_waits() {
        let mut table = table(&[(3, &[]), (7, &[3])]);
        table.leases.get_mut(&id(3)).unwrap().is_shard_expired = true;
        assert_eq!(shards(&table, ShardOrdering::ParentFirst), []);
    }

    #[test]
    fn unlisted_shard_with_a_position_is_not_readable() {
        let mut table = table(&[(7, &[3])]);
        table.leases.insert(id(3), Lease::default());
        assert_eq!(shards(&table, ShardOrdering::ParentFirst), []);
        assert_eq!(shards(&table, ShardOrdering::Unordered), [id(7)]);
    }

    #[test]
    fn only_a_selected_parent_holds_a_shard_back() {
        let mut table = table(&[(2, &[0, 1]), (1, &[]), (0, &[])]);
        assert_eq!(only(&table, &[2]), [id(2)]);
        assert_eq!(only(&table, &[0, 2]), [id(0)]);
        finish(&mut table, &id(0));
        assert_eq!(only(&table, &[0, 2]), [id(2)]);
    }

    proptest! {
        /// Finishes the shards of random trees as they become readable: each shard becomes readable
        /// once, and never before its parents are finished.
        #[test]
        fn shards_become_readable_once_and_after_their_parents(
            parents in prop::collection::vec(prop::collection::vec(any::<prop::sample::Index>(), 0..3), 1..30),
            ordering in prop_oneof![Just(ShardOrdering::ParentFirst), Just(ShardOrdering::Unordered)],
        ) {
            let mut table = LeaseTable::default();
            for (number, picks) in parents.iter().enumerate() {
                let older = picks.iter().filter(|_| number > 0).map(|pick| id(pick.index(number)));
                let parents = Some(older.collect());
                table.leases.insert(id(number), Lease { parents, ..Lease::default() });
            }
            let mut seen = 0;
            loop {
                let opened = shards(&table, ordering);
                if opened.is_empty() {
                    break;
                }
                for shard in &opened {
                    let parents = table.leases[shard].parents.as_ref().unwrap();
                    let finished = parents.iter().all(|parent| table.leases[parent].is_finished());
                    prop_assert!(ordering == ShardOrdering::Unordered || finished);
                    seen += 1;
                }
                for shard in opened {
                    finish(&mut table, &shard);
                }
            }
            prop_assert_eq!(seen, parents.len());
        }
    }
}
