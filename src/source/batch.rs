use std::collections::VecDeque;
use std::sync::Arc;
use std::vec;

use aws_sdk_kinesis::primitives::DateTime;
use aws_sdk_kinesis::types;

use crate::checkpoint::ByteAllowance;
use crate::error::{Error, ErrorKind, Result};
use crate::record::{BatchContext, EncryptionType, Record, SequenceNumber, SharedText};

use super::Position;
use super::aggregation::Aggregate;
use super::hash_range::HashRange;

/// The records of one response.
///
/// Each record is built when it is delivered. Until then it stays as the SDK has decoded it, so
/// nothing is built for records that are never delivered.
pub(crate) struct Batch {
    records: vec::IntoIter<types::Record>,
    /// The aggregated records among them, in order.
    aggregates: VecDeque<OpenAggregate>,
    /// The number of records left when the next one is aggregated, or [`NONE`].
    next_aggregate: usize,
    /// The number of records left to deliver.
    left: usize,
    /// The bytes that were delivered since the last call of `take_bytes`.
    bytes: usize,
    origin: Arc<BatchContext>,
}

/// An aggregated record.
struct OpenAggregate {
    aggregate: Aggregate,
    /// The number of records of the response that are left, including this one.
    left: usize,
    /// The metadata that its user records share, set when the first one is delivered.
    shared: Option<AggregateFields>,
}

#[derive(Clone)]
struct AggregateFields {
    sequence_number: SequenceNumber,
    arrival_millis: Option<i64>,
    encryption_type: EncryptionType,
}

/// The value of `next_aggregate` if no aggregated record is left.
const NONE: usize = usize::MAX;

impl Batch {
    pub(super) fn new(
        records: Vec<types::Record>,
        deaggregate: bool,
        origin: BatchContext,
    ) -> Self {
        let mut batch = Self {
            left: records.len(),
            aggregates: VecDeque::new(),
            next_aggregate: NONE,
            bytes: 0,
            records: records.into_iter(),
            origin: Arc::new(origin),
        };
        if deaggregate {
            batch.open_aggregates();
        }
        batch
    }

    fn open_aggregates(&mut self) {
        let records = self.records.as_slice();
        for (index, record) in records.iter().enumerate() {
            if !Aggregate::may_be_aggregate(record.data.as_ref()) {
                continue;
            }
            if let Some(aggregate) = Aggregate::of(&record.data.clone().into_bytes()) {
                self.left += aggregate.len();
                self.left -= 1;
                let left = records.len() - index;
                self.aggregates.push_back(OpenAggregate { aggregate, left, shared: None });
            }
        }
        self.update_next_aggregate();
    }

    fn update_next_aggregate(&mut self) {
        self.next_aggregate = self.aggregates.front().map_or(NONE, |packed| packed.left);
    }

    /// Returns true if some of the records left are aggregated.
    pub(super) fn is_aggregated(&self) -> bool {
        !self.aggregates.is_empty()
    }

    /// Drops the user records whose hash keys belong to another shard, and returns their number.
    pub(super) fn retain(&mut self, range: &HashRange) -> usize {
        let mut dropped = 0;
        for packed in &mut self.aggregates {
            let before = packed.aggregate.len();
            packed.aggregate.retain(range);
            dropped += before - packed.aggregate.len();
        }
        self.left -= dropped;
        dropped
    }

    /// Skips the records before the position at which an iterator was just created. Stops at the
    /// first record that is not before it: arrival times do not always rise from record to record.
    pub(super) fn skip_past(&mut self, position: &Position) {
        while let Some(record) = self.records.as_slice().first() {
            let arrival =
                record.approximate_arrival_timestamp.and_then(|time| time.try_into().ok());
            // Every record of a batch has a valid sequence number.
            let Ok(place) = record.sequence_number.parse() else { break };
            let is_aggregate = self.records.len() == self.next_aggregate;
            if !position.is_past(&place, arrival) {
                if let (Position::AfterSequenceNumber(number, Some(part)), true) =
                    (position, is_aggregate)
                    && *number == place
                {
                    self.skip_through(*part);
                }
                break;
            }
            if is_aggregate {
                self.skip_through(u64::MAX);
                self.end_aggregate();
            } else {
                self.records.next();
                self.left -= 1;
            }
        }
    }

    /// Skips the parts of the next record up to and including `part`.
    fn skip_through(&mut self, part: u64) {
        if let Some(OpenAggregate { aggregate, .. }) = self.aggregates.front_mut() {
            let before = aggregate.len();
            aggregate.skip_through(part);
            self.left -= before - aggregate.len();
        }
    }

    /// Removes the next record, which has no user record left to deliver.
    fn end_aggregate(&mut self) {
        self.aggregates.pop_front();
        self.update_next_aggregate();
        if let Some(record) = self.records.next() {
            self.bytes += size(&record);
        }
    }

    pub(crate) fn origin(&self) -> &BatchContext {
        &self.origin
    }

    pub(crate) fn len(&self) -> usize {
        self.left
    }

    /// Returns the bytes delivered since the last call. The bytes of an aggregated record count
    /// when its last user record is delivered.
    pub(crate) fn take_bytes(&mut self) -> usize {
        std::mem::take(&mut self.bytes)
    }

    /// Returns how many of the next `most` records are allowed, with their bytes; `Err` with the
    /// bytes of the first record if that one exceeds the limit.
    pub(crate) fn fit(
        &self,
        most: usize,
        allowed: ByteAllowance,
    ) -> std::result::Result<(usize, usize), usize> {
        if self.aggregates.is_empty() {
            return allowed.fit(self.records.as_slice().iter().take(most).map(size));
        }
        allowed.fit(self.sizes().take(most))
    }

    /// Returns the bytes of payload and partition key for each record left to deliver.
    fn sizes(&self) -> impl Iterator<Item = usize> {
        let records = self.records.as_slice();
        let mut aggregates = self.aggregates.iter().peekable();
        records.iter().enumerate().flat_map(move |(index, record)| {
            let left = records.len() - index;
            let packed = aggregates.next_if(|packed| packed.left == left);
            let whole = if packed.is_none() { Some(size(record)) } else { None };
            packed.map(|packed| packed.aggregate.sizes()).into_iter().flatten().chain(whole)
        })
    }

    /// Loads the sequence numbers of the next `records` records into the CPU cache, all at once.
    /// They are far apart in memory, and loading one after the other takes longer than the rest of
    /// their processing.
    pub(crate) fn prefetch_sequence_numbers(&self, records: usize) {
        let ahead = self.records.as_slice().iter().take(records);
        let first = ahead.filter_map(|record| record.sequence_number.as_bytes().first());
        std::hint::black_box(first.fold(0, |all, digit| all | digit));
    }

    /// Returns the next record. `number` is its index in the order of delivery of the shard.
    #[inline]
    pub(crate) fn next(&mut self, number: u64) -> Option<Result<Record>> {
        while self.records.len() == self.next_aggregate {
            let part = self.next_part(number);
            if part.is_some() {
                return part;
            }
        }
        let record = self.records.next()?;
        self.left -= 1;
        self.bytes += size(&record);
        let arrival_millis = record.approximate_arrival_timestamp.and_then(millis);
        let encryption_type = encryption_of(&record);
        let sequence_number = match SequenceNumber::of(record.sequence_number) {
            Ok(sequence_number) => sequence_number,
            Err(error) => return Some(Err(self.invalid_sequence_number(error))),
        };
        Some(Ok(Record {
            data: record.data.into_bytes(),
            partition_key: record.partition_key.map(SharedText::from),
            sequence_number,
            sub_sequence_number: 0,
            is_inner: false,
            arrival_millis,
            encryption_type,
            number,
            origin: Arc::clone(&self.origin),
        }))
    }

    /// Returns the next user record of the aggregated record, or `None` if none is left.
    #[cold]
    fn next_part(&mut self, number: u64) -> Option<Result<Record>> {
        let packed = self.aggregates.front_mut()?;
        if packed.shared.is_none() {
            let record = self.records.as_slice().first()?;
            match record.sequence_number.parse::<SequenceNumber>() {
                Ok(place) => {
                    packed.shared = Some(AggregateFields {
                        sequence_number: place.into_shared(),
                        arrival_millis: record.approximate_arrival_timestamp.and_then(millis),
                        encryption_type: encryption_of(record),
                    });
                }
                Err(error) => {
                    let error = self.invalid_sequence_number(error);
                    self.skip_through(u64::MAX);
                    self.end_aggregate();
                    return Some(Err(error));
                }
            }
        }
        let (Some(part), Some(shared)) = (packed.aggregate.next(), packed.shared.clone()) else {
            // None of its user records belongs to this shard.
            self.end_aggregate();
            return None;
        };
        self.left -= 1;
        if part.is_last {
            self.end_aggregate();
        }
        Some(Ok(Record {
            data: part.data,
            partition_key: Some(SharedText::Shared(part.key)),
            sequence_number: shared.sequence_number,
            sub_sequence_number: part.number,
            is_inner: !part.is_last,
            arrival_millis: shared.arrival_millis,
            encryption_type: shared.encryption_type,
            number,
            origin: Arc::clone(&self.origin),
        }))
    }

    #[cold]
    fn invalid_sequence_number(&self, error: Error) -> Error {
        Error::new(ErrorKind::Rejected, "Kinesis returned an invalid sequence number")
            .with_source(error)
            .in_stream(&self.origin.stream)
            .in_shard(&self.origin.shard_id)
    }
}

/// Returns the bytes that Kinesis counts for a record: payload and partition key.
#[inline]
pub(super) fn size(record: &types::Record) -> usize {
    record.data.as_ref().len() + record.partition_key.as_ref().map_or(0, String::len)
}

#[inline]
fn encryption_of(record: &types::Record) -> EncryptionType {
    match record.encryption_type {
        Some(types::EncryptionType::Kms) => EncryptionType::Kms,
        _ => EncryptionType::None,
    }
}

#[inline]
fn millis(time: DateTime) -> Option<i64> {
    time.secs().checked_mul(1000)?.checked_add(i64::from(time.subsec_nanos() / 1_000_000))
}
