//! Which shards are *mine*: the workers of an application share them by leases.
//!
//! Each worker has one task, apart from whoever reads. It renews, sees the table of leases, and does
//! what follows from it: it begins with shards that it has been given, hands over those that are to
//! go to another, stops those that it has lost, and evens out what is uneven. The one that joined
//! first lists the stream for all.
//!
//! ```text
//!            ┌──────────── renewal is due, a word from a stream, something is done ───────────┐
//!            ▼                                                                                │
//!   ─► exchange ──► settle: lost, opened, leaving ──► decide: what was listed, balance ──► wait
//!            ▲                                              │ anything to change              │
//!            └──────────────────────────────────────────────┘                    closed, dropped
//!                                                                                             ▼
//!                                                                           flush ──► leave ──► end
//! ```
//!
//! Dropped anywhere, the task leaves a worker behind that does not renew. What it had asked for was
//! carried out or not; whoever sees the table next goes on from there.

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
use crate::discovery::{ShardDiscovery, ShardOrdering};
use crate::error::Result;
use crate::record::ShardId;
use crate::shard::{CheckpointOn, LeaseHandle, PollMonitor};
use crate::source::{KnownShard, Position};
use crate::store::{LeaseStore, Scope, Writer};
use crate::telemetry::{ShardTelemetry, Telemetry};

pub(crate) use worker::Worker;

/// A shard that may be read now.
#[derive(Debug)]
pub(crate) struct AssignedShard {
    pub(crate) shard: KnownShard,
    pub(crate) position: Position,
    /// The time at which the shard was added to the table, if it is known.
    pub(crate) added: Option<SystemTime>,
    pub(crate) lease_handle: LeaseHandle,
    pub(crate) watermark: Arc<Watermark>,
    /// Whether its caller still polls, where that matters.
    pub(crate) poll_monitor: Option<PollMonitor>,
    pub(crate) unopened: UnopenedShard,
}

/// Gives a shard back that the caller does not come to open: dropped, it tells the worker so.
#[derive(Debug)]
pub(crate) struct UnopenedShard(Option<(mpsc::UnboundedSender<WorkerMessage>, ShardId, u64)>);

impl UnopenedShard {
    fn new(messages: mpsc::UnboundedSender<WorkerMessage>, shard: ShardId, epoch: u64) -> Self {
        Self(Some((messages, shard, epoch)))
    }

    /// The caller has the shard's stream, which tells from now on.
    pub(crate) fn opened(mut self) {
        self.0 = None;
    }
}

impl Drop for UnopenedShard {
    fn drop(&mut self) {
        if let Some((messages, shard, epoch)) = self.0.take() {
            // Nobody listens any more where the reading has been dropped.
            let _dropped = messages.send(WorkerMessage::Dropped(shard, epoch));
        }
    }
}

/// What a shard has to say, in the epoch of its lease.
#[derive(Debug)]
pub(crate) enum WorkerMessage {
    /// It is read to its end.
    Read {
        shard: ShardId,
        epoch: u64,
        /// Its children as far as the server names them.
        children: Vec<KnownShard>,
        /// Shows its records until they are finished.
        telemetry: ShardTelemetry,
    },
    /// All its records are finished.
    Finished(ShardId, u64),
    /// Its stream was dropped before.
    Dropped(ShardId, u64),
    /// An error has ended its stream.
    Failed {
        shard: ShardId,
        epoch: u64,
        /// A record was delivered before.
        has_delivered: bool,
    },
    /// The store has something else than was thought.
    StateMismatch,
    /// The store cannot read what it has of a shard.
    Unreadable,
    /// As [`StateMismatch`](Self::Surprised), from an operation that waits until the table was read.
    TableEdited(oneshot::Sender<()>),
}

/// What a worker needs to know.
pub(crate) struct WorkerDeps {
    pub(crate) leases: Arc<dyn LeaseStore>,
    pub(crate) scope: Scope,
    pub(crate) writer: Writer,
    pub(crate) discovery: ShardDiscovery,
    pub(crate) telemetry: Telemetry,
    pub(crate) config: WorkerConfig,
    pub(crate) openings: mpsc::UnboundedSender<Result<AssignedShard>>,
    pub(crate) messages: mpsc::UnboundedSender<WorkerMessage>,
}

/// How a worker behaves.
#[derive(Debug, Clone)]
pub(crate) struct WorkerConfig {
    pub(crate) worker_id: Arc<str>,
    pub(crate) ordering: ShardOrdering,
    pub(crate) checkpoint_on: CheckpointOn,
    pub(crate) discovery_interval: Duration,
    /// Renewed every third of it.
    pub(crate) lease_duration: Duration,
    pub(crate) handoff_timeout: Duration,
    pub(crate) poll_timeout: Option<Duration>,
    /// The store keeps no leases: they are in memory, and no other worker can take one.
    pub(crate) has_own_leases: bool,
    /// How long a store that does not answer may hold records up before the caller is told.
    pub(crate) max_unflushed: Duration,
}
