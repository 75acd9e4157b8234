//! Text forms of leases and workers, for stores that keep them as lines of text.

use std::borrow::Cow;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use super::{Lease, WorkerEntry};
use crate::record::{SequenceNumber, ShardId};

/// The word for a missing value.
const NONE: &str = "-";

/// The word for unknown parents.
const UNKNOWN: &str = "?";

/// The word for an empty name.
const NAMELESS: &str = "%";

/// The state of a lease with an expired shard.
const LOST: &str = "LOST";

/// Parses a worker from `incarnation joined duration expiry capacity`. The expiry is in
/// milliseconds.
pub(in crate::store) fn parse_worker(line: &str) -> Option<(WorkerEntry, u64)> {
    let mut words = line.split(' ');
    let mut next = || words.next()?.parse::<u64>().ok();
    let (incarnation, joined, duration, expiry) = (next()?, next()?, next()?, next()?);
    let capacity = u32::try_from(next()?).ok()?;
    if words.next().is_some() {
        return None;
    }
    let lease_duration = Duration::from_millis(duration);
    Some((WorkerEntry { incarnation, joined, lease_duration, capacity }, expiry))
}

/// Parses a lease from `epoch owner next_owner origin parents state start unlisted added`, without
/// its position. Lines of earlier versions end before `start`; lines of later versions may have
/// more words.
pub(in crate::store) fn parse_lease(line: &str) -> Option<Lease> {
    let mut words = line.split(' ');
    let mut next = || words.next();
    let epoch = next()?.parse().ok()?;
    let (owner, next_owner) = (parse_name(next()?), parse_name(next()?));
    let origin = next()?.parse().ok()?;
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
    Some(Lease {
        epoch,
        owner,
        next_owner,
        origin,
        parents,
        is_shard_expired,
        start,
        unlisted,
        added,
        ..Lease::default()
    })
}

/// Parses a word that may be missing. The outer `None` means that the word is invalid.
#[allow(clippy::option_option, reason = "a missing word differs from an invalid one")]
fn optional<T: FromStr>(word: Option<&str>) -> Option<Option<T>> {
    match word {
        None | Some(NONE) => Some(None),
        Some(word) => word.parse().ok().map(Some),
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

/// Formats the name of a worker as one word of a line.
pub(in crate::store) fn format_name(name: &str) -> Cow<'_, str> {
    match name {
        "" => NAMELESS.into(),
        NONE => "%2D".into(),
        name if name.contains(['%', ' ']) => name.replace('%', "%25").replace(' ', "%20").into(),
        name => name.into(),
    }
}

/// Formats the parents of a shard as one word of a line.
pub(in crate::store) fn format_parents(parents: &[ShardId]) -> String {
    match parents {
        [] => NONE.to_owned(),
        parents => parents.iter().map(ShardId::as_str).collect::<Vec<_>>().join(","),
    }
}

impl Lease {
    /// Formats the lease as [`parse_lease`] parses it.
    pub(in crate::store) fn line(&self) -> String {
        let owner = self.owner.as_deref().map_or(NONE.into(), format_name);
        let next_owner = self.next_owner.as_deref().map_or(NONE.into(), format_name);
        let parents = format_parents(self.parents.as_deref().unwrap_or_default());
        let state = if self.is_shard_expired { LOST } else { NONE };
        let start = format_start(self.start.as_ref());
        let time = |word: Option<u64>| word.map_or(NONE.to_owned(), |time| time.to_string());
        let (unlisted, added) = (time(self.unlisted), time(self.added));
        let (epoch, origin) = (self.epoch, self.origin);
        format!(
            "{epoch} {owner} {next_owner} {origin} {parents} {state} {start} {unlisted} {added}"
        )
    }
}

/// Formats the first sequence number of a shard as one word of a line.
pub(in crate::store) fn format_start(start: Option<&SequenceNumber>) -> &str {
    start.map_or(NONE, SequenceNumber::as_str)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    impl WorkerEntry {
        /// Formats the worker as [`parse_worker`] parses it.
        fn line(&self, expiry: u64) -> String {
            let Self { incarnation, joined, lease_duration, capacity } = self;
            format!("{incarnation} {joined} {} {expiry} {capacity}", lease_duration.as_millis())
        }
    }

    proptest! {
        #[test]
        fn formatted_lines_parse_to_equal_values(
            epoch: u64,
            origin: u64,
            owner in prop::option::of("[a-z%D25 -]{0,5}"),
            next_owner in prop::option::of("[a-z%D25 -]{0,5}"),
            parents in prop::collection::vec("shardId-[0-9]{12}", 0..3),
            is_shard_expired: bool,
            start in prop::option::of("0|[1-9][0-9]{0,128}"),
            unlisted: Option<u64>,
            added: Option<u64>,
        ) {
            let parents = parents.iter().map(|id| id.parse().unwrap()).collect();
            let lease = Lease {
                epoch,
                owner: owner.map(Into::into),
                next_owner: next_owner.map(Into::into),
                origin,
                parents: Some(parents),
                is_shard_expired,
                start: start.map(|start| start.parse().unwrap()),
                unlisted,
                added,
                ..Lease::default()
            };
            prop_assert_eq!(parse_lease(&lease.line()), Some(lease.clone()));
            let line = format!("{} of later versions", lease.line());
            prop_assert_eq!(parse_lease(&line), Some(lease));
            let lease_duration = Duration::from_millis(epoch >> 1);
            let member = WorkerEntry { incarnation: origin, joined: epoch, lease_duration, capacity: 7 };
            prop_assert_eq!(parse_worker(&member.line(epoch)), Some((member, epoch)));
        }

        #[test]
        fn lease_line_without_start_is_parsed(epoch: u64, is_shard_expired: bool) {
            let state = if is_shard_expired { LOST } else { NONE };
            let lease = parse_lease(&format!("{epoch} a - 7 - {state}")).unwrap();
            prop_assert_eq!((lease.epoch, lease.is_shard_expired), (epoch, is_shard_expired));
            prop_assert_eq!((lease.start, lease.unlisted, lease.added), (None, None, None));
        }

        #[test]
        fn random_text_is_parsed_without_panic(text in "[ a-z0-9-]{0,40}") {
            if let Some(lease) = parse_lease(&text) {
                prop_assert!(text.starts_with(&lease.epoch.to_string()) || text.starts_with('0'));
            }
            let _never_panics = parse_worker(&text);
        }
    }
}
