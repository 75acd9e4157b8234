//! The output: one record in each format, colours, and writes to stdout.

mod escape;
mod json;
mod paint;
mod stdout;
mod template;

use std::time::SystemTime;

pub(crate) use escape::escape;
pub(crate) use json::line as json_line;
pub(crate) use paint::{Paint, obeys_codes};
pub(crate) use stdout::{Written, is_pipe, is_reader_gone, note, say, write_out, write_report};
pub(crate) use template::Template;

use crate::payload::Payload;
use crate::time;

/// The format of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Format {
    /// Shard, arrival, key and data, for people.
    Text,
    /// One JSON object per line.
    Json,
    /// The data as hexadecimal digits.
    Hex,
    /// The data as it is.
    Raw,
    Template(Template),
}

/// The parts of a record that are printed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row<'a> {
    pub(crate) shard: &'a str,
    pub(crate) sequence_number: &'a str,
    pub(crate) sub_sequence_number: u64,
    pub(crate) key: Option<&'a str>,
    pub(crate) arrival: Option<SystemTime>,
    pub(crate) payload: &'a Payload<'a>,
}

/// Prints records in one format.
#[derive(Debug)]
pub(crate) struct RowWriter {
    format: Format,
    paint: Paint,
    /// Data in a template is escaped, since it goes to a terminal.
    is_escaped: bool,
}

impl RowWriter {
    pub(crate) fn new(format: Format, paint: Paint, is_terminal: bool) -> Self {
        Self { format, paint, is_escaped: is_terminal }
    }

    /// Returns the headings of the columns, with a line end; `None` for formats without columns.
    pub(crate) fn headings(&self) -> Option<String> {
        let headings = format!("{:>5} {:24} {} {}\n", "SHARD", "ARRIVAL", "KEY", "DATA");
        (self.format == Format::Text).then(|| self.paint.dim(&headings))
    }

    /// Appends the record and a line end.
    pub(crate) fn write(&self, row: &Row<'_>, out: &mut Vec<u8>) {
        match &self.format {
            Format::Text => out.extend(self.text(row).as_bytes()),
            Format::Json => out.extend(json::object(row).as_bytes()),
            Format::Hex => out.extend(hex(row.payload.bytes()).as_bytes()),
            Format::Raw => out.extend_from_slice(&row.payload.pretty()),
            Format::Template(template) => template.write(row, self.is_escaped, out),
        }
        out.push(b'\n');
    }

    fn text(&self, row: &Row<'_>) -> String {
        let data = row.payload.pretty();
        // A payload of several lines begins below its headings.
        let lead = if row.payload.is_json() && data.contains(&b'\n') { "\n" } else { "" };
        let data = if row.payload.is_json() { escape_lines(&data) } else { escape(&data) };
        format!(
            "{} {} {} {lead}{data}",
            self.paint.name(&format!("{:>5}", short(row.shard))),
            self.paint
                .dim(&format!("{:24}", row.arrival.map_or_else(|| "-".to_owned(), time::shown))),
            self.paint.key(&row.key.map_or_else(|| "-".to_owned(), |key| escape(key.as_bytes()))),
        )
    }
}

/// Escapes each line. The line ends of formatted JSON are its own.
fn escape_lines(text: &[u8]) -> String {
    let lines = text.split(|byte| *byte == b'\n').map(escape);
    lines.collect::<Vec<_>>().join("\n")
}

/// Returns the shard's number: its name without the common prefix.
pub(crate) fn short(shard: &str) -> &str {
    match shard.strip_prefix("shardId-").map(|number| number.trim_start_matches('0')) {
        Some("") => "0",
        Some(number) => number,
        None => shard,
    }
}

fn hex(data: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |value: u8| char::from(DIGITS[usize::from(value & 15)]);
    data.iter().flat_map(|byte| [digit(byte >> 4), digit(*byte)]).collect()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::snapshot::assert_snapshot;

    fn printed(format: Format, key: &str, payload: &Payload<'_>, is_terminal: bool) -> String {
        let row = Row {
            shard: "shardId-000000000012",
            sequence_number: "4959033827149",
            sub_sequence_number: 3,
            key: Some(key),
            arrival: Some(UNIX_EPOCH + Duration::from_millis(1_767_225_600_005)),
            payload,
        };
        let mut out = Vec::new();
        RowWriter::new(format, Paint::plain(), is_terminal).write(&row, &mut out);
        String::from_utf8(out).expect("expected UTF-8")
    }

    #[test]
    fn each_format_prints_one_record() {
        let payload = Payload::plain(b"caf\xc3\xa9 \xe6\x97\xa5");
        let template = Template::parse("{shard}/{seq}:{sub} {key}={data} {time}").unwrap();
        let shown = [
            printed(Format::Text, "jane", &payload, true),
            printed(Format::Json, "jane", &payload, true),
            printed(Format::Hex, "jane", &payload, true),
            printed(Format::Raw, "jane", &payload, true),
            printed(Format::Template(template), "jane", &payload, true),
        ];
        assert_snapshot("formats.txt", include_str!("snapshots/formats.txt"), &shown.concat());
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        let data = b"\x1b[2J\x07 \xc2\x9b31m \xe2\x80\xae evil\r\n\xff\x7f";
        let payload = Payload::plain(data);
        let template = Template::parse("{data}").unwrap();
        for format in [Format::Text, Format::Json, Format::Hex, Format::Template(template)] {
            let printed = printed(format.clone(), "\u{1b}]0;x\u{7}", &payload, true);
            let harmful =
                |letter: char| letter != '\n' && (letter.is_control() || letter == '\u{202e}');
            assert!(
                !printed.trim_end_matches('\n').contains(['\n', '\r']),
                "{format:?}: {printed}"
            );
            assert_eq!(printed.find(harmful), None, "{format:?}: {printed:?}");
        }
    }

    #[test]
    fn template_writes_data_as_it_is_into_a_pipe() {
        let template = Template::parse("{data}").unwrap();
        let printed = printed(Format::Template(template), "k", &Payload::plain(b"a\tb\x07"), false);
        assert_eq!(printed, "a\tb\x07\n");
    }

    #[test]
    fn formatted_json_is_printed_below_its_headings() {
        let payload = Payload::json(br#"{"a":[1,2.50],"b":"\u00e9"}"#.to_vec());
        let shown = [
            printed(Format::Text, "jane", &payload, true),
            printed(Format::Json, "jane", &payload, true),
            printed(Format::Raw, "jane", &payload, true),
        ];
        assert_snapshot("json.txt", include_str!("snapshots/json.txt"), &shown.concat());
    }

    #[test]
    fn shard_is_shown_by_its_number() {
        let shards = ["shardId-000000000000", "shardId-000000001200", "other"];
        assert_eq!(shards.map(short), ["0", "1200", "other"]);
    }
}
