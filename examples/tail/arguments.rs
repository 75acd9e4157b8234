//! The command-line arguments.

use std::time::SystemTime;

use aws_sdk_kinesis::primitives::{DateTime, DateTimeFormat};
use kinestream::{SequenceNumber, ShardId, StartingPosition};
use lexopt::prelude::*;

pub(crate) const USAGE: &str = "\
Prints the records of a Kinesis stream as they arrive.

usage: tail STREAM [options]        STREAM is a name or an ARN
       tail --demo [options]        reads a generated stream in this process

  --from POSITION       latest (default), trim-horizon, a time such as 2026-01-01T00:00:00Z, or a
                        sequence number (requires exactly one --shard)
  --shard SHARD         reads only this shard, by name or number; can be repeated
  --limit-records N     stops after N records
  --format FORMAT       text, json (one object per line), hex, or raw (one payload per line);
                        default: text on a terminal, raw otherwise
  --endpoint-url URL    uses another Kinesis endpoint, such as http://127.0.0.1:4567
  --fan-out CONSUMER    uses enhanced fan-out with this registered consumer
  --application NAME    reads as a worker of this application: resumes from its checkpoints, moves
                        them, and takes a share of its shards, even of those that --shard excludes
  --redis URL           the Redis of the application's checkpoints
  --status              prints the shards and positions of the application without reading
  --help

Region and credentials come from the usual AWS sources: AWS_REGION, AWS_PROFILE, and so on.
Records go to stdout, all other output to stderr. Ctrl-C stops the program.";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum From {
    All(StartingPosition),
    Sequence(SequenceNumber),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Text,
    Json,
    Hex,
    Raw,
}

#[derive(Debug)]
pub(crate) struct Arguments {
    /// `None` for `--demo`.
    pub(crate) stream: Option<String>,
    pub(crate) from: From,
    pub(crate) shards: Vec<ShardId>,
    pub(crate) limit: Option<u64>,
    pub(crate) format: Option<Format>,
    pub(crate) endpoint_url: Option<String>,
    pub(crate) fan_out: Option<String>,
    pub(crate) application: Option<String>,
    pub(crate) redis: Option<String>,
    pub(crate) status: bool,
}

/// Parses the arguments. Returns `None` for `--help`.
pub(crate) fn parse() -> Result<Option<Arguments>, lexopt::Error> {
    let mut parser = lexopt::Parser::from_env();
    let mut found = Arguments {
        stream: None,
        from: From::All(StartingPosition::Latest),
        shards: Vec::new(),
        limit: None,
        format: None,
        endpoint_url: None,
        fan_out: None,
        application: None,
        redis: None,
        status: false,
    };
    let mut demo = false;
    while let Some(argument) = parser.next()? {
        match argument {
            Long("help") | Short('h') => return Ok(None),
            Long("from") => found.from = parser.value()?.parse_with(from)?,
            Long("shard") => found.shards.push(parser.value()?.parse_with(shard)?),
            Long("limit-records") => found.limit = Some(parser.value()?.parse()?),
            Long("format") => found.format = Some(parser.value()?.parse_with(format)?),
            Long("endpoint-url") => found.endpoint_url = Some(parser.value()?.string()?),
            Long("fan-out") => found.fan_out = Some(parser.value()?.string()?),
            Long("application") => found.application = Some(parser.value()?.string()?),
            Long("redis") => found.redis = Some(parser.value()?.string()?),
            Long("status") => found.status = true,
            Long("demo") => demo = true,
            Value(stream) if found.stream.is_none() => found.stream = Some(stream.string()?),
            other => return Err(other.unexpected()),
        }
    }
    if demo == found.stream.is_some() {
        return Err("expected a stream name or --demo, but not both; see --help".into());
    }
    if found.application.is_some() != found.redis.is_some() {
        return Err("--application and --redis must be used together".into());
    }
    if found.status && found.application.is_none() {
        return Err("--status requires --application and --redis".into());
    }
    if matches!(found.from, From::Sequence(_)) && found.shards.len() != 1 {
        return Err("--from with a sequence number requires exactly one --shard".into());
    }
    Ok(Some(found))
}

fn from(text: &str) -> Result<From, String> {
    if let Ok(number) = text.parse() {
        return Ok(From::Sequence(number));
    }
    Ok(From::All(match text {
        "latest" => StartingPosition::Latest,
        "trim-horizon" => StartingPosition::TrimHorizon,
        time => StartingPosition::AtTimestamp(parse_time(time).ok_or(
            "expected latest, trim-horizon, a time such as 2026-01-01T00:00:00Z, or a sequence \
             number",
        )?),
    }))
}

/// Parses a shard by its name or by its number, as printed.
fn shard(text: &str) -> Result<ShardId, kinestream::Error> {
    let number: Option<u64> = text.parse().ok();
    number.map_or_else(|| text.parse(), |number| format!("shardId-{number:012}").parse())
}

fn parse_time(text: &str) -> Option<SystemTime> {
    let time = DateTime::from_str(text, DateTimeFormat::DateTimeWithOffset).ok()?;
    SystemTime::try_from(time).ok()
}

fn format(text: &str) -> Result<Format, &'static str> {
    match text {
        "text" => Ok(Format::Text),
        "json" => Ok(Format::Json),
        "hex" => Ok(Format::Hex),
        "raw" => Ok(Format::Raw),
        _ => Err("expected text, json, hex or raw"),
    }
}
