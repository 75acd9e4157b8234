//! `kinestream status`: the workers, positions and lag of an application.

mod applications;
mod lag;
mod report;

use std::io::IsTerminal;
use std::time::SystemTime;

use aws_sdk_kinesis::Client;
use kinestream::{ApplicationStatus, Consumer};

use crate::arguments::{Aws, ReportFormat, StatusArguments, Store};
use crate::client::{self, Calls};
use crate::failure::{Failure, Outcome};
use crate::output::{
    Paint, Written, escape, is_reader_gone, json_line, note, obeys_codes, say, write_out,
    write_report,
};
use crate::quantity::counted;
use crate::signals::Stop;
use crate::store;

use report::Report;

pub(crate) async fn run(arguments: &StatusArguments, aws: &Aws) -> Outcome<()> {
    let (Some(stream), Some(application)) = (&arguments.stream, &arguments.application) else {
        return applications::run(arguments, aws).await;
    };
    let mut stop = Stop::listen()?;
    let connected = async {
        let client = client::connect(aws, Some(stream), Calls::Short).await?;
        Outcome::Ok((client, store::connect(&arguments.store, aws, stream).await?))
    };
    let (client, store) = tokio::select! {
        biased;
        () = stop.requested() => return Ok(()),
        connected = connected => connected?,
    };
    let consumer =
        Consumer::builder(client.clone(), stream).application(application).store(store).build()?;
    let mut noted: Option<String> = None;
    loop {
        let report = tokio::select! {
            biased;
            () = stop.requested() => return Ok(()),
            report = describe(&client, stream, &arguments.store, &consumer) => report,
        };
        let written = match report {
            Ok(report) => {
                // JSON has no place for it. A reason that lasts is noted once.
                let unknown = report.unknown_lags();
                if let Some(unknown) = unknown.as_ref().filter(|unknown| {
                    arguments.output == ReportFormat::Json && noted.as_ref() != Some(unknown)
                }) {
                    note(unknown);
                }
                noted = unknown;
                write(&report, arguments)?
            }
            // The next turn may succeed.
            Err(failure) if failure.is_temporary() && arguments.watch.is_some() => {
                write_failure(&failure, arguments)?
            }
            Err(failure) => return Err(failure),
        };
        let Some(pause) = arguments.watch else { return Ok(()) };
        if written == Written::ReaderGone || is_reader_gone() {
            return Ok(());
        }
        tokio::select! {
            biased;
            () = stop.requested() => return Ok(()),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

fn write(report: &Report, arguments: &StatusArguments) -> Outcome<Written> {
    match arguments.output {
        ReportFormat::Text => write_text(&report.shown(Paint::stdout()), arguments),
        ReportFormat::Json => write_out(json_line(report)?.as_bytes()),
    }
}

/// Shows a failure in the place of a report. Lines of JSON are reports only, so that each has the same
/// fields: with them, the failure goes to stderr.
fn write_failure(failure: &Failure, arguments: &StatusArguments) -> Outcome<Written> {
    match arguments.output {
        ReportFormat::Text => write_text(&(failure.shown(Paint::stdout()) + "\n"), arguments),
        ReportFormat::Json => {
            say(&format!("{}\n", failure.shown(Paint::stderr())));
            Ok(Written::All)
        }
    }
}

/// Writes the text, which replaces the last one on a terminal with `--watch`.
fn write_text(text: &str, arguments: &StatusArguments) -> Outcome<Written> {
    let is_replaced = arguments.watch.is_some() && std::io::stdout().is_terminal() && obeys_codes();
    if is_replaced { write_out(on_screen(text).as_bytes()) } else { write_report(text) }
}

/// Returns the text with the codes that put it in the place of the last one.
fn on_screen(text: &str) -> String {
    let size = console::Term::stdout().size_checked();
    // Some pseudo-terminals have no size.
    let (height, width) = size.filter(|size| size.0 > 0 && size.1 > 0).unwrap_or((24, 80));
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
    store: &Store,
    consumer: &Consumer,
) -> Outcome<Report> {
    let status = consumer.status().await?;
    if status.shards.is_empty() && status.workers.is_empty() {
        return Err(unknown_application(stream, store, &status));
    }
    let lags = lag::of_shards(client, stream, &status).await;
    Ok(Report::new(stream, status, &lags, SystemTime::now()))
}

/// Describes an application of which nothing is stored.
pub(crate) fn unknown_application(
    stream: &str,
    store: &Store,
    status: &ApplicationStatus,
) -> Failure {
    let store = match store {
        // The URL may hold a password.
        Store::Redis(_) => "--redis URL".to_owned(),
        Store::DynamoDb(table) => format!("--dynamodb {}", table.table),
    };
    let application = escape(status.application.as_bytes());
    Failure::new(format!("nothing is stored for application {application} of stream {stream}"))
        .advise("Check both names: an application that names its stream by ARN has other positions than one that uses the name.")
        .advise(format!("`kinestream status {store}` lists the applications of the store."))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::StreamExt;
    use kinestream::MemoryStore;
    use kinestream::testing::Kinesis;

    use super::*;
    use crate::arguments::DynamoDb;

    fn table() -> Store {
        Store::DynamoDb(DynamoDb {
            table: "kinestream".to_owned(),
            kcl_table: None,
            endpoint_url: None,
        })
    }

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
        let store = table();
        let described = describe(&kinesis.client(), "orders", &store, &consumer).await;
        let unknown = unknown_application("orders", &store, &status);
        assert_eq!(described.unwrap_err(), unknown);
        let shown = unknown.shown(Paint::plain());
        assert!(
            shown.ends_with(
                "`kinestream status --dynamodb kinestream` lists the applications of the store."
            ),
            "{shown}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn running_application_shows_workers_owners_and_lag() {
        let (kinesis, consumer, _) = status_of("billing").await;
        let mut records = consumer.records();
        let started = tokio::time::timeout(Duration::from_secs(5), records.next()).await;
        assert!(started.is_err(), "expected no record");
        let report = describe(&kinesis.client(), "orders", &table(), &consumer).await.unwrap();
        let text = report.shown(Paint::plain());
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
}
