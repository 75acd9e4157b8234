//! The command-line arguments. Their comments are the texts of the help.
#![allow(clippy::doc_markdown, reason = "the help is not Markdown")]
#![allow(clippy::struct_excessive_bools, reason = "each flag is one")]

mod application;
mod aws;
mod put;
mod store;
mod tail;
mod values;

use std::time::SystemTime;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub(crate) use application::{ResetArguments, SeekArguments, StatusArguments, Target};
pub(crate) use aws::Aws;
pub(crate) use put::PutArguments;
pub(crate) use store::{DynamoDb, Redis, Store};
pub(crate) use tail::{OutputName, TailArguments};

use crate::stream_arn::{check_stream, parse_stream};

/// Reads, writes and inspects Amazon Kinesis Data Streams.
#[derive(Debug, Parser)]
#[command(name = "kinestream", version, max_term_width = 100, arg_required_else_help = true)]
#[command(after_help = "\
Times are UTC unless they have an offset. Region and credentials come from the usual AWS sources:
AWS_REGION, AWS_PROFILE, the profile files, SSO, instance roles. NO_COLOR turns colours off.

Exit codes: 0 success, also of tail and put after Ctrl-C; 1 failure; 2 wrong arguments.")]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) aws: Aws,
    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Arguments {
    /// Refuses arguments that contradict each other in a way that only their values show. Returns the
    /// name of the command, and the message.
    pub(crate) fn check(&self) -> Result<(), (&'static str, String)> {
        let (name, stream, store) = self.command.parts();
        let checked = || {
            if let Some(stream) = stream {
                check_stream(stream)?;
                self.aws.check_region(stream)?;
            }
            if let Some(store) = store {
                store.check()?;
                // The listing of applications does not call Kinesis.
                if stream.is_some() {
                    store.check_endpoints(&self.aws, aws::endpoint_of_variable)?;
                }
            }
            match &self.command {
                Command::Tail(arguments) => arguments.check(SystemTime::now()),
                Command::Status(arguments) => arguments.check(),
                Command::Seek(arguments) => arguments.check(),
                _ => Ok(()),
            }
        };
        checked().map_err(|message| (name, message))
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Prints the records of a stream as they arrive
    #[command(after_help = tail::EXAMPLES)]
    Tail(Box<TailArguments>),
    /// Puts lines into a stream, one record per line
    #[command(after_help = put::EXAMPLES)]
    Put(PutArguments),
    /// Lists the streams of the account and region
    Streams(StreamsArguments),
    /// Shows a stream: its shards as a tree of splits and merges, its retention and its consumers
    Describe(DescribeArguments),
    /// Shows the workers, positions and lag of an application, or lists the applications of a store
    #[command(after_help = application::STATUS_EXAMPLES)]
    Status(StatusArguments),
    /// Moves an application to another position of the stream
    #[command(after_help = application::SEEK_EXAMPLES)]
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

impl Command {
    /// Returns the name of the command, its stream, and its store.
    fn parts(&self) -> (&'static str, Option<&str>, Option<&Store>) {
        match self {
            Self::Tail(tail) => ("tail", tail.stream.as_deref(), tail.store.as_ref()),
            Self::Put(put) => ("put", Some(&put.stream), None),
            Self::Streams(_) => ("streams", None, None),
            Self::Describe(describe) => ("describe", Some(&describe.stream), None),
            Self::Status(status) => ("status", status.stream.as_deref(), Some(&status.store)),
            Self::Seek(seek) => ("seek", Some(&seek.target.stream), Some(&seek.target.store)),
            Self::Reset(reset) => ("reset", Some(&reset.target.stream), Some(&reset.target.store)),
            Self::Completions { .. } => ("completions", None, None),
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct StreamsArguments {
    /// text (for people), or json (an object on one line)
    #[arg(short, long, value_enum, hide_possible_values = true, value_name = "FORMAT")]
    #[arg(default_value = "text")]
    pub(crate) output: ReportFormat,
}

#[derive(Debug, Args)]
pub(crate) struct DescribeArguments {
    /// Name or ARN of the stream
    #[arg(value_parser = parse_stream)]
    pub(crate) stream: String,
    /// text (for people), or json (an object on one line)
    #[arg(short, long, value_enum, hide_possible_values = true, value_name = "FORMAT")]
    #[arg(default_value = "text")]
    pub(crate) output: ReportFormat,
}

/// The format of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ReportFormat {
    Text,
    Json,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::CommandFactory;
    use kinestream::ShardId;

    use super::*;
    use crate::time::Since;

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
            "tail orders --sentinel-master mymaster",
            "tail orders/1",
            "tail orders --key=",
            "tail orders --fan-out=",
            "tail --demo --application billing --redis redis://127.0.0.1/",
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
            "status orders --application billing --redis redis://127.0.0.1/ --watch 5s",
            "status orders --application billing --redis redis://127.0.0.1/ --watch=0s",
            "seek orders --to latest",
            "seek orders --application billing --to latest",
            "status --sentinel-master mymaster",
            "status",
            "status --dynamodb kinestream --redis redis://127.0.0.1/",
            "status --dynamodb kinestream --sentinel-master mymaster",
            "status --dynamodb k!",
            "status --kcl-table leases",
            "status --redis redis://127.0.0.1/ --kcl-table leases",
            "status --redis redis://127.0.0.1/ --dynamodb-endpoint-url http://127.0.0.1:8000",
            "status --dynamodb kinestream --dynamodb-endpoint-url 127.0.0.1:8000",
            "streams --output yaml",
            "tail orders --redis redis://127.0.0.1/ --sentinel-master mymaster --profile=",
        ] {
            assert!(parse(words).is_err(), "expected {words:?} to be refused");
        }
    }

    #[test]
    fn two_stores_are_refused_with_both_options() {
        for other in ["--redis redis://a/", "--redis redis://a/ --sentinel-master main"] {
            let refused = parse(&format!("status --dynamodb kinestream {other}")).unwrap_err();
            assert!(refused.contains("--dynamodb name different stores; pass one"), "{refused}");
            assert!(!refused.contains("\n\n\n"), "{refused}");
        }
    }

    #[test]
    fn wrong_number_is_refused_in_plain_words() {
        for words in ["tail orders -n -1", "tail orders --last x", "put orders --retries -1"] {
            let refused = parse(words).unwrap_err();
            assert!(refused.contains(": expected a whole number such as 10\n"), "{refused}");
        }
        for words in ["put orders --rate 0", "put orders --rate -5"] {
            let refused = parse(words).unwrap_err();
            assert!(refused.contains(": expected "), "{refused}");
        }
    }

    #[test]
    fn contradictions_of_several_values_are_refused() {
        for words in [
            "--since 10m --until 1h",
            "--since 10m --until 10m",
            "--since 49590338271490256608559692538361571095921575989136588898",
            "--since 49590338271490256608559692538361571095921575989136588898 --shard 1 --shard 2",
            "--until 10m",
            "--since latest --until 2026-01-01",
            "--template {data} --output json",
            "--redis redis://127.0.0.1/",
        ] {
            let parsed = parse(&format!("tail orders {words}")).unwrap();
            assert!(parsed.check().is_err(), "expected {words:?} to be refused");
        }
        for words in [
            "--since 1h --until 10m",
            "--until 2999-01-01",
            "--since trim-horizon --until 10m",
            "--until 10m --application billing --redis redis://127.0.0.1/",
            "--since 49590338271490256608559692538361571095921575989136588898 --shard 1",
            "--template {data} --output template",
        ] {
            let parsed = parse(&format!("tail orders {words}")).unwrap();
            assert_eq!(parsed.check(), Ok(()), "{words:?}");
        }
    }

    #[test]
    fn sequence_number_is_a_position_of_one_shard() {
        let number = "49590338271490256608559692538361571095921575989136588898";
        let words = format!("seek orders --application a --redis redis://127.0.0.1/ --to {number}");
        let (name, message) = parse(&words).unwrap().check().unwrap_err();
        assert_eq!(name, "seek");
        assert!(message.contains("exactly one --shard"), "{message}");
        assert_eq!(parse(&format!("{words} --shard 3")).unwrap().check(), Ok(()));
    }

    #[test]
    fn refused_text_that_may_hold_a_password_is_not_shown() {
        let of_arn = "describe arn:aws:kinesis:eu-west-1:123456789012:stream/orders";
        for (words, name) in [
            ("status --redis sekret", "status"),
            ("status --redis http://user:sekret@a/", "status"),
            ("status --redis redis://a/ --sentinel-master user:sekret@main", "status"),
            ("status --redis redis://a/ --sentinel-master http://user:sekret@main/", "status"),
            ("status redis://user:sekret@a/ --redis redis://a/", "status"),
            ("tail redis://user:sekret@a/", "tail"),
            ("put user:sekret@a", "put"),
            (&format!("{of_arn} --region us-east-1"), "describe"),
        ] {
            let refused = parse(words).expect(words).check().unwrap_err();
            assert_eq!(refused.0, name, "{words}");
            assert!(!refused.1.contains("sekret"), "{words}: {}", refused.1);
        }
        for words in [
            "status --redis redis+unix:///run/redis",
            "status --redis rediss://user:sekret@a/ --sentinel-master rediss://user:sekret@main/",
            &format!("{of_arn} --region eu-west-1"),
            &format!("{of_arn} --region local --endpoint-url http://127.0.0.1:4567"),
        ] {
            assert_eq!(parse(words).expect(words).check(), Ok(()), "{words}");
        }
    }

    #[test]
    fn watch_has_a_default_interval() {
        let words = "status orders --application billing --redis redis://127.0.0.1/";
        for (more, expected) in [("", None), ("--watch", Some(2)), ("--watch=10s", Some(10))] {
            let Command::Status(parsed) = parse(&format!("{words} {more}")).unwrap().command else {
                panic!("expected status");
            };
            assert_eq!(parsed.watch, expected.map(Duration::from_secs));
        }
        let words = "status --application billing --redis redis://127.0.0.1/ --watch orders";
        let Command::Status(parsed) = parse(words).unwrap().command else {
            panic!("expected status");
        };
        assert_eq!(parsed.stream.as_deref(), Some("orders"));
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
