//! Bodies that are made to cost far more than their length.

use super::*;

fn text(text: &str) -> Vec<u8> {
    [&[0x78, u8::try_from(text.len()).unwrap()], text.as_bytes()].concat()
}

const TOO_MANY: Unreadable = Unreadable("the records are too many for the length of the body");
const RELATIVES: Unreadable = Unreadable("a shard has too many children or parents");

#[test]
fn claimed_length_gets_no_memory() {
    for claim in [0x9a_u8, 0x5a, 0x7a, 0xba] {
        let body = [&[0xa1], &text("Records")[..], &[claim, 0xff, 0xff, 0xff, 0xff]].concat();
        assert!(from_cbor(body).is_err());
    }
    // The claim fits the body, but the records do not.
    let list = [&[0x9a, 0, 0x0f, 0x42, 0x40, 0xa0][..], &vec![0xf6; 999_999]].concat();
    let body = [&[0xa1], &text("Records")[..], &list].concat();
    let length = body.len();
    let records = Response::from_cbor(body).unwrap().records.unwrap();
    assert_eq!(records.len(), 1);
    assert!(records.capacity() * size_of::<RecordRange>() <= length + size_of::<RecordRange>());
}

#[test]
fn records_that_are_too_short_for_their_number_are_refused() {
    let list = [&[0x9f][..], &vec![0xa0; 100_000], &[0xff]].concat();
    assert_eq!(from_cbor([&[0xa1], &text("Records")[..], &list].concat()), Err(TOO_MANY));
    let list = [&[0x9f][..], &vec![0xa0; 10_000], &[0xff]].concat();
    let few = from_cbor([&[0xa1], &text("Records")[..], &list].concat()).unwrap();
    assert_eq!(few.records.unwrap().len(), 10_000);
    let json = format!(r#"{{"Records":[{}{{}}]}}"#, "{},".repeat(100_000));
    assert_eq!(from_json(json), Err(TOO_MANY));
    let record = r#"{"SequenceNumber":"1"}"#;
    let json = format!(r#"{{"Records":[{}{record}]}}"#, format!("{record},").repeat(20_000));
    assert_eq!(from_json(json).unwrap().records.unwrap().len(), 20_001);
}

#[test]
fn children_and_parents_beyond_all_sense_are_refused() {
    let list = [&[0x9f][..], &vec![0xa0; 1_000], &[0xff]].concat();
    assert_eq!(from_cbor([&[0xa1], &text("ChildShards")[..], &list].concat()), Err(RELATIVES));
    let parents = [&[0x9f][..], &vec![0x60; 1_000], &[0xff]].concat();
    let child = [&[0x81, 0xa1], &text("ParentShards")[..], &parents].concat();
    assert_eq!(from_cbor([&[0xa1], &text("ChildShards")[..], &child].concat()), Err(RELATIVES));
    let json = format!(r#"{{"ChildShards":[{}{{}}]}}"#, "{},".repeat(1_000));
    assert_eq!(from_json(json), Err(RELATIVES));
    let json = format!(r#"{{"ChildShards":[{{"ParentShards":[{}""]}}]}}"#, r#""","#.repeat(1_000));
    assert_eq!(from_json(json), Err(RELATIVES));
}

#[test]
fn deep_nesting_does_not_exhaust_the_stack() {
    let nested = |depth: usize| [&[0xa1], &text("Other")[..], &vec![0x81; depth], &[0xf6]].concat();
    assert!(from_cbor(nested(31)).is_ok());
    assert_eq!(from_cbor(nested(32)), Err(Unreadable("a member is nested too deeply")));
    assert!(from_cbor(nested(1_000_000)).is_err());
    assert!(from_cbor([&[0xa1], &text("Other")[..], &vec![0x9f; 1_000_000]].concat()).is_err());
    let tags = [&vec![0xc1; 1_000_000][..], &[0xa0]].concat();
    assert!(from_cbor(tags).is_ok());
    let json = |depth| format!(r#"{{"Other":{}{}}}"#, "[".repeat(depth), "]".repeat(depth));
    assert!(from_json(json(100)).is_ok());
    let _ = from_json(json(1_000_000));
    assert!(from_json("[".repeat(1_000_000)).is_err());
    assert!(from_json(r#"{"Records":["#.repeat(1_000_000)).is_err());
}
