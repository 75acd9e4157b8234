//! Reads listings of `ListShards`, and checks whether they are complete.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::SystemTime;

use aws_sdk_kinesis::operation::list_shards::ListShardsOutput;
use aws_sdk_kinesis::types;

use crate::error::{ClassifiedError, Error, ErrorKind, RetryAction};
use crate::record::{SequenceNumber, ShardId};

/// More shards or pages than any listing has: an account has 20,000 shards unless AWS has raised
/// its quota, and each shard is listed until it leaves retention:
/// <https://docs.aws.amazon.com/streams/latest/dev/service-sizes-and-limits.html>.
const MOST_SHARDS: usize = 100_000;
const MOST_PAGES: usize = 10_000;
/// More consecutive pages without a new shard than any listing has.
const MOST_BARREN_PAGES: usize = 20;

/// The shards of a stream in one listing, each once.
#[derive(Debug, Clone)]
pub(crate) struct Listing {
    pub(crate) shards: Vec<ListedShard>,
    /// A time by the server's clock that is not after the response.
    pub(crate) taken: SystemTime,
    /// The number of entries that could not be parsed.
    pub(crate) unreadable: usize,
}

/// A shard in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ListedShard {
    pub(crate) id: ShardId,
    pub(crate) parents: Vec<ShardId>,
    /// The first sequence number of the shard. It distinguishes two shards with the same ID.
    pub(crate) start: Option<SequenceNumber>,
    /// The last sequence number of a closed shard; an open shard has none.
    pub(crate) end: Option<SequenceNumber>,
    /// The first and the last hash key.
    pub(crate) keys: (u128, u128),
}

/// Evidence that a listing is incomplete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// The open shard with this hash key is missing.
    Hole(u128),
    /// This number of entries could not be parsed.
    Unreadable(usize),
    /// The shard has hash keys that its only parent lacks: another parent is missing.
    Parent(ShardId),
}

impl ListedShard {
    /// Parses an entry. Returns `None` if any part of it does not have the form that the API
    /// defines.
    pub(super) fn parse(shard: &types::Shard) -> Option<Self> {
        let numbers = shard.sequence_number_range();
        let keys = shard.hash_key_range()?;
        let parents = [shard.parent_shard_id(), shard.adjacent_parent_shard_id()];
        Some(Self {
            id: shard.shard_id().parse().ok()?,
            parents: parents
                .into_iter()
                .flatten()
                .map(|parent| parent.parse().ok())
                .collect::<Option<_>>()?,
            start: parse_number(numbers.map(types::SequenceNumberRange::starting_sequence_number))?,
            end: parse_number(
                numbers.and_then(types::SequenceNumberRange::ending_sequence_number),
            )?,
            keys: (keys.starting_hash_key().parse().ok()?, keys.ending_hash_key().parse().ok()?),
        })
    }

    pub(crate) fn is_open(&self) -> bool {
        self.end.is_none()
    }
}

/// Parses a sequence number that may be missing. The outer `None` means that it is invalid.
#[allow(clippy::option_option, reason = "missing and invalid numbers differ")]
fn parse_number(text: Option<&str>) -> Option<Option<SequenceNumber>> {
    match text {
        // The SDK reads a missing required field as an empty string.
        None | Some("") => Some(None),
        Some(text) => Some(Some(text.parse().ok()?)),
    }
}

impl Listing {
    /// Returns the evidence that an unfiltered listing is incomplete, if there is any.
    ///
    /// The open shards of a stream cover every hash key. Overlaps are not a flaw: the pages of one
    /// listing may be from before and after a reshard.
    pub(crate) fn flaw(&self) -> Option<Flaw> {
        if self.unreadable > 0 {
            return Some(Flaw::Unreadable(self.unreadable));
        }
        first_hole(self.shards.iter().filter(|shard| shard.is_open()).map(|shard| shard.keys))
            .map(Flaw::Hole)
            .or_else(|| self.shard_missing_parent().map(Flaw::Parent))
    }

    /// Returns a shard with hash keys that its only parent lacks.
    fn shard_missing_parent(&self) -> Option<ShardId> {
        let keys: HashMap<&ShardId, _> =
            self.shards.iter().map(|shard| (&shard.id, shard.keys)).collect();
        let exceeds = |shard: &&ListedShard| {
            let [parent] = &*shard.parents else { return false };
            let is_beyond =
                |(first, last): &(u128, u128)| shard.keys.0 < *first || shard.keys.1 > *last;
            keys.get(parent).is_some_and(is_beyond)
        };
        self.shards.iter().find(exceeds).map(|shard| shard.id.clone())
    }

    /// Returns the shards that are proven to have been closed before a time. `open_then` lists the
    /// shards that were open at that time: their ancestors were closed before.
    ///
    /// If `open_then` has a hole, or a shard that this unfiltered listing lacks, it proves nothing.
    /// A shard that `open_then` merely lacks may hold records of that time.
    pub(crate) fn closed_before(&self, open_then: &Self) -> BTreeSet<ShardId> {
        let listed: HashMap<&ShardId, &ListedShard> =
            self.shards.iter().map(|shard| (&shard.id, shard)).collect();
        let open: HashMap<&ShardId, &ListedShard> = open_then
            .shards
            .iter()
            .filter_map(|shard| listed.get(&shard.id).map(|shard| (&shard.id, *shard)))
            .collect();
        let is_whole = open_then.unreadable == 0
            && open.len() == open_then.shards.len()
            && first_hole(open.values().map(|shard| shard.keys)).is_none();
        let mut closed = BTreeSet::new();
        if !is_whole {
            return closed;
        }
        let mut left: Vec<&ShardId> = open.values().flat_map(|shard| &shard.parents).collect();
        while let Some(id) = left.pop() {
            let Some(shard) = listed.get(id) else { continue };
            if !shard.is_open() && !open.contains_key(id) && closed.insert(id.clone()) {
                left.extend(&shard.parents);
            }
        }
        closed
    }
}

/// Returns the lowest hash key that is in none of the ranges.
pub(crate) fn first_hole(ranges: impl Iterator<Item = (u128, u128)>) -> Option<u128> {
    let mut ranges: Vec<_> = ranges.filter(|(first, last)| first <= last).collect();
    ranges.sort_unstable();
    let mut next = 0;
    for (first, last) in ranges {
        if first > next {
            break;
        }
        match last.checked_add(1) {
            // Every hash key is covered.
            None => return None,
            Some(behind) => next = next.max(behind),
        }
    }
    Some(next)
}

/// Collects the pages of one listing. The listing always ends, since no token is followed twice.
pub(super) struct Pages {
    pub(super) listing: Listing,
    shown: HashMap<ShardId, usize>,
    tokens: HashSet<String>,
    without_new_shard: usize,
}

impl Pages {
    pub(super) fn new(taken: SystemTime) -> Self {
        let listing = Listing { shards: Vec::new(), taken, unreadable: 0 };
        Self { listing, shown: HashMap::new(), tokens: HashSet::new(), without_new_shard: 0 }
    }

    /// Adds a page, and returns the token of the next page.
    pub(super) fn take(
        &mut self,
        page: ListShardsOutput,
    ) -> Result<Option<String>, ClassifiedError> {
        let before = self.listing.shards.len();
        for shard in page.shards.unwrap_or_default() {
            match ListedShard::parse(&shard) {
                Some(shard) => self.add(shard),
                None => self.listing.unreadable += 1,
            }
        }
        if self.listing.shards.len() > MOST_SHARDS || self.tokens.len() >= MOST_PAGES {
            return Err(unusable_listing(format!(
                "has more than {MOST_SHARDS} shards or {MOST_PAGES} pages"
            )));
        }
        self.without_new_shard =
            if self.listing.shards.len() > before { 0 } else { self.without_new_shard + 1 };
        if self.without_new_shard > MOST_BARREN_PAGES {
            return Err(unusable_listing(format!(
                "has {MOST_BARREN_PAGES} pages without a new shard"
            )));
        }
        match page.next_token.filter(|token| !token.is_empty()) {
            Some(token) if !self.tokens.insert(token.clone()) => {
                Err(unusable_listing("repeats a page token"))
            }
            next => Ok(next),
        }
    }

    /// Adds a shard. Of two entries for the same shard, the closed one is the later one.
    fn add(&mut self, shard: ListedShard) {
        let shards = &mut self.listing.shards;
        match self.shown.get(&shard.id).and_then(|index| shards.get_mut(*index)) {
            Some(shown) if !shard.is_open() => *shown = shard,
            Some(_) => {}
            None => {
                self.shown.insert(shard.id.clone(), shards.len());
                shards.push(shard);
            }
        }
    }
}

/// Returns the error of a listing that cannot be used and is repeated.
pub(crate) fn unusable_listing(why: impl std::fmt::Display) -> ClassifiedError {
    let message = format!("ListShards: the listing {why}");
    let error = Error::new(ErrorKind::Unavailable, message);
    ClassifiedError { action: RetryAction::RestartListing, error, answered: None }
}

/// Returns the error of a listing that disagrees with the previous one on the start of a shard.
pub(crate) fn start_mismatch(shard: &ShardId) -> ClassifiedError {
    unusable_listing(format!("shows {shard} with another start than the previous listing"))
}

/// Restarts the listing after a refused page token, which proves nothing about the stream.
pub(super) fn restart_listing(failure: ClassifiedError) -> ClassifiedError {
    let is_refused = match failure.action {
        RetryAction::Gone | RetryAction::RestartListing => true,
        _ => failure.error.kind() == ErrorKind::Rejected,
    };
    if !is_refused {
        return failure;
    }
    let again = unusable_listing(format!("failed after the first page: {}", failure.error));
    ClassifiedError { error: again.error.with_source(failure.error), ..again }
}

impl std::fmt::Display for Flaw {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Hole(key) => write!(formatter, "no open shard has hash key {key}"),
            Self::Unreadable(count) => write!(formatter, "{count} entries could not be parsed"),
            Self::Parent(shard) => write!(formatter, "{shard} lacks a parent"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use proptest::prelude::*;

    use super::*;

    fn shard(index: usize, keys: (u128, u128), is_open: bool) -> ListedShard {
        ListedShard {
            id: format!("shardId-{index:012}").parse().unwrap(),
            parents: Vec::new(),
            start: Some("1".parse().unwrap()),
            end: (!is_open).then(|| "9".parse().unwrap()),
            keys,
        }
    }

    fn listing(shards: Vec<ListedShard>) -> Listing {
        Listing { shards, taken: UNIX_EPOCH, unreadable: 0 }
    }

    /// Ranges side by side, from cuts at any hash keys.
    fn ranges(mut cuts: Vec<u128>) -> Vec<(u128, u128)> {
        cuts.retain(|cut| *cut > 0);
        cuts.sort_unstable();
        cuts.dedup();
        let firsts = std::iter::once(0).chain(cuts.iter().copied());
        let lasts = cuts.iter().map(|cut| cut - 1).chain([u128::MAX]);
        firsts.zip(lasts).collect()
    }

    proptest! {
        #[test]
        fn complete_listing_has_no_flaw(cuts in prop::collection::vec(any::<u128>(), 0..20)) {
            let all = ranges(cuts);
            let mut shards: Vec<_> =
                all.iter().enumerate().map(|(index, keys)| shard(index, *keys, true)).collect();
            // A parent on a page from before a split overlaps its children.
            shards.push(shard(99, all[0], true));
            shards.push(shard(100, (0, u128::MAX), false));
            prop_assert_eq!(listing(shards).flaw(), None);
        }

        #[test]
        fn missing_open_shard_leaves_a_hole(
            cuts in prop::collection::vec(any::<u128>(), 0..20),
            missing: prop::sample::Index,
        ) {
            let all = ranges(cuts);
            let missing = missing.index(all.len());
            let shards = all.iter().enumerate().filter(|(index, _)| *index != missing);
            let mut shards: Vec<_> =
                shards.map(|(index, keys)| shard(index, *keys, true)).collect();
            // A closed shard does not fill a hole.
            shards.push(shard(100, (0, u128::MAX), false));
            prop_assert_eq!(listing(shards).flaw(), Some(Flaw::Hole(all[missing].0)));
        }
    }

    #[test]
    fn merged_shard_with_one_parent_is_a_flaw() {
        let [left, right] = [(0, u128::MAX / 2), (u128::MAX / 2 + 1, u128::MAX)];
        let mut shards =
            vec![shard(0, left, false), shard(1, right, false), shard(2, (0, u128::MAX), true)];
        let ids = [0, 1].map(|index| shards[index].id.clone());
        for named in [&ids[..1], &ids[1..], &ids[..]] {
            shards[2].parents = named.to_vec();
            let flaw = (named.len() == 1).then(|| Flaw::Parent(shards[2].id.clone()));
            assert_eq!(listing(shards.clone()).flaw(), flaw, "{named:?}");
        }
        // A parent that has left retention is not listed, so nothing can be compared.
        shards.remove(0);
        shards[1].parents = ids[..1].to_vec();
        assert_eq!(listing(shards).flaw(), None);
    }

    #[test]
    fn empty_listing_has_a_flaw() {
        assert_eq!(listing(Vec::new()).flaw(), Some(Flaw::Hole(0)));
    }

    /// Shard 0 was split into 1 and 2, and shard 3 followed shard 1.
    fn lineage() -> Listing {
        let halves = [(0, u128::MAX / 2), (u128::MAX / 2 + 1, u128::MAX)];
        let mut shards = vec![
            shard(0, (0, u128::MAX), false),
            shard(1, halves[0], false),
            shard(2, halves[1], true),
            shard(3, halves[0], true),
        ];
        for (child, parent) in [(1, 0), (2, 0), (3, 1)] {
            shards[child].parents = vec![shards[parent].id.clone()];
        }
        listing(shards)
    }

    fn open_then(indices: &[usize]) -> Listing {
        let all = lineage().shards;
        listing(indices.iter().map(|index| all[*index].clone()).collect())
    }

    fn closed_before(open: &Listing) -> Vec<usize> {
        let closed = lineage().closed_before(open);
        (0..4).filter(|index| closed.contains(&shard(*index, (0, 0), true).id)).collect()
    }

    #[test]
    fn ancestors_of_open_shards_were_closed_before() {
        assert_eq!(closed_before(&open_then(&[0])), [0_usize; 0]);
        assert_eq!(closed_before(&open_then(&[1, 2])), [0]);
        assert_eq!(closed_before(&open_then(&[2, 3])), [0, 1]);
    }

    #[test]
    fn flawed_listing_of_open_shards_proves_nothing() {
        for short in [&[][..], &[2], &[3], &[1]] {
            assert_eq!(closed_before(&open_then(short)), [0_usize; 0], "{short:?}");
        }
        let mut unknown = open_then(&[2, 3]);
        unknown.shards.push(shard(4, (0, 9), true));
        assert_eq!(closed_before(&unknown), [0_usize; 0]);
        let unreadable = Listing { unreadable: 1, ..open_then(&[2, 3]) };
        assert_eq!(closed_before(&unreadable), [0_usize; 0]);
        // A server that ignores the filter lists all shards.
        assert_eq!(closed_before(&lineage()), [0_usize; 0]);
    }
}
