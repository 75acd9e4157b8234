//! Selects, decodes and formats records.

use kinestream::Record;
use regex::bytes::Regex;

use crate::arguments::TailArguments;
use crate::output::{Row, RowWriter};
use crate::payload::{Payload, Step};

/// The notes about undecodable records that are shown in full.
const MAX_NOTES: u64 = 5;

/// Appends the selected records to an output.
#[derive(Debug)]
pub(super) struct Printer {
    writer: RowWriter,
    key: Option<String>,
    grep: Option<Regex>,
    decode: Vec<Step>,
    /// The records that a step could not decode.
    undecoded: u64,
    /// The notes that were shown.
    noted: u64,
}

impl Printer {
    pub(super) fn new(writer: RowWriter, arguments: &TailArguments) -> Self {
        Self {
            writer,
            key: arguments.key.clone(),
            grep: arguments.grep.clone(),
            decode: arguments.decode.clone(),
            undecoded: 0,
            noted: 0,
        }
    }

    pub(super) fn headings(&self) -> Option<String> {
        self.writer.headings()
    }

    /// Appends the record to `out` if it is selected. Returns true if it is, and a note for stderr.
    pub(super) fn print(&mut self, record: &Record, out: &mut Vec<u8>) -> (bool, Option<String>) {
        let is_other = |key: &String| record.partition_key() != Some(key);
        if self.key.as_ref().is_some_and(is_other) {
            return (false, None);
        }
        let (payload, note) = Payload::decode(record.data(), &self.decode);
        let is_left_out =
            self.grep.as_ref().is_some_and(|pattern| !pattern.is_match(payload.bytes()));
        let number = record.sequence_number();
        let note = note.and_then(|note| {
            if payload.is_json() {
                return (!is_left_out).then(|| format!("record {number} is not indented: {note}"));
            }
            // Without this note, a wrong --decode would hide all records from --grep.
            self.undecoded += 1;
            let shown = if is_left_out { "is left out by --grep" } else { "is shown as it is" };
            Some(format!("record {number} {shown}: {note}"))
        });
        if is_left_out {
            return (false, note);
        }
        let row = Row {
            shard: record.shard_id().as_str(),
            sequence_number: record.sequence_number().as_str(),
            sub_sequence_number: record.sub_sequence_number(),
            key: record.partition_key(),
            arrival: record.approximate_arrival(),
            payload: &payload,
        };
        self.writer.write(&row, out);
        (true, note)
    }

    /// Returns the text of a note that is to be shown, unless enough notes were shown before.
    pub(super) fn limited(&mut self, note: &str) -> Option<String> {
        self.noted += 1;
        let more = if self.noted == MAX_NOTES { "; further notes are left out" } else { "" };
        (self.noted <= MAX_NOTES).then(|| format!("{note}{more}"))
    }

    /// Returns the number of records that could not be decoded.
    pub(super) fn undecoded(&self) -> u64 {
        self.undecoded
    }
}
