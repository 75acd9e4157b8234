//! Formats one record for printing.

use std::fmt::Write;

use aws_sdk_kinesis::primitives::{DateTime, DateTimeFormat};
use console::style;
use kinestream::Record;
use serde_json::json;

use crate::arguments::Format;

/// Returns the record in this format, with a line end.
pub(crate) fn format_record(record: &Record, format: Format) -> Vec<u8> {
    let mut line = match format {
        Format::Raw => record.data().to_vec(),
        Format::Text => text(record).into_bytes(),
        Format::Json => json(record).into_bytes(),
        Format::Hex => hex(record.data()).into_bytes(),
    };
    line.push(b'\n');
    line
}

fn text(record: &Record) -> String {
    let data = String::from_utf8_lossy(record.data());
    // Escape control characters, which could move the cursor.
    let data: String = data.chars().flat_map(escape_control).collect();
    format!(
        "{} {} {} {data}",
        style(short(record.shard_id().as_str())).cyan(),
        style(arrival(record).unwrap_or_default()).dim(),
        style(record.partition_key().unwrap_or("-").escape_debug()).yellow(),
    )
}

fn escape_control(letter: char) -> impl Iterator<Item = char> {
    let is_harmless = letter == '\t' || !letter.is_control();
    let (plain, escaped) = if is_harmless { (Some(letter), None) } else { (None, Some(letter)) };
    plain.into_iter().chain(escaped.into_iter().flat_map(char::escape_default))
}

fn json(record: &Record) -> String {
    let mut line = json!({
        "shard_id": record.shard_id().as_str(),
        "sequence_number": record.sequence_number().as_str(),
        "sub_sequence_number": record.sub_sequence_number(),
        "partition_key": record.partition_key(),
        "approximate_arrival": arrival(record),
    });
    match std::str::from_utf8(record.data()) {
        Ok(text) => line["data"] = text.into(),
        Err(_) => line["data_hex"] = hex(record.data()).into(),
    }
    line.to_string()
}

fn hex(data: &[u8]) -> String {
    data.iter().fold(String::with_capacity(2 * data.len()), |mut text, byte| {
        let _never_fails = write!(text, "{byte:02x}");
        text
    })
}

fn arrival(record: &Record) -> Option<String> {
    let time = DateTime::from(record.approximate_arrival()?);
    time.fmt(DateTimeFormat::DateTime).ok()
}

/// Returns the shard's number: its name without the common prefix.
pub(crate) fn short(shard: &str) -> &str {
    match shard.strip_prefix("shardId-").map(|number| number.trim_start_matches('0')) {
        Some("") => "0",
        Some(number) => number,
        None => shard,
    }
}
