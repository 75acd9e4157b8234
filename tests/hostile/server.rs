//! A Kinesis server over HTTP for these tests. It shares no code with the crate's own model of
//! Kinesis, so that the two do not share a mistake.
//!
//! A stream is a list of shards with records. The server computes the correct response to each
//! call. A rule may then replace it by another well-formed one.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::config::{BehaviorVersion, Config, Credentials, Region};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::stream;
use kinestream::WireFormat;
use serde_json::{Value, json};

use crate::cbor;

/// A call and its correct response.
pub(crate) struct Call<'a> {
    pub(crate) operation: &'a str,
    pub(crate) request: &'a Value,
    pub(crate) truth: Result<Value, Refusal>,
    /// The time since the start of the server.
    pub(crate) age: Duration,
}

/// The code and the message of an error.
pub(crate) type Refusal = (&'static str, String);

/// The declared length of a `GetRecords` response.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Length {
    /// The true length.
    True,
    /// No Content-Length, but a chunked body.
    Unknown,
    /// The true length times this factor.
    Times(f64),
    /// A length beyond any memory size.
    Largest,
}

type Rule = Box<dyn FnMut(&mut Call<'_>) + Send>;

/// A response to `GetRecords`, before it is encoded.
pub(crate) struct Reply<'a> {
    pub(crate) request: &'a Value,
    pub(crate) value: Value,
    pub(crate) content_type: Option<&'static str>,
    /// Alters the encoded body.
    pub(crate) body: Option<fn(&mut Vec<u8>, usize)>,
    /// The argument of `body`.
    pub(crate) argument: usize,
    pub(crate) length: Length,
}

type Replies = Box<dyn FnMut(&mut Reply<'_>) + Send>;

pub(crate) const JSON: &str = "application/x-amz-json-1.1";
pub(crate) const CBOR: &str = "application/x-amz-cbor-1.1";

/// The chunk size of a response in bytes.
const CHUNK: usize = 4096;

/// The highest hash key.
const LAST_KEY: u128 = u128::MAX;

#[derive(Debug, Clone)]
pub(crate) struct Shard {
    pub(crate) start: u128,
    pub(crate) end: Option<u128>,
    pub(crate) parents: Vec<usize>,
    pub(crate) keys: (u128, u128),
    /// The put time and payload of each record, by sequence number.
    pub(crate) records: BTreeMap<u128, (SystemTime, String)>,
    /// Records with lower sequence numbers are trimmed.
    pub(crate) trimmed: u128,
}

#[derive(Default)]
struct Contents {
    streams: BTreeMap<String, Vec<Shard>>,
    /// The operation and the request of each call, and whether it was made by CBOR.
    calls: Vec<(String, Value, bool)>,
    rule: Option<Rule>,
    replies: Option<Replies>,
}

/// Returns a client for this port.
pub(crate) fn client_at(port: u16) -> Client {
    let http = aws_smithy_http_client::Builder::new().build_http();
    let config = Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .endpoint_url(format!("http://127.0.0.1:{port}"))
        .region(Region::new("eu-west-1"))
        .credentials_provider(Credentials::new("local", "local", None, None, "local"))
        .http_client(http)
        .build();
    Client::from_conf(config)
}

/// A running server.
#[derive(Clone)]
pub(crate) struct Server {
    contents: Arc<Mutex<Contents>>,
    started: Instant,
    port: u16,
    format: WireFormat,
}

impl Server {
    /// Starts a server that speaks JSON and CBOR, for consumers of this format.
    pub(crate) async fn start(format: WireFormat) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = Self { contents: Arc::default(), started: Instant::now(), port, format };
        let app = Router::new().fallback(answer).with_state(server.clone());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        server
    }

    pub(crate) fn format(&self) -> WireFormat {
        self.format
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn client(&self) -> Client {
        client_at(self.port)
    }

    /// Creates a stream with this number of open shards. Its sequence numbers begin at `start`.
    pub(crate) fn create(&self, stream: &str, shards: usize, start: u128) {
        let width = LAST_KEY / shards as u128;
        let shard = |index: usize| Shard {
            start: start + index as u128,
            end: None,
            parents: Vec::new(),
            keys: (
                width * index as u128 + u128::from(index > 0),
                if index + 1 == shards { LAST_KEY } else { width * (index as u128 + 1) },
            ),
            records: BTreeMap::new(),
            trimmed: 0,
        };
        self.lock().streams.insert(stream.to_owned(), (0..shards).map(shard).collect());
    }

    /// Appends a record to a shard, and returns its sequence number.
    pub(crate) fn put(&self, stream: &str, shard: usize, payload: usize) -> u128 {
        let mut contents = self.lock();
        let shard = &mut contents.streams.get_mut(stream).unwrap()[shard];
        let last = shard.records.last_key_value().map_or(shard.start, |(last, _)| *last);
        let number = last + 10;
        shard.records.insert(number, (SystemTime::now(), payload.to_string()));
        number
    }

    /// Puts each of these payloads into the shard that `shard` returns for it.
    pub(crate) fn put_all(
        &self,
        stream: &str,
        payloads: Range<usize>,
        shard: impl Fn(usize) -> usize,
    ) {
        for payload in payloads {
            self.put(stream, shard(payload), payload);
        }
    }

    /// Splits a shard into two children.
    pub(crate) fn split(&self, stream: &str, index: usize) {
        let mut contents = self.lock();
        let shards = contents.streams.get_mut(stream).unwrap();
        let parent = &mut shards[index];
        let last = parent.records.last_key_value().map_or(parent.start, |(last, _)| *last);
        parent.end = Some(last + 5);
        let (first_key, last_key) = parent.keys;
        let middle = first_key + (last_key - first_key) / 2;
        for keys in [(first_key, middle), (middle + 1, last_key)] {
            shards.push(Shard {
                start: last + 6,
                end: None,
                parents: vec![index],
                keys,
                records: BTreeMap::new(),
                trimmed: 0,
            });
        }
    }

    /// Trims the records of a shard below this sequence number.
    pub(crate) fn trim(&self, stream: &str, shard: usize, below: u128) {
        let mut contents = self.lock();
        let shard = &mut contents.streams.get_mut(stream).unwrap()[shard];
        shard.trimmed = below;
        shard.records.retain(|number, _| *number >= below);
    }

    /// Applies `rule` to all later responses.
    pub(crate) fn rule(&self, rule: impl FnMut(&mut Call<'_>) + Send + 'static) {
        self.lock().rule = Some(Box::new(rule));
    }

    /// Declares the lengths of all later `GetRecords` responses as `lengths` returns.
    pub(crate) fn lengths(&self, mut lengths: impl FnMut() -> Length + Send + 'static) {
        self.replies(move |reply| reply.length = lengths());
    }

    /// Applies `alter` to all later successful `GetRecords` responses.
    pub(crate) fn replies(&self, alter: impl FnMut(&mut Reply<'_>) + Send + 'static) {
        self.lock().replies = Some(Box::new(alter));
    }

    /// Returns the number of calls by CBOR and by JSON for records of a stream.
    pub(crate) fn formats(&self, stream: &str) -> [usize; 2] {
        let contents = self.lock();
        let calls = contents.calls.iter().filter(|(_, request, _)| {
            request["ShardIterator"]
                .as_str()
                .is_some_and(|token| token.split('|').next() == Some(stream))
        });
        let by_cbor: Vec<bool> = calls.map(|(.., is_cbor)| *is_cbor).collect();
        [true, false].map(|format| by_cbor.iter().filter(|is_cbor| **is_cbor == format).count())
    }

    /// Removes the rule, so that all later responses are correct.
    pub(crate) fn be_honest(&self) {
        self.lock().rule = None;
    }

    pub(crate) fn count(&self, operation: &str) -> usize {
        self.lock().calls.iter().filter(|(called, ..)| called == operation).count()
    }

    fn lock(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn answer(State(server): State<Server>, headers: HeaderMap, body: Bytes) -> Response {
    let target = headers.get("x-amz-target").and_then(|target| target.to_str().ok());
    let operation = target.and_then(|target| target.split('.').next_back()).unwrap_or_default();
    let is_cbor = headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind == CBOR);
    assert!(!is_cbor || operation == "GetRecords", "expected only GetRecords by CBOR");
    let request: Value = if is_cbor {
        cbor::decode(&body)
    } else {
        serde_json::from_slice(&body).unwrap_or_default()
    };
    let mut contents = server.lock();
    contents.calls.push((operation.to_owned(), request.clone(), is_cbor));
    let truth = contents.serve(operation, &request);
    let mut call = Call { operation, request: &request, truth, age: server.started.elapsed() };
    if let Some(mut rule) = contents.rule.take() {
        rule(&mut call);
        contents.rule.get_or_insert(rule);
    }
    let is_success = call.truth.is_ok();
    let value = match call.truth {
        Ok(value) => value,
        Err((code, message)) => json!({ "__type": code, "message": message }),
    };
    let mut reply = Reply {
        request: &request,
        value,
        content_type: Some(if is_cbor { CBOR } else { JSON }),
        body: None,
        argument: 0,
        length: Length::True,
    };
    if let Some(alter) =
        contents.replies.as_mut().filter(|_| is_success && operation == "GetRecords")
    {
        alter(&mut reply);
    }
    let mut body = if is_cbor {
        cbor::encode(&reply.value)
    } else {
        reply.value.to_string().replace(&format!("\"{}", cbor::AGAIN), "\"").into_bytes()
    };
    if let Some(alter) = reply.body {
        alter(&mut body, reply.argument);
    }
    let mut response = declared(body.into(), reply.length);
    if !is_success {
        *response.status_mut() = StatusCode::BAD_REQUEST;
    }
    if let Some(content_type) = reply.content_type {
        let content_type = HeaderValue::from_static(content_type);
        response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    }
    response
}

/// Returns a response with this body and declared length.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
fn declared(body: Bytes, length: Length) -> Response {
    let declared = match length {
        Length::True => return Body::from(body).into_response(),
        Length::Unknown => None,
        Length::Times(times) => Some((body.len() as f64 * times) as u64),
        Length::Largest => Some(u64::MAX / 2),
    };
    let chunks = (0..body.len())
        .step_by(CHUNK)
        .map(move |begin| Ok::<_, Infallible>(body.slice(begin..body.len().min(begin + CHUNK))));
    let mut response = Body::from_stream(stream::iter(chunks)).into_response();
    if let Some(length) = declared {
        response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    }
    response
}

fn name_of(index: usize) -> String {
    format!("shardId-{index:012}")
}

fn millis(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

impl Contents {
    fn stream(&self, request: &Value) -> Result<(String, &Vec<Shard>), Refusal> {
        // A stream created by its ARN is separate from the stream of the same name.
        let name = request["StreamARN"].as_str().or_else(|| request["StreamName"].as_str());
        let name = name.ok_or_else(|| invalid("no stream is named"))?;
        let stream = self.streams.get(name);
        Ok((name.to_owned(), stream.ok_or_else(|| missing(name))?))
    }

    fn serve(&self, operation: &str, request: &Value) -> Result<Value, Refusal> {
        match operation {
            "ListShards" => self.list(request),
            "GetShardIterator" => self.iterator(request),
            "GetRecords" => self.records(request),
            "DescribeStreamSummary" => {
                let (name, shards) = self.stream(request)?;
                Ok(json!({ "StreamDescriptionSummary": {
                    "StreamName": name,
                    "StreamARN": format!("arn:aws:kinesis:eu-west-1:123456789012:stream/{name}"),
                    "StreamStatus": "ACTIVE",
                    "RetentionPeriodHours": 24,
                    "StreamCreationTimestamp": 0,
                    "EnhancedMonitoring": [],
                    "OpenShardCount": shards.len(),
                } }))
            }
            _ => Err(("UnknownOperationException", operation.to_owned())),
        }
    }

    fn list(&self, request: &Value) -> Result<Value, Refusal> {
        let shards = self.stream(request)?.1;
        // All shards of these streams were open recently, so a filter by timestamp omits none.
        let describe = |(index, shard): (usize, &Shard)| {
            let mut described = json!({
                "ShardId": name_of(index),
                "HashKeyRange": {
                    "StartingHashKey": shard.keys.0.to_string(),
                    "EndingHashKey": shard.keys.1.to_string(),
                },
                "SequenceNumberRange": { "StartingSequenceNumber": shard.start.to_string() },
            });
            if let Some(end) = shard.end {
                described["SequenceNumberRange"]["EndingSequenceNumber"] = json!(end.to_string());
            }
            if let Some(parent) = shard.parents.first() {
                described["ParentShardId"] = json!(name_of(*parent));
            }
            described
        };
        Ok(json!({ "Shards": shards.iter().enumerate().map(describe).collect::<Vec<_>>() }))
    }

    fn iterator(&self, request: &Value) -> Result<Value, Refusal> {
        let (stream, shards) = self.stream(request)?;
        let name = request["ShardId"].as_str().unwrap_or_default();
        let index = name.rsplit('-').next().and_then(|index| index.parse::<usize>().ok());
        let index = index.filter(|index| *index < shards.len()).ok_or_else(|| missing(name))?;
        let shard = &shards[index];
        let number = || -> Result<u128, Refusal> {
            let number = request["StartingSequenceNumber"].as_str().unwrap_or_default();
            let number = number.parse().map_err(|_| invalid("StartingSequenceNumber"))?;
            if number < shard.start {
                return Err(invalid("StartingSequenceNumber is of another shard"));
            }
            Ok(number)
        };
        let from = match request["ShardIteratorType"].as_str().unwrap_or_default() {
            "TRIM_HORIZON" => 0,
            "LATEST" => shard.records.last_key_value().map_or(0, |(last, _)| last + 1),
            "AT_TIMESTAMP" => {
                let time = request["Timestamp"].as_f64().unwrap_or_default();
                let found = shard.records.iter().find(|(_, (at, _))| millis(*at) >= time);
                let behind = || shard.records.last_key_value().map_or(0, |(last, _)| last + 1);
                found.map_or_else(behind, |(number, _)| *number)
            }
            "AT_SEQUENCE_NUMBER" => number()?,
            "AFTER_SEQUENCE_NUMBER" => number()? + 1,
            other => return Err(invalid(other)),
        };
        Ok(json!({ "ShardIterator": format!("{stream}|{index}|{from}") }))
    }

    fn records(&self, request: &Value) -> Result<Value, Refusal> {
        let token = request["ShardIterator"].as_str().unwrap_or_default();
        let mut parts = token.split('|');
        let stream = parts.next().unwrap_or_default();
        let mut number = || parts.next().and_then(|part| part.parse::<u128>().ok());
        let (Some(index), Some(from)) = (number(), number()) else {
            return Err(invalid("ShardIterator"));
        };
        let shards = self.streams.get(stream).ok_or_else(|| missing(stream))?;
        let index = usize::try_from(index).unwrap();
        let shard = shards.get(index).ok_or_else(|| missing(token))?;
        let limit = request["Limit"].as_u64().and_then(|limit| usize::try_from(limit).ok());
        let mut next = from;
        let mut found = Vec::new();
        for (number, (at, payload)) in shard.records.range(from..).take(limit.unwrap_or(10_000)) {
            next = number + 1;
            found.push(json!({
                "SequenceNumber": number.to_string(),
                "ApproximateArrivalTimestamp": millis(*at),
                "Data": aws_smithy_types::base64::encode(payload),
                "PartitionKey": "key",
            }));
        }
        let left = shard.records.range(next..).next();
        let behind = left.map_or(Duration::ZERO, |(_, (at, _))| at.elapsed().unwrap_or_default());
        let behind = u64::try_from(behind.as_millis()).unwrap_or(u64::MAX);
        let mut answer = json!({ "Records": found, "MillisBehindLatest": behind });
        if shard.end.is_some() && left.is_none() {
            let children = shards.iter().enumerate().filter(|(_, it)| it.parents.contains(&index));
            let children = children.map(|(child, it)| {
                json!({
                    "ShardId": name_of(child),
                    "ParentShards": it.parents.iter().map(|it| name_of(*it)).collect::<Vec<_>>(),
                    "HashKeyRange": {
                        "StartingHashKey": it.keys.0.to_string(),
                        "EndingHashKey": it.keys.1.to_string(),
                    },
                })
            });
            answer["ChildShards"] = children.collect();
        } else {
            answer["NextShardIterator"] = json!(format!("{stream}|{index}|{next}"));
        }
        Ok(answer)
    }
}

pub(crate) fn invalid(what: &str) -> Refusal {
    ("InvalidArgumentException", format!("{what} is invalid"))
}

pub(crate) fn missing(what: &str) -> Refusal {
    ("ResourceNotFoundException", format!("{what} not found"))
}
