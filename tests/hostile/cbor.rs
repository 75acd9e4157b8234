//! CBOR in the form of Kinesis, for the server of these tests. It shares no code with the crate's
//! own encoder and decoder.

use serde_json::{Map, Value};

/// A member with this prefix is written without it, so that a map can have a member twice.
pub(crate) const AGAIN: char = '!';

/// Encodes a response: maps and lists without lengths, payloads as bytes, and times as tag 1 with an
/// integer of milliseconds.
pub(crate) fn encode(answer: &Value) -> Vec<u8> {
    let mut body = Vec::new();
    write("", answer, &mut body);
    body
}

fn write(name: &str, value: &Value, body: &mut Vec<u8>) {
    match value {
        Value::Null => body.push(0xf6),
        Value::Bool(value) => body.push(0xf4 + u8::from(*value)),
        Value::Number(number) if name == "ApproximateArrivalTimestamp" => {
            body.push(0xc1);
            integer(millis(number.as_f64().unwrap()), body);
        }
        Value::Number(number) => match (number.as_u64(), number.as_i64()) {
            (Some(number), _) => head(0x00, number, body),
            (_, Some(number)) => integer(number, body),
            _ => {
                body.push(0xfb);
                body.extend(number.as_f64().unwrap().to_be_bytes());
            }
        },
        Value::String(text) => match aws_smithy_types::base64::decode(text) {
            Ok(payload) if name == "Data" => string(0x40, &payload, body),
            _ => string(0x60, text.as_bytes(), body),
        },
        Value::Array(items) => {
            body.push(0x9f);
            for item in items {
                write("", item, body);
            }
            body.push(0xff);
        }
        Value::Object(members) => {
            body.push(0xbf);
            for (name, value) in members {
                let name = name.trim_start_matches(AGAIN);
                string(0x60, name.as_bytes(), body);
                write(name, value, body);
            }
            body.push(0xff);
        }
    }
}

#[allow(clippy::cast_possible_truncation, reason = "a conversion saturates")]
fn millis(seconds: f64) -> i64 {
    (seconds * 1000.0).round() as i64
}

fn integer(number: i64, body: &mut Vec<u8>) {
    let kind = if number < 0 { 0x20 } else { 0x00 };
    // -1 is written as 0.
    head(kind, u64::try_from(if number < 0 { !number } else { number }).unwrap(), body);
}

fn string(kind: u8, text: &[u8], body: &mut Vec<u8>) {
    head(kind, text.len() as u64, body);
    body.extend(text);
}

fn head(kind: u8, argument: u64, body: &mut Vec<u8>) {
    let bytes = argument.to_be_bytes();
    match argument {
        0..=23 => body.push(kind | bytes[7]),
        24..=0xff => body.extend([kind | 0x18, bytes[7]]),
        0x100..=0xffff => {
            body.push(kind | 0x19);
            body.extend(&bytes[6..]);
        }
        0x1_0000..=0xffff_ffff => {
            body.push(kind | 0x1a);
            body.extend(&bytes[4..]);
        }
        _ => {
            body.push(kind | 0x1b);
            body.extend(bytes);
        }
    }
}

/// Decodes a request: a map of texts and integers, with or without a length.
pub(crate) fn decode(mut body: &[u8]) -> Value {
    let mut members = Map::new();
    let (kind, most) = take_head(&mut body);
    assert_eq!(kind, 0xa0, "expected a map");
    while most != Some(members.len() as u64) && body.first() != Some(&0xff) {
        let name = take_value(&mut body).as_str().unwrap().to_owned();
        members.insert(name, take_value(&mut body));
    }
    let end: &[u8] = if most.is_none() { &[0xff] } else { &[] };
    assert_eq!(body, end, "expected the end of the request");
    Value::Object(members)
}

fn take_value(body: &mut &[u8]) -> Value {
    match take_head(body) {
        (0x00, Some(number)) => number.into(),
        (0x60, Some(length)) => {
            let (text, rest) = body.split_at(usize::try_from(length).unwrap());
            *body = rest;
            std::str::from_utf8(text).unwrap().into()
        }
        (kind, argument) => panic!("unexpected in a request: {kind:x} {argument:?}"),
    }
}

/// Returns the major type and its argument, which is absent if the length is not stated.
fn take_head(body: &mut &[u8]) -> (u8, Option<u64>) {
    let (first, rest) = body.split_first().expect("expected a complete request");
    let (kind, short) = (first & 0xe0, first & 0x1f);
    let length = match short {
        0..=23 | 31 => 0,
        24..=27 => 1 << (short - 24),
        _ => panic!("reserved: {first:x}"),
    };
    let (argument, rest) = rest.split_at(length);
    *body = rest;
    let argument = argument.iter().fold(0, |argument, byte| argument << 8 | u64::from(*byte));
    (
        kind,
        match short {
            31 => None,
            0..=23 => Some(short.into()),
            _ => Some(argument),
        },
    )
}

#[test]
fn request_in_either_form_is_decoded() {
    let expected = serde_json::json!({ "ShardIterator": "i", "Limit": 500 });
    let body = b"\x6dShardIterator\x61i\x65Limit\x19\x01\xf4";
    assert_eq!(decode(&[b"\xbf".as_slice(), body, b"\xff"].concat()), expected);
    assert_eq!(decode(&[b"\xa2".as_slice(), body].concat()), expected);
}
