//! The command-line arguments. Their comments are the texts of the help.
#![allow(clippy::doc_markdown, reason = "the help is not Markdown")]
#![allow(clippy::struct_excessive_bools, reason = "each flag is one")]

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use clap::{Args, Parser, Subcommand, ValueEnum};
use kinestream::ShardId;
use regex::bytes::Regex;

use crate::output::Template;
use crate::payload::Step;
use crate::put::KeyTemplate;
use crate::time::{self, Since};

/// Reads, writes and inspects Amazon Kinesis Data Streams.
#[derive(Debug, Parser)]
#[command(name = "kinestream", version, max_term_width = 100, arg_required_else_help = true)]
#[command(after_help = "\
Times are UTC unless they have an offset. Region and credentials come from the usual AWS sources:
AWS_REGION, AWS_PROFILE, the profile files, SSO, instance roles. NO_COLOR turns colours off.

Exit codes: 0 success, also after Ctrl-C; 1 failure; 2 wrong arguments.")]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) aws: Aws,
    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Arguments {
    /// Refuses arguments that contradict each other in a way that only their values show.
    pub(crate) fn check(&self) -> Result<(), String> {
        match &self.command {
            Command::Tail(arguments) => arguments.check(SystemTime::now()),
            _ => Ok(()),
        }
    }
}

/// The AWS account and endpoint.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "AWS options")]
pub(crate) struct Aws {
    /// Uses this profile of the AWS configuration files
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) profile: Option<String>,
    /// Uses this AWS region, such as eu-west-1
    #[arg(long, global = true, value_name = "NAME", value_parser = region)]
    pub(crate) region: Option<String>,
    /// Uses another Kinesis endpoint, such as http://127.0.0.1:4567; a local one needs no credentials
    #[arg(long, global = true, value_name = "URL", value_parser = endpoint)]
    pub(crate) endpoint_url: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Prints the records of a stream as they arrive
    #[command(after_help = TAIL_EXAMPLES)]
    Tail(Box<TailArguments>),
    /// Puts lines into a stream, one record per line
    #[command(after_help = PUT_EXAMPLES)]
    Put(PutArguments),
    /// Lists the streams of the account and region
    Streams,
    /// Shows a stream: its shards as a tree of splits and merges, its retention and its consumers
    Describe {
        /// Name or ARN of the stream
        stream: String,
    },
    /// Shows the workers, positions and lag of an application
    Status(StatusArguments),
    /// Moves an application to another position of the stream
    #[command(after_help = SEEK_EXAMPLES)]
    Seek(SeekArguments),
    /// Deletes the stored positions of an application, which then starts at its starting position
    Reset(ResetArguments),
    /// Prints a completion script for a shell
    #[command(after_help = "Example: kinestream completions bash > \
                            ~/.local/share/bash-completion/completions/kinestream")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

const TAIL_EXAMPLES: &str = "\
Examples:
  kinestream tail --demo                                  a generated stream, without an account
  kinestream tail orders --since 1h --until 10m           an hour, except for the last ten minutes
  kinestream tail orders --last 20                        the last 20 records
  kinestream tail orders --since trim-horizon --exit-at-end --output json > orders.jsonl
  kinestream tail orders --key customer-7 --decode gzip --decode json
  kinestream tail orders --template '{time} {key} {data}'";

const PUT_EXAMPLES: &str = "\
Key templates: text with {line} (the line), {number} (its number), {random}, and {.customer.id} (a
field of a line of JSON).

Order: one request is in flight at a time. If Kinesis stores only a part of a request, the rest is
sent again before any later line. A later line of the same request may have been stored already.

Examples:
  kinestream put orders orders.jsonl --key '{.customer.id}'
  journalctl -f | kinestream put logs --key host-7";

const SEEK_EXAMPLES: &str = "\
Examples:
  kinestream seek orders --application billing --redis redis://127.0.0.1/ --to 1h
  kinestream seek orders --application billing --redis redis://127.0.0.1/ --to latest --shard 3";

#[derive(Debug, Args)]
pub(crate) struct TailArguments {
    /// Name or ARN of the stream
    #[arg(required_unless_present = "demo", conflicts_with = "demo")]
    pub(crate) stream: Option<String>,
    /// Reads a generated stream on a Kinesis in this process, without an account
    #[arg(long)]
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
    pub(crate) count: Option<u64>,
    /// Prints the last N records before now and ends. Reads back in growing steps: up to eight times
    /// as much of the stream as the records need
    #[arg(long, value_name = "N", help_heading = "Range")]
    #[arg(conflicts_with_all = ["since", "until", "exit_at_end", "count", "application", "fan_out"])]
    pub(crate) last: Option<usize>,

    /// Reads only this shard, by name or number; can be repeated
    #[arg(long, value_name = "SHARD", value_parser = shard, help_heading = "Selection")]
    pub(crate) shard: Vec<ShardId>,
    /// Prints only records with this partition key
    #[arg(long, value_name = "KEY", help_heading = "Selection")]
    pub(crate) key: Option<String>,
    /// Prints only records whose data matches this regular expression: the data after --decode, JSON
    /// without white space between its parts
    #[arg(long, value_name = "REGEX", help_heading = "Selection")]
    pub(crate) grep: Option<Regex>,

    /// text (for people), json (an object per line), hex, raw (the data), or template; by default
    /// text on a terminal, and raw otherwise
    #[arg(
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

    /// Uses enhanced fan-out with this registered consumer, which is registered if necessary
    #[arg(long, value_name = "NAME", help_heading = "Consumer")]
    pub(crate) fan_out: Option<String>,
    /// Reads as a worker of this application: resumes from its checkpoints, moves them, and takes a
    /// share of its shards
    #[arg(long, value_name = "NAME", requires = "redis", help_heading = "Consumer")]
    pub(crate) application: Option<String>,
    /// The Redis of the application's checkpoints, such as redis://127.0.0.1/
    #[arg(long, value_name = "URL", requires = "application", help_heading = "Consumer")]
    pub(crate) redis: Option<String>,
}

impl TailArguments {
    fn check(&self, now: SystemTime) -> Result<(), String> {
        if self.template.is_some()
            && self.output.is_some_and(|output| output != OutputName::Template)
        {
            return Err("--template is an output format of its own; leave out --output".to_owned());
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

#[derive(Debug, Args)]
pub(crate) struct PutArguments {
    /// Name or ARN of the stream
    pub(crate) stream: String,
    /// Files of lines; - or none for stdin
    pub(crate) files: Vec<PathBuf>,
    /// Partition key of each record: text with {line}, {number}, {random} or {.json.field}
    #[arg(long, value_name = "TEMPLATE", value_parser = KeyTemplate::parse, default_value = "{random}")]
    pub(crate) key: KeyTemplate,
    /// Sends at most this many records per second
    #[arg(long, value_name = "RECORDS", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rate: Option<u32>,
    /// Gives up after a record has failed this many times in a row
    #[arg(long, value_name = "TIMES", default_value_t = 10)]
    pub(crate) retries: u32,
    /// Reads the lines and their keys, and sends nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Shows no progress and no summary on stderr
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Args)]
pub(crate) struct StatusArguments {
    /// Name or ARN of the stream; all streams of the store by default
    #[arg(required_unless_present = "redis")]
    pub(crate) stream: Option<String>,
    /// The application; all applications of the store by default
    #[arg(long, value_name = "NAME", requires = "stream")]
    pub(crate) application: Option<String>,
    /// The Redis of the application's checkpoints, such as redis://127.0.0.1/
    #[arg(long, value_name = "URL", required = true)]
    pub(crate) redis: String,
    /// Shows the status again each TIME, 2s by default, until Ctrl-C
    #[arg(long, value_name = "TIME", value_parser = pause, num_args = 0..=1)]
    #[arg(default_missing_value = "2s", requires = "application")]
    pub(crate) watch: Option<Duration>,
}

/// The application whose positions change.
#[derive(Debug, Args)]
pub(crate) struct Target {
    /// Name or ARN of the stream, as the application names it
    pub(crate) stream: String,
    /// The application
    #[arg(long, value_name = "NAME")]
    pub(crate) application: String,
    /// The Redis of the application's checkpoints, such as redis://127.0.0.1/
    #[arg(long, value_name = "URL")]
    pub(crate) redis: String,
    /// Makes the change without asking
    #[arg(short, long)]
    pub(crate) yes: bool,
    /// Shows what would change, and changes nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Makes the change while workers of the application are alive
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct SeekArguments {
    #[command(flatten)]
    pub(crate) target: Target,
    /// The new position: latest, trim-horizon, a time, a duration before now, or the sequence number
    /// of the last record to skip, with one --shard
    #[arg(long, value_name = "POSITION", value_parser = time::since)]
    pub(crate) to: Since,
    /// Moves only this shard, by name or number; can be repeated
    #[arg(long, value_name = "SHARD", value_parser = shard)]
    pub(crate) shard: Vec<ShardId>,
}

#[derive(Debug, Args)]
pub(crate) struct ResetArguments {
    #[command(flatten)]
    pub(crate) target: Target,
}

/// Parses a pause of at least one second.
fn pause(text: &str) -> Result<Duration, String> {
    match time::duration(text)? {
        pause if pause < Duration::from_secs(1) => Err("expected at least 1s".to_owned()),
        pause => Ok(pause),
    }
}

/// Parses the name of a region. With other characters, no host has the name.
fn region(text: &str) -> Result<String, String> {
    let is_part = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if text.is_empty() || !text.bytes().all(is_part) {
        return Err("expected a region such as eu-west-1".to_owned());
    }
    Ok(text.to_owned())
}

/// Parses the URL of an endpoint. Without a scheme, each call would fail and be retried.
fn endpoint(text: &str) -> Result<String, String> {
    let host = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    match host {
        Some(host) if !host.is_empty() && !host.starts_with('/') => Ok(text.to_owned()),
        _ => Err("expected a URL such as http://127.0.0.1:4567 or https://example.com".to_owned()),
    }
}

/// Parses a shard by its name or by its number, as printed.
fn shard(text: &str) -> Result<ShardId, kinestream::Error> {
    let number: Option<u64> = text.parse().ok();
    number.map_or_else(|| text.parse(), |number| format!("shardId-{number:012}").parse())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(words: &str) -> Result<Arguments, String> {
        let words = ["kinestream"].into_iter().chain(words.split_whitespace());
        Arguments::try_parse_from(words).map_err(|error| error.to_string())
    }

    fn tail(words: &str) -> TailArguments {
        match parse(words).expect(words).command {
            Command::Tail(arguments) => *arguments,
            other => panic!("expected tail, found {other:?}"),
        }
    }

    #[test]
    fn definition_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn shard_is_given_by_name_or_number() {
        let parsed = tail("tail orders --shard 3 --shard shardId-000000000012");
        let shards: Vec<_> = parsed.shard.iter().map(ShardId::as_str).collect();
        assert_eq!(shards, ["shardId-000000000003", "shardId-000000000012"]);
    }

    #[test]
    fn options_are_given_before_or_after_the_command() {
        for words in ["--region eu-west-1 tail orders", "tail orders --region eu-west-1"] {
            assert_eq!(parse(words).unwrap().aws.region.as_deref(), Some("eu-west-1"));
        }
    }

    #[test]
    fn tail_needs_a_stream_or_the_demonstration() {
        assert!(parse("tail").is_err());
        assert!(parse("tail orders --demo").is_err());
        assert!(tail("tail --demo").demo);
        assert_eq!(tail("tail orders").since, Since::Latest);
    }

    #[test]
    fn contradictions_are_refused() {
        for words in [
            "tail orders --until 10m --exit-at-end",
            "tail orders --last 3 --since 10m",
            "tail orders --application billing",
            "tail orders --grep (",
            "tail orders --region eu_west_1",
            "tail orders --endpoint-url 127.0.0.1:4567",
            "tail orders --endpoint-url ftp://127.0.0.1",
            "tail orders --endpoint-url http:///x",
            "tail orders --template {nope}",
            "tail orders --output template",
            "put orders --rate 0",
            "status orders --application billing",
            "status --redis redis://127.0.0.1/ --watch",
            "status orders --application billing --redis redis://127.0.0.1/ --watch=0s",
            "seek orders --to latest",
        ] {
            assert!(parse(words).is_err(), "expected {words:?} to be refused");
        }
    }

    #[test]
    fn readings_without_a_record_are_refused() {
        for words in [
            "--since 10m --until 1h",
            "--until 10m",
            "--since latest --until 2026-01-01",
            "--template {data} --output json",
        ] {
            let parsed = parse(&format!("tail orders {words}")).unwrap();
            assert!(parsed.check().is_err(), "expected {words:?} to be refused");
        }
        for words in [
            "--since 1h --until 10m",
            "--until 2999-01-01",
            "--since trim-horizon --until 10m",
            "--until 10m --application billing --redis redis://127.0.0.1/",
            "--template {data} --output template",
        ] {
            let parsed = parse(&format!("tail orders {words}")).unwrap();
            assert_eq!(parsed.check(), Ok(()), "{words:?}");
        }
    }

    #[test]
    fn watch_has_a_default_interval() {
        let words = "status orders --application billing --redis redis://127.0.0.1/";
        for (more, expected) in
            [("", None), ("--watch", Some(2)), ("--watch=10s", Some(10)), ("--watch 5s", Some(5))]
        {
            let Command::Status(parsed) = parse(&format!("{words} {more}")).unwrap().command else {
                panic!("expected status");
            };
            assert_eq!(parsed.watch, expected.map(Duration::from_secs));
        }
    }

    #[test]
    fn help_of_each_command_is_as_in_the_snapshot() {
        let mut shown = String::new();
        let mut command = Arguments::command().term_width(100);
        command.build();
        shown += &command.render_help().to_string();
        for name in ["tail", "put", "streams", "describe", "status", "seek", "reset"] {
            let found = command.find_subcommand_mut(name).expect(name);
            shown += &format!("\n== {name}\n\n{}", found.render_help());
        }
        crate::snapshot::assert_snapshot("help.txt", include_str!("snapshots/help.txt"), &shown);
    }
}
