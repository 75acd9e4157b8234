//! The forms and errors of CBOR, one by one.

use super::*;

fn text(text: &str) -> Vec<u8> {
    [&[0x78, u8::try_from(text.len()).unwrap()], text.as_bytes()].concat()
}

/// Encodes a response with one record that has one member.
fn with_member(name: &str, value: &[u8]) -> Vec<u8> {
    [&[0xa1], &text("Records")[..], &[0x81, 0xa1], &text(name), value].concat()
}

fn record(name: &str, value: &[u8]) -> Result<OwnedRecord, Unreadable> {
    from_cbor(with_member(name, value)).map(|response| response.records.unwrap().remove(0))
}

fn arrival(value: &[u8]) -> Result<Option<i64>, Unreadable> {
    record("ApproximateArrivalTimestamp", value).map(|record| record.arrival_millis)
}

const WRONG_TYPE: Unreadable = Unreadable("a member has the wrong type");

#[test]
fn absent_members_of_a_record_are_empty_or_absent() {
    let empty = OwnedRecord {
        data: vec![],
        partition_key: None,
        sequence_number: String::new(),
        arrival_millis: None,
        encryption_type: EncryptionType::None,
    };
    assert_eq!(record("Other", &[0xf6]), Ok(empty.clone()));
    for name in ["Data", "PartitionKey", "SequenceNumber", "ApproximateArrivalTimestamp"] {
        assert_eq!(record(name, &[0xf6]), Ok(empty.clone()), "{name} may be null");
    }
    assert_eq!(record("PartitionKey", &[0x60]).unwrap().partition_key, Some(String::new()));
}

#[test]
fn absent_records_differ_from_no_records() {
    assert_eq!(from_cbor([0xa0]).unwrap().records, None);
    assert_eq!(from_cbor([0xbf, 0xff]).unwrap().records, None);
    let body = |value: u8| [&[0xa1], &text("Records")[..], &[value]].concat();
    assert_eq!(from_cbor(body(0xf6)).unwrap().records, None);
    assert_eq!(from_cbor(body(0x80)).unwrap().records, Some(vec![]));
}

#[test]
fn times_are_decoded_in_seconds_and_milliseconds() {
    let millis = 1_787_036_486_712_u64.to_be_bytes();
    let tagged = [&[0xc1, 0x1b], &millis[..]].concat();
    assert_eq!(arrival(&tagged), Ok(Some(1_787_036_486_712)));
    assert_eq!(arrival(&tagged[1..]), Ok(Some(1_787_036_486_712)));
    let seconds = [&[0x1a], &1_787_036_486_u32.to_be_bytes()[..]].concat();
    assert_eq!(arrival(&seconds), Ok(Some(1_787_036_486_000)));
    let double = |time: f64| [&[0xfb], &time.to_be_bytes()[..]].concat();
    assert_eq!(arrival(&double(1_787_036_486.75)), Ok(Some(1_787_036_486_750)));
    assert_eq!(arrival(&double(1_787_036_486_712.0)), Ok(Some(1_787_036_486_712)));
    assert_eq!(arrival(&double(-1.5)), Ok(Some(-1_500)));
    assert_eq!(arrival(&[&[0xfa], &16.5_f32.to_be_bytes()[..]].concat()), Ok(Some(16_500)));
    assert_eq!(arrival(&[0xf9, 0x3e, 0x00]), Ok(Some(1_500)));
    assert_eq!(arrival(&[0xf9, 0xbc, 0x00]), Ok(Some(-1_000)));
    assert_eq!(arrival(&[0x29]), Ok(Some(-10_000)));
    for time in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e19] {
        assert_eq!(arrival(&double(time)), Err(Unreadable("a number is out of range")));
    }
    assert_eq!(arrival(&[0xf9, 0x7c, 0x00]), Err(Unreadable("a number is out of range")));
}

#[test]
fn integer_out_of_range_is_refused() {
    let body = |value: &[u8]| [&[0xa1], &text("MillisBehindLatest")[..], value].concat();
    let behind = |value: &[u8]| from_cbor(body(value)).map(|body| body.millis_behind_latest);
    let most = [&[0x1b, 0x7f][..], &[0xff; 7]].concat();
    assert_eq!(behind(&most), Ok(Some(i64::MAX)));
    assert_eq!(behind(&[&[0x3b, 0x7f][..], &[0xff; 7]].concat()), Ok(Some(i64::MIN)));
    for first in [0x1b, 0x3b] {
        let beyond = [&[first, 0x80][..], &[0; 7]].concat();
        assert_eq!(behind(&beyond), Err(Unreadable("a number is out of range")));
    }
    assert_eq!(behind(&[0xf9, 0, 0]), Err(WRONG_TYPE));
}

#[test]
fn known_member_of_a_wrong_type_is_refused() {
    for value in [&[0xa0][..], &[0x80], &[0x01], &[0xf5], &[0xf9, 0, 0], &[0xff]] {
        assert_eq!(record("Data", value), Err(WRONG_TYPE), "{value:x?}");
        assert_eq!(record("PartitionKey", value), Err(WRONG_TYPE), "{value:x?}");
    }
    assert_eq!(record("PartitionKey", &[0x41, b'a']), Err(WRONG_TYPE));
    assert_eq!(record("ApproximateArrivalTimestamp", &[0x61, b'1']), Err(WRONG_TYPE));
    for value in [&[0xa0][..], &[0x01], &[0x81, 0x01], &[0x81, 0x80]] {
        let body = [&[0xa1], &text("Records")[..], value].concat();
        assert_eq!(from_cbor(body), Err(WRONG_TYPE), "{value:x?}");
    }
    for body in [&[0x80][..], &[0x01], &[0xf6], &[0x60], &[0xa1, 0x01, 0x01]] {
        assert_eq!(from_cbor(body), Err(WRONG_TYPE), "{body:x?}");
    }
}

#[test]
fn malformed_bodies_are_refused() {
    // Reserved arguments, numbers and tags without a length, and an end or pieces out of place.
    for value in [&[0x1c][..], &[0x1f], &[0xdf, 0], &[0xfc], &[0xff], &[0x5f, 0x61, b'a', 0xff]] {
        assert_eq!(record("Other", value), Err(Unreadable("the body is not CBOR")), "{value:x?}");
    }
    assert_eq!(record("Data", &[0x5f, 0x5f, 0xff, 0xff]), Err(Unreadable("the body is not CBOR")));
    assert_eq!(record("Data", &[0x40, 0x00]), Err(Unreadable("bytes follow the end of the body")));
    assert_eq!(record("PartitionKey", &[0x61, 0xff]), Err(Unreadable("a text is not UTF-8")));
    assert_eq!(record("SequenceNumber", &[0x61, 0xff]), Err(Unreadable("a text is not UTF-8")));
    assert_eq!(record("Data", b"\x64YQ=!"), Err(Unreadable("a payload is not base64")));
}

#[test]
fn pieces_are_joined_before_they_are_checked() {
    let pieces = [0x7f, 0x61, 0xc3, 0x60, 0x61, 0xa9, 0xff];
    assert_eq!(record("PartitionKey", &pieces).unwrap().partition_key.unwrap(), "\u{e9}");
    assert_eq!(record("Data", b"\x7f\x61Y\x63WI=\xff").unwrap().data, b"ab");
    assert_eq!(record("Data", &[0x5f, 0x41, 1, 0x41, 2, 0xff]).unwrap().data, [1, 2]);
    let name = [&[0xa1, 0x7f, 0x67][..], b"Records", &[0xff, 0x80]].concat();
    assert_eq!(from_cbor(name).unwrap().records, Some(vec![]));
}

#[test]
fn error_codes_lose_their_namespace() {
    let code = |name: &str, code: &str| {
        let body = [&[0xbf], &text(name)[..], &text(code), &[0xff]].concat();
        ErrorBody::from_cbor(&body).unwrap().code.unwrap()
    };
    assert_eq!(code("__type", "com.amazonaws.kinesis#KMSOptInRequired"), "KMSOptInRequired");
    assert_eq!(code("code", "LimitExceededException:http://internal/"), "LimitExceededException");
    let both = [&[0xa3], &text("code")[..], &text("b"), &text("__type"), &text("a")].concat();
    let body = [&both[..], &text("Message"), &text("why")].concat();
    let expected = ErrorBody { code: Some("a".into()), message: Some("why".into()) };
    assert_eq!(ErrorBody::from_cbor(&body), Ok(expected));
    assert_eq!(ErrorBody::from_cbor(&[0xa0]), Ok(ErrorBody::default()));
    assert!(ErrorBody::from_cbor(b"").is_err());
}
