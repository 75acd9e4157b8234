//! The status of an application.

use aws_sdk_kinesis::Client;
use console::style;
use kinestream::{Consumer, ShardState};

use crate::calls::millis_behind;
use crate::output::short;

/// Returns a table of the application's shards with state, lag, owner and position.
pub(crate) async fn show(
    client: &Client,
    stream: &str,
    consumer: &Consumer,
) -> kinestream::Result<String> {
    let status = consumer.status().await?;
    let workers = match &status.workers[..] {
        [] => "none".to_owned(),
        workers => workers.join(", "),
    };
    let heading =
        format!("{:>12} {:11} {:>12} {:24} position", "shard", "state", "behind", "owner");
    let mut lines = vec![
        format!("application {} of stream {}", status.application, status.stream),
        format!("workers: {workers}"),
        style(heading).bold().to_string(),
    ];
    for (shard, at) in &status.shards {
        let state = match at.state {
            ShardState::Reading => style("reading".to_owned()).green(),
            ShardState::Unassigned => style("unassigned".to_owned()).red(),
            ShardState::Failed => style("failed".to_owned()).red(),
            ShardState::Expired => style("expired".to_owned()).red(),
            ShardState::Unreadable => style("unreadable".to_owned()).red(),
            ShardState::Waiting => style("waiting".to_owned()).yellow(),
            ShardState::HandingOff => style("handing off".to_owned()).yellow(),
            ShardState::Finished => style("finished".to_owned()).dim(),
            // A later version of the crate may add states.
            later => style(format!("{later:?}").to_lowercase()),
        };
        let behind = match &at.position {
            Some(position) if at.state != ShardState::Finished => {
                millis_behind(client, stream, shard, position).await
            }
            _ => None,
        };
        lines.push(format!(
            "{:>12} {state:11} {:>12} {:24} {}",
            short(shard.as_str()),
            behind.map_or_else(|| "-".to_owned(), |millis| format!("{millis} ms")),
            at.owner.as_deref().unwrap_or("-"),
            at.position.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
        ));
    }
    if status.shards.is_empty() {
        lines.push("no positions stored: the application is new, or has another name".into());
    }
    Ok(lines.join("\n") + "\n")
}
