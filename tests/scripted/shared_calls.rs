//! A call that the readers of all shards share, and that fails.

use std::time::Duration;

use futures::{FutureExt, StreamExt};
use kinestream::testing::Outcome;
use kinestream::{Error, ErrorKind, Records};
use tokio::time::{Instant, sleep, timeout};

use crate::{consumer, orders};

const SECOND: Duration = Duration::from_secs(1);

/// The errors that come within three minutes.
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
    let denied = Outcome::failed(400, "AccessDeniedException", "no");
    kinesis.next_calls("RegisterStreamConsumer", usize::MAX, denied);
    let consumer = consumer(&kinesis).fan_out("billing").build().unwrap();
    let mut shards = consumer.shards();
    let mut first = shards.next().await.unwrap().unwrap();
    let mut second = shards.next().await.unwrap().unwrap();
    assert!(first.next().now_or_never().is_none());
    // The error waits for a caller.
    sleep(10 * SECOND).await;
    drop(first);
    let error = timeout(120 * SECOND, second.next()).await.unwrap().unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
    let quiet = timeout(30 * SECOND, second.next()).await;
    assert!(!matches!(quiet, Ok(Some(_))), "{quiet:?}");
}

#[tokio::test(start_paused = true)]
async fn answers_of_no_use_are_one_error_for_all_shards() {
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

/// The denied call gives one kind of error and the answers of no use another, in turn.
#[tokio::test(start_paused = true)]
async fn alternating_kinds_of_errors_are_yielded_once_each() {
    let (kinesis, _orders) = orders(20);
    let mut calls = 0;
    kinesis.on_call(move |call| {
        if call.operation != "RegisterStreamConsumer" {
            return Outcome::Served;
        }
        calls += 1;
        let code =
            if calls % 2 == 0 { "AccessDeniedException" } else { "MalformedHttpRequestException" };
        Outcome::failed(400, code, "no")
    });
    let mut records = consumer(&kinesis).fan_out("billing").build().unwrap().records();
    let mut kinds: Vec<String> =
        errors(&mut records).await.iter().map(|error| format!("{:?}", error.kind())).collect();
    kinds.sort();
    assert_eq!(kinds, ["Denied", "Rejected"]);
}

#[tokio::test(start_paused = true)]
async fn denial_that_passes_delays_no_shard_for_long() {
    let (kinesis, orders) = orders(20);
    let denied = Outcome::failed(400, "AccessDeniedException", "no");
    kinesis.next_calls("DescribeStreamConsumer", 1, denied);
    let mut records = consumer(&kinesis).fan_out("billing").build().unwrap().records();
    for shard in orders.shards() {
        shard.put("0");
    }
    let began = Instant::now();
    let (mut read, mut denials) = (0, 0);
    while read < 20 {
        match timeout(60 * SECOND, records.next()).await.unwrap().unwrap() {
            Ok(_) => read += 1,
            Err(_) => denials += 1,
        }
    }
    assert_eq!(denials, 1);
    assert!(began.elapsed() < 8 * SECOND, "{:?}", began.elapsed());
}
