//! Responses whose bodies are cut, mislabelled or hold unexpected members, by both formats.

use std::sync::Arc;

use futures::StreamExt;
use futures::future::join_all;
use kinestream::{MemoryStore, WireFormat};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::server::{CBOR, JSON, Length, Reply, Server};
use crate::{FIRST, PATIENCE, consumer};

/// The records of each stream, which take four responses.
const RECORDS: usize = 12;
const LIMIT: u32 = 3;

by_both_formats! {
    body_cut_at_any_byte_is_fetched_again,
    body_that_cannot_be_decoded_is_fetched_again,
    wrong_content_length_of_any_answer_is_fetched_again,
    wrong_content_type_loses_nothing,
    repeated_unknown_absent_or_null_members_lose_nothing,
    absurd_numbers_lose_nothing,
}

/// Alters a response to `GetRecords`.
type Lie = Arc<dyn Fn(&mut Reply<'_>) + Send + Sync>;

fn lie(alter: impl Fn(&mut Reply<'_>) + Send + Sync + 'static) -> Lie {
    Arc::new(alter)
}

/// Returns a lie that alters the value of a response.
fn lie_of_value(alter: impl Fn(&mut Value) + Send + Sync + 'static) -> Lie {
    lie(move |reply| alter(&mut reply.value))
}

/// Reads a stream for each lie and each choice of the answers that are altered, all at the same
/// time. Each record must be delivered once.
///
/// A consumer compares answers 0 and 1 if it reads by CBOR.
async fn read_despite(format: WireFormat, lies: Vec<(String, Lie)>, altered: &[&[usize]]) {
    let server = Server::start(format).await;
    let (mut names, mut cases) = (Vec::new(), Vec::new());
    for (name, lie) in lies {
        for altered in altered {
            let stream = cases.len().to_string();
            server.create(&stream, 1, FIRST);
            server.put_all(&stream, 0..RECORDS, |_| 0);
            names.push(format!("{name}, in answers {altered:?}"));
            cases.push((Arc::clone(&lie), altered.to_vec(), 0));
        }
    }
    server.replies(move |reply| {
        let token = reply.request["ShardIterator"].as_str().unwrap();
        let stream: usize = token.split('|').next().unwrap().parse().unwrap();
        let (lie, altered, answer) = &mut cases[stream];
        if altered.contains(answer) {
            lie(reply);
        }
        *answer += 1;
    });
    let server = &server;
    let reading = names.iter().enumerate().map(|(stream, name)| async move {
        let problem = read_once(server, &stream.to_string()).await.err()?;
        Some(format!("{name}: {problem}"))
    });
    let problems: Vec<String> = join_all(reading).await.into_iter().flatten().collect();
    assert!(
        problems.is_empty(),
        "expected each record once and in order:\n{}",
        problems.join("\n")
    );
}

/// Reads all records of a stream. Fails if one is lost, repeated or out of order.
async fn read_once(server: &Server, stream: &str) -> Result<(), String> {
    let consumer = consumer(server, stream, &MemoryStore::new()).limit(LIMIT).build().unwrap();
    let mut records = consumer.records();
    for expected in 0..RECORDS {
        let record = timeout(PATIENCE, records.next()).await;
        let record = record.map_err(|_| format!("record {expected} does not arrive"))?;
        let record = record.unwrap().map_err(|error| error.to_string())?;
        if record.data() != expected.to_string().as_bytes() {
            let data = String::from_utf8_lossy(record.data());
            return Err(format!("record {data:?} arrives instead of {expected}"));
        }
    }
    let by_cbor = server.formats(stream)[0] > 0;
    if by_cbor != (server.format() == WireFormat::Auto) {
        return Err(format!("calls by CBOR: {by_cbor}"));
    }
    Ok(())
}

/// The answers of the comparison, and answers after it.
const EACH: [&[usize]; 4] = [&[0], &[1], &[2], &[3, 4]];

async fn body_cut_at_any_byte_is_fetched_again(format: WireFormat) {
    // A body has some 400 bytes.
    let lies = (0..400).step_by(7).map(|length| {
        let cut = lie(move |reply| {
            reply.body = Some(|body, length| body.truncate(length.min(body.len() - 1)));
            reply.argument = length;
        });
        (format!("cut at {length}"), cut)
    });
    read_despite(format, lies.collect(), &[&[0, 2], &[1, 3]]).await;
}

async fn body_that_cannot_be_decoded_is_fetched_again(format: WireFormat) {
    const DEPTH: usize = 100_000;
    type Change = fn(&mut Vec<u8>, usize);
    let bodies: [(&str, Change); 14] = [
        ("nothing", |body, _| body.clear()),
        ("null in JSON", |body, _| *body = b"null".to_vec()),
        ("null in CBOR", |body, _| *body = b"\xf6".to_vec()),
        ("a list in JSON", |body, _| *body = b"[]".to_vec()),
        ("a list in CBOR", |body, _| *body = b"\x80".to_vec()),
        ("more than a map", |body, _| body.push(0x00)),
        ("zeros", |body, _| body.fill(0x00)),
        ("ones", |body, _| body.fill(0xff)),
        ("lists in a list in JSON", |body, _| {
            *body = [b"{\"A\":".to_vec(), vec![b'['; DEPTH]].concat();
        }),
        ("lists in a list in CBOR", |body, _| {
            *body = [b"\xbf\x61A".to_vec(), vec![0x9f; DEPTH]].concat();
        }),
        ("tags of a tag", |body, _| *body = [b"\xbf\x61A".to_vec(), vec![0xc1; DEPTH]].concat()),
        ("a list that claims 2^64 records", |body, _| {
            *body = b"\xbf\x67Records\x9b\xff\xff\xff\xff\xff\xff\xff\xff\xa0".to_vec();
        }),
        ("a payload that claims 2^63 bytes", |body, _| {
            *body = b"\xbf\x67Records\x81\xa1\x64Data\x5b\x7f\xff\xff\xff\xff\xff\xff\xff".to_vec();
        }),
        ("a text that is not UTF-8", |body, _| {
            let place = body.windows(3).position(|text| text == b"key").unwrap();
            body[place] = 0xc3;
        }),
    ];
    let lies = bodies
        .into_iter()
        .map(|(name, alter)| (name.to_owned(), lie(move |reply| reply.body = Some(alter))));
    read_despite(format, lies.collect(), &EACH).await;
}

async fn wrong_content_length_of_any_answer_is_fetched_again(format: WireFormat) {
    let lengths = [0.0, 0.1, 0.5, 0.99, 1.01, 2.0, 1e6].map(Length::Times);
    let lengths = lengths.into_iter().chain([Length::Largest, Length::Unknown]);
    let lies =
        lengths.map(|length| (format!("{length:?}"), lie(move |reply| reply.length = length)));
    read_despite(format, lies.collect(), &EACH).await;
}

/// The label of a response decides who reads it, and a wrong one is no reason to lose a record.
async fn wrong_content_type_loses_nothing(format: WireFormat) {
    const TYPES: [Option<&str>; 9] = [
        None,
        Some(JSON),
        Some(CBOR),
        Some("application/x-amz-cbor-1.1; charset=utf-8"),
        Some("Application/X-Amz-Cbor-1.1"),
        Some("application/cbor"),
        Some("application/octet-stream"),
        Some("text/html"),
        Some(""),
    ];
    let lies = TYPES.map(|content_type| {
        (format!("{content_type:?}"), lie(move |reply| reply.content_type = content_type))
    });
    read_despite(format, lies.into(), &EACH).await;
}

fn records(answer: &mut Value) -> impl Iterator<Item = &mut Value> {
    answer["Records"].as_array_mut().unwrap().iter_mut()
}

/// Sets a member of the response, or of each of its records. A member `!X` is written as `X`, before
/// the true one.
fn set(name: &'static str, value: Value, is_of_record: bool) -> (String, Lie) {
    let text = format!("{name} of {} is {value}", if is_of_record { "records" } else { "answers" });
    let alter = move |answer: &mut Value| {
        if is_of_record {
            records(answer).for_each(|record| record[name] = value.clone());
        } else {
            answer[name] = value.clone();
        }
    };
    (text, lie_of_value(alter))
}

/// Removes a member of the response, or of each of its records.
fn remove(name: &'static str, is_of_record: bool) -> (String, Lie) {
    let text = format!("no {name} of {}", if is_of_record { "records" } else { "answers" });
    let alter = move |answer: &mut Value| {
        let without = |map: &mut Value| drop(map.as_object_mut().unwrap().remove(name));
        if is_of_record {
            records(answer).for_each(without);
        } else {
            without(answer);
        }
    };
    (text, lie_of_value(alter))
}

async fn repeated_unknown_absent_or_null_members_lose_nothing(format: WireFormat) {
    let nested = json!({ "A": [1, -1, 1.5, null, true, "Records", { "Records": [{}] }], "B": {} });
    let lies = vec![
        // The last of repeated members counts.
        set("!Records", json!([]), false),
        set("!Records", json!(null), false),
        set("!Records", json!([{ "Data": "AAAA", "SequenceNumber": "1" }]), false),
        set("!NextShardIterator", json!("nonsense"), false),
        set("!MillisBehindLatest", json!(7), false),
        set("!Data", json!("AAAA"), true),
        set("!Data", json!(null), true),
        set("!SequenceNumber", json!("1"), true),
        set("!PartitionKey", json!("other"), true),
        set("Another", nested.clone(), false),
        set("Another", nested, true),
        set("Records", json!(null), false),
        set("NextShardIterator", json!(null), false),
        set("MillisBehindLatest", json!(null), false),
        set("ChildShards", json!(null), false),
        set("ChildShards", json!([]), false),
        set("ChildShards", json!([null, {}, { "ShardId": null, "ParentShards": null }]), false),
        set("PartitionKey", json!(null), true),
        set("ApproximateArrivalTimestamp", json!(null), true),
        set("EncryptionType", json!(null), true),
        set("EncryptionType", json!("KMS"), true),
        set("EncryptionType", json!("OTHER"), true),
        set("SequenceNumber", json!(null), true),
        set("SequenceNumber", json!(""), true),
        set("SequenceNumber", json!("nonsense"), true),
        set("SequenceNumber", json!("-1"), true),
        remove("Records", false),
        remove("NextShardIterator", false),
        remove("MillisBehindLatest", false),
        remove("PartitionKey", true),
        remove("ApproximateArrivalTimestamp", true),
        remove("SequenceNumber", true),
        // Wrong types.
        set("Records", json!({}), false),
        set("Records", json!("text"), false),
        set("Records", json!([7]), false),
        set("NextShardIterator", json!(7), false),
        set("MillisBehindLatest", json!("text"), false),
        set("ChildShards", json!("text"), false),
        set("Data", json!(7), true),
        set("Data", json!("not base64!"), true),
        set("PartitionKey", json!(["key"]), true),
        set("SequenceNumber", json!(7), true),
        set("ApproximateArrivalTimestamp", json!("text"), true),
    ];
    read_despite(format, lies, &[&[0, 1], &[1], &[2, 3]]).await;
}

async fn absurd_numbers_lose_nothing(format: WireFormat) {
    let numbers = [
        json!(-1),
        json!(i64::MIN),
        json!(i64::MAX),
        json!(u64::MAX),
        json!(0),
        json!(-0.0),
        json!(1.5),
        json!(1e308),
        json!(-1e308),
        json!(5e-324),
    ];
    let lies = numbers.into_iter().flat_map(|number| {
        [
            set("MillisBehindLatest", number.clone(), false),
            set("ApproximateArrivalTimestamp", number, true),
        ]
    });
    read_despite(format, lies.collect(), &[&[0, 1], &[2, 3]]).await;
}
