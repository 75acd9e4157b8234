//! Compares the records of two responses to one call, without keeping the first response.

use std::hash::{DefaultHasher, Hash, Hasher};

use super::super::response::{RecordRange, Response};
use super::super::wire_format::Comparison;
use crate::record::SequenceNumber;

/// The records of a response, each as a hash of its payload, keys and times.
pub(super) struct Fingerprints {
    records: Vec<u64>,
    /// The last sequence number, if it is valid.
    last: Option<SequenceNumber>,
}

impl Fingerprints {
    pub(super) fn of(response: &Response) -> Self {
        let records = response.records.as_deref().unwrap_or_default();
        let last = records.last().and_then(|record| number(record, &response.buffer));
        let records = records.iter().map(|record| fingerprint(record, &response.buffer));
        Self { records: records.collect(), last }
    }

    /// Compares the records with those of a later response to the same call.
    ///
    /// The later response may lack the first records, which have left retention since, and either
    /// response may have further records at its end: other records arrive, and the server chooses
    /// the number.
    pub(super) fn compare(&self, later: &Response) -> Comparison {
        let records = later.records.as_deref().unwrap_or_default();
        let mut later_records = records.iter().map(|record| fingerprint(record, &later.buffer));
        let Some(first) = later_records.next() else { return Comparison::Inconclusive };
        let Some(start) = self.records.iter().position(|record| *record == first) else {
            let start = records.first().and_then(|record| number(record, &later.buffer));
            let is_trimmed = match (&self.last, start) {
                (Some(last), Some(start)) => start > *last,
                _ => false,
            };
            return if is_trimmed { Comparison::Inconclusive } else { Comparison::Different };
        };
        let rest = self.records.iter().skip(start + 1);
        let is_equal = rest.zip(later_records).all(|(earlier, later)| *earlier == later);
        if is_equal { Comparison::Equal } else { Comparison::Different }
    }
}

fn number(record: &RecordRange, buffer: &[u8]) -> Option<SequenceNumber> {
    SequenceNumber::parse_digits(record.sequence_number.of(buffer))
}

fn fingerprint(record: &RecordRange, buffer: &[u8]) -> u64 {
    let RecordRange { data, partition_key, sequence_number, arrival_millis, encryption_type } =
        record;
    let mut hasher = DefaultHasher::new();
    data.of(buffer).hash(&mut hasher);
    (partition_key.is_absent(), partition_key.of(buffer)).hash(&mut hasher);
    sequence_number.of(buffer).hash(&mut hasher);
    (arrival_millis, encryption_type).hash(&mut hasher);
    hasher.finish()
}
