//! `kinestream describe`: a stream, its shards as a tree, and its registered consumers.

mod description;
mod tree;

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::types::Consumer;

use crate::arguments::{Aws, DescribeArguments, ReportFormat};
use crate::client::{self, Calls, of_stream, suggest_names};
use crate::failure::{Failure, Outcome};
use crate::output::{Paint, json_line, note, write_out, write_report};

use description::Description;
use tree::Node;

pub(crate) async fn run(arguments: &DescribeArguments, aws: &Aws) -> Outcome<()> {
    let client = client::connect(aws, Some(&arguments.stream), Calls::Short).await?;
    let description = match describe(&client, &arguments.stream).await {
        Ok(description) => description,
        Err(failure) => return Err(suggest_names(&client, &arguments.stream, failure).await),
    };
    let written = match arguments.output {
        ReportFormat::Text => write_report(&description.shown(Paint::stdout())),
        ReportFormat::Json => {
            if let Some(unknown) = description.unknown_consumers() {
                note(&unknown);
            }
            write_out(json_line(&description)?.as_bytes())
        }
    };
    written.map(drop)
}

async fn describe(client: &Client, stream: &str) -> Outcome<Description> {
    let call = of_stream!(client.describe_stream_summary(), stream);
    let described = call.send().await;
    let described = described
        .map_err(|error| Failure::of_call("DescribeStreamSummary", Some(stream), &error))?;
    let summary = described
        .stream_description_summary
        .ok_or_else(|| Failure::new("DescribeStreamSummary returned no description"))?;
    let shards = list_shards(client, stream).await?;
    // Without the consumers, the rest is still useful.
    let consumers = list_consumers(client, &summary.stream_arn).await;
    Ok(Description::new(summary, shards, consumers))
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
