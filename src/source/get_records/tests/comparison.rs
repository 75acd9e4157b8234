//! The trial of CBOR: its response is compared with the JSON response to the same call.

use std::time::Duration;

use futures::FutureExt;
use tokio::time::Instant;

use super::super::FallbackReason;
use super::super::exchange::{CBOR, JSON};
use super::auto;
use super::server::{
    Server, answer, cbor, cbor_at_second, cbor_with, cbor_without, failed, in_frames, json,
};
use crate::error::RetryAction;

#[tokio::test(start_paused = true)]
async fn first_records_are_compared_and_cbor_is_used_from_then_on() {
    let answers = [
        answer(200, CBOR, cbor([])),
        answer(200, CBOR, cbor([1, 2])),
        answer(200, JSON, json([1, 2, 3])),
        answer(200, CBOR, in_frames(&cbor([4, 5]), Some(cbor([4, 5]).len()))),
        answer(200, CBOR, in_frames(&cbor([6]), None)),
    ];
    let server = Server::new(answers);
    let mut reader = auto(&server);
    assert_eq!(reader.numbers().await.0, Vec::<String>::new());
    assert_eq!(reader.numbers().await, (vec!["1".into(), "2".into(), "3".into()], None));
    assert_eq!(reader.numbers().await, (vec!["4".into(), "5".into()], None));
    assert_eq!(reader.numbers().await, (vec!["6".into()], None));
    assert_eq!(server.formats(), ["cbor", "cbor", "json", "cbor", "cbor"]);
    let script = server.0.lock();
    let limited = String::from_utf8_lossy(&script.requests[2].2);
    assert!(limited.contains(r#""Limit":10}"#), "few records are compared: {limited}");
    assert!(script.requests[3].2.ends_with(b"\x19\x03\xe8\xff"), "the limit is 1000");
}

#[tokio::test(start_paused = true)]
async fn different_records_are_read_by_json() {
    let cases = [
        (cbor_with([1, 2], *b"hullo"), json([1, 2])),
        (cbor([2]), json([1, 2])),
        (cbor([1, 3]), json([1, 2])),
        (cbor([1]), json([1]).replace("key-1", "key-2")),
        (cbor([1]), json([1]).replace("00.125", "00.127")),
        (cbor([1]), json([1]).replace("KMS", "NONE")),
        (cbor([1]), json([1]).replace("\"PartitionKey\":\"key-1\",", "")),
        (cbor_without([1], "NextShardIterator"), json([1])),
        (cbor_without([1], "MillisBehindLatest"), json([1, 2])),
    ];
    for (first, second) in cases {
        let server = Server::new([
            answer(200, CBOR, first),
            answer(200, JSON, second.clone()),
            answer(200, JSON, json([7])),
        ]);
        let mut reader = auto(&server);
        let (records, reason) = reader.numbers().await;
        assert_eq!(records[0], "1", "the records of the JSON response are delivered");
        assert_eq!(reason, Some(FallbackReason::Different), "{second}");
        assert_eq!(reader.numbers().await, (vec!["7".into()], None));
        assert_eq!(server.formats(), ["cbor", "json", "json"]);
    }
}

/// Such a server is found by the first record that did not arrive at a whole second.
#[tokio::test(start_paused = true)]
async fn times_cut_to_seconds_are_a_difference_behind_a_record_of_a_whole_second() {
    let whole = || json([1]).replace("00.125", "00.000");
    let server = Server::new([
        answer(200, CBOR, cbor_at_second([1])),
        answer(200, JSON, whole()),
        answer(200, CBOR, cbor_at_second([2])),
        answer(200, JSON, json([2])),
    ]);
    let mut reader = auto(&server);
    assert_eq!(reader.numbers().await, (vec!["1".into()], None));
    assert_eq!(reader.numbers().await, (vec!["2".into()], Some(FallbackReason::Different)));
}

#[tokio::test(start_paused = true)]
async fn rounded_time_is_no_difference() {
    for time in ["00.124", "00.1249999", "00.126"] {
        let by_json = json([1]).replace("00.125", time);
        let server = Server::new([answer(200, CBOR, cbor([1])), answer(200, JSON, by_json)]);
        assert_eq!(auto(&server).numbers().await, (vec!["1".into()], None), "{time}");
    }
}

#[tokio::test(start_paused = true)]
async fn end_of_a_closed_shard_that_json_does_not_reach_is_no_difference() {
    let last = cbor_without([1, 2], "NextShardIterator");
    let server = Server::new([answer(200, CBOR, last), answer(200, JSON, json([1]))]);
    assert_eq!(auto(&server).numbers().await, (vec!["1".into()], None));
}

#[tokio::test(start_paused = true)]
async fn member_that_only_cbor_has_is_no_difference() {
    let by_json = json([1]).replace(r#","NextShardIterator":"next","MillisBehindLatest":5"#, "");
    let server = Server::new([answer(200, CBOR, cbor([1])), answer(200, JSON, by_json)]);
    assert_eq!(auto(&server).numbers().await, (vec!["1".into()], None));
}

#[tokio::test(start_paused = true)]
async fn records_that_are_trimmed_during_the_comparison_are_no_difference() {
    let server = Server::new([
        answer(200, CBOR, cbor([1, 2])),
        answer(200, JSON, json([3])),
        answer(200, CBOR, cbor([4, 5, 6])),
        answer(200, JSON, json([])),
        answer(200, JSON, json([4])),
        answer(200, CBOR, cbor([5, 6])),
        answer(200, JSON, json([6, 7])),
        answer(200, CBOR, cbor([8])),
    ]);
    let mut reader = auto(&server);
    let mut read = Vec::new();
    for _ in 0..5 {
        let (records, reason) = reader.numbers().await;
        read.push(records.concat());
        assert_eq!(reason, None);
    }
    assert_eq!(read, ["3", "", "4", "67", "8"]);
    let formats = server.formats().join(" ");
    assert_eq!(formats, "cbor json cbor json json cbor json cbor");
}

#[tokio::test(start_paused = true)]
async fn failed_comparison_returns_its_failure_and_delivers_nothing() {
    let server = Server::new([
        answer(200, CBOR, cbor([1])),
        failed(400, JSON, "ProvisionedThroughputExceededException"),
        answer(200, CBOR, cbor([1])),
        answer(200, JSON, json([1])),
    ]);
    let mut reader = auto(&server);
    let (failure, reason) = reader.failure().await;
    assert_eq!((failure.action, reason), (RetryAction::SlowDown, None));
    assert_eq!(reader.numbers().await, (vec!["1".into()], None));
    assert_eq!(server.formats(), ["cbor", "json", "cbor", "json"]);
}

#[tokio::test(start_paused = true)]
async fn dropped_call_returns_the_trial() {
    let server = Server::new([answer(200, CBOR, cbor([1]))]);
    let mut reader = auto(&server);
    // Dropped while it waits for the turn of the repeated call, and then for its answer.
    assert!(reader.read().now_or_never().is_none());
    let wait = tokio::time::timeout(Duration::from_secs(1), reader.read());
    assert!(wait.await.is_err());
    server.0.lock().answers.push_back(answer(200, CBOR, cbor([])));
    assert_eq!(reader.numbers().await, (Vec::new(), None));
    assert_eq!(server.formats(), ["cbor", "cbor", "cbor"]);
}

#[tokio::test(start_paused = true)]
async fn repeated_call_waits_for_its_turn() {
    let server = Server::new([answer(200, CBOR, cbor([1])), answer(200, JSON, json([1]))]);
    let mut reader = auto(&server);
    reader.pace.ready().await;
    reader.pace.note_call();
    let began = Instant::now();
    reader.numbers().await;
    let pause = began.elapsed();
    assert!((210..215).contains(&pause.as_millis()), "{pause:?}");
}
