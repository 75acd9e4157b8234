//! Calls to Kinesis that the consumer does not make.

use std::time::SystemTime;

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::error::SdkError;
use aws_sdk_kinesis::operation::get_shard_iterator::GetShardIteratorError;
use aws_sdk_kinesis::operation::get_shard_iterator::builders::GetShardIteratorFluentBuilder;
use aws_sdk_kinesis::types::ShardIteratorType;
use kinestream::{Checkpoint, ShardId};

/// Checks that the shards exist. The consumer reports any other failure.
pub(crate) async fn check_shards(
    client: &Client,
    stream: &str,
    shards: &[ShardId],
) -> Result<(), String> {
    for shard in shards {
        let call = iterator(client, stream, shard);
        let result = call.shard_iterator_type(ShardIteratorType::TrimHorizon).send().await;
        let result = result.map_err(SdkError::into_service_error);
        if let Err(GetShardIteratorError::ResourceNotFoundException(error)) = result {
            return Err(error.message().unwrap_or("no such shard").to_owned());
        }
    }
    Ok(())
}

/// Returns how far a position is behind, as Kinesis reports it with the first record after it.
pub(crate) async fn millis_behind(
    client: &Client,
    stream: &str,
    shard: &ShardId,
    position: &Checkpoint,
) -> Option<i64> {
    let call = iterator(client, stream, shard);
    let call = match position {
        Checkpoint::AfterSequenceNumber { sequence_number, .. }
        | Checkpoint::CaughtUp { after: Some(sequence_number), .. } => call
            .shard_iterator_type(ShardIteratorType::AfterSequenceNumber)
            .starting_sequence_number(sequence_number.as_str()),
        Checkpoint::AtTimestamp(time) | Checkpoint::CaughtUp { until: time, .. } => {
            call.shard_iterator_type(ShardIteratorType::AtTimestamp).timestamp((*time).into())
        }
        _ => call.shard_iterator_type(ShardIteratorType::TrimHorizon),
    };
    let iterator = call.send().await.ok()?.shard_iterator?;
    let response = client.get_records().shard_iterator(iterator).limit(1).send().await.ok()?;
    let lag = response.millis_behind_latest?;
    // The record itself is unread, so its age counts as well.
    let arrival = response.records.first().and_then(|record| record.approximate_arrival_timestamp);
    let age = arrival.and_then(|time| SystemTime::try_from(time).ok()?.elapsed().ok());
    Some(lag.max(age.map_or(0, |age| i64::try_from(age.as_millis()).unwrap_or(i64::MAX))))
}

/// Starts a call for an iterator of a shard. The stream may be an ARN in another account.
fn iterator(client: &Client, stream: &str, shard: &ShardId) -> GetShardIteratorFluentBuilder {
    let call = client.get_shard_iterator().shard_id(shard.as_str());
    if stream.starts_with("arn:") { call.stream_arn(stream) } else { call.stream_name(stream) }
}
