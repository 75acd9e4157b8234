//! The texts of entries: words, separated by one space.
//!
//! | entry | words |
//! |---|---|
//! | head | `generation cleared first_poll latest_epoch` |
//! | worker | `incarnation joined lease_duration capacity size load` |
//! | lease | `epoch owner next_owner origin parents state start unlisted added` |
//! | position | the text of a [`Checkpoint`](crate::Checkpoint) |
//!
//! `-` stands for a missing value, `?` for unknown parents, and parents are separated by commas. The
//! state is `LOST` if the shard has expired. The load is `others:strain`, and
//! `,shard:load` for each named shard. Lease texts of earlier versions end before the start, worker texts before the size.
//! Further words, which later versions write, are kept.

use std::borrow::Cow;
use std::str::{FromStr, Split};
use std::sync::Arc;
use std::time::Duration;

use super::load::WorkerLoad;
use super::rules::millis;
use super::table::{Further, Lease, LeaseTable, WorkerEntry};
use crate::record::{SequenceNumber, ShardId};

/// The word for a missing value.
const NONE: &str = "-";

/// The word for unknown parents.
const UNKNOWN: &str = "?";

/// The word for an empty name.
const NAMELESS: &str = "%";

/// The state of a lease with an expired shard.
const LOST: &str = "LOST";

/// Parses a number as it is formatted. Larger ones would overflow in a store.
fn number(word: &str) -> Option<u64> {
    let is_formatted = word == "0" || !word.starts_with(['0', '+']);
    word.parse().ok().filter(|number| is_formatted && *number <= LIMIT)
}

/// The largest integer that a store with floating-point numbers, such as Redis, represents exactly.
const LIMIT: u64 = (1 << 53) - 1;

/// Parses the numbers of a table. Returns false, and changes nothing, if the text is not valid.
pub(super) fn parse_head(text: &str, table: &mut LeaseTable) -> bool {
    let mut words = text.split(' ');
    let mut next = || number(words.next()?);
    let (Some(generation), Some(cleared), Some(first_poll)) = (next(), next(), next()) else {
        return false;
    };
    let Some(latest_epoch) = next_or(&mut words, 0) else { return false };
    (table.generation, table.cleared, table.first_poll) = (generation, cleared, first_poll);
    (table.latest_epoch, table.further) = (latest_epoch, further(words));
    true
}

pub(super) fn format_head(table: &LeaseTable) -> String {
    let LeaseTable { generation, cleared, first_poll, latest_epoch, further, .. } = table;
    extended(format!("{generation} {cleared} {first_poll} {latest_epoch}"), further)
}

pub(super) fn parse_worker(text: &str) -> Option<WorkerEntry> {
    let mut words = text.split(' ');
    // All bits of an incarnation are used.
    let incarnation = words.next()?.parse().ok()?;
    let mut next = || number(words.next()?);
    let (joined, lease_duration) = (next()?, Duration::from_millis(next()?));
    let capacity = next()?.try_into().ok()?;
    let size = optional(words.next())?;
    let load = match words.next() {
        None | Some(NONE) => None,
        Some(word) => Some(parse_load(word)?),
    };
    let further = further(words);
    Some(WorkerEntry { incarnation, joined, lease_duration, capacity, size, load, further })
}

pub(super) fn format_worker(entry: &WorkerEntry) -> String {
    let WorkerEntry { incarnation, joined, lease_duration, capacity, size, load, further } = entry;
    let lease_duration = millis(*lease_duration).min(LIMIT);
    let size = size.map_or(NONE.to_owned(), |size| size.to_string());
    let load = load.as_ref().map_or(NONE.to_owned(), format_load);
    extended(format!("{incarnation} {joined} {lease_duration} {capacity} {size} {load}"), further)
}

fn parse_load(word: &str) -> Option<WorkerLoad> {
    let mut parts = word.split(',');
    let (others, strain) = parts.next()?.split_once(':')?;
    let (others, strain) = (number(others)?, number(strain)?.try_into().ok()?);
    let named = |part: &str| {
        let (shard, load) = part.split_once(':')?;
        Some((shard.parse().ok()?, number(load)?))
    };
    Some(WorkerLoad { heaviest: parts.map(named).collect::<Option<_>>()?, others, strain })
}

fn format_load(load: &WorkerLoad) -> String {
    let named = load.heaviest.iter().map(|(shard, load)| format!(",{shard}:{load}"));
    std::iter::once(format!("{}:{}", load.others, load.strain)).chain(named).collect()
}

/// Parses a lease, without its position.
pub(in crate::store) fn parse_lease(text: &str) -> Option<Lease> {
    let mut words = text.split(' ');
    let mut next = || words.next();
    let epoch = number(next()?)?;
    let (owner, next_owner) = (parse_name(next()?), parse_name(next()?));
    let origin = number(next()?)?;
    let parents = match next()? {
        NONE => Some(Vec::new()),
        UNKNOWN => None,
        parents => Some(parents.split(',').map(|id| id.parse().ok()).collect::<Option<_>>()?),
    };
    let is_shard_expired = match next()? {
        NONE => false,
        LOST => true,
        _ => return None,
    };
    let (start, unlisted, added) = (optional(next())?, optional(next())?, optional(next())?);
    let further = further(words);
    Some(Lease {
        epoch,
        owner,
        next_owner,
        // Only a position alone has no origin.
        origin: u64::max(origin, 1),
        parents,
        is_shard_expired,
        start,
        unlisted,
        added,
        further,
        ..Lease::default()
    })
}

/// Formats the lease without its position.
pub(super) fn format_lease(lease: &Lease) -> String {
    let owner = lease.owner.as_deref().map_or(NONE.into(), format_name);
    let next_owner = lease.next_owner.as_deref().map_or(NONE.into(), format_name);
    let parents = lease.parents.as_deref().map_or_else(|| UNKNOWN.to_owned(), format_parents);
    let state = if lease.is_shard_expired { LOST } else { NONE };
    let start = lease.start.as_ref().map_or(NONE, SequenceNumber::as_str);
    let time = |word: Option<u64>| word.map_or(NONE.to_owned(), |time| time.to_string());
    let (unlisted, added) = (time(lease.unlisted), time(lease.added));
    let (epoch, origin) = (lease.epoch, lease.origin);
    extended(
        format!(
            "{epoch} {owner} {next_owner} {origin} {parents} {state} {start} {unlisted} {added}"
        ),
        &lease.further,
    )
}

/// Parses the next word; `missing` if there is none, and `None` if the word is invalid.
fn next_or(words: &mut Split<'_, char>, missing: u64) -> Option<u64> {
    words.next().map_or(Some(missing), number)
}

/// Parses a word that may be missing. The outer `None` means that the word is invalid.
#[allow(clippy::option_option, reason = "a missing word differs from an invalid one")]
fn optional<T: FromStr>(word: Option<&str>) -> Option<Option<T>> {
    match word {
        None | Some(NONE) => Some(None),
        Some(word) => word.parse().ok().map(Some),
    }
}

/// Returns the words that this version does not know.
fn further(words: Split<'_, char>) -> Further {
    let rest: Vec<&str> = words.collect();
    Further((!rest.is_empty()).then(|| rest.join(" ").into()))
}

/// Appends the words that this version does not know.
fn extended(text: String, further: &Further) -> String {
    match &further.0 {
        Some(words) => format!("{text} {words}"),
        None => text,
    }
}

/// Parses a worker's name from a [word](format_name); `None` if the word is that for a missing value.
pub(in crate::store) fn parse_name(word: &str) -> Option<Arc<str>> {
    match word {
        NONE => None,
        NAMELESS => Some("".into()),
        word if !word.contains('%') => Some(word.into()),
        word => Some(word.replace("%2D", "-").replace("%20", " ").replace("%25", "%").into()),
    }
}

/// Formats the name of a worker as one word of a text.
pub(in crate::store) fn format_name(name: &str) -> Cow<'_, str> {
    match name {
        "" => NAMELESS.into(),
        NONE => "%2D".into(),
        name if name.contains(['%', ' ']) => name.replace('%', "%25").replace(' ', "%20").into(),
        name => name.into(),
    }
}

fn format_parents(parents: &[ShardId]) -> String {
    match parents {
        [] => NONE.to_owned(),
        parents => parents.iter().map(ShardId::as_str).collect::<Vec<_>>().join(","),
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn formatted_texts_parse_to_equal_values(
            epoch in 0..=LIMIT,
            origin in 1..=LIMIT,
            owner in prop::option::of("[a-z%D25 -]{0,5}"),
            next_owner in prop::option::of("[a-z%D25 -]{0,5}"),
            parents in prop::option::of(prop::collection::vec("shardId-[0-9]{12}", 0..3)),
            is_shard_expired: bool,
            start in prop::option::of("0|[1-9][0-9]{0,128}"),
            unlisted: Option<u64>,
            added: Option<u64>,
            later in prop::option::of("[a-z0-9-]{1,5}( [a-z0-9-]{1,5})?"),
            size: Option<NonZeroU32>,
            load in prop::option::of(prop::collection::btree_map("shardId-[0-9]{12}", 0..=LIMIT, 0..4)),
        ) {
            let further = Further(later.map(Into::into));
            let parents = parents
                .map(|parents| parents.iter().map(|id| id.parse().unwrap()).collect());
            let lease = Lease {
                epoch,
                owner: owner.map(Into::into),
                next_owner: next_owner.map(Into::into),
                origin,
                parents,
                is_shard_expired,
                start: start.map(|start| start.parse().unwrap()),
                unlisted,
                added,
                further: further.clone(),
                ..Lease::default()
            };
            prop_assert_eq!(parse_lease(&format_lease(&lease)), Some(lease));
            let lease_duration = Duration::from_millis(epoch);
            let worker = WorkerEntry {
                incarnation: origin, joined: epoch, lease_duration, capacity: 7, size,
                load: load.map(|load| WorkerLoad {
                    heaviest: load.into_iter().map(|(id, load)| (id.parse().unwrap(), load)).collect(),
                    others: epoch,
                    strain: 3,
                }),
                further: further.clone(),
            };
            prop_assert_eq!(parse_worker(&format_worker(&worker)), Some(worker));
            let head = LeaseTable {
                generation: epoch, cleared: origin, first_poll: 7, latest_epoch: 8, further,
                ..LeaseTable::default()
            };
            let mut parsed = LeaseTable::default();
            prop_assert!(parse_head(&format_head(&head), &mut parsed));
            prop_assert_eq!(parsed, head);
        }

        #[test]
        fn lease_text_of_an_earlier_version_is_parsed(epoch in 0..=LIMIT, is_shard_expired: bool) {
            let state = if is_shard_expired { LOST } else { NONE };
            let lease = parse_lease(&format!("{epoch} a - 7 - {state}")).unwrap();
            prop_assert_eq!((lease.epoch, lease.is_shard_expired), (epoch, is_shard_expired));
            prop_assert_eq!((lease.start, lease.unlisted, lease.added), (None, None, None));
        }

        #[test]
        fn worker_text_of_an_earlier_version_is_parsed(joined in 0..=LIMIT, capacity: u32) {
            let worker = parse_worker(&format!("7 {joined} 10000 {capacity}")).unwrap();
            prop_assert_eq!((worker.joined, worker.capacity), (joined, capacity));
            prop_assert_eq!((worker.size, worker.load), (None, None));
        }

        #[test]
        fn random_text_is_parsed_without_panic(text in "[ a-z0-9-]{0,40}") {
            if let Some(lease) = parse_lease(&text) {
                prop_assert!(text.starts_with(&lease.epoch.to_string()) || text.starts_with('0'));
            }
            let _never_panics = parse_worker(&text);
            let _never_panics = parse_head(&text, &mut LeaseTable::default());
        }
    }
}
