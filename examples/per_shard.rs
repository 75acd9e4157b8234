//! Runs one task per shard, including the children of a split. Kinesis runs in this process.
//!
//!     cargo run --example per_shard

mod support;

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::{StreamExt, TryStreamExt};
use kinestream::{Consumer, ShardStream, StartingPosition};

const STREAM: &str = "orders";
const ORDERS: usize = 600;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (client, _port) = support::start_kinesis().await?;
    support::create_stream(&client, STREAM, 3).await?;
    support::put_numbers(&client, STREAM, 0..ORDERS / 2).await?;
    support::split_first_shard(&client, STREAM).await?;
    support::put_numbers(&client, STREAM, ORDERS / 2..ORDERS).await?;

    let consumer = Consumer::builder(client, STREAM)
        .application("billing")
        .starting_position(StartingPosition::TrimHorizon)
        .build()?;
    let read = Arc::new(AtomicUsize::new(0));
    consumer
        .shards()
        .try_for_each(|shard| {
            tokio::spawn(process(shard, Arc::clone(&read), consumer.clone()));
            std::future::ready(Ok(()))
        })
        .await?;
    println!("{} orders read", read.load(Ordering::Relaxed));
    Ok(())
}

async fn process(mut shard: ShardStream, read: Arc<AtomicUsize>, consumer: Consumer) {
    println!("{} started; parents: {:?}", shard.shard_id(), shard.parents());
    let mut count = 0;
    while let Some(record) = shard.next().await {
        match record {
            Ok(_record) => count += 1,
            Err(error) => eprintln!("{error}"),
        }
        if read.fetch_add(1, Ordering::Relaxed) + 1 == ORDERS
            && let Err(error) = consumer.close().await
        {
            eprintln!("{error}");
        }
    }
    println!("{} ended after {count} records", shard.shard_id());
}
