//! Each row of the error table, from the response on the wire to the error that the caller
//! receives.

use std::time::{Duration, SystemTime};

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::config::{BehaviorVersion, Config, Credentials, Region};
use futures::{FutureExt, StreamExt};
use kinestream::store::Scope;
use kinestream::{
    Checkpoint, CheckpointStore, Consumer, ErrorKind, Event, MemoryStore, OnTrimmed, ShardId,
};
use tokio::time::{Instant, sleep, timeout};

use crate::{assert_silent, calls, consumer, next, number, orders};
use kinestream::testing::{Kinesis, Outcome, Stream};

/// Each retryable failure occurs twice in a row on each operation, and the stream yields no error.
#[tokio::test(start_paused = true)]
async fn retryable_failure_is_retried_without_an_error() {
    let fail = |status, code, message| Outcome::failed(status, code, message);
    let repairs = [
        fail(400, "ProvisionedThroughputExceededException", "Rate exceeded for shard"),
        fail(400, "KMSThrottlingException", "slow down"),
        fail(400, "LimitExceededException", "Rate exceeded"),
        fail(400, "ThrottlingException", "Rate exceeded"),
        fail(500, "InternalFailureException", "we are sorry"),
        fail(500, "", ""),
        fail(503, "ServiceUnavailable", "we are sorry"),
        fail(400, "ExpiredIteratorException", "Iterator expired"),
        fail(400, "ExpiredNextTokenException", "Token expired"),
        Outcome::Garbled { status: 200, body: "{\"Records\": [".into() },
        Outcome::Garbled { status: 502, body: "<html>bad gateway</html>".into() },
        Outcome::Refused,
        Outcome::Hangs,
        Outcome::Lost,
        Outcome::Delayed(Duration::from_secs(20)),
    ];
    for action in repairs {
        for operation in ["ListShards", "GetShardIterator", "GetRecords"] {
            let (kinesis, orders) = orders(1);
            for number in 0..10 {
                orders.shard(0).put(number.to_string());
            }
            kinesis.next_calls(operation, 2, action.clone());
            let consumer = consumer(&kinesis).build().unwrap();
            let mut records = consumer.records();
            // If Kinesis has not been reached at all for that long, an error is reported and the
            // call is still retried.
            let unreached = operation == "ListShards" && matches!(action, Outcome::Hangs);
            if unreached {
                let error = records.next().await.unwrap().unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Unavailable);
            }
            for expected in 0..10 {
                assert_eq!(number(&next(&mut records).await), expected, "{operation} {action:?}");
            }
            assert_eq!(kinesis.violations(), [""; 0], "{operation} {action:?}");
            let tried_again = calls(&kinesis, operation).len() >= 3;
            assert!(tried_again || matches!(action, Outcome::Delayed(_)), "{operation} {action:?}");
        }
    }
}

/// A failure that only the operator can fix is reported once with its shard, and retried with a
/// long back-off.
#[tokio::test(start_paused = true)]
async fn permanent_failure_is_reported_once_and_retried_slowly() {
    let denials = [
        (
            "AccessDeniedException",
            ErrorKind::Denied,
            "access denied; grant the IAM actions of the guide page `permissions`",
        ),
        (
            "KMSAccessDeniedException",
            ErrorKind::Denied,
            "access denied; grant the IAM actions of the guide page `permissions`",
        ),
        (
            "KMSDisabledException",
            ErrorKind::Denied,
            "the stream's KMS key cannot be used; check that the key exists, is enabled and allows kms:Decrypt",
        ),
        (
            "KMSInvalidStateException",
            ErrorKind::Denied,
            "the stream's KMS key cannot be used; check that the key exists, is enabled and allows kms:Decrypt",
        ),
        (
            "KMSNotFoundException",
            ErrorKind::Denied,
            "the stream's KMS key cannot be used; check that the key exists, is enabled and allows kms:Decrypt",
        ),
        (
            "KMSOptInRequired",
            ErrorKind::Denied,
            "the stream's KMS key cannot be used; check that the key exists, is enabled and allows kms:Decrypt",
        ),
        (
            "UnrecognizedClientException",
            ErrorKind::Denied,
            "credentials rejected; check that they are valid, not expired and for this account and region",
        ),
        (
            "ExpiredTokenException",
            ErrorKind::Denied,
            "credentials rejected; check that they are valid, not expired and for this account and region",
        ),
        ("ValidationException", ErrorKind::Rejected, "request rejected by Kinesis"),
    ];
    for (code, kind, advice) in denials {
        let (kinesis, orders) = orders(2);
        orders.shard(0).put("0");
        orders.shard(1).put("1");
        let (first, mut times) = (orders.shard(0).id(), 3);
        kinesis.on_call(move |call| {
            if call.operation == "GetRecords" && call.shard_id.as_ref() == Some(&first) && times > 0
            {
                times -= 1;
                return Outcome::failed(400, code, "no");
            }
            Outcome::Served
        });
        let consumer = consumer(&kinesis).build().unwrap();
        let mut records = consumer.records();
        let (mut errors, mut read) = (Vec::new(), Vec::new());
        let began = Instant::now();
        while read.len() < 2 {
            match timeout(Duration::from_secs(600), records.next()).await.unwrap().unwrap() {
                Ok(record) => read.push(number(&record)),
                Err(error) => errors.push(error),
            }
        }
        assert_eq!(errors.len(), 1, "{code}");
        assert_eq!(errors[0].kind(), kind, "{code}");
        assert_eq!(
            errors[0].to_string(),
            format!(
                "stream orders, shard shardId-000000000000: GetRecords failed: {advice} (400 {code}: no)"
            )
        );
        assert_eq!(
            read,
            [1, 0],
            "expected the other shard first, then this one after its failures"
        );
        assert!(began.elapsed() >= Duration::from_secs(45), "expected three slow attempts");
    }
}

#[tokio::test(start_paused = true)]
async fn deleted_stream_reports_each_failure_once_and_ends() {
    let (kinesis, orders) = orders(2);
    orders.shard(0).put("0");
    let consumer = consumer(&kinesis).build().unwrap();
    let mut records = consumer.records();
    assert_eq!(number(&next(&mut records).await), 0);
    kinesis.delete_stream("orders");
    let mut errors = Vec::new();
    while let Some(error) = timeout(Duration::from_secs(600), records.next()).await.unwrap() {
        let error = error.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert_eq!(error.stream(), Some("orders"));
        errors.push(error.shard_id().map(ToString::to_string));
    }
    assert!(errors.contains(&None), "expected an error without a shard: {errors:?}");
    let places = errors.len();
    errors.sort();
    errors.dedup();
    assert_eq!(errors.len(), places, "expected at most one error per shard and one for the stream");
    assert!(records.next().await.is_none(), "expected the ended stream to stay ended");
}

#[tokio::test(start_paused = true)]
async fn unreachable_kinesis_at_the_start_is_reported_and_retried() {
    let (kinesis, orders) = orders(1);
    orders.shard(0).put("0");
    kinesis.next_calls("ListShards", 10, Outcome::Refused);
    let consumer = consumer(&kinesis).build().unwrap();
    let mut records = consumer.records();
    let error = records.next().await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.is_temporary());
    assert_eq!(
        error.to_string(),
        "stream orders: ListShards failed: no connection to Kinesis; check the endpoint, \
         the region and the network"
    );
    assert_eq!(number(&next(&mut records).await), 0);
}

/// Returns a store with a checkpoint at a trimmed record.
pub(crate) async fn trimmed_store(orders: &Stream) -> MemoryStore {
    let store = MemoryStore::new();
    let numbers: Vec<_> = (0..10).map(|number| orders.shard(0).put(number.to_string())).collect();
    let checkpoint = Checkpoint::AfterSequenceNumber {
        sequence_number: numbers[2].clone(),
        sub_sequence_number: None,
    };
    let shard = "shardId-000000000000".parse().unwrap();
    store.save(&Scope::new("default", "orders"), &[(shard, checkpoint)]).await.unwrap();
    orders.shard(0).trim(5);
    store
}

#[tokio::test(start_paused = true)]
async fn trimmed_checkpoint_follows_on_trimmed() {
    let (kinesis, orders) = orders(2);
    let store = trimmed_store(&orders).await;
    orders.shard(1).put("100");
    let reader = consumer(&kinesis).store(store).build().unwrap();
    let mut records = reader.records();
    let (mut errors, mut read) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        match records.next().await.unwrap() {
            Ok(record) => read.push(number(&record)),
            Err(error) => errors.push(error),
        }
    }
    assert_eq!(errors[0].kind(), ErrorKind::Trimmed);
    assert_eq!(errors[0].shard_id().map(ShardId::as_str), Some("shardId-000000000000"));
    assert_eq!(read, [100], "expected the other shard to be read");
    assert_silent(&mut records).await;

    let (kinesis, orders) = crate::orders(1);
    let store = trimmed_store(&orders).await;
    let reader =
        consumer(&kinesis).store(store).on_trimmed(OnTrimmed::TrimHorizon).build().unwrap();
    let mut records = reader.records();
    for expected in 5..10 {
        assert_eq!(number(&next(&mut records).await), expected);
    }

    // `Latest` is the present by the server's clock, which is a day behind the host's.
    let kinesis = Kinesis::at(SystemTime::now() - Duration::from_secs(86_400));
    let orders = kinesis.create_stream("orders", 1);
    let store = trimmed_store(&orders).await;
    sleep(Duration::from_secs(5)).await;
    let reader = consumer(&kinesis).store(store).on_trimmed(OnTrimmed::Latest).build().unwrap();
    let mut records = reader.records();
    assert_silent(&mut records).await;
    orders.shard(0).put("10");
    assert_eq!(number(&next(&mut records).await), 10);
}

#[tokio::test(start_paused = true)]
async fn missing_credentials_or_region_error_names_the_setting() {
    let (kinesis, _orders) = orders(1);
    let bare = || {
        Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .http_client(kinesis.http_client())
    };
    let cases = [
        (
            bare().region(Region::new("eu-west-1")).build(),
            ErrorKind::Denied,
            "stream orders: ListShards was not sent: no AWS credentials; set AWS_ACCESS_KEY_ID and \
             AWS_SECRET_ACCESS_KEY, a profile or a role, and build the client from aws_config",
        ),
        (
            bare().credentials_provider(Credentials::new("a", "b", None, None, "test")).build(),
            ErrorKind::Configuration,
            "stream orders: ListShards was not sent: no AWS region; set AWS_REGION or the \
             client's region",
        ),
    ];
    for (config, kind, text) in cases {
        let consumer = Consumer::builder(Client::from_conf(config), "orders").build().unwrap();
        let mut records = consumer.records();
        let error = records.next().await.unwrap().unwrap_err();
        assert_eq!(error.to_string(), text, "{error:?}");
        assert_eq!(error.kind(), kind);
        assert_silent(&mut records).await;
    }
}

/// The readers of all shards share the call. While it has just failed for one reader, the others
/// are refused without a call.
#[tokio::test(start_paused = true)]
async fn malformed_responses_to_a_shared_call_are_reported_after_a_minute() {
    let (kinesis, _orders) = orders(8);
    let garbled = Outcome::Garbled { status: 200, body: "<html>".into() };
    kinesis.next_calls("DescribeStreamConsumer", usize::MAX, garbled);
    let consumer = consumer(&kinesis).fan_out("billing").build().unwrap();
    let mut records = consumer.records();
    let began = Instant::now();
    let item = timeout(Duration::from_secs(1000), records.next()).await;
    let error = item.expect("an error").unwrap().unwrap_err();
    assert!(error.to_string().contains("parsed"), "{error}");
    let waited = began.elapsed().as_secs();
    assert!((60..150).contains(&waited), "after {waited} s");
}

#[tokio::test(start_paused = true)]
async fn malformed_responses_are_reported_after_a_minute() {
    let garbled = Outcome::Garbled { status: 200, body: "<html>".into() };
    for (operation, fan_out) in
        [("GetRecords", false), ("GetShardIterator", false), ("SubscribeToShard", true)]
    {
        let (kinesis, orders) = orders(1);
        kinesis.next_calls(operation, usize::MAX, garbled.clone());
        let mut builder = consumer(&kinesis);
        if fan_out {
            builder = builder.fan_out("billing");
        }
        let consumer = builder.build().unwrap();
        let mut events = consumer.events();
        let mut records = consumer.records();
        orders.shard(0).put("0");
        let began = Instant::now();
        let item = timeout(Duration::from_secs(600), records.next()).await;
        let error = item.expect(operation).unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{operation}: {error}");
        assert!(error.to_string().contains("parsed"), "{operation}: {error}");
        let waited = began.elapsed();
        assert!((60..100).contains(&waited.as_secs()), "{operation}: after {waited:?}");
        let mut retried = 0;
        while let Some(Some(event)) = events.next().now_or_never() {
            retried += usize::from(matches!(event, Event::Retried { .. }));
        }
        assert!(retried > 1, "{operation}: {retried} events");
        kinesis.on_call(|_| Outcome::Served);
        assert_eq!(
            number(&next(&mut records).await),
            0,
            "{operation}: expected the record after the failure"
        );
    }
}
