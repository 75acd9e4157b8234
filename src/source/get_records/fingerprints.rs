//! Compares two responses to one call, without keeping the first response.

use std::hash::{DefaultHasher, Hash, Hasher};

use super::super::response::{RecordRange, Response};
use super::super::wire_format::Comparison;
use crate::record::SequenceNumber;

/// The most milliseconds by which the times of one record may differ: a server may round a time to
/// the fraction of a second in JSON and cut it off to the millisecond in CBOR.
const ROUNDING_MILLIS: u64 = 1;

/// The records of a response.
pub(super) struct Fingerprints {
    records: Vec<Fingerprint>,
    /// The last sequence number, if it is valid.
    last: Option<SequenceNumber>,
    has_next_iterator: bool,
    has_millis_behind: bool,
}

/// The arrival time of a record, and a hash of its other fields.
#[derive(Debug, Clone, Copy)]
struct Fingerprint {
    hash: u64,
    arrival_millis: Option<i64>,
}

impl Fingerprints {
    pub(super) fn of(response: &Response) -> Self {
        let records = response.records.as_deref().unwrap_or_default();
        let last = records.last().and_then(|record| record.number(&response.buffer));
        let fingerprint = |record| Fingerprint::of(record, &response.buffer);
        Self {
            records: records.iter().map(fingerprint).collect(),
            last,
            has_next_iterator: response.next_shard_iterator.is_some(),
            has_millis_behind: response.millis_behind_latest.is_some(),
        }
    }

    /// Compares the records with those of a later response to the same call.
    ///
    /// The later response may lack the first records, which have left retention since, and either
    /// response may have further records at its end: other records arrive, and the server chooses
    /// the number. So this response may be the last one of a closed shard, and the later one not,
    /// only if the later one ends before it. Otherwise, equal records need equal members: this
    /// response is different if it lacks a member that the later one has.
    pub(super) fn compare(&self, later: &Response) -> Comparison {
        let records = later.records.as_deref().unwrap_or_default();
        let mut others = records.iter().map(|record| Fingerprint::of(record, &later.buffer));
        let Some(first) = others.next() else { return Comparison::Inconclusive };
        let Some(start) = self.records.iter().position(|record| record.is_same(first)) else {
            let number = records.first().and_then(|record| record.number(&later.buffer));
            let is_trimmed = match (&self.last, number) {
                (Some(last), Some(number)) => number > *last,
                _ => false,
            };
            return if is_trimmed { Comparison::Inconclusive } else { Comparison::Different };
        };
        let others = std::iter::once(first).chain(others);
        let pairs = || self.records[start..].iter().zip(others.clone());
        let is_equal = pairs().all(|(record, other)| record.is_same(other));
        let is_coarse = pairs().all(|(_, other)| other.is_at_second());
        let is_shorter = records.len() < self.records.len() - start;
        let lacks_iterator =
            !self.has_next_iterator && later.next_shard_iterator.is_some() && !is_shorter;
        let lacks_millis = !self.has_millis_behind && later.millis_behind_latest.is_some();
        match is_equal && !lacks_iterator && !lacks_millis {
            true if is_coarse => Comparison::EqualSeconds,
            true => Comparison::Equal,
            false => Comparison::Different,
        }
    }
}

impl Fingerprint {
    fn of(record: &RecordRange, buffer: &[u8]) -> Self {
        // A sequence number is valid by its text.
        let RecordRange {
            data,
            partition_key,
            sequence_number,
            has_number: _,
            arrival_millis,
            encryption_type,
        } = *record;
        let mut hasher = DefaultHasher::new();
        data.of(buffer).hash(&mut hasher);
        (partition_key.is_absent(), partition_key.of(buffer)).hash(&mut hasher);
        sequence_number.of(buffer).hash(&mut hasher);
        encryption_type.hash(&mut hasher);
        Self { hash: hasher.finish(), arrival_millis }
    }

    /// Returns true if the time has no fraction of a second.
    fn is_at_second(self) -> bool {
        self.arrival_millis.is_some_and(|millis| millis % 1_000 == 0)
    }

    fn is_same(self, other: Self) -> bool {
        let is_near = match (self.arrival_millis, other.arrival_millis) {
            (Some(arrival), Some(other)) => arrival.abs_diff(other) <= ROUNDING_MILLIS,
            (arrival, other) => arrival == other,
        };
        self.hash == other.hash && is_near
    }
}
