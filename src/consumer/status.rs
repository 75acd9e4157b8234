//! The status of an application, which any of its consumers can read.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use super::ConsumerInner;
use crate::checkpoint::{Checkpoint, InFlightLimit};
use crate::error::Result;
use crate::record::ShardId;
use crate::store::lease::WorkerEntry;
use crate::telemetry::ShardFailure;

/// The status of an application on one stream: its workers, and the state and owner of every shard.
///
/// Returned by [`Consumer::status`](crate::Consumer::status). With the cargo feature `serde` it can
/// be serialized and deserialized, for a dashboard or a health check.
///
/// ```no_run
/// # async fn example(consumer: kinestream::Consumer) -> kinestream::Result<()> {
/// use kinestream::ShardState;
///
/// let status = consumer.status().await?;
/// for (shard, at) in &status.shards {
///     println!("{shard} {:?} {:?} {:?}", at.state, at.owner, at.millis_behind_latest);
/// }
/// let is_read = status.shards.values().all(|shard| shard.state != ShardState::Unassigned);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct ApplicationStatus {
    /// The name of the stream.
    pub stream: String,
    /// The name of the application.
    pub application: String,
    /// The names of the live workers, and of those in `unconfirmed_workers`.
    pub workers: Vec<String>,
    /// The workers that may be dead: one call to a store without a clock, such as `DynamoDbStore`, does
    /// not show it. Repeated calls of [`status`](crate::Consumer::status) on one consumer do: a worker
    /// is confirmed once another heartbeat of it is seen, and is left out of `workers` once none was
    /// seen for its lease duration. Empty with other stores.
    #[cfg_attr(feature = "serde", serde(default))]
    pub unconfirmed_workers: Vec<String>,
    /// The loads of the workers in `workers`, as they state them.
    #[cfg_attr(feature = "serde", serde(default))]
    pub worker_status: BTreeMap<String, WorkerStatus>,
    /// The shards that the application knows. Finished shards are included until 365 days after
    /// listings stopped showing them.
    pub shards: BTreeMap<ShardId, ShardStatus>,
}

/// The load of one worker, by which the fleet [shares the shards](crate::guide::fleets).
///
/// ```no_run
/// # async fn example(consumer: kinestream::Consumer) -> kinestream::Result<()> {
/// let status = consumer.status().await?;
/// for (worker, status) in status.worker_status.iter().filter(|(_, status)| status.strain > 0) {
///     println!("{worker} falls behind: {status:?}");
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct WorkerStatus {
    /// The bytes per second that arrive in the worker's shards, in whole KiB, as it stated them last: it
    /// does so once they differ by a tenth. `None` before the first measurement, at most three
    /// renewals after the worker has joined, and for a worker of an earlier version.
    pub bytes_per_second: Option<u64>,
    /// The worker's [`capacity`](crate::ConsumerBuilder::capacity), in hundredths; `None` for a worker
    /// of an earlier version.
    pub capacity_percent: Option<u32>,
    /// The degree to which the worker falls behind because its caller holds it up: 0 if it keeps up, at
    /// most 5. With each degree, the worker receives a fifth less; after an hour in which it keeps up,
    /// its strain goes down by one.
    pub strain: u32,
}

/// The status of one shard.
///
/// ```no_run
/// # async fn example(consumer: kinestream::Consumer) -> kinestream::Result<()> {
/// let status = consumer.status().await?;
/// let behind = status.shards.values().filter_map(|shard| shard.millis_behind_latest).max();
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct ShardStatus {
    /// The state of the shard.
    pub state: ShardState,
    /// The last error of a [`Failed`](ShardState::Failed) shard. Known only for shards that this
    /// consumer has tried to read: other processes do not share their errors.
    pub failure: Option<ShardFailure>,
    /// The stored checkpoint of the shard; `None` if the store has none.
    pub position: Option<Checkpoint>,
    /// The name of the worker that holds the lease.
    pub owner: Option<String>,
    /// The epoch of the lease, as in [`Record::epoch`](crate::Record::epoch).
    pub epoch: u64,
    /// The worker to which the owner is handing the lease off, if any.
    #[cfg_attr(feature = "serde", serde(default))]
    pub next_owner: Option<String>,
    /// The shards that this shard was split or merged from.
    pub parents: Vec<ShardId>,
    /// The lag of the reader behind the newest record, in milliseconds: the lag that the last
    /// response of Kinesis stated, or, while fetched records are not yet delivered, the current age
    /// of the oldest of them. Known only for shards that this consumer reads, from the first
    /// response on.
    pub millis_behind_latest: Option<i64>,
    /// The number of records that are delivered and not acknowledged. Known only for shards that
    /// this consumer reads.
    pub unacknowledged: Option<usize>,
    /// The time since the oldest unacknowledged record was delivered, to the second; `None` if
    /// there is none.
    pub oldest_unacknowledged: Option<Duration>,
    /// The in-flight limit that keeps the shard from delivering a record until one is acknowledged;
    /// `None` if no limit is reached. Known only for shards that this consumer reads.
    #[cfg_attr(feature = "serde", serde(default))]
    pub held_by: Option<InFlightLimit>,
}

/// The state of a shard.
///
/// ```
/// use kinestream::ShardState;
///
/// assert_ne!(ShardState::Finished, ShardState::Expired);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum ShardState {
    /// The parents of the shard are not finished yet.
    Waiting,
    /// The shard can be read, and no worker holds its lease.
    Unassigned,
    /// A worker holds the lease of the shard.
    Reading,
    /// An error keeps this consumer from reading the shard, and no other worker holds its lease.
    /// This consumer retries with a back-off of up to 5 min. Consumers in other processes see the
    /// shard as [`Unassigned`](Self::Unassigned).
    Failed,
    /// A worker holds the lease and is handing the shard off to another worker.
    HandingOff,
    /// This consumer has read the shard to the
    /// [ending position](crate::ConsumerBuilder::ending_position), and holds its lease. Consumers in
    /// other processes see the shard as [`Reading`](Self::Reading).
    EndingReached,
    /// The shard was read to its end, and every record of it is acknowledged.
    Finished,
    /// The shard left retention before it was read to its end, or its position belongs to an
    /// earlier stream of the same name. It is read again or skipped after a start with another
    /// [`on_trimmed`](crate::ConsumerBuilder::on_trimmed), and when it is listed again.
    Expired,
    /// The store cannot parse the lease or the checkpoint of the shard. The shard is not read, and
    /// its children wait, until the stored text is corrected or
    /// [`set_position`](crate::Consumer::set_position) replaces it.
    Unreadable,
}

fn worker_status((name, entry): (&Arc<str>, &WorkerEntry)) -> (String, WorkerStatus) {
    let status = WorkerStatus {
        bytes_per_second: entry.load.as_ref().map(|load| load.total().saturating_mul(1024)),
        capacity_percent: entry.size.map(NonZeroU32::get),
        strain: entry.strain(),
    };
    (name.to_string(), status)
}

impl ConsumerInner {
    /// Implements [`Consumer::status`](super::Consumer::status).
    pub(super) async fn status(&self) -> Result<ApplicationStatus> {
        let table = self.table().await?;
        let rules = &self.settings.worker_config.rules;
        let me = &self.settings.worker_config.worker_id;
        let shards = table.leases.iter().map(|(id, lease)| {
            let is_mine = lease.owner.as_ref().is_none_or(|owner| owner == me);
            let failure = self.telemetry.failure(id).filter(|_| is_mine);
            let state = match &lease.owner {
                _ if lease.is_finished() => ShardState::Finished,
                _ if lease.unreadable.is_some() => ShardState::Unreadable,
                _ if lease.is_shard_expired => ShardState::Expired,
                Some(_) if lease.next_owner.is_some() => ShardState::HandingOff,
                Some(_) if failure.is_some() => ShardState::Failed,
                Some(_) if is_mine && self.telemetry.has_reached(id) => ShardState::EndingReached,
                Some(_) => ShardState::Reading,
                None if rules.may_begin(&table, lease) => match failure {
                    Some(_) => ShardState::Failed,
                    None => ShardState::Unassigned,
                },
                None => ShardState::Waiting,
            };
            let in_flight = self.telemetry.in_flight(id);
            let status = ShardStatus {
                state,
                failure: failure.filter(|_| state == ShardState::Failed),
                position: lease.checkpoint.clone(),
                owner: lease.owner.as_deref().map(str::to_owned),
                epoch: lease.epoch,
                next_owner: lease.next_owner.as_deref().map(str::to_owned),
                parents: lease.parents.clone().unwrap_or_default(),
                millis_behind_latest: self.telemetry.millis_behind_latest(id),
                unacknowledged: in_flight.map(|in_flight| in_flight.unacknowledged),
                oldest_unacknowledged: in_flight.and_then(|in_flight| in_flight.oldest),
                held_by: in_flight.and_then(|in_flight| in_flight.held_by),
            };
            (id.clone(), status)
        });
        let mut unconfirmed = Vec::new();
        for worker in table.workers.keys() {
            if self.operations.undecided(worker).await.is_some() {
                unconfirmed.push(worker.to_string());
            }
        }
        Ok(ApplicationStatus {
            stream: self.scope.stream_name().to_owned(),
            application: self.scope.application().to_owned(),
            workers: table.workers.keys().map(ToString::to_string).collect(),
            unconfirmed_workers: unconfirmed,
            worker_status: table.workers.iter().map(worker_status).collect(),
            shards: shards.collect(),
        })
    }
}
