//! JSON formatted as text, so that numbers, the order of fields and escapes stay as they were
//! written.

use serde::de::IgnoredAny;

/// The most lists and objects around a value.
const MAX_DEPTH: usize = 128;

/// Validates the JSON, and returns it without white space between its parts. Builds no value, which
/// would take many times the space of the text.
pub(super) fn compact(json: &[u8]) -> Result<Vec<u8>, String> {
    let valid = std::str::from_utf8(json).map_err(|_| "not UTF-8".to_owned())?;
    let _valid: IgnoredAny = serde_json::from_str(valid).map_err(|error| error.to_string())?;
    let mut text = Vec::with_capacity(json.len());
    let mut string = InString::default();
    let mut depth = 0_usize;
    for byte in json {
        if string.takes(*byte) {
            text.push(*byte);
            continue;
        }
        match byte {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_DEPTH {
            return Err(format!("nested deeper than {MAX_DEPTH}"));
        }
        if !byte.is_ascii_whitespace() {
            text.push(*byte);
        }
    }
    Ok(text)
}

/// Adds line ends and an indentation of two spaces to valid and compact JSON. Returns `None` if the
/// text would have more than `limit` bytes: the indentation can be many times as long as the data.
pub(super) fn pretty(json: &[u8], limit: usize) -> Option<Vec<u8>> {
    let mut text = Vec::with_capacity(2 * json.len().min(limit));
    let mut string = InString::default();
    let mut depth = 0_usize;
    let mut before = b' ';
    for (index, byte) in json.iter().enumerate() {
        if text.len() > limit {
            return None;
        }
        let (byte, next) = (*byte, json.get(index + 1));
        if string.takes(byte) {
            text.push(byte);
            before = byte;
            continue;
        }
        match byte {
            b'{' | b'[' => {
                text.push(byte);
                // An empty object or list stays on its line.
                if !matches!(next, Some(b'}' | b']')) {
                    depth += 1;
                    new_line(&mut text, depth);
                }
            }
            b'}' | b']' => {
                if !matches!(before, b'{' | b'[') {
                    depth = depth.saturating_sub(1);
                    new_line(&mut text, depth);
                }
                text.push(byte);
            }
            b',' => {
                text.push(byte);
                new_line(&mut text, depth);
            }
            b':' => text.extend_from_slice(b": "),
            _ => text.push(byte),
        }
        before = byte;
    }
    (text.len() <= limit).then_some(text)
}

fn new_line(text: &mut Vec<u8>, depth: usize) {
    text.push(b'\n');
    text.resize(text.len() + 2 * depth, b' ');
}

/// Tells bytes of strings from those between them.
#[derive(Default)]
struct InString {
    is_inside: bool,
    is_escaped: bool,
}

impl InString {
    /// Takes the next byte. Returns true if it belongs to a string, with its quotes.
    fn takes(&mut self, byte: u8) -> bool {
        if !self.is_inside {
            self.is_inside = byte == b'"';
            return self.is_inside;
        }
        match byte {
            _ if self.is_escaped => self.is_escaped = false,
            b'\\' => self.is_escaped = true,
            b'"' => self.is_inside = false,
            _ => {}
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn numbers_and_the_order_of_fields_stay() {
        let text = br#" { "z" : 1.10, "a" : [ ], "n": 123456789012345678901234567890, "s": "a \" , { b" } "#;
        let compact = compact(text).unwrap();
        assert_eq!(
            String::from_utf8(compact.clone()).unwrap(),
            r#"{"z":1.10,"a":[],"n":123456789012345678901234567890,"s":"a \" , { b"}"#
        );
        assert_eq!(
            String::from_utf8(pretty(&compact, 1000).unwrap()).unwrap(),
            "{\n  \"z\": 1.10,\n  \"a\": [],\n  \"n\": 123456789012345678901234567890,\n  \"s\": \"a \\\" , { b\"\n}"
        );
    }

    #[test]
    fn other_text_is_refused() {
        assert!(compact(b"{\"a\":1} x").is_err());
        assert!(compact(b"").is_err());
        assert!(compact("[".repeat(100_000).as_bytes()).is_err(), "expected an error");
        assert!(compact(b"\"\xff\"").is_err());
    }

    #[test]
    fn depth_is_limited() {
        let nested = |depth| "[".repeat(depth) + &"]".repeat(depth);
        assert!(compact(nested(MAX_DEPTH).as_bytes()).is_ok());
        assert_eq!(
            compact(nested(MAX_DEPTH + 1).as_bytes()),
            Err("nested deeper than 128".to_owned())
        );
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "\\PC{0,8}".prop_map(Value::from),
            "[\"\\\\{}\\[\\], :]{0,6}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec(("[a-c\"]{1,2}", inner), 0..4).prop_map(|fields| fields
                    .into_iter()
                    .fold(json!({}), |mut object, (name, value)| {
                        object[name] = value;
                        object
                    })),
            ]
        })
    }

    proptest! {
        #[test]
        fn formatted_json_is_the_same_value_and_is_formatted_as_by_serde(value in any_json()) {
            let wide = serde_json::to_vec_pretty(&value).unwrap();
            let compact = compact(&wide).unwrap();
            prop_assert_eq!(&compact, &serde_json::to_vec(&value).unwrap());
            prop_assert_eq!(pretty(&compact, wide.len()), Some(wide.clone()));
            prop_assert_eq!(pretty(&compact, wide.len() - 1), None);
        }
    }
}
