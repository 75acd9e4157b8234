//! The report of a shard's stream to the worker.

use tokio::sync::mpsc;

use crate::record::{KnownShard, ShardId};
use crate::telemetry::ShardTelemetry;
use crate::worker_message::WorkerMessage;

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

    /// Reports that the shard is read to its ending position.
    pub(super) fn reached(&mut self, telemetry: ShardTelemetry) {
        self.send(|shard, epoch| WorkerMessage::Reached { shard, epoch, telemetry });
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
