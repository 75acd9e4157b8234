//! The loop that all is compared with: the SDK's `GetRecords`, again and again.

use std::sync::atomic::{AtomicUsize, Ordering};

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::types::ShardIteratorType;
use futures::future::join_all;

/// Reads so many records, by a loop for each shard, and drops each.
pub(crate) async fn read(client: &Client, stream: &str, shards: usize, records: usize) {
    let left = AtomicUsize::new(records);
    join_all((0..shards).map(|shard| read_shard(client, stream, shard, &left))).await;
}

async fn read_shard(client: &Client, stream: &str, shard: usize, left: &AtomicUsize) {
    let placed = client
        .get_shard_iterator()
        .stream_name(stream)
        .shard_id(format!("shardId-{shard:012}"))
        .shard_iterator_type(ShardIteratorType::TrimHorizon);
    let mut iterator = placed.send().await.unwrap().shard_iterator;
    while left.load(Ordering::Relaxed) > 0 {
        let call = client.get_records().set_shard_iterator(iterator).limit(10_000);
        let answer = call.send().await.unwrap();
        iterator = answer.next_shard_iterator;
        left.fetch_sub(answer.records.len(), Ordering::Relaxed);
        answer.records.into_iter().for_each(drop);
    }
}
