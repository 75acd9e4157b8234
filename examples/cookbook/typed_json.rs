use std::io::Write;

use aws_config::BehaviorVersion;
use aws_sdk_kinesis::Client;
use futures::StreamExt;
use kinestream::{CheckpointOn, Consumer, ConsumerBuilder, DecodeError, Record, RecordStreamExt};

#[derive(Debug, serde::Deserialize)]
struct Order {
    number: u32,
    customer: String,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let config = aws_config::load_defaults(BehaviorVersion::latest()).await;
    let orders = Consumer::builder(Client::new(&config), "orders").application("billing");
    let file = std::fs::OpenOptions::new().create(true).append(true).open("dead_letters.txt")?;
    run(orders, file).await
}

async fn run(builder: ConsumerBuilder, mut dead_letters: impl Write) -> anyhow::Result<()> {
    let consumer = builder.checkpoint_on(CheckpointOn::Ack).build()?;
    let parse = |record: &Record| serde_json::from_slice::<Order>(record.data());
    let mut orders = consumer.records().decode(parse);
    while let Some(order) = orders.next().await {
        match order {
            Ok(order) => {
                println!("order {} of {}", order.number, order.customer);
                order.ack();
            }
            Err(DecodeError::Undecodable { record, cause }) => {
                writeln!(dead_letters, "{cause}: {:?}", String::from_utf8_lossy(record.data()))?;
                record.ack();
            }
            Err(DecodeError::Stream(error)) => return Err(error.into()),
        }
    }
    Ok(())
}
