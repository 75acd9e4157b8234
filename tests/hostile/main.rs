//! The consumer against a server that returns well-formed but wrong responses, over HTTP and in
//! real time.
//!
//! The server shares no code with `kinestream::testing`, so that a misunderstanding of Kinesis in
//! one is not confirmed by the other. Each test reproduces a problem that users of other consumers
//! have reported in public.
// Tests and their helpers report failures by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../support/black_hole.rs"]
mod black_hole;
mod cbor;
#[path = "../support/free_port.rs"]
mod free_port;
#[path = "../support/proxy.rs"]
mod proxy;
mod server;

/// Runs each of these tests twice: with a consumer that reads by JSON, and with one that reads by CBOR
/// once it has compared the formats.
macro_rules! by_both_formats {
    ($($name:ident,)*) => {
        $(mod $name {
            use kinestream::WireFormat;

            #[tokio::test]
            async fn by_json() {
                super::$name(WireFormat::Json).await;
            }

            #[tokio::test]
            async fn by_cbor() {
                super::$name(WireFormat::Auto).await;
            }
        })*
    };
}

mod bodies;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use black_hole::BlackHole;
use futures::StreamExt;
use kinestream::store::{CheckpointStore, Scope};
use kinestream::{
    Checkpoint, Consumer, ConsumerBuilder, ErrorKind, Event, Events, MemoryStore, OnTrimmed,
    Records, ShardId, ShardPosition, StartingPosition, WireFormat,
};
use proxy::Proxy;
use serde_json::json;
use server::{Length, Server, missing};
use tokio::time::{sleep, timeout};

const PATIENCE: Duration = Duration::from_secs(60);
/// The first sequence numbers of an earlier and a later stream.
const FIRST: u128 = 1_000_000;
const LATER: u128 = 9_000_000;

fn consumer(server: &Server, stream: &str, store: &MemoryStore) -> ConsumerBuilder {
    Consumer::builder(server.client(), stream)
        .application("hostile")
        .starting_position(StartingPosition::TrimHorizon)
        .interval(Duration::from_millis(200))
        .discovery_interval(Duration::from_secs(1))
        .checkpoint_interval(Duration::from_millis(50))
        .wire_format(server.format())
        .store(store.clone())
}

/// Reads until each payload of the range is delivered, closes the consumer, and returns the number
/// of deliveries of each payload.
async fn read(consumer: &Consumer, payloads: std::ops::Range<usize>) -> BTreeMap<usize, usize> {
    let mut seen = BTreeMap::new();
    let mut records = consumer.records();
    let all = async {
        while payloads.clone().any(|payload| !seen.contains_key(&payload)) {
            let record =
                records.next().await.expect("expected a record").expect("expected no error");
            let payload: usize = std::str::from_utf8(record.data()).unwrap().parse().unwrap();
            *seen.entry(payload).or_insert(0) += 1;
            record.ack();
        }
    };
    let came = timeout(PATIENCE, all).await;
    assert!(came.is_ok(), "expected the records {payloads:?}, got {:?}", seen.keys());
    drop(records);
    consumer.close().await.expect("expected the positions to be saved");
    seen
}

by_both_formats! {
    unanswered_endpoint_is_retried_and_loses_nothing,
    empty_answer_for_open_shard_does_not_end_it,
    end_without_child_shards_skips_no_unread_record,
    incomplete_listings_finish_and_forget_no_shard,
    records_put_while_the_first_listing_is_throttled_are_read_from_latest,
    single_resource_not_found_ends_no_shard,
    refused_position_is_an_error_before_any_delivery,
    refused_position_is_a_gap_if_policy_allows,
    accepted_trimmed_number_is_an_error_before_any_delivery,
    accepted_trimmed_number_is_a_gap_if_policy_allows,
    start_at_first_sequence_number_of_shard_is_no_loss,
    position_of_recreated_stream_is_an_error_or_restarts_by_policy,
    streams_of_one_name_in_two_regions_have_separate_positions,
    positions_under_name_migrate_to_their_own_stream,
    answers_without_length_are_read_at_full_speed_with_small_buffer,
    answers_with_wrong_length_are_fetched_again,
    negative_or_absurd_lag_loses_nothing,
    reordered_or_repeated_records_lose_nothing,
}

async fn next_payload(records: &mut Records) -> usize {
    let record = timeout(PATIENCE, records.next()).await.expect("expected a record within 60 s");
    let record = record.expect("expected a record").expect("expected no error");
    std::str::from_utf8(record.data()).unwrap().parse().unwrap()
}

async fn stored(store: &MemoryStore, stream: &str) -> BTreeMap<String, Checkpoint> {
    let loaded = store.load(&Scope::new("hostile", stream)).await.unwrap();
    loaded.into_iter().map(|(shard, checkpoint)| (shard.to_string(), checkpoint)).collect()
}

async fn unanswered_endpoint_is_retried_and_loses_nothing(format: WireFormat) {
    let server = Server::start(format).await;
    server.create("orders", 1, FIRST);
    server.put_all("orders", 0..5, |_| 0);
    let proxy = Proxy::start(server.port()).await;
    let port = proxy.port();
    let consumer = Consumer::builder(server::client_at(port), "orders")
        .starting_position(StartingPosition::TrimHorizon)
        .interval(Duration::from_millis(200))
        .wire_format(format)
        .build()
        .unwrap();
    let (mut records, mut events) = (consumer.records(), consumer.events());
    for payload in 0..5 {
        assert_eq!(next_payload(&mut records).await, payload);
    }
    proxy.stop().await;
    let hole = BlackHole::open(port).await;
    server.put_all("orders", 5..10, |_| 0);
    let reported = async {
        tokio::select! {
            read = records.next() => panic!("expected no record without a connection: {read:?}"),
            () = async { while !matches!(events.next().await, Some(Event::Retried { .. })) {} } => {}
        }
    };
    // The SDK limits a connection attempt to 3.1 s.
    timeout(Duration::from_secs(20), reported)
        .await
        .expect("expected an event that reports a retry");
    drop(hole);
    let _proxy = Proxy::start_at(port, server.port()).await;
    for payload in 5..10 {
        assert_eq!(next_payload(&mut records).await, payload);
    }
}

async fn empty_answer_for_open_shard_does_not_end_it(format: WireFormat) {
    let server = Server::start(format).await;
    server.create("orders", 2, FIRST);
    let store = MemoryStore::new();
    let mut calls = 0;
    server.rule(move |call| {
        if call.operation == "GetRecords" {
            calls += 1;
            if calls % 3 == 1 {
                call.truth = Ok(json!({}));
            }
        }
    });
    let putting = tokio::spawn({
        let server = server.clone();
        async move {
            for payload in 0..20 {
                server.put("orders", payload % 2, payload);
                sleep(Duration::from_millis(100)).await;
            }
        }
    });
    let seen = read(&consumer(&server, "orders", &store).build().unwrap(), 0..20).await;
    putting.await.unwrap();
    assert!(seen.values().all(|times| *times == 1), "expected each record once: {seen:?}");
    let stored = stored(&store, "orders").await;
    assert!(stored.values().all(|at| *at != Checkpoint::ShardEnd), "{stored:?}");
}

async fn end_without_child_shards_skips_no_unread_record(format: WireFormat) {
    let server = Server::start(format).await;
    server.create("orders", 1, FIRST);
    server.put_all("orders", 0..10, |_| 0);
    server.split("orders", 0);
    server.put_all("orders", 10..20, |payload| 1 + payload % 2);
    let mut calls = 0;
    server.rule(move |call| {
        if call.operation == "GetRecords" {
            calls += 1;
            if let Ok(answer) = &mut call.truth {
                // Some servers omit the children. The first response is empty.
                answer.as_object_mut().unwrap().remove("ChildShards");
                if calls == 1 {
                    *answer = json!({});
                }
            }
        }
    });
    let store = MemoryStore::new();
    let seen = read(&consumer(&server, "orders", &store).build().unwrap(), 0..20).await;
    assert!(seen.values().all(|times| *times == 1), "expected each record once: {seen:?}");
}

async fn incomplete_listings_finish_and_forget_no_shard(format: WireFormat) {
    let server = Server::start(format).await;
    server.create("orders", 2, FIRST);
    server.put_all("orders", 0..10, |payload| payload % 2);
    server.split("orders", 0);
    server.put_all("orders", 10..20, |payload| 1 + payload % 3);
    let store = MemoryStore::new();
    let first = consumer(&server, "orders", &store).build().unwrap();
    let seen = read(&first, 0..20).await;
    assert!(seen.values().all(|times| *times == 1), "{seen:?}");
    // After this, only every fourth listing is complete.
    let mut listings = 0;
    server.rule(move |call| {
        if call.operation == "ListShards"
            && let Ok(answer) = &mut call.truth
        {
            let shards = answer["Shards"].as_array_mut().unwrap();
            match listings % 4 {
                0 => shards.clear(),
                1 => drop(shards.remove(0)),
                2 => drop(shards.remove(1)),
                _ => {}
            }
            listings += 1;
        }
    });
    let second = consumer(&server, "orders", &store).build().unwrap();
    let putting = tokio::spawn({
        let server = server.clone();
        async move {
            for payload in 20..40 {
                server.put("orders", 1 + payload % 3, payload);
                sleep(Duration::from_millis(300)).await;
            }
        }
    });
    let seen = read(&second, 20..40).await;
    putting.await.unwrap();
    assert!(seen.keys().all(|payload| *payload >= 20), "expected no finished record: {seen:?}");
}

async fn records_put_while_the_first_listing_is_throttled_are_read_from_latest(format: WireFormat) {
    let server = Server::start(format).await;
    server.create("orders", 1, FIRST);
    server.put("orders", 0, 1000);
    // The server keeps times in seconds, so the old record must be more than a second older.
    sleep(Duration::from_millis(2100)).await;
    server.rule(|call| {
        if call.operation == "ListShards" && call.age < Duration::from_secs(7) {
            call.truth = Err(("LimitExceededException", "Rate exceeded".to_owned()));
        }
    });
    let store = MemoryStore::new();
    let builder = consumer(&server, "orders", &store).starting_position(StartingPosition::Latest);
    let putting = tokio::spawn({
        let server = server.clone();
        async move {
            for payload in 0..10 {
                sleep(Duration::from_millis(300)).await;
                server.put("orders", 0, payload);
            }
        }
    });
    let seen = read(&builder.build().unwrap(), 0..10).await;
    putting.await.unwrap();
    assert!(!seen.contains_key(&1000), "expected no record from before the first poll");
}

async fn single_resource_not_found_ends_no_shard(format: WireFormat) {
    let server = Server::start(format).await;
    server.create("orders", 1, FIRST);
    server.put_all("orders", 0..10, |_| 0);
    let mut left = [("ListShards", 1), ("GetShardIterator", 1), ("GetRecords", 1)];
    server.rule(move |call| {
        if let Some((_, left)) = left.iter_mut().find(|(name, _)| *name == call.operation)
            && *left > 0
        {
            *left -= 1;
            call.truth = Err(missing("the shard"));
        }
    });
    let store = MemoryStore::new();
    read(&consumer(&server, "orders", &store).build().unwrap(), 0..10).await;
}

/// Runs a consumer once, then trims the records 5 to 9. The server then refuses the stored
/// position, or accepts it and returns records from the oldest kept one. Users of Kinesis have
/// reported both.
async fn trimmed_between_two_runs(
    format: WireFormat,
    policy: OnTrimmed,
    accepted: bool,
) -> (Server, Consumer) {
    let server = Server::start(format).await;
    server.create("orders", 1, FIRST);
    server.put_all("orders", 0..5, |_| 0);
    let store = MemoryStore::new();
    read(&consumer(&server, "orders", &store).build().unwrap(), 0..5).await;
    server.put_all("orders", 5..10, |_| 0);
    let kept = server.put("orders", 0, 10);
    server.put("orders", 0, 11);
    server.trim("orders", 0, kept);
    server.rule(move |call| {
        let number = call.request["StartingSequenceNumber"].as_str();
        let number = number.and_then(|number| number.parse::<u128>().ok());
        let is_trimmed = number.is_some_and(|number| number < kept);
        if call.operation == "GetShardIterator" && is_trimmed && !accepted {
            call.truth = Err(server::invalid("StartingSequenceNumber"));
        }
    });
    let builder = consumer(&server, "orders", &store).on_trimmed(policy);
    (server, builder.build().unwrap())
}

/// Returns true if the remaining events of the consumer include a gap.
async fn reports_gap(events: Events) -> bool {
    let reported = events.any(async |event| matches!(event, Event::Gap { .. }));
    timeout(PATIENCE, std::pin::pin!(reported)).await.expect("expected the events to end")
}

async fn refused_position_is_an_error_before_any_delivery(format: WireFormat) {
    let (_server, consumer) = trimmed_between_two_runs(format, OnTrimmed::Fail, false).await;
    let mut records = consumer.records();
    let next = timeout(PATIENCE, records.next()).await.expect("expected an error in time").unwrap();
    let error = next.expect_err("expected an error before the first record");
    assert_eq!(error.kind(), ErrorKind::Trimmed);
}

async fn refused_position_is_a_gap_if_policy_allows(format: WireFormat) {
    let (_server, consumer) = trimmed_between_two_runs(format, OnTrimmed::TrimHorizon, false).await;
    let events = consumer.events();
    read(&consumer, 10..12).await;
    drop(consumer);
    assert!(reports_gap(events).await, "expected a gap event");
}

async fn accepted_trimmed_number_is_an_error_before_any_delivery(format: WireFormat) {
    let (_server, consumer) = trimmed_between_two_runs(format, OnTrimmed::Fail, true).await;
    let mut records = consumer.records();
    let next = timeout(PATIENCE, records.next()).await.expect("expected an error in time").unwrap();
    let error = next.expect_err("expected an error before the first record");
    assert_eq!(error.kind(), ErrorKind::Trimmed);
}

async fn accepted_trimmed_number_is_a_gap_if_policy_allows(format: WireFormat) {
    let (_server, consumer) = trimmed_between_two_runs(format, OnTrimmed::TrimHorizon, true).await;
    let events = consumer.events();
    read(&consumer, 10..12).await;
    drop(consumer);
    assert!(reports_gap(events).await, "expected a gap event");
}

/// No record has the starting sequence number of a shard, but no record is missing before the first
/// one.
async fn start_at_first_sequence_number_of_shard_is_no_loss(format: WireFormat) {
    let server = Server::start(format).await;
    server.create("orders", 1, FIRST);
    server.put_all("orders", 0..5, |_| 0);
    let shard: ShardId = "shardId-000000000000".parse().unwrap();
    let start = FIRST.to_string().parse().unwrap();
    let reader = consumer(&server, "orders", &MemoryStore::new())
        .starting_position_for(shard, ShardPosition::AtSequenceNumber(start));
    read(&reader.build().unwrap(), 0..5).await;
    assert_eq!(
        server.count("DescribeStreamSummary"),
        0,
        "expected no call of DescribeStreamSummary"
    );
}

async fn position_of_recreated_stream_is_an_error_or_restarts_by_policy(format: WireFormat) {
    for policy in [OnTrimmed::Fail, OnTrimmed::TrimHorizon] {
        let server = Server::start(format).await;
        server.create("orders", 2, FIRST);
        server.put_all("orders", 0..6, |payload| payload % 2);
        // Closes a shard, so that its end is stored.
        server.split("orders", 0);
        server.put_all("orders", 6..8, |payload| 2 + payload % 2);
        let store = MemoryStore::new();
        read(&consumer(&server, "orders", &store).build().unwrap(), 0..8).await;
        server.create("orders", 2, LATER);
        server.put_all("orders", 100..110, |payload| payload % 2);
        let again = consumer(&server, "orders", &store).on_trimmed(policy).build().unwrap();
        if policy == OnTrimmed::Fail {
            let next =
                timeout(PATIENCE, again.records().next()).await.expect("expected an error in time");
            assert_eq!(next.unwrap().unwrap_err().kind(), ErrorKind::Trimmed);
        } else {
            read(&again, 100..110).await;
        }
    }
}

const HERE: &str = "arn:aws:kinesis:eu-west-1:123456789012:stream/orders";
const THERE: &str = "arn:aws:kinesis:us-east-1:123456789012:stream/orders";

async fn streams_of_one_name_in_two_regions_have_separate_positions(format: WireFormat) {
    let server = Server::start(format).await;
    server.create(HERE, 2, FIRST);
    server.create(THERE, 2, LATER);
    let store = MemoryStore::new();
    for round in 0..2 {
        let (here, there) = (round * 10..round * 10 + 10, 100 + round * 10..110 + round * 10);
        server.put_all(HERE, here.clone(), |payload| payload % 2);
        server.put_all(THERE, there.clone(), |payload| payload % 2);
        for (arn, payloads) in [(HERE, here), (THERE, there)] {
            let seen =
                read(&consumer(&server, arn, &store).build().unwrap(), payloads.clone()).await;
            let expected: Vec<usize> = payloads.collect();
            assert_eq!(seen.into_keys().collect::<Vec<_>>(), expected, "{arn}");
        }
    }
}

/// Builds consumers from ARNs of two regions, after a consumer has read one of the streams by name.
async fn positions_under_name_migrate_to_their_own_stream(format: WireFormat) {
    let server = Server::start(format).await;
    server.create("orders", 2, LATER);
    server.create(HERE, 2, LATER);
    server.create(THERE, 2, FIRST);
    let store = MemoryStore::new();
    for stream in ["orders", HERE, THERE] {
        server.put_all(stream, 0..10, |payload| payload % 2);
    }
    read(&consumer(&server, "orders", &store).build().unwrap(), 0..10).await;
    // The consumer of the other region starts first, and its stream is the older one.
    read(&consumer(&server, THERE, &store).build().unwrap(), 0..10).await;
    server.put_all(HERE, 10..20, |payload| payload % 2);
    let seen = read(&consumer(&server, HERE, &store).build().unwrap(), 10..20).await;
    assert_eq!(seen.into_keys().collect::<Vec<_>>(), (10..20).collect::<Vec<_>>());
}

#[tokio::test]
async fn refused_page_tokens_are_retried_with_back_off() {
    let server = Server::start(WireFormat::Auto).await;
    server.create("orders", 1, FIRST);
    server.rule(|call| {
        if call.operation == "ListShards" {
            if call.request.get("NextToken").is_some() {
                call.truth = Err(("ExpiredNextTokenException", "The token has expired".to_owned()));
            } else if let Ok(answer) = &mut call.truth {
                answer["NextToken"] = json!("a token");
            }
        }
    });
    let store = MemoryStore::new();
    let refused = consumer(&server, "orders", &store).build().unwrap();
    let _nothing = timeout(Duration::from_secs(5), refused.records().next()).await;
    let calls = server.count("ListShards");
    assert!(calls <= 60, "expected at most 60 calls in 5 s, got {calls}");
}

#[tokio::test]
async fn repeated_page_token_causes_no_endless_listing() {
    let server = Server::start(WireFormat::Auto).await;
    server.create("orders", 1, FIRST);
    let mut listings = 0;
    server.rule(move |call| {
        if call.operation == "ListShards" && listings < 200 {
            listings += 1;
            if call.request.get("NextToken").is_some() {
                call.truth = Ok(json!({ "Shards": [], "NextToken": "the same" }));
            } else if let Ok(answer) = &mut call.truth {
                answer["NextToken"] = json!("the same");
            }
        }
    });
    let store = MemoryStore::new();
    let looping = consumer(&server, "orders", &store).build().unwrap();
    let _nothing = timeout(Duration::from_secs(5), looping.records().next()).await;
    let calls = server.count("ListShards");
    assert!(calls <= 60, "expected at most 60 calls in 5 s, got {calls}");
    looping.close().await.unwrap();
    server.be_honest();
    server.put_all("orders", 0..5, |_| 0);
    read(&consumer(&server, "orders", &store).build().unwrap(), 0..5).await;
}

/// A response without Content-Length, as after a proxy that removes it, must not count as one of
/// the maximum size.
async fn answers_without_length_are_read_at_full_speed_with_small_buffer(format: WireFormat) {
    let server = Server::start(format).await;
    server.create("orders", 4, FIRST);
    server.put_all("orders", 0..4000, |payload| payload % 4);
    server.lengths(|| Length::Unknown);
    let store = MemoryStore::new();
    let consumer = consumer(&server, "orders", &store).limit(100).max_buffered_bytes(1 << 20);
    let began = Instant::now();
    let seen = read(&consumer.build().unwrap(), 0..4000).await;
    assert!(seen.values().all(|times| *times == 1), "expected each record once");
    // Each shard has ten responses, of which at most five are read per second.
    let took = began.elapsed();
    assert!(took < Duration::from_secs(10), "expected full speed, took {took:?}");
}

/// A response that is longer or shorter than its Content-Length is fetched again.
async fn answers_with_wrong_length_are_fetched_again(format: WireFormat) {
    for wrong in [Length::Times(0.5), Length::Times(0.99), Length::Times(2.0), Length::Largest] {
        let server = Server::start(format).await;
        server.create("orders", 1, FIRST);
        server.put_all("orders", 0..300, |_| 0);
        let store = MemoryStore::new();
        let mut answers = 0;
        server.lengths(move || {
            answers += 1;
            if answers <= 2 { wrong } else { Length::True }
        });
        let consumer = consumer(&server, "orders", &store).limit(100).build().unwrap();
        let seen = read(&consumer, 0..300).await;
        assert!(seen.values().all(|times| *times == 1), "{wrong:?}: {seen:?}");
    }
}

async fn negative_or_absurd_lag_loses_nothing(format: WireFormat) {
    for lag in [-1, i64::MIN, i64::MAX] {
        let server = Server::start(format).await;
        server.create("orders", 1, FIRST);
        server.put_all("orders", 0..10, |_| 0);
        server.rule(move |call| {
            if call.operation == "GetRecords"
                && let Ok(answer) = &mut call.truth
            {
                answer["MillisBehindLatest"] = json!(lag);
            }
        });
        let store = MemoryStore::new();
        let first = consumer(&server, "orders", &store).limit(3).build().unwrap();
        let mut records = first.records();
        for expected in 0..10 {
            let record = timeout(PATIENCE, records.next()).await.unwrap().unwrap().unwrap();
            assert_eq!(record.data(), expected.to_string().as_bytes());
            assert_eq!(record.millis_behind_latest(), lag.max(0));
            let status = first.status().await.unwrap();
            let behind = status.shards.values().filter_map(|shard| shard.millis_behind_latest);
            assert!(behind.clone().all(|millis| millis >= lag.max(0)), "{:?}", behind.max());
            record.ack();
        }
        let calls = server.count("GetRecords");
        let quiet = timeout(Duration::from_secs(2), records.next()).await;
        assert!(quiet.is_err(), "{quiet:?}");
        let calls = server.count("GetRecords") - calls;
        assert!(calls <= 12, "expected at most 5 calls per second, got {calls} in 2 s");
        drop(records);
        first.close().await.unwrap();
        server.put_all("orders", 10..12, |_| 0);
        let seen = read(&consumer(&server, "orders", &store).build().unwrap(), 10..12).await;
        assert!(seen.values().all(|times| *times == 1), "{seen:?}");
    }
}

/// Records may be delivered twice, but none is lost, also across restarts.
async fn reordered_or_repeated_records_lose_nothing(format: WireFormat) {
    let server = Server::start(format).await;
    server.create("orders", 1, FIRST);
    server.put_all("orders", 0..12, |_| 0);
    let (mut calls, mut before) = (0, json!([]));
    server.rule(move |call| {
        if call.operation == "GetRecords"
            && let Ok(answer) = &mut call.truth
        {
            calls += 1;
            let records = answer["Records"].as_array_mut().unwrap();
            let truth = records.clone();
            if calls % 2 == 0 {
                records.reverse();
            }
            if calls % 3 == 0 {
                records.extend(before.as_array().unwrap().iter().cloned());
            }
            before = json!(truth);
        }
    });
    let store = MemoryStore::new();
    let builder = consumer(&server, "orders", &store).limit(3);
    read(&builder.clone().build().unwrap(), 0..12).await;
    server.put_all("orders", 12..20, |_| 0);
    read(&builder.clone().build().unwrap(), 12..20).await;
    server.be_honest();
    server.put_all("orders", 20..22, |_| 0);
    read(&builder.build().unwrap(), 20..22).await;
}
