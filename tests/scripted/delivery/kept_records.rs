//! Records that the caller keeps: the memory that they count as, and the shards that are read
//! beside them.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use kinestream::testing::Kinesis;
use kinestream::{
    Acker, Checkpoint, CheckpointOn, Consumer, ConsumerBuilder, MemoryBudget, MemoryStore, Record,
    Records, StartingPosition, WireFormat,
};
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use tokio::time::{Instant, sleep, timeout};

use crate::simulated_clock::consumer_of;
use crate::{calls, consumer, next, number, orders, shard_of, shards};

const SECOND: Duration = Duration::from_secs(1);
const KIBIBYTE: usize = 1024;
/// The memory of each shard in addition to the budget.
const RESERVE: usize = 64 * KIBIBYTE;
/// The longest payload that is copied out of its response.
const COPIED: usize = 4 * KIBIBYTE;
const FORMATS: [WireFormat; 2] = [WireFormat::Auto, WireFormat::Json];

/// Returns the buffered bytes, which are measured every few seconds.
async fn buffered_bytes(snapshotter: &Snapshotter) -> usize {
    sleep(20 * SECOND).await;
    let measured = snapshotter.snapshot().into_vec();
    let gauge = measured.into_iter().find_map(|(key, _, _, value)| match value {
        DebugValue::Gauge(bytes) if key.key().name() == "kinestream_buffered_bytes" => Some(bytes),
        _ => None,
    });
    let bytes = gauge.expect("expected a gauge").into_inner();
    assert!((0.0..1e9).contains(&bytes), "{bytes}");
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "in range")]
    let bytes = bytes as usize;
    bytes
}

/// The part of a record that a caller keeps.
enum Kept {
    Nothing,
    Record(Record),
    Acker(Acker),
    Both((Record, Acker)),
    Payload(Bytes),
}

/// The length and the number of the records of a response, and whether their payloads are copied.
const RESPONSES: [(usize, u8, bool); 4] = [
    (COPIED, 50, true),
    (COPIED + 1, 8, false),
    // A sixteenth of the response, and more.
    (COPIED + 1, 20, true),
    (5 * COPIED, 10, false),
];

/// The ways to keep a part of a record, and whether a part of a longer or a copied payload keeps
/// the response.
type Keep = (fn(Record) -> Kept, [bool; 2]);

const WAYS: [Keep; 7] = [
    (|_| Kept::Nothing, [false, false]),
    (Kept::Record, [true, true]),
    (|record| Kept::Both(record.split()), [true, true]),
    (|record| Kept::Acker(record.split().1), [false, false]),
    (|record| Kept::Payload(record.bytes()), [true, false]),
    (|record| Kept::Payload(record.into_data()), [true, false]),
    (|record| Kept::Payload(record.bytes().slice(7..8)), [true, false]),
];

#[tokio::test(start_paused = true)]
async fn response_counts_until_its_last_part_is_dropped() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _recording = metrics::set_default_local_recorder(&recorder);
    for format in FORMATS {
        for (way, keeps) in WAYS {
            for (length, count, is_copied) in RESPONSES {
                let keeps = keeps[usize::from(is_copied)];
                let (kinesis, orders) = orders(1);
                let consumer = consumer(&kinesis).wire_format(format).build().unwrap();
                let mut records = consumer.records();
                // The format is settled before the response that is kept.
                orders.shard(0).put("0");
                next(&mut records).await;
                for number in 0..count {
                    orders.shard(0).put(vec![number; length]);
                }
                let mut kept = Kept::Nothing;
                for number in 0..count {
                    let record = next(&mut records).await;
                    assert_eq!(record.data(), vec![number; length]);
                    if number == 5 {
                        kept = way(record);
                    }
                }
                assert!(timeout(SECOND, records.next()).await.is_err());
                let buffered = buffered_bytes(&snapshotter).await;
                if keeps {
                    // The payloads, or their base64 text.
                    let bytes = usize::from(count) * length;
                    let bytes = bytes..bytes + bytes / 2;
                    assert!(bytes.contains(&buffered), "{buffered} bytes, expected {bytes:?}");
                } else {
                    assert_eq!(buffered, 0);
                }
                match &kept {
                    Kept::Record(record) | Kept::Both((record, _)) => {
                        assert_eq!(record.data(), vec![5; length]);
                    }
                    Kept::Payload(payload) => assert!(payload.iter().all(|byte| *byte == 5)),
                    Kept::Acker(acker) => acker.ack(),
                    Kept::Nothing => {}
                }
                drop(kept);
                assert_eq!(buffered_bytes(&snapshotter).await, 0);
            }
        }
    }
}

/// Returns a payload of `length` bytes that [`number`] reads.
fn payload(number: usize, length: usize) -> Vec<u8> {
    let digits = number.to_string().into_bytes();
    [vec![b'0'; length - digits.len()], digits].concat()
}

/// Every shard reads at least what fits into its reserve.
#[tokio::test(start_paused = true)]
async fn caller_that_keeps_more_than_the_budget_is_served_by_every_shard() {
    const SHARDS: usize = 4;
    for format in FORMATS {
        for (length, count) in [(KIBIBYTE, 1000), (10 * KIBIBYTE, 400), (1000 * KIBIBYTE, 10)] {
            let (kinesis, orders) = orders(SHARDS);
            for number in 0..count {
                for shard in orders.shards() {
                    shard.put(payload(number, length));
                }
            }
            let builder = consumer(&kinesis).wire_format(format);
            let consumer = builder.max_buffered_bytes(200 * KIBIBYTE).build().unwrap();
            let mut records = consumer.records();
            let (mut kept, mut expected) = (Vec::new(), [0; SHARDS]);
            let began = Instant::now();
            for _ in 0..SHARDS * count {
                let record = next(&mut records).await;
                let shard = shard_of(&record);
                assert_eq!(number(&record), expected[shard]);
                expected[shard] += 1;
                kept.push(record);
            }
            let took = began.elapsed();
            // Five calls a second, and at least a quarter of the reserve in each.
            let fitting = (RESERVE / 4 / length).max(1);
            let most = Duration::from_millis(220) * u32::try_from(count / fitting).unwrap();
            let most = most + 15 * SECOND;
            assert!(took < most, "{format:?}, {length} bytes: {took:?}, expected {most:?}");
            assert_eq!(kinesis.violations(), [""; 0]);
            for record in &kept {
                assert_eq!(record.data().len(), length);
            }
        }
    }
}

fn reader(kinesis: &Kinesis, stream: &str, budget: &MemoryBudget) -> (Consumer, Records) {
    let consumer = consumer_of(kinesis, kinesis.client(), stream)
        .starting_position(StartingPosition::TrimHorizon)
        .memory_budget(budget)
        .build()
        .unwrap();
    let records = consumer.records();
    (consumer, records)
}

#[tokio::test(start_paused = true)]
async fn consumer_reads_beside_one_that_keeps_the_shared_budget() {
    let (kinesis, budget) = (Kinesis::new(), MemoryBudget::new(1024 * KIBIBYTE));
    let [orders, payments] = ["orders", "payments"].map(|name| kinesis.create_stream(name, 2));
    for number in 0..500 {
        for shard in [orders.shard(0), orders.shard(1), payments.shard(0), payments.shard(1)] {
            shard.put(payload(number, 10_000));
        }
    }
    let (_orders, mut keeping) = reader(&kinesis, "orders", &budget);
    let mut kept = Vec::new();
    // The kept responses take the whole budget.
    for _ in 0..300 {
        kept.push(next(&mut keeping).await);
    }
    let (_payments, mut records) = reader(&kinesis, "payments", &budget);
    let began = Instant::now();
    let mut expected = [0; 2];
    for _ in 0..1000 {
        let record = next(&mut records).await;
        let shard = shard_of(&record);
        assert_eq!(number(&record), expected[shard]);
        expected[shard] += 1;
    }
    let took = began.elapsed();
    assert!(took < 60 * SECOND, "5 MB of each shard through its reserve took {took:?}");
    // The budget is free again.
    kept.clear();
    let read_so_far = calls(&kinesis, "GetRecords").len();
    for _ in 300..1000 {
        next(&mut keeping).await;
    }
    let calls = calls(&kinesis, "GetRecords").len() - read_so_far;
    assert!(calls < 100, "expected large responses, got {calls}");
    assert_eq!(kinesis.violations(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn acker_acknowledges_after_its_record_is_dropped_and_counts_once() {
    let (kinesis, orders) = orders(1);
    for number in 0..10 {
        orders.shard(0).put(format!("{number:0>99}"));
    }
    // A record has 99 bytes of data and a key of three bytes.
    let limits: [fn(ConsumerBuilder) -> ConsumerBuilder; 2] =
        [|builder| builder.max_in_flight(3), |builder| builder.max_in_flight_bytes(306)];
    for limit in limits {
        let store = MemoryStore::new();
        let builder = limit(consumer(&kinesis)).checkpoint_on(CheckpointOn::Ack);
        let consumer = builder.store(store.clone()).build().unwrap();
        let mut records = consumer.records();
        let mut ackers = Vec::new();
        for expected in 0..3 {
            let (record, acker) = next(&mut records).await.split();
            assert_eq!(number(&record), expected);
            if expected == 2 {
                record.ack();
                record.ack();
            }
            ackers.push(acker);
        }
        // Record 2 was acknowledged by the record, and again by its acker.
        ackers[2].ack();
        assert_eq!(number(&next(&mut records).await), 3);
        assert!(timeout(60 * SECOND, records.next()).await.is_err(), "expected one more record");
        ackers[1].ack();
        ackers[1].ack();
        assert_eq!(number(&next(&mut records).await), 4);
        assert!(timeout(60 * SECOND, records.next()).await.is_err(), "expected one more record");
        // The first record was not acknowledged.
        let position = |expected: Option<usize>| {
            let numbers = orders.shard(0).sequence_numbers();
            expected.map_or(Checkpoint::TrimHorizon, |record| Checkpoint::AfterSequenceNumber {
                sequence_number: numbers[record].clone(),
                sub_sequence_number: None,
            })
        };
        let id = orders.shard(0).id();
        assert_eq!(shards(&consumer).await[&id].position, Some(position(None)));
        ackers[0].ack();
        drop(records);
        consumer.close().await.unwrap();
        assert_eq!(shards(&consumer).await[&id].position, Some(position(Some(2))));
        // An acker of a closed consumer has no effect.
        ackers.iter().for_each(Acker::ack);
        assert_eq!(shards(&consumer).await[&id].position, Some(position(Some(2))));
    }
}
