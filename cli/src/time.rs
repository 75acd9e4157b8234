//! Times on the command line and in the output. All times without an offset are UTC.

use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use jiff::{Span, SpanRelativeTo, Timestamp};
use kinestream::SequenceNumber;

/// The forms of a time, for messages.
const FORMS: &str = "a time such as 2026-11-01, 2026-11-01T12:00:00Z, or 10m for ten minutes ago";

/// The fewest digits of a sequence number. Those of Kinesis have 56; shorter numbers are a time that
/// is written in another way, such as seconds since 1970.
const SEQUENCE_DIGITS: usize = 20;

/// A position from which to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Since {
    Latest,
    TrimHorizon,
    Time(SystemTime),
    Sequence(SequenceNumber),
}

/// The time of the start of the program. Durations before now are counted from it, so that equal ones
/// are equal times.
static START: LazyLock<SystemTime> = LazyLock::new(SystemTime::now);

/// Parses `--since`.
pub(crate) fn since(text: &str) -> Result<Since, String> {
    since_at(text, *START)
}

fn since_at(text: &str, now: SystemTime) -> Result<Since, String> {
    match text.to_ascii_lowercase().replace('_', "-").as_str() {
        "latest" | "now" => return Ok(Since::Latest),
        "trim-horizon" | "beginning" => return Ok(Since::TrimHorizon),
        _ => {}
    }
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    if is_number
        && text.len() >= SEQUENCE_DIGITS
        && let Ok(number) = text.parse()
    {
        return Ok(Since::Sequence(number));
    }
    refuse_zone(text)?;
    let error = || format!("expected latest, trim-horizon, {FORMS}, or a sequence number");
    let time = moment_at(text, now).map_err(|_| error())?;
    if time > now {
        return Err("this time is in the future; pass a time in the past".to_owned());
    }
    Ok(Since::Time(time))
}

/// Parses a time, or a duration before now.
pub(crate) fn moment(text: &str) -> Result<SystemTime, String> {
    moment_at(text, *START)
}

fn moment_at(text: &str, now: SystemTime) -> Result<SystemTime, String> {
    let text = text.trim();
    refuse_zone(text)?;
    let civil =
        |datetime: DateTime| datetime.to_zoned(TimeZone::UTC).map(|zoned| zoned.timestamp());
    let parsed: Option<Timestamp> = text
        .parse::<Timestamp>()
        .or_else(|_| text.parse::<DateTime>().and_then(civil))
        .or_else(|_| text.parse::<Date>().and_then(|date| civil(date.into())))
        .ok();
    if let Some(time) = parsed {
        return Ok(time.into());
    }
    let error = || format!("expected {FORMS}");
    now.checked_sub(duration(text).map_err(|_| error())?).ok_or_else(error)
}

/// Refuses a time zone in brackets, which would have no effect.
fn refuse_zone(text: &str) -> Result<(), String> {
    if text.contains('[') {
        return Err(
            "a time zone in brackets is not supported; write an offset such as -05:00, as \
                    in 2026-11-01T12:00:00-05:00"
                .to_owned(),
        );
    }
    Ok(())
}

/// Parses a duration such as `10m`, `1h30m` or `2d`, of days of 24 hours.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let error = || "expected a duration such as 30s, 10m, 1h30m or 2d".to_owned();
    let span: Span = text.trim().parse().map_err(|_| error())?;
    let days = SpanRelativeTo::days_are_24_hours();
    let duration = span.to_duration(days).map_err(|_| error())?;
    duration.try_into().map_err(|_| error())
}

/// Returns the time to the millisecond, in UTC: `2026-11-01T12:00:00.000Z`.
pub(crate) fn shown(time: SystemTime) -> String {
    Timestamp::try_from(time).map_or_else(|_| "-".to_owned(), |time| format!("{time:.3}"))
}

/// Writes the time as [`shown`] does, or null.
#[allow(clippy::ref_option, reason = "serde passes a reference to the field")]
pub(crate) fn serialize<S: serde::Serializer>(
    time: &Option<SystemTime>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => serializer.serialize_str(&shown(*time)),
        None => serializer.serialize_none(),
    }
}

/// Returns the time to the second, in UTC, for tables: `2026-11-01 12:00:00`.
pub(crate) fn short(time: SystemTime) -> String {
    let time = Timestamp::try_from(time);
    time.map_or_else(|_| "-".to_owned(), |time| time.strftime("%Y-%m-%d %H:%M:%S").to_string())
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use proptest::prelude::*;

    use super::*;

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn seconds_of(text: &str) -> u64 {
        let time = moment_at(text, now()).expect(text);
        time.duration_since(UNIX_EPOCH).unwrap().as_secs()
    }

    #[test]
    fn times_without_an_offset_are_utc() {
        assert_eq!(seconds_of("1970-01-02"), 86_400);
        assert_eq!(seconds_of("1970-01-02T00:00:00Z"), 86_400);
        assert_eq!(seconds_of("1970-01-02 00:00:01"), 86_401);
        assert_eq!(seconds_of("1970-01-02T01:00:00+01:00"), 86_400);
    }

    #[test]
    fn durations_lie_before_now() {
        for (text, before) in
            [("10m", 600), ("1h30m", 5400), ("2d", 172_800), ("45s", 45), ("1w", 604_800)]
        {
            assert_eq!(seconds_of(text), 1_800_000_000 - before, "{text}");
        }
    }

    #[test]
    fn since_has_five_forms() {
        assert_eq!(since_at("latest", now()), Ok(Since::Latest));
        assert_eq!(since_at("TRIM_HORIZON", now()), Ok(Since::TrimHorizon));
        assert_eq!(since_at("10m", now()), Ok(Since::Time(now() - Duration::from_secs(600))));
        let number = "49590338271490256608559692538361571095921575989136588898";
        assert_eq!(since_at(number, now()), Ok(Since::Sequence(number.parse().unwrap())));
        let error = since_at("yesterday", now()).unwrap_err();
        assert!(error.starts_with("expected latest, trim-horizon, a time such as"), "{error}");
        assert!(since_at("2999-01-01", now()).unwrap_err().contains("future"));
    }

    #[test]
    fn short_number_is_no_sequence_number() {
        for text in ["10", "1700000000", "1700000000000", "1700000000000000000"] {
            let error = since_at(text, now()).unwrap_err();
            assert!(error.starts_with("expected latest"), "{text}: {error}");
        }
        assert!(!matches!(since_at("20261130", now()), Ok(Since::Sequence(_))));
    }

    #[test]
    fn time_zone_in_brackets_is_refused() {
        for text in ["2026-11-30T09:35[America/New_York]", "2026-11-30T09:35-05:00[UTC]"] {
            assert!(since_at(text, now()).unwrap_err().contains("offset such as -05:00"));
            assert!(moment_at(text, now()).unwrap_err().contains("offset such as -05:00"));
        }
    }

    #[test]
    fn shown_time_has_milliseconds() {
        let time = UNIX_EPOCH + Duration::from_millis(1_767_225_600_005);
        assert_eq!(shown(time), "2026-01-01T00:00:00.005Z");
        assert_eq!(short(time), "2026-01-01 00:00:00");
    }

    proptest! {
        #[test]
        fn shown_time_is_parsed_to_the_same_time(millis in 0..4_000_000_000_000_u64) {
            let time = UNIX_EPOCH + Duration::from_millis(millis);
            prop_assert_eq!(moment_at(&shown(time), now()), Ok(time));
        }

        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _parsed_or_refused = since_at(&text, now());
        }
    }
}
