//! A client with a protocol of its own keeps it.

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::config::http::{HttpRequest, HttpResponse};
use aws_smithy_cbor::codec::{CborCodec, CborCodecSettings};
use aws_smithy_schema::http_protocol::HttpRpcProtocol;
use aws_smithy_schema::protocol::ClientProtocolInner;
use aws_smithy_schema::serde::{SerdeError, SerializableStruct, ShapeDeserializer};
use aws_smithy_schema::{Schema, ShapeId, shape_id};
use aws_smithy_types::config_bag::ConfigBag;
use aws_smithy_types::endpoint::Endpoint;

use super::server::{Server, answer};
use super::{Reader, WireFormat};
use crate::source::memory_budget::while_parsed;

const CONTENT_TYPE: &str = "application/cbor";

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
        self.0.serialize_request(input, schema, "/", config)
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

fn response(number: &str) -> Vec<u8> {
    let mut body = aws_smithy_cbor::Encoder::new(Vec::new());
    body.map(2).str("NextShardIterator").str("next").str("Records").array(1);
    body.map(3).str("SequenceNumber").str(number).str("PartitionKey").str("key");
    body.str("Data").blob_bytes(b"hello");
    body.into_writer()
}

#[tokio::test(start_paused = true)]
async fn protocol_of_the_client_is_kept() {
    let server = Server::new(["1", "2"].map(|number| answer(200, CONTENT_TYPE, response(number))));
    let codec = CborCodec::new(CborCodecSettings::default());
    let id = shape_id!("aws.protocols", "own");
    let protocol = OwnProtocol(HttpRpcProtocol::new(id, codec, CONTENT_TYPE));
    let client = Client::from_conf(server.config().protocol(protocol).build());
    let mut reader = Reader::new(client, WireFormat::Auto);
    for number in ["1", "2"] {
        let outcome = reader.read().await;
        let read = outcome.result.unwrap_or_else(|failed| panic!("{:?}", failed.failure));
        let record = read.response.records.as_ref().unwrap()[0];
        assert_eq!(record.sequence_number.of(&read.response.buffer), number.as_bytes());
        assert_eq!(record.data.of(&read.response.buffer), b"hello");
        assert_eq!((read.needed, outcome.fallback), (while_parsed(response(number).len()), None));
    }
    let script = server.0.lock();
    assert!(script.requests.iter().all(|(content_type, ..)| content_type == CONTENT_TYPE));
}
