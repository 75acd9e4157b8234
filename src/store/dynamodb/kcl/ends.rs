//! The ends of shards, as a KCL reads them.

use std::collections::{BTreeMap, BTreeSet};

use tokio::time::sleep;

use super::super::buckets::Bucket;
use super::super::reads::{Rows, Whole};
use super::super::requests::{Partition, Updated};
use super::reads::SHARD_END;
use super::writes::parsed;
use super::{Gone, row};
use crate::backoff::{Backoff, CONFLICTS};
use crate::error::Result;
use crate::record::ShardId;
use crate::store::lease::{EntryKey, Step, parse_lease};

/// The attempts to write one end. The next read of the whole table repeats it.
const ATTEMPTS: u32 = 3;

/// The children of each shard, by the leases.
type Children = BTreeMap<ShardId, BTreeSet<ShardId>>;

impl Partition<'_> {
    /// Writes the end of each of these shards as a KCL reads it, if this crate has saved the end, and
    /// all children are in the lease table.
    ///
    /// Each child with a visible lease has a row, or had one. Two workers, one that saves the end and
    /// one that adds the children, call this after their writes, so that one of them sees both.
    ///
    /// Cancel safe: a KCL sees the end or not. A later read of the whole table repeats the call.
    pub(in super::super) async fn show_ends(&self, ended: BTreeSet<ShardId>) -> Result<()> {
        let Some(kcl) = self.kcl else { return Ok(()) };
        if ended.is_empty() {
            return Ok(());
        }
        let mut children = children_of(&self.all_buckets().await?);
        children.retain(|shard, _| ended.contains(shard));
        let beside = self.beside(kcl);
        let mut backoff = Backoff::new(CONFLICTS);
        for _ in 0..ATTEMPTS {
            let both = children
                .iter()
                .flat_map(|(shard, children)| std::iter::once(shard).chain(children).cloned());
            let rows = self.kcl_rows(kcl, &both.collect()).await?;
            let mut left = Children::new();
            for (shard, of_shard) in children {
                let Some(item) = rows.get(&shard).and_then(|row| row.item.as_ref()) else {
                    continue;
                };
                let names = of_shard.iter().map(ToString::to_string).collect();
                let Some(after) = parsed(item).and_then(|row| row.ended(&names)) else { continue };
                if !of_shard.iter().all(|child| has_row(&rows, child)) {
                    continue;
                }
                let change = row::write(Some(item), Some(&after));
                if let Updated::Refused(_) = beside.update(&kcl.key(&shard), &change).await? {
                    left.insert(shard, of_shard);
                }
            }
            children = left;
            if children.is_empty() {
                return Ok(());
            }
            sleep(backoff.failed()).await;
        }
        Ok(())
    }

    /// Shows the ends that an earlier call has left.
    pub(in super::super) async fn show_ends_of(&self, whole: &Whole) -> Result<()> {
        if self.kcl.is_none() {
            return Ok(());
        }
        let is_due = |shard: &ShardId| {
            let row = whole.rows.get(shard).and_then(|row| row.item.as_ref()).and_then(parsed);
            row.is_some_and(|row| row.ended(&BTreeSet::new()).is_some())
        };
        let children = children_of(&whole.buckets);
        self.show_ends(children.into_keys().filter(is_due).collect()).await
    }
}

/// Returns the shards that may have an end to show after a step: those that it ends, and the
/// parents of those that it adds.
pub(in super::super) fn ended_by(step: &Step) -> BTreeSet<ShardId> {
    let ended = step.entries.iter().flat_map(|change| match (&change.key, &change.text) {
        (EntryKey::Position(shard), Some(text)) if **text == *SHARD_END => vec![shard.clone()],
        (EntryKey::Lease(_), Some(lease)) if change.expected.is_none() => {
            parse_lease(lease).and_then(|lease| lease.parents).unwrap_or_default()
        }
        _ => Vec::new(),
    });
    ended.collect()
}

fn children_of(buckets: &[Bucket]) -> Children {
    let mut children = Children::new();
    for (shard, lease) in buckets.iter().flat_map(Bucket::leases) {
        for parent in parse_lease(&lease).and_then(|lease| lease.parents).unwrap_or_default() {
            children.entry(parent).or_default().insert(shard.clone());
        }
    }
    children
}

/// Returns true if a shard has a row, or had one that a KCL has deleted.
fn has_row(rows: &Rows, shard: &ShardId) -> bool {
    rows.get(shard).is_some_and(|row| row.item.is_some() || row.gone == Some(Gone::Finished))
}
