//! The checkpoints that are stored while adapters hold records, by both ways of acknowledgement.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::{FutureExt, StreamExt, TryStreamExt, future};
use kinestream::{
    CheckpointOn, Consumer, DecodeError, EndingPosition, MemoryStore, Record, RecordStreamExt,
    StartingPosition,
};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use crate::store::recording_store::RecordingStore;
use crate::{consumer, number, orders, put};

const SECOND: Duration = Duration::from_secs(1);

fn with_store(
    kinesis: &kinestream::testing::Kinesis,
    on: CheckpointOn,
) -> (Consumer, RecordingStore) {
    let store = RecordingStore::default();
    let consumer = consumer(kinesis).store(store.clone()).checkpoint_on(on).build().unwrap();
    (consumer, store)
}

/// Waits until everything that was acknowledged is saved, and returns the position of shard 0.
async fn position(store: &RecordingStore) -> Option<String> {
    sleep(5 * SECOND).await;
    store.position(0).await
}

fn after(record: &Record) -> String {
    record.checkpoint().to_string()
}

#[tokio::test(start_paused = true)]
async fn with_pull_the_poll_after_a_batch_acknowledges_it() {
    let (kinesis, orders) = orders(1);
    put(&orders, 0..5);
    let (consumer, store) = with_store(&kinesis, CheckpointOn::Pull);
    let mut batches = consumer.records().batches(2, SECOND);

    let first = batches.next().await.unwrap().unwrap();
    let start = position(&store).await;
    let second = batches.next().await.unwrap().unwrap();
    assert_eq!(position(&store).await, Some(after(&first[1])), "expected the first batch only");
    assert_ne!(start, Some(after(&first[0])), "expected no record of a batch that is processed");

    let third = batches.next().await.unwrap().unwrap();
    assert_eq!((third.len(), number(&third[0])), (1, 4), "expected the rest after its time");
    assert_eq!(position(&store).await, Some(after(&second[1])));
    assert!(timeout(SECOND, batches.next()).await.is_err());
    assert_eq!(position(&store).await, Some(after(&third[0])));
}

/// `select!` does not poll a stream that is terminated.
#[tokio::test(start_paused = true)]
async fn with_pull_the_last_batch_of_a_select_loop_is_acknowledged() {
    let (kinesis, orders) = orders(1);
    put(&orders, 0..5);
    let store = RecordingStore::default();
    let builder = consumer(&kinesis).store(store.clone());
    let job = builder.ending_position(EndingPosition::Latest).build().unwrap();
    // The last batch is yielded by the end of the stream.
    let mut batches = job.records().batches(2, 60 * SECOND);
    let mut last = None;
    loop {
        futures::select! {
            batch = batches.select_next_some() => last = batch.unwrap().last().map(after),
            complete => break,
        }
    }
    assert_eq!(position(&store).await, last);
}

#[tokio::test(start_paused = true)]
async fn with_pull_a_record_whose_closure_panics_is_not_acknowledged() {
    let (kinesis, orders) = orders(1);
    put(&orders, 0..3);
    let (consumer, store) = with_store(&kinesis, CheckpointOn::Pull);
    let mut decoded = consumer.records().decode(|record| {
        assert!(number(record) != 1, "a bug of the caller");
        Ok::<_, String>(())
    });
    let first = decoded.next().await.unwrap().unwrap();
    assert!(AssertUnwindSafe(decoded.next()).catch_unwind().await.is_err());
    assert!(decoded.next().await.unwrap().is_ok());
    assert!(timeout(SECOND, decoded.next()).await.is_err());
    assert_eq!(position(&store).await, Some(after(first.record())), "the second record holds it");
}

#[tokio::test(start_paused = true)]
async fn with_pull_a_handler_that_runs_holds_the_checkpoint() {
    let (kinesis, orders) = orders(1);
    put(&orders, 0..6);
    let (consumer, store) = with_store(&kinesis, CheckpointOn::Pull);
    let (records, release) = (std::sync::Mutex::new(Vec::new()), Notify::new());
    let handled = consumer.records().buffer_by_key(4, |record| {
        records.lock().unwrap().push(record.checkpoint().to_string());
        let release = &release;
        async move {
            if number(&record) == 2 {
                release.notified().await;
            }
            Ok::<_, kinestream::Error>(number(&record))
        }
    });
    let mut handled = std::pin::pin!(handled);
    let mut numbers = Vec::new();
    let mut read = async || {
        while let Ok(Some(output)) = timeout(5 * SECOND, handled.next()).await {
            numbers.push(output.unwrap());
        }
        numbers.clone()
    };
    assert_eq!(read().await, [0, 1, 3, 4, 5]);
    let second = records.lock().unwrap()[1].clone();
    assert_eq!(position(&store).await, Some(second), "expected the records before the slow one");
    release.notify_one();
    assert_eq!(read().await, [0, 1, 3, 4, 5, 2]);
    let last = records.lock().unwrap()[5].clone();
    assert_eq!(position(&store).await, Some(last));
}

#[tokio::test(start_paused = true)]
async fn records_that_wait_in_a_dropped_adapter_are_delivered_again() {
    for on in [CheckpointOn::Pull, CheckpointOn::Ack] {
        let (kinesis, orders) = orders(1);
        for data in 0..10 {
            orders.put("one customer", data.to_string());
        }
        let store = MemoryStore::new();
        let build = || {
            let builder = consumer(&kinesis).store(store.clone()).checkpoint_on(on);
            builder.build().unwrap()
        };
        let first = build();
        let handled = first.records().buffer_by_key(4, |record| async move {
            if number(&record) == 3 {
                return Err(anyhow::anyhow!("the database is away"));
            }
            record.ack();
            Ok(())
        });
        let error = handled.try_for_each(future::ok).await.unwrap_err();
        assert_eq!(error.to_string(), "the database is away");
        first.close().await.unwrap();

        let again = build().records().map_ok(|record| number(&record));
        let again = timeout(60 * SECOND, again.take(7).try_collect::<Vec<_>>());
        let again = again.await.expect("expected seven records within a minute").unwrap();
        assert_eq!(again, [3, 4, 5, 6, 7, 8, 9], "{on:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn filtered_records_do_not_hold_the_checkpoint() {
    let (kinesis, orders) = orders(1);
    put(&orders, 0..8);
    let (consumer, store) = with_store(&kinesis, CheckpointOn::Ack);
    let mut even = consumer.records().ack_filter(|record| number(record).is_multiple_of(2));
    let mut last = None;
    while let Ok(Some(record)) = timeout(SECOND, even.next()).await {
        let record = record.unwrap();
        record.ack();
        last = Some(record);
    }
    let last = last.unwrap();
    assert_eq!(number(&last), 6);
    let positions: Vec<_> = orders.shard(0).sequence_numbers();
    let stored = position(&store).await.unwrap();
    assert!(stored.contains(positions[7].as_str()), "expected record 7, got {stored}");
}

#[tokio::test(start_paused = true)]
async fn poison_record_is_sent_on_and_does_not_come_back_after_a_restart() {
    let (kinesis, orders) = orders(1);
    orders.shard(0).put("0");
    orders.shard(0).put("poison");
    orders.shard(0).put("2");
    let store = MemoryStore::new();
    let build = || {
        let builder = consumer(&kinesis).store(store.clone()).checkpoint_on(CheckpointOn::Ack);
        builder.build().unwrap()
    };
    let parse = |record: &Record| str::from_utf8(record.data()).unwrap().parse::<usize>();
    let first = build();
    let (mut numbers, mut dead_letters) = (Vec::new(), Vec::new());
    let mut decoded = first.records().decode(parse);
    for _ in 0..3 {
        match decoded.next().await.unwrap() {
            Ok(number) => {
                numbers.push(*number);
                number.ack();
            }
            Err(DecodeError::Undecodable { record, cause }) => {
                dead_letters.push((record.data().to_vec(), cause.to_string()));
                record.ack();
            }
            Err(DecodeError::Stream(error)) => panic!("expected no error of the stream: {error}"),
        }
    }
    assert_eq!(numbers, [0, 2]);
    assert_eq!(dead_letters, [(b"poison".to_vec(), "invalid digit found in string".to_owned())]);
    first.close().await.unwrap();
    drop(decoded);
    let again = timeout(60 * SECOND, build().records().next()).await;
    assert!(again.is_err(), "expected no record after the restart: {again:?}");
}

/// A batch is cut when its shard is read in another epoch.
#[tokio::test(start_paused = true)]
async fn batch_does_not_mix_the_epochs_before_and_after_a_seek() {
    let (kinesis, orders) = orders(1);
    put(&orders, 0..2);
    let consumer = consumer(&kinesis)
        .store(MemoryStore::new())
        .checkpoint_on(CheckpointOn::Ack)
        .build()
        .unwrap();
    let mut batches = consumer.records().batches(10, 60 * SECOND);
    let seek = async {
        sleep(10 * SECOND).await;
        consumer.seek(StartingPosition::TrimHorizon).await.unwrap();
        put(&orders, 2..4);
    };
    let began = Instant::now();
    let (first, ()) = future::join(batches.next(), seek).await;
    let numbers = |batch: &[Record]| batch.iter().map(number).collect::<Vec<_>>();
    let first = first.unwrap().unwrap();
    assert_eq!(numbers(&first), [0, 1]);
    assert!(began.elapsed() < 60 * SECOND, "expected the batch at its first record again");
    let second = batches.next().await.unwrap().unwrap();
    assert_eq!(numbers(&second), [0, 1, 2, 3]);
    assert!(second.iter().all(|record| record.epoch() > first[0].epoch()));
}

/// The batches and handlers that are left when the consumer is closed are yielded, and a second
/// `close` saves them.
#[tokio::test(start_paused = true)]
async fn adapter_is_polled_to_its_end_after_a_close() {
    let (kinesis, orders) = orders(1);
    put(&orders, 0..3);
    let (consumer, store) = with_store(&kinesis, CheckpointOn::Ack);
    let mut batches = consumer.records().batches(10, 3600 * SECOND);
    assert!(timeout(SECOND, batches.next()).await.is_err());
    consumer.close().await.unwrap();
    let batch = batches.next().now_or_never().expect("no wait for the time of the batch");
    let batch = batch.unwrap().unwrap();
    assert_eq!(batch.len(), 3);
    batch.ack();
    assert!(batches.next().await.is_none());
    consumer.close().await.unwrap();
    assert_eq!(store.position(0).await, Some(after(&batch[2])));
}
