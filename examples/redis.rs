//! Reads a stream until Ctrl-C, with the checkpoints in Redis.
//!
//!     cargo run --example redis -- STREAM REDIS_URL [ENDPOINT_URL]
//!
//! For example `cargo run --example redis -- orders redis://127.0.0.1/`. `aws-config` finds the
//! credentials and the region in the environment.

use std::error::Error;
use std::process::ExitCode;

use futures::StreamExt;
use kinestream::{Consumer, RedisStore, StartingPosition};

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(stream), Some(redis)) = (arguments.next(), arguments.next()) else {
        return Err("usage: redis STREAM REDIS_URL [ENDPOINT_URL]".into());
    };
    let mut config = aws_config::defaults(aws_config::BehaviorVersion::latest());
    if let Some(endpoint) = arguments.next() {
        config = config.endpoint_url(endpoint);
    }
    let client = aws_sdk_kinesis::Client::new(&config.load().await);

    let consumer = Consumer::builder(client, stream)
        .application("redis-example")
        .starting_position(StartingPosition::TrimHorizon)
        .store(RedisStore::connect(&redis).await?)
        .build()?;

    // Closing ends the stream below at its next poll, after the current record is processed.
    tokio::spawn({
        let consumer = consumer.clone();
        async move {
            if tokio::signal::ctrl_c().await.is_ok() {
                eprintln!("closing");
                if let Err(error) = consumer.close().await {
                    eprintln!("{error}");
                }
            }
        }
    });

    let mut read = 0;
    let mut records = consumer.records();
    while let Some(record) = records.next().await {
        let record = record?;
        read += 1;
        println!(
            "{} {} {} bytes, {} ms behind",
            record.shard_id(),
            record.sequence_number(),
            record.data().len(),
            record.millis_behind_latest(),
        );
    }
    // Saves the records that were acknowledged after the close began.
    consumer.close().await?;
    eprintln!("{read} records read; the next run resumes after them");
    Ok(())
}
