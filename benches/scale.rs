//! Measures the cost of many shards, the speedup by a second core, and the delay of a record.
//!
//!     cargo bench --features testing --bench scale
//!
//! Kinesis is in memory. Time is tokio's paused clock, so an hour of pauses takes no time, except
//! for the speedup. CPU time is that of the process.
// A benchmark panics on any failure.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::cast_precision_loss)]

#[path = "../tests/support/bare.rs"]
mod bare;
#[path = "../tests/support/canned.rs"]
mod canned;
#[path = "../tests/support/drain.rs"]
mod drain;
#[path = "../tests/support/following.rs"]
mod following;
#[path = "../tests/support/in_memory.rs"]
mod in_memory;
#[path = "../tests/support/peak.rs"]
mod peak;

use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use aws_sdk_kinesis::Client;
use canned::{Contents, MAX_RECORDS};
use drain::drain;
use futures::{FutureExt, StreamExt};
use kinestream::testing::Kinesis;
use kinestream::{Consumer, ConsumerBuilder, Records, StartingPosition};
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

const MANY: usize = 1000;
const BUSY: usize = 1000;

fn paused() -> Runtime {
    Builder::new_current_thread().enable_all().start_paused(true).build().unwrap()
}

fn builder(client: Client, stream: &str) -> ConsumerBuilder {
    Consumer::builder(client, stream).starting_position(StartingPosition::TrimHorizon)
}

fn records(client: Client, stream: &str) -> Records {
    builder(client, stream).build().unwrap().records()
}

/// Returns the nanoseconds of a poll that yields a record which is ready.
async fn polls() -> f64 {
    let contents = Contents {
        shards: MANY,
        record_bytes: 100,
        max_records: MAX_RECORDS,
        answers: 100,
        is_packed: false,
    };
    let stream = contents.stream(0);
    let mut stream = records(in_memory::client(&stream), &stream);
    let (mut read, mut polling) = (0, Duration::ZERO);
    // Records are dropped while the clock is stopped: freeing the SDK's memory is not measured.
    let mut kept = Vec::new();
    while read < contents.records() {
        kept.push(stream.next().await.unwrap().unwrap());
        let began = Instant::now();
        while let Some(Some(record)) = stream.next().now_or_never() {
            kept.push(record.unwrap());
        }
        polling += began.elapsed();
        read += kept.len();
        kept.clear();
    }
    polling.as_nanos() as f64 / read as f64
}

/// Returns the seconds of CPU per second for polling idle shards, by the crate or by tasks that
/// make the same calls with the SDK alone.
async fn polled(by_crate: bool) -> f64 {
    const TIME: Duration = Duration::from_secs(120);
    let stream =
        Contents { shards: MANY, record_bytes: 100, max_records: 0, answers: 0, is_packed: false }
            .stream(0);
    let client = in_memory::client(&stream);
    if by_crate {
        following::by_crate(builder(client, &stream), TIME).await
    } else {
        let task = |shard| bare::follow(client.clone(), stream.clone(), shard);
        following::by_tasks((0..MANY).map(task), TIME).await
    }
}

/// Like [`polled`], for enhanced fan-out: each shard sends an event every five seconds and is
/// subscribed to again every five minutes.
async fn pushed(by_crate: bool) -> f64 {
    const TIME: Duration = Duration::from_secs(600);
    let kinesis = Kinesis::new();
    kinesis.create_stream("orders", MANY);
    let client = kinesis.client();
    if by_crate {
        return following::by_crate(builder(client, "orders").fan_out("billing"), TIME).await;
    }
    let described = client.describe_stream_summary().stream_name("orders").send().await.unwrap();
    let stream_arn = described.stream_description_summary.unwrap().stream_arn;
    let registered = client.register_stream_consumer().stream_arn(stream_arn);
    let registered = registered.consumer_name("billing").send().await.unwrap();
    let arn = registered.consumer.unwrap().consumer_arn;
    let task = |shard| bare::subscribe(client.clone(), arn.clone(), shard);
    following::by_tasks((0..MANY).map(task), TIME).await
}

/// Returns the CPU, in hundredths of a core, and the memory, in MiB, of a process that only reads
/// idle shards by enhanced fan-out.
fn measure_pushed(by_crate: bool) -> [f64; 2] {
    let cores = paused().block_on(pushed(by_crate));
    [cores * 100.0, (peak::peak_bytes() >> 20) as f64]
}

/// Runs [`measure_pushed`] in a separate process.
fn pushed_elsewhere(by_crate: bool) -> [f64; 2] {
    let measured = Command::new(std::env::current_exe().unwrap())
        .args(["pushed", if by_crate { "crate" } else { "sdk" }])
        .output()
        .unwrap();
    let text = String::from_utf8(measured.stdout).unwrap();
    let mut numbers = text.split_whitespace().map(|number| number.parse().unwrap());
    [numbers.next().unwrap(), numbers.next().unwrap()]
}

/// Returns the seconds to read two responses of 1 MB from each of many shards on `threads` threads.
/// Kinesis allows them in half a second, which is less than the cores need.
fn busy(threads: usize) -> f64 {
    let contents = Contents {
        shards: BUSY,
        record_bytes: 1000,
        max_records: 1000,
        answers: 2 * BUSY,
        is_packed: false,
    };
    let stream = contents.stream(0);
    let client = in_memory::client(&stream);
    let runtime = Builder::new_multi_thread().worker_threads(threads).enable_all().build().unwrap();
    let reading = runtime.spawn(async move {
        let began = Instant::now();
        drain(records(client, &stream), contents.records(), false).await;
        began.elapsed().as_secs_f64()
    });
    runtime.block_on(reading).unwrap()
}

/// Returns the delays until a new reader has its first record, and a record of each of `shards`
/// shards. Every call takes `latency`.
async fn start(shards: usize, latency: Duration) -> [Duration; 2] {
    let kinesis = Kinesis::new();
    let orders = kinesis.create_stream("orders", shards);
    for shard in orders.shards() {
        shard.put("a record");
    }
    kinesis.set_latency(latency);
    let began = tokio::time::Instant::now();
    let mut stream = records(kinesis.client(), "orders");
    let mut first = None;
    for _ in 0..shards {
        stream.next().await.unwrap().unwrap();
        first.get_or_insert(began.elapsed());
    }
    [first.unwrap_or_default(), began.elapsed()]
}

/// Returns the median and the maximum delay, of 1000, from a put to its yield while caught up.
async fn delays(interval: Duration, latency: Duration) -> [Duration; 2] {
    let kinesis = Kinesis::new();
    let orders = kinesis.create_stream("orders", 1);
    kinesis.set_latency(latency);
    let consumer = Consumer::builder(kinesis.client(), "orders")
        .interval(interval)
        .starting_position(StartingPosition::AtTimestamp(SystemTime::UNIX_EPOCH));
    let mut stream = consumer.build().unwrap().records();
    let mut delays = Vec::new();
    for number in 0..1000 {
        // Vary the phase within the interval. Each put follows a pause without records.
        let _nothing = timeout(interval * 3 + interval * number / 1000, stream.next()).await;
        let put = tokio::time::Instant::now();
        orders.shard(0).put("a record");
        stream.next().await.unwrap().unwrap();
        delays.push(put.elapsed());
    }
    delays.sort();
    [delays[500], delays[999]]
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, what, by] = &arguments[..]
        && what == "pushed"
    {
        let [cpu, memory] = measure_pushed(by == "crate");
        println!("{cpu} {memory}");
        return;
    }
    // `cargo test --benches` ends at once.
    if !arguments.iter().any(|argument| argument == "--bench") {
        println!("run with `cargo bench --features testing --bench scale`");
        return;
    }
    let best = |measure: &dyn Fn() -> f64| (0..5).map(|_| measure()).fold(f64::MAX, f64::min);
    let poll = best(&|| paused().block_on(polls()));
    println!("poll of {MANY} shards that yields a record: {poll:.0} ns");
    let ours = best(&|| paused().block_on(polled(true)));
    let bare = best(&|| paused().block_on(polled(false)));
    println!(
        "{MANY} idle shards polled every second: {:.2} % of a core, {:.2} % more than the same calls \
         with the SDK alone",
        ours * 100.0,
        (ours - bare) * 100.0
    );
    let [ours, bare] = [true, false].map(|by_crate| {
        let measured = (0..3).map(|_| pushed_elsewhere(by_crate));
        measured.min_by(|one, other| one[0].total_cmp(&other[0])).unwrap()
    });
    println!(
        "{MANY} idle shards by enhanced fan-out: {:.2} % of a core and {} MiB; SDK alone: {:.2} % \
         and {} MiB",
        ours[0], ours[1], bare[0], bare[1]
    );
    let [one, two] = [1, 2].map(|threads| best(&|| busy(threads)));
    println!("{BUSY} busy shards on 2 threads: {:.2} times as fast as on 1", one / two);
    for shards in [1, MANY] {
        let latency = Duration::from_millis(10);
        let [first, all] = paused().block_on(start(shards, latency));
        println!(
            "{shards} shards, {latency:?} per call: first record after {first:?}, a record of each \
             shard after {all:?}"
        );
    }
    for millis in [200, 1000] {
        let interval = Duration::from_millis(millis);
        let [middle, longest] = paused().block_on(delays(interval, Duration::from_millis(10)));
        println!(
            "put to yield at an interval of {interval:?}: median {middle:?}, maximum {longest:?}"
        );
    }
}
