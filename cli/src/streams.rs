//! `kinestream streams`: the streams of the account and region.

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::operation::describe_stream_summary::DescribeStreamSummaryError;
use aws_sdk_kinesis::types::{StreamMode, StreamStatus, StreamSummary};
use futures::{StreamExt, TryStreamExt};

use crate::arguments::Aws;
use crate::client::{self, list_streams};
use crate::failure::{Failure, Outcome};
use crate::output::{Paint, escape, write_out};
use crate::quantity::count;
use crate::table::Table;
use crate::time;

/// `DescribeStreamSummary` allows 20 calls per second and account:
/// <https://docs.aws.amazon.com/kinesis/latest/APIReference/API_DescribeStreamSummary.html>.
const CONCURRENT_CALLS: usize = 4;

/// A line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    name: String,
    mode: String,
    status: String,
    open_shards: Option<u64>,
    retention_hours: Option<u64>,
    created: Option<std::time::SystemTime>,
}

pub(crate) async fn run(aws: &Aws) -> Outcome<()> {
    let client = client::connect(aws).await?;
    let streams = list_streams(&client).await?;
    let lines: Vec<Line> = futures::stream::iter(streams)
        .map(|stream| describe(&client, stream))
        .buffered(CONCURRENT_CALLS)
        .try_collect()
        .await?;
    let region = client.config().region().map_or_else(|| "-".to_owned(), ToString::to_string);
    write_out(shown(&lines, &region, Paint::stdout()).as_bytes())?;
    Ok(())
}

async fn describe(client: &Client, stream: StreamSummary) -> Outcome<Line> {
    let call = client.describe_stream_summary().stream_name(&stream.stream_name);
    let described = match call.send().await {
        Ok(described) => described.stream_description_summary,
        // The stream was deleted after the listing.
        Err(error)
            if error
                .as_service_error()
                .is_some_and(DescribeStreamSummaryError::is_resource_not_found_exception) =>
        {
            None
        }
        Err(error) => {
            let name = Some(stream.stream_name.as_str());
            return Err(Failure::of_call("DescribeStreamSummary", name, &error));
        }
    };
    let details = described.as_ref().and_then(|described| described.stream_mode_details.clone());
    let mode = details.or(stream.stream_mode_details).map(|details| details.stream_mode);
    let status =
        described.as_ref().map_or(&stream.stream_status, |described| &described.stream_status);
    let created = described.as_ref().map(|described| described.stream_creation_timestamp);
    Ok(Line {
        name: stream.stream_name,
        mode: mode_name(mode.as_ref()).to_owned(),
        status: status.as_str().to_owned(),
        open_shards: described
            .as_ref()
            .and_then(|described| u64::try_from(described.open_shard_count).ok()),
        retention_hours: described
            .as_ref()
            .and_then(|described| u64::try_from(described.retention_period_hours).ok()),
        created: created.or(stream.stream_creation_timestamp).and_then(|time| time.try_into().ok()),
    })
}

/// Returns the mode in words.
pub(crate) fn mode_name(mode: Option<&StreamMode>) -> &'static str {
    match mode {
        Some(StreamMode::OnDemand) => "on demand",
        Some(StreamMode::Provisioned) => "provisioned",
        _ => "-",
    }
}

/// Returns the status in its colour.
pub(crate) fn status_shown(status: &str, paint: Paint) -> String {
    match StreamStatus::from(status) {
        StreamStatus::Active => paint.good("active"),
        StreamStatus::Creating => paint.warn("creating"),
        StreamStatus::Updating => paint.warn("updating"),
        StreamStatus::Deleting => paint.bad("deleting"),
        _ => escape(status.to_lowercase().as_bytes()),
    }
}

fn shown(lines: &[Line], region: &str, paint: Paint) -> String {
    let mut table =
        Table::new(&["STREAM", "STATUS", "MODE", "OPEN SHARDS", "RETENTION", "CREATED"])
            .right(&[3, 4]);
    let number = |number: Option<u64>| number.map_or_else(|| "-".to_owned(), count);
    for line in lines {
        table.push(vec![
            paint.name(&escape(line.name.as_bytes())),
            status_shown(&line.status, paint),
            line.mode.clone(),
            number(line.open_shards),
            line.retention_hours.map_or_else(|| "-".to_owned(), retention_shown),
            line.created.map_or_else(|| "-".to_owned(), time::short),
        ]);
    }
    if table.is_empty() {
        return format!("no streams in {region}; --region selects another region\n");
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

    #[test]
    fn streams_are_as_in_the_snapshot() {
        let line = Line {
            name: "orders".to_owned(),
            mode: mode_name(Some(&StreamMode::OnDemand)).to_owned(),
            status: "ACTIVE".to_owned(),
            open_shards: Some(1000),
            retention_hours: Some(168),
            created: Some(UNIX_EPOCH + Duration::from_secs(1_767_225_600)),
        };
        let other = Line {
            name: "clicks-of-all-sites".to_owned(),
            mode: mode_name(None).to_owned(),
            status: "-".to_owned(),
            open_shards: None,
            retention_hours: Some(24),
            created: None,
        };
        let text = shown(&[line, other], "eu-west-1", Paint::plain());
        let none = shown(&[], "eu-west-1", Paint::plain());
        assert_snapshot("streams.txt", include_str!("snapshots/streams.txt"), &(text + &none));
    }
}
