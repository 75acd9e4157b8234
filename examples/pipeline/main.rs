//! Writes batches of records into a database exactly once.
//!
//!     cargo run --example pipeline
//!
//! `exactly_once.rs` stores the results of a batch and the checkpoints of its shards in one
//! transaction, and starts from the stored checkpoints. A Kinesis in this process and an SQLite
//! file stand in for your own. The program reads half of the orders, drops everything but the
//! database, as a crash would, and resumes. Exits with 1 if an order is missing or stored twice.

mod exactly_once;
#[path = "../support/mod.rs"]
mod support;

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use aws_sdk_kinesis::Client;
use exactly_once::Sink;
use futures::TryStreamExt;
use kinestream::RecordStreamExt;

const STREAM: &str = "orders";
const ORDERS: u32 = 2000;
const BATCH: usize = 200;
const LONGEST_WAIT: Duration = Duration::from_millis(500);

#[tokio::main]
async fn main() -> Result<ExitCode, Box<dyn Error>> {
    println!("Starting Kinesis in this process, with stream {STREAM:?} of 3 shards.");
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
    println!("Reading half of the orders, then dropping everything but the database:");
    fill(&client, &mut sink, ORDERS / 2).await?;
    println!("Resuming from the checkpoints in the database:");
    let mut sink = Sink::open(&file)?;
    fill(&client, &mut sink, ORDERS).await?;
    writing.await??;

    let (rows, different) = count(&sink)?;
    println!("\nwritten {ORDERS}, stored {rows}, distinct {different}");
    std::fs::remove_file(&file)?;
    Ok(if (rows, different) == (ORDERS, ORDERS) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Reads until the database has this many orders.
async fn fill(client: &Client, sink: &mut Sink, orders: u32) -> Result<(), Box<dyn Error>> {
    let consumer = exactly_once::consumer(client.clone(), STREAM, sink)?;
    let mut batches = consumer.records().batches(BATCH, LONGEST_WAIT);
    while count(sink)?.0 < orders {
        let Some(batch) = batches.try_next().await? else { break };
        let stored = tokio::task::block_in_place(|| sink.store(&batch))?;
        println!("  batch of {}: {stored} new orders", batch.len());
        batch.ack();
    }
    // No `close` and no saved checkpoint: the process could crash here.
    Ok(())
}

/// Returns the number of orders in the database, and of distinct ones.
fn count(sink: &Sink) -> rusqlite::Result<(u32, u32)> {
    let query = "SELECT count(*), count(DISTINCT number) FROM orders";
    sink.0.query_row(query, [], |row| Ok((row.get(0)?, row.get(1)?)))
}
