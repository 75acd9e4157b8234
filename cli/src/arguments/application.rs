//! The arguments of the commands on a stored application: `status`, `seek` and `reset`.

use std::time::Duration;

use clap::Args;
use kinestream::ShardId;

use super::ReportFormat;
use super::store::{self, DynamoDb, Store};
use super::values::{ONE_SHARD, pause, shard};
use crate::stream_arn::parse_stream;
use crate::time::{self, Since};

pub(super) const STATUS_EXAMPLES: &str = "\
DynamoDB has no clock: a worker is \"unconfirmed\" until --watch has seen it renew.

Examples:
  kinestream status --redis redis://127.0.0.1/
  kinestream status orders --application billing --redis redis://127.0.0.1/ --watch
  kinestream status orders --application billing --redis redis://127.0.0.1/ --output json
  kinestream status --redis redis://10.0.0.1:26379/ --sentinel-master mymaster
  kinestream status orders --application billing --dynamodb kinestream
  kinestream status orders --application billing --dynamodb kinestream --kcl-table billing";

pub(super) const SEEK_EXAMPLES: &str = "\
Examples:
  kinestream seek orders --application billing --redis redis://127.0.0.1/ --to 1h
  kinestream seek orders --application billing --redis redis://127.0.0.1/ --to latest --shard 3
  kinestream seek orders --application billing --dynamodb kinestream --to trim-horizon --dry-run";

#[derive(Debug, Args)]
#[command(mut_group(store::GROUP, |store| store.required(true)))]
pub(crate) struct StatusArguments {
    /// Name or ARN of the stream; all streams of the store by default
    #[arg(value_parser = parse_stream)]
    pub(crate) stream: Option<String>,
    /// The application; all applications of the store by default
    #[arg(long, value_name = "NAME", requires = "stream")]
    pub(crate) application: Option<String>,
    /// text (for people), or json (an object on one line)
    #[arg(short, long, value_enum, hide_possible_values = true, value_name = "FORMAT")]
    #[arg(default_value = "text")]
    pub(crate) output: ReportFormat,
    /// Shows the status again each TIME, 2s by default, until Ctrl-C
    #[arg(long, value_name = "TIME", value_parser = pause, num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "2s", requires = "application")]
    pub(crate) watch: Option<Duration>,
    #[command(flatten)]
    pub(crate) store: Store,
}

impl StatusArguments {
    pub(super) fn check(&self) -> Result<(), String> {
        let is_of_kcl = matches!(&self.store, Store::DynamoDb(DynamoDb { kcl_table: Some(_), .. }));
        if is_of_kcl && self.application.is_none() {
            return Err("--kcl-table has the positions of one application; pass the stream and \
                        --application as well, or leave --kcl-table out to list the applications"
                .to_owned());
        }
        Ok(())
    }
}

/// The application whose positions change.
#[derive(Debug, Args)]
#[command(mut_group(store::GROUP, |store| store.required(true)))]
pub(crate) struct Target {
    /// Name or ARN of the stream, as the application names it
    #[arg(value_parser = parse_stream)]
    pub(crate) stream: String,
    /// The application
    #[arg(long, value_name = "NAME")]
    pub(crate) application: String,
    /// Makes the change without asking
    #[arg(short, long)]
    pub(crate) yes: bool,
    /// Shows what would change, and changes nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Makes the change while workers of the application are alive
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) store: Store,
}

#[derive(Debug, Args)]
pub(crate) struct SeekArguments {
    /// The new position: latest, trim-horizon, a time, a duration before now, or the sequence number
    /// of the last record to skip, with one --shard
    #[arg(long, value_name = "POSITION", value_parser = time::since)]
    pub(crate) to: Since,
    /// Moves only this shard, by name or number; can be repeated
    #[arg(long, value_name = "SHARD", value_parser = shard)]
    pub(crate) shard: Vec<ShardId>,
    #[command(flatten)]
    pub(crate) target: Target,
}

impl SeekArguments {
    pub(super) fn check(&self) -> Result<(), String> {
        if matches!(self.to, Since::Sequence(_)) && self.shard.len() != 1 {
            return Err(ONE_SHARD.to_owned());
        }
        Ok(())
    }
}

#[derive(Debug, Args)]
pub(crate) struct ResetArguments {
    #[command(flatten)]
    pub(crate) target: Target,
}
