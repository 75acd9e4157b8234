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
mod exhaustion;
#[cfg(test)]
mod fixtures;
mod load_meter;
mod moves;
mod opening;
mod owned_shards;
mod reachability;
mod stranded;
mod supervision;
mod weights;
mod worker;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc;

use crate::clock::Clock;
use crate::discovery::{ReadRules, ShardDiscovery};
use crate::record::KnownShard;
use crate::shard::{CheckpointOn, LeaseHandle, PollMonitor, ReadReport};
use crate::source::Position;
use crate::store::lease::Leases;
use crate::store::{Scope, TrackedWatermark, Writer};
use crate::telemetry::Telemetry;
use crate::worker_message::WorkerMessage;

pub(crate) use worker::Worker;

/// A shard that can be read now: the worker has acquired its lease.
#[derive(Debug)]
pub(crate) struct AssignedShard {
    pub(crate) shard: KnownShard,
    pub(crate) position: Position,
    /// The time at which the shard was added to the table, if it is known.
    pub(crate) added: Option<SystemTime>,
    pub(crate) lease_handle: LeaseHandle,
    pub(crate) watermark: Arc<TrackedWatermark>,
    /// Detects a caller that has stopped polling; `None` without a poll timeout.
    pub(crate) poll_monitor: Option<PollMonitor>,
    pub(crate) report: ReadReport,
}

/// A message to the caller's stream.
#[derive(Debug)]
pub(crate) enum Assignment {
    Shard(Box<AssignedShard>),
    /// Nothing is left to read, and no shard follows.
    End,
}

/// The dependencies of a worker.
pub(crate) struct WorkerDeps {
    pub(crate) leases: Leases,
    pub(crate) scope: Scope,
    pub(crate) writer: Writer,
    pub(crate) discovery: ShardDiscovery,
    pub(crate) telemetry: Telemetry,
    pub(crate) config: WorkerConfig,
    pub(crate) assignments: mpsc::UnboundedSender<Assignment>,
    pub(crate) messages: mpsc::UnboundedSender<WorkerMessage>,
}

/// The settings of a worker.
#[derive(Debug, Clone)]
pub(crate) struct WorkerConfig {
    pub(crate) worker_id: Arc<str>,
    pub(crate) rules: ReadRules,
    /// True if reading stops at an ending position.
    pub(crate) is_bounded: bool,
    pub(crate) checkpoint_on: CheckpointOn,
    pub(crate) discovery_interval: Duration,
    /// The time for which a lease is valid without renewal. Leases are renewed every third of it.
    pub(crate) lease_duration: Duration,
    /// The load that this worker can take relative to others.
    pub(crate) capacity: f64,
    pub(crate) handoff_timeout: Duration,
    pub(crate) poll_timeout: Option<Duration>,
    /// True if the store keeps no leases. They are in memory, and no other worker can acquire one.
    pub(crate) has_own_leases: bool,
    /// The time for which a failing store may hold up records before the caller gets an error.
    pub(crate) max_unflushed: Duration,
    /// The wall clock of the host.
    pub(crate) clock: Clock,
}

impl WorkerConfig {
    /// Returns the capacity in hundredths, as the lease table has it.
    fn size(&self) -> NonZeroU32 {
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the capacity is checked, and a cast of any other number saturates"
        )]
        let hundredths = (self.capacity * 100.0).round() as u32;
        NonZeroU32::new(hundredths).unwrap_or(NonZeroU32::MIN)
    }
}
