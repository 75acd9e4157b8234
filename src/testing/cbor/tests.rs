use std::time::{Duration, UNIX_EPOCH};

use aws_sdk_kinesis::config::http::HttpRequest;
use aws_smithy_runtime_api::client::http::HttpConnector;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::byte_stream::ByteStream;
use serde_json::{Value, json};

use super::*;
use crate::testing::answer::JSON;
use crate::testing::{Call, Kinesis, Outcome, Shard};

const NOW: u64 = 1_600_000_000_000;

/// Creates a stream `s` with one shard, whose next record has the number 7.
fn kinesis() -> (Kinesis, Shard) {
    let kinesis = Kinesis::at(UNIX_EPOCH + Duration::from_millis(NOW));
    let stream = kinesis.create_stream("s", 1);
    stream.number_from(7);
    (kinesis, stream.shard(0))
}

/// A response as it was received.
#[derive(Debug, PartialEq)]
struct Received {
    status: u16,
    content_type: String,
    body: Vec<u8>,
}

impl Received {
    fn of(status: u16, content_type: &str, body: &[u8]) -> Self {
        Self { status, content_type: content_type.to_owned(), body: body.to_vec() }
    }

    /// Returns the members as the decoder of requests reads them: payloads as base64, times in
    /// seconds.
    fn members(&self) -> Value {
        assert_eq!(self.content_type, CBOR);
        decode(&self.body).unwrap()
    }
}

async fn send(kinesis: &Kinesis, content_type: &str, operation: &str, body: &[u8]) -> Received {
    let mut request = HttpRequest::new(SdkBody::from(body));
    request.set_method("POST").unwrap();
    request.set_uri("https://kinesis.eu-west-1.amazonaws.com/").unwrap();
    request.headers_mut().insert("content-type", content_type.to_owned());
    request.headers_mut().insert("x-amz-target", format!("Kinesis_20131202.{operation}"));
    let response = kinesis.connector().call(request).await.unwrap();
    let status = response.status().as_u16();
    let content_type = response.headers().get("content-type").unwrap().to_owned();
    let length = response.body().content_length();
    let mut frames = ByteStream::new(response.into_body());
    let (mut body, mut is_lost) = (Vec::new(), false);
    while let Some(frame) = frames.next().await {
        match frame {
            Ok(frame) => body.extend_from_slice(&frame),
            Err(_) => is_lost = true,
        }
    }
    let received = body.len() as u64;
    assert_eq!(length > Some(received), is_lost, "a complete body has the length that it states");
    assert!(length >= Some(received));
    Received { status, content_type, body }
}

/// Reads the shard from its start.
async fn read(kinesis: &Kinesis) -> Received {
    let iterator = format!("s/0/0/{NOW}");
    let body = [b"\xbf\x6dShardIterator\x73", iterator.as_bytes(), b"\xff"].concat();
    // Each call is within the limits of the shard.
    tokio::time::sleep(Duration::from_secs(1)).await;
    send(kinesis, CBOR, "GetRecords", &body).await
}

async fn read_json(kinesis: &Kinesis) -> Value {
    let body = json!({ "ShardIterator": format!("s/0/0/{NOW}") }).to_string();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let response = send(kinesis, JSON, "GetRecords", body.as_bytes()).await;
    assert_eq!(response.content_type, JSON);
    serde_json::from_slice(&response.body).unwrap()
}

/// Removes the next iterator, which names the time of the call.
fn without_iterator(mut members: Value) -> Value {
    members.as_object_mut().unwrap().remove("NextShardIterator");
    members
}

#[tokio::test(start_paused = true)]
async fn amazon_response_has_exact_bytes() {
    let (kinesis, shard) = kinesis();
    shard.put_as("k", [0x00, 0xff]);
    let expected = b"\xbf\
        \x72MillisBehindLatest\x00\
        \x71NextShardIterator\x73s/0/1/1600000001000\
        \x67Records\x9f\xbf\
        \x6eSequenceNumber\x617\
        \x78\x1bApproximateArrivalTimestamp\xc1\x1b\x00\x00\x01\x74\x87\x6e\x80\x00\
        \x64Data\x42\x00\xff\
        \x6cPartitionKey\x61k\
        \xff\xff\xff";
    assert_eq!(read(&kinesis).await, Received::of(200, CBOR, expected));
    assert_eq!(kinesis.violations(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn seconds_response_has_lengths_and_no_tags() {
    let (kinesis, shard) = kinesis();
    kinesis.set_cbor(CborSupport::Seconds);
    shard.put_as("k", [0x00, 0xff]);
    shard.put_at(UNIX_EPOCH + Duration::from_millis(1500), "");
    let expected = b"\xa3\
        \x72MillisBehindLatest\x00\
        \x71NextShardIterator\x73s/0/2/1600000001000\
        \x67Records\x82\
        \xa4\
        \x6eSequenceNumber\x617\
        \x78\x1bApproximateArrivalTimestamp\x1a\x5f\x5e\x10\x00\
        \x64Data\x42\x00\xff\
        \x6cPartitionKey\x61k\
        \xa4\
        \x6eSequenceNumber\x618\
        \x78\x1bApproximateArrivalTimestamp\xfb\x3f\xf8\0\0\0\0\0\0\
        \x64Data\x40\
        \x6cPartitionKey\x63key";
    assert_eq!(read(&kinesis).await, Received::of(200, CBOR, expected));
}

#[tokio::test(start_paused = true)]
async fn text_response_has_base64_and_nulls() {
    let (kinesis, shard) = kinesis();
    kinesis.set_cbor(CborSupport::Text);
    shard.put_as("k", [0x00, 0xff]);
    let expected = b"\xa4\
        \x72MillisBehindLatest\x00\
        \x71NextShardIterator\x73s/0/1/1600000001000\
        \x6bChildShards\xf6\
        \x67Records\x81\
        \xa5\
        \x6eSequenceNumber\x617\
        \x78\x1bApproximateArrivalTimestamp\x1b\x00\x00\x01\x74\x87\x6e\x80\x00\
        \x64Data\x64AP8=\
        \x6eEncryptionType\xf6\
        \x6cPartitionKey\x61k";
    assert_eq!(read(&kinesis).await, Received::of(200, CBOR, expected));
}

#[tokio::test(start_paused = true)]
async fn amazon_response_equals_json() {
    let (kinesis, shard) = kinesis();
    for length in [0, 1, 23, 24, 255, 256, 70_000] {
        shard.put_as("kéy", vec![b'A'; length]);
    }
    shard.split();
    let json = read_json(&kinesis).await;
    assert_eq!(json["ChildShards"].as_array().unwrap().len(), 2);
    assert!(read(&kinesis).await.members() == json, "expected the same members as in JSON");
    let calls = kinesis.calls();
    assert_eq!(calls.iter().map(|call| call.is_cbor).collect::<Vec<_>>(), [false, true]);
    assert_eq!(calls.iter().map(|call| call.records).collect::<Vec<_>>(), [7, 7]);
}

#[tokio::test(start_paused = true)]
async fn server_without_cbor_serves_json_only() {
    let (kinesis, shard) = kinesis();
    shard.put("a");
    kinesis.set_cbor(CborSupport::None);
    let page = Received::of(500, "text/html; charset=utf-8", HTML.as_bytes());
    assert_eq!(read(&kinesis).await, page);
    kinesis.next_calls("GetRecords", 1, Outcome::throttled());
    let throttled = read(&kinesis).await;
    assert_eq!((throttled.status, &throttled.content_type[..]), (400, JSON));
    kinesis.set_cbor(CborSupport::Rejected);
    for (status, code) in [
        (400, "UnknownOperationException"),
        (415, "SerializationException"),
        (400, "UnknownOperationException"),
    ] {
        let rejected = read(&kinesis).await;
        assert_eq!((rejected.status, &rejected.content_type[..]), (status, JSON));
        let members: Value = serde_json::from_slice(&rejected.body).unwrap();
        assert_eq!(members["__type"], code);
    }
    assert_eq!(read_json(&kinesis).await["Records"].as_array().unwrap().len(), 1);
    kinesis.set_cbor(CborSupport::Amazon);
    assert_eq!(read(&kinesis).await.status, 200);
    let calls = kinesis.calls();
    let read = |call: &Call| (call.status.unwrap(), call.records);
    let expected = [(500, 0), (400, 0), (400, 0), (415, 0), (400, 0), (200, 1), (200, 1)];
    assert_eq!(calls.iter().map(read).collect::<Vec<_>>(), expected);
}

#[tokio::test(start_paused = true)]
async fn server_with_failing_cbor_serves_json() {
    let (kinesis, shard) = kinesis();
    shard.put("a");
    kinesis.set_cbor(CborSupport::Failing);
    for _ in 0..2 {
        let failed = read(&kinesis).await;
        assert_eq!((failed.status, &failed.content_type[..]), (500, CBOR));
        assert_eq!(failed.members()["__type"], "InternalFailure");
    }
    assert_eq!(read_json(&kinesis).await["Records"].as_array().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn altered_response_differs_in_one_member() {
    let mut altered = std::collections::BTreeSet::new();
    for before in 0..8 {
        let (kinesis, shard) = kinesis();
        shard.put_as("k", "");
        for _ in 0..before {
            shard.put_as("k", "abc");
        }
        kinesis.set_cbor(CborSupport::Altered);
        let first = without_iterator(read(&kinesis).await.members());
        let again = without_iterator(read(&kinesis).await.members());
        assert_eq!(first, again, "expected a retry to receive the same");
        let json = without_iterator(read_json(&kinesis).await);
        let records = |answer: &Value| answer["Records"].as_array().unwrap().clone();
        let (wrong, right) = (records(&first), records(&json));
        assert_eq!(wrong.len(), right.len());
        let mut differences = Vec::new();
        for (wrong, right) in wrong.iter().zip(&right) {
            let members = right.as_object().unwrap().iter();
            let differs = members.filter(|(name, value)| wrong[*name] != **value);
            differences.extend(differs.map(|(name, _)| name.clone()));
        }
        assert_eq!(differences.len(), 1, "expected one difference, found {differences:?}");
        altered.extend(differences);
    }
    assert_eq!(altered.len(), 4, "expected each member to be altered: {altered:?}");
}

#[tokio::test(start_paused = true)]
async fn long_response_is_cut_short() {
    let (kinesis, shard) = kinesis();
    shard.put(vec![0; 20_000]);
    let whole = read(&kinesis).await;
    kinesis.set_cbor(CborSupport::CutShort(16_384));
    let cut = read(&kinesis).await;
    assert_eq!((cut.status, &cut.content_type[..], cut.body.len()), (200, CBOR, 16_384));
    assert_eq!(cut.body[..30], whole.body[..30]);
    let records: Vec<_> = kinesis.calls().iter().map(|call| (call.records, call.bytes)).collect();
    assert_eq!(records, [(1, 20_003), (0, 0)], "records of a cut response do not count");
    kinesis.set_cbor(CborSupport::CutShort(whole.body.len()));
    assert_eq!(read(&kinesis).await.body.len(), whole.body.len());
    assert_eq!(read_json(&kinesis).await["Records"].as_array().unwrap().len(), 1);
}

/// The reader of a cut response does not know its size, so it may not know that the shard's
/// throughput is used up.
#[tokio::test(start_paused = true)]
async fn read_after_a_cut_response_is_no_violation() {
    let (kinesis, shard) = kinesis();
    for _ in 0..3 {
        shard.put(vec![0; 1 << 20]);
    }
    kinesis.set_cbor(CborSupport::CutShort(100));
    assert_eq!(read(&kinesis).await.body.len(), 100);
    let throttled = read_json(&kinesis).await;
    assert_eq!(throttled["__type"], "ProvisionedThroughputExceededException");
    assert_eq!(kinesis.violations(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn read_after_a_cut_error_is_a_violation() {
    let (kinesis, shard) = kinesis();
    for _ in 0..5 {
        shard.put(vec![0; 1 << 20]);
    }
    assert_eq!(read(&kinesis).await.status, 200);
    kinesis.set_cbor(CborSupport::CutShort(10));
    kinesis.next_calls("GetRecords", 1, Outcome::throttled());
    assert_eq!(read(&kinesis).await.body.len(), 10);
    read_json(&kinesis).await;
    assert_eq!(kinesis.violations(), ["shard 0: more than 2 MiB read in one second"]);
}

#[tokio::test(start_paused = true)]
async fn outcomes_apply_to_calls_in_cbor() {
    let (kinesis, shard) = kinesis();
    shard.put("abc");
    let next = |outcome| kinesis.next_calls("GetRecords", 1, outcome);
    let whole = read(&kinesis).await;

    next(Outcome::failed(503, "Busy", "later"));
    let expected = b"\xbf\x66__type\x64Busy\x67message\x65later\xff";
    assert_eq!(read(&kinesis).await, Received::of(503, CBOR, expected));

    next(Outcome::Garbled { status: 502, body: "<html>".to_owned() });
    assert_eq!(read(&kinesis).await, Received::of(502, JSON, b"<html>"));

    next(Outcome::without(["NextShardIterator", "Records"]));
    assert_eq!(read(&kinesis).await.members(), json!({ "MillisBehindLatest": 0 }));

    next(Outcome::Cut);
    let cut = read(&kinesis).await;
    assert_eq!(cut.body.len(), whole.body.len() / 2);
    assert_eq!(cut.content_type, CBOR);
    let call = kinesis.calls().pop().unwrap();
    assert_eq!((call.records, call.status), (0, None), "the response has not arrived");

    next(Outcome::Delayed(Duration::from_secs(1)));
    let delayed = read(&kinesis).await.members();
    assert_eq!(without_iterator(delayed), without_iterator(whole.members()));
}

#[tokio::test(start_paused = true)]
async fn errors_to_calls_in_cbor_are_in_cbor() {
    let (kinesis, _shard) = kinesis();
    let unknown = b"\xa1\x6dShardIterator\x61x";
    let cases: [(&str, &[u8], u16, &str); 5] = [
        ("GetRecords", unknown, 400, "InvalidArgumentException"),
        ("GetRecords", b"{}", 400, "SerializationException"),
        ("GetRecords", b"", 400, "SerializationException"),
        ("SplitShard", b"\xa0", 400, "UnknownOperationException"),
        ("SubscribeToShard", b"\xa0", 500, "InternalFailure"),
    ];
    for (operation, body, status, code) in cases {
        let refused = send(&kinesis, CBOR, operation, body).await;
        assert_eq!((refused.status, &refused.members()["__type"]), (status, &json!(code)));
    }
}

#[tokio::test(start_paused = true)]
async fn other_operations_speak_cbor() {
    let (kinesis, shard) = kinesis();
    let put = b"\xbf\x6aStreamName\x61s\x6cPartitionKey\x61k\x64Data\x42\x00\xff\xff";
    let put = send(&kinesis, CBOR, "PutRecord", put).await;
    assert_eq!(put.members()["SequenceNumber"], "7");
    assert_eq!(shard.sequence_numbers().len(), 1);
    let listed = send(&kinesis, CBOR, "ListShards", b"\xa1\x6aStreamName\x61s").await.members();
    let [shard] = &listed["Shards"].as_array().unwrap()[..] else { panic!("{listed}") };
    assert_eq!(shard["ShardId"], "shardId-000000000000");
    assert_eq!(listed.as_object().unwrap().len(), 1, "expected no member to be null: {listed}");
    let at = b"\xbf\x6aStreamName\x61s\x67ShardId\x74shardId-000000000000\
        \x71ShardIteratorType\x6cAT_TIMESTAMP\
        \x69Timestamp\xc1\x1b\x00\x00\x01\x74\x87\x6e\x80\x01\xff";
    tokio::time::sleep(Duration::from_secs(1)).await;
    let iterator = send(&kinesis, CBOR, "GetShardIterator", at).await.members();
    assert_eq!(iterator["ShardIterator"], format!("s/0/1/{}", NOW + 1000));
}
