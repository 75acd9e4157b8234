//! The bodies that servers have sent (`tests/vectors/cbor`).

use serde_json::Value;

use super::*;

/// Decodes hexadecimal digits, in which `[41*3]` means `414141`.
fn bytes_of(hex: &str) -> Vec<u8> {
    if let Some((before, rest)) = hex.split_once('[') {
        let (repeated, after) = rest.split_once(']').unwrap();
        let (unit, count) = repeated.split_once('*').unwrap();
        let repeated = bytes_of(unit).repeat(count.parse().unwrap());
        return [bytes_of(before), repeated, bytes_of(after)].concat();
    }
    let digits = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    (0..hex.len()).step_by(2).map(digits).collect()
}

fn vectors(server: &str) -> Vec<Value> {
    let path = format!("{}/tests/vectors/cbor/{server}.json", env!("CARGO_MANIFEST_DIR"));
    let file: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    file["vectors"].as_array().unwrap().clone()
}

fn is_cbor(vector: &Value) -> bool {
    vector["headers"]["content-type"].as_str().is_some_and(|kind| kind.contains("x-amz-cbor"))
}

/// Returns the label and the body of each response to a successful `GetRecords` call.
fn responses(server: &str) -> Vec<(String, Vec<u8>)> {
    let mut vectors = vectors(server);
    vectors.retain(|vector| vector["operation"] == "GetRecords" && vector["status"] == 200);
    let response = |vector: &Value| {
        let label = vector["label"].as_str().unwrap().to_owned();
        (label, bytes_of(vector["response_hex"].as_str().unwrap()))
    };
    vectors.iter().map(response).collect()
}

/// Returns the payloads of the records that every server got.
fn payloads() -> Vec<Vec<u8>> {
    let bytes = (0..=255).chain([0; 44]).collect();
    vec![vec![], vec![0], bytes, vec![b'A'; 70_000], b"{\"a\":1}".to_vec()]
}

/// Checks the records of the streams that hold [`payloads`].
fn assert_records(label: &str, records: &[OwnedRecord]) {
    let mut expected = payloads();
    match label {
        "records-none" => expected.clear(),
        "records-limit-1" => expected.truncate(1),
        _ => {}
    }
    let data = records.iter().map(|record| &record.data);
    assert!(data.eq(&expected), "{label} must have the payloads that were sent");
    for record in records {
        assert_eq!(record.partition_key.as_deref(), Some("k\u{e9}y-1"), "{label}");
        assert_common(label, record);
    }
}

fn assert_common(label: &str, record: &OwnedRecord) {
    assert_eq!(record.sequence_number.len(), 56, "{label}");
    assert_eq!(record.encryption_type, EncryptionType::None, "{label}");
    let arrival = record.arrival_millis.unwrap();
    assert!((1_795_000_000_000..1_797_000_000_000).contains(&arrival), "{label}: {arrival}");
}

#[test]
fn responses_of_kinesis_local_are_decoded() {
    let responses = responses("kinesis-local");
    assert_eq!(responses.len(), 7);
    for (label, body) in responses {
        let response = from_cbor(body).unwrap_or_else(|error| panic!("{label}: {error}"));
        assert_records(&label, &response.records.unwrap());
        assert!(response.millis_behind_latest.is_some(), "{label}");
        let is_closed = label.starts_with("records-closed");
        assert_eq!(response.next_shard_iterator.is_none(), is_closed, "{label}");
        assert_eq!(response.child_shards.len(), if is_closed { 2 } else { 0 }, "{label}");
        for child in response.child_shards {
            assert!(child.id.starts_with("shardId-00000000000"), "{child:?}");
            assert_eq!(child.parents, ["shardId-000000000000"]);
        }
    }
}

#[test]
fn responses_of_ferrokinesis_are_decoded() {
    let responses = responses("ferrokinesis");
    assert_eq!(responses.len(), 6);
    for (label, body) in responses {
        let response = from_cbor(body).unwrap_or_else(|error| panic!("{label}: {error}"));
        assert!(response.millis_behind_latest.is_some(), "{label}");
        assert!(response.next_shard_iterator.is_some(), "{label}");
        let records = response.records.unwrap();
        assert_eq!(records.is_empty(), label == "records-none", "{label}");
        for record in records {
            assert_common(&label, &record);
            let key = record.partition_key.as_deref().unwrap();
            if key == "k" {
                assert_eq!(record.data, [0, 255, 1], "{label}");
            } else {
                let number: u32 = str::from_utf8(&record.data).unwrap().parse().unwrap();
                assert_eq!(key, format!("customer-{}", number % 97), "{label}");
            }
        }
    }
}

#[test]
fn responses_of_kinesalite_with_cuts_and_maps_are_refused() {
    let responses = responses("kinesalite");
    let decoded: Vec<_> =
        responses.into_iter().map(|(label, body)| (label, from_cbor(body))).collect();
    assert_eq!(decoded.len(), 3);
    for (label, response) in decoded {
        match label.as_str() {
            "records-all" | "records-limit-1" => assert_eq!(
                response.unwrap_err(),
                Unreadable("a member has the wrong type"),
                "the payloads of {label} are maps"
            ),
            _ => assert_records(&label, &response.unwrap().records.unwrap()),
        }
    }
}

#[test]
fn each_prefix_of_each_response_is_refused() {
    for server in ["kinesis-local", "ferrokinesis", "kinesalite"] {
        for (label, body) in responses(server) {
            // Beyond 3,000 bytes, the bodies have 70,000 of one payload.
            let late = body.len().saturating_sub(1_000)..body.len();
            for end in (0..body.len().min(3_000)).chain(late) {
                assert!(from_cbor(&body[..end]).is_err(), "{server}, {label}: {end} bytes");
            }
        }
    }
}

#[test]
fn error_bodies_are_decoded() {
    let mut decoded = 0;
    for server in ["kinesis-local", "ferrokinesis", "kinesalite", "amazon"] {
        let mut vectors = vectors(server);
        vectors.retain(|vector| is_cbor(vector) && vector["status"] != 200);
        for vector in vectors {
            let body = bytes_of(vector["response_hex"].as_str().unwrap());
            let error = ErrorBody::from_cbor(&body).unwrap();
            let code = error.code.expect("every error has a code");
            assert!(code.ends_with("Exception"), "{code}");
            if vector["label"] == "error-expired-iterator" {
                assert_eq!(code, "ExpiredIteratorException");
                assert!(error.message.unwrap().contains("terator"));
            }
            for end in 0..body.len() {
                assert!(ErrorBody::from_cbor(&body[..end]).is_err());
            }
            decoded += 1;
        }
    }
    assert!(decoded >= 10, "{decoded}");
}

#[test]
fn json_error_body_in_place_of_cbor_is_refused() {
    let vectors = vectors("amazon");
    let text = vectors.iter().find_map(|vector| vector["response_text"].as_str()).unwrap();
    assert!(ErrorBody::from_cbor(text.as_bytes()).is_err());
    assert!(from_cbor(text).is_err());
}
