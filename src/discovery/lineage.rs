//! The rule for a store with other clients that delete the positions of finished shards.

use std::collections::{BTreeSet, HashMap};

use crate::record::ShardId;
use crate::source::ListedShard;
use crate::store::lease::LeaseTable;

/// Returns the listed shards that the table lacks and of which it has a descendant.
///
/// A shard comes into such a table before its descendants, and leaves it once it is finished. So
/// these shards are finished, although they are still listed.
pub(super) fn left_behind<'a>(
    shards: &'a [ListedShard],
    table: &'a LeaseTable,
) -> BTreeSet<&'a ShardId> {
    let listed: HashMap<&ShardId, &Vec<ShardId>> =
        shards.iter().map(|shard| (&shard.id, &shard.parents)).collect();
    let parents = |id: &ShardId| {
        let stored = table.leases.get(id).and_then(|lease| lease.parents.as_ref());
        listed.get(id).copied().or(stored).into_iter().flatten()
    };
    let mut ancestors = BTreeSet::new();
    let mut left: Vec<&ShardId> = table.leases.keys().collect();
    while let Some(id) = left.pop() {
        left.extend(parents(id).filter(|parent| ancestors.insert(*parent)));
    }
    ancestors.retain(|id| listed.contains_key(id) && !table.leases.contains_key(*id));
    ancestors
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::store::lease::Lease;

    fn id(number: usize) -> ShardId {
        format!("shardId-{number:012}").parse().unwrap()
    }

    fn listed(parents: &[&[usize]]) -> Vec<ListedShard> {
        let shard = |(number, parents): (usize, &&[usize])| ListedShard {
            id: id(number),
            parents: parents.iter().map(|parent| id(*parent)).collect(),
            start: None,
            end: None,
            keys: (0, u128::MAX),
        };
        parents.iter().enumerate().map(shard).collect()
    }

    fn table(numbers: impl IntoIterator<Item = usize>) -> LeaseTable {
        let leases = numbers.into_iter().map(|number| (id(number), Lease::default()));
        LeaseTable { leases: leases.collect(), ..LeaseTable::default() }
    }

    fn found(parents: &[&[usize]], known: &[usize]) -> Vec<usize> {
        let (shards, table) = (listed(parents), table(known.iter().copied()));
        let found = left_behind(&shards, &table);
        (0..parents.len()).filter(|number| found.contains(&id(*number))).collect()
    }

    #[test]
    fn ancestors_of_a_known_shard_are_left_behind() {
        // 0 was split into 1 and 2, 1 and 2 were merged into 3; 4 has no relatives.
        let stream: [&[usize]; 5] = [&[], &[0], &[0], &[1, 2], &[]];
        assert_eq!(found(&stream, &[3]), [0, 1, 2]);
        assert_eq!(found(&stream, &[1]), [0], "a sibling is to be read");
        assert_eq!(found(&stream, &[1, 2, 3]), [0]);
        assert_eq!(found(&stream, &[0]), [0; 0], "children are to be read");
        assert_eq!(found(&stream, &[4]), [0; 0]);
        assert_eq!(found(&stream, &[]), [0; 0]);
    }

    #[test]
    fn parent_of_an_unlisted_shard_is_left_behind() {
        let shards = listed(&[&[]]);
        let mut table = table([7]);
        let lease = table.leases.get_mut(&id(7)).unwrap();
        lease.parents = Some(vec![id(0)]);
        assert_eq!(left_behind(&shards, &table), [&id(0)].into());
    }

    proptest! {
        #[test]
        fn descendants_and_known_shards_are_never_left_behind(
            parents in prop::collection::vec(prop::collection::vec(0..8_usize, 0..3), 1..8),
            known in prop::collection::btree_set(0..8_usize, 0..8),
        ) {
            let shards: Vec<Vec<usize>> = parents
                .into_iter()
                .enumerate()
                .map(|(number, parents)| parents.into_iter().filter(|it| *it < number).collect())
                .collect();
            let of: Vec<&[usize]> = shards.iter().map(Vec::as_slice).collect();
            let known: Vec<usize> = known.into_iter().filter(|it| *it < of.len()).collect();
            let found = found(&of, &known);
            // The descendants of a shard have greater numbers.
            let mut is_ancestor = vec![false; of.len()];
            for child in (0..of.len()).rev() {
                if known.contains(&child) || is_ancestor[child] {
                    of[child].iter().for_each(|parent| is_ancestor[*parent] = true);
                }
            }
            let expected: Vec<usize> =
                (0..of.len()).filter(|it| is_ancestor[*it] && !known.contains(it)).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
