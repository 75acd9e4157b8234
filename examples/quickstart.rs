//! Reads a stream with checkpoints. Kinesis runs in this process: no account, no server.
//!
//!     cargo run --example quickstart
//!
//! Writes records to a stream of three shards, splits a shard meanwhile, reads half of the records,
//! stops, resumes from the checkpoints, and counts. Exits with 1 if a record was lost.

mod support;

use std::collections::BTreeMap;
use std::error::Error;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use aws_sdk_kinesis::Client;
use futures::StreamExt;
use kinestream::{Consumer, MemoryStore, StartingPosition};

const STREAM: &str = "orders";
const ORDERS: usize = 3000;
const PATIENCE: Duration = Duration::from_secs(60);

/// The number of times that each order was read.
type Seen = BTreeMap<usize, usize>;

#[tokio::main]
async fn main() -> Result<ExitCode, Box<dyn Error>> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();

    println!("Starting Kinesis in this process, with stream {STREAM:?} of 3 shards.");
    let (client, _port) = support::start_kinesis().await?;
    support::create_stream(&client, STREAM, 3).await?;

    let writing = tokio::spawn(write(client.clone()));
    let store = MemoryStore::new();
    let mut seen = Seen::new();

    println!("\nReading the first half:");
    let began = Instant::now();
    read(&client, &store, &mut seen, ORDERS / 2).await?;
    println!("  stopped after {:.1?}; the positions are saved in the store", began.elapsed());

    println!("\nResuming from the checkpoints:");
    read(&client, &store, &mut seen, ORDERS).await?;
    writing.await??;

    let read: usize = seen.values().sum();
    let lost = ORDERS - seen.len();
    let repeated = read - seen.len();
    println!("\nwritten {ORDERS}, read {read}, repeated {repeated}, lost {lost}");
    Ok(if lost == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Reads until `enough` different orders have been seen.
async fn read(
    client: &Client,
    store: &MemoryStore,
    seen: &mut Seen,
    enough: usize,
) -> Result<(), Box<dyn Error>> {
    let consumer = Consumer::builder(client.clone(), STREAM)
        .application("billing")
        .starting_position(StartingPosition::TrimHorizon)
        .store(store.clone())
        .build()?;

    let mut shards = BTreeMap::<String, usize>::new();
    let mut records = consumer.records();
    let give_up = tokio::time::sleep(PATIENCE);
    tokio::pin!(give_up);
    while seen.len() < enough {
        let record = tokio::select! {
            record = records.next() => record.ok_or("the stream ended early")??,
            () = &mut give_up => break,
        };
        let order: usize = std::str::from_utf8(record.data())?.parse()?;
        *seen.entry(order).or_default() += 1;
        let count = shards.entry(record.shard_id().to_string()).or_default();
        *count += 1;
        if *count == 1 {
            let key = record.partition_key().unwrap_or("none");
            println!("  {}: first record is order {order} of {key}", record.shard_id());
        }
        // The loop may end after this record, so acknowledge it now.
        record.ack();
    }
    consumer.close().await?;
    for (shard, count) in shards {
        println!("  {shard}: {count} records");
    }
    Ok(())
}

/// Writes the orders, and splits a shard after a third of them.
async fn write(client: Client) -> Result<(), aws_sdk_kinesis::Error> {
    for first in (0..ORDERS).step_by(100) {
        if first == ORDERS / 3 {
            println!("  (splitting a shard)");
            support::split_first_shard(&client, STREAM).await?;
        }
        support::put_numbers(&client, STREAM, first..first + 100).await?;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}
