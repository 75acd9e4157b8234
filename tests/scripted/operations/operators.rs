//! Operations: reading, setting and clearing positions, and seeking.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use kinestream::testing::{Outcome, Shard, aggregate};
use kinestream::{
    Checkpoint, CheckpointOn, Consumer, ErrorKind, Event, IfLeased, MemoryStore, Record, Records,
    StartingPosition,
};
use tokio::time::{sleep, timeout};

use crate::gated::{Gated, GatedCall};
use crate::store::recording_store::RecordingStore;
use crate::{assert_silent, consumer, next, number, orders, shards};

const SECOND: Duration = Duration::from_secs(1);
const RENEWALS: Duration = Duration::from_secs(10);

#[tokio::test(start_paused = true)]
async fn positions_are_always_listed_and_set_only_while_no_worker_reads() {
    let (kinesis, orders) = orders(1);
    let numbers: Vec<_> = (0..6).map(|number| orders.shard(0).put(number.to_string())).collect();
    let shard = orders.shard(0).id();
    let store = MemoryStore::new();
    let build = || consumer(&kinesis).store(store.clone()).worker_id("reader").build().unwrap();

    let operator = build();
    assert!(shards(&operator).await.is_empty());
    let reader = build();
    let mut records = reader.records();
    for _ in 0..6 {
        next(&mut records).await.ack();
    }
    sleep(RENEWALS).await;
    let lease = shards(&operator).await.remove(&shard).unwrap();
    assert_eq!(lease.owner.as_deref(), Some("reader"));
    assert_eq!(
        lease.position.unwrap().to_string(),
        format!("AFTER_SEQUENCE_NUMBER:{}", numbers[5])
    );

    let back = Checkpoint::AfterSequenceNumber {
        sequence_number: numbers[1].clone(),
        sub_sequence_number: None,
    };
    let refused = operator.set_position(&shard, back.clone(), IfLeased::Refuse).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InUse);
    assert!(refused.to_string().contains("worker reader is reading"), "{refused}");
    let refused = operator.clear_positions(IfLeased::Refuse).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InUse);

    reader.close().await.unwrap();
    operator.set_position(&shard, back, IfLeased::Refuse).await.unwrap();
    let mut records = build().records();
    assert_eq!(number(&next(&mut records).await), 2);
}

#[tokio::test(start_paused = true)]
async fn forced_position_moves_a_running_reader() {
    let (kinesis, orders) = orders(1);
    let numbers: Vec<_> = (0..6).map(|number| orders.shard(0).put(number.to_string())).collect();
    let shard = orders.shard(0).id();
    let reader = consumer(&kinesis).store(MemoryStore::new()).build().unwrap();
    let mut records = reader.records();
    for _ in 0..6 {
        next(&mut records).await.ack();
    }
    let before = shards(&reader).await[&shard].epoch;
    let back = Checkpoint::AfterSequenceNumber {
        sequence_number: numbers[3].clone(),
        sub_sequence_number: None,
    };
    reader.set_position(&shard, back, IfLeased::Force).await.unwrap();
    for expected in [4, 5] {
        let record = next(&mut records).await;
        assert_eq!(number(&record), expected);
        assert!(record.epoch() > before);
    }
    assert_silent(&mut records).await;
}

#[tokio::test(start_paused = true)]
async fn cleared_positions_are_read_from_the_start() {
    for forced in [IfLeased::Refuse, IfLeased::Force] {
        let (kinesis, orders) = orders(2);
        for number in 0..4 {
            orders.shard(number % 2).put(number.to_string());
        }
        orders.shard(0).split();
        let store = MemoryStore::new();
        let build = |start| {
            consumer(&kinesis).store(store.clone()).starting_position(start).build().unwrap()
        };
        let reader = build(StartingPosition::TrimHorizon);
        let mut records = reader.records();
        for _ in 0..4 {
            next(&mut records).await.ack();
        }
        sleep(RENEWALS).await;
        if forced == IfLeased::Refuse {
            reader.close().await.unwrap();
            assert!(records.next().await.is_none());
            reader.clear_positions(forced).await.unwrap();
            assert!(shards(&reader).await.is_empty());
            let mut records = build(StartingPosition::TrimHorizon).records();
            let mut again = Vec::new();
            for _ in 0..4 {
                again.push(number(&next(&mut records).await));
            }
            again.sort_unstable();
            assert_eq!(again, [0, 1, 2, 3]);
        } else {
            reader.clear_positions(forced).await.unwrap();
            let mut again = Vec::new();
            for _ in 0..4 {
                again.push(number(&next(&mut records).await));
            }
            again.sort_unstable();
            assert_eq!(again, [0, 1, 2, 3]);
            assert_silent(&mut records).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn store_without_leases_shows_positions_and_rejects_edits() {
    let (kinesis, orders) = orders(1);
    orders.shard(0).put("0");
    let store = RecordingStore::default();
    let reader = consumer(&kinesis).store(store.clone()).build().unwrap();
    let mut records = reader.records();
    next(&mut records).await.ack();
    sleep(RENEWALS).await;
    let shard = orders.shard(0).id();
    let stored = shards(&reader).await[&shard].position.clone().unwrap();
    assert_eq!(Some(stored.to_string()), store.position(0).await);
    let moved = reader.set_position(&shard, Checkpoint::TrimHorizon, IfLeased::Force).await;
    assert_eq!(moved.unwrap_err().kind(), ErrorKind::Configuration);
}

/// The rows of a KCL table are set for an application that has not started: a parent inside an
/// aggregated record, a shard after a plain record, where sub-sequence number 0 could also mean the
/// first user record of an aggregate, and a child.
#[tokio::test(start_paused = true)]
async fn application_resumes_from_the_checkpoints_of_the_kcl() {
    let (kinesis, orders) = orders(3);
    let packed = aggregate((0..4).map(|number| ("key", number.to_string())));
    let (parent, plain) = (orders.shard(0), orders.shard(1));
    let packed = parent.put(packed);
    parent.put("4");
    let finished = plain.put("10");
    plain.put("11");
    let unnamed = orders.shard(2);
    unnamed.put("20");
    let [left, right] = parent.split();
    left.put("5");
    right.put("6");
    let consumer = consumer(&kinesis).starting_position(StartingPosition::Latest).build().unwrap();
    let rows = [
        (left.id(), "TRIM_HORIZON".to_owned()),
        (parent.id(), format!("AFTER_SEQUENCE_NUMBER:{packed}:1")),
        (plain.id(), format!("AFTER_SEQUENCE_NUMBER:{finished}:0")),
    ];
    for (shard, checkpoint) in rows {
        let checkpoint = checkpoint.parse().unwrap();
        consumer.set_position(&shard, checkpoint, IfLeased::Refuse).await.unwrap();
    }
    let mut records = consumer.records();
    let mut read = Vec::new();
    for _ in 0..7 {
        read.push(number(&next(&mut records).await));
    }
    let mut of =
        |range: Range<usize>| read.extract_if(.., |number| range.contains(number)).collect();
    let (plain, unnamed): (Vec<_>, Vec<_>) = (of(10..20), of(20..30));
    assert_eq!(plain, [11], "expected no redelivery of the finished record");
    assert_eq!(unnamed, [20], "expected the shard without a checkpoint from its oldest record");
    assert_eq!(read[..3], [2, 3, 4]);
    read[3..].sort_unstable();
    assert_eq!(read[3..], [5, 6], "expected the children after their parent");
    assert_silent(&mut records).await;
}

/// All shards move back while they are read. Acks of records delivered before the seek have no
/// effect.
#[tokio::test(start_paused = true)]
async fn seek_redelivers_all_records_parents_first() {
    let (kinesis, orders) = orders(1);
    let consumer = consumer(&kinesis).checkpoint_on(CheckpointOn::Ack).build().unwrap();
    let mut records = consumer.records();
    let (parent, [left, right]) = (orders.shard(0), {
        orders.shard(0).put("0");
        orders.shard(0).split()
    });
    left.put("1");
    right.put("1");
    let read = async |records: &mut Records, ack: bool| {
        let mut read = Vec::new();
        while let Ok(Some(record)) = timeout(20 * SECOND, records.next()).await {
            let record = record.unwrap();
            if ack || number(&record) == 0 {
                record.ack();
            }
            read.push(record);
        }
        read
    };
    let before = read(&mut records, false).await;
    assert!(before.iter().map(number).eq([0, 1, 1]), "{before:?}");
    assert_eq!(position(&consumer, &parent).await, Some(Checkpoint::ShardEnd));
    consumer.seek(StartingPosition::TrimHorizon).await.unwrap();
    // These acks are late.
    before.iter().for_each(Record::ack);
    let again = read(&mut records, true).await;
    assert!(again.iter().map(number).eq([0, 1, 1]), "{again:?}");
    let epochs = |records: &[Record]| records.iter().map(Record::epoch).collect::<Vec<_>>();
    assert!(epochs(&before).iter().max() < epochs(&again).iter().min());

    // Only the children have records from that time: the parent was closed longer ago than clocks
    // may differ.
    sleep(360 * SECOND).await;
    let time = kinesis.now();
    left.put("2");
    consumer.seek(StartingPosition::AtTimestamp(time)).await.unwrap();
    assert_eq!(position(&consumer, &parent).await, Some(Checkpoint::ShardEnd));
    assert!(read(&mut records, true).await.iter().map(number).eq([2]));
    // Skips the existing records. The server's clock has a resolution of one second.
    left.put("3");
    sleep(2 * SECOND).await;
    consumer.seek(StartingPosition::Latest).await.unwrap();
    right.put("4");
    assert!(read(&mut records, true).await.iter().map(number).eq([4]));
    let future = StartingPosition::AtTimestamp(kinesis.now() + 3600 * SECOND);
    let refused = consumer.seek(future).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Configuration);
}

#[tokio::test(start_paused = true)]
async fn seek_of_many_shards_is_one_edit_of_the_store() {
    let (kinesis, orders) = orders(2000);
    let edits = Arc::new(AtomicUsize::new(0));
    let store = Gated::new(MemoryStore::new(), {
        let edits = Arc::clone(&edits);
        move |call| {
            edits.fetch_add(usize::from(call == GatedCall::Edit), Ordering::Relaxed);
            async { Ok(()) }.boxed()
        }
    });
    let consumer = consumer(&kinesis).store(store).build().unwrap();
    consumer.seek(StartingPosition::TrimHorizon).await.unwrap();
    assert_eq!(edits.load(Ordering::Relaxed), 1, "expected one edit for all shards");
    let positions = shards(&consumer).await;
    assert_eq!(positions.len(), orders.shards().len());
    assert!(positions.values().all(|shard| shard.position == Some(Checkpoint::TrimHorizon)));
}

#[tokio::test(start_paused = true)]
async fn position_in_the_future_is_rejected() {
    let (kinesis, orders) = orders(1);
    let consumer = consumer(&kinesis).build().unwrap();
    let shard = orders.shard(0).id();
    let set = async |ahead: Duration| {
        let position = Checkpoint::AtTimestamp(kinesis.now() + ahead);
        consumer.set_position(&shard, position, IfLeased::Refuse).await
    };
    let refused = set(3600 * SECOND).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Configuration);
    assert!(refused.to_string().contains("in the future"), "{refused}");
    assert!(shards(&consumer).await.is_empty(), "expected the rejected position not to be stored");
    set(Duration::ZERO).await.unwrap();
}

/// A child that appears while the shards are listed moves back with the others, and waits for its
/// parent.
#[tokio::test(start_paused = true)]
async fn seek_also_moves_a_child_that_appears_during_its_listing() {
    let (kinesis, orders) = orders(1);
    let consumer = consumer(&kinesis).build().unwrap();
    let mut records = consumer.records();
    orders.shard(0).put("0");
    next(&mut records).await;
    let events = consumer.events();
    kinesis.next_calls("ListShards", 2, Outcome::throttled());
    kinesis.next_calls("ListShards", 1, Outcome::Delayed(4 * SECOND));
    let seek = tokio::spawn({
        let consumer = consumer.clone();
        async move { consumer.seek(StartingPosition::TrimHorizon).await }
    });
    // The seek has called `ListShards`, and the response is delayed.
    sleep(2 * SECOND).await;
    let [left, _right] = orders.shard(0).split();
    left.put("1");
    assert_eq!(number(&next(&mut records).await), 1);
    assert!(!seek.is_finished(), "expected a record of the child before the seek ends");
    seek.await.unwrap().unwrap();
    for expected in [0, 1] {
        assert_eq!(number(&next(&mut records).await), expected);
    }
    assert_silent(&mut records).await;
    drop((records, consumer));
    let throttled = events.filter_map(async |event| match event {
        Event::Throttled { shard_id, attempt } => Some((shard_id, attempt)),
        _ => None,
    });
    assert_eq!(throttled.collect::<Vec<_>>().await, [(None, 1), (None, 2)]);
}

async fn position(consumer: &Consumer, shard: &Shard) -> Option<Checkpoint> {
    shards(consumer).await[&shard.id()].position.clone()
}
