//! A worker process: reads records and passes them to the sink in the parent process.
//!
//! The worker writes each record as a line to standard output, and reads the sink's answers from
//! standard input, in the same order. A record is acknowledged once the sink has accepted it.

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

/// The shortest lease duration that is allowed, so that leases move quickly.
pub(crate) const LEASE: Duration = Duration::from_secs(2);

/// The messages from the sink.
pub(crate) const ACCEPTED: &str = "accepted";
pub(crate) const REFUSED: &str = "refused";
/// All records before `END` are answered.
pub(crate) const ANSWERED: &str = "answered";
/// The worker is to close.
pub(crate) const LEAVE: &str = "leave";
/// The worker's message after its last record.
pub(crate) const END: &str = "end";

/// The last message from standard input.
#[derive(PartialEq, Eq)]
enum ParentMessage {
    Read,
    Leave,
    Answered,
    /// The parent has exited.
    ParentExited,
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

/// Runs a worker until it receives the command to leave or the parent exits.
pub(crate) async fn work(port: u16, redis: &str, name: &str) -> Result<(), Box<dyn Error>> {
    let store = RedisStore::connect(redis).await?;
    let consumer = consumer(&support::client_of(port), store, name)?;
    let (unanswered, answered) = mpsc::channel();
    let (sender, mut messages) = watch::channel(ParentMessage::Read);
    std::thread::spawn(move || listen(&answered, &sender));

    let mut output = io::stdout();
    {
        let mut records = pin!(consumer.records());
        loop {
            let (polled, record) = tokio::select! {
                biased;
                _message = messages.wait_for(|message| *message != ParentMessage::Read) => break,
                next = next_with_time(records.as_mut()) => next,
            };
            let record = record.ok_or("the stream ended early")??;
            let number = std::str::from_utf8(record.data())?;
            let (shard, epoch) = (record.shard_id().as_str(), record.epoch());
            let line = format!("{shard} {epoch} {number} {polled}\n");
            // Queue the record before it is printed: the answer may arrive at once.
            unanswered.send(record)?;
            output.write_all(line.as_bytes())?;
            output.flush()?;
        }
        // Wait for the answers, so that no record is unacknowledged when the leases are released.
        writeln!(output, "{END}")?;
        messages
            .wait_for(|message| {
                matches!(message, ParentMessage::Answered | ParentMessage::ParentExited)
            })
            .await?;
    }
    // Without the parent there is no store either, so limit the time of the close.
    timeout(2 * LEASE, consumer.close()).await??;
    Ok(())
}

/// Returns the next record and the time of the poll that returned it, in microseconds since 1970.
/// The time is not later than the delivery, even if the process is suspended in between.
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

/// Acknowledges the records that the sink accepts. A refused record belongs to another worker.
fn listen(unanswered: &mpsc::Receiver<Record>, sender: &watch::Sender<ParentMessage>) {
    for line in io::stdin().lock().lines().map_while(Result::ok) {
        match line.as_str() {
            ACCEPTED | REFUSED => {
                if let Ok(record) = unanswered.try_recv()
                    && line == ACCEPTED
                {
                    record.ack();
                }
            }
            LEAVE => {
                sender.send_replace(ParentMessage::Leave);
            }
            ANSWERED => {
                sender.send_replace(ParentMessage::Answered);
                return;
            }
            _ => {}
        }
    }
    sender.send_replace(ParentMessage::ParentExited);
}
