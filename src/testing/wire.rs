//! Serves the model over the SDK's HTTP interface: JSON or CBOR, no socket.
//!
//! A response is in flight until it is read, as with a socket.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use aws_sdk_kinesis::config::SharedHttpClient;
use aws_sdk_kinesis::config::http::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn,
};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::http::StatusCode;
use aws_smithy_types::DateTime;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::date_time::Format;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::answer::{Answer, EncodedAnswer, JSON, error_response};
use super::cbor::{self, is_cbor};
use super::contents::{id_of, index_of};
use super::model::ModelHandle;
use super::{Call, Outcome};

pub(super) fn http_client(kinesis: ModelHandle) -> SharedHttpClient {
    let connector = connector(kinesis);
    http_client_fn(move |_settings, _components| connector.clone())
}

pub(super) fn connector(kinesis: ModelHandle) -> SharedHttpConnector {
    SharedHttpConnector::new(Connector(kinesis))
}

#[derive(Debug, Clone)]
struct Connector(ModelHandle);

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        HttpConnectorFuture::new(InFlightCall::begin(&self.0, &request).run())
    }
}

/// The chunk size, in bytes, of a response of unknown length.
const CHUNK: usize = 16 * 1024;

/// The access key ID in the signature of a request (`AWS4-HMAC-SHA256 Credential=<key>/<date>/…`).
fn access_key_id(request: &HttpRequest) -> Option<String> {
    let (_, credential) = request.headers().get("authorization")?.split_once("Credential=")?;
    credential.split('/').next().map(str::to_owned)
}

/// A call that counts as in flight until its response is read or the caller drops it.
struct InFlightCall {
    kinesis: ModelHandle,
    index: usize,
    operation: String,
    is_cbor: bool,
    body: Value,
    /// The reason if the body is malformed CBOR.
    malformed: Option<String>,
    outcome: Outcome,
}

impl Drop for InFlightCall {
    fn drop(&mut self) {
        self.kinesis.lock().in_flight -= 1;
    }
}

impl InFlightCall {
    fn begin(kinesis: &ModelHandle, request: &HttpRequest) -> Self {
        let target = request.headers().get("x-amz-target").unwrap_or_default();
        let operation = target.rsplit('.').next().unwrap_or_default().to_owned();
        let is_cbor = request.headers().get("content-type").is_some_and(is_cbor);
        let body = request.body().bytes().unwrap_or_default();
        let (body, malformed) = if is_cbor {
            match cbor::decode(body) {
                Ok(body) => (body, None),
                Err(error) => (Value::Null, Some(error.to_string())),
            }
        } else {
            (serde_json::from_slice(body).unwrap_or_default(), None)
        };
        let call = Call {
            operation: operation.clone(),
            is_cbor,
            shard_id: shard_of(&body).and_then(|shard| id_of(shard).parse().ok()),
            access_key_id: access_key_id(request),
            at: Instant::now(),
            status: None,
            records: 0,
            bytes: 0,
            last: None,
        };
        let mut model = kinesis.lock();
        model.in_flight += 1;
        let outcome = model.decide(&call);
        model.calls.push(call);
        let index = model.calls.len() - 1;
        drop(model);
        Self { kinesis: kinesis.clone(), index, operation, is_cbor, body, malformed, outcome }
    }

    async fn run(self) -> Result<HttpResponse, ConnectorError> {
        // Like a socket, never respond at once.
        tokio::task::yield_now().await;
        let latency = self.kinesis.lock().next_latency();
        if !latency.is_zero() {
            sleep(latency).await;
        }
        if self.operation == "SubscribeToShard" && !self.is_cbor {
            match self.outcome {
                Outcome::Served | Outcome::Without(_) => return Ok(self.subscribe()),
                Outcome::Delayed(time) => {
                    let subscribed = self.subscribe();
                    sleep(time).await;
                    return Ok(subscribed);
                }
                Outcome::Lost => {
                    drop(self.subscribe());
                    return Err(ConnectorError::io("connection reset".into()));
                }
                Outcome::Cut => {
                    let index = self.index;
                    let kinesis = self.kinesis.clone();
                    let subscribed = self.subscribe();
                    kinesis.lock().cut(index);
                    return Ok(subscribed);
                }
                _ => {}
            }
        }
        let answer = match &self.outcome {
            Outcome::Served => self.serve(true, |answer| answer),
            Outcome::Without(fields) => self.serve(true, |answer| answer.without(fields)),
            Outcome::Failed { status, code, message } => {
                self.encode(error_response(*status, code, message))
            }
            Outcome::Garbled { status, body } => {
                EncodedAnswer { status: *status, body: body.clone().into(), content_type: JSON }
            }
            Outcome::Refused => return Err(ConnectorError::io("connection refused".into())),
            Outcome::Hangs => std::future::pending().await,
            Outcome::Delayed(time) => {
                let answer = self.serve(true, |answer| answer);
                sleep(*time).await;
                answer
            }
            Outcome::Lost => {
                self.serve(false, |answer| answer);
                return Err(ConnectorError::io("connection reset".into()));
            }
            Outcome::Cut => {
                let answer = self.serve(false, |answer| answer);
                let half = answer.body.len() / 2;
                return Ok(self.answer_part(answer, half));
            }
            Outcome::Mislisted(wrong) => {
                let now = self.kinesis.lock().now();
                self.serve(true, |answer| wrong.alter(answer, &stream_of(&self.body), now))
            }
        };
        Ok(self.answer(answer))
    }

    fn subscribe(self) -> HttpResponse {
        let fields = match &self.outcome {
            Outcome::Without(fields) => fields.clone(),
            _ => Vec::new(),
        };
        let subscribed = self.kinesis.lock().subscribe(self.index, &self.body, fields);
        match subscribed {
            Ok(subscription) => {
                let kinesis = self.kinesis.clone();
                kinesis.lock().calls[self.index].status = Some(200);
                let body = SdkBody::from_body_1_x(subscription.body(kinesis.clone(), self));
                response(&kinesis, 200, body, "application/vnd.amazon.eventstream")
            }
            Err(refused) => self.answer(refused.into_json()),
        }
    }

    /// Carries out the call and encodes the response, altered by `alter`.
    fn serve(&self, arrives: bool, alter: impl FnOnce(Answer) -> Answer) -> EncodedAnswer {
        let mut model = self.kinesis.lock();
        if self.is_cbor {
            if let Some(refusal) = model.refuse_cbor() {
                return refusal;
            }
            let refusal = match &self.malformed {
                Some(reason) => Some((400, "SerializationException", &reason[..])),
                None if self.operation == "SubscribeToShard" => {
                    Some((500, "InternalFailure", "SubscribeToShard is JSON only"))
                }
                None => None,
            };
            if let Some((status, code, message)) = refusal {
                drop(model);
                return self.encode(error_response(status, code, message));
            }
        }
        let answer = model.serve(self.index, &self.operation, &self.body, arrives);
        drop(model);
        self.encode(alter(answer))
    }

    /// Encodes a response in the format of the call.
    fn encode(&self, answer: Answer) -> EncodedAnswer {
        if !self.is_cbor {
            return answer.into_json();
        }
        let support = self.kinesis.lock().cbor();
        // An error has no records to lose.
        let has_records = answer.records.is_some();
        let mut encoded = support.encode(answer);
        if support.cut(&mut encoded) && has_records {
            self.kinesis.lock().lose(self.index, &self.body);
        }
        encoded
    }

    fn answer(self, answer: EncodedAnswer) -> HttpResponse {
        let length = answer.body.len();
        self.answer_part(answer, length)
    }

    /// Sends this many bytes of a response. If it has more, the connection is lost after them.
    fn answer_part(self, answer: EncodedAnswer, length: usize) -> HttpResponse {
        let EncodedAnswer { status, body: mut text, content_type } = answer;
        let lost = text.split_off(length).len();
        let kinesis = self.kinesis.clone();
        let is_chunked = kinesis.lock().is_chunked;
        let unread = ResponseBody { call: Some(self), status, text, lost, is_chunked };
        response(&kinesis, status, SdkBody::from_body_1_x(unread), content_type)
    }
}

fn response(
    kinesis: &ModelHandle,
    status: u16,
    body: SdkBody,
    content_type: &'static str,
) -> HttpResponse {
    let seconds = kinesis.lock().now() / 1000;
    let date = DateTime::from_secs(i64::try_from(seconds).unwrap_or_default());
    let date = date.fmt(Format::HttpDate).unwrap_or_default();
    let code = StatusCode::try_from(status)
        .unwrap_or_else(|error| panic!("invalid HTTP status in an outcome: {error}"));
    let mut response = HttpResponse::new(code, body);
    response.headers_mut().insert("date", date);
    response.headers_mut().insert("content-type", content_type);
    response
}

/// The body of a response. The call is in flight until the body is read to its end.
struct ResponseBody {
    call: Option<InFlightCall>,
    status: u16,
    text: Bytes,
    /// The number of bytes that are lost with the connection.
    lost: usize,
    /// True if the response has no `Content-Length`.
    is_chunked: bool,
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.call.is_none() {
            return Poll::Ready(None);
        }
        if self.text.is_empty() && self.lost > 0 {
            self.call = None;
            return Poll::Ready(Some(Err(io::ErrorKind::ConnectionReset.into())));
        }
        let length = if self.is_chunked { CHUNK.min(self.text.len()) } else { self.text.len() };
        let data = self.text.split_to(length);
        if self.text.is_empty()
            && self.lost == 0
            && let Some(call) = self.call.take()
        {
            call.kinesis.lock().calls[call.index].status = Some(self.status);
        }
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.call.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let length = (self.text.len() + self.lost) as u64;
        if self.is_chunked { SizeHint::default() } else { SizeHint::with_exact(length) }
    }
}

/// Returns the stream that a `ListShards` body names, directly or in a page token.
fn stream_of(body: &Value) -> String {
    let named = [&body["StreamName"], &body["StreamARN"]].into_iter().find_map(Value::as_str);
    let named = named.and_then(|name| name.rsplit('/').next());
    let paged = body["NextToken"].as_str().and_then(|token| token.split('/').next());
    named.or(paged).unwrap_or_default().to_owned()
}

/// Returns the shard that a call's body names, directly or in an iterator.
fn shard_of(body: &Value) -> Option<usize> {
    match (body["ShardIterator"].as_str(), body["ShardId"].as_str()) {
        (Some(iterator), _) => iterator.split('/').nth(1)?.parse().ok(),
        (None, Some(id)) => index_of(id),
        (None, None) => None,
    }
}
