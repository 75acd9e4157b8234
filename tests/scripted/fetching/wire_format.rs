//! The wire format of `GetRecords` by the CBOR that the server speaks: which calls are made, and
//! that each record is delivered once, in order and unaltered.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::config::http::{HttpRequest, HttpResponse};
use aws_sdk_kinesis::config::{BehaviorVersion, Config, Credentials, Region};
use aws_smithy_cbor::codec::{CborCodec, CborCodecSettings};
use aws_smithy_runtime_api::client::orchestrator::Metadata;
use aws_smithy_schema::http_protocol::HttpRpcProtocol;
use aws_smithy_schema::protocol::ClientProtocolInner;
use aws_smithy_schema::serde::{SerdeError, SerializableStruct, ShapeDeserializer};
use aws_smithy_schema::{Schema, ShapeId, shape_id};
use aws_smithy_types::config_bag::ConfigBag;
use aws_smithy_types::endpoint::Endpoint;
use futures::{FutureExt, StreamExt};
use kinestream::testing::{Call, CborSupport, Kinesis, Shard, Stream, aggregate};
use kinestream::{
    Event, Events, FallbackReason, MemoryStore, Record, Records, StartingPosition, WireFormat,
};
use tokio::time::sleep;

use crate::simulated_clock::consumer_of;
use crate::{calls, consumer, next, number, orders, shard_of};

/// The most records that a trial of CBOR fetches.
pub(crate) const COMPARED: usize = 10;

/// More records than a trial fetches.
pub(crate) const MANY: usize = 100;

const UNSUPPORTED: Option<FallbackReason> = Some(FallbackReason::Unsupported);
const UNREADABLE: Option<FallbackReason> = Some(FallbackReason::Unreadable);
const DIFFERENT: Option<FallbackReason> = Some(FallbackReason::Different);

/// Each kind of server, and the reason for which it is read by JSON.
const SERVERS: [(CborSupport, Option<FallbackReason>); 8] = [
    (CborSupport::Amazon, None),
    (CborSupport::None, UNSUPPORTED),
    (CborSupport::Rejected, UNSUPPORTED),
    (CborSupport::Seconds, None),
    (CborSupport::Text, None),
    (CborSupport::Altered, DIFFERENT),
    // The comparison fits into 16 KiB, and the next response does not.
    (CborSupport::CutShort(16 * 1024), UNREADABLE),
    (CborSupport::CutShort(64), UNREADABLE),
];

/// Returns the reasons of all events of a fallback since the last call.
pub(crate) fn fallbacks(events: &mut Events) -> Vec<FallbackReason> {
    let events = std::iter::from_fn(|| events.next().now_or_never()).flatten();
    let reason = |event| match event {
        Event::WireFormatFallback { reason } => Some(reason),
        _ => None,
    };
    events.filter_map(reason).collect()
}

/// Puts these payloads into each shard.
pub(crate) fn put(orders: &Stream, numbers: Range<usize>) {
    for shard in orders.open_shards() {
        for number in numbers.clone() {
            shard.put(number.to_string());
        }
    }
}

/// Reads these payloads of each of the first `shards` shards: each once, and in order.
pub(crate) async fn read(records: &mut Records, shards: usize, numbers: Range<usize>) {
    let mut expected = vec![numbers.start; shards];
    for _ in 0..shards * numbers.len() {
        let record = next(records).await;
        let expected = &mut expected[shard_of(&record)];
        assert_eq!(number(&record), *expected, "expected each record once and in order");
        *expected += 1;
    }
}

/// Returns the `GetRecords` calls so far.
pub(crate) fn reads(kinesis: &Kinesis) -> Vec<Call> {
    calls(kinesis, "GetRecords")
}

/// Asserts that Kinesis forbids none of the calls, and that no other call is made by CBOR.
pub(crate) fn assert_calls_are_allowed(kinesis: &Kinesis) {
    assert_eq!(kinesis.violations(), [""; 0]);
    let others = kinesis.calls().into_iter().filter(|call| call.operation != "GetRecords");
    assert_eq!(others.filter(|call| call.is_cbor).count(), 0, "expected only GetRecords by CBOR");
}

#[tokio::test(start_paused = true)]
async fn every_server_is_read_once_in_order_and_settles_for_all_shards() {
    for (support, reason) in SERVERS {
        for (shards, is_chunked) in [(1, false), (1, true), (8, false)] {
            let (kinesis, orders) = orders(shards);
            kinesis.set_cbor(support);
            kinesis.set_chunked(is_chunked);
            put(&orders, 0..5 * MANY);
            let consumer = consumer(&kinesis).build().unwrap();
            let (mut records, mut events) = (consumer.records(), consumer.events());
            read(&mut records, shards, 0..5 * MANY).await;
            assert_eq!(fallbacks(&mut events), Vec::from_iter(reason), "{support:?}");

            let settled = reads(&kinesis).len();
            put(&orders, 500..510);
            read(&mut records, shards, 500..510).await;
            let is_cbor = reason.is_none();
            let later = &reads(&kinesis)[settled..];
            assert!(later.iter().all(|call| call.is_cbor == is_cbor), "{support:?}: {later:?}");
            assert_eq!(fallbacks(&mut events), []);
            assert_calls_are_allowed(&kinesis);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn one_response_per_consumer_is_compared() {
    for shards in [1, 8] {
        let (kinesis, orders) = orders(shards);
        put(&orders, 0..3 * MANY);
        // The time for calls of other shards during the comparison.
        kinesis.set_latency(Duration::from_millis(100));
        for _ in 0..2 {
            let first_call = kinesis.call_count();
            let consumer = consumer(&kinesis).build().unwrap();
            read(&mut consumer.records(), shards, 0..3 * MANY).await;
            let mut calls = kinesis.calls_from(first_call);
            calls.retain(|call| call.operation == "GetRecords");

            let trial = calls.iter().find(|call| call.is_cbor).unwrap();
            let is_repeated = |call: &&Call| call.shard_id == trial.shard_id && !call.is_cbor;
            let check = calls.iter().find(is_repeated).unwrap();
            assert_eq!((trial.records, check.records), (COMPARED, COMPARED));
            assert!(check.at - trial.at >= Duration::from_millis(200), "expected its own turn");
            let checked = check.at + Duration::from_millis(100);
            let is_cbor = |call: &&Call| call.is_cbor;
            let before: Vec<_> = calls.iter().filter(|call| call.at < checked).collect();
            assert_eq!(before.iter().copied().filter(is_cbor).count(), 1, "expected one trial");
            let after: Vec<_> = calls.iter().filter(|call| call.at > checked).collect();
            assert!(!after.is_empty() && after.iter().all(is_cbor), "{after:?}");
        }
        assert_calls_are_allowed(&kinesis);
    }
}

#[tokio::test(start_paused = true)]
async fn empty_shards_are_compared_with_their_first_records() {
    let (kinesis, orders) = orders(2);
    let consumer = consumer(&kinesis).build().unwrap();
    let (mut records, mut events) = (consumer.records(), consumer.events());
    crate::assert_silent(&mut records).await;
    let formats: Vec<bool> = reads(&kinesis).iter().map(|call| call.is_cbor).collect();
    assert!(formats.contains(&true), "expected trials without a result: {formats:?}");
    put(&orders, 0..1);
    read(&mut records, 2, 0..1).await;
    let settled = reads(&kinesis).len();
    put(&orders, 1..2);
    read(&mut records, 2, 1..2).await;
    assert!(reads(&kinesis)[settled..].iter().all(|call| call.is_cbor));
    assert_eq!(fallbacks(&mut events), []);
}

#[tokio::test(start_paused = true)]
async fn json_option_makes_no_call_by_cbor() {
    for (support, _) in SERVERS {
        let (kinesis, orders) = orders(3);
        kinesis.set_cbor(support);
        put(&orders, 0..2 * MANY);
        let consumer = consumer(&kinesis).wire_format(WireFormat::Json).build().unwrap();
        let (mut records, mut events) = (consumer.records(), consumer.events());
        read(&mut records, 3, 0..2 * MANY).await;
        assert!(reads(&kinesis).iter().all(|call| !call.is_cbor), "{support:?}");
        assert_eq!(fallbacks(&mut events), []);
        assert_calls_are_allowed(&kinesis);
    }
}

/// Puts records with all kinds of fields, and returns their arrival times.
async fn put_various(kinesis: &Kinesis, shard: &Shard) -> Vec<(SystemTime, String, Vec<u8>)> {
    let mut put = Vec::new();
    for number in 0..2 * MANY {
        sleep(Duration::from_millis(number as u64 * 7)).await;
        let key = ["key", "kéy-1", "\u{1f980}", "\"\\\u{1}"][number % 4].to_owned();
        let length = [0, 1, 300, 5000][number / 4 % 4];
        let data: Vec<u8> =
            (0..length).map(|byte| ((byte * 31 + number) % 251).try_into().unwrap()).collect();
        shard.put_as(&key, data.clone());
        put.push((kinesis.now(), key, data));
    }
    put
}

/// A server alters the payload, the time, the key or the number of a record, selected by the
/// number.
#[tokio::test(start_paused = true)]
async fn records_of_every_server_are_unaltered() {
    for (support, reason) in SERVERS {
        for first in 0..4 {
            let kinesis = Kinesis::at(UNIX_EPOCH + Duration::from_millis(1_767_225_600_123));
            let orders = kinesis.create_stream("orders", 1);
            kinesis.set_cbor(support);
            orders.number_from(9_900 + first);
            let put = put_various(&kinesis, &orders.shard(0)).await;
            let consumer = consumer(&kinesis).limit(30).build().unwrap();
            let (mut records, mut events) = (consumer.records(), consumer.events());
            let mut numbers = orders.shard(0).sequence_numbers().into_iter();
            for (arrival, key, data) in put {
                let record = next(&mut records).await;
                assert_eq!(Some(record.sequence_number()), numbers.next().as_ref());
                assert_eq!(record.partition_key(), Some(&*key), "{support:?}");
                assert_eq!(record.data(), data, "{support:?}");
                assert_eq!(record.approximate_arrival(), Some(arrival), "{support:?}");
            }
            assert_eq!(fallbacks(&mut events), Vec::from_iter(reason), "{support:?} {first}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn aggregated_records_and_resharded_shards_are_read_by_every_server() {
    for (support, _) in SERVERS {
        let (kinesis, orders) = orders(1);
        kinesis.set_cbor(support);
        let store = MemoryStore::new();
        let parts = |numbers: Range<usize>| {
            aggregate(numbers.map(|number| ("key", number.to_string().into_bytes())))
        };
        for first in (0..100).step_by(10) {
            orders.shard(0).put(parts(first..first + 10));
        }
        let reader = || consumer(&kinesis).store(store.clone()).build().unwrap();
        // The second reader starts within an aggregated record.
        let first = reader();
        read(&mut first.records(), 1, 0..55).await;
        first.close().await.unwrap();
        let second = reader();
        let mut records = second.records();
        let resumed = number(&next(&mut records).await);
        assert_eq!(resumed, 54, "the last record was not acknowledged");
        read(&mut records, 1, 55..100).await;
        for (child, number) in orders.shard(0).split().iter().zip(100..) {
            child.put(number.to_string());
        }
        let children = [next(&mut records).await, next(&mut records).await];
        let mut children = children.map(|record| (shard_of(&record), number(&record)));
        children.sort_unstable();
        assert_eq!(children, [(1, 100), (2, 101)], "{support:?}");
        assert_calls_are_allowed(&kinesis);
    }
}

#[tokio::test(start_paused = true)]
async fn fan_out_is_json_on_every_server() {
    for (support, _) in SERVERS {
        let (kinesis, orders) = orders(2);
        kinesis.set_cbor(support);
        put(&orders, 0..2 * MANY);
        let consumer = consumer(&kinesis).fan_out("billing").build().unwrap();
        let (mut records, mut events) = (consumer.records(), consumer.events());
        read(&mut records, 2, 0..2 * MANY).await;
        put(&orders, 200..210);
        read(&mut records, 2, 200..210).await;
        assert!(kinesis.calls().iter().all(|call| !call.is_cbor), "{support:?}");
        assert_eq!(fallbacks(&mut events), []);
        assert_calls_are_allowed(&kinesis);
    }
}

/// The protocol of a client: the SDK's own CBOR codec, in the framing of Kinesis.
#[derive(Debug)]
struct OwnProtocol(HttpRpcProtocol<CborCodec>);

impl ClientProtocolInner for OwnProtocol {
    type Request = HttpRequest;
    type Response = HttpResponse;

    fn protocol_id(&self) -> &ShapeId<'static> {
        self.0.protocol_id()
    }

    fn serialize_request(
        &self,
        input: &dyn SerializableStruct,
        schema: &Schema<'_>,
        _endpoint: &str,
        config: &ConfigBag,
    ) -> Result<HttpRequest, SerdeError> {
        let mut request = self.0.serialize_request(input, schema, "/", config)?;
        let operation = config.load::<Metadata>().unwrap().name();
        request.headers_mut().insert("x-amz-target", format!("Kinesis_20131202.{operation}"));
        Ok(request)
    }

    fn deserialize_response<'a>(
        &self,
        response: &'a HttpResponse,
        schema: &Schema<'_>,
        config: &'a ConfigBag,
    ) -> Result<Box<dyn ShapeDeserializer + 'a>, SerdeError> {
        self.0.deserialize_response(response, schema, config)
    }

    fn update_endpoint(
        &self,
        request: &mut HttpRequest,
        endpoint: &Endpoint,
        config: &ConfigBag,
    ) -> Result<(), SerdeError> {
        self.0.update_endpoint(request, endpoint, config)
    }
}

#[tokio::test(start_paused = true)]
async fn client_with_its_own_protocol_keeps_it() {
    const CONTENT_TYPE: &str = "application/x-amz-cbor-1.1";
    for format in [WireFormat::Auto, WireFormat::Json] {
        let (kinesis, orders) = orders(3);
        put(&orders, 0..2 * MANY);
        let codec = CborCodec::new(CborCodecSettings::default());
        let id = shape_id!("aws.protocols", "own");
        let protocol = OwnProtocol(HttpRpcProtocol::new(id, codec, CONTENT_TYPE));
        let config = Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("eu-west-1"))
            .credentials_provider(Credentials::for_tests())
            .http_client(kinesis.http_client())
            .protocol(protocol);
        let builder = consumer_of(&kinesis, Client::from_conf(config.build()), "orders");
        let consumer = builder.starting_position(StartingPosition::TrimHorizon);
        let consumer = consumer.wire_format(format).build().unwrap();
        let (mut records, mut events) = (consumer.records(), consumer.events());
        read(&mut records, 3, 0..2 * MANY).await;
        assert!(kinesis.calls().iter().all(|call| call.is_cbor), "expected no call by JSON");
        let mut reads_of = BTreeMap::<_, usize>::new();
        for call in reads(&kinesis) {
            *reads_of.entry(call.shard_id).or_default() += call.records;
        }
        assert!(reads_of.values().all(|count| *count == 2 * MANY), "{reads_of:?}");
        assert_eq!(fallbacks(&mut events), []);
    }
}

/// A record outlives its consumer and the server, by either format.
#[tokio::test(start_paused = true)]
async fn kept_records_stay_readable() {
    for format in [WireFormat::Auto, WireFormat::Json] {
        let (kinesis, orders) = orders(1);
        put(&orders, 0..3 * MANY);
        let consumer = consumer(&kinesis).wire_format(format).build().unwrap();
        let kept: Vec<Record> =
            consumer.records().take(3 * MANY).map(Result::unwrap).collect().await;
        drop((consumer, kinesis, orders));
        assert!(kept.iter().map(number).eq(0..3 * MANY));
    }
}
