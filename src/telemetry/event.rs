mod log_line;

use std::time::Duration;

use super::FallbackReason;
use crate::checkpoint::{Checkpoint, InFlightLimit};
use crate::error::{Error, ErrorKind};
use crate::record::{SequenceNumber, ShardId};

/// A condition that a consumer has detected and handles itself.
///
/// Errors that need an action of the caller are yielded by its streams as `Err` instead. Match
/// fields with `..`: events and fields may be added in a minor version. With the cargo feature
/// `serde` events can be serialized and deserialized, as
/// `{"caught_up":{"shard_id":"shardId-000000000000"}}`.
///
/// ```
/// use kinestream::Event;
///
/// fn is_worth_a_line(event: &Event) -> bool {
///     !matches!(event, Event::CaughtUp { .. } | Event::Throttled { attempt: 1, .. })
/// }
/// # let shard_id = "shardId-000000000000".parse().unwrap();
/// # assert!(!is_worth_a_line(&Event::CaughtUp { shard_id }));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Event {
    /// The worker has joined the fleet of its application.
    WorkerJoined {
        /// The worker's id.
        worker_id: String,
    },
    /// The worker has acquired the lease of the shard, and reads it.
    #[doc(alias("rebalance", "partitions assigned"))]
    LeaseGained {
        /// The shard.
        shard_id: ShardId,
        /// The epoch of the lease, as in [`Record::epoch`](crate::Record::epoch).
        epoch: u64,
    },
    /// The worker has begun to release the lease of the shard, and delivers no further record of
    /// it. The lease is released when all delivered records are acknowledged, or after
    /// [`handoff_timeout`](crate::ConsumerBuilder::handoff_timeout). The wait is zero after a stream
    /// that was dropped or failed with `Pull`, and after a caller that stopped polling.
    ///
    /// Emitted at most once per lease: when the lease is offered to another worker, when the
    /// shard's stream is dropped or ends with an error, and after
    /// [`ConsumerStalled`](Self::ConsumerStalled). Not emitted when the consumer is closed, when
    /// the shard is finished, or when the lease is lost.
    #[doc(alias("rebalance", "partitions revoked"))]
    LeaseReleased {
        /// The shard.
        shard_id: ShardId,
        /// The epoch of the lease.
        epoch: u64,
    },
    /// The leases were not renewed in time, or the store has lost them, so other workers may have
    /// acquired them. No record is delivered until the leases are renewed.
    LeasesSuspended,
    /// The worker has lost the lease of the shard: another worker may have acquired it.
    #[doc(alias("rebalance", "partitions lost"))]
    LeaseLost {
        /// The shard.
        shard_id: ShardId,
        /// The epoch of the lost lease.
        epoch: u64,
    },
    /// The lease of the shard was released before all delivered records were acknowledged. The next
    /// owner delivers the unacknowledged records again.
    HandoffTimedOut {
        /// The shard.
        shard_id: ShardId,
        /// The epoch of the released lease.
        epoch: u64,
    },
    /// The shard's stream was polled for the first time, and the shard is read from now on.
    ShardStarted {
        /// The shard.
        shard_id: ShardId,
        /// The starting position; `None` if it was set by sequence number and nothing is stored
        /// yet.
        position: Option<Checkpoint>,
    },
    /// The shard is closed and was read to its end. Its last records may be unacknowledged.
    ShardEnded {
        /// The shard.
        shard_id: ShardId,
        /// The children of the shard, as far as Kinesis named them.
        children: Vec<ShardId>,
    },
    /// The shard was read to the
    /// [ending position](crate::ConsumerBuilder::ending_position), and every record up to it is
    /// delivered. Its last records may be unacknowledged. The worker keeps the lease, and fetches
    /// nothing.
    EndingReached {
        /// The shard.
        shard_id: ShardId,
    },
    /// An error has ended the stream of the shard. The lease is released, and another worker may
    /// acquire it. This worker retries after a pause of 10 s to 5 min.
    ShardFailed {
        /// The shard.
        shard_id: ShardId,
        /// The kind of the error.
        kind: ErrorKind,
        /// The text of the error.
        message: String,
    },
    /// Every record of the shard is acknowledged, and the end of the shard is stored.
    ShardFinished {
        /// The shard.
        shard_id: ShardId,
    },
    /// A split or a merge has created a new shard.
    Resharded {
        /// The new shard.
        shard_id: ShardId,
        /// The known shards from which it was split or merged.
        parents: Vec<ShardId>,
    },
    /// All records of the shard have been fetched, for the first time or after the shard had fallen
    /// behind.
    CaughtUp {
        /// The shard.
        shard_id: ShardId,
    },
    /// Kinesis has throttled a call.
    Throttled {
        /// The shard; `None` if the call was not for one shard.
        shard_id: Option<ShardId>,
        /// The number of consecutive failed calls, including this one.
        attempt: u32,
    },
    /// A call has failed, and is retried after a back-off.
    Retried {
        /// The shard; `None` if the call was not for one shard.
        shard_id: Option<ShardId>,
        /// The kind of the error.
        kind: ErrorKind,
        /// The text of the error.
        message: String,
        /// The number of consecutive failed calls, including this one.
        attempt: u32,
    },
    /// Records were lost before they were read: the position had left retention, and
    /// [`on_trimmed`](crate::ConsumerBuilder::on_trimmed) allows reading to continue. The gap
    /// reaches to the next delivered record. Records that leave retention until then, for up to 24
    /// hours, are not reported again.
    Gap {
        /// The shard.
        shard_id: ShardId,
        /// The last record that was fetched before the gap, if there is one.
        after: Option<SequenceNumber>,
        /// The position at which reading resumes.
        position: Checkpoint,
    },
    /// A write of checkpoints has failed. The write is retried, and no pending checkpoint is lost.
    /// Reported once per outage, and again for the first error that retries do not fix.
    StoreFailed {
        /// The text of the error.
        message: String,
    },
    /// Checkpoints can be saved again after an outage of the store.
    StoreRecovered {
        /// The time for which they could not be saved.
        after: Duration,
    },
    /// The store has lost its data of the leases, and the worker restores the data.
    StoreReset,
    /// The caller has not polled the shard's stream for longer than
    /// [`poll_timeout`](crate::ConsumerBuilder::poll_timeout). The lease is released, and other
    /// workers may acquire it. See [`Stalled`](Self::Stalled) for a caller that polls and does not
    /// acknowledge.
    ConsumerStalled {
        /// The shard.
        shard_id: ShardId,
    },
    /// An in-flight limit has held the shard for 30 s: no record was acknowledged in that time, and
    /// no further record is delivered until one is acknowledged. Repeated only after an
    /// acknowledgement. See [`ConsumerStalled`](Self::ConsumerStalled) for a caller that does not
    /// poll.
    Stalled {
        /// The shard.
        shard_id: ShardId,
        /// The limit that holds the shard.
        limit: InFlightLimit,
        /// The number of records delivered and not acknowledged.
        unacknowledged: usize,
        /// The time since the oldest of them was delivered.
        oldest: Duration,
    },
    /// User code panicked: a store, a metrics recorder, a tracing layer, or a part of the client.
    /// The call is retried after a back-off, or the task is restarted.
    TaskRestarted {
        /// The part that called the code.
        task: Task,
        /// The shard, for a fetch.
        shard_id: Option<ShardId>,
        /// The message of the panic.
        message: String,
    },
    /// The consumer, which reads by ARN, has not started to read: these live workers, which read by
    /// the stream's name alone, hold the positions that it migrates.
    MigrationDelayed {
        /// The ids of the workers.
        worker_ids: Vec<String>,
    },
    /// The consumer, which reads by ARN, has migrated the positions under the stream's name alone
    /// that belong to this stream, and starts with them.
    PositionsMigrated {
        /// The number of migrated positions.
        positions: usize,
        /// The number of positions that were refused because they belong to another stream of this
        /// name.
        refused: usize,
    },
    /// The consumer reads by JSON from now on instead of CBOR. Emitted at most once, and never with
    /// [`WireFormat::Json`](crate::WireFormat::Json). No record is lost or delivered again.
    WireFormatFallback {
        /// The reason.
        reason: FallbackReason,
    },
    /// This listener was too slow and has missed events.
    Lagged {
        /// The number of missed events.
        events: u64,
    },
}

/// A part of a consumer that runs user code and survives its panics.
///
/// ```
/// use kinestream::{Event, Task};
///
/// fn is_mine_to_fix(event: &Event) -> bool {
///     matches!(event, Event::TaskRestarted { task: Task::Metrics | Task::Tracing, .. })
/// }
/// # let message = "boom".to_owned();
/// # assert!(is_mine_to_fix(&Event::TaskRestarted { task: Task::Metrics, shard_id: None, message }));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Task {
    /// Fetches of one shard, which call the HTTP client, interceptors and the credentials provider.
    Fetch,
    /// Listings of the stream's shards, which call the same code as fetches.
    Listing,
    /// Writes of checkpoints, which call the store.
    Checkpoints,
    /// Renewals and moves of leases, which call the store.
    Leases,
    /// Measurements, which call the metrics recorder.
    Metrics,
    /// Log lines and spans, which call the tracing layer.
    Tracing,
}

impl Task {
    fn as_str(self) -> &'static str {
        match self {
            Self::Fetch => "fetch",
            Self::Listing => "listing",
            Self::Checkpoints => "checkpoints",
            Self::Leases => "leases",
            Self::Metrics => "metrics",
            Self::Tracing => "tracing",
        }
    }
}

impl std::fmt::Display for Task {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl Event {
    /// Returns the event for a retry of a call that failed with this error.
    pub(crate) fn retried(shard_id: Option<ShardId>, error: &Error, attempt: u32) -> Self {
        match error.kind() {
            ErrorKind::Throttled => Self::Throttled { shard_id, attempt },
            ErrorKind::Panicked => {
                let task = if shard_id.is_some() { Task::Fetch } else { Task::Listing };
                Self::TaskRestarted { task, shard_id, message: error.to_string() }
            }
            kind => Self::Retried { shard_id, kind, message: error.to_string(), attempt },
        }
    }

    /// Returns `Some(true)` for a failed call to Kinesis, `Some(false)` for a throttled call, which has
    /// reached Kinesis, and `None` for any other event.
    pub(super) fn is_call_failed(&self) -> Option<bool> {
        match self {
            Self::Throttled { .. } => Some(false),
            Self::Retried {
                kind: ErrorKind::StoreUnavailable | ErrorKind::StoreCorrupt, ..
            } => None,
            Self::Retried { .. }
            | Self::TaskRestarted { task: Task::Fetch | Task::Listing, .. } => Some(true),
            _ => None,
        }
    }

    /// Returns true if the event reports that a fetch of a shard has failed.
    pub(super) fn is_fetch_failed(&self) -> bool {
        match self {
            Self::Retried { shard_id: Some(_), kind, .. } | Self::ShardFailed { kind, .. } => {
                !matches!(kind, ErrorKind::StoreUnavailable | ErrorKind::StoreCorrupt)
            }
            Self::Throttled { shard_id, .. } => shard_id.is_some(),
            Self::TaskRestarted { task, .. } => *task == Task::Fetch,
            _ => false,
        }
    }

    /// Returns the shard of the event; `None` if the event is not about one shard.
    pub fn shard_id(&self) -> Option<&ShardId> {
        match self {
            Self::LeaseGained { shard_id, .. }
            | Self::LeaseReleased { shard_id, .. }
            | Self::LeaseLost { shard_id, .. }
            | Self::HandoffTimedOut { shard_id, .. }
            | Self::ShardStarted { shard_id, .. }
            | Self::ShardEnded { shard_id, .. }
            | Self::EndingReached { shard_id }
            | Self::ShardFailed { shard_id, .. }
            | Self::ShardFinished { shard_id }
            | Self::Resharded { shard_id, .. }
            | Self::CaughtUp { shard_id }
            | Self::Gap { shard_id, .. }
            | Self::Stalled { shard_id, .. }
            | Self::ConsumerStalled { shard_id } => Some(shard_id),
            Self::Throttled { shard_id, .. }
            | Self::Retried { shard_id, .. }
            | Self::TaskRestarted { shard_id, .. } => shard_id.as_ref(),
            Self::WorkerJoined { .. }
            | Self::MigrationDelayed { .. }
            | Self::PositionsMigrated { .. }
            | Self::LeasesSuspended
            | Self::StoreFailed { .. }
            | Self::StoreRecovered { .. }
            | Self::StoreReset
            | Self::WireFormatFallback { .. }
            | Self::Lagged { .. } => None,
        }
    }
}
