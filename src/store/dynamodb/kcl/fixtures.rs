//! Shards and rows for unit tests.

use std::collections::BTreeSet;

use super::super::expressions::{Item, text};
use super::row::{LEASE_KEY, Row, write};
use crate::record::ShardId;

pub(super) fn shard(number: usize) -> ShardId {
    format!("shardId-{number:012}").parse().unwrap()
}

/// Returns the item of an unread row that names no parents.
pub(super) fn item(key: &str) -> Item {
    let row = Row::new("billing:orders", "TRIM_HORIZON", BTreeSet::new());
    let change = write(None, Some(&row));
    let (update, names, values) = (change.update(), change.names(), change.values());
    let (update, names, values) = (update.unwrap(), names.unwrap(), values.unwrap());
    let parts = update.trim_start_matches("SET ").split(", ");
    let attributes = parts.map(|part| part.split_once(" = ").unwrap());
    let attributes = attributes.map(|(name, value)| (names[name].clone(), values[value].clone()));
    let key = (LEASE_KEY.to_owned(), text(key));
    attributes.chain([key]).collect()
}
