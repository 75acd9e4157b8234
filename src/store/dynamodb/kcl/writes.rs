//! The write of a step to a row.

use super::super::expressions::{Expressions, Item};
use super::super::positions::{Named, PositionWrite, Row as StoredRow, fence_of};
use super::reads::{SHARD_END, latest};
use super::row::{self, Row, RowPosition, TableItem};
use super::{Gone, Kcl};
use crate::record::ShardId;
use crate::store::lease::parse_lease;

/// The write to a row.
#[derive(Debug)]
pub(in super::super) enum RowChange {
    Write(Expressions),
    Delete(Expressions),
}

impl Kcl<'_> {
    /// Returns the condition that a row is as it was read.
    pub(in super::super) fn as_read(row: Option<&StoredRow>) -> Expressions {
        row::write(row.and_then(|row| row.item.as_ref()), None)
    }

    /// Returns the write that gives a row the position of a step, and the epoch and the owner of the
    /// lease; `None` if nothing is to be written.
    pub(in super::super) fn change(
        self,
        shard: &ShardId,
        seen: Option<&StoredRow>,
        lease: Option<&str>,
        write: &PositionWrite,
    ) -> Option<RowChange> {
        let epoch: Option<u64> = fence_of(lease).and_then(|epoch| epoch.parse().ok());
        let parsed = lease.and_then(parse_lease).unwrap_or_default();
        let owner = parsed.owner.as_deref();
        let named = match &write.text {
            Named::Open => None,
            Named::Text(text) => Some(text.as_deref()),
        };
        let Some(item) = seen.and_then(|row| row.item.as_ref()) else {
            // A finished shard needs no row if a descendant has one, by which a KCL and this crate see
            // that it is finished.
            let gone = seen.and_then(|row| row.gone);
            let is_finished = lease.is_some()
                && gone != Some(Gone::Lost)
                && (named == Some(Some(SHARD_END)) || named.is_none() && gone.is_some());
            if is_finished || lease.is_none() && named.flatten().is_none() {
                return None;
            }
            let known = seen.and_then(|row| row.text.as_deref());
            let position = named.unwrap_or(known).unwrap_or_default();
            let after = self.new_row(shard, position, parsed.parents.as_deref());
            let after = after.claimed(&self.mark(), epoch, owner);
            return Some(RowChange::Write(row::write(None, Some(&after))));
        };
        if lease.is_none() && named == Some(None) {
            return Some(RowChange::Delete(row::write(Some(item), None)));
        }
        let TableItem::Lease { row: before, .. } = TableItem::parse(item) else { return None };
        let Ok(before) = before else {
            // Only an operator replaces a row that cannot be read.
            let position = named.flatten()?;
            let counter = Row::counter_of(item);
            let after = Row { counter, ..self.new_row(shard, position, parsed.parents.as_deref()) };
            let after = after.claimed(&self.mark(), epoch, owner);
            return Some(RowChange::Write(row::write(Some(item), Some(&after))));
        };
        let mut after = before.clone();
        if let Some(position) = named {
            after = after.saved(position.unwrap_or_default());
        } else if epoch.is_some() && before.position() == RowPosition::Latest {
            after = after.saved(&latest());
        }
        let is_claimed = before.epoch == epoch
            && before.checkpoint_owner.is_none()
            && before.owner.as_deref() == owner
            && before.claimed_by.as_deref() == owner;
        if !is_claimed {
            after = after.claimed(&self.mark(), epoch, owner);
        }
        (after != before).then(|| RowChange::Write(row::write(Some(item), Some(&after))))
    }

    /// Returns the row of a shard that has none.
    pub(super) fn new_row(
        self,
        shard: &ShardId,
        position: &str,
        parents: Option<&[ShardId]>,
    ) -> Row {
        let parents = parents.into_iter().flatten().map(ToString::to_string).collect();
        let stream = self.with(|known| known.stream.clone().flatten());
        let names = stream.map(|stream| (stream, shard.to_string()));
        Row { names, ..Row::new(&self.mark(), position, parents) }
    }
}

/// Returns the row that a write is to lead to, to be compared with the one that is stored.
pub(super) fn parsed(item: &Item) -> Option<Row> {
    match TableItem::parse(item) {
        TableItem::Lease { row: Ok(row), .. } => Some(row),
        _ => None,
    }
}
