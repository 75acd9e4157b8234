use aws_config::BehaviorVersion;
use aws_sdk_kinesis::Client;
use futures::TryStreamExt;
use kinestream::{CheckpointOn, Consumer, ConsumerBuilder, Record};
use rusqlite::{Connection, params};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let config = aws_config::load_defaults(BehaviorVersion::latest()).await;
    let orders = Consumer::builder(Client::new(&config), "orders").application("billing");
    run(orders, &Connection::open("dead_letters.db")?).await
}

async fn run(builder: ConsumerBuilder, db: &Connection) -> anyhow::Result<()> {
    db.execute_batch(
        "CREATE TABLE IF NOT EXISTS dead_letters (
             checkpoint TEXT, shard TEXT, key TEXT, data BLOB, error TEXT,
             PRIMARY KEY (shard, checkpoint)
         )",
    )?;
    let mut orders = builder.checkpoint_on(CheckpointOn::Ack).build()?.records();
    while let Some(record) = orders.try_next().await? {
        if let Err(error) = bill(&record) {
            let (checkpoint, shard) = (record.checkpoint().to_string(), record.shard_id().as_str());
            let (key, data, error) = (record.partition_key(), record.data(), error.to_string());
            db.execute(
                "INSERT OR REPLACE INTO dead_letters VALUES (?1, ?2, ?3, ?4, ?5)",
                params![checkpoint, shard, key, data, error],
            )?;
        }
        record.ack();
    }
    Ok(())
}

fn bill(record: &Record) -> anyhow::Result<()> {
    let order: u32 = std::str::from_utf8(record.data())?.parse()?;
    println!("order {order}");
    Ok(())
}
