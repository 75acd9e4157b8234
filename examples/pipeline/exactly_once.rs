//! Stores records exactly once: the results and the checkpoints of a batch in one transaction.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;

use aws_sdk_kinesis::Client;
use kinestream::{
    Checkpoint, CheckpointOn, Consumer, OnTrimmed, Record, ShardId, StartingPosition,
};
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};

/// A database of orders and of the checkpoint of each shard.
pub(crate) struct Sink(pub(crate) Connection);

impl Sink {
    pub(crate) fn open(file: &Path) -> rusqlite::Result<Self> {
        let connection = Connection::open(file)?;
        connection.execute_batch(
            "CREATE TABLE IF NOT EXISTS orders (number TEXT NOT NULL);
             CREATE TABLE IF NOT EXISTS checkpoints (
                 shard TEXT PRIMARY KEY, checkpoint TEXT NOT NULL, epoch INTEGER NOT NULL
             );",
        )?;
        Ok(Self(connection))
    }

    /// Returns the stored checkpoint of each shard.
    pub(crate) fn checkpoints(&self) -> Result<BTreeMap<ShardId, Checkpoint>, Box<dyn Error>> {
        let mut select = self.0.prepare("SELECT shard, checkpoint FROM checkpoints")?;
        let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        rows.map(|row| {
            let (shard, checkpoint): (String, String) = row?;
            Ok((shard.parse()?, checkpoint.parse()?))
        })
        .collect()
    }

    /// Stores the new orders of a batch and the checkpoints in one transaction. Returns the number
    /// of new orders.
    pub(crate) fn store(&mut self, batch: &[Record]) -> Result<usize, Box<dyn Error>> {
        let transaction = self.0.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut stored = 0;
        for record in batch {
            if advance(&transaction, record)? {
                let number = std::str::from_utf8(record.data())?;
                transaction.execute("INSERT INTO orders (number) VALUES (?1)", [number])?;
                stored += 1;
            }
        }
        transaction.commit()?;
        Ok(stored)
    }
}

/// Moves the checkpoint of the record's shard past the record. Returns `false` if the record is
/// already stored. Fails if another worker has stored records of the shard in a later epoch.
fn advance(transaction: &Transaction<'_>, record: &Record) -> Result<bool, Box<dyn Error>> {
    let (shard, checkpoint) = (record.shard_id().as_str(), record.checkpoint());
    let epoch = i64::try_from(record.epoch())?;
    let select = "SELECT checkpoint, epoch FROM checkpoints WHERE shard = ?1";
    let stored = transaction
        .query_row(select, [shard], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?)))
        .optional()?;
    if let Some((last, last_epoch)) = stored {
        if epoch < last_epoch {
            return Err(
                format!("{shard}: another worker has the lease, in epoch {last_epoch}").into()
            );
        }
        if !checkpoint.supersedes(&last.parse()?) {
            return Ok(false);
        }
    }
    transaction.execute(
        "INSERT INTO checkpoints (shard, checkpoint, epoch) VALUES (?1, ?2, ?3)
         ON CONFLICT (shard) DO UPDATE SET checkpoint = ?2, epoch = ?3",
        params![shard, checkpoint.to_string(), epoch],
    )?;
    Ok(true)
}

/// Builds a consumer that starts from the stored checkpoints.
pub(crate) fn consumer(
    client: Client,
    stream: &str,
    sink: &Sink,
) -> Result<Consumer, Box<dyn Error>> {
    let mut builder = Consumer::builder(client, stream)
        .starting_position(StartingPosition::TrimHorizon)
        .on_trimmed(OnTrimmed::TrimHorizon)
        .checkpoint_on(CheckpointOn::Ack);
    for (shard, checkpoint) in sink.checkpoints()? {
        builder = builder.starting_position_for(shard, checkpoint);
    }
    Ok(builder.build()?)
}
