//! Tests of the decoders. [`body`] encodes random responses in all forms.

mod body;
mod cbor;
mod hostile;
mod json;
mod random;
mod vectors;

use super::*;

/// A record with owned values.
#[derive(Debug, Clone, PartialEq, Eq)]
struct OwnedRecord {
    data: Vec<u8>,
    partition_key: Option<String>,
    sequence_number: String,
    arrival_millis: Option<i64>,
    encryption_type: EncryptionType,
}

/// A response with owned values.
#[derive(Debug, Clone, PartialEq, Eq)]
struct OwnedResponse {
    records: Option<Vec<OwnedRecord>>,
    next_shard_iterator: Option<String>,
    millis_behind_latest: Option<i64>,
    child_shards: Vec<NamedChild>,
}

fn owned_record(buffer: &[u8], record: &RecordRange) -> OwnedRecord {
    let get = |range: ByteRange| {
        buffer.get(range.start()..range.end()).expect("every range is inside the buffer")
    };
    let text = |range| str::from_utf8(get(range)).expect("texts are UTF-8").to_owned();
    OwnedRecord {
        data: get(record.data).to_vec(),
        partition_key: (!record.partition_key.is_absent()).then(|| text(record.partition_key)),
        sequence_number: text(record.sequence_number),
        arrival_millis: record.arrival_millis,
        encryption_type: record.encryption_type,
    }
}

fn owned(response: Response) -> OwnedResponse {
    let Response { buffer, records, .. } = &response;
    let owned = |record| owned_record(buffer, record);
    OwnedResponse {
        records: records.as_ref().map(|records| records.iter().map(owned).collect()),
        next_shard_iterator: response.next_shard_iterator,
        millis_behind_latest: response.millis_behind_latest,
        child_shards: response.child_shards,
    }
}

fn from_cbor(body: impl Into<Vec<u8>>) -> Result<OwnedResponse, Unreadable> {
    Response::from_cbor(body.into()).map(owned)
}

fn from_json(body: impl Into<Vec<u8>>) -> Result<OwnedResponse, Unreadable> {
    Response::from_json(body.into()).map(owned)
}
