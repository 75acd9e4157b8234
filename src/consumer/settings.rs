//! The options of a consumer, with their defaults and ranges.

use std::sync::Arc;
use std::time::Duration;

use crate::checkpoint::InFlightConfig;
use crate::clock::Clock;
use crate::discovery::{ReadRules, ShardPosition, Start, StartingPosition};
use crate::fleet::WorkerConfig;
use crate::pacing::SHORTEST_PAUSE;
use crate::shard::CheckpointOn;
use crate::source::{EndingPosition, MemoryBudget, OnTrimmed, WireFormat};
use crate::store::{FlushConfig, parse_arn};

/// The maximum number of records that one `GetRecords` call can request:
/// <https://docs.aws.amazon.com/kinesis/latest/APIReference/API_GetRecords.html>.
const MAX_RECORDS_PER_CALL: u32 = 10_000;

/// The longest time of an option. A longer one is likely a mistake and could overflow a clock.
const MAX_OPTION_TIME: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The shortest lease. With a shorter one, a slow response of the store to a renewal could outlast
/// the lease.
const MIN_LEASE_DURATION: Duration = Duration::from_secs(2);
const MAX_LEASE_DURATION: Duration = Duration::from_secs(24 * 60 * 60);

/// The lease table has capacities in hundredths.
const MIN_CAPACITY: f64 = 0.01;
const MAX_CAPACITY: f64 = 1000.0;

/// The default of `max_buffered_bytes`.
const BUFFERED_BYTES: usize = 64 * 1024 * 1024;

/// The checked options of a consumer.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) start: Start,
    pub(super) ending: EndingPosition,
    pub(super) interval: Duration,
    pub(super) limit: u32,
    pub(super) flush: FlushConfig,
    pub(super) in_flight: InFlightConfig,
    pub(super) prefetch: usize,
    pub(super) max_buffered_bytes: Option<usize>,
    /// A budget shared with other consumers, in place of `max_buffered_bytes`.
    pub(super) memory_budget: Option<MemoryBudget>,
    pub(super) on_trimmed: OnTrimmed,
    pub(super) deaggregate: bool,
    pub(super) fan_out: Option<Arc<str>>,
    pub(super) deregister_on_close: bool,
    pub(super) wire_format: WireFormat,
    pub(super) worker_config: WorkerConfig,
}

impl Settings {
    /// Returns the memory for the records that are fetched and not delivered.
    pub(super) fn buffer(&self) -> MemoryBudget {
        let own = || MemoryBudget::new(self.max_buffered_bytes.unwrap_or(BUFFERED_BYTES));
        self.memory_budget.clone().unwrap_or_else(own)
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            start: Start::default(),
            ending: EndingPosition::default(),
            interval: Duration::from_secs(1),
            limit: MAX_RECORDS_PER_CALL,
            flush: FlushConfig {
                interval: Duration::from_secs(1),
                max_unflushed: Duration::from_secs(60),
            },
            in_flight: InFlightConfig { records: 10_000, bytes: 64 * 1024 * 1024 },
            prefetch: 1,
            max_buffered_bytes: None,
            memory_budget: None,
            on_trimmed: OnTrimmed::default(),
            deaggregate: true,
            fan_out: None,
            deregister_on_close: false,
            wire_format: WireFormat::default(),
            worker_config: WorkerConfig {
                has_own_leases: false,
                worker_id: unique_name(),
                rules: ReadRules::default(),
                is_bounded: false,
                checkpoint_on: CheckpointOn::default(),
                discovery_interval: Duration::from_secs(30),
                lease_duration: Duration::from_secs(10),
                capacity: 1.0,
                handoff_timeout: Duration::from_secs(30),
                poll_timeout: None,
                max_unflushed: Duration::from_secs(60),
                clock: Clock::default(),
            },
        }
    }
}

impl Settings {
    /// Checks the range of each option. Returns a description of the first one that is out of
    /// range.
    pub(super) fn check(&self) -> Result<(), String> {
        let now = self.worker_config.clock.now();
        if let StartingPosition::AtTimestamp(time) = self.start.all
            && time > now
        {
            return Err("starting_position is in the future; pass a time in the past".into());
        }
        for (shard, position) in &self.start.each {
            if let ShardPosition::AtTimestamp(time) | ShardPosition::CaughtUp { until: time, .. } =
                position
                && *time > now
            {
                return Err(format!(
                    "starting_position_for({shard}) is in the future; pass a time in the past"
                ));
            }
        }
        if self.worker_config.rules.only.as_ref().is_some_and(|only| only.is_empty()) {
            return Err("only_shards is empty, but must name at least one shard".into());
        }
        if let Some(consumer) = &self.fan_out {
            check_fan_out(consumer)?;
        }
        check_duration("interval", self.interval, SHORTEST_PAUSE)?;
        if !(1..=MAX_RECORDS_PER_CALL).contains(&self.limit) {
            return Err(format!(
                "limit is {}, but must be 1 to {MAX_RECORDS_PER_CALL} records per call",
                self.limit
            ));
        }
        check_duration("checkpoint_interval", self.flush.interval, Duration::ZERO)?;
        check_duration("max_unflushed", self.flush.max_unflushed, Duration::ZERO)?;
        let rules = &self.worker_config;
        check_duration("discovery_interval", rules.discovery_interval, Duration::from_secs(1))?;
        check_worker_id(&rules.worker_id)?;
        if !(MIN_LEASE_DURATION..=MAX_LEASE_DURATION).contains(&rules.lease_duration) {
            return Err(format!(
                "lease_duration is {:?}, but must be at least {MIN_LEASE_DURATION:?} and at most a day",
                rules.lease_duration
            ));
        }
        if !(MIN_CAPACITY..=MAX_CAPACITY).contains(&rules.capacity) {
            return Err(format!(
                "capacity is {}, but must be {MIN_CAPACITY} to {MAX_CAPACITY}",
                rules.capacity
            ));
        }
        check_duration("handoff_timeout", rules.handoff_timeout, Duration::ZERO)?;
        if let Some(time) = rules.poll_timeout {
            check_duration("poll_timeout", time, Duration::from_secs(1))?;
        }
        if self.in_flight.records == 0 {
            return Err("max_in_flight is 0, but must be at least 1 record".into());
        }
        if self.in_flight.bytes == 0 {
            return Err("max_in_flight_bytes is 0, but must be at least 1 byte".into());
        }
        if self.prefetch > 1000 {
            return Err(format!("prefetch is {}, but must be 0 to 1000 batches", self.prefetch));
        }
        match (self.max_buffered_bytes, &self.memory_budget) {
            (Some(_), Some(_)) => Err(
                "max_buffered_bytes and memory_budget are both set; set the size of the shared \
                     budget with MemoryBudget::new"
                    .into(),
            ),
            (Some(0), None) => Err("max_buffered_bytes is 0, but must be at least 1 byte".into()),
            (None, Some(budget)) if budget.size() == 0 => {
                Err("memory_budget is 0, but must be at least 1 byte".into())
            }
            _ => Ok(()),
        }
    }
}

pub(super) fn check_stream(stream: &str) -> Result<(), String> {
    let name = parse_arn(stream).map_or(stream, |arn| arn.name);
    if is_name(name) {
        return Ok(());
    }
    Err(format!(
        "stream is {stream:?}, but must be a name of 1 to 128 letters, digits, '_', '.' and '-', or \
         an ARN such as arn:aws:kinesis:eu-west-1:123456789012:stream/orders"
    ))
}

/// Returns true if the text is a valid name of a stream or a registered consumer.
fn is_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    (1..=128).contains(&text.len()) && text.bytes().all(allowed)
}

fn check_fan_out(consumer: &str) -> Result<(), String> {
    let is_arn = consumer.starts_with("arn:") && consumer.contains("/consumer/");
    if is_name(consumer) || is_arn {
        return Ok(());
    }
    Err(format!(
        "fan_out is {consumer:?}, but must be a name of 1 to 128 letters, digits, '_', '.' and '-', or \
         the ARN of a consumer"
    ))
}

pub(super) fn check_application(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("application is empty, but must be a name".into());
    }
    if name.chars().any(|letter| letter.is_control() || "{}".contains(letter)) {
        return Err(format!(
            "application is {name:?}, but must have no braces and no control characters"
        ));
    }
    Ok(())
}

fn check_worker_id(name: &str) -> Result<(), String> {
    let refused =
        |letter: char| letter.is_whitespace() || letter.is_control() || "{},".contains(letter);
    if name.is_empty() || name == "-" || name.chars().count() > 200 || name.chars().any(refused) {
        return Err(format!(
            "worker_id is {name:?}, but must have 1 to 200 characters, without spaces, braces, \
             commas and control characters"
        ));
    }
    Ok(())
}

fn check_duration(option: &str, time: Duration, least: Duration) -> Result<(), String> {
    if (least..=MAX_OPTION_TIME).contains(&time) {
        Ok(())
    } else {
        Err(format!("{option} is {time:?}, but must be at least {least:?} and at most a year"))
    }
}

/// Returns a worker name that consists of the host name, the process id and a random part.
fn unique_name() -> Arc<str> {
    let host = std::env::var("HOSTNAME")
        .ok()
        .or_else(|| std::fs::read_to_string("/proc/sys/kernel/hostname").ok())
        .unwrap_or_default();
    let allowed = |letter: &char| letter.is_ascii_alphanumeric() || "._-".contains(*letter);
    let host: String = host.trim().chars().filter(allowed).take(100).collect();
    let host = if host.is_empty() { "worker" } else { &host };
    format!("{host}-{}-{:08x}", std::process::id(), fastrand::u32(..)).into()
}
