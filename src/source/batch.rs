use std::sync::Arc;
use std::vec;

use aws_sdk_kinesis::primitives::DateTime;
use aws_sdk_kinesis::types;

use crate::error::{Error, ErrorKind, Result};
use crate::record::{EncryptionType, Origin, Record, SequenceNumber};

use super::Position;

/// The records of one answer, each made when it is handed out: until then it is as the SDK has
/// read it, and nothing is made of those that nobody asks for.
pub(crate) struct Batch {
    records: vec::IntoIter<types::Record>,
    origin: Arc<Origin>,
}

impl Batch {
    pub(super) fn new(records: Vec<types::Record>, origin: Origin) -> Self {
        Self { records: records.into_iter(), origin: Arc::new(origin) }
    }

    /// Passes over what lies before a position where an iterator was just placed. Only at the
    /// beginning: times of arrival do not rise from record to record.
    pub(super) fn skip_past(&mut self, position: &Position) -> Result<()> {
        while let Some(record) = self.records.as_slice().first() {
            let arrival =
                record.approximate_arrival_timestamp.and_then(|time| time.try_into().ok());
            let place = record.sequence_number.parse().map_err(|error| self.misplaced(error))?;
            if !position.is_past(&place, arrival) {
                break;
            }
            self.records.next();
        }
        Ok(())
    }

    pub(crate) fn origin(&self) -> &Origin {
        &self.origin
    }

    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    /// Brings the places of the next records near, all at once: they lie far apart, and waiting for
    /// the memory of one after the other takes longer than all else that is done with them.
    pub(crate) fn look_ahead(&self, records: usize) {
        let ahead = self.records.as_slice().iter().take(records);
        let first = ahead.filter_map(|record| record.sequence_number.as_bytes().first());
        std::hint::black_box(first.fold(0, |all, digit| all | digit));
    }

    /// The next record, which is number `number` of the shard's.
    #[inline]
    pub(crate) fn next(&mut self, number: u64) -> Option<Result<Record>> {
        let record = self.records.next()?;
        let sequence_number = match SequenceNumber::of(record.sequence_number) {
            Ok(sequence_number) => sequence_number,
            Err(error) => return Some(Err(self.misplaced(error))),
        };
        Some(Ok(Record {
            data: record.data.into_bytes(),
            partition_key: record.partition_key,
            sequence_number,
            sub_sequence_number: 0,
            arrival_millis: record.approximate_arrival_timestamp.and_then(millis),
            encryption_type: match record.encryption_type {
                Some(types::EncryptionType::Kms) => EncryptionType::Kms,
                _ => EncryptionType::None,
            },
            number,
            origin: Arc::clone(&self.origin),
        }))
    }

    #[cold]
    fn misplaced(&self, error: Error) -> Error {
        Error::new(ErrorKind::Rejected, "GetRecords gave a record without a place")
            .with_source(error)
            .in_stream(&self.origin.stream)
            .in_shard(self.origin.shard_id.as_str())
    }
}

#[inline]
fn millis(time: DateTime) -> Option<i64> {
    time.secs().checked_mul(1000)?.checked_add(i64::from(time.subsec_nanos() / 1_000_000))
}
