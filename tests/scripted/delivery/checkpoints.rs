//! Checkpoint writes: their timing, and reading while the store is down.

use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use kinestream::store::Scope;
use kinestream::testing::Stream;
use kinestream::{CheckpointOn, CheckpointStore, ErrorKind, MemoryStore, SequenceNumber};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};

use crate::gated::{Gated, GatedCall};
use crate::store::recording_store::RecordingStore;
use crate::{assert_silent, consumer, next, number, orders, put};

const SECOND: Duration = Duration::from_secs(1);

fn after(number: &SequenceNumber) -> String {
    format!("AFTER_SEQUENCE_NUMBER:{number}")
}

/// Returns the stored position of the first shard.
async fn stored(store: &MemoryStore, orders: &Stream) -> Option<String> {
    let stored = store.load(&Scope::new("default", "orders")).await.unwrap();
    stored.get(&orders.shard(0).id()).map(ToString::to_string)
}

#[tokio::test(start_paused = true)]
async fn checkpoints_of_all_shards_share_one_save_per_interval() {
    let (kinesis, orders) = orders(10);
    for number in 0..600 {
        orders.shard(number % 10).put(number.to_string());
    }
    let store = RecordingStore::default();
    let consumer = consumer(&kinesis).limit(3).store(store.clone()).build().unwrap();
    let mut records = consumer.records();
    let began = Instant::now();
    for _ in 0..600 {
        next(&mut records).await;
        sleep(Duration::from_millis(10)).await;
    }
    let saves = store.saves();
    for pair in saves[1..].windows(2) {
        assert!(pair[1].0 - pair[0].0 >= Duration::from_millis(999), "{pair:?}");
    }
    let intervals = usize::try_from(began.elapsed().as_secs()).unwrap();
    assert!(saves.len() <= intervals + 2, "{} saves in {intervals} s", saves.len());
    assert!(
        saves[1..].iter().any(|(_, shards)| *shards > 5),
        "expected a save of more than 5 shards"
    );
}

#[tokio::test(start_paused = true)]
async fn last_record_is_checkpointed_only_after_the_next_poll() {
    let (kinesis, orders) = orders(1);
    let numbers: Vec<SequenceNumber> =
        (0..3).map(|number| orders.shard(0).put(number.to_string())).collect();
    let store = RecordingStore::default();
    let consumer = consumer(&kinesis).store(store.clone()).build().unwrap();
    let mut records = consumer.records();
    next(&mut records).await;
    next(&mut records).await;
    sleep(Duration::from_secs(5)).await;
    assert_eq!(store.position(0).await.unwrap(), after(&numbers[0]));
    consumer.close().await.unwrap();
    assert_eq!(store.position(0).await.unwrap(), after(&numbers[0]));
    assert!(records.next().await.is_none(), "expected the closed stream to end");
    consumer.close().await.unwrap();
    assert_eq!(
        store.position(0).await.unwrap(),
        after(&numbers[1]),
        "expected the poll for the next record to acknowledge this one"
    );
}

#[tokio::test(start_paused = true)]
async fn dropped_stream_saves_all_but_the_last_record() {
    let (kinesis, orders) = orders(1);
    let numbers: Vec<SequenceNumber> =
        (0..3).map(|number| orders.shard(0).put(number.to_string())).collect();
    let store = RecordingStore::default();
    let consumer = consumer(&kinesis).store(store.clone()).build().unwrap();
    let mut records = consumer.records();
    next(&mut records).await;
    next(&mut records).await;
    drop((records, consumer));
    sleep(Duration::from_millis(1)).await;
    assert_eq!(store.position(0).await.unwrap(), after(&numbers[0]));
    assert_eq!(kinesis.in_flight(), 0, "expected no call in flight");
}

#[tokio::test(start_paused = true)]
async fn out_of_order_acks_advance_over_the_acknowledged_prefix() {
    let (kinesis, orders) = orders(1);
    let numbers: Vec<SequenceNumber> =
        (0..6).map(|number| orders.shard(0).put(number.to_string())).collect();
    let store = RecordingStore::default();
    let consumer = consumer(&kinesis)
        .checkpoint_on(CheckpointOn::Ack)
        .checkpoint_interval(Duration::ZERO)
        .store(store.clone())
        .build()
        .unwrap();
    let mut records = consumer.records();
    let mut held = Vec::new();
    for _ in 0..6 {
        held.push(next(&mut records).await);
    }
    for (acked, expected) in [(1, None), (4, None), (0, Some(1)), (2, Some(2)), (3, Some(4))] {
        held[acked].ack();
        sleep(Duration::from_secs(1)).await;
        let expected = match expected {
            None => "TRIM_HORIZON".to_owned(),
            Some(index) => after(&numbers[index]),
        };
        assert_eq!(store.position(0).await.unwrap(), expected);
    }
    // The last record is dropped without an ack, so it is redelivered.
    drop((held, records));
    consumer.close().await.unwrap();
    let again = crate::consumer(&kinesis).store(store).build().unwrap();
    assert_eq!(number(&next(&mut again.records()).await), 5);
}

#[tokio::test(start_paused = true)]
async fn zero_interval_saves_each_position_before_the_next_record() {
    let (kinesis, orders) = orders(1);
    let numbers: Vec<SequenceNumber> =
        (0..20).map(|number| orders.shard(0).put(number.to_string())).collect();
    let store = RecordingStore::default();
    let consumer = consumer(&kinesis)
        .checkpoint_interval(Duration::ZERO)
        .store(store.clone())
        .build()
        .unwrap();
    let mut records = consumer.records();
    next(&mut records).await;
    for number in &numbers[..19] {
        next(&mut records).await;
        assert_eq!(store.position(0).await.unwrap(), after(number));
    }
}

#[tokio::test(start_paused = true)]
async fn store_states_the_default_of_the_checkpoint_interval() {
    let seconds = Duration::from_secs;
    let cases = [
        (RecordingStore::default(), None, seconds(1)),
        (RecordingStore::with_interval(seconds(7)), None, seconds(7)),
        (RecordingStore::with_interval(seconds(7)), Some(seconds(3)), seconds(3)),
    ];
    for (store, set, expected) in cases {
        let (kinesis, orders) = orders(1);
        let builder = consumer(&kinesis).store(Arc::new(store.clone()));
        let builder = match set {
            Some(interval) => builder.checkpoint_interval(interval),
            None => builder,
        };
        let consumer = builder.build().unwrap();
        let mut records = consumer.records();
        for number in 0..60 {
            orders.shard(0).put(number.to_string());
            next(&mut records).await;
        }
        let saves = store.saves();
        let gaps = saves.windows(2).skip(2).map(|pair| pair[1].0 - pair[0].0);
        let shortest = gaps.min().expect("several saves");
        assert!(
            shortest >= expected && shortest < expected + seconds(2),
            "expected {expected:?} between two saves, got {shortest:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn store_outage_pauses_delivery_only_after_max_unflushed() {
    for interval in [Duration::from_secs(1), Duration::ZERO] {
        let (kinesis, orders) = orders(2);
        let store = RecordingStore::default();
        let consumer = consumer(&kinesis)
            .checkpoint_interval(interval)
            .max_unflushed(Duration::from_secs(30))
            .store(store.clone())
            .build()
            .unwrap();
        let mut records = consumer.records();
        orders.shard(0).put("0");
        next(&mut records).await;
        store.set_down(true);
        let down = Instant::now();
        let mut last = Vec::new();
        let error = loop {
            last.push(orders.shard(last.len() % 2).put("1"));
            match timeout(Duration::from_secs(60), records.next()).await.unwrap().unwrap() {
                Ok(_record) => sleep(Duration::from_secs(1)).await,
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::StoreUnavailable);
        let text = error.to_string();
        assert!(
            text.contains("max_unflushed (30s)") && text.contains("the store is down"),
            "{text}"
        );
        let held = down.elapsed();
        assert!(held > Duration::from_secs(28) && held < Duration::from_secs(45), "{held:?}");
        assert_silent(&mut records).await;
        let attempts = store.attempts();
        assert!(attempts < 60, "{attempts} attempts");
        store.set_down(false);
        next(&mut records).await;
        // The poll for the next record acknowledges this one.
        orders.shard(0).put("2");
        next(&mut records).await;
        sleep(Duration::from_secs(2)).await;
        let place = last.len() - 1;
        let position = store.position(place % 2).await.unwrap();
        let (_, number) = position.rsplit_once(':').unwrap();
        assert_eq!(
            number,
            last[place].as_str(),
            "expected the last acknowledged record to be saved"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn second_stream_of_one_consumer_is_rejected() {
    let (kinesis, orders) = orders(1);
    orders.shard(0).put("0");
    let consumer = consumer(&kinesis).build().unwrap();
    let mut first = consumer.records();
    let mut second = consumer.clone().records();
    let error = second.next().await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InUse);
    assert_eq!(
        error.to_string(),
        "stream orders: the consumer is already being read; drop its streams first, or build \
         another consumer with a different application"
    );
    assert!(second.next().await.is_none());
    assert_eq!(number(&next(&mut first).await), 0);
    drop(first);
    // The record was not acknowledged, so it is redelivered.
    assert_eq!(number(&next(&mut consumer.records()).await), 0);
    consumer.close().await.unwrap();
    assert!(consumer.shards().next().await.unwrap().is_err());
}

#[tokio::test(start_paused = true)]
async fn close_ends_a_waiting_stream() {
    let (kinesis, _orders) = orders(2);
    let consumer = consumer(&kinesis).build().unwrap();
    let reading = tokio::spawn({
        let consumer = consumer.clone();
        async move { consumer.records().next().await.is_none() }
    });
    sleep(Duration::from_secs(10)).await;
    consumer.close().await.unwrap();
    assert!(timeout(Duration::from_secs(1), reading).await.unwrap().unwrap());
    assert_eq!(kinesis.in_flight(), 0);
}

/// Each record is saved before the next record of its shard is delivered, even if a save of another
/// shard is in progress.
#[tokio::test(start_paused = true)]
async fn zero_interval_saves_each_record_during_a_save_of_another_shard() {
    let (kinesis, orders) = orders(2);
    let store = RecordingStore::slow(Duration::from_secs(1));
    let builder = consumer(&kinesis).store(store.clone());
    let consumer = builder.checkpoint_interval(Duration::ZERO).build().unwrap();
    let mut shards = consumer.shards();
    let mut streams = Vec::new();
    for shard in 0..2 {
        orders.shard(shard).put("0");
        orders.shard(shard).put("1");
        streams.push(shards.next().await.unwrap().unwrap());
    }
    for stream in &mut streams {
        stream.next().await.unwrap().unwrap();
    }
    for (shard, stream) in streams.iter_mut().enumerate() {
        assert!(
            stream.next().now_or_never().is_none(),
            "expected shard {shard} to wait for its save"
        );
        sleep(Duration::from_millis(500)).await;
    }
    for (shard, stream) in streams.iter_mut().enumerate() {
        stream.next().await.unwrap().unwrap();
        let first = &orders.shard(shard).sequence_numbers()[0];
        let saved = Some(format!("AFTER_SEQUENCE_NUMBER:{first}"));
        assert_eq!(store.position(shard).await, saved, "position of shard {shard}");
    }
}

/// The panic unwinds the handler's task, which drops the stream.
#[tokio::test(start_paused = true)]
async fn record_is_redelivered_first_after_its_handler_panics() {
    for mode in [CheckpointOn::Pull, CheckpointOn::Ack] {
        let (kinesis, orders) = orders(1);
        for number in 0..5 {
            orders.shard(0).put(number.to_string());
        }
        let store = RecordingStore::default();
        let builder = consumer(&kinesis).checkpoint_on(mode).store(store.clone());
        let first = builder.clone().build().unwrap();
        let handler = tokio::spawn(async move {
            let mut records = first.records();
            loop {
                let record = next(&mut records).await;
                assert!(number(&record) < 2, "the handler fails");
                record.ack();
            }
        });
        assert!(handler.await.unwrap_err().is_panic());
        let second = builder.build().unwrap();
        let mut records = second.records();
        for expected in 2..5 {
            assert_eq!(number(&next(&mut records).await), expected, "{mode:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn closed_stream_yields_no_record_of_the_run_in_delivery() {
    let (kinesis, orders) = orders(1);
    put(&orders, 0..10);
    let consumer = consumer(&kinesis).build().unwrap();
    let mut records = consumer.records();
    for expected in 0..3 {
        assert_eq!(number(&next(&mut records).await), expected);
    }
    // The worker still holds the lease.
    assert!(consumer.close().now_or_never().is_none());
    let after = records.next().await;
    assert!(after.is_none(), "{after:?}");
}

/// The save of the first record is under way when the second one is acknowledged and the consumer is
/// closed.
#[tokio::test(start_paused = true)]
async fn close_during_a_save_waits_for_the_save_of_later_acknowledgements() {
    let (kinesis, orders) = orders(1);
    let (store, permits) = (MemoryStore::new(), Arc::new(Semaphore::new(0)));
    let gated = Gated::new(store.clone(), {
        let permits = Arc::clone(&permits);
        move |call| {
            let permits = Arc::clone(&permits);
            async move {
                if call == GatedCall::Save {
                    permits.acquire().await.unwrap().forget();
                }
                Ok(())
            }
            .boxed()
        }
    });
    put(&orders, 0..2);
    let builder = consumer(&kinesis).checkpoint_on(CheckpointOn::Ack).store(gated);
    let consumer = builder.build().unwrap();
    let mut records = consumer.records();
    let [first, second] = [next(&mut records).await, next(&mut records).await];
    first.ack();
    sleep(3 * SECOND).await;
    second.ack();
    let closing = tokio::spawn({
        let consumer = consumer.clone();
        async move { consumer.close().await }
    });
    sleep(SECOND).await;
    permits.add_permits(1);
    sleep(SECOND).await;
    assert_eq!(stored(&store, &orders).await, Some(after(first.sequence_number())));
    assert!(!closing.is_finished());
    permits.add_permits(10);
    closing.await.unwrap().unwrap();
    assert_eq!(stored(&store, &orders).await, Some(after(second.sequence_number())));
}

#[tokio::test(start_paused = true)]
async fn record_acknowledged_between_two_saves_is_saved_when_the_consumer_is_dropped() {
    let (kinesis, orders) = orders(1);
    let store = MemoryStore::new();
    put(&orders, 0..1);
    let builder = consumer(&kinesis).checkpoint_on(CheckpointOn::Ack).store(store.clone());
    let consumer = builder.checkpoint_interval(600 * SECOND).build().unwrap();
    let mut records = consumer.records();
    let record = next(&mut records).await;
    drop(records);
    // The worker leaves, with its last save.
    sleep(30 * SECOND).await;
    record.ack();
    drop(consumer);
    sleep(SECOND).await;
    assert_eq!(stored(&store, &orders).await, Some(after(record.sequence_number())));
}

/// Arrival times come from hosts whose clocks differ by up to five minutes.
#[tokio::test(start_paused = true)]
async fn restart_of_an_empty_shard_reads_the_record_of_a_host_whose_clock_is_behind() {
    let (kinesis, orders) = orders(1);
    let store = MemoryStore::new();
    let builder = consumer(&kinesis).store(store.clone());
    let first = builder.clone().build().unwrap();
    let mut records = first.records();
    assert!(timeout(90 * SECOND, records.next()).await.is_err());
    drop(records);
    first.close().await.unwrap();
    let until = stored(&store, &orders).await.expect("a stored position");
    assert!(until.starts_with("CAUGHT_UP:"), "{until}");
    orders.shard(0).put_at(kinesis.now() - 240 * SECOND, "0");
    orders.shard(0).put("1");
    let mut records = builder.build().unwrap().records();
    for expected in 0..2 {
        assert_eq!(number(&next(&mut records).await), expected);
    }
}
