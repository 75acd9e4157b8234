//! Into a database, exactly once: batches by size and time, each in a transaction with the position.
//!
//!     cargo run --example pipeline
//!
//! What is delivered at least once becomes exactly once where the position is stored with what was made
//! of the records, and reading begins where the database says. A Kinesis and an SQLite file stand in for
//! your own. The program reads half of the orders, forgets everything but the database, as a crash
//! would, and goes on. Exits with 1 if an order is missing or there twice.

#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use aws_sdk_kinesis::Client;
use kinestream::{
    CheckpointOn, Consumer, Record, SequenceNumber, ShardId, ShardPosition, StartingPosition,
};
use rusqlite::{Connection, Transaction, params};
use tokio_stream::StreamExt;

const STREAM: &str = "orders";
const ORDERS: u32 = 2000;
const BATCH: usize = 200;
const LONGEST_WAIT: Duration = Duration::from_millis(500);

/// How far a shard is stored: a record, and the part of it where it is a packed one.
type Place = (SequenceNumber, u64);

#[tokio::main]
async fn main() -> Result<ExitCode, Box<dyn Error>> {
    println!("Starting a Kinesis in this process, with stream {STREAM:?} of 3 shards.");
    let (client, _port) = support::start_kinesis().await?;
    support::create_stream(&client, STREAM, 3).await?;
    let file = std::env::temp_dir().join(format!("kinestream-pipeline-{}.db", std::process::id()));

    let writing = tokio::spawn({
        let client = client.clone();
        async move {
            support::put_numbers(&client, STREAM, 0..ORDERS as usize / 2).await?;
            support::split_first_shard(&client, STREAM).await?;
            support::put_numbers(&client, STREAM, ORDERS as usize / 2..ORDERS as usize).await
        }
    });
    let mut sink = Sink::open(&file)?;
    println!("Reading half of them, and then forgetting everything but the database:");
    fill(&client, &mut sink, ORDERS / 2).await?;
    println!("Going on from where the database stands:");
    let mut sink = Sink::open(&file)?;
    fill(&client, &mut sink, ORDERS).await?;
    writing.await??;

    let (rows, different) = sink.count()?;
    println!("\nwritten {ORDERS}, stored {rows}, different {different}");
    std::fs::remove_file(&file)?;
    Ok(if (rows, different) == (ORDERS, ORDERS) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Reads until there are so many orders in the database.
async fn fill(client: &Client, sink: &mut Sink, orders: u32) -> Result<(), Box<dyn Error>> {
    // The database has the positions: the store in memory only spares repeats while this runs.
    let mut builder = Consumer::builder(client.clone(), STREAM)
        .starting_position(StartingPosition::TrimHorizon)
        .checkpoint_on(CheckpointOn::Ack);
    for (shard, (number, _)) in sink.positions()? {
        // From that record on, of which a part may be missing; what is there is left out below.
        builder = builder.starting_position_for(shard, ShardPosition::AtSequenceNumber(number));
    }
    let consumer = builder.build()?;
    let records = consumer.records().chunks_timeout(BATCH, LONGEST_WAIT);
    let mut batches = std::pin::pin!(records);
    while sink.count()?.0 < orders {
        let Some(batch) = batches.next().await else { break };
        let batch = batch.into_iter().collect::<kinestream::Result<Vec<Record>>>()?;
        let stored = tokio::task::block_in_place(|| sink.store(&batch))?;
        println!("  a batch of {}, of which {stored} are new", batch.len());
        batch.iter().for_each(Record::ack);
    }
    // No close, and no checkpoint: as if the process had died here.
    Ok(())
}

/// The database.
struct Sink(Connection);

impl Sink {
    fn open(file: &Path) -> rusqlite::Result<Self> {
        let connection = Connection::open(file)?;
        connection.execute_batch(
            "CREATE TABLE IF NOT EXISTS orders (number TEXT NOT NULL, shard TEXT NOT NULL);
             CREATE TABLE IF NOT EXISTS positions (
                 shard TEXT PRIMARY KEY, number TEXT NOT NULL, part INTEGER NOT NULL,
                 epoch INTEGER NOT NULL
             );",
        )?;
        Ok(Self(connection))
    }

    /// Stores what is not there yet, and how far each shard is stored by that: all of it or nothing.
    fn store(&mut self, batch: &[Record]) -> Result<usize, Box<dyn Error>> {
        let mut places = self.positions()?;
        let transaction = self.0.transaction()?;
        let mut stored = 0;
        for record in batch {
            let place = (record.sequence_number().clone(), record.sub_sequence_number());
            if places.get(record.shard_id()).is_some_and(|last| place <= *last) {
                continue;
            }
            let number = std::str::from_utf8(record.data())?;
            transaction.execute(
                "INSERT INTO orders (number, shard) VALUES (?1, ?2)",
                params![number, record.shard_id().as_str()],
            )?;
            move_on(&transaction, record)?;
            places.insert(record.shard_id().clone(), place);
            stored += 1;
        }
        transaction.commit()?;
        Ok(stored)
    }

    /// How far each shard is stored.
    fn positions(&self) -> Result<BTreeMap<ShardId, Place>, Box<dyn Error>> {
        let mut select = self.0.prepare("SELECT shard, number, part FROM positions")?;
        let rows = select.query_map([], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get::<_, u32>(2)?))
        })?;
        rows.map(|row| {
            let (shard, number, part) = row?;
            Ok((shard.parse()?, (number.parse()?, part.into())))
        })
        .collect()
    }

    /// How many orders there are, and how many different ones.
    fn count(&self) -> rusqlite::Result<(u32, u32)> {
        let query = "SELECT count(*), count(DISTINCT number) FROM orders";
        self.0.query_row(query, [], |row| Ok((row.get(0)?, row.get(1)?)))
    }
}

/// The record's shard is stored up to it, unless a worker with a later lease has stored more: then this
/// one comes too late, and what it has done in the transaction is undone.
fn move_on(transaction: &Transaction<'_>, record: &Record) -> Result<(), Box<dyn Error>> {
    let epoch = i64::try_from(record.epoch())?;
    let part = i64::try_from(record.sub_sequence_number())?;
    let moved = transaction.execute(
        "INSERT INTO positions (shard, number, part, epoch) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (shard) DO UPDATE SET number = ?2, part = ?3, epoch = ?4 WHERE epoch <= ?4",
        params![record.shard_id().as_str(), record.sequence_number().as_str(), part, epoch],
    )?;
    if moved == 0 {
        return Err(format!("another worker has {} by now", record.shard_id()).into());
    }
    Ok(())
}
