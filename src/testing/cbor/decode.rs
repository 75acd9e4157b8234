//! Decodes requests.

use aws_smithy_types::base64;
use minicbor::data::Type;
use minicbor::decode::{Decoder, Error};
use serde_json::{Map, Value};

/// The greatest nesting of a request. Requests of Kinesis have three levels.
const MAX_DEPTH: usize = 32;

/// Decodes a request, of any length form and with any tags, to the JSON that the model takes.
pub(in crate::testing) fn decode(body: &[u8]) -> Result<Value, Error> {
    let mut decoder = Decoder::new(body);
    let value = decode_value(&mut decoder, "", MAX_DEPTH)?;
    if decoder.position() < body.len() {
        return Err(Error::message("bytes after the end of the request"));
    }
    Ok(value)
}

/// Decodes the value of a member with this name, or an item of a list, which has no name.
fn decode_value(decoder: &mut Decoder<'_>, name: &str, depth: usize) -> Result<Value, Error> {
    let Some(depth) = depth.checked_sub(1) else {
        return Err(Error::message("too many levels"));
    };
    let is_time = name.ends_with("Timestamp");
    match decoder.datatype()? {
        Type::Null => decoder.null().map(|()| Value::Null),
        Type::Undefined => decoder.undefined().map(|()| Value::Null),
        Type::Bool => decoder.bool().map(Value::from),
        Type::Tag => {
            decoder.tag()?;
            decode_value(decoder, name, depth)
        }
        Type::U8
        | Type::U16
        | Type::U32
        | Type::U64
        | Type::I8
        | Type::I16
        | Type::I32
        | Type::I64
        | Type::Int => {
            let number = decoder.i64()?;
            // Milliseconds, which are seconds in JSON.
            Ok(if is_time { Value::from(number as f64 / 1000.0) } else { Value::from(number) })
        }
        // A time as a double is in seconds by RFC 8949. Kinesis has milliseconds, as integers.
        Type::F32 | Type::F64 if !is_time => decoder.f64().map(Value::from),
        Type::Bytes | Type::BytesIndef => {
            let bytes = decoder.bytes_iter()?.collect::<Result<Vec<_>, _>>()?.concat();
            Ok(Value::String(base64::encode(bytes)))
        }
        Type::String | Type::StringIndef => decode_text(decoder).map(Value::String),
        Type::Array | Type::ArrayIndef => {
            let (mut items, mut rest) = (Vec::new(), decoder.array()?);
            while has_next(decoder, &mut rest)? {
                items.push(decode_value(decoder, "", depth)?);
            }
            Ok(Value::Array(items))
        }
        Type::Map | Type::MapIndef => {
            let (mut members, mut rest) = (Map::new(), decoder.map()?);
            while has_next(decoder, &mut rest)? {
                let name = decode_text(decoder)?;
                let value = decode_value(decoder, &name, depth)?;
                members.insert(name, value);
            }
            Ok(Value::Object(members))
        }
        other => Err(Error::type_mismatch(other)),
    }
}

fn decode_text(decoder: &mut Decoder<'_>) -> Result<String, Error> {
    decoder.str_iter()?.collect()
}

/// Returns true if a map or a list has another item. `rest` is the number of its items, if known.
fn has_next(decoder: &mut Decoder<'_>, rest: &mut Option<u64>) -> Result<bool, Error> {
    if let Some(rest) = rest {
        let has_next = *rest > 0;
        *rest = rest.saturating_sub(1);
        return Ok(has_next);
    }
    let is_end = decoder.datatype()? == Type::Break;
    if is_end {
        decoder.set_position(decoder.position() + 1);
    }
    Ok(!is_end)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::decode;

    fn assert_decoded(request: &[u8], expected: &serde_json::Value) {
        assert_eq!(decode(request).unwrap(), *expected, "of {request:x?}");
        for end in 0..request.len() {
            let prefix = &request[..end];
            assert!(decode(prefix).is_err(), "expected {prefix:x?} to be refused");
        }
    }

    #[test]
    fn request_of_any_length_form_is_decoded() {
        let expected = json!({ "ShardIterator": "ab", "Limit": 10, "List": ["x", null, true] });
        assert_decoded(
            b"\xa3\x6dShardIterator\x62ab\x65Limit\x0a\x64List\x83\x61x\xf6\xf5",
            &expected,
        );
        assert_decoded(
            b"\xbf\x6dShardIterator\x7f\x61a\x60\x61b\xff\x65Limit\x1b\0\0\0\0\0\0\0\x0a\
              \x7f\x62Li\x62st\xff\x9f\x78\x01x\xf7\xf5\xff\xff",
            &expected,
        );
    }

    #[test]
    fn bytes_become_base64_and_tags_are_ignored() {
        assert_decoded(
            b"\xd9\xd9\xf7\xa3\x64Data\x43\x01\x02\x03\x64More\x5f\x41\x01\x42\x02\x03\xff\x61n\xc1\x20",
            &json!({ "Data": "AQID", "More": "AQID", "n": -1 }),
        );
    }

    #[test]
    fn times_are_integers_of_milliseconds() {
        // The end of a request of the Java SDK.
        let expected = json!({ "Timestamp": 1_787_036_486.712 });
        assert_decoded(b"\xbf\x69Timestamp\xc1\x1b\0\0\x01\xa0\x13\xac\xcc\x38\xff", &expected);
        assert_decoded(b"\xa1\x69Timestamp\x1b\0\0\x01\xa0\x13\xac\xcc\x38", &expected);
        let seconds = b"\xa1\x69Timestamp\xc1\xfb\x41\xda\xa0\xf8\x71\xad\x91\x68";
        assert!(decode(seconds).is_err(), "expected a double to be refused as a time");
    }

    #[test]
    fn malformed_request_is_refused() {
        let deep = [vec![0x81; 100_000], vec![0]].concat();
        let tagged = [vec![0xc1; 100_000], vec![0]].concat();
        let cases: [&[u8]; 12] = [
            b"",
            b"{\"a\":1}",
            // Trailing bytes, and an end without a beginning.
            b"\xa0\xa0",
            b"\xff",
            // Lengths beyond the end.
            b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff\x00",
            b"\xbb\xff\xff\xff\xff\xff\xff\xff\xff\x61a\x00",
            b"\x5b\xff\xff\xff\xff\xff\xff\xff\xff\x00",
            // A name that is no text, and a text that is not UTF-8.
            b"\xa1\x01\x01",
            b"\x62\xff\xff",
            // A reserved byte.
            b"\x1c",
            &deep,
            &tagged,
        ];
        for case in cases {
            let start = &case[..case.len().min(16)];
            assert!(decode(case).is_err(), "expected {start:x?} to be refused");
        }
    }
}
