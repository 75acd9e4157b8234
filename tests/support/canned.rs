//! Answers of a Kinesis that are made beforehand, so that what a call costs is its client's.
//!
//! A stream is made by being asked for. Its name says what is in it:
//! `canned-<shards>-<bytes a record>-<answers>-<anything>`. That many answers, as large as Kinesis
//! gives them, are shared by its shards; after them there is nothing new.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use serde_json::{Value, json};

/// The most that one answer of Kinesis holds.
const MOST_RECORDS: usize = 10_000;
const MOST_BYTES: usize = 10 << 20;

/// As long as those of Kinesis.
const SEQUENCE_NUMBER: u128 = 495_903_382_714_902_566_085_596_925_383;
const ITERATOR_LENGTH: usize = 224;

/// What a canned stream holds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Contents {
    pub(crate) shards: usize,
    pub(crate) record_bytes: usize,
    pub(crate) answers: usize,
}

impl Contents {
    pub(crate) fn stream(self, unique: u32) -> String {
        format!("canned-{}-{}-{}-{unique}", self.shards, self.record_bytes, self.answers)
    }

    fn of(stream: &str) -> Self {
        let mut numbers = stream.split('-').skip(1).map(|number| number.parse().unwrap());
        let mut next = || numbers.next().expect("a canned stream");
        Self { shards: next(), record_bytes: next(), answers: next() }
    }

    pub(crate) fn records_an_answer(self) -> usize {
        (MOST_BYTES / (self.record_bytes + key(0).len())).min(MOST_RECORDS)
    }

    pub(crate) fn records(self) -> usize {
        self.answers * self.records_an_answer()
    }
}

/// All streams that were asked for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Canned(Arc<Mutex<HashMap<String, Stream>>>);

#[derive(Debug)]
struct Stream {
    contents: Contents,
    full: Bytes,
    empty: Bytes,
    left: usize,
}

impl Canned {
    /// The body of the answer to a call.
    pub(crate) fn answer(&self, operation: &str, body: &[u8]) -> Bytes {
        let asked: Value = serde_json::from_slice(body).expect("the client sends JSON");
        let name = asked["StreamName"].as_str().or(asked["ShardIterator"].as_str()).unwrap();
        let name = name.trim_end_matches('=');
        let mut streams = self.0.lock().unwrap();
        let stream = streams.entry(name.to_owned()).or_insert_with(|| Stream::new(name));
        match operation {
            "ListShards" => stream.list(),
            "GetShardIterator" => json!({ "ShardIterator": iterator(name) }).to_string().into(),
            "GetRecords" if stream.left == 0 => stream.empty.clone(),
            "GetRecords" => {
                stream.left -= 1;
                stream.full.clone()
            }
            _ => panic!("{operation} is not canned"),
        }
    }
}

impl Stream {
    fn new(name: &str) -> Self {
        let contents = Contents::of(name);
        Self {
            contents,
            full: answer(name, contents.records_an_answer(), contents.record_bytes),
            empty: answer(name, 0, 0),
            left: contents.answers,
        }
    }

    fn list(&self) -> Bytes {
        let shard = |number: usize| {
            json!({
                "ShardId": format!("shardId-{number:012}"),
                "HashKeyRange": { "StartingHashKey": "0", "EndingHashKey": "1" },
                "SequenceNumberRange": { "StartingSequenceNumber": "1" },
            })
        };
        let shards: Vec<Value> = (0..self.contents.shards).map(shard).collect();
        json!({ "Shards": shards }).to_string().into()
    }
}

fn iterator(stream: &str) -> String {
    format!("{stream:=<ITERATOR_LENGTH$}")
}

fn key(record: usize) -> String {
    format!("customer-{:04}", record % 1000)
}

fn answer(stream: &str, records: usize, bytes: usize) -> Bytes {
    // Base64 of zeros; its length is what makes its bytes.
    let mut data = "A".repeat(bytes.div_ceil(3) * 4);
    let padding = (3 - bytes % 3) % 3;
    data.replace_range(data.len() - padding.min(data.len()).., &"=".repeat(padding));
    let behind = if records == 0 { 0 } else { 60_000 };
    let mut text = format!(
        r#"{{"NextShardIterator":"{}","MillisBehindLatest":{behind},"Records":["#,
        iterator(stream)
    );
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
