//! Leases and workers as lines of text, which is how a store of text keeps them.

use std::sync::Arc;
use std::time::Duration;

use super::{Lease, Member};
use crate::record::ShardId;

/// Stands for what there is none of.
const NONE: &str = "-";

/// The worker that is kept as `incarnation joined duration expiry capacity`, and when its time is
/// over, in milliseconds.
pub(in crate::store) fn member_of(line: &str) -> Option<(Member, u64)> {
    let mut words = line.split(' ').map(|word| word.parse::<u64>().ok());
    let mut next = || words.next().flatten();
    let (incarnation, joined, duration, expiry) = (next()?, next()?, next()?, next()?);
    let capacity = u32::try_from(next()?).ok()?;
    let lease_duration = Duration::from_millis(duration);
    Some((Member { incarnation, joined, lease_duration, capacity }, expiry))
}

/// The lease that is kept as `epoch owner heir origin parents state`, without its position.
pub(in crate::store) fn lease_of(line: &str) -> Option<Lease> {
    let mut words = line.split(' ');
    let mut next = || words.next();
    let epoch = next()?.parse().ok()?;
    let (owner, heir) = (name_of(next()?), name_of(next()?));
    let origin = next()?.parse().ok()?;
    let parents = match next()? {
        NONE => Vec::new(),
        parents => parents.split(',').map(|id| id.parse().ok()).collect::<Option<_>>()?,
    };
    let is_lost = next()? == "LOST";
    Some(Lease { epoch, owner, heir, origin, parents: Some(parents), is_lost, checkpoint: None })
}

fn name_of(word: &str) -> Option<Arc<str>> {
    (word != NONE).then(|| word.into())
}

impl Member {
    /// As [`member_of`] reads it.
    pub(in crate::store) fn line(&self, expiry: u64) -> String {
        let Self { incarnation, joined, lease_duration, capacity } = self;
        format!("{incarnation} {joined} {} {expiry} {capacity}", lease_duration.as_millis())
    }
}

impl Lease {
    /// As [`lease_of`] reads it.
    pub(in crate::store) fn line(&self) -> String {
        let owner = self.owner.as_deref().unwrap_or(NONE);
        let heir = self.heir.as_deref().unwrap_or(NONE);
        let parents = match self.parents.as_deref() {
            None | Some([]) => NONE.to_owned(),
            Some(parents) => parents.iter().map(ShardId::as_str).collect::<Vec<_>>().join(","),
        };
        let state = if self.is_lost { "LOST" } else { NONE };
        format!("{} {owner} {heir} {} {parents} {state}", self.epoch, self.origin)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn is_read_back_as_it_was_written(
            epoch: u64,
            origin: u64,
            owner in prop::option::of("[a-z]{1,9}"),
            heir in prop::option::of("[a-z]{1,9}"),
            parents in prop::collection::vec("shardId-[0-9]{12}", 0..3),
            is_lost: bool,
        ) {
            let parents = parents.iter().map(|id| id.parse().unwrap()).collect();
            let lease = Lease {
                epoch,
                owner: owner.map(Into::into),
                heir: heir.map(Into::into),
                origin,
                parents: Some(parents),
                is_lost,
                checkpoint: None,
            };
            prop_assert_eq!(lease_of(&lease.line()), Some(lease));
            let lease_duration = Duration::from_millis(epoch >> 1);
            let member = Member { incarnation: origin, joined: epoch, lease_duration, capacity: 7 };
            prop_assert_eq!(member_of(&member.line(epoch)), Some((member, epoch)));
        }

        #[test]
        fn refuses_what_is_none(text in "[ a-z0-9-]{0,40}") {
            if let Some(lease) = lease_of(&text) {
                prop_assert!(text.starts_with(&lease.epoch.to_string()) || text.starts_with('0'));
            }
            let _never_panics = member_of(&text);
        }
    }
}
