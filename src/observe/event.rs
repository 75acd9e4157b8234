use std::time::Duration;

use crate::checkpoint::{Checkpoint, InFlightLimit};
use crate::error::{Error, ErrorKind};
use crate::record::{SequenceNumber, ShardId};

/// Something that has happened to a consumer.
///
/// What the caller has to do something about comes as an `Err` of its streams; this is what the
/// crate has seen to itself. Events may be added with any version. With the cargo feature `serde` they
/// can be written and read, as `{"caught_up":{"shard_id":"shardId-000000000000"}}`.
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
    /// The worker has come to those of its application.
    WorkerJoined {
        /// Its name.
        worker_id: String,
    },
    /// The shard is this worker's to read.
    LeaseGained {
        /// The shard.
        shard_id: ShardId,
        /// Of the lease, as in [`Record::epoch`](crate::Record::epoch).
        epoch: u64,
    },
    /// The shard goes to another worker, or to whoever wants it: no record of it is handed out any
    /// more, and it is given back when those that were are finished.
    LeaseGivenBack {
        /// The shard.
        shard_id: ShardId,
        /// Of the lease.
        epoch: u64,
    },
    /// The store could not be reached for so long that others may have the worker's shards by now:
    /// no record is handed out until it answers.
    LeasesInDoubt,
    /// Another worker has the shard by now.
    LeaseLost {
        /// The shard.
        shard_id: ShardId,
        /// Of the lease that this worker had.
        epoch: u64,
    },
    /// The shard went on to another worker before its records were finished, which will come again
    /// there.
    HandoffTimedOut {
        /// The shard.
        shard_id: ShardId,
        /// Of the lease that this worker had.
        epoch: u64,
    },
    /// The first poll of the shard's stream: it is read from now on.
    ShardStarted {
        /// The shard.
        shard_id: ShardId,
        /// Where it is begun; `None` where it was named by sequence number, and nothing is stored
        /// yet.
        position: Option<Checkpoint>,
    },
    /// The shard is closed and read to its end. Its last records may be unfinished.
    ShardEnded {
        /// The shard.
        shard_id: ShardId,
        /// Those that come after it, as far as Kinesis names them.
        children: Vec<ShardId>,
    },
    /// An error has ended the stream of the shard. The lease is released, and another worker may
    /// acquire it; this worker tries again after a pause of 10 s to 5 min.
    ShardFailed {
        /// The shard.
        shard_id: ShardId,
        /// The kind of the error.
        kind: ErrorKind,
        /// The text of the error.
        message: String,
    },
    /// Every record of the shard is finished, and so it is stored.
    ShardFinished {
        /// The shard.
        shard_id: ShardId,
    },
    /// There is a shard that was made of others, by a split or a merge.
    Resharded {
        /// The new shard.
        shard_id: ShardId,
        /// What it was made of.
        parents: Vec<ShardId>,
    },
    /// Everything that was in the shard has been fetched, for the first time or after it had fallen
    /// behind.
    CaughtUp {
        /// The shard.
        shard_id: ShardId,
    },
    /// Kinesis has asked for fewer calls.
    Throttled {
        /// The shard, where the call was one of a shard's.
        shard_id: Option<ShardId>,
        /// How many calls in a row have failed, this one among them.
        attempt: u32,
    },
    /// A call has failed, and is made again after a pause.
    Retried {
        /// The shard, where the call was one of a shard's.
        shard_id: Option<ShardId>,
        /// What went wrong.
        kind: ErrorKind,
        /// The error's own words.
        message: String,
        /// How many calls in a row have failed, this one among them.
        attempt: u32,
    },
    /// Records were lost before they were read: the position had left retention, and
    /// [`on_trimmed`](crate::ConsumerBuilder::on_trimmed) allows reading to continue. The gap reaches to
    /// the next delivered record. Records that leave retention until then, for up to 24 hours, are not
    /// reported again.
    Gap {
        /// The shard.
        shard_id: ShardId,
        /// The last record that was fetched before the gap, if there is one.
        after: Option<SequenceNumber>,
        /// The position at which reading continues.
        position: Checkpoint,
    },
    /// Checkpoints could not be saved. It is tried again, and what is pending is not forgotten.
    /// Reported once per outage, and again for the first error that waiting does not cure.
    StoreFailed {
        /// The error's own words.
        message: String,
    },
    /// Checkpoints are saved again.
    StoreRecovered {
        /// How long they were not.
        after: Duration,
    },
    /// The store has lost what it was told of leases, and is told it again.
    StoreForgot,
    /// The caller of a shard has not polled for longer than
    /// [`poll_timeout`](crate::ConsumerBuilder::poll_timeout): others may have it.
    CallerStopped {
        /// The shard.
        shard_id: ShardId,
    },
    /// An in-flight limit has held the shard for 30 s: no record was acknowledged, and no record is
    /// delivered until one is. Repeated only after an acknowledgement.
    Stalled {
        /// The shard.
        shard_id: ShardId,
        /// The limit that holds it.
        limit: InFlightLimit,
        /// The number of records delivered and not acknowledged.
        unacknowledged: usize,
        /// The time since the oldest of them was delivered.
        oldest: Duration,
    },
    /// Code that the caller supplies panicked. The call is retried after a back-off, or the task is
    /// restarted.
    TaskRestarted {
        /// The part that called the code.
        task: Task,
        /// The shard, for a fetch.
        shard_id: Option<ShardId>,
        /// The message of the panic.
        message: String,
    },
    /// The consumer reads by ARN and has not begun: these workers, which read by the stream's name alone,
    /// are alive and hold the positions that it takes over.
    TakeoverDelayed {
        /// The names of the workers.
        worker_ids: Vec<String>,
    },
    /// The consumer, which reads by ARN, has looked for positions under the stream's name alone, and begins
    /// with those that are this stream's.
    PositionsTakenOver {
        /// The number of positions taken over.
        positions: usize,
        /// The number of positions refused, since they belong to another stream of this name.
        refused: usize,
    },
    /// This listener was too slow.
    Missed {
        /// How many events it has missed.
        events: u64,
    },
}

/// A part of a consumer that runs code of the caller and survives its panics.
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
    /// Fetches of one shard: the HTTP client, an interceptor, the credentials provider.
    Fetch,
    /// Listings of the stream's shards: the same.
    Listing,
    /// Writes of checkpoints: the store.
    Checkpoints,
    /// Renewals and moves of leases: the store.
    Leases,
    /// Measurements: the metrics recorder.
    Metrics,
    /// Log lines and spans: the tracing layer.
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
    /// A call that failed with this error is made again.
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

    /// Whether a call of Kinesis has failed; `None` if it is not about a call. One that was throttled
    /// has reached Kinesis.
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

    /// The shard that it is about, where it is about one.
    pub fn shard_id(&self) -> Option<&ShardId> {
        match self {
            Self::LeaseGained { shard_id, .. }
            | Self::LeaseGivenBack { shard_id, .. }
            | Self::LeaseLost { shard_id, .. }
            | Self::HandoffTimedOut { shard_id, .. }
            | Self::ShardStarted { shard_id, .. }
            | Self::ShardEnded { shard_id, .. }
            | Self::ShardFailed { shard_id, .. }
            | Self::ShardFinished { shard_id }
            | Self::Resharded { shard_id, .. }
            | Self::CaughtUp { shard_id }
            | Self::Gap { shard_id, .. }
            | Self::Stalled { shard_id, .. }
            | Self::CallerStopped { shard_id } => Some(shard_id),
            Self::Throttled { shard_id, .. }
            | Self::Retried { shard_id, .. }
            | Self::TaskRestarted { shard_id, .. } => shard_id.as_ref(),
            Self::WorkerJoined { .. }
            | Self::TakeoverDelayed { .. }
            | Self::PositionsTakenOver { .. }
            | Self::LeasesInDoubt
            | Self::StoreFailed { .. }
            | Self::StoreRecovered { .. }
            | Self::StoreForgot
            | Self::Missed { .. } => None,
        }
    }

    /// Into the log: at `warn` what somebody should look at, at `info` what is rare, and the rest
    /// at `debug`.
    pub(super) fn trace(&self, stream: &str, application: &str) {
        macro_rules! log {
            ($level:ident, $message:literal $(, $name:ident = $value:expr)*) => {
                tracing::$level!(
                    stream, application, shard = self.shard_id().map(tracing::field::display),
                    $($name = $value,)* $message
                )
            };
        }
        use tracing::field;
        match self {
            Self::WorkerJoined { worker_id } => {
                log!(info, "a worker has joined", worker = worker_id.as_str());
            }
            Self::LeaseGained { epoch, .. } => log!(debug, "a lease is gained", epoch = epoch),
            Self::LeaseGivenBack { epoch, .. } => {
                log!(debug, "a lease is given back", epoch = epoch);
            }
            Self::LeasesInDoubt => log!(warn, "the leases may be another's by now: waiting"),
            Self::LeaseLost { epoch, .. } => log!(warn, "a lease is lost", epoch = epoch),
            Self::HandoffTimedOut { epoch, .. } => {
                log!(warn, "records are unfinished: they will be read again", epoch = epoch);
            }
            Self::ShardStarted { position, .. } => {
                log!(debug, "a shard is begun", position = position.as_ref().map(field::display));
            }
            Self::ShardEnded { children, .. } => {
                log!(debug, "a shard is read to its end", children = field::debug(children));
            }
            Self::ShardFailed { message, .. } => {
                log!(warn, "shard failed; its lease is released", error = message.as_str());
            }
            Self::ShardFinished { .. } => log!(debug, "a shard is finished"),
            Self::Resharded { parents, .. } => {
                log!(info, "a shard was split or merged", parents = field::debug(parents));
            }
            Self::CaughtUp { .. } => log!(debug, "a shard is caught up with"),
            Self::Throttled { attempt, .. } => log!(debug, "throttled", attempt = attempt),
            Self::Retried { message, attempt, .. } => {
                log!(debug, "trying again", error = message.as_str(), attempt = attempt);
            }
            Self::Gap { after, position, .. } => log!(
                warn,
                "records were lost before they were read: going on",
                after = after.as_ref().map(field::display),
                position = field::display(position)
            ),
            Self::StoreFailed { message } => {
                log!(warn, "checkpoints cannot be saved; trying again", error = message.as_str());
            }
            Self::StoreRecovered { after } => {
                log!(info, "checkpoints are saved again", after = field::debug(after));
            }
            Self::StoreForgot => log!(warn, "the store has forgotten: telling it again"),
            Self::CallerStopped { .. } => log!(warn, "its caller has stopped polling"),
            Self::Stalled { limit, unacknowledged, oldest, .. } => log!(
                warn,
                "shard stalled: the in-flight limit holds it until a record is acknowledged",
                limit = limit.option(),
                unacknowledged = unacknowledged,
                oldest = field::debug(oldest)
            ),
            Self::TaskRestarted { task, message, .. } => {
                log!(
                    warn,
                    "task restarted after a panic",
                    task = task.as_str(),
                    error = message.as_str()
                );
            }
            Self::TakeoverDelayed { worker_ids } => log!(
                warn,
                "takeover of positions delayed: workers that read by name are alive",
                workers = field::debug(worker_ids)
            ),
            Self::PositionsTakenOver { positions, refused: 0 } => {
                log!(info, "positions taken over from the name alone", positions = positions);
            }
            Self::PositionsTakenOver { positions, refused } => log!(
                warn,
                "positions under the name alone belong to another stream",
                positions = positions,
                refused = refused
            ),
            Self::Missed { .. } => {}
        }
    }
}
