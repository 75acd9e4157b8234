//! Processes 64 records at a time, out of order, with acknowledgements. Kinesis runs in this
//! process.
//!
//!     cargo run --example concurrent

mod support;

use std::collections::BTreeSet;
use std::error::Error;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use aws_sdk_kinesis::Client;
use futures::TryStreamExt;
use kinestream::{CheckpointOn, Consumer, MemoryStore, Record, StartingPosition};

const STREAM: &str = "orders";
const ORDERS: usize = 1000;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (client, _port) = support::start_kinesis().await?;
    support::create_stream(&client, STREAM, 2).await?;
    support::put_numbers(&client, STREAM, 0..ORDERS).await?;

    let consumer = consumer(&client, MemoryStore::new())?;
    let seen = Mutex::new(BTreeSet::new());
    let began = Instant::now();
    consumer
        .records()
        .try_for_each_concurrent(64, |record| {
            let (seen, consumer) = (&seen, &consumer);
            async move {
                let order = work(&record).await;
                record.ack();
                let read = {
                    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                    seen.insert(order);
                    seen.len()
                };
                if read == ORDERS {
                    // Closing the consumer ends the stream.
                    consumer.close().await?;
                }
                Ok(())
            }
        })
        .await?;
    println!("{ORDERS} orders of 20 ms each processed in {:.1?}", began.elapsed());
    Ok(())
}

fn consumer(client: &Client, store: MemoryStore) -> kinestream::Result<Consumer> {
    Consumer::builder(client.clone(), STREAM)
        .application("billing")
        .starting_position(StartingPosition::TrimHorizon)
        .checkpoint_on(CheckpointOn::Ack)
        .store(store)
        .build()
}

/// Processes a record, which takes 20 ms.
async fn work(record: &Record) -> Vec<u8> {
    tokio::time::sleep(Duration::from_millis(20)).await;
    record.data().to_vec()
}
