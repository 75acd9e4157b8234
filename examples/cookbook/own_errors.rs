use std::num::ParseIntError;
use std::str::{Utf8Error, from_utf8};

use aws_config::BehaviorVersion;
use aws_sdk_kinesis::Client;
use futures::TryStreamExt;
use kinestream::{CheckpointOn, Consumer, ConsumerBuilder, Record};

#[derive(Debug, thiserror::Error)]
enum OrderError {
    #[error("cannot read the orders: {0}")]
    Stream(#[from] kinestream::Error),
    #[error("an order is not text")]
    NotText(#[from] Utf8Error),
    #[error("an order is not a number")]
    NotANumber(#[from] ParseIntError),
}

#[tokio::main]
async fn main() -> Result<(), OrderError> {
    let config = aws_config::load_defaults(BehaviorVersion::latest()).await;
    run(Consumer::builder(Client::new(&config), "orders").application("billing")).await
}

async fn run(builder: ConsumerBuilder) -> Result<(), OrderError> {
    let consumer = builder.checkpoint_on(CheckpointOn::Ack).build()?;
    let orders = consumer.records().err_into::<OrderError>();
    orders.try_for_each_concurrent(64, bill).await
}

async fn bill(record: Record) -> Result<(), OrderError> {
    let order: u32 = from_utf8(record.data())?.parse()?;
    println!("order {order}");
    record.ack();
    Ok(())
}
