//! Failures of calls that the readers of all shards share.

use std::time::Duration;

use futures::{FutureExt, StreamExt};
use kinestream::testing::Outcome;
use kinestream::{Error, ErrorKind, Records};
use tokio::time::{Instant, sleep, timeout};

use crate::losses::retention::HOUR;
use crate::{consumer, denied, next, orders};

const SECOND: Duration = Duration::from_secs(1);

/// Returns the errors that the stream yields within three minutes.
async fn errors(records: &mut Records) -> Vec<Error> {
    let mut errors = Vec::new();
    let by = Instant::now() + 180 * SECOND;
    while let Some(left) = by.checked_duration_since(Instant::now())
        && let Ok(received) = timeout(left, records.next()).await
    {
        errors.push(received.unwrap().unwrap_err());
    }
    errors
}

#[tokio::test(start_paused = true)]
async fn error_in_a_dropped_shard_is_yielded_by_another() {
    let (kinesis, _orders) = orders(2);
    kinesis.next_calls("RegisterStreamConsumer", usize::MAX, denied());
    let consumer = consumer(&kinesis).fan_out("billing").build().unwrap();
    let mut shards = consumer.shards();
    let mut first = shards.next().await.unwrap().unwrap();
    let mut second = shards.next().await.unwrap().unwrap();
    assert!(first.next().now_or_never().is_none());
    // The error is pending until a caller polls.
    sleep(10 * SECOND).await;
    drop(first);
    let error = timeout(120 * SECOND, second.next()).await.unwrap().unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
    let quiet = timeout(30 * SECOND, second.next()).await;
    assert!(!matches!(quiet, Ok(Some(_))), "{quiet:?}");
}

#[tokio::test(start_paused = true)]
async fn malformed_responses_are_one_error_for_all_shards() {
    let outcomes = [
        Outcome::Garbled { status: 200, body: "{}".to_owned() },
        Outcome::Garbled { status: 200, body: "<html>".to_owned() },
    ];
    for outcome in outcomes {
        let (kinesis, _orders) = orders(20);
        let case = format!("{outcome:?}");
        kinesis.next_calls("DescribeStreamConsumer", usize::MAX, outcome);
        let mut records = consumer(&kinesis).fan_out("billing").build().unwrap().records();
        let errors = errors(&mut records).await;
        assert_eq!(errors.len(), 1, "{case}: {errors:?}");
        assert_eq!(errors[0].kind(), ErrorKind::Unavailable, "{case}");
    }
}

#[tokio::test(start_paused = true)]
async fn alternating_error_kinds_are_yielded_once_each() {
    let (kinesis, _orders) = orders(20);
    crate::refuse_in_turn(&kinesis, "RegisterStreamConsumer");
    let mut records = consumer(&kinesis).fan_out("billing").build().unwrap().records();
    let mut kinds: Vec<String> =
        errors(&mut records).await.iter().map(|error| format!("{:?}", error.kind())).collect();
    kinds.sort();
    assert_eq!(kinds, ["Denied", "Rejected"]);
}

#[tokio::test(start_paused = true)]
async fn temporary_denial_delays_no_shard_for_long() {
    let (kinesis, orders) = orders(20);
    kinesis.next_calls("DescribeStreamConsumer", 1, denied());
    let mut records = consumer(&kinesis).fan_out("billing").build().unwrap().records();
    for shard in orders.shards() {
        shard.put("0");
    }
    let began = Instant::now();
    let (mut read_after, mut denials) = (Vec::new(), 0);
    while read_after.len() < 20 {
        match timeout(60 * SECOND, records.next()).await.unwrap().unwrap() {
            Ok(_) => read_after.push(began.elapsed()),
            Err(_) => denials += 1,
        }
    }
    assert_eq!(denials, 1);
    // The pauses of a refused shard double, and a shard may be refused several times until the shared
    // call has succeeded. The pause after a reported error takes 15 s at least.
    assert!(read_after[18] < 8 * SECOND, "{read_after:?}");
    assert!(read_after[19] < 14 * SECOND, "{read_after:?}");
}

/// Each new stream of a consumer is a new reader.
#[tokio::test(start_paused = true)]
async fn next_stream_yields_the_error_again() {
    let (kinesis, _orders) = orders(20);
    kinesis.next_calls("RegisterStreamConsumer", usize::MAX, denied());
    let consumer = consumer(&kinesis).fan_out("billing").build().unwrap();
    for reading in 0..2 {
        let mut records = consumer.records();
        let errors = errors(&mut records).await;
        assert_eq!(errors.len(), 1, "stream {reading}: {errors:?}");
    }
}

/// The operator allows only the shared call, and a call of each shard stays denied.
#[tokio::test(start_paused = true)]
async fn denial_of_another_call_is_yielded() {
    let (kinesis, _orders) = orders(1);
    kinesis.next_calls("RegisterStreamConsumer", 2, denied());
    kinesis.next_calls("SubscribeToShard", usize::MAX, denied());
    let mut records = consumer(&kinesis).fan_out("billing").build().unwrap().records();
    let messages: Vec<String> =
        errors(&mut records).await.iter().map(ToString::to_string).collect();
    assert_eq!(messages.len(), 2, "{messages:?}");
    assert!(messages[0].contains("RegisterStreamConsumer"), "{messages:?}");
    assert!(messages[1].contains("SubscribeToShard"), "{messages:?}");
}

/// The last read record of each shard is trimmed, and it is unknown whether later ones were lost.
#[tokio::test(start_paused = true)]
async fn failing_loss_check_is_one_error_for_all_shards() {
    let (kinesis, orders) = orders(20);
    kinesis.set_retention(48 * HOUR);
    for shard in orders.shards() {
        shard.put_at(kinesis.now() - 30 * HOUR, "0");
    }
    let consumer = consumer(&kinesis).build().unwrap();
    let mut records = consumer.records();
    for _ in 0..20 {
        next(&mut records).await;
    }
    let quiet = timeout(300 * SECOND, records.next()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    drop(records);
    sleep(26 * HOUR).await;
    kinesis.next_calls("DescribeStreamSummary", usize::MAX, Outcome::failed(500, "", ""));
    let errors = errors(&mut consumer.records()).await;
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert_eq!(errors[0].kind(), ErrorKind::Unavailable);
}
