//! Prepared responses of Kinesis in JSON and CBOR, so that the measured cost of a call is that of its
//! client.
//!
//! The first call that names a stream creates it. The name describes the content:
//! `canned-<shards>-<bytes per record>-<records>-<answers>-<anything>`. The shards share this number
//! of full responses, each with this number of records, or as many as fit into a response of
//! Kinesis. After them, all responses are empty. The records of a stream `packed-…` are user records:
//! up to a thousand are packed into one record of Kinesis.
//!
//! Each iterator has a number. A repeated call with the same iterator returns the same response. A
//! call for at most [`FEW_RECORDS`] records returns that number in addition to the full responses:
//! the consumer compares CBOR with JSON by such calls. Other limits are ignored.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::fmt::Write;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use aws_smithy_types::base64;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use kinestream::testing::aggregate;
use serde_json::{Value, json};

/// The limits of one response of `GetRecords`.
#[allow(dead_code, reason = "not every program that includes this file uses it")]
pub(crate) const MAX_RECORDS: usize = 10_000;
const MAX_BYTES: usize = 10 << 20;

/// The highest limit that is not ignored.
const FEW_RECORDS: usize = 100;

/// The user records of one packed record.
const PACKED_RECORDS: usize = 1000;

/// Values as long as those of Kinesis.
const SEQUENCE_NUMBER: u128 = 495_903_382_714_902_566_085_596_925_383;
const SEQUENCE_NUMBER_END: &str = "40286938361538357109";
const ITERATOR_LENGTH: usize = 224;

const JSON: &str = "application/x-amz-json-1.1";
pub(crate) const CBOR: &str = "application/x-amz-cbor-1.1";

/// The content of a canned stream, as encoded in its name.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Contents {
    pub(crate) shards: usize,
    pub(crate) record_bytes: usize,
    /// The most records of a response.
    pub(crate) max_records: usize,
    pub(crate) answers: usize,
    /// True if these are user records of aggregated records.
    pub(crate) is_packed: bool,
}

impl Contents {
    pub(crate) fn stream(self, unique: u32) -> String {
        let Self { shards, record_bytes, max_records, answers, is_packed } = self;
        let kind = if is_packed { "packed" } else { "canned" };
        format!("{kind}-{shards}-{record_bytes}-{max_records}-{answers}-{unique}")
    }

    fn of(stream: &str) -> Self {
        let is_packed = stream.starts_with("packed-");
        let mut numbers = stream.split('-').skip(1).map(|number| number.parse().unwrap());
        let mut next =
            || numbers.next().expect("expected a stream name of the form canned-1-100-1000-10-0");
        Self {
            shards: next(),
            record_bytes: next(),
            max_records: next(),
            answers: next(),
            is_packed,
        }
    }

    pub(crate) fn records_an_answer(self) -> usize {
        (MAX_BYTES / (self.record_bytes + key(0).len())).min(self.max_records)
    }

    pub(crate) fn records(self) -> usize {
        self.answers * self.records_an_answer()
    }

    /// Returns the responses with this number of records.
    fn prepare(self, records: usize) -> Prepared {
        let payload = vec![0; self.record_bytes];
        if !self.is_packed {
            return Prepared::of((0..records).map(|record| (key(record), &payload[..])));
        }
        let firsts = (0..records).step_by(PACKED_RECORDS);
        let packed: Vec<(String, Vec<u8>)> = firsts
            .map(|first| {
                let users = first..records.min(first + PACKED_RECORDS);
                (key(first), aggregate(users.map(|user| (key(user), &payload[..]))))
            })
            .collect();
        Prepared::of(packed.iter().map(|(key, payload)| (key.clone(), &payload[..])))
    }

    /// Returns the length of a full response per record.
    #[allow(dead_code, reason = "not every program that includes this file uses it")]
    #[allow(clippy::cast_precision_loss)]
    pub(crate) fn response_bytes_a_record(self, is_cbor: bool) -> f64 {
        let records = self.records_an_answer();
        self.prepare(records).rest(is_cbor).len() as f64 / records as f64
    }
}

/// All streams that a call has named.
#[derive(Debug, Clone, Default)]
pub(crate) struct Canned(Arc<Mutex<HashMap<String, Stream>>>);

#[derive(Debug)]
struct Stream {
    contents: Contents,
    full: Prepared,
    few: Prepared,
    empty: Prepared,
    left: usize,
    iterators: u64,
    /// The iterators that return a full response.
    given: HashSet<u64>,
}

/// The members of a call that decide the response.
struct Request {
    stream: Option<String>,
    iterator: Option<String>,
    limit: usize,
}

impl Request {
    fn of_json(body: &[u8]) -> Self {
        let body: Value = serde_json::from_slice(body).expect("expected a JSON request");
        let text = |name: &str| body[name].as_str().map(str::to_owned);
        let limit = body["Limit"].as_u64().map_or(usize::MAX, |limit| limit.try_into().unwrap());
        Self { stream: text("StreamName"), iterator: text("ShardIterator"), limit }
    }

    /// Reads the members of a `GetRecords` call by their names.
    fn of_cbor(body: &[u8]) -> Self {
        let iterator = cbor_member(body, b"\x6dShardIterator")
            .map(|(length, text)| String::from_utf8(text[..length].to_vec()).unwrap());
        assert!(iterator.is_some(), "expected a GetRecords request");
        let limit = cbor_member(body, b"\x65Limit").map_or(usize::MAX, |(limit, _)| limit);
        Self { stream: None, iterator, limit }
    }
}

/// Returns the argument of the item after this name, and the bytes that follow.
fn cbor_member<'a>(body: &'a [u8], name: &[u8]) -> Option<(usize, &'a [u8])> {
    let start = body.windows(name.len()).position(|bytes| bytes == name)? + name.len();
    let (head, rest) = body[start..].split_first()?;
    let argument = head & 0x1f;
    if argument < 24 {
        return Some((argument.into(), rest));
    }
    let (number, rest) = rest.split_at(1 << (argument - 24));
    Some((number.iter().fold(0, |number, byte| number << 8 | usize::from(*byte)), rest))
}

impl Canned {
    /// Returns the response to a call with these headers.
    pub(crate) fn answer(&self, target: &str, content_type: &str, body: &[u8]) -> Answer {
        let operation = target.rsplit('.').next().unwrap();
        let is_cbor = content_type == CBOR;
        assert!(!is_cbor || operation == "GetRecords", "no prepared response in CBOR");
        let request = if is_cbor { Request::of_cbor(body) } else { Request::of_json(body) };
        let iterator = request.iterator.as_deref().map(numbered);
        let name = request.stream.as_deref().or(iterator.map(|(name, _)| name)).unwrap();
        let mut streams = self.0.lock().unwrap();
        let stream = streams.entry(name.to_owned()).or_insert_with(|| Stream::new(name));
        stream.iterators += 1;
        let next = format!("{:=<ITERATOR_LENGTH$}", format!("{name}#{}", stream.iterators));
        let (head, rest) = match operation {
            "ListShards" => (stream.list(), Bytes::new()),
            "GetShardIterator" => (json!({ "ShardIterator": next }).to_string(), Bytes::new()),
            "GetRecords" => {
                let rest = stream.prepared(iterator.unwrap().1, request.limit).rest(is_cbor);
                if is_cbor {
                    return Answer::new(cbor::head(&next), rest, CBOR);
                }
                (format!(r#"{{"NextShardIterator":"{next}","#), rest)
            }
            _ => panic!("no prepared response for {operation}"),
        };
        Answer::new(head.into_bytes(), rest, JSON)
    }
}

/// A response body: the part made for the call, and the prepared part.
#[derive(Debug)]
pub(crate) struct Answer {
    parts: [Bytes; 2],
    pub(crate) content_type: &'static str,
}

impl Answer {
    fn new(head: Vec<u8>, rest: Bytes, content_type: &'static str) -> Self {
        Self { parts: [head.into(), rest], content_type }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = self.parts.iter_mut().find(|part| !part.is_empty());
        Poll::Ready(next.map(|part| Ok(Frame::data(std::mem::take(part)))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.parts.iter().map(|part| part.len() as u64).sum())
    }
}

impl Stream {
    fn new(name: &str) -> Self {
        let contents = Contents::of(name);
        let records = contents.records_an_answer();
        Self {
            contents,
            full: contents.prepare(records),
            few: contents.prepare(records.min(FEW_RECORDS)),
            empty: contents.prepare(0),
            left: contents.answers,
            iterators: 0,
            given: HashSet::new(),
        }
    }

    fn prepared(&mut self, iterator: u64, limit: usize) -> &Prepared {
        if self.left > 0 && limit <= FEW_RECORDS {
            return &self.few;
        }
        if self.left > 0 && self.given.insert(iterator) {
            self.left -= 1;
        }
        if self.given.contains(&iterator) { &self.full } else { &self.empty }
    }

    fn list(&self) -> String {
        let shard = |number: usize| {
            json!({
                "ShardId": format!("shardId-{number:012}"),
                "HashKeyRange": { "StartingHashKey": "0", "EndingHashKey": u128::MAX.to_string() },
                "SequenceNumberRange": { "StartingSequenceNumber": "1" },
            })
        };
        let shards: Vec<Value> = (0..self.contents.shards).map(shard).collect();
        json!({ "Shards": shards }).to_string()
    }
}

fn numbered(iterator: &str) -> (&str, u64) {
    let (name, number) = iterator
        .trim_end_matches('=')
        .split_once('#')
        .expect("expected an iterator of a canned stream");
    (name, number.parse().expect("expected an iterator number"))
}

fn key(record: usize) -> String {
    format!("customer-{:04}", record % 1000)
}

/// The part of a response after the next iterator, in both formats.
#[derive(Debug)]
struct Prepared {
    json: Bytes,
    cbor: Bytes,
}

impl Prepared {
    /// Prepares a response with these partition keys and payloads.
    fn of<'a>(records: impl Iterator<Item = (String, &'a [u8])> + Clone) -> Self {
        let behind = if records.clone().next().is_none() { 0 } else { 60_000 };
        let mut json = format!(r#""MillisBehindLatest":{behind},"Records":["#);
        let mut cbor = cbor::middle(behind);
        for (record, (key, payload)) in records.enumerate() {
            let number = format!("{}{SEQUENCE_NUMBER_END}", SEQUENCE_NUMBER + record as u128);
            let millis = 1_767_225_600_000 + record as u64;
            let (seconds, thousandths) = (millis / 1000, millis % 1000);
            let data = base64::encode(payload);
            let comma = if record == 0 { "" } else { "," };
            let _ = write!(
                json,
                r#"{comma}{{"SequenceNumber":"{number}","PartitionKey":"{key}","ApproximateArrivalTimestamp":{seconds}.{thousandths:03},"Data":"{data}"}}"#
            );
            cbor::record(&mut cbor, &number, &key, millis, payload);
        }
        json.push_str("]}");
        cbor.extend([cbor::BREAK, cbor::BREAK]);
        Self { json: json.into(), cbor: cbor.into() }
    }

    fn rest(&self, is_cbor: bool) -> Bytes {
        if is_cbor { self.cbor.clone() } else { self.json.clone() }
    }
}

/// CBOR as Kinesis writes it: maps and lists without a length, times in milliseconds with tag 1.
mod cbor {
    const MAP: u8 = 0xbf;
    const LIST: u8 = 0x9f;
    pub(super) const BREAK: u8 = 0xff;

    /// Major types.
    const INTEGER: u8 = 0x00;
    const BYTES: u8 = 0x40;
    const TEXT: u8 = 0x60;
    const TIME: u8 = 0xc1;

    /// Returns the begin of a response, up to its next iterator.
    pub(super) fn head(next_iterator: &str) -> Vec<u8> {
        let mut answer = vec![MAP];
        text(&mut answer, "NextShardIterator");
        text(&mut answer, next_iterator);
        answer
    }

    /// Returns the part between the next iterator and the records.
    pub(super) fn middle(millis_behind_latest: u64) -> Vec<u8> {
        let mut answer = Vec::new();
        text(&mut answer, "MillisBehindLatest");
        head_of(&mut answer, INTEGER, millis_behind_latest);
        text(&mut answer, "Records");
        answer.push(LIST);
        answer
    }

    pub(super) fn record(answer: &mut Vec<u8>, number: &str, key: &str, millis: u64, data: &[u8]) {
        answer.push(MAP);
        text(answer, "SequenceNumber");
        text(answer, number);
        text(answer, "PartitionKey");
        text(answer, key);
        text(answer, "ApproximateArrivalTimestamp");
        answer.push(TIME);
        head_of(answer, INTEGER, millis);
        text(answer, "Data");
        head_of(answer, BYTES, data.len() as u64);
        answer.extend_from_slice(data);
        answer.push(BREAK);
    }

    fn text(answer: &mut Vec<u8>, text: &str) {
        head_of(answer, TEXT, text.len() as u64);
        answer.extend_from_slice(text.as_bytes());
    }

    /// Writes a major type with its argument, in the shortest form.
    fn head_of(answer: &mut Vec<u8>, major: u8, argument: u64) {
        let bytes = argument.to_be_bytes();
        match argument {
            0..=0x17 => answer.push(major | bytes[7]),
            0x18..=0xff => answer.extend([major | 0x18, bytes[7]]),
            0x100..=0xffff => {
                answer.push(major | 0x19);
                answer.extend_from_slice(&bytes[6..]);
            }
            0x1_0000..=0xffff_ffff => {
                answer.push(major | 0x1a);
                answer.extend_from_slice(&bytes[4..]);
            }
            _ => {
                answer.push(major | 0x1b);
                answer.extend_from_slice(&bytes);
            }
        }
    }
}
