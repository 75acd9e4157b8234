//! The values of arguments as the user writes them.

use std::str::FromStr;
use std::time::Duration;

use kinestream::ShardId;

use crate::time;

/// The refusal of a sequence number as the position of no shard or of several.
pub(super) const ONE_SHARD: &str =
    "a sequence number belongs to one shard; add exactly one --shard";

/// Parses a number without a sign.
pub(super) fn number<T: FromStr>(text: &str) -> Result<T, &'static str> {
    text.parse().map_err(|_| "expected a whole number such as 10")
}

/// Parses a number that is not zero.
pub(super) fn positive(text: &str) -> Result<u32, &'static str> {
    match number(text)? {
        0 => Err("expected at least 1"),
        number => Ok(number),
    }
}

/// Parses a pause of at least one second.
pub(super) fn pause(text: &str) -> Result<Duration, String> {
    match time::duration(text)? {
        pause if pause < Duration::from_secs(1) => Err("expected at least 1s".to_owned()),
        pause => Ok(pause),
    }
}

/// Parses the name of a region. With other characters, no host has the name.
pub(super) fn region(text: &str) -> Result<String, String> {
    let is_part = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if text.is_empty() || !text.bytes().all(is_part) {
        return Err("expected a region such as eu-west-1".to_owned());
    }
    Ok(text.to_owned())
}

/// Parses the URL of an endpoint. Without a scheme, each call would fail and be retried.
pub(super) fn endpoint(text: &str) -> Result<String, String> {
    let host = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    match host {
        Some(host) if !host.is_empty() && !host.starts_with('/') => Ok(text.to_owned()),
        _ => Err("expected a URL such as http://127.0.0.1:4567 or https://example.com".to_owned()),
    }
}

/// Parses a shard by its name or by its number, as printed.
pub(super) fn shard(text: &str) -> Result<ShardId, kinestream::Error> {
    let number: Option<u64> = text.parse().ok();
    number.map_or_else(|| text.parse(), |number| format!("shardId-{number:012}").parse())
}
