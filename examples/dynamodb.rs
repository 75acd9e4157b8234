//! Reads a stream until Ctrl-C, with the checkpoints in DynamoDB.
//!
//!     cargo run --features dynamodb --example dynamodb -- STREAM TABLE [ENDPOINT_URL]
//!
//! For example `cargo run --features dynamodb --example dynamodb -- orders kinestream`, which creates
//! the table `kinestream` if it does not exist. `aws-config` finds the credentials and the region in
//! the environment. Start the program several times to share the shards.

use std::error::Error;
use std::process::ExitCode;

use futures::StreamExt;
use kinestream::{Consumer, DynamoDbStore, StartingPosition};

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
    let (Some(stream), Some(table)) = (arguments.next(), arguments.next()) else {
        return Err("usage: dynamodb STREAM TABLE [ENDPOINT_URL]".into());
    };
    let mut config = aws_config::defaults(aws_config::BehaviorVersion::latest());
    if let Some(endpoint) = arguments.next() {
        config = config.endpoint_url(endpoint);
    }
    let config = config.load().await;
    let store = DynamoDbStore::new(aws_sdk_dynamodb::Client::new(&config), table);
    store.create_table().await?;

    let consumer = Consumer::builder(aws_sdk_kinesis::Client::new(&config), stream)
        .application("dynamodb-example")
        .starting_position(StartingPosition::TrimHorizon)
        .store(store)
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
        println!("{} {} {:?}", record.shard_id(), record.sequence_number(), record.data());
    }
    // Saves the records that were acknowledged after the close began.
    consumer.close().await?;
    eprintln!("{read} records read; the next run resumes after them");
    Ok(())
}
