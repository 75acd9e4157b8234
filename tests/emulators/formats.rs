//! The records of a server, read by JSON and by CBOR.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::config::interceptors::{
    BeforeDeserializationInterceptorContextRef, BeforeTransmitInterceptorContextRef,
};
use aws_sdk_kinesis::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_kinesis::error::BoxError;
use aws_sdk_kinesis::primitives::Blob;
use aws_smithy_runtime_api::client::orchestrator::Metadata;
use aws_smithy_runtime_api::http::Headers;
use futures::{FutureExt, StreamExt, TryStreamExt};
use kinestream::{Consumer, EncryptionType, Event, Record, StartingPosition, WireFormat};
use tokio::time::{sleep, timeout};

use crate::ferrokinesis_server::create_stream;

const PATIENCE: Duration = Duration::from_secs(60);
const RECORDS: usize = 400;
const JSON: &str = "application/x-amz-json-1.1";
const CBOR: &str = "application/x-amz-cbor-1.1";

/// Notes the content types of each `GetRecords` request and of each response.
#[derive(Debug, Clone, Default)]
struct ContentTypes(Arc<Mutex<Vec<String>>>);

impl Intercept for ContentTypes {
    fn name(&self) -> &'static str {
        "ContentTypes"
    }

    fn read_before_transmit(
        &self,
        context: &BeforeTransmitInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        self.note(config, context.request().headers());
        Ok(())
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        self.note(config, context.response().headers());
        Ok(())
    }
}

impl ContentTypes {
    fn note(&self, config: &ConfigBag, headers: &Headers) {
        if config.load::<Metadata>().is_some_and(|called| called.name() == "GetRecords") {
            let content_type = headers.get("content-type").unwrap_or_default().to_owned();
            self.0.lock().unwrap().push(content_type);
        }
    }

    /// Returns true if all calls since the last call of this function were made in this format.
    fn are_all(&self, expected: &str) -> bool {
        let calls = std::mem::take(&mut *self.0.lock().unwrap());
        !calls.is_empty() && calls.iter().all(|content_type| content_type == expected)
    }
}

/// All fields of a record.
type Fields = (String, String, Vec<u8>, Option<String>, Option<SystemTime>, EncryptionType);

fn fields(record: &Record) -> Fields {
    (
        record.shard_id().to_string(),
        record.sequence_number().to_string(),
        record.data().to_vec(),
        record.partition_key().map(str::to_owned),
        record.approximate_arrival(),
        record.encryption_type(),
    )
}

async fn put(client: &Client, stream: &str, number: usize) {
    let length = [0, 1, 300, 5_000, 70_000][number % 5];
    let mut data = vec![b'A'; length];
    // All bytes, among them those that need no base64.
    (0_u8..=255).zip(data.iter_mut().skip(1)).for_each(|(value, byte)| *byte = value);
    let key = ["key", "kéy-1", "\u{1f980}", "\"\\/"][number / 5 % 4];
    let put = client.put_record().stream_name(stream).partition_key(format!("{key}{number}"));
    put.data(Blob::new(data)).send().await.expect("failed to put a record");
}

/// Reads `count` records, and ten more once they are put.
async fn read(client: &Client, stream: &str, count: usize, format: WireFormat) -> Vec<Fields> {
    let types = ContentTypes::default();
    let config = client.config().to_builder().interceptor(types.clone()).build();
    let consumer = Consumer::builder(Client::from_conf(config), stream)
        .starting_position(StartingPosition::TrimHorizon)
        .interval(Duration::from_millis(200))
        .wire_format(format)
        .build()
        .unwrap();
    let (mut records, mut events) = (consumer.records(), consumer.events());
    let all = timeout(PATIENCE, records.by_ref().take(count).try_collect::<Vec<_>>()).await;
    let mut read: Vec<Fields> = all.unwrap().unwrap().iter().map(fields).collect();
    // Calls that began before the format was settled.
    sleep(Duration::from_millis(500)).await;
    if format == WireFormat::Json {
        assert!(types.are_all(JSON), "expected no call by CBOR");
    } else {
        types.are_all(CBOR);
    }
    for number in 0..10 {
        put(client, stream, number).await;
    }
    let later = timeout(PATIENCE, records.by_ref().take(10).try_collect::<Vec<_>>()).await;
    read.extend(later.unwrap().unwrap().iter().map(fields));
    let mut events = std::iter::from_fn(|| events.next().now_or_never()).flatten();
    let fallback = events.find(|event| matches!(event, Event::WireFormatFallback { .. }));
    assert_eq!(fallback, None);
    let expected = if format == WireFormat::Json { JSON } else { CBOR };
    assert!(types.are_all(expected), "expected all calls in {expected}");
    consumer.close().await.unwrap();
    read
}

/// Returns the records of each shard, in order.
fn by_shard(records: Vec<Fields>) -> BTreeMap<String, Vec<Fields>> {
    let mut shards = BTreeMap::<_, Vec<_>>::new();
    for record in records {
        shards.entry(record.0.clone()).or_default().push(record);
    }
    shards
}

pub(crate) async fn both_formats_read_equal_records(client: &Client) {
    let stream = "scenario-of-formats";
    create_stream(client, stream, 3).await.unwrap();
    for number in 0..RECORDS {
        put(client, stream, number).await;
    }
    // The second reader also reads the records that were put during the first.
    let by_cbor = by_shard(read(client, stream, RECORDS, WireFormat::Auto).await);
    let by_json = by_shard(read(client, stream, RECORDS + 10, WireFormat::Json).await);
    assert_eq!(by_cbor.len(), 3);
    let mut compared = 0;
    for (shard, records) in &by_cbor {
        let others = &by_json[shard];
        for (record, other) in records.iter().zip(others) {
            assert_eq!(record, other);
            compared += 1;
        }
    }
    assert_eq!(compared, RECORDS + 10);
}
