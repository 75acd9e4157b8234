//! The lag of a stored position, which only Kinesis knows.

use std::collections::BTreeMap;
use std::time::SystemTime;

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::types::ShardIteratorType;
use futures::StreamExt;
use kinestream::{ApplicationStatus, Checkpoint, ShardId, ShardState};

use crate::client::of_stream;
use crate::failure::{Failure, Outcome};

/// The shards that are asked about at once. The limits of Kinesis are those of each shard, so this one
/// bounds the connections. Local servers become slower with more.
const CONCURRENT_SHARDS: usize = 32;

/// The lag of each shard in milliseconds, or the reason for which it is unknown.
pub(super) type Lags = BTreeMap<ShardId, Outcome<u64>>;

/// Returns the lags of the unfinished shards that have a position.
pub(super) async fn of_shards(client: &Client, stream: &str, status: &ApplicationStatus) -> Lags {
    let unfinished = status.shards.iter().filter(|(_, shard)| shard.state != ShardState::Finished);
    let positions =
        unfinished.filter_map(|(id, shard)| Some((id.clone(), shard.position.clone()?)));
    futures::stream::iter(positions.collect::<Vec<_>>())
        .map(|(shard, position)| async move {
            let lag = millis_behind(client, stream, &shard, &position).await;
            (shard, lag)
        })
        .buffer_unordered(CONCURRENT_SHARDS)
        .collect()
        .await
}

/// Returns the lag of a position in milliseconds, as Kinesis reports it with the first record
/// after it. The two calls count towards the limits of the shard, which allow five reads per second.
///
/// # Errors
///
/// Kinesis does not answer, or refuses the position. The rest of the status is known without.
async fn millis_behind(
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kinestream::testing::Kinesis;
    use kinestream::{Consumer, MemoryStore, StartingPosition};
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn lags_of_many_shards_take_one_read_each_and_two_seconds() {
        const SHARDS: usize = 1000;
        const LATENCY: Duration = Duration::from_millis(25);
        let kinesis = Kinesis::new();
        let orders = kinesis.create_stream("orders", SHARDS);
        orders.shard(0).put("unread");
        let consumer = Consumer::builder(kinesis.client(), "orders").store(MemoryStore::new());
        let consumer = consumer.build().unwrap();
        consumer.seek(StartingPosition::TrimHorizon).await.unwrap();
        let status = consumer.status().await.unwrap();
        let before = kinesis.call_count();

        kinesis.set_latency(LATENCY);
        let began = Instant::now();
        let lags = of_shards(&kinesis.client(), "orders", &status).await;
        let taken = began.elapsed();
        assert_eq!(lags.values().flatten().count(), SHARDS, "{:?}", lags.values().next());
        assert!(taken <= Duration::from_secs(2), "expected at most two seconds: {taken:?}");
        let calls = kinesis.calls_from(before);
        let reads = calls.iter().filter(|call| call.operation == "GetRecords").count();
        assert_eq!(reads, SHARDS, "expected one read of each shard");
        let in_flight = |at: Instant| {
            calls.iter().filter(|call| call.at <= at && at < call.at + LATENCY).count()
        };
        let most = calls.iter().map(|call| in_flight(call.at)).max();
        assert!(most <= Some(CONCURRENT_SHARDS), "{most:?} calls at once");
        assert_eq!(kinesis.violations(), [""; 0]);
    }
}
