//! `kinestream streams`: the streams of the account and region.

use std::time::SystemTime;

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::operation::describe_stream_summary::DescribeStreamSummaryError;
use aws_sdk_kinesis::types::{StreamDescriptionSummary, StreamSummary};
use futures::StreamExt;
use serde::Serialize;

use crate::arguments::{Aws, ReportFormat, StreamsArguments};
use crate::client::{self, Calls, UNKNOWN, list_streams};
use crate::failure::{Failure, Outcome};
use crate::output::{Paint, escape, json_line, note, write_out, write_report};
use crate::quantity::{count, counted};
use crate::table::Table;
use crate::time;

/// `DescribeStreamSummary` allows 20 calls per second and account:
/// <https://docs.aws.amazon.com/kinesis/latest/APIReference/API_DescribeStreamSummary.html>.
const CONCURRENT_CALLS: usize = 4;

/// The streams of a region. The names of the fields are those of `--output json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Listing {
    region: String,
    streams: Vec<Line>,
}

/// A stream. Values that the server does not report are `None`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Line {
    name: String,
    arn: Option<String>,
    /// The word of the API, in lower case.
    status: Option<String>,
    mode: Option<String>,
    open_shards: Option<u64>,
    retention_hours: Option<u64>,
    #[serde(serialize_with = "time::serialize")]
    created: Option<SystemTime>,
}

pub(crate) async fn run(arguments: &StreamsArguments, aws: &Aws) -> Outcome<()> {
    let client = client::connect(aws, None, Calls::Short).await?;
    let streams = list_streams(&client).await?;
    let described: Vec<_> = futures::stream::iter(streams)
        .map(|stream| describe(&client, stream))
        .buffered(CONCURRENT_CALLS)
        .collect()
        .await;
    let failures: Vec<&Failure> = described.iter().filter_map(|(_, it)| it.as_ref()).collect();
    if let Some(first) = failures.first() {
        let streams = counted(failures.len() as u64, "stream");
        note(&format!("details of {streams} unknown ({})", escape(first.message().as_bytes())));
    }
    let streams = described.into_iter().map(|(line, _)| line).collect();
    let region = client.config().region().map_or_else(|| "-".to_owned(), ToString::to_string);
    let listing = Listing { region, streams };
    let written = match arguments.output {
        ReportFormat::Text => write_report(&shown(&listing, Paint::stdout())),
        ReportFormat::Json => write_out(json_line(&listing)?.as_bytes()),
    };
    written.map(drop)
}

/// Returns the stream with its details, or as it is listed if the call for them fails, and the failure.
async fn describe(client: &Client, stream: StreamSummary) -> (Line, Option<Failure>) {
    let call = client.describe_stream_summary().stream_name(&stream.stream_name);
    match call.send().await {
        Ok(described) => (line(stream, described.stream_description_summary.as_ref()), None),
        Err(error) => {
            // The stream was deleted after the listing.
            let is_deleted = error
                .as_service_error()
                .is_some_and(DescribeStreamSummaryError::is_resource_not_found_exception);
            let name = stream.stream_name.clone();
            let failure = Failure::of_call("DescribeStreamSummary", Some(&name), &error);
            (line(stream, None), (!is_deleted).then_some(failure))
        }
    }
}

fn line(stream: StreamSummary, described: Option<&StreamDescriptionSummary>) -> Line {
    let details = described.and_then(|described| described.stream_mode_details.clone());
    let mode = details.or(stream.stream_mode_details).map(|details| details.stream_mode);
    let arn = described.map_or(stream.stream_arn, |described| described.stream_arn.clone());
    let status =
        described.map_or(stream.stream_status, |described| described.stream_status.clone());
    let created = described.map(|described| described.stream_creation_timestamp);
    let created = created.or(stream.stream_creation_timestamp);
    let known = |text: String| Some(text).filter(|text| !text.is_empty() && text != UNKNOWN);
    Line {
        name: stream.stream_name,
        arn: known(arn),
        status: known(word(status.as_str())),
        mode: mode.map(|mode| word(mode.as_str())),
        open_shards: described.and_then(|described| u64::try_from(described.open_shard_count).ok()),
        retention_hours: described
            .and_then(|described| u64::try_from(described.retention_period_hours).ok()),
        created: created.and_then(|time| time.try_into().ok()),
    }
}

/// Returns a constant of the API, such as `ON_DEMAND`, as this program writes it: `on_demand`.
pub(crate) fn word(constant: &str) -> String {
    constant.to_lowercase()
}

/// Returns the mode in words.
pub(crate) fn mode_shown(mode: Option<&str>) -> String {
    mode.map_or_else(|| "-".to_owned(), |mode| escape(mode.replace('_', " ").as_bytes()))
}

/// Returns the status in its colour.
pub(crate) fn status_shown(status: &str, paint: Paint) -> String {
    match status {
        "active" => paint.good(status),
        "creating" | "updating" => paint.warn(status),
        "deleting" => paint.bad(status),
        _ => escape(status.as_bytes()),
    }
}

fn shown(listing: &Listing, paint: Paint) -> String {
    let mut table =
        Table::new(&["STREAM", "STATUS", "MODE", "OPEN SHARDS", "RETENTION", "CREATED"])
            .right(&[3, 4]);
    let number = |number: Option<u64>| number.map_or_else(|| "-".to_owned(), count);
    for line in &listing.streams {
        table.push(vec![
            paint.name(&escape(line.name.as_bytes())),
            status_shown(line.status.as_deref().unwrap_or("-"), paint),
            mode_shown(line.mode.as_deref()),
            number(line.open_shards),
            line.retention_hours.map_or_else(|| "-".to_owned(), retention_shown),
            line.created.map_or_else(|| "-".to_owned(), time::short),
        ]);
    }
    if table.is_empty() {
        return format!("no streams in {}; --region selects another region\n", listing.region);
    }
    table.shown(paint)
}

/// Returns the retention in days, or in hours if it is not a number of days above one.
pub(crate) fn retention_shown(hours: u64) -> String {
    if hours > 24 && hours.is_multiple_of(24) {
        format!("{} d", hours / 24)
    } else {
        format!("{hours} h")
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::snapshot::assert_snapshot;

    fn listing() -> Listing {
        let line = Line {
            name: "orders".to_owned(),
            arn: Some("arn:aws:kinesis:eu-west-1:123456789012:stream/orders".to_owned()),
            status: Some(word("ACTIVE")),
            mode: Some(word("ON_DEMAND")),
            open_shards: Some(1000),
            retention_hours: Some(168),
            created: Some(UNIX_EPOCH + Duration::from_secs(1_767_225_600)),
        };
        let summary = StreamSummary::builder().stream_name("clicks-of-all-sites").stream_arn("");
        let other = summary.stream_status(UNKNOWN.into()).build().unwrap();
        let other = Line { retention_hours: Some(24), ..super::line(other, None) };
        Listing { region: "eu-west-1".to_owned(), streams: vec![line, other] }
    }

    #[test]
    fn streams_are_as_in_the_snapshot() {
        let text = shown(&listing(), Paint::plain());
        let none = Listing { streams: Vec::new(), ..listing() };
        let none = shown(&none, Paint::plain());
        assert_snapshot("streams.txt", include_str!("snapshots/streams.txt"), &(text + &none));
    }

    #[test]
    fn streams_are_an_object_of_json() {
        let json: serde_json::Value =
            serde_json::from_str(&json_line(&listing()).unwrap()).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "region": "eu-west-1",
                "streams": [
                    {
                        "name": "orders",
                        "arn": "arn:aws:kinesis:eu-west-1:123456789012:stream/orders",
                        "status": "active",
                        "mode": "on_demand",
                        "open_shards": 1000,
                        "retention_hours": 168,
                        "created": "2026-01-01T00:00:00.000Z",
                    },
                    {
                        "name": "clicks-of-all-sites",
                        "arn": null,
                        "status": null,
                        "mode": null,
                        "open_shards": null,
                        "retention_hours": 24,
                        "created": null,
                    },
                ],
            })
        );
    }
}
