use std::time::Duration;

use aws_config::BehaviorVersion;
use aws_sdk_kinesis::Client;
use futures::TryStreamExt;
use kinestream::{CheckpointOn, Consumer, ConsumerBuilder, RecordStreamExt};
use rusqlite::{Connection, params};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let config = aws_config::load_defaults(BehaviorVersion::latest()).await;
    let orders = Consumer::builder(Client::new(&config), "orders").application("billing");
    run(orders, Connection::open("orders.db")?).await
}

async fn run(builder: ConsumerBuilder, mut db: Connection) -> anyhow::Result<()> {
    db.execute_batch(
        "CREATE TABLE IF NOT EXISTS orders (
             shard TEXT, checkpoint TEXT, data BLOB, PRIMARY KEY (shard, checkpoint)
         )",
    )?;
    let consumer = builder.checkpoint_on(CheckpointOn::Ack).build()?;
    // At most 500 records, and at most a second after the first of them.
    let mut batches = consumer.records().batches(500, Duration::from_secs(1));
    while let Some(batch) = batches.try_next().await? {
        let transaction = db.transaction()?;
        for record in &batch {
            // Ignores a record that is delivered again after a crash.
            transaction.execute(
                "INSERT OR IGNORE INTO orders VALUES (?1, ?2, ?3)",
                params![record.shard_id().as_str(), record.checkpoint().to_string(), record.data()],
            )?;
        }
        transaction.commit()?;
        batch.ack();
    }
    Ok(())
}
