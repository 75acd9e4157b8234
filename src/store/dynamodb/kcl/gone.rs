//! Leases without a row: whether the shard is finished, or its row was lost.
//!
//! # The rule
//!
//! Each lease that is not pending has, or had, a row. A KCL deletes the row of a finished shard once all
//! of its children are read. So the shard of a lease without a row is
//!
//! - finished, if a descendant of it has a row;
//! - lost otherwise: the table was emptied, and the shard is read again.
//!
//! ```text
//!  0 ─┬─ 1 ─┬─ 3 (row)       0  finished: 2 and 3 descend from it
//!     │     └─ 4             1  finished: 3 descends from it
//!     └─ 2 (row)             4  lost: it has no descendant with a row
//! ```
//!
//! The descendants follow from the parents that leases and rows name. Both count: a row of which a KCL
//! alone knows has no lease yet, and a row of another client may name no parents.

use std::collections::{BTreeSet, HashMap};

use super::super::buckets::Bucket;
use super::super::positions::Row;
use super::super::reads::Rows;
use super::reads::SHARD_END;
use super::writes::parsed;
use crate::record::ShardId;
use crate::store::Mark;
use crate::store::lease::parse_lease;

/// The reason why a lease has no row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Gone {
    /// A descendant has a row: a KCL has deleted the row of the finished shard.
    Finished,
    /// No descendant has a row: the table was emptied.
    Lost,
}

/// The parents of each shard.
type Parents = HashMap<ShardId, Vec<ShardId>>;

/// Adds an entry by the rule for each lease without a row. `rows` are all rows of a stream. Leases with a
/// pending write are left out: their rows are yet to be written. The buckets were read first, so each
/// lease has had its row since before the rows were read.
pub(in super::super) fn fill_gone(rows: &mut Rows, buckets: &[Bucket]) {
    let settled = buckets.iter().flat_map(|bucket| {
        let leases = bucket.leases().map(|(shard, _)| shard);
        leases.filter(|shard| !bucket.is_pending_for(shard))
    });
    let missing: Vec<ShardId> =
        settled.filter(|shard| !rows.contains_key(shard) && !Mark::is_one(shard)).collect();
    if missing.is_empty() {
        return;
    }
    let finished = ancestors(rows.keys(), &parents(rows, buckets));
    for shard in missing {
        let (gone, text) = if finished.contains(&shard) {
            (Gone::Finished, Some(SHARD_END.into()))
        } else {
            (Gone::Lost, None)
        };
        rows.insert(shard, Row { text, gone: Some(gone), ..Row::default() });
    }
}

/// Returns the parents that rows and leases name.
fn parents(rows: &Rows, buckets: &[Bucket]) -> Parents {
    let mut parents = Parents::new();
    for (shard, row) in rows {
        let row = row.item.as_ref().and_then(parsed);
        let named = row.into_iter().flat_map(|row| row.parents);
        parents.insert(shard.clone(), named.filter_map(|id| id.parse().ok()).collect());
    }
    for (shard, lease) in buckets.iter().flat_map(Bucket::leases) {
        let named = parse_lease(&lease).and_then(|lease| lease.parents);
        parents.entry(shard).or_default().extend(named.unwrap_or_default());
    }
    parents
}

/// Returns all ancestors of these shards.
fn ancestors<'a>(
    shards: impl Iterator<Item = &'a ShardId>,
    parents: &'a Parents,
) -> BTreeSet<ShardId> {
    let mut ancestors = BTreeSet::new();
    let mut left: Vec<&ShardId> = shards.collect();
    while let Some(shard) = left.pop() {
        let of_shard = parents.get(shard).into_iter().flatten();
        left.extend(of_shard.filter(|parent| ancestors.insert(*parent)));
    }
    ancestors.into_iter().cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::super::super::positions::PositionWrite;
    use super::super::fixtures::{item, shard};
    use super::Gone::{Finished, Lost};
    use super::*;

    /// Returns what is known of these leases, each with its parents, if these shards have rows. The
    /// rows name no parents.
    fn gone(leases: &[(usize, &[usize])], with_rows: &[usize]) -> Vec<(usize, Gone)> {
        found(bucket(leases), with_rows)
    }

    fn bucket(leases: &[(usize, &[usize])]) -> Bucket {
        let mut bucket = Bucket::empty(0);
        for (number, parents) in leases {
            let ids: Vec<String> =
                parents.iter().map(|parent| shard(*parent).to_string()).collect();
            let parents = if ids.is_empty() { "-".to_owned() } else { ids.join(",") };
            bucket.set(&shard(*number), Some(&format!("7 - - 1 {parents} - - - -")));
        }
        bucket
    }

    fn found(bucket: Bucket, with_rows: &[usize]) -> Vec<(usize, Gone)> {
        let row = |number: &usize| {
            let item = Some(item(shard(*number).as_str()));
            (shard(*number), Row { item, ..Row::default() })
        };
        let mut rows: Rows = with_rows.iter().map(row).collect();
        fill_gone(&mut rows, &[bucket]);
        (0..9).filter_map(|number| Some((number, rows.get(&shard(number))?.gone?))).collect()
    }

    /// 0 was split into 1 and 2, and 1 into 3 and 4.
    const LEASES: [(usize, &[usize]); 5] = [(0, &[]), (1, &[0]), (2, &[0]), (3, &[1]), (4, &[1])];

    #[test]
    fn lease_without_a_row_is_finished_if_a_descendant_has_one() {
        assert_eq!(gone(&LEASES, &[0, 1, 2, 3, 4]), []);
        assert_eq!(gone(&LEASES, &[2, 3, 4]), [(0, Finished), (1, Finished)]);
        assert_eq!(gone(&LEASES, &[2, 3]), [(0, Finished), (1, Finished), (4, Lost)]);
        assert_eq!(gone(&LEASES, &[3, 4]), [(0, Finished), (1, Finished), (2, Lost)]);
        let all_lost = [0, 1, 2, 3, 4].map(|number| (number, Lost));
        assert_eq!(gone(&LEASES, &[]), all_lost, "the table was emptied");
    }

    #[test]
    fn row_that_is_yet_to_be_written_is_not_missing() {
        let mut bucket = bucket(&LEASES);
        bucket.postpone(&shard(0), &PositionWrite::default());
        bucket.postpone(&shard(4), &PositionWrite::default());
        assert_eq!(found(bucket, &[2, 3]), [(1, Finished)]);
    }
}
