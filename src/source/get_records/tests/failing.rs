//! Servers that fail each call in CBOR and serve those in JSON.

use super::super::exchange::{CBOR, JSON};
use super::super::{FallbackReason, RecordsOutcome};
use super::server::{Answer, Server, answer, broken, cbor, failed, in_frames, json};
use super::{HTML, auto, checked, numbers};

#[tokio::test(start_paused = true)]
async fn server_that_answers_cbor_with_5xx_pages_is_read_by_json() {
    let server = Server::default();
    server.0.lock().by_format = Some(|is_cbor| {
        if is_cbor { answer(500, HTML, "<html>500</html>") } else { answer(200, JSON, json([1])) }
    });
    let mut reader = auto(&server);
    let records = vec!["1".to_owned()];
    assert_eq!(reader.numbers().await, (records.clone(), None));
    let second = (records.clone(), Some(FallbackReason::Unsupported));
    assert_eq!(reader.numbers().await, second);
    assert_eq!(reader.numbers().await, (records, None));
    assert_eq!(server.formats(), ["cbor", "json", "cbor", "json", "json"]);
}

/// The ways in which all calls in CBOR fail, while JSON works.
const FAILING: [fn(bool) -> Answer; 3] = [
    |is_cbor| {
        if is_cbor { failed(500, CBOR, "InternalFailure") } else { answer(200, JSON, json([1])) }
    },
    |is_cbor| {
        if is_cbor {
            answer(200, CBOR, in_frames(&cbor([1]), Some(cbor([1]).len() + 1)))
        } else {
            answer(200, JSON, json([1]))
        }
    },
    |is_cbor| if is_cbor { answer(500, CBOR, broken()) } else { answer(200, JSON, json([1])) },
];

#[tokio::test(start_paused = true)]
async fn shard_is_read_although_each_call_in_cbor_fails() {
    for by_format in FAILING {
        let server = Server::default();
        server.0.lock().by_format = Some(by_format);
        let mut reader = auto(&server);
        let mut failures = Vec::new();
        for call in 0..100 {
            let RecordsOutcome { result, fallback } = reader.read().await;
            assert_eq!(fallback, None);
            match result {
                Ok(read) => assert_eq!(numbers(&read.response), ["1"]),
                Err(_) => failures.push(call),
            }
        }
        assert_eq!(failures, [0, 1, 3, 7, 15, 31, 63], "the others are made by JSON");
    }
}

#[tokio::test(start_paused = true)]
async fn shard_is_read_although_each_call_in_cbor_begins_to_fail_after_the_check() {
    for by_format in FAILING {
        let server = Server::default();
        server.0.lock().by_format = Some(by_format);
        let mut reader = checked(&server).await;
        for _ in 0..3 {
            assert_eq!(reader.failure().await.1, None);
        }
        for reason in [None, None, None, Some(FallbackReason::Unsupported), None] {
            assert_eq!(reader.numbers().await, (vec!["1".into()], reason));
        }
        let formats = server.formats().join(" ");
        assert_eq!(formats, "cbor cbor cbor cbor json cbor json json cbor json json");
    }
}

#[tokio::test(start_paused = true)]
async fn shard_whose_calls_in_cbor_alone_fail_is_read_by_json() {
    for by_format in FAILING {
        let (server, other_server) = (Server::default(), Server::default());
        server.0.lock().by_format = Some(by_format);
        other_server.0.lock().by_format = Some(|_| answer(200, CBOR, cbor([2])));
        let mut other = checked(&other_server).await;
        let mut reader = auto(&server);
        reader.wire = other.wire.clone();
        for _ in 0..3 {
            assert_eq!(reader.failure().await.1, None);
        }
        for _ in 0..20 {
            assert_eq!(other.numbers().await, (vec!["2".into()], None));
            assert_eq!(reader.numbers().await, (vec!["1".into()], None));
        }
        let tries = server.formats().iter().filter(|format| **format == "cbor").count();
        assert_eq!(tries, 3 + 5, "the others are made by JSON");
    }
}
