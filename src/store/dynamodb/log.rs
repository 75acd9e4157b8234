//! The log of the last steps: the keys of the entries that each has changed.
//!
//! Each step is an item, named by its version. A worker that knows one of the last versions reads the
//! steps since, and then only what they have changed.

use std::collections::BTreeSet;

use aws_sdk_dynamodb::types::AttributeValue;

use super::expressions::{Expressions, Item, text};
use crate::store::lease::EntryKey;

const KEYS: &str = "keys";

/// The most keys that a step notes. An item may have 400 KB, and a reader of more keys than this
/// reads everything.
const MAX_KEYS: usize = 1_000;

/// Returns the update that writes the item of a step.
pub(super) fn update<'a>(keys: impl ExactSizeIterator<Item = &'a EntryKey>) -> Expressions {
    let keys = (keys.len() <= MAX_KEYS)
        .then(|| AttributeValue::L(keys.map(format_key).map(text).collect()));
    Expressions::default().set(KEYS, Some(keys.unwrap_or(AttributeValue::Null(true))))
}

/// Returns the keys that these steps have changed; `None` if one of them does not tell.
pub(super) fn changed(steps: &[Item]) -> Option<BTreeSet<EntryKey>> {
    let mut changed = BTreeSet::new();
    for step in steps {
        for key in step.get(KEYS)?.as_l().ok()? {
            changed.insert(parse_key(key.as_s().ok()?)?);
        }
    }
    Some(changed)
}

fn format_key(key: &EntryKey) -> String {
    match key {
        EntryKey::Head => "H".to_owned(),
        EntryKey::Worker(worker) => format!("W{worker}"),
        EntryKey::Lease(shard) => format!("L{shard}"),
        EntryKey::Position(shard) => format!("P{shard}"),
    }
}

fn parse_key(word: &str) -> Option<EntryKey> {
    let mut letters = word.chars();
    let kind = letters.next()?;
    let rest = letters.as_str();
    match kind {
        'H' => Some(EntryKey::Head),
        'W' => Some(EntryKey::Worker(rest.into())),
        'L' => rest.parse().ok().map(EntryKey::Lease),
        'P' => rest.parse().ok().map(EntryKey::Position),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(keys: &[EntryKey]) -> Item {
        let values = update(keys.iter()).values().unwrap();
        Item::from([(KEYS.to_owned(), values[":0"].clone())])
    }

    #[test]
    fn keys_are_read_from_their_steps() {
        let shard = || "shardId-000000000001".parse().unwrap();
        let keys = [
            EntryKey::Head,
            EntryKey::Worker("".into()),
            EntryKey::Worker("a b:ü".into()),
            EntryKey::Lease(shard()),
            EntryKey::Position(shard()),
        ];
        let steps = [item(&keys[..2]), item(&keys[1..])];
        assert_eq!(changed(&steps), Some(BTreeSet::from(keys)));
        assert_eq!(changed(&[]), Some(BTreeSet::new()));
    }

    #[test]
    fn step_of_too_many_keys_does_not_tell_them() {
        let many = vec![EntryKey::Head; MAX_KEYS + 1];
        assert_eq!(changed(&[item(&many)]), None);
        let unknown = AttributeValue::L(vec![text("X")]);
        for damaged in [unknown, text("H")] {
            assert_eq!(changed(&[Item::from([(KEYS.to_owned(), damaged)])]), None);
        }
        assert_eq!(changed(&[Item::new()]), None);
    }
}
