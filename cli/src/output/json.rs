//! One line of JSON: a record, or a report.

use serde::Serialize;

use super::Row;
use super::escape::is_harmless;
use crate::failure::{Failure, Outcome};
use crate::time;

/// Returns the report as an object on one line, with a line end.
pub(crate) fn line(report: &impl Serialize) -> Outcome<String> {
    let json = serde_json::to_string(report);
    let json = json.map_err(|error| Failure::new(format!("cannot write JSON: {error}")))?;
    Ok(without_controls(&json) + "\n")
}

/// Returns the record as an object. Data that is not UTF-8 is in `data_base64`.
pub(super) fn object(row: &Row<'_>) -> String {
    let data = row.payload.bytes();
    let data = match std::str::from_utf8(data) {
        // Validated and compact, so that it fits into the line.
        Ok(json) if row.payload.is_json() => format!("\"data\":{}", without_controls(json)),
        Ok(text) => format!("\"data\":{}", string(text)),
        Err(_) => {
            let text = base64_simd::STANDARD.encode_to_string(data);
            format!("\"data_base64\":{}", string(&text))
        }
    };
    format!(
        "{{\"shard_id\":{},\"sequence_number\":{},\"sub_sequence_number\":{},\"partition_key\":{},\
         \"approximate_arrival\":{},{data}}}",
        string(row.shard),
        string(row.sequence_number),
        row.sub_sequence_number,
        row.key.map_or_else(|| "null".to_owned(), string),
        row.arrival.map_or_else(|| "null".to_owned(), |arrival| string(&time::shown(arrival))),
    )
}

/// Returns the text as a JSON string. Escapes the controls that JSON allows as they are, too.
fn string(text: &str) -> String {
    without_controls(&serde_json::Value::from(text).to_string())
}

/// Escapes the characters inside strings that JSON allows as they are, and a terminal obeys.
fn without_controls(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for letter in json.chars() {
        if is_harmless(letter) {
            text.push(letter);
        } else {
            text += &format!("\\u{:04x}", u32::from(letter));
        }
    }
    text
}
