//! The names of the items and attributes of one application and stream.

use crate::record::ShardId;
use crate::store::Scope;

use super::expressions::{Item, text};

/// The version of the layout.
pub(super) const FORMAT: u64 = 1;

/// The partition key of the table.
pub(super) const PK: &str = "pk";

/// The sort key of the table.
pub(super) const SK: &str = "sk";

/// The attribute with the text of the head, of a worker or of a position.
pub(super) const TEXT: &str = "text";

/// The sort key of the head.
pub(super) const HEAD: &str = "head";

const HEARTBEAT: &str = "heartbeat:";
const LEASES: &str = "leases:";
const POSITION: &str = "position:";
const STEP: &str = "step:";

/// A range of sort keys, from the first to before the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Range {
    /// The head and the heartbeats.
    Front,
    /// The leases and the positions.
    Shards,
    /// Everything but the log of steps.
    Whole,
}

impl Range {
    /// Returns the lower and the upper bound. `;` follows `:`, so the upper bounds are after every
    /// key of their prefix and equal to none.
    pub(super) fn bounds(self) -> (&'static str, &'static str) {
        match self {
            Self::Front => (HEAD, "heartbeat;"),
            Self::Shards => (LEASES, "position;"),
            Self::Whole => (HEAD, "position;"),
        }
    }
}

/// Returns the partition key of an application and stream.
pub(super) fn partition_key(scope: &Scope) -> String {
    // Escaped, so that a colon in the application's name differs from the one before the stream's.
    let application = scope.application().replace('%', "%25").replace(':', "%3A");
    format!("{application}:{}", scope.stream())
}

/// Returns the key of an item.
pub(super) fn key(partition: &str, sort: &str) -> Item {
    Item::from([(PK.to_owned(), text(partition)), (SK.to_owned(), text(sort))])
}

/// Returns the sort key of an item.
pub(super) fn sort_key(item: &Item) -> &str {
    item.get(SK).and_then(|value| value.as_s().ok()).map_or("", String::as_str)
}

pub(super) fn heartbeat(worker: &str) -> String {
    format!("{HEARTBEAT}{worker}")
}

pub(super) fn leases(bucket: u8) -> String {
    format!("{LEASES}{bucket:02}")
}

pub(super) fn position(shard: &ShardId) -> String {
    format!("{POSITION}{shard}")
}

/// Padded, so that the order of the keys is that of the versions.
pub(super) fn step(version: u64) -> String {
    format!("{STEP}{version:020}")
}

/// An item, identified by its sort key.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind<'a> {
    Head,
    Heartbeat(&'a str),
    Leases(u8),
    /// A position, with the id of its shard.
    Position(&'a str),
    /// An item of another program or a later version.
    Other,
}

impl<'a> Kind<'a> {
    pub(super) fn of(sort: &'a str) -> Self {
        if sort == HEAD {
            Self::Head
        } else if let Some(worker) = sort.strip_prefix(HEARTBEAT) {
            Self::Heartbeat(worker)
        } else if let Some(shard) = sort.strip_prefix(POSITION) {
            Self::Position(shard)
        } else {
            let bucket = sort.strip_prefix(LEASES).and_then(|number| number.parse().ok());
            bucket.filter(|bucket| leases(*bucket) == sort).map_or(Self::Other, Self::Leases)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partition_keys_of_different_scopes_differ() {
        let scopes = [("a", "s"), ("b", "s"), ("a", "t"), ("a:s", "s"), ("a%3As", "s")];
        let keys =
            scopes.map(|(application, stream)| partition_key(&Scope::new(application, stream)));
        for (index, key) in keys.iter().enumerate() {
            assert!(!keys[..index].contains(key), "{keys:?}");
        }
        assert_eq!(keys[0], "a:s");
    }

    #[test]
    fn ranges_hold_the_keys_of_their_items() {
        let shard: ShardId = "shardId-000000000001".parse().unwrap();
        let longest: ShardId = "~".repeat(128).parse().unwrap_or_else(|_| shard.clone());
        let keys = [
            (HEAD.to_owned(), [true, false, true]),
            (heartbeat(""), [true, false, true]),
            (heartbeat("\u{10ffff}"), [true, false, true]),
            (leases(0), [false, true, true]),
            (leases(63), [false, true, true]),
            (position(&shard), [false, true, true]),
            (position(&longest), [false, true, true]),
            (step(0), [false, false, false]),
            (step(u64::MAX), [false, false, false]),
        ];
        for (key, expected) in keys {
            let holds = [Range::Front, Range::Shards, Range::Whole].map(|range| {
                let (first, last) = range.bounds();
                (first..=last).contains(&&*key)
            });
            assert_eq!(holds, expected, "{key}");
        }
        assert!(step(9) < step(10));
    }

    #[test]
    fn kind_of_a_sort_key_is_that_of_its_item() {
        assert_eq!(Kind::of(HEAD), Kind::Head);
        assert_eq!(Kind::of(&heartbeat("a:b")), Kind::Heartbeat("a:b"));
        assert_eq!(Kind::of(&leases(7)), Kind::Leases(7));
        assert_eq!(Kind::of("position:shardId-1"), Kind::Position("shardId-1"));
        for other in ["", "leases:7", "leases:-1", "leases:300", "heads", &step(7)] {
            assert_eq!(Kind::of(other), Kind::Other, "{other}");
        }
    }
}
