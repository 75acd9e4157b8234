//! The lag of a stored position, which only Kinesis knows.

use std::time::SystemTime;

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::types::ShardIteratorType;
use kinestream::{Checkpoint, ShardId};

use crate::client::of_stream;

/// Returns how far a position is behind, in milliseconds, as Kinesis reports it with the first record
/// after it; `None` if Kinesis does not answer, or refuses the position. The two calls count towards
/// the limits of the shard, which allow five reads per second.
pub(super) async fn millis_behind(
    client: &Client,
    stream: &str,
    shard: &ShardId,
    position: &Checkpoint,
) -> Option<i64> {
    let call = of_stream!(client.get_shard_iterator().shard_id(shard.as_str()), stream);
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
