//! Baseline of the benchmarks: plain loops over `GetRecords` and `SubscribeToShard` of the SDK.

// Each including program uses only some of these items.
#![allow(dead_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::config::StalledStreamProtectionConfig;
use aws_sdk_kinesis::types::{ShardIteratorType, StartingPosition, SubscribeToShardEventStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep, sleep_until};

/// The limit of one shard: <https://docs.aws.amazon.com/kinesis/latest/APIReference/API_GetRecords.html>.
pub(crate) const BYTES_PER_SECOND: u64 = 2 << 20;

/// The time between two calls of a shard.
const INTERVAL: Duration = Duration::from_millis(200);

/// Reads and drops `records` records with one polling task per shard, as fast as Kinesis allows. The
/// shards call at the same time, or at random moments if they are spread. `watch` gets the number of
/// records that were read, after each response.
pub(crate) async fn read(
    client: &Client,
    stream: &str,
    shards: usize,
    records: usize,
    are_spread: bool,
    watch: impl Fn(usize) + Clone + Send + 'static,
) {
    let read = Arc::new(AtomicUsize::new(0));
    let tasks: JoinSet<()> = (0..shards)
        .map(|shard| {
            let (client, stream) = (client.clone(), stream.to_owned());
            let (read, watch) = (read.clone(), watch.clone());
            let phase = if are_spread { INTERVAL.mul_f64(fastrand::f64()) } else { Duration::ZERO };
            async move {
                let iterator = iterator(&client, &stream, shard).await;
                sleep(phase).await;
                read_shard(client, iterator, records, &read, watch).await;
            }
        })
        .collect();
    tasks.join_all().await;
}

async fn read_shard(
    client: Client,
    mut iterator: Option<String>,
    records: usize,
    read: &AtomicUsize,
    watch: impl Fn(usize),
) {
    let mut next = Instant::now();
    loop {
        sleep_until(next).await;
        if read.load(Ordering::Relaxed) >= records {
            return;
        }
        next = Instant::now() + INTERVAL;
        let call = client.get_records().set_shard_iterator(iterator).limit(10_000);
        let answer = call.send().await.unwrap();
        iterator = answer.next_shard_iterator;
        let more = answer.records.len();
        let bytes: usize = answer.records.iter().map(|record| record.data.as_ref().len()).sum();
        let pause = Duration::from_millis(bytes as u64 * 1000 / BYTES_PER_SECOND);
        next = next.max(Instant::now() + pause);
        answer.records.into_iter().for_each(drop);
        watch(read.fetch_add(more, Ordering::Relaxed) + more);
    }
}

/// Polls one shard once per second, with a random phase.
pub(crate) async fn follow(client: Client, stream: String, shard: usize) {
    let mut iterator = iterator(&client, &stream, shard).await;
    sleep(Duration::from_millis(fastrand::u64(..1000))).await;
    let mut ticks = interval(Duration::from_secs(1));
    loop {
        ticks.tick().await;
        let call = client.get_records().set_shard_iterator(iterator).limit(10_000);
        iterator = call.send().await.unwrap().next_shard_iterator;
    }
}

/// Receives the records of one shard by consecutive subscriptions.
pub(crate) async fn subscribe(client: Client, consumer_arn: String, shard: usize) {
    let beginning = StartingPosition::builder().r#type(ShardIteratorType::TrimHorizon);
    let mut position = beginning.build().unwrap();
    loop {
        let call = client.subscribe_to_shard().consumer_arn(&consumer_arn);
        let call =
            call.shard_id(format!("shardId-{shard:012}")).starting_position(position.clone());
        // Without this setting, the SDK takes an idle subscription for a stalled download.
        let settings = aws_sdk_kinesis::config::Builder::new()
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
        let pushed = call.customize().config_override(settings).send().await;
        let mut events = pushed.unwrap().event_stream;
        while let Some(SubscribeToShardEventStream::SubscribeToShardEvent(event)) =
            events.recv().await.unwrap()
        {
            let after = StartingPosition::builder()
                .r#type(ShardIteratorType::AfterSequenceNumber)
                .sequence_number(event.continuation_sequence_number);
            position = after.build().unwrap();
        }
    }
}

async fn iterator(client: &Client, stream: &str, shard: usize) -> Option<String> {
    let placed = client
        .get_shard_iterator()
        .stream_name(stream)
        .shard_id(format!("shardId-{shard:012}"))
        .shard_iterator_type(ShardIteratorType::TrimHorizon);
    placed.send().await.unwrap().shard_iterator
}
