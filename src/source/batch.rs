//! The records of one response, on their way to the caller.
//!
//! ```text
//!   Contents  [ record, record, aggregate ─► user records, record ]   shared, never changed
//!                         ▲
//!   Batch      ───────────┘  the next record to deliver               moves forward
//! ```
//!
//! A batch is a position in the contents, so a clone of it costs nothing. A [`Record`] is built when
//! it is delivered.

use std::sync::Arc;
use std::time::SystemTime;

use super::Position;
use super::aggregation::{Aggregate, Part, PartCursor};
use super::hash_range::HashRange;
use super::memory_budget::HeldMemory;
use super::response::RecordRange;
use crate::checkpoint::ByteAllowance;
use crate::record::{ByteRange, Record, ResponseContext, SequenceNumber};

/// The records of one response that are not delivered yet.
#[derive(Clone)]
pub(crate) struct Batch {
    contents: Arc<Contents>,
    next: Cursor,
    /// The memory of the response.
    memory: HeldMemory,
}

struct Contents {
    records: Vec<RecordRange>,
    /// True if aggregated records are unpacked.
    deaggregate: bool,
    /// The aggregated records among them, in order.
    aggregates: Vec<Aggregated>,
    context: Arc<ResponseContext>,
}

struct Aggregated {
    /// The index of the aggregated record.
    record: usize,
    aggregate: Aggregate,
}

/// The next record of a batch.
#[derive(Clone, Copy)]
struct Cursor {
    /// The index of the record.
    record: usize,
    /// The index of the next aggregated record, among the aggregated records.
    aggregated: usize,
    /// The next user record, if the record is aggregated.
    part: PartCursor,
    /// The number of records left to deliver. Each user record counts as one.
    left: usize,
}

/// A record or user record that a cursor has stepped over.
struct Item<'a> {
    record: &'a RecordRange,
    data: ByteRange,
    key: ByteRange,
    /// The index of the user record.
    part: u64,
    /// Other user records of the same aggregated record follow.
    is_inner: bool,
}

impl Batch {
    /// Creates the batch of all records. Their sequence numbers must be valid.
    pub(super) fn new(
        records: Vec<RecordRange>,
        deaggregate: bool,
        context: ResponseContext,
        memory: HeldMemory,
    ) -> Self {
        let aggregates = if deaggregate { unpack(&records, &context.buffer) } else { Vec::new() };
        let user_records: usize = aggregates.iter().map(|packed| packed.aggregate.len()).sum();
        let left = records.len() - aggregates.len() + user_records;
        let contents = Contents { records, deaggregate, aggregates, context: Arc::new(context) };
        memory.count(contents.tables());
        let next = Cursor { record: 0, aggregated: 0, part: contents.first_part(0), left };
        Self { contents: Arc::new(contents), next, memory }
    }

    /// Drops a batch whose records are all delivered. The reserve of its shard is free for the next
    /// response, even if the caller keeps some of them.
    pub(crate) fn end(self) {
        let Self { contents, memory, .. } = self;
        let dropped = Arc::into_inner(contents).map_or(0, |contents| contents.memory());
        memory.end_delivery(dropped);
    }

    /// Returns true if some of the records left are aggregated.
    pub(super) fn is_aggregated(&self) -> bool {
        self.next.aggregated < self.contents.aggregates.len()
    }

    /// Drops the user records whose hash keys belong to another shard, and returns their number.
    pub(super) fn retain(&mut self, range: &HashRange) -> usize {
        // No other batch has these contents before the first delivery.
        let Some(contents) = Arc::get_mut(&mut self.contents) else { return 0 };
        let before = contents.tables();
        let buffer = &contents.context.buffer;
        let mut from = Some(self.next.part);
        let mut dropped = 0;
        for packed in contents.aggregates.iter_mut().skip(self.next.aggregated) {
            let from = from.take().unwrap_or_else(|| packed.aggregate.first());
            dropped += packed.aggregate.retain(range, from, buffer);
        }
        self.next.left -= dropped;
        self.memory.count(contents.tables().saturating_sub(before));
        dropped
    }

    /// Skips the records before the position at which an iterator was just created. Stops at the
    /// first record that is not before it: arrival times do not always rise from record to record.
    pub(super) fn skip_past(&mut self, position: &Position) {
        let Self { contents, next, .. } = self;
        while let Some(record) = contents.records.get(next.record) {
            let number = contents.sequence_number(record);
            if position.is_past(&number, record.arrival()) {
                contents.skip_record(next);
                continue;
            }
            if let Position::AfterSequenceNumber(last, Some(part)) = position
                && *last == number
            {
                // The KCL names the first user record of a record that is not aggregated.
                if contents.deaggregate && contents.aggregate(next).is_none() {
                    contents.skip_record(next);
                    continue;
                }
                contents.skip_parts(next, *part);
            }
            return;
        }
    }

    /// Drops the records from the first one on whose arrival time `is_over`. A record without an
    /// arrival time counts as one that arrived no later than the record before it. Returns true if
    /// a record was dropped.
    pub(super) fn end_before(&mut self, is_over: impl Fn(SystemTime) -> bool) -> bool {
        // No other batch has these contents before the first delivery.
        let Some(contents) = Arc::get_mut(&mut self.contents) else { return false };
        let Contents { records, aggregates, .. } = contents;
        let (first, left) = (self.next.record, records.iter().skip(self.next.record));
        let kept = left.take_while(|record| !record.arrival().is_some_and(&is_over)).count();
        let end = first + kept;
        if end >= records.len() {
            return false;
        }
        let dropped = aggregates.iter().filter(|packed| packed.record >= end);
        let (packed, parts) = dropped
            .fold((0, 0), |(packed, parts), dropped| (packed + 1, parts + dropped.aggregate.len()));
        // Some user records of the next record may be skipped already.
        self.next.left =
            if kept == 0 { 0 } else { self.next.left - (records.len() - end - packed + parts) };
        records.truncate(end);
        aggregates.retain(|packed| packed.record < end);
        true
    }

    pub(crate) fn context(&self) -> &ResponseContext {
        &self.contents.context
    }

    /// Returns the number of records left to deliver.
    pub(crate) fn len(&self) -> usize {
        self.next.left
    }

    /// Returns how many of the next `most` records are allowed, with their bytes; `Err` with the
    /// bytes of the first record if that one exceeds the limit.
    pub(crate) fn fit(&self, most: usize, allowed: ByteAllowance) -> Result<(usize, usize), usize> {
        let mut at = self.next;
        let sizes = std::iter::from_fn(|| {
            let item = self.contents.step(&mut at)?;
            Some(item.data.len() + item.key.len())
        });
        allowed.fit(sizes.take(most))
    }

    /// Steps over the next `records` records.
    pub(crate) fn advance(&mut self, records: usize) {
        let records = records.min(self.next.left);
        if self.is_aggregated() {
            for _ in 0..records {
                self.contents.step(&mut self.next);
            }
        } else {
            self.next.record += records;
            self.next.left -= records;
        }
    }

    /// Returns the next record. `number` is its index in the order of delivery of the shard.
    #[inline]
    pub(crate) fn next(&mut self, number: u64) -> Option<Record> {
        let contents = &*self.contents;
        let item = contents.step(&mut self.next)?;
        Some(Record {
            data: item.data,
            partition_key: item.key,
            sequence_number: contents.sequence_number(item.record),
            sub_sequence_number: item.part,
            is_inner: item.is_inner,
            encryption_type: item.record.encryption_type,
            arrival_millis: item.record.arrival_millis,
            number,
            context: Arc::clone(&contents.context),
        })
    }
}

impl Contents {
    /// Returns the bytes that the index and the tables occupy, without the buffer.
    fn memory(&self) -> usize {
        self.records.capacity() * size_of::<RecordRange>() + self.tables()
    }

    /// Returns the bytes that the tables of the aggregated records occupy.
    fn tables(&self) -> usize {
        let tables = self.aggregates.iter().map(|packed| packed.aggregate.memory()).sum::<usize>();
        self.aggregates.capacity() * size_of::<Aggregated>() + tables
    }

    /// Returns the next record, and moves the cursor past it.
    #[inline]
    fn step(&self, at: &mut Cursor) -> Option<Item<'_>> {
        while self.aggregate(at).is_some() {
            let part = self.step_part(at);
            if part.is_some() {
                return part;
            }
        }
        let record = self.records.get(at.record)?;
        at.record += 1;
        at.left -= 1;
        let RecordRange { data, partition_key: key, .. } = *record;
        Some(Item { record, data, key, part: 0, is_inner: false })
    }

    /// Returns the next user record. Returns `None`, and moves past the aggregated record, if none
    /// is left.
    #[inline(never)]
    fn step_part(&self, at: &mut Cursor) -> Option<Item<'_>> {
        let (aggregate, record) = (self.aggregate(at)?, self.records.get(at.record)?);
        let Some((part, after)) = aggregate.part(at.part, &self.context.buffer) else {
            self.end_aggregate(at);
            return None;
        };
        at.part = after;
        at.left -= 1;
        if part.is_last {
            self.end_aggregate(at);
        }
        let Part { number, key, data, is_last } = part;
        Some(Item { record, data, key, part: number, is_inner: !is_last })
    }

    /// Moves the cursor past the next record with all of its user records.
    fn skip_record(&self, at: &mut Cursor) {
        if self.aggregate(at).is_some() {
            self.skip_parts(at, u64::MAX);
            self.end_aggregate(at);
        } else {
            at.record += 1;
            at.left -= 1;
        }
    }

    /// Moves the cursor past the user records of the next record up to and including `part`.
    fn skip_parts(&self, at: &mut Cursor, part: u64) {
        let Some(aggregate) = self.aggregate(at) else { return };
        while let Some((next, after)) = aggregate.part(at.part, &self.context.buffer)
            && next.number <= part
        {
            at.part = after;
            at.left -= 1;
        }
    }

    fn end_aggregate(&self, at: &mut Cursor) {
        at.record += 1;
        at.aggregated += 1;
        at.part = self.first_part(at.aggregated);
    }

    /// Returns the next record as an aggregated record, if it is one.
    #[inline]
    fn aggregate(&self, at: &Cursor) -> Option<&Aggregate> {
        let packed = self.aggregates.get(at.aggregated)?;
        (packed.record == at.record).then_some(&packed.aggregate)
    }

    fn first_part(&self, aggregated: usize) -> PartCursor {
        let packed = self.aggregates.get(aggregated);
        packed.map_or_else(PartCursor::default, |packed| packed.aggregate.first())
    }

    #[inline]
    fn sequence_number(&self, record: &RecordRange) -> SequenceNumber {
        SequenceNumber::of_digits(record.sequence_number.of(&self.context.buffer))
    }
}

fn unpack(records: &[RecordRange], buffer: &[u8]) -> Vec<Aggregated> {
    let records = records.iter().enumerate();
    let packed = records.filter_map(|(record, range)| {
        let aggregate = Aggregate::of(range.data, buffer)?;
        Some(Aggregated { record, aggregate })
    });
    packed.collect()
}

#[cfg(test)]
#[cfg(feature = "testing")]
mod tests;
