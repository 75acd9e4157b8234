//! The records of one `PutRecords` request.

use std::collections::VecDeque;

use aws_sdk_kinesis::primitives::Blob;
use aws_sdk_kinesis::types::PutRecordsRequestEntry;

use super::lines::{Line, Origin};
use crate::failure::{Failure, Outcome};
use crate::quantity::bytes;

/// <https://docs.aws.amazon.com/kinesis/latest/APIReference/API_PutRecords.html>.
const MAX_RECORDS: usize = 500;
/// A request with one record may be larger, up to [`LARGEST_RECORD`].
const MAX_REQUEST: usize = 5 << 20;
/// The data and the key of a record, unless the stream allows more.
pub(super) const MAX_RECORD: usize = 1 << 20;
/// The most that a stream can allow.
pub(super) const LARGEST_RECORD: usize = 10 << 20;

/// A record to put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    key: String,
    data: Vec<u8>,
    origin: Origin,
}

impl Entry {
    /// Returns the record of a line, or says why Kinesis would refuse it.
    pub(super) fn new(key: String, line: Line, max_record: usize) -> Result<Self, String> {
        let entry = Self { key, data: line.data, origin: line.origin };
        entry.refusal(max_record).map_or(Ok(entry), Err)
    }

    /// Says why a stream with this limit would refuse the record.
    pub(super) fn refusal(&self, max_record: usize) -> Option<String> {
        let limit = bytes(max_record as u64);
        let note = || format!("{}: longer than a record of {limit} with its key", self.origin);
        (self.size() > max_record).then(note)
    }

    pub(super) fn size(&self) -> usize {
        self.key.len() + self.data.len()
    }
}

/// Records in the order of their lines, as many as a request takes.
#[derive(Debug, Default)]
pub(super) struct Request {
    entries: VecDeque<Entry>,
    size: usize,
}

impl Request {
    pub(super) fn has_room_for(&self, entry: &Entry) -> bool {
        self.entries.is_empty()
            || self.entries.len() < MAX_RECORDS && self.size + entry.size() <= MAX_REQUEST
    }

    pub(super) fn push(&mut self, entry: Entry) {
        self.size += entry.size();
        self.entries.push_back(entry);
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn first_origin(&self) -> Option<&Origin> {
        self.entries.front().map(|entry| &entry.origin)
    }

    /// Returns the first records for a call, at most `limit`.
    pub(super) fn entries(&self, limit: usize) -> Outcome<Vec<PutRecordsRequestEntry>> {
        let entry = |entry: &Entry| {
            let builder = PutRecordsRequestEntry::builder();
            builder.partition_key(&entry.key).data(Blob::new(entry.data.clone())).build()
        };
        let entries: Result<_, _> = self.entries.iter().take(limit).map(entry).collect();
        entries.map_err(|error| Failure::new(format!("cannot build a request: {error}")))
    }

    /// Removes the records that are stored: those of the first ones for which `is_stored` is true.
    /// The others keep their order. Returns the number and the bytes of the stored records.
    pub(super) fn retain_failed(&mut self, is_stored: &[bool]) -> (u64, u64) {
        let (mut records, mut bytes) = (0, 0);
        let mut results = is_stored.iter();
        self.entries.retain(|entry| {
            let is_kept = !results.next().copied().unwrap_or(false);
            if !is_kept {
                records += 1;
                bytes += entry.data.len() as u64;
                self.size -= entry.size();
            }
            is_kept
        });
        (records, bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(number: u64, length: usize) -> Entry {
        Entry::new("key".to_owned(), Line::of(number, &"x".repeat(length)), MAX_RECORD).unwrap()
    }

    #[test]
    fn request_has_500_records_and_5_mib() {
        let mut request = Request::default();
        for number in 0..500 {
            assert!(request.has_room_for(&entry(number, 1)));
            request.push(entry(number, 1));
        }
        assert!(!request.has_room_for(&entry(500, 1)));
        let mut request = Request::default();
        for number in 0..5 {
            assert!(request.has_room_for(&entry(number, MAX_RECORD - 3)));
            request.push(entry(number, MAX_RECORD - 3));
        }
        assert!(!request.has_room_for(&entry(5, 0)));
    }

    #[test]
    fn record_above_the_limit_with_its_key_is_refused() {
        let of = |length: usize, limit| {
            Entry::new("key".to_owned(), Line::of(3, &"x".repeat(length)), limit)
        };
        assert_eq!(
            of(MAX_RECORD - 2, MAX_RECORD).unwrap_err(),
            "line 3 of stdin: longer than a record of 1.0 MiB with its key"
        );
        let large = of(LARGEST_RECORD - 3, LARGEST_RECORD).unwrap();
        assert!(Request::default().has_room_for(&large), "expected a request of one record");
        let mut request = Request::default();
        request.push(entry(1, 1));
        assert!(!request.has_room_for(&large));
    }

    proptest! {
        #[test]
        fn failed_records_keep_their_order(stored in prop::collection::vec(any::<bool>(), 0..20), more in 0..5_usize) {
            let mut request = Request::default();
            for number in 0..stored.len() + more {
                request.push(entry(number as u64, number));
            }
            let (records, _) = request.retain_failed(&stored);
            prop_assert_eq!(records, stored.iter().filter(|stored| **stored).count() as u64);
            let left: Vec<usize> = request.entries.iter().map(|entry| entry.data.len()).collect();
            let expected: Vec<usize> =
                (0..stored.len() + more).filter(|number| !stored.get(*number).copied().unwrap_or(false)).collect();
            prop_assert_eq!(left, expected);
            prop_assert_eq!(request.size, request.entries.iter().map(Entry::size).sum::<usize>());
        }
    }
}
