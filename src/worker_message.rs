//! The messages to the worker, over one channel.
//!
//! Everything that points backwards to the worker is a variant of one enum: what the streams of
//! shards, the checkpoint writer and admin operations report. The worker alone acts on it.

use tokio::sync::oneshot;

use crate::record::{KnownShard, ShardId};
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
    /// The shard was read to the ending position, before its end.
    Reached {
        shard: ShardId,
        epoch: u64,
        /// The shard's telemetry, which reports its records until the lease is released.
        telemetry: ShardTelemetry,
    },
    /// Every record of the shard is acknowledged, and the writer has saved the end of the shard.
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
