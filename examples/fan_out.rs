//! Compares enhanced fan-out with polling: the delay from the put of a record to its delivery.
//!
//!     cargo run --example fan_out
//!
//! Two applications read the same stream of a Kinesis in this process: one by enhanced fan-out, one
//! by polling once a second. Exits with 1 if either of them missed a record.

mod support;

use std::collections::BTreeMap;
use std::error::Error;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::primitives::Blob;
use futures::StreamExt;
use kinestream::{Consumer, ConsumerBuilder, StartingPosition};
use tokio::time::{sleep, timeout};

const STREAM: &str = "orders";
const ORDERS: usize = 50;
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::main]
async fn main() -> Result<ExitCode, Box<dyn Error>> {
    println!("Starting Kinesis in this process, with stream {STREAM:?} of 2 shards.");
    let (client, _port) = support::start_kinesis().await?;
    support::create_stream(&client, STREAM, 2).await?;

    let consumer = |application: &str| {
        Consumer::builder(client.clone(), STREAM)
            .application(application)
            .starting_position(StartingPosition::TrimHorizon)
    };
    // The first run registers the consumer "billing" with the stream. Later runs find it there.
    let pushed = tokio::spawn(read(consumer("billing").fan_out("billing")));
    let polled = tokio::spawn(read(consumer("shipping").interval(Duration::from_secs(1))));
    write(&client).await?;

    let mut complete = true;
    for (how, reading) in [("enhanced fan-out", pushed), ("polling once a second", polled)] {
        let mut delays = reading.await??;
        delays.sort_unstable();
        let [middle, most] = [delays.len() / 2, delays.len() - 1].map(|place| delays.get(place));
        println!(
            "{how}: {} of {ORDERS} records, median delay {:.0?}, maximum {:.0?}",
            delays.len(),
            middle.copied().unwrap_or_default(),
            most.copied().unwrap_or_default(),
        );
        complete &= delays.len() == ORDERS;
    }
    Ok(if complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Returns the delay of each order.
async fn read(builder: ConsumerBuilder) -> kinestream::Result<Vec<Duration>> {
    let consumer = builder.build()?;
    let mut records = consumer.records();
    let mut delays = BTreeMap::new();
    while delays.len() < ORDERS {
        let Ok(record) = timeout(PATIENCE, records.next()).await else { break };
        let Some(record) = record.transpose()? else { break };
        let text = String::from_utf8_lossy(record.data());
        if let Some((order, put)) = text.split_once(' ')
            && let Ok(put) = put.parse().map(Duration::from_nanos)
        {
            delays.insert(order.to_owned(), now().saturating_sub(put));
        }
    }
    drop(records);
    consumer.close().await?;
    Ok(delays.into_values().collect())
}

async fn write(client: &Client) -> Result<(), aws_sdk_kinesis::Error> {
    for order in 0..ORDERS {
        let put =
            client.put_record().stream_name(STREAM).partition_key(format!("customer-{order}"));
        put.data(Blob::new(format!("{order} {}", now().as_nanos()))).send().await?;
        sleep(Duration::from_millis(130)).await;
    }
    Ok(())
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
