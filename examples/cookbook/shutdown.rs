use std::time::Duration;

use anyhow::Context;
use aws_config::BehaviorVersion;
use aws_sdk_kinesis::Client;
use futures::TryStreamExt;
use kinestream::{Consumer, ConsumerBuilder, Record};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let config = aws_config::load_defaults(BehaviorVersion::latest()).await;
    let orders = Consumer::builder(Client::new(&config), "orders").application("billing");
    let stop = CancellationToken::new();
    tokio::spawn(cancel_on_ctrl_c(stop.clone()));
    run(orders, stop).await
}

async fn run(builder: ConsumerBuilder, stop: CancellationToken) -> anyhow::Result<()> {
    let consumer = builder.build()?;
    let mut orders = consumer.records();
    loop {
        let record = tokio::select! {
            record = orders.try_next() => record?, // cancel safe: loses no record
            () = stop.cancelled() => break,
        };
        let Some(record) = record else { break };
        timeout(Duration::from_secs(30), bill(&record)).await.context("billing timed out")?;
        record.ack();
    }
    consumer.close().await?;
    Ok(())
}

async fn cancel_on_ctrl_c(stop: CancellationToken) {
    let _result = tokio::signal::ctrl_c().await;
    stop.cancel();
}

async fn bill(record: &Record) {
    println!("{:?}", record.data());
}
