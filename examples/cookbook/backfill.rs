use std::time::{Duration, SystemTime};

use aws_config::BehaviorVersion;
use aws_sdk_kinesis::Client;
use futures::TryStreamExt;
use kinestream::{Consumer, ConsumerBuilder, EndingPosition, StartingPosition};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let config = aws_config::load_defaults(BehaviorVersion::latest()).await;
    // Add a store, so that a job that was stopped resumes.
    let orders = Consumer::builder(Client::new(&config), "orders").application("backfill-1");
    println!("{} orders", run(orders, SystemTime::now() - 2 * DAY).await?);
    Ok(())
}

/// Reads the orders of the day from `start` on, over splits and merges. Returns their number.
async fn run(builder: ConsumerBuilder, start: SystemTime) -> anyhow::Result<u64> {
    let consumer = builder
        .starting_position(StartingPosition::AtTimestamp(start))
        .ending_position(EndingPosition::AtTimestamp(start + DAY))
        .build()?;
    let (mut orders, mut count) = (consumer.records(), 0);
    while let Some(record) = orders.try_next().await? {
        println!("{:?} {:?}", record.approximate_arrival(), record.data());
        count += 1;
    }
    consumer.close().await?;
    Ok(count)
}
