//! Reads two streams in one program: two consumers share one client, one store and one memory
//! budget, and their records are merged.
//!
//!     cargo run --example two_streams
//!
//! Kinesis runs in this process. Exits with 1 if a record was lost.

mod support;

use std::collections::BTreeMap;
use std::error::Error;
use std::process::ExitCode;

use futures::{StreamExt, stream};
use kinestream::{Consumer, MemoryBudget, MemoryStore, StartingPosition};

const STREAMS: [&str; 2] = ["orders", "payments"];
const RECORDS: usize = 500;

#[tokio::main]
async fn main() -> Result<ExitCode, Box<dyn Error>> {
    println!("Starting Kinesis in this process, with streams {STREAMS:?}.");
    let (client, _port) = support::start_kinesis().await?;
    for stream in STREAMS {
        support::create_stream(&client, stream, 2).await?;
        support::put_numbers(&client, stream, 0..RECORDS).await?;
    }

    let (store, budget) = (MemoryStore::new(), MemoryBudget::new(64 * 1024 * 1024));
    let consumer = |stream: &str| {
        Consumer::builder(client.clone(), stream)
            .application("billing")
            .starting_position(StartingPosition::TrimHorizon)
            .store(store.clone())
            .memory_budget(&budget)
            .build()
    };
    let [orders, payments] = STREAMS.map(consumer);
    let (orders, payments) = (orders?, payments?);

    // Merge the two streams. `Record::stream` names the stream of a record.
    let mut records = stream::select(orders.records(), payments.records());
    let mut read = BTreeMap::<String, usize>::new();
    while read.values().sum::<usize>() < STREAMS.len() * RECORDS {
        let Some(record) = records.next().await else { break };
        *read.entry(record?.stream().to_owned()).or_default() += 1;
    }
    orders.close().await?;
    payments.close().await?;
    for stream in STREAMS {
        println!("{stream}: read {} of {RECORDS}", read.get(stream).copied().unwrap_or_default());
    }
    let is_complete = STREAMS.iter().all(|stream| read.get(*stream) == Some(&RECORDS));
    Ok(if is_complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
