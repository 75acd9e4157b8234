//! The wire format while the server or the calls change: outages, servers that are replaced, and
//! trials that bring no result.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use kinestream::testing::{Call, CborSupport, Kinesis, Outcome, Stream};
use kinestream::{ErrorKind, FallbackReason, MemoryStore, OnTrimmed};
use tokio::time::{Instant, sleep, timeout};

use super::wire_format::{COMPARED, MANY, assert_calls_are_allowed, fallbacks, put, read, reads};
use crate::{consumer, next, number, orders, read_first};

const SECOND: Duration = Duration::from_secs(1);
const HTML: &str = "<!doctype html>\n<h1>Bad Gateway</h1>\n";

/// The answer of a front end without a server behind it, as recorded of Amazon.
fn unavailable() -> Outcome {
    let body = r#"{"code":"ServiceUnavailable","message":"Service unavailable"}"#.to_owned();
    Outcome::Garbled { status: 503, body }
}

fn bad_gateway() -> Outcome {
    Outcome::Garbled { status: 502, body: HTML.to_owned() }
}

fn is_read(call: &Call) -> bool {
    call.operation == "GetRecords"
}

#[tokio::test(start_paused = true)]
async fn server_that_stops_to_speak_cbor_is_read_by_json() {
    let cases = [
        (CborSupport::None, FallbackReason::Unsupported),
        (CborSupport::Rejected, FallbackReason::Unsupported),
        (CborSupport::CutShort(16), FallbackReason::Unreadable),
    ];
    for (support, reason) in cases {
        for shards in [1, 8] {
            let (kinesis, orders) = orders(shards);
            put(&orders, 0..2 * MANY);
            let consumer = consumer(&kinesis).limit(50).build().unwrap();
            let (mut records, mut events) = (consumer.records(), consumer.events());
            read(&mut records, shards, 0..2 * MANY).await;
            assert!(reads(&kinesis).last().unwrap().is_cbor);
            kinesis.set_cbor(support);
            put(&orders, 200..400);
            let began = Instant::now();
            read(&mut records, shards, 200..400).await;
            assert!(began.elapsed() < 60 * SECOND, "{support:?}: {:?}", began.elapsed());
            assert_eq!(fallbacks(&mut events), [reason]);
            // JSON is kept when the server speaks CBOR again.
            let settled = reads(&kinesis).len();
            kinesis.set_cbor(CborSupport::Amazon);
            put(&orders, 400..410);
            read(&mut records, shards, 400..410).await;
            assert!(reads(&kinesis)[settled..].iter().all(|call| !call.is_cbor));
            assert_eq!(fallbacks(&mut events), []);
            assert_calls_are_allowed(&kinesis);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn failures_of_the_front_end_now_and_then_keep_cbor() {
    for failure in [unavailable(), bad_gateway()] {
        for (shards, every) in [(1, 5), (1, 2), (8, 3)] {
            let (kinesis, orders) = orders(shards);
            put(&orders, 0..MANY);
            let consumer = consumer(&kinesis).limit(20).build().unwrap();
            let (mut records, mut events) = (consumer.records(), consumer.events());
            read(&mut records, shards, 0..MANY).await;
            let (mut counts, failure) = (HashMap::new(), failure.clone());
            kinesis.on_call(move |call| {
                let count = counts.entry(call.shard_id.clone()).or_insert(0);
                *count += usize::from(is_read(call));
                if is_read(call) && *count % every == 0 { failure.clone() } else { Outcome::Served }
            });
            let checked = reads(&kinesis).len();
            put(&orders, 100..200);
            read(&mut records, shards, 100..200).await;
            put(&orders, 200..300);
            read(&mut records, shards, 200..300).await;
            let later = &reads(&kinesis)[checked..];
            assert!(later.iter().any(|call| call.status != Some(200)));
            assert!(later.iter().all(|call| call.is_cbor), "{later:?}");
            assert_eq!(fallbacks(&mut events), []);
            assert_calls_are_allowed(&kinesis);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn shard_whose_calls_in_cbor_alone_fail_is_read_by_json() {
    for failure in [unavailable(), bad_gateway(), Outcome::Lost] {
        let (kinesis, orders) = orders(4);
        put(&orders, 0..MANY);
        let consumer = consumer(&kinesis).limit(20).build().unwrap();
        let (mut records, mut events) = (consumer.records(), consumer.events());
        read(&mut records, 4, 0..MANY).await;
        let failing = orders.shard(0).id().clone();
        kinesis.on_call(move |call| {
            let fails = is_read(call) && call.is_cbor && call.shard_id.as_ref() == Some(&failing);
            if fails { failure.clone() } else { Outcome::Served }
        });
        put(&orders, 100..200);
        read(&mut records, 4, 100..200).await;
        assert_eq!(fallbacks(&mut events), []);
        assert_calls_are_allowed(&kinesis);
    }
}

/// Both formats fail during an outage of the whole server, however long it lasts.
#[tokio::test(start_paused = true)]
async fn outage_keeps_cbor() {
    for failure in [unavailable(), bad_gateway(), Outcome::Refused, Outcome::Hangs, Outcome::Lost] {
        let (kinesis, orders) = orders(4);
        put(&orders, 0..MANY);
        let consumer = consumer(&kinesis).build().unwrap();
        let (mut records, mut events) = (consumer.records(), consumer.events());
        read(&mut records, 4, 0..MANY).await;
        kinesis.on_call(move |_| failure.clone());
        put(&orders, 100..200);
        let is_over = Instant::now() + 600 * SECOND;
        while let Ok(read) = tokio::time::timeout_at(is_over, records.next()).await {
            assert!(read.unwrap().is_err(), "expected no record during the outage");
        }
        kinesis.on_call(|_| Outcome::Served);
        let restored = reads(&kinesis).len();
        let mut read = Vec::new();
        while read.len() < 400 {
            let record = timeout(600 * SECOND, records.next()).await;
            // Errors of the outage may still be reported.
            if let Ok(record) = record.expect("expected a record after the outage").unwrap() {
                read.push(number(&record));
            }
        }
        read.sort_unstable();
        assert!(read.into_iter().eq((100..200).flat_map(|number| [number; 4])));
        assert!(reads(&kinesis)[restored..].iter().all(|call| call.is_cbor));
        assert_eq!(fallbacks(&mut events), []);
    }
}

/// Before the first answer in CBOR, a server whose front end fails cannot be told from one that does
/// not speak CBOR.
#[tokio::test(start_paused = true)]
async fn outage_at_the_start_does_not_settle_the_format() {
    for failure in [unavailable(), bad_gateway(), Outcome::Refused, Outcome::Hangs] {
        let (kinesis, orders) = orders(2);
        put(&orders, 0..2 * MANY);
        let until = Instant::now() + 20 * SECOND;
        let (mut is_over, mut last_by_cbor) = (false, HashSet::new());
        kinesis.on_call(move |call| {
            if !is_read(call) {
                return Outcome::Served;
            }
            // The outage does not end between a call by CBOR and its repetition by JSON.
            let is_repeated = last_by_cbor.remove(&call.shard_id) && !call.is_cbor;
            is_over |= call.at >= until && !is_repeated;
            if call.is_cbor {
                last_by_cbor.insert(call.shard_id.clone());
            }
            if is_over { Outcome::Served } else { failure.clone() }
        });
        let consumer = consumer(&kinesis).limit(20).build().unwrap();
        let (mut records, mut events) = (consumer.records(), consumer.events());
        read(&mut records, 2, 0..2 * MANY).await;
        assert!(reads(&kinesis).last().unwrap().is_cbor);
        assert_eq!(fallbacks(&mut events), []);
        assert_calls_are_allowed(&kinesis);
    }
}

#[tokio::test(start_paused = true)]
async fn server_that_begins_to_speak_cbor_is_still_read_by_json() {
    for support in [CborSupport::None, CborSupport::Rejected, CborSupport::Altered] {
        let (kinesis, orders) = orders(2);
        kinesis.set_cbor(support);
        put(&orders, 0..MANY);
        let first = consumer(&kinesis).build().unwrap();
        let mut records = first.records();
        read(&mut records, 2, 0..MANY).await;
        let settled = reads(&kinesis).len();
        kinesis.set_cbor(CborSupport::Amazon);
        put(&orders, 100..110);
        read(&mut records, 2, 100..110).await;
        assert!(reads(&kinesis)[settled..].iter().all(|call| !call.is_cbor));
        // The next consumer tries CBOR again.
        let second = consumer(&kinesis).build().unwrap();
        read(&mut second.records(), 2, 0..110).await;
        assert!(reads(&kinesis).last().unwrap().is_cbor);
    }
}

/// The trial ends with the stream of its shard, while it waits for either of its two responses.
#[tokio::test(start_paused = true)]
async fn dropped_stream_gives_the_trial_to_another_shard() {
    for hangs_by_cbor in [true, false] {
        let (kinesis, orders) = orders(2);
        put(&orders, 0..10);
        let mut trial = None;
        kinesis.on_call(move |call| {
            if !is_read(call) {
                return Outcome::Served;
            }
            if call.is_cbor && trial.is_none() {
                trial.clone_from(&call.shard_id);
            }
            let hangs = call.shard_id == trial && call.is_cbor == hangs_by_cbor;
            if hangs { Outcome::Hangs } else { Outcome::Served }
        });
        let consumer = consumer(&kinesis).build().unwrap();
        let mut events = consumer.events();
        let shards: Vec<_> = consumer.shards().take(2).try_collect().await.unwrap();
        let (mut trying, mut others) = (None, Vec::new());
        for mut shard in shards {
            let first = timeout(5 * SECOND, shard.next()).await;
            match first {
                Ok(record) => {
                    assert_eq!(number(&record.unwrap().unwrap()), 0);
                    others.push(shard);
                }
                Err(_) => trying = Some(shard),
            }
        }
        let mut other = others.pop().expect("expected that one shard is read during the trial");
        for expected in 1..10 {
            assert_eq!(number(&other.next().await.unwrap().unwrap()), expected);
        }
        let of_other = |from: usize| {
            let mut calls = reads(&kinesis).split_off(from);
            calls.retain(|call| call.shard_id.as_ref() == Some(other.shard_id()));
            calls
        };
        assert!(of_other(0).iter().all(|call| !call.is_cbor), "expected one trial at a time");
        drop(trying);
        let dropped = reads(&kinesis).len();
        let id = other.shard_id().clone();
        let shard = orders.shards().into_iter().find(|shard| shard.id() == id).unwrap();
        for payload in [10, 11] {
            shard.put(payload.to_string());
            let record = timeout(10 * SECOND, other.next()).await.unwrap().unwrap().unwrap();
            assert_eq!(number(&record), payload);
        }
        let later = reads(&kinesis).split_off(dropped);
        assert!(later.iter().any(|call| call.is_cbor && call.records == 1), "{later:?}");
        assert!(later.last().unwrap().is_cbor, "{later:?}");
        assert_eq!(fallbacks(&mut events), []);
    }
}

#[tokio::test(start_paused = true)]
async fn throttled_comparison_delivers_nothing_and_is_tried_again() {
    let failures = [
        Outcome::throttled(),
        Outcome::failed(500, "InternalFailure", "no"),
        unavailable(),
        Outcome::Cut,
        Outcome::Lost,
    ];
    for failure in failures {
        for times in [1, 3] {
            let (kinesis, orders) = orders(1);
            put(&orders, 0..2 * MANY);
            let (mut is_comparison, mut left, failure) = (false, times, failure.clone());
            kinesis.on_call(move |call| {
                if !is_read(call) {
                    return Outcome::Served;
                }
                let is_compared = std::mem::replace(&mut is_comparison, call.is_cbor);
                if is_compared && !call.is_cbor && left > 0 {
                    left -= 1;
                    return failure.clone();
                }
                Outcome::Served
            });
            let consumer = consumer(&kinesis).limit(10).build().unwrap();
            let (mut records, mut events) = (consumer.records(), consumer.events());
            read(&mut records, 1, 0..2 * MANY).await;
            assert!(reads(&kinesis).last().unwrap().is_cbor, "{times} failures");
            assert_eq!(fallbacks(&mut events), []);
            assert_calls_are_allowed(&kinesis);
        }
    }
}

/// A shard that has no throughput left for any comparison is still read.
#[tokio::test(start_paused = true)]
async fn trials_without_result_leave_the_calls_to_reading() {
    let (kinesis, orders) = orders(1);
    put(&orders, 0..20 * MANY);
    let mut is_comparison = false;
    kinesis.on_call(move |call| {
        let is_compared = std::mem::replace(&mut is_comparison, call.is_cbor);
        if is_read(call) && is_compared { Outcome::throttled() } else { Outcome::Served }
    });
    let consumer = consumer(&kinesis).limit(10).build().unwrap();
    let (mut records, mut events) = (consumer.records(), consumer.events());
    read(&mut records, 1, 0..20 * MANY).await;
    let trials = reads(&kinesis).iter().filter(|call| call.is_cbor).count();
    assert!((5..12).contains(&trials), "{trials} trials in 200 responses");
    assert_eq!(fallbacks(&mut events), []);
}

/// Trims the first records of a shard as soon as the response by CBOR has arrived.
async fn trim_during_comparison(kinesis: &Kinesis, orders: &Stream, trimmed: usize) {
    let is_answered = |call: &Call| call.is_cbor && call.status.is_some() && call.records > 1;
    while !reads(kinesis).iter().any(is_answered) {
        sleep(Duration::from_millis(1)).await;
    }
    assert!(reads(kinesis).last().unwrap().is_cbor, "expected no response to the comparison yet");
    orders.shard(0).trim(trimmed);
}

#[tokio::test(start_paused = true)]
async fn records_that_are_trimmed_during_the_comparison_are_no_difference() {
    for trimmed in [1, 5, COMPARED - 1, COMPARED, 150, 300] {
        let (kinesis, orders) = orders(1);
        put(&orders, 0..300);
        let consumer = consumer(&kinesis).build().unwrap();
        let (mut records, mut events) = (consumer.records(), consumer.events());
        let reading = async {
            if trimmed < 300 {
                read(&mut records, 1, trimmed..300).await;
            } else {
                crate::assert_silent(&mut records).await;
            }
        };
        tokio::join!(reading, trim_during_comparison(&kinesis, &orders, trimmed));
        put(&orders, 300..400);
        read(&mut records, 1, 300..400).await;
        put(&orders, 400..410);
        read(&mut records, 1, 400..410).await;
        assert!(reads(&kinesis).last().unwrap().is_cbor);
        assert_eq!(fallbacks(&mut events), [], "{trimmed}");
        assert_calls_are_allowed(&kinesis);
    }
}

/// Records that leave retention during the comparison were not delivered, so their loss is reported.
#[tokio::test(start_paused = true)]
async fn records_that_are_trimmed_during_the_comparison_are_a_reported_loss() {
    for policy in [OnTrimmed::Fail, OnTrimmed::TrimHorizon] {
        let (kinesis, orders) = orders(1);
        let store = MemoryStore::new();
        let (first, records) = read_first(&kinesis, &orders, &store).await;
        drop(records);
        first.close().await.unwrap();
        put(&orders, 1..200);
        let builder = consumer(&kinesis).store(store).on_trimmed(policy);
        let consumer = builder.build().unwrap();
        let first_call = reads(&kinesis).len();
        let mut records = consumer.records();
        let trimming = async {
            while reads(&kinesis).len() == first_call {
                sleep(Duration::from_millis(1)).await;
            }
            assert!(reads(&kinesis)[first_call].is_cbor);
            orders.shard(0).trim(50);
        };
        if policy == OnTrimmed::Fail {
            let (read, ()) = tokio::join!(records.next(), trimming);
            assert_eq!(read.unwrap().unwrap_err().kind(), ErrorKind::Trimmed);
        } else {
            let (record, ()) = tokio::join!(next(&mut records), trimming);
            assert_eq!(number(&record), 50);
            read(&mut records, 1, 51..200).await;
        }
    }
}
