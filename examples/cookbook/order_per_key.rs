use std::collections::HashMap;
use std::str::from_utf8;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use aws_config::BehaviorVersion;
use aws_sdk_kinesis::Client;
use futures::{TryStreamExt, future};
use kinestream::{CheckpointOn, Consumer, ConsumerBuilder, Record, RecordStreamExt};
use tokio::time::sleep;

/// The last order of each customer.
type Customers = Mutex<HashMap<String, u32>>;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let config = aws_config::load_defaults(BehaviorVersion::latest()).await;
    let orders = Consumer::builder(Client::new(&config), "orders").application("billing");
    run(orders, &Customers::default()).await
}

async fn run(builder: ConsumerBuilder, customers: &Customers) -> anyhow::Result<()> {
    let orders = builder.checkpoint_on(CheckpointOn::Ack).build()?.records();
    // 64 customers at a time, and one order of a customer after another.
    orders.buffer_by_key(64, |record| handle(customers, record)).try_for_each(future::ok).await
}

async fn handle(customers: &Customers, record: Record) -> anyhow::Result<()> {
    let order: u32 = from_utf8(record.data())?.parse()?;
    sleep(Duration::from_millis(20)).await; // a call of another service
    let customer = record.partition_key().unwrap_or("none").to_owned();
    customers.lock().unwrap_or_else(PoisonError::into_inner).insert(customer, order);
    record.ack();
    Ok(())
}
