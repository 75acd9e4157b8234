//! Writes numbered records continuously, and notes the shard of each.

use std::error::Error;
use std::time::Duration;

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::primitives::Blob;
use aws_sdk_kinesis::types::PutRecordsRequestEntry;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};

use crate::board::Shared;
use crate::worker::STREAM;

/// The number of records per call. There are ten calls per second.
const BATCH: u64 = 30;
const PAUSE: Duration = Duration::from_millis(100);

type Written = Result<(), aws_sdk_kinesis::Error>;

pub(crate) struct Writer {
    stop: oneshot::Sender<()>,
    writing: JoinHandle<Written>,
}

impl Writer {
    pub(crate) fn start(client: Client, board: Shared) -> Self {
        let (stop, stopped) = oneshot::channel();
        Self { stop, writing: tokio::spawn(write(client, board, stopped)) }
    }

    /// Stops the writer. All records that it has written are then on the board.
    pub(crate) async fn stop(self) -> Result<(), Box<dyn Error>> {
        let _may_have_failed = self.stop.send(());
        Ok(self.writing.await??)
    }
}

async fn write(client: Client, board: Shared, mut stopped: oneshot::Receiver<()>) -> Written {
    let mut ticks = interval(PAUSE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut next = 0;
    loop {
        tokio::select! {
            biased;
            _stopped = &mut stopped => return Ok(()),
            _tick = ticks.tick() => put(&client, &board, next..next + BATCH).await?,
        }
        next += BATCH;
    }
}

/// Puts the numbers as text. A number that Kinesis rejects is neither retried nor counted.
async fn put(client: &Client, board: &Shared, numbers: std::ops::Range<u64>) -> Written {
    let entry = |number: u64| {
        let text = number.to_string();
        PutRecordsRequestEntry::builder().partition_key(&text).data(Blob::new(text)).build()
    };
    let entries = numbers.clone().map(entry).collect::<Result<Vec<_>, _>>()?;
    let response =
        client.put_records().stream_name(STREAM).set_records(Some(entries)).send().await?;
    let mut board = board.lock();
    for (number, result) in numbers.zip(response.records()) {
        if let Some(shard) = result.shard_id() {
            board.tally.write(shard, number);
        }
    }
    Ok(())
}
