//! `kinestream describe`: a stream, its shards as a tree, and its registered consumers.

mod tree;

use std::time::SystemTime;

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::types::{Consumer, EncryptionType, StreamDescriptionSummary};
use console::{Term, truncate_str};

use crate::arguments::Aws;
use crate::client::{self, of_stream, suggest_names};
use crate::failure::{Failure, Outcome};
use crate::output::{Paint, escape, write_out};
use crate::quantity::count;
use crate::streams::{mode_name, retention_shown, status_shown};
use crate::table::Table;
use crate::time;

use tree::{Node, tree};

pub(crate) async fn run(stream: &str, aws: &Aws) -> Outcome<()> {
    let client = client::connect(aws).await?;
    match describe(&client, stream).await {
        Ok(text) => write_out(fit(&text).as_bytes()).map(|_| ()),
        Err(failure) => Err(suggest_names(&client, stream, failure).await),
    }
}

/// Cuts the lines to the width of the terminal: sequence numbers have 56 digits. Leaves them whole in
/// a pipe or a file.
fn fit(text: &str) -> String {
    let terminal = Some(Term::stdout()).filter(Term::is_term);
    let width = terminal.as_ref().and_then(Term::size_checked).map(|(_, width)| width);
    let Some(width) = width else { return text.to_owned() };
    let cut = |line: &str| truncate_str(line, usize::from(width), "…").into_owned() + "\n";
    text.lines().map(cut).collect()
}

async fn describe(client: &Client, stream: &str) -> Outcome<String> {
    let call = of_stream!(client.describe_stream_summary(), stream);
    let described = call.send().await;
    let described = described
        .map_err(|error| Failure::of_call("DescribeStreamSummary", Some(stream), &error))?;
    let summary = described
        .stream_description_summary
        .ok_or_else(|| Failure::new("DescribeStreamSummary returned no description"))?;
    let shards = list_shards(client, stream).await?;
    let consumers = list_consumers(client, &summary.stream_arn).await;
    let paint = Paint::stdout();
    let mut text = heading(&summary, &shards, paint);
    text += "\n";
    text += &tree(&shards, paint);
    text += "\n";
    text += &match consumers {
        Ok(consumers) => consumers_shown(&consumers, paint),
        // The permission, or the operation on a local server, may be missing: the rest is useful.
        Err(failure) => format!("registered consumers: unknown ({})\n", failure.message()),
    };
    Ok(text)
}

async fn list_shards(client: &Client, stream: &str) -> Outcome<Vec<Node>> {
    let mut shards = Vec::new();
    let mut token: Option<String> = None;
    loop {
        // Kinesis refuses a page token together with a stream.
        let call = if let Some(token) = &token {
            client.list_shards().next_token(token)
        } else {
            of_stream!(client.list_shards(), stream)
        };
        let page = call.send().await;
        let page = page.map_err(|error| Failure::of_call("ListShards", Some(stream), &error))?;
        shards.extend(page.shards.unwrap_or_default().iter().map(Node::of));
        token = page.next_token;
        if token.is_none() {
            return Ok(shards);
        }
    }
}

async fn list_consumers(client: &Client, arn: &str) -> Outcome<Vec<Consumer>> {
    let mut consumers = Vec::new();
    let mut token: Option<String> = None;
    loop {
        let call = client.list_stream_consumers().stream_arn(arn).set_next_token(token);
        let page = call.send().await;
        let page = page.map_err(|error| Failure::of_call("ListStreamConsumers", None, &error))?;
        consumers.extend(page.consumers.unwrap_or_default());
        token = page.next_token;
        if token.is_none() {
            return Ok(consumers);
        }
    }
}

fn heading(summary: &StreamDescriptionSummary, shards: &[Node], paint: Paint) -> String {
    let mode = summary.stream_mode_details.as_ref().map(|details| &details.stream_mode);
    let open = shards.iter().filter(|shard| shard.is_open()).count() as u64;
    let encryption = match (&summary.encryption_type, &summary.key_id) {
        (Some(EncryptionType::Kms), Some(key)) => format!("KMS, {key}"),
        (Some(EncryptionType::Kms), None) => "KMS".to_owned(),
        _ => "none".to_owned(),
    };
    let created = SystemTime::try_from(summary.stream_creation_timestamp);
    let mut lines = vec![
        ("stream", paint.name(&escape(summary.stream_name.as_bytes()))),
        ("arn", escape(summary.stream_arn.as_bytes())),
        ("status", status_shown(summary.stream_status.as_str(), paint)),
        ("mode", mode_name(mode).to_owned()),
        ("shards", format!("{} open of {}", count(open), count(shards.len() as u64))),
        ("retention", retention_shown(u64::try_from(summary.retention_period_hours).unwrap_or(0))),
        ("encryption", encryption),
        ("created", created.map_or_else(|_| "-".to_owned(), time::short)),
    ];
    if let Some(consumers) = summary.consumer_count {
        lines.push(("consumers", consumers.to_string()));
    }
    let line = |(name, value)| format!("{} {value}\n", paint.heading(&format!("{name:10}")));
    lines.into_iter().map(line).collect()
}

fn consumers_shown(consumers: &[Consumer], paint: Paint) -> String {
    let mut table = Table::new(&["REGISTERED CONSUMER", "STATUS", "CREATED"]);
    for consumer in consumers {
        let created = SystemTime::try_from(consumer.consumer_creation_timestamp);
        table.push(vec![
            paint.name(&escape(consumer.consumer_name.as_bytes())),
            status_shown(consumer.consumer_status.as_str(), paint),
            created.map_or_else(|_| "-".to_owned(), time::short),
        ]);
    }
    if table.is_empty() { "no registered consumers\n".to_owned() } else { table.shown(paint) }
}

#[cfg(test)]
mod tests {
    use aws_sdk_kinesis::primitives::DateTime;
    use aws_sdk_kinesis::types::{ConsumerStatus, StreamMode, StreamModeDetails, StreamStatus};

    use super::*;

    #[test]
    fn heading_names_what_is_known() {
        let mode =
            StreamModeDetails::builder().stream_mode(StreamMode::Provisioned).build().unwrap();
        let summary = StreamDescriptionSummary::builder()
            .stream_name("orders")
            .stream_arn("arn:aws:kinesis:eu-west-1:123456789012:stream/orders")
            .stream_status(StreamStatus::Updating)
            .stream_mode_details(mode)
            .retention_period_hours(168)
            .stream_creation_timestamp(DateTime::from_secs(1_767_225_600))
            .enhanced_monitoring(aws_sdk_kinesis::types::EnhancedMetrics::builder().build())
            .open_shard_count(2)
            .build()
            .unwrap();
        assert_eq!(
            heading(&summary, &[], Paint::plain()),
            "stream     orders\n\
             arn        arn:aws:kinesis:eu-west-1:123456789012:stream/orders\n\
             status     updating\n\
             mode       provisioned\n\
             shards     0 open of 0\n\
             retention  7 d\n\
             encryption none\n\
             created    2026-01-01 00:00:00\n"
        );
    }

    #[test]
    fn consumers_are_listed() {
        let consumer = Consumer::builder()
            .consumer_name("billing")
            .consumer_arn("arn")
            .consumer_status(ConsumerStatus::Active)
            .consumer_creation_timestamp(DateTime::from_secs(1_767_225_600))
            .build()
            .unwrap();
        assert_eq!(
            consumers_shown(&[consumer], Paint::plain()),
            "REGISTERED CONSUMER  STATUS  CREATED\n\
             billing              active  2026-01-01 00:00:00\n"
        );
        assert_eq!(consumers_shown(&[], Paint::plain()), "no registered consumers\n");
    }
}
