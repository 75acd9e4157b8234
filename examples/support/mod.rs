//! A Kinesis in this process, for examples without an account or a server.

// Each example uses some of these functions.
#![allow(dead_code)]

use std::ops::Range;
use std::time::Duration;

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::config::{BehaviorVersion, Config, Credentials, Region};
use aws_sdk_kinesis::primitives::Blob;
use aws_sdk_kinesis::types::{PutRecordsRequestEntry, StreamStatus};
use ferrokinesis::store::StoreOptions;

/// Starts Kinesis on a free local port. Returns a client for it, and the port.
pub(crate) async fn start_kinesis() -> std::io::Result<(Client, u16)> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let app = ferrokinesis::create_app(options()).0;
    tokio::spawn(axum::serve(listener, app).into_future());

    Ok((client_of(port), port))
}

/// Returns the options of a Kinesis that creates and updates streams within 10 ms.
pub(crate) fn options() -> StoreOptions {
    StoreOptions {
        create_stream_ms: 10,
        update_stream_ms: 10,
        shard_limit: 1000,
        ..StoreOptions::default()
    }
}

/// Returns a client for a Kinesis on a local port.
pub(crate) fn client_of(port: u16) -> Client {
    let http = aws_smithy_http_client::Builder::new().build_http();
    Client::from_conf(config(format!("http://127.0.0.1:{port}")).http_client(http).build())
}

/// Returns the configuration of a client for a local Kinesis.
pub(crate) fn config(url: String) -> aws_sdk_kinesis::config::Builder {
    Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .endpoint_url(url)
        .region(Region::new("us-east-1"))
        .credentials_provider(Credentials::new("local", "local", None, None, "local"))
}

/// Creates a stream and waits until it is active.
pub(crate) async fn create_stream(
    client: &Client,
    name: &str,
    shards: i32,
) -> Result<(), aws_sdk_kinesis::Error> {
    client.create_stream().stream_name(name).shard_count(shards).send().await?;
    wait_until_active(client, name).await
}

/// Waits until the stream is active.
pub(crate) async fn wait_until_active(
    client: &Client,
    name: &str,
) -> Result<(), aws_sdk_kinesis::Error> {
    loop {
        let response = client.describe_stream_summary().stream_name(name).send().await?;
        let status = response.stream_description_summary.map(|summary| summary.stream_status);
        if status == Some(StreamStatus::Active) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Puts these numbers as text, one per record, with the partition keys of 97 customers.
pub(crate) async fn put_numbers(
    client: &Client,
    stream: &str,
    numbers: Range<usize>,
) -> Result<(), aws_sdk_kinesis::Error> {
    let entry = |number: usize| {
        PutRecordsRequestEntry::builder()
            .partition_key(format!("customer-{}", number % 97))
            .data(Blob::new(number.to_string()))
            .build()
    };
    let numbers: Vec<usize> = numbers.collect();
    for some in numbers.chunks(500) {
        let entries = some.iter().map(|number| entry(*number)).collect::<Result<Vec<_>, _>>()?;
        client.put_records().stream_name(stream).set_records(Some(entries)).send().await?;
    }
    Ok(())
}

/// Splits the first shard of the listing into two halves and waits until the stream is active.
pub(crate) async fn split_first_shard(
    client: &Client,
    stream: &str,
) -> Result<(), aws_sdk_kinesis::Error> {
    let listed = client.list_shards().stream_name(stream).send().await?;
    let Some(shard) = listed.shards().first() else {
        return Ok(());
    };
    let end: u128 = shard
        .hash_key_range()
        .and_then(|range| range.ending_hash_key().parse().ok())
        .unwrap_or(u128::MAX);
    client
        .split_shard()
        .stream_name(stream)
        .shard_to_split(shard.shard_id())
        .new_starting_hash_key((end / 2).to_string())
        .send()
        .await?;
    wait_until_active(client, stream).await
}
