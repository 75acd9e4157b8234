//! The loop that all is compared with: the SDK's `GetRecords`, again and again.

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::types::ShardIteratorType;

/// Reads so many records of the first shard, and drops each.
pub(crate) async fn read(client: &Client, stream: &str, records: usize) {
    let placed = client
        .get_shard_iterator()
        .stream_name(stream)
        .shard_id("shardId-000000000000")
        .shard_iterator_type(ShardIteratorType::TrimHorizon);
    let mut iterator = placed.send().await.unwrap().shard_iterator;
    let mut read = 0;
    while read < records {
        let call = client.get_records().set_shard_iterator(iterator).limit(10_000);
        let answer = call.send().await.unwrap();
        iterator = answer.next_shard_iterator;
        for record in answer.records {
            read += 1;
            drop(record);
        }
    }
}
