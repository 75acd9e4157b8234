use std::str::from_utf8;

use aws_config::BehaviorVersion;
use aws_sdk_kinesis::{Client, primitives::Blob};
use backon::{ExponentialBuilder, Retryable};
use futures::{TryStreamExt, future};
use kinestream::{CheckpointOn, Consumer, ConsumerBuilder, Record, RecordStreamExt};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let config = aws_config::load_defaults(BehaviorVersion::latest()).await;
    let client = Client::new(&config);
    run(Consumer::builder(client.clone(), "orders").application("billing"), &client).await
}

async fn run(builder: ConsumerBuilder, client: &Client) -> anyhow::Result<()> {
    let orders = builder.checkpoint_on(CheckpointOn::Ack).build()?.records();
    orders.buffer_by_key(64, |record| handle(client, record)).try_for_each(future::ok).await
}

async fn handle(client: &Client, record: Record) -> anyhow::Result<()> {
    // Five retries, after 1, 2, 4, 8 and 16 s, each with a random part.
    let policy = ExponentialBuilder::default().with_max_times(5).with_jitter();
    if let Err(error) = (|| bill(client, &record)).retry(policy).await {
        eprintln!("{} {}: {error}", record.shard_id(), record.checkpoint());
        put(client, "dead-orders", &record).await?;
    }
    record.ack();
    Ok(())
}

async fn bill(client: &Client, record: &Record) -> anyhow::Result<()> {
    let _order: u32 = from_utf8(record.data())?.parse()?;
    put(client, "invoices", record).await
}

async fn put(client: &Client, stream: &str, record: &Record) -> anyhow::Result<()> {
    let (key, data) = (record.partition_key().unwrap_or("none"), Blob::new(record.data()));
    client.put_record().stream_name(stream).partition_key(key).data(data).send().await?;
    Ok(())
}
