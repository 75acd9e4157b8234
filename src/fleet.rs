//! Coordination of an application's workers, which share the shards of a stream by leases.
//!
//! Each worker runs one task, separate from the reading of records. The task renews the worker's
//! leases, reads the lease table and acts on it: it opens the shards that the worker has acquired,
//! hands off the shards that move to another worker, stops the shards that it has lost, and
//! rebalances the fleet. The worker that joined first lists the stream for the whole fleet.
//!
//! ```text
//!         ┌────── renewal due, message from a shard's stream, background task done ───────┐
//!         ▼                                                                               │
//!   ─► exchange ──► reconcile: lost, opened, leaving ──► decide: listing, rebalance ──► wait
//!         ▲                                                │ changes to make              │
//!         └────────────────────────────────────────────────┘                closed, dropped
//!                                                                                         ▼
//!                                                                    flush ──► leave ──► end
//! ```
//!
//! # Cancel safety
//!
//! If the task is dropped at any point, its worker stops renewing and its leases expire. The store
//! has carried out the last request or not; the next worker that reads the table continues from
//! there.

mod balance;
mod duties;
mod exchange;
mod exclusions;
#[cfg(test)]
mod fixtures;
mod owned_shards;
mod reachability;
mod stranded;
mod supervision;
mod worker;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, oneshot};

use crate::checkpoint::Watermark;
use crate::clock::Clock;
use crate::discovery::{ShardDiscovery, ShardOrdering};
use crate::error::Result;
use crate::record::ShardId;
use crate::shard::{CheckpointOn, LeaseHandle, PollMonitor};
use crate::source::{KnownShard, Position};
use crate::store::{LeaseStore, Scope, Writer};
use crate::telemetry::{ShardTelemetry, Telemetry};

pub(crate) use worker::Worker;

/// A shard that can be read now: the worker has acquired its lease.
#[derive(Debug)]
pub(crate) struct AssignedShard {
    pub(crate) shard: KnownShard,
    pub(crate) position: Position,
    /// The time at which the shard was added to the table, if it is known.
    pub(crate) added: Option<SystemTime>,
    pub(crate) lease_handle: LeaseHandle,
    pub(crate) watermark: Arc<Watermark>,
    /// Detects a caller that has stopped polling; `None` without a poll timeout.
    pub(crate) poll_monitor: Option<PollMonitor>,
    pub(crate) unopened: UnopenedShard,
}

/// A guard that makes the worker release the shard if the caller never opens it.
///
/// Sends [`WorkerMessage::Dropped`] when it is dropped while armed.
#[derive(Debug)]
pub(crate) struct UnopenedShard(Option<(mpsc::UnboundedSender<WorkerMessage>, ShardId, u64)>);

impl UnopenedShard {
    fn new(messages: mpsc::UnboundedSender<WorkerMessage>, shard: ShardId, epoch: u64) -> Self {
        Self(Some((messages, shard, epoch)))
    }

    /// Disarms the guard: the caller has the shard's stream, which sends the messages from now on.
    pub(crate) fn opened(mut self) {
        self.0 = None;
    }
}

impl Drop for UnopenedShard {
    fn drop(&mut self) {
        if let Some((messages, shard, epoch)) = self.0.take() {
            // The receiver is gone if the session was dropped.
            let _dropped = messages.send(WorkerMessage::Dropped(shard, epoch));
        }
    }
}

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

/// The dependencies of a worker.
pub(crate) struct WorkerDeps {
    pub(crate) leases: Arc<dyn LeaseStore>,
    pub(crate) scope: Scope,
    pub(crate) writer: Writer,
    pub(crate) discovery: ShardDiscovery,
    pub(crate) telemetry: Telemetry,
    pub(crate) config: WorkerConfig,
    pub(crate) assignments: mpsc::UnboundedSender<Result<AssignedShard>>,
    pub(crate) messages: mpsc::UnboundedSender<WorkerMessage>,
}

/// The settings of a worker.
#[derive(Debug, Clone)]
pub(crate) struct WorkerConfig {
    pub(crate) worker_id: Arc<str>,
    pub(crate) ordering: ShardOrdering,
    pub(crate) checkpoint_on: CheckpointOn,
    pub(crate) discovery_interval: Duration,
    /// The time for which a lease is valid without renewal. Leases are renewed every third of it.
    pub(crate) lease_duration: Duration,
    pub(crate) handoff_timeout: Duration,
    pub(crate) poll_timeout: Option<Duration>,
    /// True if the store keeps no leases. They are in memory, and no other worker can acquire one.
    pub(crate) has_own_leases: bool,
    /// The time for which a failing store may hold up records before the caller gets an error.
    pub(crate) max_unflushed: Duration,
    /// The wall clock of the host.
    pub(crate) clock: Clock,
}
