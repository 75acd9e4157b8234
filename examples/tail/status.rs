//! Where an application stands.

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::types::ShardIteratorType;
use console::style;
use kinestream::{Checkpoint, Consumer, ShardId, ShardState};

use crate::output::short;

/// Prints every shard that the application knows, and asks Kinesis how far behind each is.
pub(crate) async fn print(client: &Client, consumer: &Consumer) -> kinestream::Result<()> {
    let status = consumer.status().await?;
    println!("application {} of stream {}", status.application, status.stream);
    println!(
        "workers: {}",
        if status.workers.is_empty() { "none".to_owned() } else { status.workers.join(", ") }
    );
    println!(
        "{}",
        style(format!("{:>12} {:9} {:>12} {:24} position", "shard", "state", "behind", "owner"))
            .bold()
    );
    for (shard, at) in &status.shards {
        let state = match at.state {
            ShardState::Reading => style("reading").green(),
            ShardState::Free | ShardState::Lost => {
                style(if at.state == ShardState::Free { "free" } else { "lost" }).red()
            }
            ShardState::Waiting => style("waiting").yellow(),
            ShardState::Leaving => style("leaving").yellow(),
            _ => style("finished").dim(),
        };
        let behind = match &at.position {
            Some(position) if at.state != ShardState::Finished => {
                millis_behind(client, &status.stream, shard, position).await
            }
            _ => None,
        };
        println!(
            "{:>12} {state:9} {:>12} {:24} {}",
            short(shard.as_str()),
            behind.map_or_else(|| "-".to_owned(), |millis| format!("{millis} ms")),
            at.owner.as_deref().unwrap_or("-"),
            at.position.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
        );
    }
    if status.shards.is_empty() {
        println!("nothing is stored: the application has not begun, or has another name");
    }
    Ok(())
}

/// How far behind a position is, as Kinesis tells with the first record after it.
async fn millis_behind(
    client: &Client,
    stream: &str,
    shard: &ShardId,
    position: &Checkpoint,
) -> Option<i64> {
    let call = client.get_shard_iterator().stream_name(stream).shard_id(shard.as_str());
    let call = match position {
        Checkpoint::AfterSequence { sequence_number, .. } => call
            .shard_iterator_type(ShardIteratorType::AfterSequenceNumber)
            .starting_sequence_number(sequence_number.as_str()),
        Checkpoint::AtTimestamp(time) => {
            call.shard_iterator_type(ShardIteratorType::AtTimestamp).timestamp((*time).into())
        }
        _ => call.shard_iterator_type(ShardIteratorType::TrimHorizon),
    };
    let iterator = call.send().await.ok()?.shard_iterator?;
    let answer = client.get_records().shard_iterator(iterator).limit(1).send().await.ok()?;
    let lag = answer.millis_behind_latest?;
    // The record itself is behind, too.
    let arrival = answer.records.first().and_then(|record| record.approximate_arrival_timestamp);
    let age = arrival.and_then(|time| std::time::SystemTime::try_from(time).ok()?.elapsed().ok());
    Some(lag.max(age.map_or(0, |age| i64::try_from(age.as_millis()).unwrap_or(i64::MAX))))
}
