//! Copies the records that the SDK has decoded into one buffer: those of enhanced fan-out, and those
//! of a client for which the caller has set a protocol.

use aws_sdk_kinesis::primitives::DateTime;
use aws_sdk_kinesis::types;

use super::{NamedChild, RecordRange};
use crate::record::{ByteRange, EncryptionType, SequenceNumber};

/// Returns the records in one buffer. Records beyond its largest length are left out; no response
/// has as many.
pub(in super::super) fn records_of_sdk(records: &[types::Record]) -> (Vec<u8>, Vec<RecordRange>) {
    let key = |record: &types::Record| record.partition_key.as_deref().map_or(0, str::len);
    let length = |record: &types::Record| {
        record.data.as_ref().len() + key(record) + record.sequence_number.len()
    };
    let mut buffer = Vec::with_capacity(records.iter().map(length).sum());
    let mut ranges = Vec::with_capacity(records.len());
    for record in records {
        let mut place = |bytes: &[u8]| {
            let start = buffer.len();
            buffer.extend_from_slice(bytes);
            ByteRange::new(start, buffer.len())
        };
        let data = place(record.data.as_ref());
        let partition_key = match &record.partition_key {
            Some(key) => place(key.as_bytes()),
            None => Some(ByteRange::ABSENT),
        };
        let sequence_number = place(record.sequence_number.as_bytes());
        let (Some(data), Some(partition_key), Some(sequence_number)) =
            (data, partition_key, sequence_number)
        else {
            break;
        };
        ranges.push(RecordRange {
            data,
            partition_key,
            sequence_number,
            has_number: SequenceNumber::is_one(record.sequence_number.as_bytes()),
            arrival_millis: record.approximate_arrival_timestamp.and_then(millis),
            encryption_type: match record.encryption_type {
                Some(types::EncryptionType::Kms) => EncryptionType::Kms,
                _ => EncryptionType::None,
            },
        });
    }
    (buffer, ranges)
}

pub(in super::super) fn children_of_sdk(children: &[types::ChildShard]) -> Vec<NamedChild> {
    let name = |child: &types::ChildShard| NamedChild {
        id: child.shard_id().to_owned(),
        parents: child.parent_shards().to_vec(),
    };
    children.iter().map(name).collect()
}

/// Returns the time in milliseconds, rounded to the nearest: the SDK parses a time as a binary
/// fraction of a second and cuts it off at a nanosecond.
fn millis(time: DateTime) -> Option<i64> {
    let millis = (i64::from(time.subsec_nanos()) + 500_000) / 1_000_000;
    time.secs().checked_mul(1000)?.checked_add(millis)
}
