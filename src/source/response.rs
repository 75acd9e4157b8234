//! A response of `GetRecords`: one buffer, and an index of the records in it.
//!
//! ```text
//!   buffer │ body of the response, payloads decoded in place │ tail │
//!                 ▲        ▲      ▲                             ▲
//!   records  [ payload, key, number, .. ]                 values that the body
//!                                                         has only in pieces
//! ```
//!
//! The body is checked once, when it arrives: after that, every range is inside the buffer and every
//! text is UTF-8.

mod assembly;
mod cbor;
mod json;
mod sdk;

use std::fmt;
use std::time::SystemTime;

use aws_sdk_kinesis::primitives::DateTime;

use crate::record::{ByteRange, EncryptionType, SequenceNumber};

pub(super) use sdk::{children_of_sdk, records_of_sdk};

/// A decoded response.
#[derive(Debug, Default)]
pub(super) struct Response {
    /// The memory of the records.
    pub(super) buffer: Vec<u8>,
    /// The records, or `None` if the response lacks the member.
    pub(super) records: Option<Vec<RecordRange>>,
    pub(super) next_shard_iterator: Option<String>,
    pub(super) millis_behind_latest: Option<i64>,
    pub(super) child_shards: Vec<NamedChild>,
}

/// One record in the buffer of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RecordRange {
    pub(super) data: ByteRange,
    /// Absent if the producer set none.
    pub(super) partition_key: ByteRange,
    pub(super) sequence_number: ByteRange,
    /// True if the text of the sequence number is one.
    pub(super) has_number: bool,
    /// In milliseconds since 1970.
    pub(super) arrival_millis: Option<i64>,
    pub(super) encryption_type: EncryptionType,
}

/// A child of the shard, as the response names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NamedChild {
    pub(super) id: String,
    pub(super) parents: Vec<String>,
}

/// The body of an error response.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct ErrorBody {
    /// The name of the error, without a namespace: `ExpiredIteratorException`.
    pub(super) code: Option<String>,
    pub(super) message: Option<String>,
}

/// The reason for which a body is not a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unreadable(pub(super) &'static str);

impl fmt::Display for Unreadable {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.0)
    }
}

impl std::error::Error for Unreadable {}

impl Response {
    /// Decodes the CBOR body of a successful call.
    pub(super) fn from_cbor(body: Vec<u8>) -> Result<Self, Unreadable> {
        cbor::decode(body)
    }

    /// Decodes the JSON body of a successful call.
    pub(super) fn from_json(body: Vec<u8>) -> Result<Self, Unreadable> {
        json::decode(body)
    }
}

impl ErrorBody {
    /// Decodes the CBOR body of a failed call.
    pub(super) fn from_cbor(body: &[u8]) -> Result<Self, Unreadable> {
        cbor::decode_error(body)
    }
}

impl RecordRange {
    pub(super) fn arrival(&self) -> Option<SystemTime> {
        self.arrival_millis.and_then(|millis| DateTime::from_millis(millis).try_into().ok())
    }

    /// Returns the sequence number of a record in this buffer; `None` if it has no valid one.
    pub(super) fn number(&self, buffer: &[u8]) -> Option<SequenceNumber> {
        let digits = self.sequence_number.of(buffer);
        self.has_number.then(|| SequenceNumber::of_digits(digits))
    }

    /// Returns the bytes that Kinesis counts for a record: payload and partition key.
    #[inline]
    pub(super) fn size(&self) -> usize {
        self.data.len() + self.partition_key.len()
    }
}

/// The part of a response's first record that shows where the response begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FirstRecord {
    /// `None` if the record has no valid sequence number.
    pub(super) number: Option<SequenceNumber>,
    pub(super) arrival: Option<SystemTime>,
}

impl FirstRecord {
    /// Returns the first of these records, which are in the buffer.
    pub(super) fn of(records: &[RecordRange], buffer: &[u8]) -> Option<Self> {
        let first = records.first()?;
        Some(Self { number: first.number(buffer), arrival: first.arrival() })
    }
}

/// Decodes an arbitrary body in CBOR, as a response and as an error.
#[cfg(fuzzing)]
pub(super) fn fuzz_cbor(body: &[u8]) {
    check(body, Response::from_cbor(body.to_vec()));
    drop(ErrorBody::from_cbor(body));
}

/// Decodes an arbitrary body in JSON.
#[cfg(fuzzing)]
pub(super) fn fuzz_json(body: &[u8]) {
    check(body, Response::from_json(body.to_vec()));
}

#[cfg(fuzzing)]
fn check(body: &[u8], response: Result<Response, Unreadable>) {
    let Ok(Response { buffer, records, .. }) = response else { return };
    assert!(buffer.len() <= 2 * body.len(), "the tail must be part of the body");
    let get = |range: ByteRange| buffer.get(range.start()..range.end());
    for record in records.iter().flatten() {
        assert!(get(record.data).is_some(), "a payload must be inside the buffer");
        let is_text = |range| get(range).is_some_and(|text| str::from_utf8(text).is_ok());
        assert!(is_text(record.sequence_number), "a number must be a text inside the buffer");
        let key = record.partition_key;
        assert!(key.is_absent() || is_text(key), "a key must be a text inside the buffer");
    }
}

#[cfg(test)]
mod tests;
