use std::str::from_utf8;

use kinestream::{Record, testing};

/// The handler under test.
async fn handle(record: Record) -> anyhow::Result<()> {
    let order: u32 = from_utf8(record.data())?.parse()?;
    println!("order {order} of {:?}", record.partition_key());
    record.ack();
    Ok(())
}

#[tokio::test]
async fn order_is_acknowledged() -> anyhow::Result<()> {
    let order = testing::record("17").partition_key("customer-7");
    handle(order.build()).await?;
    assert!(order.is_acked());
    Ok(())
}

#[tokio::test]
async fn broken_order_is_not_acknowledged() {
    let order = testing::record("seventeen");
    let error = handle(order.build()).await.unwrap_err();
    assert_eq!(error.to_string(), "invalid digit found in string");
    assert!(!order.is_acked());
}
