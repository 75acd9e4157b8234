use aws_config::{BehaviorVersion, Region};
use aws_sdk_kinesis::Client;
use futures::TryStreamExt;
use kinestream::{Consumer, StartingPosition};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    // LocalStack, kinesalite, kinesis-mock and others.
    let url = std::env::var("KINESIS_URL").unwrap_or("http://localhost:4566".to_owned());
    println!("{}", run(client(&url).await, "orders").await?);
    Ok(())
}

/// Returns a client of a local server, which accepts all credentials.
async fn client(url: &str) -> Client {
    let config = aws_config::defaults(BehaviorVersion::latest())
        .endpoint_url(url)
        .region(Region::new("us-east-1"))
        .test_credentials()
        .load()
        .await;
    Client::new(&config)
}

/// Returns the oldest order.
async fn run(client: Client, stream: &str) -> anyhow::Result<String> {
    let consumer = Consumer::builder(client, stream)
        .starting_position(StartingPosition::TrimHorizon)
        .build()?;
    let first = consumer.records().try_next().await?;
    Ok(first.map(|record| String::from_utf8_lossy(record.data()).into_owned()).unwrap_or_default())
}
