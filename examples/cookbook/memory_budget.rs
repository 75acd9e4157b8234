use aws_config::BehaviorVersion;
use aws_sdk_kinesis::Client;
use futures::TryStreamExt;
use futures::stream::select_all;
use kinestream::{Consumer, ConsumerBuilder, MemoryBudget, Record};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let config = aws_config::load_defaults(BehaviorVersion::latest()).await;
    let client = Client::new(&config);
    // 64 MiB for the fetched records of all streams together.
    let budget = MemoryBudget::new(64 * 1024 * 1024);
    let streams = ["orders", "refunds", "returns"];
    let builders = streams.map(|stream| Consumer::builder(client.clone(), stream));
    run(builders.map(|builder| builder.application("billing").memory_budget(&budget))).await
}

/// Reads the streams in turn, one record at a time.
async fn run(builders: impl IntoIterator<Item = ConsumerBuilder>) -> anyhow::Result<()> {
    let consumers: Result<Vec<_>, _> = builders.into_iter().map(ConsumerBuilder::build).collect();
    let consumers = consumers?;
    let mut records = select_all(consumers.iter().map(Consumer::records));
    while let Some(record) = records.try_next().await? {
        bill(&record);
    }
    Ok(())
}

fn bill(record: &Record) {
    println!("{} {:?}", record.stream(), record.data());
}
