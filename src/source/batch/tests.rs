use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::checkpoint::{Checkpoint, InFlightConfig, Watermark};
use crate::record::{AckSink, EncryptionType, RecordPosition};
use crate::source::memory_budget::{MemoryBudget, RESERVE};
use crate::testing::aggregate;

/// A record of a response: plain, or aggregated with this many user records.
type Packed = Option<usize>;

/// The records that a batch is expected to deliver: sequence number, sub-sequence number, payload,
/// and whether other user records follow.
type Expected = (u64, u64, Vec<u8>, bool);

/// Receives the acknowledgements of records that are only compared.
struct NoAcks;

impl AckSink for NoAcks {
    fn acknowledge(&self, _: u64, _: &RecordPosition, _: usize) {}
    fn deliver(&self, _: u64) {}
    fn take_back(&self, _: usize, _: usize) {}
}

fn payload(record: usize, part: usize) -> Vec<u8> {
    format!("{record}-{part}").into_bytes()
}

/// Returns a batch with one record for each entry, and what it must deliver.
fn batch(packed: &[Packed]) -> (Batch, Vec<Expected>) {
    let mut expected = Vec::new();
    let data = packed.iter().enumerate().map(|(index, parts)| {
        let number = 1000 + index as u64;
        match parts {
            None => {
                expected.push((number, 0, payload(index, 0), false));
                payload(index, 0)
            }
            Some(parts) => {
                let payloads: Vec<Vec<u8>> = (0..*parts).map(|part| payload(index, part)).collect();
                for (part, data) in payloads.iter().enumerate() {
                    expected.push((number, part as u64, data.clone(), part + 1 < *parts));
                }
                aggregate(payloads.iter().map(|data| ("key", data.clone())))
            }
        }
    });
    let data: Vec<Vec<u8>> = data.collect();
    (batch_of(&MemoryBudget::new(1), &data), expected)
}

/// Returns a batch with a record for each payload, in the memory of a new shard.
fn batch_of(budget: &MemoryBudget, data: &[Vec<u8>]) -> Batch {
    let (mut buffer, mut records) = (Vec::new(), Vec::with_capacity(data.len()));
    for (data, number) in data.iter().zip(1000_u64..) {
        let mut place = |bytes: &[u8]| {
            buffer.extend_from_slice(bytes);
            ByteRange::new(buffer.len() - bytes.len(), buffer.len()).unwrap()
        };
        records.push(RecordRange {
            data: place(data),
            partition_key: place(b"key"),
            sequence_number: place(number.to_string().as_bytes()),
            has_number: true,
            arrival_millis: Some(0),
            encryption_type: EncryptionType::None,
        });
    }
    let mut space = budget.shard().empty();
    space.resize_up_to(buffer.len() + size_of_val(&records[..]));
    let (buffer, memory) = space.hold(buffer);
    let context = ResponseContext {
        stream: "orders".into(),
        shard_id: "shardId-000000000000".parse().unwrap(),
        millis_behind_latest: 0,
        epoch: 1,
        ack_sink: Arc::new(NoAcks),
        buffer,
    };
    Batch::new(records, true, context, memory)
}

fn delivered(record: &Record) -> Expected {
    let Checkpoint::AfterSequenceNumber { sequence_number, sub_sequence_number } =
        record.checkpoint()
    else {
        panic!("expected a position after a record")
    };
    let number = sequence_number.as_str().parse().unwrap();
    let part = record.sub_sequence_number();
    (number, part, record.data().to_vec(), sub_sequence_number == Some(part))
}

fn any_packed() -> impl Strategy<Value = Vec<Packed>> {
    prop::collection::vec(prop::option::of(1..5_usize), 0..8)
}

proptest! {
    #[test]
    fn batch_delivers_every_record_in_order(packed in any_packed(), steps in prop::collection::vec(0..4_usize, 0..20)) {
        let (mut batch, expected) = batch(&packed);
        let mut next = 0;
        for step in steps {
            // A run takes some of the records, and the batch follows it.
            let mut run = batch.clone();
            for want in expected.iter().skip(next).take(step) {
                let record = run.next(7).unwrap();
                prop_assert_eq!(&delivered(&record), want);
                prop_assert_eq!((record.number, record.partition_key()), (7, Some("key")));
            }
            batch.advance(step);
            next = expected.len().min(next + step);
            prop_assert_eq!((batch.len(), run.len()), (expected.len() - next, expected.len() - next));
        }
        let rest: Vec<Expected> = std::iter::from_fn(|| batch.next(0)).map(|record| delivered(&record)).collect();
        prop_assert_eq!(&rest[..], &expected[next..]);
    }

    #[test]
    fn placed_batch_begins_after_the_position(packed in any_packed(), number in 999..1009_u64, part in prop::option::of(0..5_u64)) {
        let (mut batch, mut expected) = batch(&packed);
        let sequence_number = number.to_string().parse().unwrap();
        batch.skip_past(&Position::AfterSequenceNumber(sequence_number, part));
        expected.retain(|(of, own, ..)| *of > number || *of == number && part.is_some_and(|part| *own > part));
        // A plain record has no parts that could be left.
        let is_plain = |of: u64| usize::try_from(of - 1000).ok().and_then(|index| packed.get(index)) == Some(&None);
        expected.retain(|(of, ..)| *of > number || !is_plain(*of));
        let left = batch.len();
        let rest: Vec<Expected> = std::iter::from_fn(|| batch.next(0)).map(|record| delivered(&record)).collect();
        prop_assert_eq!(left, rest.len());
        prop_assert_eq!(rest, expected);
    }
}

#[test]
fn tables_of_aggregated_records_count_until_all_records_are_delivered() {
    const KEYS: usize = 3000;
    let budget = MemoryBudget::new(1 << 20);
    let data = aggregate((0..KEYS).map(|key| (key.to_string(), "payload")));
    let mut batch = batch_of(&budget, &vec![data; 4]);
    let buffer = batch.context().buffer.len();
    let index = 4 * size_of::<RecordRange>();
    let counted = RESERVE + budget.taken() - buffer - index;
    let ranges = 4 * KEYS * size_of::<ByteRange>();
    assert!((ranges..ranges + 1000).contains(&counted), "{counted} bytes, expected {ranges}");

    let before = budget.taken();
    assert!(batch.retain(&HashRange { first: 0, last: u128::MAX / 2 }) > KEYS);
    let marks = budget.taken() - before;
    assert!((2 * KEYS..8 * KEYS).contains(&marks), "{marks} bytes for a mark per user record");

    let kept = batch.next(0);
    batch.end();
    assert_eq!(budget.taken(), buffer, "only the buffer is kept");
    drop(kept);
    assert_eq!(budget.taken(), 0);
}

#[test]
fn records_fit_up_to_the_allowed_bytes() {
    let (mut batch, _) = batch(&[None, Some(2), None]);
    let watermark = Watermark::default();
    watermark.set_limits(InFlightConfig { records: 10, bytes: 13 });
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let std::task::Poll::Ready(allowance) = watermark.poll_allowance(&mut context) else {
        panic!("expected an allowance")
    };
    // Each record has three bytes of payload and three of key.
    let bytes = allowance.bytes.unwrap();
    assert_eq!(batch.fit(10, bytes), Ok((2, 12)));
    assert_eq!(batch.fit(1, bytes), Ok((1, 6)));
    batch.advance(3);
    assert_eq!(batch.fit(10, bytes), Ok((1, 6)));
}

#[test]
fn aggregates_without_a_part_in_the_range_are_stepped_over() {
    // As many as a response holds: stepping over them must not recurse.
    let packed: Vec<Packed> = std::iter::repeat_n(Some(1), 10_000).chain([None]).collect();
    let (mut batch, _) = batch(&packed);
    let nothing = HashRange { first: 0, last: 0 };
    assert_eq!(batch.retain(&nothing), 10_000);
    assert_eq!(batch.len(), 1);
    let record = batch.next(0).unwrap();
    assert_eq!(delivered(&record).0, 11_000);
    assert!(record.approximate_arrival().unwrap().elapsed().unwrap() > Duration::ZERO);
    assert!(batch.next(0).is_none());
}
