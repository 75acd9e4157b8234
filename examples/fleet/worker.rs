//! One worker, in a process of its own: reads, and has its records taken by a sink.
//!
//! The sink is the parent. Each record goes to it as a line of standard output, and the answer comes
//! back by standard input, in the same order: only then is the record finished.

use std::error::Error;
use std::io::{self, BufRead, Write};
use std::pin::pin;
use std::sync::mpsc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_sdk_kinesis::Client;
use futures::Stream;
use kinestream::{CheckpointOn, Consumer, Record, RedisStore, StartingPosition};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::support;

pub(crate) const STREAM: &str = "orders";

/// As short as it may be, so that there is something to see.
pub(crate) const LEASE: Duration = Duration::from_secs(2);

/// What the sink says.
pub(crate) const TAKEN: &str = "taken";
pub(crate) const REFUSED: &str = "refused";
/// Every record is answered.
pub(crate) const ANSWERED: &str = "answered";
/// The worker is to close.
pub(crate) const LEAVE: &str = "leave";
/// What a worker says behind its last record.
pub(crate) const END: &str = "end";

/// What has come by standard input.
#[derive(PartialEq, Eq)]
enum Told {
    Read,
    Leave,
    Answered,
    /// The parent is gone.
    Alone,
}

pub(crate) fn consumer(
    client: &Client,
    store: RedisStore,
    name: &str,
) -> kinestream::Result<Consumer> {
    Consumer::builder(client.clone(), STREAM)
        .application("fleet")
        .starting_position(StartingPosition::TrimHorizon)
        .worker_id(name)
        .lease_duration(LEASE)
        .interval(Duration::from_millis(400))
        .checkpoint_on(CheckpointOn::Ack)
        .store(store)
        .build()
}

/// The worker's part: reads until it is told to leave, or the parent is gone.
pub(crate) async fn work(port: u16, redis: &str, name: &str) -> Result<(), Box<dyn Error>> {
    let store = RedisStore::connect(redis).await?;
    let consumer = consumer(&support::client_of(port), store, name)?;
    let (unanswered, answered) = mpsc::channel();
    let (tell, mut told) = watch::channel(Told::Read);
    std::thread::spawn(move || listen(&answered, &tell));

    let mut output = io::stdout();
    {
        let mut records = pin!(consumer.records());
        loop {
            let (polled, record) = tokio::select! {
                biased;
                _told = told.wait_for(|told| *told != Told::Read) => break,
                next = next_with_time(records.as_mut()) => next,
            };
            let record = record.ok_or("the stream has ended")??;
            let number = std::str::from_utf8(record.data())?;
            let (shard, epoch) = (record.shard_id().as_str(), record.epoch());
            let line = format!("{shard} {epoch} {number} {polled}\n");
            // In this order, or the answer might come before what it answers.
            unanswered.send(record)?;
            output.write_all(line.as_bytes())?;
            output.flush()?;
        }
        // Nothing that was handed out is unfinished when the shards go to others.
        writeln!(output, "{END}")?;
        told.wait_for(|told| matches!(told, Told::Answered | Told::Alone)).await?;
    }
    // Who is alone has lost the store as well.
    timeout(2 * LEASE, consumer.close()).await??;
    Ok(())
}

/// The next record, and when it was asked for last, in microseconds since 1970: not later than when
/// it was handed out, even where the process is suspended in between.
async fn next_with_time<S>(mut records: std::pin::Pin<&mut S>) -> (u128, Option<S::Item>)
where
    S: Stream<Item = kinestream::Result<Record>>,
{
    std::future::poll_fn(|context| {
        let polled = SystemTime::now();
        records.as_mut().poll_next(context).map(|record| (micros(polled), record))
    })
    .await
}

pub(crate) fn micros(time: SystemTime) -> u128 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_micros()
}

/// Acknowledges what the sink has taken. What it has refused belongs to another worker by now.
fn listen(unanswered: &mpsc::Receiver<Record>, tell: &watch::Sender<Told>) {
    for line in io::stdin().lock().lines().map_while(Result::ok) {
        match line.as_str() {
            TAKEN | REFUSED => {
                if let Ok(record) = unanswered.try_recv()
                    && line == TAKEN
                {
                    record.ack();
                }
            }
            LEAVE => {
                tell.send_replace(Told::Leave);
            }
            ANSWERED => {
                tell.send_replace(Told::Answered);
                return;
            }
            _ => {}
        }
    }
    tell.send_replace(Told::Alone);
}
