//! The time that handlers take at once, on a paused clock.

use std::time::Duration;

use futures::{StreamExt, TryStreamExt, future, stream};
use kinestream::{CheckpointOn, Error, Record, RecordStreamExt};
use tokio::time::{Instant, sleep};

use crate::{consumer, orders};

const KEYS: usize = 1000;
const RECORDS: usize = 10_000;
const HANDLER: Duration = Duration::from_millis(1);

/// Returns the records of a stream, in this order of keys.
async fn records(keys: &[usize]) -> Vec<Record> {
    let (kinesis, orders) = orders(1);
    for (number, key) in keys.iter().enumerate() {
        orders.shard(0).put_as(&format!("customer-{key}"), number.to_string());
    }
    let consumer = consumer(&kinesis).checkpoint_on(CheckpointOn::Ack).build().unwrap();
    consumer.records().take(keys.len()).try_collect().await.unwrap()
}

/// Returns the time in which handlers of 1 ms complete all records.
async fn time(records: Vec<Record>, limit: usize) -> Duration {
    let began = Instant::now();
    stream::iter(records.into_iter().map(Ok::<_, Error>))
        .buffer_by_key(limit, |record| async move {
            sleep(HANDLER).await;
            record.ack();
            Ok::<_, Error>(())
        })
        .try_for_each(future::ok)
        .await
        .unwrap();
    began.elapsed()
}

#[tokio::test(start_paused = true)]
async fn sixty_four_slots_over_a_thousand_keys_are_always_occupied() {
    let keys: Vec<usize> = (0..RECORDS).map(|number| number % KEYS).collect();
    let one = time(records(&keys).await, 1).await;
    assert_eq!(one, Duration::from_secs(10));
    let many = time(records(&keys).await, 64).await;
    assert_eq!(many, HANDLER * u32::try_from(RECORDS.div_ceil(64)).unwrap());
    assert!(many * 50 <= one);
}

#[tokio::test(start_paused = true)]
async fn keys_in_random_order_leave_few_slots_free() {
    let mut rng = fastrand::Rng::with_seed(7);
    let keys: Vec<usize> = (0..RECORDS).map(|_| rng.usize(..KEYS)).collect();
    let many = time(records(&keys).await, 64).await;
    assert!(many * 50 <= 10_000 * HANDLER, "{many:?}");
}
