//! `kinestream status`: the workers, positions and lag of an application.

mod applications;
mod lag;

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::Duration;

use aws_sdk_kinesis::Client;
use futures::StreamExt;
use kinestream::{ApplicationStatus, Consumer, RedisStore, ShardId, ShardState};

use crate::arguments::{Aws, StatusArguments};
use crate::client;
use crate::failure::{Failure, Outcome};
use crate::output::{Paint, Written, escape, is_reader_gone, short, write_out};
use crate::quantity::{counted, duration};
use crate::signals::Stop;
use crate::table::Table;

/// The calls of Kinesis that run at once.
const CONCURRENT_CALLS: usize = 8;

/// The lag of each shard in milliseconds.
type Lags = BTreeMap<ShardId, i64>;

pub(crate) async fn run(arguments: &StatusArguments, aws: &Aws) -> Outcome<()> {
    let (Some(stream), Some(application)) = (&arguments.stream, &arguments.application) else {
        return applications::run(arguments).await;
    };
    let mut stop = Stop::listen()?;
    let client = client::connect(aws).await?;
    let store = RedisStore::connect(&arguments.redis).await?;
    let consumer =
        Consumer::builder(client.clone(), stream).application(application).store(store).build()?;
    let paint = Paint::stdout();
    loop {
        let text = tokio::select! {
            biased;
            () = stop.requested() => return Ok(()),
            text = describe(&client, stream, &consumer, paint) => text,
        };
        let text = match text {
            // The next turn may succeed.
            Err(failure) if failure.is_temporary() && arguments.watch.is_some() => {
                format!("{}\n", failure.shown(paint))
            }
            text => text?,
        };
        let Some(pause) = arguments.watch else {
            write_out(text.as_bytes())?;
            return Ok(());
        };
        let text = if std::io::stdout().is_terminal() { on_screen(&text) } else { text };
        if write_out(text.as_bytes())? == Written::ReaderGone || is_reader_gone() {
            return Ok(());
        }
        tokio::select! {
            biased;
            () = stop.requested() => return Ok(()),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Returns the text with the codes that put it in the place of the last one.
fn on_screen(text: &str) -> String {
    let (height, width) = console::Term::stdout().size_checked().unwrap_or((24, 80));
    let lines = fit(text, usize::from(height), usize::from(width));
    // Each line removes the rest of the line before it.
    format!("\x1b[H{}\x1b[K\x1b[J", lines.join("\x1b[K\r\n") + "\x1b[K\r\n")
}

/// Cuts the text to a screen. The last line of the screen stays free for the cursor.
fn fit(text: &str, height: usize, width: usize) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let room = height.saturating_sub(1).max(1);
    let shown = if lines.len() > room { room - 1 } else { lines.len() };
    let cut = |line: &&str| console::truncate_str(line, width, "…").into_owned();
    let mut shown: Vec<String> = lines.iter().take(shown).map(cut).collect();
    if shown.len() < lines.len() {
        shown.push(format!("… {}", counted((lines.len() - shown.len()) as u64, "more line")));
    }
    shown
}

async fn describe(
    client: &Client,
    stream: &str,
    consumer: &Consumer,
    paint: Paint,
) -> Outcome<String> {
    let status = consumer.status().await?;
    if status.shards.is_empty() && status.workers.is_empty() {
        return Err(unknown_application(&status));
    }
    let unfinished = status.shards.iter().filter(|(_, shard)| shard.state != ShardState::Finished);
    let positions =
        unfinished.filter_map(|(id, shard)| Some((id.clone(), shard.position.clone()?)));
    let lags = futures::stream::iter(positions.collect::<Vec<_>>())
        .map(|(shard, position)| async move {
            let lag = lag::millis_behind(client, stream, &shard, &position).await;
            (shard, lag)
        })
        .buffer_unordered(CONCURRENT_CALLS)
        .filter_map(async |(shard, lag)| lag.map(|lag| (shard, lag)))
        .collect::<Vec<_>>()
        .await;
    Ok(shown(&status, &lags.into_iter().collect(), paint))
}

/// Describes an application of which nothing is stored.
pub(crate) fn unknown_application(status: &ApplicationStatus) -> Failure {
    let (application, stream) = (&status.application, &status.stream);
    Failure::new(format!("nothing is stored for application {application} of stream {stream}"))
        .advise("Check both names: an application that names its stream by ARN has other positions than one that uses the name.")
        .advise("`kinestream status --redis URL` lists the applications of the store.")
}

fn shown(status: &ApplicationStatus, lags: &Lags, paint: Paint) -> String {
    let name = |name: &str| escape(name.as_bytes());
    let mut text = format!(
        "{} {}\n{} {}\n{} {}\n{} {}\n\n",
        paint.heading("application"),
        paint.name(&name(&status.application)),
        paint.heading("stream     "),
        paint.name(&name(&status.stream)),
        paint.heading("workers    "),
        workers(status, paint),
        paint.heading("behind     "),
        lags.values().max().map_or_else(|| "-".to_owned(), |lag| lag_shown(*lag)),
    );
    let mut table = Table::new(&["SHARD", "STATE", "BEHIND", "OWNER", "POSITION"]).right(&[0, 2]);
    for (id, shard) in &status.shards {
        let owner = match (&shard.owner, &shard.next_owner) {
            (Some(owner), Some(next)) => format!("{} → {}", name(owner), name(next)),
            (Some(owner), None) => name(owner),
            _ => "-".to_owned(),
        };
        let position = shard.position.as_ref();
        table.push(vec![
            paint.name(short(id.as_str())),
            state_shown(shard.state, paint),
            lags.get(id).map_or_else(|| "-".to_owned(), |lag| lag_shown(*lag)),
            owner,
            position.map_or_else(|| "-".to_owned(), ToString::to_string),
        ]);
    }
    text += &table.shown(paint);
    text
}

fn workers(status: &ApplicationStatus, paint: Paint) -> String {
    if status.workers.is_empty() {
        return paint.warn("none: the application does not run");
    }
    let names = status.workers.iter().map(|worker| escape(worker.as_bytes()));
    let count = counted(status.workers.len() as u64, "worker");
    format!("{count}: {}", names.collect::<Vec<_>>().join(", "))
}

fn lag_shown(millis: i64) -> String {
    match u64::try_from(millis).unwrap_or(0) {
        0 => "caught up".to_owned(),
        millis => duration(Duration::from_millis(millis)),
    }
}

fn state_shown(state: ShardState, paint: Paint) -> String {
    match state {
        ShardState::Reading => paint.good("reading"),
        ShardState::Unassigned => paint.bad("unassigned"),
        ShardState::Failed => paint.bad("failed"),
        ShardState::Expired => paint.bad("expired"),
        ShardState::Unreadable => paint.bad("unreadable"),
        ShardState::Waiting => paint.warn("waiting"),
        ShardState::HandingOff => paint.warn("handing off"),
        ShardState::Finished => paint.dim("finished"),
        // A later version of the crate may add states.
        later => format!("{later:?}").to_lowercase(),
    }
}

#[cfg(test)]
mod tests {
    use kinestream::MemoryStore;
    use kinestream::testing::Kinesis;

    use super::*;

    async fn status_of(application: &str) -> (Kinesis, Consumer, ApplicationStatus) {
        let kinesis = Kinesis::new();
        kinesis.create_stream("orders", 2);
        let builder = Consumer::builder(kinesis.client(), "orders").application(application);
        let consumer = builder.store(MemoryStore::new()).worker_id("worker-1").build().unwrap();
        let status = consumer.status().await.unwrap();
        (kinesis, consumer, status)
    }

    #[tokio::test(start_paused = true)]
    async fn unknown_application_is_a_failure_with_advice() {
        let (kinesis, consumer, status) = status_of("billing").await;
        let described = describe(&kinesis.client(), "orders", &consumer, Paint::plain()).await;
        assert_eq!(described.unwrap_err(), unknown_application(&status));
    }

    #[tokio::test(start_paused = true)]
    async fn running_application_shows_workers_owners_and_lag() {
        let (kinesis, consumer, _) = status_of("billing").await;
        let mut records = consumer.records();
        let started = tokio::time::timeout(Duration::from_secs(5), records.next()).await;
        assert!(started.is_err(), "expected no record");
        let text = describe(&kinesis.client(), "orders", &consumer, Paint::plain()).await.unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[..4],
            [
                "application billing",
                "stream      orders",
                "workers     1 worker: worker-1",
                "behind      caught up",
            ]
        );
        assert!(lines[6].starts_with("    0  reading  caught up  worker-1  "), "{text}");
        assert_eq!(lines.len(), 8, "{text}");
    }

    #[test]
    fn status_is_cut_to_the_screen() {
        let text = "one\ntwo is long\nthree\nfour\n";
        assert_eq!(fit(text, 5, 80), ["one", "two is long", "three", "four"]);
        assert_eq!(fit(text, 4, 5), ["one", "two …", "… 2 more lines"]);
    }

    #[test]
    fn lag_is_shown_as_a_duration() {
        assert_eq!(
            [0, -1, 1500, 182_000].map(lag_shown),
            ["caught up", "caught up", "1500 ms", "3m 2s"]
        );
    }
}
