//! The messages from the readers of shards to the worker, over one channel.

use tokio::sync::{mpsc, oneshot};

use crate::record::ShardId;
use crate::source::KnownShard;
use crate::telemetry::ShardTelemetry;

/// A message to the worker, most of them about a shard in the epoch of its lease.
#[derive(Debug)]
pub(crate) enum WorkerMessage {
    /// The shard was read to its end.
    Read {
        shard: ShardId,
        epoch: u64,
        /// The shard's children, as far as Kinesis named them.
        children: Vec<KnownShard>,
        /// The shard's telemetry, which reports its records until they are acknowledged.
        telemetry: ShardTelemetry,
    },
    /// Every record of the shard is acknowledged.
    Finished(ShardId, u64),
    /// The shard's stream was dropped before the end of the shard.
    Dropped(ShardId, u64),
    /// The shard's stream ended with an error.
    Failed {
        shard: ShardId,
        epoch: u64,
        /// True if the stream delivered a record before the error.
        has_delivered: bool,
    },
    /// The store's state differs from what this worker assumed.
    StateMismatch,
    /// The store cannot read its data of a shard.
    Unreadable,
    /// Like [`StateMismatch`](Self::StateMismatch), from an admin operation that waits until the
    /// worker has read the table.
    TableEdited(oneshot::Sender<()>),
}

/// Reports to the worker how the reading of a shard has ended, once.
///
/// If it is dropped before, it reports that the shard's stream was dropped, also if the caller
/// never opened the shard. The worker then releases the shard.
#[derive(Debug)]
pub(crate) struct ReadReport(Option<Recipient>);

#[derive(Debug)]
struct Recipient {
    messages: mpsc::UnboundedSender<WorkerMessage>,
    shard: ShardId,
    epoch: u64,
}

impl ReadReport {
    pub(crate) fn new(
        messages: mpsc::UnboundedSender<WorkerMessage>,
        shard: ShardId,
        epoch: u64,
    ) -> Self {
        Self(Some(Recipient { messages, shard, epoch }))
    }

    /// Reports that the shard is read to its end.
    pub(super) fn read(&mut self, children: Vec<KnownShard>, telemetry: ShardTelemetry) {
        self.send(|shard, epoch| WorkerMessage::Read { shard, epoch, children, telemetry });
    }

    /// Reports an error that has ended the stream, whether or not the caller receives it.
    pub(super) fn failed(&mut self, has_delivered: bool) {
        self.send(|shard, epoch| WorkerMessage::Failed { shard, epoch, has_delivered });
    }

    /// Reports that the stream was dropped, or failed in a way that another stream can continue.
    pub(super) fn dropped(&mut self) {
        self.send(WorkerMessage::Dropped);
    }

    /// Reports nothing: the worker knows that the lease has ended, or that the consumer is closed.
    pub(crate) fn cancel(&mut self) {
        self.0 = None;
    }

    fn send(&mut self, message: impl FnOnce(ShardId, u64) -> WorkerMessage) {
        if let Some(Recipient { messages, shard, epoch }) = self.0.take() {
            // The receiver is gone if the session was dropped.
            let _dropped = messages.send(message(shard, epoch));
        }
    }
}

impl Drop for ReadReport {
    fn drop(&mut self) {
        self.dropped();
    }
}
