//! Discovery of a stream's shards, and the order in which they may be read.
//!
//! ```text
//!            every parent finished,
//!            or unordered reading
//!   waiting ────────────────────────► readable ── every record acknowledged ──► finished
//! ```
//!
//! The states follow from the lease table that the workers of an application share. A parent that
//! is not in the table has left retention, and its children do not wait for it.

mod changes;
mod confirmation;
mod failure_patience;
mod identity;
mod listing;
mod loss;
mod migrated_positions;
mod scope_migration;
mod start;
mod stream_shards;
mod unlisted;

use crate::record::ShardId;
use crate::store::lease::{Lease, LeaseTable};

pub(crate) use changes::{Changes, ShardStart};
pub(crate) use confirmation::Confirmations;
pub(crate) use listing::{Memory, ShardDiscovery};
pub(crate) use loss::{Loss, Report};
pub(crate) use scope_migration::ScopeMigration;
pub(crate) use start::Start;
pub use start::{ShardPosition, StartingPosition};
pub(crate) use stream_shards::StreamShards;

/// The order in which a shard and its children are read.
///
/// ```no_run
/// # fn example(client: aws_sdk_kinesis::Client) -> kinestream::Result<()> {
/// use kinestream::{Consumer, ShardOrdering};
///
/// let consumer =
///     Consumer::builder(client, "orders").ordering(ShardOrdering::Unordered).build()?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum ShardOrdering {
    /// Reads a shard only when all its parents are read to the end and every record of them is
    /// acknowledged. The records of one partition key are delivered in order, also over a split or
    /// a merge.
    #[default]
    ParentFirst,
    /// Reads every shard at once, without waiting for its parents.
    Unordered,
}

/// Returns the shards that may be read now.
pub(crate) fn readable(
    table: &LeaseTable,
    ordering: ShardOrdering,
) -> impl Iterator<Item = &ShardId> {
    let readable =
        table.leases.iter().filter(move |(_, lease)| is_readable(table, lease, ordering));
    readable.map(|(shard, _)| shard)
}

/// Returns true if the shard of the lease may be read now.
pub(crate) fn is_readable(table: &LeaseTable, lease: &Lease, ordering: ShardOrdering) -> bool {
    // Without known parents, no listing has shown the shard yet.
    let Some(parents) = &lease.parents else { return false };
    let may_begin = ordering == ShardOrdering::Unordered
        || parents.iter().all(|parent| table.leases.get(parent).is_none_or(Lease::is_finished));
    may_begin && !lease.is_finished() && !lease.is_shard_expired && lease.unreadable.is_none()
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
        readable(table, ordering).cloned().collect()
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
