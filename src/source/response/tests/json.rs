//! The forms and errors of JSON, and the agreement with the SDK.

use proptest::prelude::*;

use super::*;

fn record(members: &str) -> Result<OwnedRecord, Unreadable> {
    let body = format!(r#"{{"Records":[{{{members}}}]}}"#);
    from_json(body).map(|response| response.records.unwrap().remove(0))
}

fn arrival(time: &str) -> Result<Option<i64>, Unreadable> {
    record(&format!(r#""ApproximateArrivalTimestamp":{time}"#)).map(|record| record.arrival_millis)
}

const WRONG_TYPE: Unreadable = Unreadable("a member has the wrong type");
const NOT_JSON: Unreadable = Unreadable("the body is not JSON");

#[test]
fn absent_members_are_empty_or_absent() {
    assert_eq!(from_json("{}").unwrap().records, None);
    assert_eq!(from_json(r#"{"Records":null}"#).unwrap().records, None);
    assert_eq!(from_json(r#"{"Records":[]}"#).unwrap().records, Some(vec![]));
    let empty = record("").unwrap();
    assert_eq!((&empty.data[..], &empty.partition_key), (&[][..], &None));
    assert_eq!((&empty.sequence_number[..], empty.arrival_millis), ("", None));
    let nulls = r#""Data":null,"PartitionKey":null,"SequenceNumber":null,"EncryptionType":null"#;
    assert_eq!(record(nulls), Ok(empty));
    assert_eq!(record(r#""PartitionKey":"""#).unwrap().partition_key, Some(String::new()));
}

#[test]
fn malformed_bodies_are_refused() {
    for body in ["", " ", "{", r#"{"Records":[{"Data":"QQ=="#] {
        assert_eq!(from_json(body), Err(Unreadable("the body is cut short")), "{body}");
    }
    for body in ["{}{}", "{} x", "{,}", "\u{feff}{}", r#"{"a":1,}"#] {
        assert_eq!(from_json(body), Err(NOT_JSON), "{body}");
    }
    for body in ["[]", "null", "1", r#""a""#, r#"{"Records":{}}"#, r#"{"Records":[1]}"#] {
        assert_eq!(from_json(body), Err(WRONG_TYPE), "{body}");
    }
    for members in [
        r#""Data":{}"#,
        r#""Data":[65]"#,
        r#""Data":1"#,
        r#""PartitionKey":1"#,
        r#""SequenceNumber":1"#,
        r#""ApproximateArrivalTimestamp":"1""#,
        r#""ApproximateArrivalTimestamp":18446744073709551615"#,
    ] {
        assert_eq!(record(members), Err(WRONG_TYPE), "{members}");
    }
    for text in [r#""QQ""#, r#""QQ= ""#, r#""Q!==""#, r#""QR==""#, r#""\ud800""#] {
        assert!(record(&format!(r#""Data":{text}"#)).is_err(), "{text}");
    }
    assert!(record(r#""PartitionKey":"\ud800""#).is_err());
    let not_utf8 = [br#"{"Records":[{"PartitionKey":""#, &[0xff][..], br#""}]}"#].concat();
    assert_eq!(from_json(not_utf8), Err(Unreadable("a text is not UTF-8")));
    assert!(from_json(r#"{"MillisBehindLatest":9223372036854775808}"#).is_err());
    assert!(from_json(r#"{"MillisBehindLatest":1.5}"#).is_err());
}

#[test]
fn escapes_are_copied_and_decoded() {
    let members =
        r#""Data":"YWI\u003d","PartitionKey":"\ud83d\ude00\n\/","EncryptionType":"\u004bMS""#;
    let record = record(members).unwrap();
    assert_eq!(record.data, b"ab");
    assert_eq!(record.partition_key.unwrap(), "\u{1f600}\n/");
    assert_eq!(record.encryption_type, EncryptionType::Kms);
    assert_eq!(from_json(r#"{"Re\u0063ords":[]}"#).unwrap().records, Some(vec![]));
}

#[test]
fn times_are_exact_to_the_millisecond() {
    for fraction in 0..1000 {
        for (time, millis) in [
            (format!("1787036486.{fraction:03}"), 1_787_036_486_000 + fraction),
            (format!("1.787036486{fraction:03}E9"), 1_787_036_486_000 + fraction),
            (format!("-7.{fraction:03}"), -7_000 - fraction),
        ] {
            assert_eq!(arrival(&time), Ok(Some(millis)), "{time}");
        }
    }
    for (time, seconds) in [("0", 0), ("1787036486", 1_787_036_486), ("-5", -5)] {
        assert_eq!(arrival(time), Ok(Some(seconds * 1000)), "{time}");
        assert_eq!(arrival(&format!("{time}.0")), Ok(Some(seconds * 1000)), "{time}.0");
    }
    assert_eq!(arrival("1787036486712"), Ok(Some(1_787_036_486_712)));
    assert_eq!(arrival("1.787036486712E12"), Ok(Some(1_787_036_486_712)));
    assert_eq!(arrival("1e300"), Err(WRONG_TYPE));
    assert!(arrival("1e400").is_err());
}

proptest! {
    #[test]
    fn base64_is_accepted_as_by_the_sdk(text in "[A-Da-d+/=\u{e9} _-]{0,9}|([A-Za-z0-9+/]{4}){0,20}(..==|...=|)") {
        let expected = aws_smithy_types::base64::decode(&text).ok();
        let quoted = serde_json::to_string(&text).unwrap();
        let data = record(&format!(r#""Data":{quoted}"#)).ok().map(|record| record.data);
        prop_assert_eq!(data, expected);
    }
}

#[cfg(feature = "testing")]
mod sdk {
    use aws_sdk_kinesis::Client;
    use aws_sdk_kinesis::config::http::{HttpRequest, HttpResponse};
    use aws_sdk_kinesis::config::{BehaviorVersion, Config, Credentials, Region};
    use aws_sdk_kinesis::operation::get_records::GetRecordsOutput;
    use aws_smithy_runtime_api::client::http::{
        HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn,
    };
    use aws_smithy_types::body::SdkBody;

    use super::super::body;
    use super::*;

    /// Answers every call with one body.
    #[derive(Debug)]
    struct Canned(String);

    impl HttpConnector for Canned {
        fn call(&self, _request: HttpRequest) -> HttpConnectorFuture {
            let body = SdkBody::from(self.0.clone());
            let mut response = HttpResponse::new(200.try_into().unwrap(), body);
            response.headers_mut().insert("content-type", "application/x-amz-json-1.1");
            HttpConnectorFuture::ready(Ok(response))
        }
    }

    fn decoded_by_sdk(body: String) -> GetRecordsOutput {
        let connector = SharedHttpConnector::new(Canned(body));
        let config = Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("eu-west-1"))
            .credentials_provider(Credentials::new("test", "test", None, None, "test"))
            .http_client(http_client_fn(move |_, _| connector.clone()))
            .build();
        let call = Client::from_conf(config).get_records().shard_iterator("x");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(call.send()).expect("the SDK decodes the body")
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn both_decode_a_body_to_the_same_response(
            response in body::response(),
            mut choices in body::choices(false),
        ) {
            let mut json = String::new();
            let node = body::node(&response, &mut choices);
            body::json(&node, &mut choices, &mut json);
            let output = decoded_by_sdk(json.clone());

            let (buffer, ranges) = records_of_sdk(&output.records);
            prop_assert_eq!(buffer.capacity(), buffer.len());
            let records: Vec<_> =
                ranges.iter().map(|record| owned_record(&buffer, record)).collect();
            let response = from_json(json).unwrap();
            prop_assert_eq!(records, response.records.unwrap_or_default());
            prop_assert_eq!(&output.next_shard_iterator, &response.next_shard_iterator);
            prop_assert_eq!(output.millis_behind_latest, response.millis_behind_latest);
            prop_assert_eq!(children_of_sdk(output.child_shards()), response.child_shards);
        }
    }
}
