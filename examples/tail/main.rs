//! Prints the records of a Kinesis stream as they arrive, as `tail -f` prints the lines of a file.
//!
//!     cargo run --example tail -- orders --from trim-horizon
//!     cargo run --example tail -- --demo
//!
//! `--help` lists all options. If stderr is a terminal, it shows one line per shard with the rate
//! and the lag, and a bar while the shard catches up.

mod arguments;
mod calls;
mod live;
mod output;
mod status;
#[path = "../support/mod.rs"]
mod support;

use std::error::Error;
use std::io::{ErrorKind, Write};
use std::ops::ControlFlow;
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use arguments::{Arguments, Format, From, USAGE};
use async_stream::stream;
use aws_config::BehaviorVersion;
use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::config::{Credentials, Region};
use futures::stream::{BoxStream, SelectAll};
use futures::{FutureExt, Stream, StreamExt};
use kinestream::{CheckpointOn, Consumer, Event, Record, RedisStore, ShardPosition, ShardStream};
use live::Live;
use tokio::time::interval;

/// A result whose error ends the program with exit code 1.
type Outcome<T> = Result<T, Box<dyn Error>>;

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = match arguments::parse() {
        Ok(Some(arguments)) => arguments,
        Ok(None) => {
            let printed = print(format!("{USAGE}\n").as_bytes());
            return printed.map_or(ExitCode::FAILURE, |_| ExitCode::SUCCESS);
        }
        Err(error) => {
            eprintln!("tail: {error}");
            return ExitCode::from(2);
        }
    };
    match run(&arguments).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tail: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &Arguments) -> Outcome<()> {
    let (client, stream) = match &arguments.stream {
        Some(stream) => (client(arguments).await, stream.clone()),
        None => (demonstration().await?, "orders".to_owned()),
    };
    let consumer = consumer(&client, &stream, arguments).await?;
    if arguments.status {
        let status = status::show(&client, &stream, &consumer).await?;
        let _is_read_or_not = print(status.as_bytes())?;
        return Ok(());
    }
    calls::check_shards(&client, &stream, &arguments.shards).await?;
    let result = follow(&consumer, arguments).await;
    let closed = consumer.close().await;
    result?;
    Ok(closed?)
}

async fn client(arguments: &Arguments) -> Client {
    let mut loader = aws_config::defaults(BehaviorVersion::latest());
    if let Some(url) = &arguments.endpoint_url {
        loader = loader.endpoint_url(url);
        let is_local = url.contains("://127.0.0.1") || url.contains("://localhost");
        // Local servers do not check credentials.
        if is_local && std::env::var_os("AWS_ACCESS_KEY_ID").is_none() {
            let local_credentials = Credentials::new("local", "local", None, None, "local");
            loader =
                loader.credentials_provider(local_credentials).region(Region::new("us-east-1"));
        }
    }
    Client::new(&loader.load().await)
}

/// Starts Kinesis in this process with a stream that is written to continuously.
async fn demonstration() -> Outcome<Client> {
    let (client, _port) = support::start_kinesis().await?;
    support::create_stream(&client, "orders", 3).await?;
    let writer = client.clone();
    support::put_numbers(&writer, "orders", 0..1000).await?;
    tokio::spawn(async move {
        let mut ticks = interval(Duration::from_millis(500));
        for begin in (1000..).step_by(10) {
            ticks.tick().await;
            let _reported_by_the_reader =
                support::put_numbers(&writer, "orders", begin..begin + 10).await;
        }
    });
    Ok(client)
}

async fn consumer(client: &Client, stream: &str, arguments: &Arguments) -> Outcome<Consumer> {
    // A record is acknowledged once it is printed. Several records are printed at once.
    let mut builder = Consumer::builder(client.clone(), stream).checkpoint_on(CheckpointOn::Ack);
    builder = match (&arguments.from, &arguments.shards[..]) {
        (From::All(position), _) => builder.starting_position(*position),
        (From::Sequence(number), [shard, ..]) => {
            let position = ShardPosition::AtSequenceNumber(number.clone());
            builder.starting_position_for(shard.clone(), position)
        }
        (From::Sequence(_), []) => builder,
    };
    if let (Some(application), Some(redis)) = (&arguments.application, &arguments.redis) {
        builder = builder.application(application).store(RedisStore::connect(redis).await?);
    }
    if let Some(consumer) = &arguments.fan_out {
        builder = builder.fan_out(consumer);
    }
    Ok(builder.build()?)
}

/// Prints to stdout. Returns `Break` if the reading end is closed, as by `head`.
fn print(bytes: &[u8]) -> std::io::Result<ControlFlow<()>> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(ControlFlow::Continue(())),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(ControlFlow::Break(())),
        Err(error) => Err(error),
    }
}

/// Prints records until the stream ends, the limit is reached, or Ctrl-C.
async fn follow(consumer: &Consumer, arguments: &Arguments) -> Outcome<()> {
    let usual = if console::user_attended() { Format::Text } else { Format::Raw };
    let format = arguments.format.unwrap_or(usual);
    let mut events = consumer.events();
    let mut records = records(consumer, arguments);
    let mut left = arguments.limit.unwrap_or(u64::MAX);
    let mut live = Live::new();
    let mut ticks = interval(Duration::from_millis(200));
    let mut interrupted = pin!(tokio::signal::ctrl_c());
    let mut result = Ok(());
    let mut is_interrupted = false;
    let (mut lines, mut printed) = (Vec::new(), Vec::new());
    while left > 0 {
        tokio::select! {
            biased;
            _ = &mut interrupted => {
                is_interrupted = true;
                break;
            }
            _ = ticks.tick() => live.draw(),
            Some(event) = events.next() => {
                live.on_event(&event);
                if let Some(note) = note(&event) {
                    live.print_above(|| writeln!(std::io::stderr(), "tail: {note}"))?;
                }
            }
            next = records.next() => {
                // Print all records that are ready at once, up to 1 MiB.
                let mut next = Some(next);
                while let Some(Some(Ok(record))) = next {
                    live.count(&record);
                    lines.extend(output::format_record(&record, format));
                    printed.push(record);
                    left -= 1;
                    next = match left {
                        0 => Some(None),
                        _ if lines.len() < 1 << 20 => records.next().now_or_never(),
                        _ => None,
                    };
                }
                match live.print_above(|| print(&lines)) {
                    Ok(ControlFlow::Continue(())) => {}
                    Ok(ControlFlow::Break(())) => break,
                    Err(error) => {
                        result = Err(error.into());
                        break;
                    }
                }
                lines.clear();
                printed.drain(..).for_each(|record| record.ack());
                match next {
                    Some(Some(Err(error))) if error.is_temporary() => {
                        live.print_above(|| writeln!(std::io::stderr(), "tail: {error}"))?;
                    }
                    Some(Some(Err(error))) => {
                        result = Err(error.into());
                        break;
                    }
                    Some(None) => break,
                    _ => {}
                }
            }
        }
    }
    if !is_interrupted {
        live.draw();
    }
    let summary = live.sum_up();
    if is_interrupted && console::user_attended_stderr() {
        // Start a new line after the echoed ^C.
        eprintln!();
    }
    if result.is_ok() {
        eprintln!("{summary}");
    }
    result
}

/// Returns a note for a call that has failed twice in a row.
fn note(event: &Event) -> Option<String> {
    match event {
        Event::Retried { message, attempt: 2, .. } => Some(format!("retrying: {message}")),
        Event::Throttled { shard_id: Some(shard), attempt: 2 } => {
            Some(format!("throttled: shard {}", output::short(shard.as_str())))
        }
        Event::Throttled { shard_id: None, attempt: 2 } => Some("throttled".to_owned()),
        _ => None,
    }
}

/// Returns the records of all shards, or of the selected ones.
fn records(
    consumer: &Consumer,
    arguments: &Arguments,
) -> BoxStream<'static, kinestream::Result<Record>> {
    if arguments.shards.is_empty() {
        return consumer.records().boxed();
    }
    let wanted = arguments.shards.clone();
    let shards = consumer.shards();
    only(shards, move |shard| wanted.contains(shard.shard_id())).boxed()
}

/// Returns the records of the wanted shards. The other shards are kept and never polled, so nothing
/// is read from them.
fn only(
    shards: impl Stream<Item = kinestream::Result<ShardStream>> + Unpin,
    is_wanted: impl Fn(&ShardStream) -> bool,
) -> impl Stream<Item = kinestream::Result<Record>> {
    stream! {
        let mut shards = shards;
        let (mut wanted, mut others) = (SelectAll::new(), Vec::new());
        loop {
            let next = tokio::select! {
                biased;
                shard = shards.next() => match shard {
                    Some(Ok(shard)) if is_wanted(&shard) => {
                        wanted.push(shard);
                        continue;
                    }
                    Some(Ok(shard)) => {
                        others.push(shard);
                        continue;
                    }
                    Some(Err(error)) => Err(error),
                    None => break,
                },
                Some(record) = wanted.next(), if !wanted.is_empty() => record,
            };
            yield next;
        }
    }
}
