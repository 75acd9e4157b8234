//! A server that answers as scripted, over the SDK's HTTP interface.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::config::http::{HttpRequest, HttpResponse};
use aws_sdk_kinesis::config::{BehaviorVersion, Builder, Config, Credentials, Region};
use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn,
};
use aws_smithy_types::body::SdkBody;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::super::exchange::CBOR;
use crate::mutex::Mutex;

/// A server with these answers, in order.
#[derive(Debug, Clone, Default)]
pub(super) struct Server(pub(super) Arc<Mutex<Script>>);

#[derive(Debug, Default)]
pub(super) struct Script {
    pub(super) answers: VecDeque<Answer>,
    /// Makes the answers after these. Its argument is true for a request in CBOR.
    pub(super) by_format: Option<fn(bool) -> Answer>,
    /// The content type, the stated length and the body of each request.
    pub(super) requests: Vec<(String, String, Vec<u8>)>,
    /// The `Authorization` header of each request.
    pub(super) signed: Vec<String>,
}

#[derive(Debug)]
pub(super) struct Answer {
    status: u16,
    content_type: &'static str,
    body: SdkBody,
}

impl Server {
    pub(super) fn new(answers: impl IntoIterator<Item = Answer>) -> Self {
        let answers = answers.into_iter().collect();
        Self(Arc::new(Mutex::new(Script { answers, ..Script::default() })))
    }

    pub(super) fn config(&self) -> Builder {
        let connector = SharedHttpConnector::new(self.clone());
        Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("eu-west-1"))
            .credentials_provider(Credentials::new("test", "test", None, None, "test"))
            .http_client(http_client_fn(move |_settings, _components| connector.clone()))
    }

    pub(super) fn client(&self) -> Client {
        Client::from_conf(self.config().build())
    }

    /// Returns the formats of the requests so far.
    pub(super) fn formats(&self) -> Vec<&'static str> {
        let name = |kind: &str| if kind == CBOR { "cbor" } else { "json" };
        self.0.lock().requests.iter().map(|(kind, ..)| name(kind)).collect()
    }
}

impl HttpConnector for Server {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let header = |name: &str| request.headers().get(name).unwrap_or_default().to_owned();
        let mut script = self.0.lock();
        let body = request.body().bytes().unwrap_or_default().to_vec();
        script.requests.push((header("content-type"), header("content-length"), body));
        script.signed.push(header("authorization"));
        let by_format = script.by_format.map(|answer| answer(header("content-type") == CBOR));
        let answer = script.answers.pop_front().or(by_format);
        drop(script);
        let Some(answer) = answer else {
            return HttpConnectorFuture::new(std::future::pending());
        };
        let mut response = HttpResponse::new(answer.status.try_into().unwrap(), answer.body);
        response.headers_mut().insert("content-type", answer.content_type);
        HttpConnectorFuture::ready(Ok(response))
    }
}

/// A body in frames, with the length that it states.
struct Frames(VecDeque<Bytes>, Option<u64>);

impl Body for Frames {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Poll::Ready(self.0.pop_front().map(|data| Ok(Frame::data(data))))
    }

    fn size_hint(&self) -> SizeHint {
        self.1.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// A body that never arrives.
pub(super) struct Silence;

impl Body for Silence {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Poll::Pending
    }
}

/// A body whose connection is lost.
struct Loss;

impl Body for Loss {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Poll::Ready(Some(Err(std::io::ErrorKind::ConnectionReset.into())))
    }
}

pub(super) fn broken() -> SdkBody {
    SdkBody::from_body_1_x(Loss)
}

pub(super) fn answer(status: u16, content_type: &'static str, body: impl Into<SdkBody>) -> Answer {
    Answer { status, content_type, body: body.into() }
}

pub(super) fn in_frames(body: &[u8], length: Option<usize>) -> SdkBody {
    let frames = body.chunks(7).map(Bytes::copy_from_slice).collect();
    SdkBody::from_body_1_x(Frames(frames, length.map(|length| length as u64)))
}

/// Returns a JSON response with records of these sequence numbers.
/// The arrival time of the records in milliseconds.
const ARRIVAL: u64 = 1_767_225_600_125;

pub(super) fn json(numbers: impl IntoIterator<Item = u32>) -> String {
    let record = |number: u32| {
        format!(
            r#"{{"SequenceNumber":"{number}","PartitionKey":"key-{number}","Data":"aGVsbG8=",
            "ApproximateArrivalTimestamp":1767225600.125,"EncryptionType":"KMS"}}"#
        )
    };
    let records: Vec<_> = numbers.into_iter().map(record).collect();
    format!(
        r#"{{"Records":[{}],"NextShardIterator":"next","MillisBehindLatest":5}}"#,
        records.join(",")
    )
}

fn text(body: &mut Vec<u8>, text: &str) {
    body.extend([0x78, u8::try_from(text.len()).unwrap()]);
    body.extend(text.as_bytes());
}

/// Returns the same response in CBOR, with this payload.
pub(super) fn cbor_with(numbers: impl IntoIterator<Item = u32>, payload: [u8; 5]) -> Vec<u8> {
    let mut body = vec![0xbf];
    text(&mut body, "Records");
    body.push(0x9f);
    for number in numbers {
        body.push(0xbf);
        text(&mut body, "SequenceNumber");
        text(&mut body, &number.to_string());
        text(&mut body, "PartitionKey");
        text(&mut body, &format!("key-{number}"));
        text(&mut body, "Data");
        body.push(0x45);
        body.extend(payload);
        text(&mut body, "ApproximateArrivalTimestamp");
        body.extend([0xc1, 0x1b]);
        body.extend(ARRIVAL.to_be_bytes());
        text(&mut body, "EncryptionType");
        text(&mut body, "KMS");
        body.push(0xff);
    }
    body.push(0xff);
    text(&mut body, "NextShardIterator");
    text(&mut body, "next");
    text(&mut body, "MillisBehindLatest");
    body.extend([0x05, 0xff]);
    body
}

pub(super) fn cbor(numbers: impl IntoIterator<Item = u32>) -> Vec<u8> {
    cbor_with(numbers, *b"hello")
}

/// Returns the same response in CBOR, with the arrival times cut to the second.
pub(super) fn cbor_at_second(numbers: impl IntoIterator<Item = u32>) -> Vec<u8> {
    let (mut body, time) = (cbor(numbers), ARRIVAL.to_be_bytes());
    while let Some(at) = body.windows(time.len()).position(|bytes| *bytes == time) {
        body[at..at + time.len()].copy_from_slice(&(ARRIVAL - ARRIVAL % 1_000).to_be_bytes());
    }
    body
}

/// Returns the same response in CBOR under another name of this member.
pub(super) fn cbor_without(numbers: impl IntoIterator<Item = u32>, member: &str) -> Vec<u8> {
    let mut body = cbor(numbers);
    let at = body.windows(member.len()).position(|name| name == member.as_bytes()).unwrap();
    body[at] = b'X';
    body
}

fn error_body(content_type: &str, code: &str, message: &str) -> Vec<u8> {
    if content_type != CBOR {
        return format!(r#"{{"__type":"{code}","message":"{message}"}}"#).into_bytes();
    }
    let mut body = vec![0xbf];
    for part in ["__type", code, "message", message] {
        text(&mut body, part);
    }
    body.push(0xff);
    body
}

pub(super) fn failed(status: u16, content_type: &'static str, code: &str) -> Answer {
    answer(status, content_type, error_body(content_type, code, "no"))
}
