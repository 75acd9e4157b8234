//! Prepared responses of Kinesis, so that the measured cost of a call is that of its client.
//!
//! The first call that names a stream creates it. The name describes the content:
//! `canned-<shards>-<bytes per record>-<records>-<answers>-<anything>`. The shards share this number
//! of full responses, each with this number of records, or as many as fit into a response of
//! Kinesis. After them, all responses are empty.
//!
//! Each iterator has a number. A repeated call with the same iterator returns the same response.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::fmt::Write;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use serde_json::{Value, json};

/// The limits of one response of `GetRecords`.
#[allow(dead_code, reason = "not every program that includes this file uses it")]
pub(crate) const MAX_RECORDS: usize = 10_000;
const MAX_BYTES: usize = 10 << 20;

/// Values as long as those of Kinesis.
const SEQUENCE_NUMBER: u128 = 495_903_382_714_902_566_085_596_925_383;
const ITERATOR_LENGTH: usize = 224;

/// The content of a canned stream, as encoded in its name.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Contents {
    pub(crate) shards: usize,
    pub(crate) record_bytes: usize,
    /// The most records of a response.
    pub(crate) max_records: usize,
    pub(crate) answers: usize,
}

impl Contents {
    pub(crate) fn stream(self, unique: u32) -> String {
        let Self { shards, record_bytes, max_records, answers } = self;
        format!("canned-{shards}-{record_bytes}-{max_records}-{answers}-{unique}")
    }

    fn of(stream: &str) -> Self {
        let mut numbers = stream.split('-').skip(1).map(|number| number.parse().unwrap());
        let mut next =
            || numbers.next().expect("expected a stream name of the form canned-1-100-1000-10-0");
        Self { shards: next(), record_bytes: next(), max_records: next(), answers: next() }
    }

    pub(crate) fn records_an_answer(self) -> usize {
        (MAX_BYTES / (self.record_bytes + key(0).len())).min(self.max_records)
    }

    pub(crate) fn records(self) -> usize {
        self.answers * self.records_an_answer()
    }
}

/// All streams that a call has named.
#[derive(Debug, Clone, Default)]
pub(crate) struct Canned(Arc<Mutex<HashMap<String, Stream>>>);

#[derive(Debug)]
struct Stream {
    contents: Contents,
    full: Bytes,
    empty: Bytes,
    left: usize,
    iterators: u64,
    /// The iterators that return a full response.
    given: HashSet<u64>,
}

impl Canned {
    /// Returns the response to a call.
    pub(crate) fn answer(&self, operation: &str, body: &[u8]) -> Answer {
        let request: Value = serde_json::from_slice(body).expect("expected a JSON request");
        let iterator = request["ShardIterator"].as_str().map(numbered);
        let name = request["StreamName"].as_str().or(iterator.map(|(name, _)| name)).unwrap();
        let mut streams = self.0.lock().unwrap();
        let stream = streams.entry(name.to_owned()).or_insert_with(|| Stream::new(name));
        stream.iterators += 1;
        let next = format!("{:=<ITERATOR_LENGTH$}", format!("{name}#{}", stream.iterators));
        let (head, rest) = match operation {
            "ListShards" => (stream.list(), Bytes::new()),
            "GetShardIterator" => (json!({ "ShardIterator": next }).to_string(), Bytes::new()),
            "GetRecords" => {
                (format!(r#"{{"NextShardIterator":"{next}","#), stream.rest(iterator.unwrap().1))
            }
            _ => panic!("no prepared response for {operation}"),
        };
        Answer([head.into(), rest])
    }
}

/// A response body: the part made for the call, and the prepared part.
#[derive(Debug)]
pub(crate) struct Answer([Bytes; 2]);

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = self.0.iter_mut().find(|part| !part.is_empty());
        Poll::Ready(next.map(|part| Ok(Frame::data(std::mem::take(part)))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.iter().map(|part| part.len() as u64).sum())
    }
}

impl Stream {
    fn new(name: &str) -> Self {
        let contents = Contents::of(name);
        Self {
            contents,
            full: records(contents.records_an_answer(), contents.record_bytes),
            empty: records(0, 0),
            left: contents.answers,
            iterators: 0,
            given: HashSet::new(),
        }
    }

    fn rest(&mut self, iterator: u64) -> Bytes {
        if self.left > 0 && self.given.insert(iterator) {
            self.left -= 1;
        }
        if self.given.contains(&iterator) { self.full.clone() } else { self.empty.clone() }
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

fn records(records: usize, bytes: usize) -> Bytes {
    // Base64 of zeros; the padding sets the exact number of bytes.
    let mut data = "A".repeat(bytes.div_ceil(3) * 4);
    let padding = (3 - bytes % 3) % 3;
    data.replace_range(data.len() - padding.min(data.len()).., &"=".repeat(padding));
    let behind = if records == 0 { 0 } else { 60_000 };
    let mut text = format!(r#""MillisBehindLatest":{behind},"Records":["#);
    for record in 0..records {
        let comma = if record == 0 { "" } else { "," };
        let number = SEQUENCE_NUMBER + record as u128;
        let (key, seconds) = (key(record), 1_767_225_600 + record / 1000);
        let _ = write!(
            text,
            r#"{comma}{{"SequenceNumber":"{number}40286938361538357109","PartitionKey":"{key}","#
        );
        let _ = write!(
            text,
            r#""ApproximateArrivalTimestamp":{seconds}.{:03},"Data":"{data}"}}"#,
            record % 1000
        );
    }
    text.push_str("]}");
    text.into()
}
