//! The arguments of `kinestream put`.

use std::path::PathBuf;

use clap::Args;

use super::values;
use crate::put::KeyTemplate;
use crate::stream_arn::parse_stream;

pub(super) const EXAMPLES: &str = "\
Key templates: text with {line} (the line), {number} (its number), {random}, and {.customer.id} (a
field of a line of JSON).

Order: one request is in flight at a time. If Kinesis stores only a part of a request, the rest is
sent again before any later line. A later line of the same request may have been stored already.

Examples:
  kinestream put orders orders.jsonl --key '{.customer.id}'
  journalctl -f | kinestream put logs --key host-7";

#[derive(Debug, Args)]
pub(crate) struct PutArguments {
    /// Name or ARN of the stream
    #[arg(value_parser = parse_stream)]
    pub(crate) stream: String,
    /// Files of lines; - or none for stdin
    pub(crate) files: Vec<PathBuf>,
    /// Partition key of each record: text with {line}, {number}, {random} or {.json.field}
    #[arg(long, value_name = "TEMPLATE", value_parser = KeyTemplate::parse, default_value = "{random}")]
    pub(crate) key: KeyTemplate,
    /// Sends at most this many records per second
    #[arg(long, value_name = "RECORDS", value_parser = values::positive, allow_negative_numbers = true)]
    pub(crate) rate: Option<u32>,
    /// Gives up after a record has failed this many times in a row
    #[arg(long, value_name = "TIMES", default_value_t = 10, value_parser = values::number::<u32>)]
    #[arg(allow_negative_numbers = true)]
    pub(crate) retries: u32,
    /// Reads the lines and their keys, and sends nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Shows no progress and no summary on stderr
    #[arg(short, long)]
    pub(crate) quiet: bool,
}
