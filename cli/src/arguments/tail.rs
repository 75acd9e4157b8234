//! The arguments of `kinestream tail`.

use std::time::SystemTime;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, ValueEnum};
use kinestream::ShardId;
use regex::bytes::Regex;

use super::store::{self, Store};
use super::values::{ONE_SHARD, number, shard};
use crate::output::Template;
use crate::payload::Step;
use crate::stream_arn::parse_stream;
use crate::time::{self, Since};

pub(super) const EXAMPLES: &str = "\
Examples:
  kinestream tail --demo                                  a generated stream, without an account
  kinestream tail orders --since 1h --until 10m           an hour, except for the last ten minutes
  kinestream tail orders --last 20                        the last 20 records
  kinestream tail orders --since trim-horizon --exit-at-end --output json > orders.jsonl
  kinestream tail orders --key customer-7 --decode gzip --decode json
  kinestream tail orders --template '{time} {key} {data}'";

#[derive(Debug, Args)]
pub(crate) struct TailArguments {
    /// Name or ARN of the stream
    #[arg(required_unless_present = "demo", conflicts_with = "demo", value_parser = parse_stream)]
    pub(crate) stream: Option<String>,
    /// Reads a generated stream on a Kinesis in this process, without an account
    #[arg(long, conflicts_with = "application")]
    pub(crate) demo: bool,

    /// Starts at: latest, trim-horizon, a time (2026-11-01, 2026-11-01T12:00:00Z), a duration before
    /// now (10m, 2d), or a sequence number of the one --shard
    #[arg(long, value_name = "POSITION", value_parser = time::since, default_value = "latest")]
    #[arg(help_heading = "Range")]
    pub(crate) since: Since,
    /// Ends at this time or duration before now; a time to come is waited for. A quiet shard ends five
    /// minutes after the time
    #[arg(long, value_name = "TIME", value_parser = time::moment, help_heading = "Range")]
    pub(crate) until: Option<SystemTime>,
    /// Ends where the stream ends now
    #[arg(long, conflicts_with = "until", help_heading = "Range")]
    pub(crate) exit_at_end: bool,
    /// Ends after this many printed records
    #[arg(short = 'n', long = "count", value_name = "COUNT", help_heading = "Range")]
    #[arg(value_parser = number::<u64>, allow_negative_numbers = true)]
    pub(crate) count: Option<u64>,
    /// Prints the last N records before now and ends. Reads back in growing steps: up to eight times
    /// as much of the stream as the records need
    #[arg(long, value_name = "N", help_heading = "Range", allow_negative_numbers = true)]
    #[arg(value_parser = number::<usize>)]
    #[arg(conflicts_with_all = ["since", "until", "exit_at_end", "count", "application", "fan_out"])]
    pub(crate) last: Option<usize>,

    /// Reads only this shard, by name or number; can be repeated
    #[arg(long, value_name = "SHARD", value_parser = shard, help_heading = "Selection")]
    pub(crate) shard: Vec<ShardId>,
    /// Prints only records with this partition key
    #[arg(long, value_name = "KEY", help_heading = "Selection")]
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub(crate) key: Option<String>,
    /// Prints only records whose data matches this regular expression: the data after --decode, JSON
    /// without white space between its parts
    #[arg(long, value_name = "REGEX", help_heading = "Selection")]
    pub(crate) grep: Option<Regex>,

    /// text (for people), json (an object per line), hex, raw (the data), or template; by default
    /// text on a terminal, and raw otherwise
    #[arg(
        short,
        long,
        value_enum,
        hide_possible_values = true,
        value_name = "FORMAT",
        help_heading = "Output"
    )]
    pub(crate) output: Option<OutputName>,
    /// Prints text with fields in braces: {data} {key} {seq} {sub} {shard} {shard_id} {time} {hex}
    /// {base64} {size}
    #[arg(long, value_name = "TEXT", value_parser = Template::parse, help_heading = "Output")]
    #[arg(required_if_eq("output", "template"))]
    pub(crate) template: Option<Template>,
    /// Decodes the data: gzip, zstd, base64 or json (formatted); can be repeated, in order
    #[arg(
        long,
        value_enum,
        hide_possible_values = true,
        value_name = "STEP",
        help_heading = "Output"
    )]
    pub(crate) decode: Vec<Step>,
    /// Merges the shards by arrival time; records are printed about two seconds late
    #[arg(long, help_heading = "Output")]
    pub(crate) sort: bool,
    /// Shows no live lines, notes or summary on stderr
    #[arg(short, long, help_heading = "Output")]
    pub(crate) quiet: bool,

    /// Uses enhanced fan-out with this registered consumer. It is registered if necessary, and stays
    /// registered
    #[arg(long, value_name = "NAME", help_heading = "Consumer")]
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub(crate) fan_out: Option<String>,
    /// Reads as a worker of this application: resumes from its checkpoints, moves them, and takes a
    /// share of its shards
    #[arg(long, value_name = "NAME", requires = store::GROUP, help_heading = "Consumer")]
    pub(crate) application: Option<String>,
    #[command(flatten)]
    pub(crate) store: Option<Store>,
}

impl TailArguments {
    pub(super) fn check(&self, now: SystemTime) -> Result<(), String> {
        if self.template.is_some()
            && self.output.is_some_and(|output| output != OutputName::Template)
        {
            return Err("--template is an output format of its own; leave out --output".to_owned());
        }
        let is_store_named = self.store.as_ref().is_some_and(Store::is_named_by_option);
        if is_store_named && self.application.is_none() {
            return Err(
                "the store holds the checkpoints of an application; pass --application as \
                        well"
                    .to_owned(),
            );
        }
        if matches!(self.since, Since::Sequence(_)) && self.shard.len() != 1 {
            return Err(ONE_SHARD.to_owned());
        }
        let Some(until) = self.until else { return Ok(()) };
        match self.since {
            Since::Time(since) if until <= since => {
                Err("--until is not after --since, so there is nothing to read; pass a later \
                     --until or an earlier --since"
                    .to_owned())
            }
            // An application resumes from its checkpoints.
            Since::Latest if until <= now && self.application.is_none() => {
                Err("--until is in the past, and the reading starts now; pass an earlier --since, \
                     such as --since 1h"
                    .to_owned())
            }
            _ => Ok(()),
        }
    }
}

/// The name of an output format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputName {
    Text,
    Json,
    Hex,
    Raw,
    Template,
}
