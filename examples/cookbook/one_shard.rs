use aws_config::BehaviorVersion;
use aws_sdk_kinesis::Client;
use futures::TryStreamExt;
use kinestream::{Consumer, ConsumerBuilder, StartingPosition};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let config = aws_config::load_defaults(BehaviorVersion::latest()).await;
    let orders = Consumer::builder(Client::new(&config), "orders").application("debug");
    run(orders, "shardId-000000000003", 20).await
}

/// Prints the first records of one shard. The other shards are neither read nor leased.
async fn run(builder: ConsumerBuilder, shard: &str, mut records: u32) -> anyhow::Result<()> {
    let consumer = builder
        .only_shards([shard.parse()?])
        .starting_position(StartingPosition::TrimHorizon)
        .build()?;
    let mut orders = consumer.records();
    while records > 0
        && let Some(record) = orders.try_next().await?
    {
        println!("{} {:?}", record.sequence_number(), record.data());
        records -= 1;
    }
    Ok(())
}
