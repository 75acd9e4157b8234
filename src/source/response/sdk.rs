//! Collects the records that the SDK has decoded: those of enhanced fan-out, and those of a client
//! for which the caller has set a protocol.

use aws_sdk_kinesis::primitives::DateTime;
use aws_sdk_kinesis::types;

use super::{RecordRange, Unreadable, assembly};
use crate::record::{ByteRange, EncryptionType};

/// Copies records into one buffer. Returns it with the ranges of the records.
pub(super) fn collect(
    records: &[types::Record],
) -> Result<(Vec<u8>, Vec<RecordRange>), Unreadable> {
    let length = records.iter().map(size).sum();
    let mut buffer = Vec::with_capacity(length);
    let mut ranges = Vec::with_capacity(records.len());
    for record in records {
        let mut append = |value: &[u8]| assembly::append(&mut buffer, 0, value);
        ranges.push(RecordRange {
            data: append(record.data.as_ref())?,
            partition_key: match &record.partition_key {
                Some(key) => append(key.as_bytes())?,
                None => ByteRange::ABSENT,
            },
            sequence_number: append(record.sequence_number.as_bytes())?,
            arrival_millis: record.approximate_arrival_timestamp.and_then(millis),
            encryption_type: match record.encryption_type {
                Some(types::EncryptionType::Kms) => EncryptionType::Kms,
                _ => EncryptionType::None,
            },
        });
    }
    Ok((buffer, ranges))
}

fn size(record: &types::Record) -> usize {
    let key = record.partition_key.as_ref().map_or(0, String::len);
    record.data.as_ref().len() + key + record.sequence_number.len()
}

#[inline]
fn millis(time: DateTime) -> Option<i64> {
    time.secs().checked_mul(1000)?.checked_add(i64::from(time.subsec_nanos() / 1_000_000))
}
