//! The lag of a stored position, which only Kinesis knows.

use std::time::SystemTime;

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::types::ShardIteratorType;
use kinestream::{Checkpoint, ShardId};

use crate::client::of_stream;
use crate::failure::{Failure, Outcome};

/// Returns the lag of a position in milliseconds, as Kinesis reports it with the first record
/// after it. The two calls count towards the limits of the shard, which allow five reads per second.
///
/// # Errors
///
/// Kinesis does not answer, or refuses the position. The rest of the status is known without.
pub(super) async fn millis_behind(
    client: &Client,
    stream: &str,
    shard: &ShardId,
    position: &Checkpoint,
) -> Outcome<u64> {
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
    let iterator = call.send().await;
    let iterator = iterator.map_err(|error| Failure::of_call("GetShardIterator", None, &error))?;
    let Some(iterator) = iterator.shard_iterator else {
        return Err(Failure::new("GetShardIterator returned no iterator"));
    };
    let response = client.get_records().shard_iterator(iterator).limit(1).send().await;
    let response = response.map_err(|error| Failure::of_call("GetRecords", None, &error))?;
    let Some(lag) = response.millis_behind_latest else {
        return Err(Failure::new("GetRecords returned no lag"));
    };
    // The record itself is unread, so its age counts as well.
    let arrival = response.records.first().and_then(|record| record.approximate_arrival_timestamp);
    let age = arrival.and_then(|time| SystemTime::try_from(time).ok()?.elapsed().ok());
    let age = age.map_or(0, |age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
    // A negative lag is that of a clock.
    Ok(u64::try_from(lag).unwrap_or(0).max(age))
}
