//! The item of a shard's position, and the fence of its saves.
//!
//! Each position is an item of its own:
//!
//! | attribute | content |
//! |---|---|
//! | `text` | the text of the position |
//! | `fence` | the epoch of the lease under which the position may be saved |
//! | `saver` | a mark of the last save, by which the store recognizes a save whose answer was lost |
//!
//! No other module names these items or their attributes.

use std::sync::Arc;

use aws_sdk_dynamodb::types::{AttributeValue, TransactWriteItem};

use super::expressions::{Expressions, Item, read_text, text, text_of};
use super::kcl::{Gone, Kcl, RowChange};
use super::layout::{Kind, TEXT, position, sort_key};
use super::requests::Partition;
use crate::error::Result;
use crate::record::ShardId;
use crate::store::lease::parse_lease;

const FENCE: &str = "fence";
const SAVER: &str = "saver";

/// The stored position of a shard.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Row {
    pub(super) text: Option<Arc<str>>,
    /// The epoch in which it may be saved; `None` if no save succeeds.
    pub(super) fence: Option<Arc<str>>,
    /// The mark of the last save.
    pub(super) saver: Option<Arc<str>>,
    /// In the table of a KCL: the row as it was read.
    pub(super) item: Option<Item>,
    /// In the table of a KCL: the worker that holds the row.
    pub(super) holder: Option<Arc<str>>,
    /// In the table of a KCL: why a lease has no row.
    pub(super) gone: Option<Gone>,
}

impl Row {
    /// Reads an item, which may not exist.
    pub(super) fn read(item: Option<&Item>) -> Self {
        let attribute = |name| item.and_then(|item| text_of(item, name));
        let (text, fence, saver) = (attribute(TEXT), attribute(FENCE), attribute(SAVER));
        Self { text, fence, saver, ..Self::default() }
    }
}

/// A text that a write names, or leaves open.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum Named {
    #[default]
    Open,
    /// This text; `None` for no text.
    Text(Option<Arc<str>>),
}

impl Named {
    /// Returns the text as an attribute of a map; `None` if it is open.
    fn value(&self) -> Option<AttributeValue> {
        match self {
            Self::Open => None,
            Self::Text(None) => Some(AttributeValue::Null(true)),
            Self::Text(Some(named)) => Some(text(&**named)),
        }
    }

    fn read(value: Option<&AttributeValue>) -> Self {
        match value {
            None => Self::Open,
            Some(AttributeValue::Null(_)) => Self::Text(None),
            Some(value) => Self::Text(Some(read_text(value))),
        }
    }
}

/// The write of a step to the position of one shard. It fences the position by the shard's lease.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct PositionWrite {
    /// The new text. An open one stays as it is.
    pub(super) text: Named,
    /// The text that must be stored.
    pub(super) expected: Named,
}

impl PositionWrite {
    /// Returns the write as an attribute, to be read again by [`read`](Self::read).
    pub(super) fn value(&self) -> AttributeValue {
        let parts = [(TEXT, &self.text), ("expected", &self.expected)];
        let parts = parts.into_iter().filter_map(|(name, it)| Some((name.to_owned(), it.value()?)));
        AttributeValue::M(parts.collect())
    }

    pub(super) fn read(value: &AttributeValue) -> Self {
        let part = |name: &str| Named::read(value.as_m().ok().and_then(|parts| parts.get(name)));
        Self { text: part(TEXT), expected: part("expected") }
    }
}

/// Returns the key of the item of a shard.
pub(super) fn key(partition: &Partition<'_>, shard: &ShardId) -> Item {
    partition.key(&position(shard))
}

/// Returns the shard of an item; `None` for an item of another kind.
pub(super) fn shard_of(item: &Item) -> Option<ShardId> {
    let Kind::Position(id) = Kind::of(sort_key(item)) else { return None };
    let shard = id.parse().ok();
    if shard.is_none() {
        tracing::warn!(item = sort_key(item), "item ignored: its name is not a shard id");
    }
    shard
}

/// Returns the fence of a lease: its epoch, which is the first word of its text.
pub(super) fn fence_of(lease: Option<&str>) -> Option<&str> {
    lease.and_then(|lease| lease.split(' ').next())
}

/// Returns true if the step that gives a lease this text writes the position of its shard: to fence
/// it, or to show a KCL who owns it.
pub(super) fn is_moved(partition: &Partition<'_>, stored: Option<&str>, new: Option<&str>) -> bool {
    let owner = |lease: Option<&str>| lease.and_then(parse_lease).and_then(|lease| lease.owner);
    fence_of(stored) != fence_of(new) || partition.kcl.is_some() && owner(stored) != owner(new)
}

/// Returns a write of a transaction, which fences the position of a shard by its lease; `None` if
/// nothing is to be written. `row` is the stored position, if it is in the table of a KCL.
pub(super) fn write(
    partition: &Partition<'_>,
    shard: &ShardId,
    row: Option<&Row>,
    lease: Option<&str>,
    write: &PositionWrite,
) -> Result<Option<TransactWriteItem>> {
    if let Some(kcl) = partition.kcl_of(shard) {
        let beside = partition.beside(kcl);
        let change = kcl.change(shard, row, lease, write);
        let change = change.map(|change| match change {
            RowChange::Write(change) => beside.write(kcl.key(shard), &change),
            RowChange::Delete(condition) => beside.delete(kcl.key(shard), &condition),
        });
        return change.transpose();
    }
    let fence = fence_of(lease).map(text);
    let mut change = Expressions::default();
    if let Named::Text(expected) = &write.expected {
        change = change.require(TEXT, expected.as_deref().map(text));
    }
    if fence.is_none() && write.text == Named::Text(None) {
        return partition.delete(key(partition, shard), &change).map(Some);
    }
    change = change.set(FENCE, fence);
    if let Named::Text(named) = &write.text {
        change = change.set(TEXT, named.as_deref().map(text)).set(SAVER, None);
    }
    partition.write(key(partition, shard), &change).map(Some)
}

/// Returns a check of a transaction that the position of a shard has this text. `row` is the stored
/// position, if it is in the table of a KCL.
pub(super) fn check(
    partition: &Partition<'_>,
    shard: &ShardId,
    row: Option<&Row>,
    expected: Option<&str>,
) -> Result<TransactWriteItem> {
    if let Some(kcl) = partition.kcl_of(shard) {
        return partition.beside(kcl).check(kcl.key(shard), &Kcl::as_read(row));
    }
    let condition = Expressions::default().require(TEXT, expected.map(text));
    partition.check(key(partition, shard), &condition)
}

/// Returns the update that saves a position, if the stored one has the expected text and, where an
/// epoch is given, this fence.
pub(super) fn save(
    epoch: Option<&str>,
    expected: Option<&str>,
    new: &str,
    saver: &str,
) -> Expressions {
    let mut change = Expressions::default().require(TEXT, expected.map(text));
    if let Some(epoch) = epoch {
        change = change.require(FENCE, Some(text(epoch)));
    }
    change.set(TEXT, Some(text(new))).set(SAVER, Some(text(saver)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn write_is_read_from_its_attribute() {
        let named = [Named::Open, Named::Text(None), Named::Text(Some("SHARD_END".into()))];
        for text in named.clone() {
            for expected in named.clone() {
                let write = PositionWrite { text: text.clone(), expected };
                assert_eq!(PositionWrite::read(&write.value()), write);
            }
        }
    }

    #[test]
    fn fence_is_the_first_word_of_a_lease() {
        assert_eq!(fence_of(Some("17 one - 5")), Some("17"));
        assert_eq!(fence_of(Some("")), Some(""));
        assert_eq!(fence_of(None), None);
    }
}
