//! One `GetRecords` request and its response, between the SDK and the decoders.
//!
//! ```text
//!   SDK: request in JSON ──► body in CBOR ──► SDK: signs, sends, receives the head
//!                                                            │
//!               2xx: the body is taken, and read by the caller ┤
//!               CBOR error: decoded here                       ┤
//!               any other error: left to the SDK ──────────────┘
//! ```
//!
//! If the client has a protocol of its own, both the request and the response are left to the SDK.

use std::sync::Arc;

use aws_sdk_kinesis::config::http::HttpResponse;
use aws_sdk_kinesis::config::interceptors::{
    AfterDeserializationInterceptorContextRef, BeforeDeserializationInterceptorContextMut,
    BeforeDeserializationInterceptorContextRef, BeforeTransmitInterceptorContextMut,
};
use aws_sdk_kinesis::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_kinesis::error::{BoxError, ErrorMetadata};
use aws_sdk_kinesis::operation::get_records::{GetRecordsError, GetRecordsOutput};
use aws_smithy_runtime_api::client::interceptors::context::{Error, Output};
use aws_smithy_runtime_api::client::orchestrator::OrchestratorError;
use aws_smithy_runtime_api::client::ser_de::{DeserializeResponse, SharedResponseDeserializer};
use aws_smithy_runtime_api::http::StatusCode;
use aws_smithy_types::body::SdkBody;
use bytes::Bytes;

use super::super::field_scanner::FieldScanner;
use super::super::response::ErrorBody;
use super::memory::ResponseMemory;
use crate::mutex::Mutex;

pub(super) const JSON: &str = "application/x-amz-json-1.1";
pub(super) const CBOR: &str = "application/x-amz-cbor-1.1";

/// The errors of a server that does not understand a request in CBOR.
const REFUSALS: [&str; 2] = ["SerializationException", "UnknownOperationException"];

/// One call. Clones share it: the SDK keeps one as an interceptor.
#[derive(Debug, Clone)]
pub(super) struct Exchange {
    /// The request in CBOR. Without it, the request stays in JSON.
    request: Option<Bytes>,
    memory: ResponseMemory,
    seen: Arc<Mutex<Seen>>,
}

/// The response, as far as it has arrived.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// True if the client has a protocol of its own. `None` before the request was made.
    pub(super) is_foreign_protocol: Option<bool>,
    pub(super) head: Option<Head>,
    /// The body of a successful response.
    body: Option<SdkBody>,
    pub(super) fault: Option<Fault>,
    /// True if a CBOR error was received completely and decoded.
    pub(super) has_error: bool,
    /// The response lacks the member `Records`. Known only if the SDK has decoded it.
    lacks_records: bool,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Head {
    pub(super) status: StatusCode,
    pub(super) is_cbor: bool,
}

/// A fault of a complete response that does not depend on the contents of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// The body cannot be decoded.
    Unreadable,
    /// The server does not understand a request in CBOR.
    Refused,
}

impl Exchange {
    pub(super) fn new(request: Option<Vec<u8>>, memory: &ResponseMemory) -> Self {
        let (request, memory) = (request.map(Bytes::from), memory.clone());
        Self { request, memory, seen: Arc::default() }
    }

    /// Takes the body of a successful response. Returns `None` if the SDK has read it.
    pub(super) fn take_body(&self) -> Option<(Head, SdkBody)> {
        let mut seen = self.seen.lock();
        Some((seen.head?, seen.body.take()?))
    }

    /// Notes a fault of the response.
    pub(super) fn note(&self, fault: Fault) {
        self.seen.lock().fault = Some(fault);
    }

    /// Returns true if a response that the SDK has decoded lacks the member `Records`.
    pub(super) fn lacks_records(&self) -> bool {
        self.seen.lock().lacks_records
    }

    /// Returns what was seen of the response.
    pub(super) fn take_seen(&self) -> Seen {
        std::mem::take(&mut *self.seen.lock())
    }

    fn is_foreign_protocol(&self) -> bool {
        self.seen.lock().is_foreign_protocol == Some(true)
    }
}

impl Intercept for Exchange {
    fn name(&self) -> &'static str {
        "Exchange"
    }

    fn modify_before_signing(
        &self,
        context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let request = context.request_mut();
        let is_json = request.headers().get("content-type") == Some(JSON);
        self.seen.lock().is_foreign_protocol = Some(!is_json);
        if let Some(body) = self.request.as_ref().filter(|_| is_json) {
            request.headers_mut().insert("content-type", CBOR);
            request.headers_mut().insert("content-length", body.len().to_string());
            *request.body_mut() = SdkBody::from(body.clone());
        }
        Ok(())
    }

    fn modify_before_deserialization(
        &self,
        context: &mut BeforeDeserializationInterceptorContextMut<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let response = context.response_mut();
        let kind = response.headers().get("content-type").unwrap_or_default();
        let is_cbor = kind.starts_with("application/x-amz-cbor-");
        let status = response.status();
        self.seen.lock().head = Some(Head { status, is_cbor });
        if status.is_success() && !self.is_foreign_protocol() {
            self.memory.begin(response.body());
            return Ok(());
        }
        self.memory.measure_parsed(response.body_mut())
    }

    fn read_before_deserialization(
        &self,
        _context: &BeforeDeserializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let seen = self.seen.lock();
        let is_ours = seen.head.is_some_and(|head| head.is_cbor || head.status.is_success());
        if is_ours && seen.is_foreign_protocol != Some(true) {
            let deserializer = SharedResponseDeserializer::new(self.clone());
            config.interceptor_state().store_put(deserializer);
        }
        Ok(())
    }

    fn read_after_deserialization(
        &self,
        context: &AfterDeserializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        // The SDK reads missing records as none. Other responses hold no text.
        if self.is_foreign_protocol()
            && context.output_or_error().is_ok()
            && let Some(text) = context.response().body().bytes()
        {
            self.seen.lock().lacks_records = !FieldScanner::of(text).records;
        }
        Ok(())
    }
}

impl DeserializeResponse for Exchange {
    fn deserialize_streaming_with_config(
        &self,
        response: &mut HttpResponse,
        _config: &ConfigBag,
    ) -> Option<Result<Output, OrchestratorError<Error>>> {
        if !response.status().is_success() {
            return None;
        }
        self.seen.lock().body = Some(response.take_body());
        // Stands for the response that the caller reads.
        let output = GetRecordsOutput::builder().set_records(Some(Vec::new())).build();
        Some(output.map(Output::erase).map_err(OrchestratorError::other))
    }

    fn deserialize_nonstreaming_with_config(
        &self,
        response: &HttpResponse,
        _config: &ConfigBag,
    ) -> Result<Output, OrchestratorError<Error>> {
        match error_of(response) {
            Ok(metadata) => {
                self.seen.lock().has_error = true;
                let code = metadata.code();
                if code.is_some_and(|code| REFUSALS.contains(&code)) {
                    self.note(Fault::Refused);
                }
                let is_unnamed = code.is_none();
                let error = GetRecordsError::generic(metadata);
                Err(if is_unnamed {
                    // As the SDK does with an error in JSON.
                    OrchestratorError::other(error)
                } else {
                    OrchestratorError::operation(Error::erase(error))
                })
            }
            Err(unreadable) => {
                self.note(Fault::Unreadable);
                Err(OrchestratorError::other(unreadable))
            }
        }
    }
}

/// Decodes a CBOR error. As in JSON, a code in the header precedes the one in the body.
fn error_of(response: &HttpResponse) -> Result<ErrorMetadata, BoxError> {
    let header = response.headers().get("x-amzn-errortype");
    let code = header.map(|code| code.split(':').next().unwrap_or_default());
    let code = code.map(|code| code.rsplit('#').next().unwrap_or_default().to_owned());
    let code = code.filter(|code| !code.is_empty());
    let body = match ErrorBody::from_cbor(response.body().bytes().unwrap_or_default()) {
        Ok(body) => body,
        Err(_) if code.is_some() => ErrorBody::default(),
        Err(unreadable) => return Err(unreadable.into()),
    };
    let mut metadata = ErrorMetadata::builder();
    if let Some(code) = code.or(body.code) {
        metadata = metadata.code(code);
    }
    if let Some(message) = body.message {
        metadata = metadata.message(message);
    }
    if let Some(id) = response.headers().get("x-amzn-requestid") {
        metadata = metadata.custom("aws_request_id", id);
    }
    Ok(metadata.build())
}

/// Writes a request in CBOR: a map without a length, as the SDK for Java does.
pub(super) fn write_request(iterator: &str, limit: u32, arn: Option<&str>) -> Vec<u8> {
    let mut request = Vec::with_capacity(64 + iterator.len() + arn.map_or(0, str::len));
    request.push(0xbf);
    write_text(&mut request, "ShardIterator");
    write_text(&mut request, iterator);
    write_text(&mut request, "Limit");
    write_head(&mut request, 0x00, limit);
    if let Some(arn) = arn {
        write_text(&mut request, "StreamARN");
        write_text(&mut request, arn);
    }
    request.push(0xff);
    request
}

fn write_text(request: &mut Vec<u8>, text: &str) {
    // No text of a request is near 4 GiB.
    write_head(request, 0x60, u32::try_from(text.len()).unwrap_or(u32::MAX));
    request.extend_from_slice(text.as_bytes());
}

/// Writes a major type with its argument, in the shortest form.
#[allow(clippy::cast_possible_truncation, reason = "in range")]
fn write_head(request: &mut Vec<u8>, major: u8, argument: u32) {
    match argument {
        0..=0x17 => request.push(major | argument as u8),
        0x18..=0xff => request.extend([major | 0x18, argument as u8]),
        0x100..=0xffff => {
            request.push(major | 0x19);
            request.extend((argument as u16).to_be_bytes());
        }
        _ => {
            request.push(major | 0x1a);
            request.extend(argument.to_be_bytes());
        }
    }
}
