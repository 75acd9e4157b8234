//! Tests of enhanced fan-out in the in-memory Kinesis.

use std::time::Duration;

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::error::SdkError;
use aws_sdk_kinesis::operation::subscribe_to_shard::SubscribeToShardOutput;
use aws_sdk_kinesis::types::{
    ConsumerStatus, ShardIteratorType, StartingPosition, SubscribeToShardEvent,
    SubscribeToShardEventStream,
};
use aws_smithy_types::event_stream::RawMessage;
use kinestream::testing::{Interruption, Kinesis, Stream};
use tokio::time::{Instant, sleep};

use crate::code;

const SECOND: Duration = Duration::from_secs(1);

fn orders() -> (Kinesis, Stream, Client) {
    let kinesis = Kinesis::new();
    let orders = kinesis.create_stream("orders", 1);
    let client = kinesis.client();
    (kinesis, orders, client)
}

async fn stream_arn(client: &Client) -> String {
    let summary = client.describe_stream_summary().stream_name("orders").send().await.unwrap();
    summary.stream_description_summary.unwrap().stream_arn
}

/// Registers a consumer with this name, and returns its ARN.
async fn register(client: &Client, name: &str) -> String {
    let arn = stream_arn(client).await;
    let call = client.register_stream_consumer().stream_arn(arn).consumer_name(name);
    call.send().await.unwrap().consumer.unwrap().consumer_arn
}

async fn subscribe(
    client: &Client,
    consumer: &str,
    position: StartingPosition,
) -> Result<SubscribeToShardOutput, String> {
    let call = client.subscribe_to_shard().consumer_arn(consumer);
    let call = call.shard_id("shardId-000000000000").starting_position(position);
    call.send().await.map_err(|error| code(&error).to_owned())
}

fn from(kind: ShardIteratorType) -> StartingPosition {
    StartingPosition::builder().r#type(kind).build().unwrap()
}

fn after(number: &str) -> StartingPosition {
    let after = StartingPosition::builder().r#type(ShardIteratorType::AfterSequenceNumber);
    after.sequence_number(number).build().unwrap()
}

async fn event(subscription: &mut SubscribeToShardOutput) -> Result<SubscribeToShardEvent, String> {
    match subscription.event_stream.recv().await {
        Ok(Some(SubscribeToShardEventStream::SubscribeToShardEvent(event))) => Ok(event),
        Ok(Some(other)) => panic!("{other:?}"),
        Ok(None) => Err("the end".to_owned()),
        // The SDK does not read the error code from the header in which Kinesis sends it.
        Err(SdkError::ServiceError(error)) => match error.raw() {
            RawMessage::Decoded(message) => {
                let mut headers = message.headers().iter();
                let name = headers.find(|header| header.name().as_str() == ":exception-type");
                Err(name.unwrap().value().as_string().unwrap().as_str().to_owned())
            }
            raw => panic!("{raw:?}"),
        },
        Err(_) => Err("lost".to_owned()),
    }
}

fn payloads(event: &SubscribeToShardEvent) -> Vec<&[u8]> {
    event.records().iter().map(|record| record.data().as_ref()).collect()
}

#[tokio::test(start_paused = true)]
async fn records_are_pushed_at_once_and_silence_sends_empty_events() {
    let (kinesis, orders, client) = orders();
    orders.shard(0).put("before");
    let consumer = register(&client, "billing").await;
    let mut subscription =
        subscribe(&client, &consumer, from(ShardIteratorType::TrimHorizon)).await.unwrap();
    assert_eq!(payloads(&event(&mut subscription).await.unwrap()), [b"before"]);
    let pushed = tokio::spawn({
        let orders = orders.clone();
        async move {
            sleep(SECOND).await;
            orders.shard(0).put("now")
        }
    });
    let began = Instant::now();
    let now = event(&mut subscription).await.unwrap();
    assert_eq!((payloads(&now), began.elapsed()), (vec![&b"now"[..]], SECOND));
    let number = pushed.await.unwrap();
    assert_eq!(now.continuation_sequence_number(), number.as_str());
    let silence = event(&mut subscription).await.unwrap();
    assert!(silence.records().is_empty() && began.elapsed() == 6 * SECOND, "{silence:?}");
    let place = silence.continuation_sequence_number();
    let later = orders.shard(0).put("later");
    assert!(place > number.as_str() && place < later.as_str());
    assert_eq!(kinesis.in_flight(), 1);
    drop(subscription);
    assert_eq!(kinesis.in_flight(), 0);

    // Resumes after the continuation number until the records after it are trimmed.
    let mut again = subscribe(&client, &consumer, after(place)).await.unwrap();
    assert_eq!(payloads(&event(&mut again).await.unwrap()), [b"later"]);
    orders.shard(0).trim(3);
    sleep(5 * SECOND).await;
    let trimmed = subscribe(&client, &consumer, after(place)).await;
    assert_eq!(trimmed.unwrap_err(), "InvalidArgumentException");
    let call = &kinesis.calls()[2];
    assert_eq!((&call.operation[..], call.records), ("SubscribeToShard", 2));
}

#[tokio::test(start_paused = true)]
async fn subscription_ends_after_five_minutes_and_is_replaceable_after_five_seconds() {
    let (_kinesis, _orders, client) = orders();
    let consumer = register(&client, "billing").await;
    let latest = || from(ShardIteratorType::Latest);
    let began = Instant::now();
    let mut first = subscribe(&client, &consumer, latest()).await.unwrap();
    let at_once = subscribe(&client, &consumer, latest()).await;
    assert_eq!(at_once.unwrap_err(), "ResourceInUseException");
    // The limit applies per consumer: another consumer may subscribe at once.
    let other = register(&client, "shipping").await;
    assert!(subscribe(&client, &other, latest()).await.is_ok());
    sleep(5 * SECOND).await;
    let mut second = subscribe(&client, &consumer, latest()).await.unwrap();
    // Skips the empty events that the first subscription still holds.
    while let Ok(silence) = event(&mut first).await {
        assert!(silence.records().is_empty());
    }
    assert_eq!(event(&mut first).await.unwrap_err(), "the end");
    let mut received = 0;
    while event(&mut second).await.is_ok() {
        received += 1;
    }
    assert_eq!((began.elapsed(), received), (305 * SECOND, 59));
}

#[tokio::test(start_paused = true)]
async fn shard_end_names_children_and_no_continuation() {
    let (_kinesis, orders, client) = orders();
    orders.shard(0).put("last");
    orders.shard(0).split();
    let consumer = register(&client, "billing").await;
    let mut subscription =
        subscribe(&client, &consumer, from(ShardIteratorType::TrimHorizon)).await.unwrap();
    let end = event(&mut subscription).await.unwrap();
    assert_eq!(payloads(&end), [b"last"]);
    assert_eq!((end.continuation_sequence_number(), end.child_shards().len()), ("", 2));
    assert_eq!(event(&mut subscription).await.unwrap_err(), "the end");
}

#[tokio::test(start_paused = true)]
async fn consumer_registers_once_and_is_creating_first() {
    let (kinesis, orders, client) = orders();
    kinesis.set_registration_time(3 * SECOND);
    let consumer = register(&client, "billing").await;
    let arn = stream_arn(&client).await;
    let again = client.register_stream_consumer().stream_arn(&arn).consumer_name("billing");
    assert_eq!(code(&again.send().await.unwrap_err()), "ResourceInUseException");
    let describe = async || {
        let by_name = client.describe_stream_consumer().stream_arn(&arn).consumer_name("billing");
        let by_arn = client.describe_stream_consumer().consumer_arn(&consumer);
        let described = by_name.send().await.map(|answer| answer.consumer_description.unwrap());
        let same = by_arn.send().await.map(|answer| answer.consumer_description.unwrap());
        assert_eq!(described.as_ref().ok(), same.as_ref().ok());
        described.map(|described| described.consumer_status)
    };
    assert_eq!(describe().await.unwrap(), ConsumerStatus::Creating);
    let latest = || from(ShardIteratorType::Latest);
    let early = subscribe(&client, &consumer, latest()).await;
    assert_eq!(early.unwrap_err(), "ResourceInUseException");
    sleep(3 * SECOND).await;
    assert_eq!(describe().await.unwrap(), ConsumerStatus::Active);
    let mut subscription = subscribe(&client, &consumer, latest()).await.unwrap();

    client.deregister_stream_consumer().consumer_arn(&consumer).send().await.unwrap();
    assert_eq!(event(&mut subscription).await.unwrap_err(), "ResourceNotFoundException");
    assert_eq!(code(&describe().await.unwrap_err()), "ResourceNotFoundException");
    let gone = subscribe(&client, &consumer, latest()).await;
    assert_eq!(gone.unwrap_err(), "ResourceNotFoundException");
    for number in 0..20 {
        register(&client, &number.to_string()).await;
    }
    let one_more = client.register_stream_consumer().stream_arn(&arn).consumer_name("more");
    assert_eq!(code(&one_more.send().await.unwrap_err()), "LimitExceededException");
    drop(orders);
}

#[tokio::test(start_paused = true)]
async fn interrupted_subscription_fails_as_configured() {
    let (_kinesis, orders, client) = orders();
    let consumer = register(&client, "billing").await;
    for (interruption, expected) in [
        (Interruption::Ends, Some("the end")),
        (Interruption::Resets, Some("lost")),
        (Interruption::Stalls, None),
        (Interruption::fails("InternalFailureException", "ours"), Some("InternalFailureException")),
        (Interruption::fails("KMSThrottlingException", "slow"), Some("KMSThrottlingException")),
    ] {
        let latest = from(ShardIteratorType::Latest);
        let mut subscription = subscribe(&client, &consumer, latest).await.unwrap();
        orders.shard(0).put("one");
        assert_eq!(payloads(&event(&mut subscription).await.unwrap()), [b"one"]);
        assert_eq!(orders.shard(0).interrupt(&interruption), 1);
        orders.shard(0).put("two");
        let next = tokio::time::timeout(60 * SECOND, event(&mut subscription)).await;
        let found = next.ok().map(Result::unwrap_err);
        assert_eq!(found.as_deref(), expected, "{interruption:?}");
        sleep(5 * SECOND).await;
    }
}
