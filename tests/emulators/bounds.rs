//! Bounded reads: jobs that end over reshards, and named shards.

use std::time::SystemTime;

use aws_sdk_kinesis::Client;
use futures::{StreamExt, TryStreamExt};
use kinestream::{ConsumerBuilder, EndingPosition, MemoryStore, Record, ShardId};
use tokio::time::{sleep, timeout};

use crate::ferrokinesis_server::create_stream;
use crate::scenarios::{
    A_SECOND, PATIENCE, Source, assert_in_order, consumer, merge_first_two, number, numbers,
    open_shards, put, split_first,
};

/// Reads a stream that must end, and closes its consumer.
async fn read_to_the_end(builder: ConsumerBuilder) -> Vec<Record> {
    let consumer = builder.build().unwrap();
    let mut records = consumer.records();
    let read = timeout(PATIENCE, records.by_ref().try_collect::<Vec<_>>())
        .await
        .expect("expected the stream to end within 60 s")
        .expect("expected no error");
    assert!(records.next().await.is_none());
    consumer.close().await.expect("expected the checkpoints to be saved");
    read
}

/// Jobs read a stream that is resharded before, between and while they read.
pub(crate) async fn jobs_end_over_reshards_and_repeat_nothing(client: &Client, by: Source) {
    let stream = &format!("scenario-of-jobs-by-{by:?}");
    create_stream(client, stream, 2).await.unwrap();
    let store = MemoryStore::new();
    let job = || by.consumer(client, stream, &store).ending_position(EndingPosition::Latest);

    put(client, stream, 0..50).await;
    split_first(client, stream).await;
    put(client, stream, 50..100).await;
    let mut all = read_to_the_end(job()).await;
    assert_eq!(numbers(&all), (0..100).collect::<Vec<_>>());

    put(client, stream, 100..120).await;
    merge_first_two(client, stream).await;
    put(client, stream, 120..150).await;
    let reading = tokio::spawn(read_to_the_end(job()));
    split_first(client, stream).await;
    all.extend(reading.await.unwrap());
    assert_eq!(numbers(&all), (0..150).collect::<Vec<_>>(), "expected each record once");
    assert_in_order(&all);
    assert!(read_to_the_end(job()).await.is_empty(), "the job is complete");
}

pub(crate) async fn job_ends_at_a_time(client: &Client) {
    let stream = "scenario-of-an-ending-time";
    create_stream(client, stream, 2).await.unwrap();
    put(client, stream, 0..50).await;
    split_first(client, stream).await;
    put(client, stream, 50..100).await;
    sleep(A_SECOND).await;
    let end = SystemTime::now();
    sleep(A_SECOND).await;
    // Into each open shard, which then ends at the record. A quiet shard waits for 5 min.
    put(client, stream, 100..150).await;
    let builder = consumer(client, stream, &MemoryStore::new());
    let read = read_to_the_end(builder.ending_position(EndingPosition::AtTimestamp(end))).await;
    assert_eq!(numbers(&read), (0..100).collect::<Vec<_>>());
    assert_in_order(&read);
}

/// A closed shard is read to its end. An open one ends with an ending position.
pub(crate) async fn named_shards_are_read_alone(client: &Client, by: Source) {
    let stream = &format!("scenario-of-named-shards-by-{by:?}");
    create_stream(client, stream, 2).await.unwrap();
    put(client, stream, 0..50).await;
    let id = |shard: &aws_sdk_kinesis::types::Shard| shard.shard_id().parse::<ShardId>().unwrap();
    let closed = id(&open_shards(client, stream).await[0]);
    split_first(client, stream).await;
    put(client, stream, 50..100).await;
    let child = id(&open_shards(client, stream).await[0]);

    let whole = by.consumer(client, stream, &MemoryStore::new());
    let whole = read_to_the_end(whole.ending_position(EndingPosition::Latest)).await;
    let of = |shard: &ShardId| {
        let mut own: Vec<u32> =
            whole.iter().filter(|record| record.shard_id() == shard).map(number).collect();
        own.sort_unstable();
        own
    };
    let named = |shard: &ShardId| {
        by.consumer(client, stream, &MemoryStore::new()).only_shards([shard.clone()])
    };
    assert_eq!(numbers(&read_to_the_end(named(&closed)).await), of(&closed));
    let open = named(&child).ending_position(EndingPosition::Latest);
    assert_eq!(numbers(&read_to_the_end(open).await), of(&child));
}
