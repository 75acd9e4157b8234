use std::time::Duration;

use aws_config::BehaviorVersion;
use aws_sdk_kinesis::Client;
use futures::TryStreamExt;
use kinestream::{
    Checkpoint, CheckpointOn, Consumer, ConsumerBuilder, OnTrimmed, Record, RecordStreamExt,
    StartingPosition,
};
use rusqlite::{Connection, OptionalExtension, Transaction, params};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let config = aws_config::load_defaults(BehaviorVersion::latest()).await;
    run(Consumer::builder(Client::new(&config), "orders"), Connection::open("orders.db")?).await
}

async fn run(mut builder: ConsumerBuilder, mut db: Connection) -> anyhow::Result<()> {
    db.execute_batch(include_str!("exactly_once.sql"))?;
    let positions = "SELECT shard, checkpoint FROM positions";
    for row in db.prepare(positions)?.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))? {
        let (shard, checkpoint): (String, String) = row?;
        builder = builder.starting_position_for(shard.parse()?, checkpoint.parse::<Checkpoint>()?);
    }
    builder = builder.starting_position(StartingPosition::TrimHorizon);
    builder = builder.on_trimmed(OnTrimmed::TrimHorizon).checkpoint_on(CheckpointOn::Ack);
    let mut batches = builder.build()?.records().batches(200, Duration::from_secs(1));
    while let Some(batch) = batches.try_next().await? {
        let transaction = db.transaction()?;
        for record in &batch {
            if advance(&transaction, record)? {
                transaction.execute("INSERT INTO orders VALUES (?1)", [record.data()])?;
            }
        }
        transaction.commit()?;
        batch.ack();
    }
    Ok(())
}

fn advance(db: &Transaction<'_>, record: &Record) -> anyhow::Result<bool> {
    let (shard, next, epoch) = (record.shard_id().as_str(), record.checkpoint(), record.epoch());
    let last = "SELECT checkpoint FROM positions WHERE shard = ?1";
    let last: Option<String> = db.query_row(last, [shard], |row| row.get(0)).optional()?;
    if last.map(|last| last.parse()).transpose()?.is_some_and(|last| !next.supersedes(&last)) {
        return Ok(false); // delivered again after a crash
    }
    let advance = "REPLACE INTO positions VALUES (?1, ?2, ?3)";
    db.execute(advance, params![shard, next.to_string(), epoch.cast_signed()])?;
    Ok(true)
}
