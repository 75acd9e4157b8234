//! Reads the records of a range of time as a job: stops, resumes, and ends. Kinesis runs in this
//! process.
//!
//!     cargo run --example backfill
//!
//! Exits with 1 if the job does not deliver each record of the range, and none after it.

mod support;

use std::collections::BTreeSet;
use std::error::Error;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use aws_sdk_kinesis::Client;
use futures::TryStreamExt;
use kinestream::{Consumer, EndingPosition, MemoryStore, StartingPosition};

const STREAM: &str = "orders";
const EARLY: usize = 1000;
const LATE: usize = 200;

#[tokio::main]
async fn main() -> Result<ExitCode, Box<dyn Error>> {
    let (client, _port) = support::start_kinesis().await?;
    support::create_stream(&client, STREAM, 2).await?;
    let from = SystemTime::now() - Duration::from_secs(60);
    support::put_numbers(&client, STREAM, 0..EARLY / 2).await?;
    support::split_first_shard(&client, STREAM).await?;
    // This server stamps the first records of new shards up to a second ahead.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    support::put_numbers(&client, STREAM, EARLY / 2..EARLY).await?;
    let until = SystemTime::now();
    // Some servers keep arrival times in whole seconds.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    support::put_numbers(&client, STREAM, EARLY..EARLY + LATE).await?;

    let store = MemoryStore::new();
    let mut seen = BTreeSet::new();
    read(&client, &store, from, until, Some(EARLY / 3), &mut seen).await?;
    println!("stopped after {} orders; the positions are saved", seen.len());
    read(&client, &store, from, until, None, &mut seen).await?;
    println!("the job has ended after {} orders", seen.len());

    let is_complete = seen.iter().copied().eq(0..EARLY);
    println!("{EARLY} orders arrived in the range, {LATE} after it; complete: {is_complete}");
    Ok(if is_complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Reads the orders that arrived from `from` until `until`, at most `most` of them, and continues
/// where the last call has stopped.
async fn read(
    client: &Client,
    store: &MemoryStore,
    from: SystemTime,
    until: SystemTime,
    most: Option<usize>,
    seen: &mut BTreeSet<usize>,
) -> Result<(), Box<dyn Error>> {
    let consumer = Consumer::builder(client.clone(), STREAM)
        .application("backfill")
        .starting_position(StartingPosition::AtTimestamp(from))
        .ending_position(EndingPosition::AtTimestamp(until))
        .store(store.clone())
        .build()?;
    let mut records = consumer.records();
    let mut count = 0;
    while most.is_none_or(|most| count < most)
        && let Some(record) = records.try_next().await?
    {
        seen.insert(std::str::from_utf8(record.data())?.parse()?);
        count += 1;
        // The loop may end after this record, so acknowledge it now.
        record.ack();
    }
    consumer.close().await?;
    Ok(())
}
