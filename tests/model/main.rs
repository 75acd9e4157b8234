//! Tests of the in-memory Kinesis of the `testing` feature against the documentation of Kinesis.
// Tests and their helpers report failures by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod subscriptions;

use std::time::Duration;

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_kinesis::operation::get_records::GetRecordsOutput;
use aws_sdk_kinesis::primitives::Blob;
use aws_sdk_kinesis::types::{
    PutRecordsRequestEntry, ShardFilter, ShardFilterType, ShardIteratorType,
};
use kinestream::testing::{Kinesis, Outcome, Shard};
use tokio::time::{Instant, sleep, timeout};

const ITERATOR: ShardIteratorType = ShardIteratorType::TrimHorizon;

fn code<E: ProvideErrorMetadata + std::fmt::Debug, R: std::fmt::Debug>(
    error: &SdkError<E, R>,
) -> &str {
    error.as_service_error().unwrap_or_else(|| panic!("{error:?}")).code().unwrap_or_default()
}

async fn iterator(client: &Client, shard: &Shard, kind: ShardIteratorType) -> String {
    let id = shard.id().to_string();
    let call = client.get_shard_iterator().stream_name("orders").shard_id(id);
    call.shard_iterator_type(kind).send().await.unwrap().shard_iterator.unwrap()
}

async fn read(client: &Client, iterator: &str) -> Result<GetRecordsOutput, String> {
    let answer = client.get_records().shard_iterator(iterator).send().await;
    answer.map_err(|error| code(&error).to_owned())
}

#[tokio::test(start_paused = true)]
async fn next_token_is_valid_alone_for_300_seconds() {
    let kinesis = Kinesis::new();
    kinesis.create_stream("orders", 1500);
    let client = kinesis.client();
    let first = client.list_shards().stream_name("orders").send().await.unwrap();
    assert_eq!(first.shards().len(), 1000);
    let token = first.next_token().unwrap();
    let rest = client.list_shards().next_token(token).send().await.unwrap();
    assert_eq!((rest.shards().len(), rest.next_token()), (500, None));
    assert_eq!(rest.shards()[0].shard_id(), "shardId-000000001000");
    assert_eq!(kinesis.violations(), [""; 0]);

    let both = client.list_shards().stream_name("orders").next_token(token).send().await;
    assert_eq!(code(&both.unwrap_err()), "InvalidArgumentException");
    assert_eq!(kinesis.violations(), ["ListShards with both NextToken and a stream name"]);

    sleep(Duration::from_secs(301)).await;
    let late = client.list_shards().next_token(token).send().await;
    assert_eq!(code(&late.unwrap_err()), "ExpiredNextTokenException");
    let unknown = client.list_shards().stream_name("parcels").send().await;
    assert_eq!(code(&unknown.unwrap_err()), "ResourceNotFoundException");
}

#[tokio::test(start_paused = true)]
async fn listing_from_timestamp_omits_shards_closed_before() {
    let kinesis = Kinesis::new();
    let orders = kinesis.create_stream("orders", 1);
    let [left, right] = orders.shard(0).split();
    sleep(Duration::from_secs(10)).await;
    let since = kinesis.now();
    let filter = ShardFilter::builder()
        .r#type(ShardFilterType::FromTimestamp)
        .timestamp(since.into())
        .build()
        .unwrap();
    left.merge(&right);
    let client = kinesis.client();
    let listing = client.list_shards().stream_name("orders").shard_filter(filter);
    let listed = listing.send().await.unwrap();
    let ids: Vec<&str> =
        listed.shards().iter().map(aws_sdk_kinesis::types::Shard::shard_id).collect();
    assert_eq!(ids, ["shardId-000000000001", "shardId-000000000002", "shardId-000000000003"]);
    let merged = &listed.shards()[2];
    assert_eq!(merged.parent_shard_id(), Some("shardId-000000000001"));
    assert_eq!(merged.adjacent_parent_shard_id(), Some("shardId-000000000002"));
    assert_eq!(merged.hash_key_range().unwrap().ending_hash_key(), u128::MAX.to_string());
}

#[tokio::test(start_paused = true)]
async fn listing_at_timestamp_shows_shards_open_then() {
    let kinesis = Kinesis::new();
    let orders = kinesis.create_stream("orders", 1);
    sleep(Duration::from_secs(10)).await;
    let first = kinesis.now();
    sleep(Duration::from_secs(10)).await;
    let [left, right] = orders.shard(0).split();
    sleep(Duration::from_secs(10)).await;
    let second = kinesis.now();
    sleep(Duration::from_secs(10)).await;
    left.merge(&right);
    let client = kinesis.client();
    for (time, shown) in [(first, vec![0]), (second, vec![1, 2]), (kinesis.now(), vec![3])] {
        let filter = ShardFilter::builder()
            .r#type(ShardFilterType::AtTimestamp)
            .timestamp(time.into())
            .build()
            .unwrap();
        let listing = client.list_shards().stream_name("orders").shard_filter(filter);
        let listed = listing.send().await.unwrap();
        let ids = listed.shards().iter().map(aws_sdk_kinesis::types::Shard::shard_id);
        let shown = shown.iter().map(|index| format!("shardId-{index:012}"));
        assert!(ids.eq(shown), "{listed:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn shard_serves_five_reads_and_two_mebibytes_a_second() {
    let kinesis = Kinesis::new();
    let shard = kinesis.create_stream("orders", 1).shard(0);
    let client = kinesis.client();
    let token = iterator(&client, &shard, ITERATOR).await;
    for _ in 0..5 {
        read(&client, &token).await.unwrap();
    }
    let throttled = "ProvisionedThroughputExceededException";
    assert_eq!(read(&client, &token).await.unwrap_err(), throttled);
    sleep(Duration::from_secs(1)).await;
    for _ in 0..11 {
        shard.put(vec![0; 1 << 20]);
    }
    // A response holds at most 10 MiB, which uses up the limit for five seconds.
    let answer = read(&client, &token).await.unwrap();
    assert_eq!(
        answer.records().len(),
        9,
        "expected 9 records, because the partition keys count too"
    );
    sleep(Duration::from_millis(4400)).await;
    assert_eq!(read(&client, &token).await.unwrap_err(), throttled);
    sleep(Duration::from_millis(600)).await;
    read(&client, &token).await.unwrap();
    assert_eq!(
        kinesis.violations(),
        [
            "shard 0: more than 5 GetRecords calls in one second",
            "shard 0: more than 2 MiB read in one second"
        ]
    );
    // Throttling by another reader is no violation.
    sleep(Duration::from_secs(10)).await;
    shard.occupy(Duration::from_secs(2));
    assert_eq!(read(&client, &token).await.unwrap_err(), throttled);
    sleep(Duration::from_secs(2)).await;
    read(&client, &token).await.unwrap();
    assert_eq!(kinesis.violations().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn iterator_is_reusable_for_five_minutes() {
    let kinesis = Kinesis::new();
    let orders = kinesis.create_stream("orders", 1);
    orders.shard(0).put("0");
    let client = kinesis.client();
    let token = iterator(&client, &orders.shard(0), ITERATOR).await;
    sleep(Duration::from_secs(299)).await;
    for _ in 0..2 {
        let answer = read(&client, &token).await.unwrap();
        assert_eq!(answer.records()[0].data().as_ref(), b"0");
        assert_eq!(answer.millis_behind_latest(), Some(0));
    }
    sleep(Duration::from_secs(2)).await;
    assert_eq!(read(&client, &token).await.unwrap_err(), "ExpiredIteratorException");
    let token = iterator(&client, &orders.shard(0), ITERATOR).await;
    sleep(Duration::from_millis(1)).await;
    kinesis.expire_iterators();
    assert_eq!(read(&client, &token).await.unwrap_err(), "ExpiredIteratorException");
    assert_eq!(kinesis.violations(), [""; 0]);
    assert_eq!(read(&client, "made up").await.unwrap_err(), "InvalidArgumentException");
    assert_eq!(kinesis.violations(), ["unknown shard iterator: \"made up\""]);
}

#[tokio::test(start_paused = true)]
async fn lag_is_age_of_next_record_and_shard_end_names_children() {
    let kinesis = Kinesis::new();
    let shard = kinesis.create_stream("orders", 1).shard(0);
    shard.put("0");
    sleep(Duration::from_secs(3)).await;
    shard.put("1");
    sleep(Duration::from_secs(4)).await;
    let [left, right] = shard.split();
    let client = kinesis.client();
    let token = iterator(&client, &shard, ITERATOR).await;
    let first = client.get_records().shard_iterator(token).limit(1).send().await.unwrap();
    assert_eq!(first.millis_behind_latest(), Some(4000));
    let last = read(&client, first.next_shard_iterator().unwrap()).await.unwrap();
    assert_eq!(last.millis_behind_latest(), Some(0));
    assert_eq!(last.next_shard_iterator(), None);
    let children: Vec<&str> =
        last.child_shards().iter().map(aws_sdk_kinesis::types::ChildShard::shard_id).collect();
    assert_eq!(children, [left.id().as_str(), right.id().as_str()]);
    assert_eq!(last.child_shards()[0].parent_shards(), [shard.id().as_str()]);
}

#[tokio::test(start_paused = true)]
async fn trimmed_records_and_expired_shards_are_gone() {
    let kinesis = Kinesis::new();
    let shard = kinesis.create_stream("orders", 1).shard(0);
    let numbers: Vec<_> = (0..3).map(|number| shard.put(number.to_string())).collect();
    shard.trim(2);
    let client = kinesis.client();
    let token = iterator(&client, &shard, ITERATOR).await;
    assert_eq!(read(&client, &token).await.unwrap().records()[0].data().as_ref(), b"2");
    let call = client.get_shard_iterator().stream_name("orders").shard_id(shard.id().as_str());
    let trimmed = call
        .shard_iterator_type(ShardIteratorType::AfterSequenceNumber)
        .starting_sequence_number(numbers[1].as_str());
    assert_eq!(code(&trimmed.send().await.unwrap_err()), "InvalidArgumentException");
    shard.split();
    shard.expire();
    assert_eq!(read(&client, &token).await.unwrap_err(), "ResourceNotFoundException");
    let listed = client.list_shards().stream_name("orders").send().await.unwrap();
    assert_eq!(listed.shards().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn put_record_goes_to_shard_of_its_hash_key() {
    let kinesis = Kinesis::new();
    let orders = kinesis.create_stream("orders", 2);
    let client = kinesis.client();
    let put = |key: &str| {
        client.put_record().stream_name("orders").partition_key(key).data(Blob::new("a red one"))
    };
    // The MD5 of "a" begins with 0c, that of "b" with 92.
    assert_eq!(put("a").send().await.unwrap().shard_id(), "shardId-000000000000");
    assert_eq!(put("b").send().await.unwrap().shard_id(), "shardId-000000000001");
    let explicit = put("a").explicit_hash_key(u128::MAX.to_string()).send().await.unwrap();
    assert_eq!(explicit.shard_id(), "shardId-000000000001");
    let entry = |key: &str| {
        PutRecordsRequestEntry::builder().partition_key(key).data(Blob::new("x")).build().unwrap()
    };
    let many = client.put_records().stream_name("orders").records(entry("a")).records(entry("b"));
    assert_eq!(many.send().await.unwrap().failed_record_count(), Some(0));
    assert_eq!(orders.shard(0).sequence_numbers().len(), 2);
    assert_eq!(orders.shard(1).sequence_numbers().len(), 3);
    assert_eq!(orders.put("a", "x"), orders.shard(0));
    let unknown = client.list_streams().send().await;
    assert_eq!(code(&unknown.unwrap_err()), "UnknownOperationException");
}

#[tokio::test(start_paused = true)]
async fn repeated_next_calls_queue_their_outcomes() {
    let kinesis = Kinesis::new();
    kinesis.create_stream("orders", 1);
    let client = kinesis.client();
    let list = async || match client.list_shards().stream_name("orders").send().await {
        Ok(_) => "served".to_owned(),
        Err(error) => code(&error).to_owned(),
    };
    let failed = |code: &str| Outcome::failed(400, code, "");
    kinesis.on_call(move |_| failed("Ruled"));
    kinesis.next_calls("ListShards", 0, failed("Never"));
    kinesis.next_calls("ListShards", 2, failed("First"));
    kinesis.next_calls("GetRecords", 9, failed("Another"));
    kinesis.next_calls("ListShards", 1, Outcome::Served);
    for expected in ["First", "First", "served", "Ruled", "Ruled"] {
        assert_eq!(list().await, expected);
    }
    kinesis.next_calls("ListShards", usize::MAX, failed("Always"));
    assert_eq!(list().await, "Always");
    kinesis.on_call(|_| Outcome::Served);
    assert_eq!(list().await, "served");
}

#[tokio::test(start_paused = true)]
async fn calls_fail_with_their_configured_outcome() {
    let kinesis = Kinesis::new();
    kinesis.create_stream("orders", 1);
    let client = kinesis.client();
    let list = async || client.list_shards().stream_name("orders").send().await;
    let next = |outcome: Outcome| kinesis.next_calls("ListShards", 1, outcome);

    next(Outcome::failed(500, "InternalFailureException", "sorry"));
    assert_eq!(code(&list().await.unwrap_err()), "InternalFailureException");
    next(Outcome::Refused);
    assert!(matches!(list().await.unwrap_err(), SdkError::DispatchFailure(_)));
    next(Outcome::Lost);
    assert!(matches!(list().await.unwrap_err(), SdkError::DispatchFailure(_)));
    next(Outcome::Cut);
    assert!(matches!(list().await.unwrap_err(), SdkError::ResponseError(_)));
    next(Outcome::Garbled { status: 502, body: "<html>bad gateway</html>".into() });
    assert!(list().await.is_err());
    next(Outcome::Hangs);
    assert!(timeout(Duration::from_secs(3600), list()).await.is_err());
    assert_eq!(kinesis.in_flight(), 0);
    next(Outcome::Delayed(Duration::from_secs(7)));
    let began = Instant::now();
    list().await.unwrap();
    assert_eq!(began.elapsed(), Duration::from_secs(7));
    kinesis.set_latency(Duration::from_secs(2));
    list().await.unwrap();
    assert_eq!(began.elapsed(), Duration::from_secs(9));
    let statuses: Vec<_> = kinesis.calls().iter().map(|call| call.status).collect();
    let cut = None;
    assert_eq!(statuses, [Some(500), None, None, cut, Some(502), None, Some(200), Some(200)]);
}
