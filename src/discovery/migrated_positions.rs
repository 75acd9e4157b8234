//! Selection of the positions, stored under a stream's name alone, that belong to the stream of an
//! ARN.
//!
//! Streams of other accounts and regions may have the same name, and a stream that was deleted and
//! created again has the same ARN. All of them have shards of the same ids. So each position is
//! compared with the listed shard:
//!
//! | stored position | belongs to |
//! |---|---|
//! | lease with the first sequence number of the listed shard | this stream |
//! | lease with another first sequence number | another stream |
//! | sequence number outside the range of the listed shard | another stream |
//! | sequence number that Kinesis rejects as one of another stream | another stream |
//! | any other sequence number | this stream |
//! | end of a shard that is listed as open | another stream |
//! | unfinished shard that is neither listed nor a parent of a listed one | another stream |
//! | anything else, such as a time | this stream, unless all others belong to another |

use std::collections::{BTreeMap, BTreeSet};

use crate::checkpoint::Checkpoint;
use crate::record::{SequenceNumber, ShardId};
use crate::source::ListedShard;
use crate::store::Mark;
use crate::store::lease::{Lease, LeaseTable};
use crate::telemetry::Event;

/// The positions that a scope of an ARN inherits from the scope of the stream's name.
#[derive(Debug, Default)]
pub(crate) struct MigratedPositions {
    /// The leases with positions of this stream.
    pub(super) leases: BTreeMap<ShardId, Lease>,
    /// The number of positions of other streams.
    pub(super) refused: usize,
}

impl MigratedPositions {
    pub(super) fn report(&self) -> Option<Event> {
        let (positions, refused) = (self.leases.len(), self.refused);
        (positions + refused > 0).then_some(Event::PositionsMigrated { positions, refused })
    }
}

/// The stream to which a stored position belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    This,
    Other,
    Unknown,
}

/// Compares the positions under a stream's name with a listing of the stream.
pub(super) struct StoredPositions<'a> {
    stored: BTreeMap<&'a ShardId, &'a Lease>,
    listed: BTreeMap<&'a ShardId, &'a ListedShard>,
    parents: BTreeSet<&'a ShardId>,
}

impl<'a> StoredPositions<'a> {
    pub(super) fn new(table: &'a LeaseTable, shards: &'a [ListedShard]) -> Self {
        Self {
            stored: table.leases.iter().filter(|(shard, _)| !Mark::is_one(shard)).collect(),
            listed: shards.iter().map(|shard| (&shard.id, shard)).collect(),
            parents: shards.iter().flat_map(|shard| &shard.parents).collect(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.stored.is_empty()
    }

    /// Returns the sequence numbers that may belong to another stream, for a check by Kinesis.
    pub(super) fn unverified(&self) -> Vec<(&'a ShardId, &'a SequenceNumber)> {
        let is_doubtful = |shard: &ShardId, lease: &Lease| {
            let start = self.listed.get(shard).and_then(|listed| listed.start.as_ref());
            (lease.start.is_none() || start.is_none()) && self.origin(shard, lease) == Origin::This
        };
        let doubtful = self.stored.iter().filter(|(shard, lease)| is_doubtful(shard, lease));
        doubtful.filter_map(|(shard, lease)| Some((*shard, number_of(lease)?))).collect()
    }

    /// Returns the positions of this stream. `refuted` lists the shards with a sequence number that
    /// Kinesis rejects as one of another stream.
    pub(super) fn settle(&self, refuted: &BTreeSet<&ShardId>) -> MigratedPositions {
        let mut migrated = MigratedPositions::default();
        let mut is_proven = false;
        for (shard, lease) in &self.stored {
            let origin = match self.origin(shard, lease) {
                _ if refuted.contains(shard) => Origin::Other,
                origin => origin,
            };
            is_proven |= origin == Origin::This;
            if origin == Origin::Other {
                migrated.refused += 1;
            } else if self.is_needed(shard, lease) {
                migrated.leases.insert((*shard).clone(), (*lease).clone());
            }
        }
        if migrated.refused > 0 && !is_proven {
            migrated.refused += migrated.leases.len();
            migrated.leases.clear();
        }
        migrated
    }

    /// Returns true if a position that is not of another stream is worth migrating. The end of an
    /// unlisted shard is migrated only with the shard's first sequence number: a later shard of
    /// this stream may get the same id.
    fn is_needed(&self, shard: &ShardId, lease: &Lease) -> bool {
        self.listed.contains_key(shard) || !lease.is_finished() || lease.start.is_some()
    }

    fn origin(&self, shard: &ShardId, lease: &Lease) -> Origin {
        let Some(listed) = self.listed.get(shard) else {
            let may_be_past_retention = lease.is_finished() || self.parents.contains(shard);
            return if may_be_past_retention { Origin::Unknown } else { Origin::Other };
        };
        if let (Some(known), Some(start)) = (&lease.start, &listed.start) {
            return if known == start { Origin::This } else { Origin::Other };
        }
        if let Some(number) = number_of(lease) {
            let is_before = listed.start.as_ref().is_some_and(|start| number < start);
            let is_behind = listed.end.as_ref().is_some_and(|end| number > end);
            return if is_before || is_behind { Origin::Other } else { Origin::This };
        }
        // Some servers list closed shards without an ending sequence number.
        let is_open = listed.is_open() && !self.parents.contains(shard);
        if lease.is_finished() && is_open { Origin::Other } else { Origin::Unknown }
    }
}

fn number_of(lease: &Lease) -> Option<&SequenceNumber> {
    lease.checkpoint.as_ref().and_then(Checkpoint::sequence_number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: usize) -> ShardId {
        format!("shardId-{number:012}").parse().unwrap()
    }

    /// Returns a shard with the sequence numbers from 100 on, up to 200 if it is closed.
    fn listed(number: usize, is_open: bool, parents: &[usize]) -> ListedShard {
        ListedShard {
            id: id(number),
            parents: parents.iter().copied().map(id).collect(),
            start: Some("100".parse().unwrap()),
            end: (!is_open).then(|| "200".parse().unwrap()),
            keys: (0, u128::MAX),
        }
    }

    fn lease(start: Option<&str>, checkpoint: &str) -> Lease {
        Lease {
            start: start.map(|start| start.parse().unwrap()),
            checkpoint: Some(checkpoint.parse().unwrap()),
            ..Lease::default()
        }
    }

    /// Returns the ids of the migrated shards, and the number of refused positions.
    fn settled(
        stored: &[(usize, Lease)],
        shards: &[ListedShard],
        refuted: &[usize],
    ) -> (Vec<ShardId>, usize) {
        let mut table = LeaseTable::default();
        table.leases.extend(stored.iter().map(|(shard, lease)| (id(*shard), lease.clone())));
        table.leases.insert("positions-claimed.1.eu".parse().unwrap(), Lease::default());
        let refuted: Vec<ShardId> = refuted.iter().copied().map(id).collect();
        let settled = StoredPositions::new(&table, shards).settle(&refuted.iter().collect());
        (settled.leases.into_keys().collect(), settled.refused)
    }

    #[test]
    fn position_of_a_listed_shard_is_classified_by_sequence_numbers() {
        for (start, checkpoint, is_open, expected) in [
            (Some("100"), "TRIM_HORIZON", true, (vec![id(0)], 0)),
            (Some("100"), "SHARD_END", true, (vec![id(0)], 0)),
            (Some("99"), "AFTER_SEQUENCE_NUMBER:150", true, (vec![], 1)),
            (None, "AFTER_SEQUENCE_NUMBER:150", true, (vec![id(0)], 0)),
            (None, "AFTER_SEQUENCE_NUMBER:99", true, (vec![], 1)),
            (None, "AFTER_SEQUENCE_NUMBER:201", true, (vec![id(0)], 0)),
            (None, "AFTER_SEQUENCE_NUMBER:201", false, (vec![], 1)),
            (None, "SHARD_END", true, (vec![], 1)),
            (None, "SHARD_END", false, (vec![id(0)], 0)),
            (None, "TRIM_HORIZON", true, (vec![id(0)], 0)),
        ] {
            let lease = lease(start, checkpoint);
            let settled = settled(&[(0, lease)], &[listed(0, is_open, &[])], &[]);
            assert_eq!(settled, expected, "{start:?} {checkpoint} {is_open}");
        }
    }

    #[test]
    fn position_rejected_by_kinesis_belongs_to_another_stream() {
        let stored = [(0, lease(None, "AFTER_SEQUENCE_NUMBER:150"))];
        let shards = [listed(0, true, &[])];
        let mut table = LeaseTable::default();
        table.leases.insert(id(0), stored[0].1.clone());
        assert_eq!(StoredPositions::new(&table, &shards).unverified().len(), 1);
        assert_eq!(settled(&stored, &shards, &[0]), (vec![], 1));
        table.leases.get_mut(&id(0)).unwrap().start = Some("100".parse().unwrap());
        assert!(StoredPositions::new(&table, &shards).unverified().is_empty());
    }

    #[test]
    fn positions_without_sequence_numbers_follow_the_others() {
        let unknown = || lease(None, "TRIM_HORIZON");
        let shards = [listed(0, true, &[]), listed(1, true, &[])];
        let other = lease(Some("7"), "TRIM_HORIZON");
        assert_eq!(settled(&[(0, unknown()), (1, other)], &shards, &[]), (vec![], 2));
        let this = lease(Some("100"), "TRIM_HORIZON");
        assert_eq!(settled(&[(0, unknown()), (1, this)], &shards, &[]), (vec![id(0), id(1)], 0));
        assert_eq!(settled(&[(0, unknown())], &shards, &[]), (vec![id(0)], 0));
    }

    #[test]
    fn unlisted_shards_are_classified_by_children_and_start() {
        let this = || (1, lease(Some("100"), "TRIM_HORIZON"));
        let shards = [listed(1, true, &[0])];
        let unfinished = || lease(None, "AFTER_SEQUENCE_NUMBER:50");
        // Its child is listed, so the shard has left retention. The loss is reported later.
        assert_eq!(settled(&[(0, unfinished()), this()], &shards, &[]), (vec![id(0), id(1)], 0));
        assert_eq!(settled(&[(7, unfinished()), this()], &shards, &[]), (vec![id(1)], 1));
        let finished = |start| (8, lease(start, "SHARD_END"));
        assert_eq!(settled(&[finished(None), this()], &shards, &[]), (vec![id(1)], 0));
        let taken = settled(&[finished(Some("7")), this()], &shards, &[]);
        assert_eq!(taken, (vec![id(1), id(8)], 0));
    }
}
