//! Compares wire protocols: the bare SDK loop over JSON, which the SDK uses, and over CBOR, which
//! Kinesis supports too and which carries payloads as bytes instead of base64.
//!
//!     cargo bench --features testing --bench protocols
// A benchmark panics on any failure.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::cast_precision_loss)]

use std::fmt::Write;

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::config::http::{HttpRequest, HttpResponse};
use aws_sdk_kinesis::config::{BehaviorVersion, Config, Credentials, Region};
use aws_smithy_cbor::codec::{CborCodec, CborCodecSettings};
use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn,
};
use aws_smithy_runtime_api::client::orchestrator::Metadata;
use aws_smithy_schema::http_protocol::HttpRpcProtocol;
use aws_smithy_schema::protocol::ClientProtocolInner;
use aws_smithy_schema::serde::{SerdeError, SerializableStruct, ShapeDeserializer};
use aws_smithy_schema::{Schema, ShapeId, shape_id};
use aws_smithy_types::DateTime;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::config_bag::ConfigBag;
use bytes::Bytes;
use cpu_time::ProcessTime;

/// CBOR in the framing of `x-amz-json-1.1`.
#[derive(Debug)]
struct Cbor(HttpRpcProtocol<CborCodec>);

impl ClientProtocolInner for Cbor {
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
        endpoint: &aws_smithy_types::endpoint::Endpoint,
        config: &ConfigBag,
    ) -> Result<(), SerdeError> {
        self.0.update_endpoint(request, endpoint, config)
    }
}

#[derive(Debug, Clone)]
struct Canned([Bytes; 2]);

impl HttpConnector for Canned {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let cbor = request.headers().get("content-type").unwrap().contains("cbor");
        let body = self.0[usize::from(cbor)].clone();
        HttpConnectorFuture::new(async {
            tokio::task::yield_now().await;
            Ok(HttpResponse::new(200.try_into().unwrap(), SdkBody::from(body)))
        })
    }
}

fn answers(records: usize, bytes: usize) -> Canned {
    let mut json =
        String::from(r#"{"NextShardIterator":"x","MillisBehindLatest":1000,"Records":["#);
    let mut cbor = aws_smithy_cbor::Encoder::new(Vec::new());
    cbor.map(3).str("NextShardIterator").str("x").str("MillisBehindLatest").integer(1000);
    cbor.str("Records").array(records);
    let data = vec![0; bytes];
    let text = aws_smithy_types::base64::encode(&data);
    for record in 0..u32::try_from(records).unwrap() {
        let number = format!(
            "{}40286938361538357109",
            495_903_382_714_902_566_085_596_925_383_u128 + u128::from(record)
        );
        let key = format!("customer-{:04}", record % 1000);
        let comma = if record == 0 { "" } else { "," };
        let millis = record % 1000;
        let _ = write!(
            json,
            r#"{comma}{{"SequenceNumber":"{number}","PartitionKey":"{key}","ApproximateArrivalTimestamp":1767225600.{millis:03},"Data":"{text}"}}"#,
        );
        cbor.map(4).str("SequenceNumber").str(&number).str("PartitionKey").str(&key);
        cbor.str("ApproximateArrivalTimestamp")
            .timestamp(&DateTime::from_secs_and_nanos(1_767_225_600, millis * 1_000_000));
        cbor.str("Data").blob_bytes(&data);
    }
    json += "]}";
    Canned([json.into(), cbor.into_writer().into()])
}

fn client(canned: &Canned, cbor: bool) -> Client {
    let connector = SharedHttpConnector::new(canned.clone());
    let config = Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("eu-west-1"))
        .credentials_provider(Credentials::for_tests())
        .http_client(http_client_fn(move |_settings, _components| connector.clone()));
    let protocol = Cbor(HttpRpcProtocol::new(
        shape_id!("aws.protocols", "awsCbor1_1"),
        CborCodec::new(CborCodecSettings::default()),
        "application/x-amz-cbor-1.1",
    ));
    Client::from_conf(if cbor { config.protocol(protocol).build() } else { config.build() })
}

async fn read(client: &Client, calls: usize, bytes: usize) -> usize {
    let mut read = 0;
    for _ in 0..calls {
        let answer = client.get_records().shard_iterator("x").send().await.unwrap();
        for record in answer.records {
            assert_eq!(record.data.as_ref().len(), bytes);
            read += 1;
        }
    }
    read
}

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for bytes in [100, 1000, 10_000, 1_000_000] {
        let canned = answers(((10 << 20) / (bytes + 13)).min(10_000), bytes);
        let clients = [false, true].map(|cbor| client(&canned, cbor));
        let mut least = [f64::MAX; 2];
        for _ in 0..7 {
            for (client, least) in clients.iter().zip(&mut least) {
                let began = ProcessTime::now();
                let read = runtime.block_on(read(client, 20, bytes));
                *least = least.min(began.elapsed().as_secs_f64() * 1e6 / read as f64);
            }
        }
        println!(
            "{bytes} bytes: JSON {:.3} s of CPU per million records ({} bytes per response), \
             CBOR {:.3} s ({} bytes), ratio {:.2}",
            least[0],
            canned.0[0].len(),
            least[1],
            canned.0[1].len(),
            least[1] / least[0]
        );
    }
}
