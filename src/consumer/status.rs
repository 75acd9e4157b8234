//! How an application stands, seen from any of its consumers.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Consumer;
use crate::checkpoint::{Checkpoint, InFlightLimit};
use crate::discovery::is_readable;
use crate::error::Result;
use crate::record::ShardId;
use crate::telemetry::ShardFailure;

/// How an application stands with a stream: every shard that it knows, and who reads it.
///
/// Made by [`Consumer::status`]. With the cargo feature `serde` it can be written and read, for a
/// dashboard or a health check.
///
/// ```no_run
/// # async fn example(consumer: kinestream::Consumer) -> kinestream::Result<()> {
/// use kinestream::ShardState;
///
/// let status = consumer.status().await?;
/// for (shard, at) in &status.shards {
///     println!("{shard} {:?} {:?} {:?}", at.state, at.owner, at.millis_behind_latest);
/// }
/// let is_read = status.shards.values().all(|shard| shard.state != ShardState::Free);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct ApplicationStatus {
    /// The stream's name.
    pub stream: String,
    /// Whose positions these are.
    pub application: String,
    /// The workers that are alive, by name.
    pub workers: Vec<String>,
    /// The shards that the application knows, those that are finished among them until they leave
    /// retention.
    pub shards: BTreeMap<ShardId, ShardStatus>,
}

/// How one shard stands.
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
    /// What becomes of it now.
    pub state: ShardState,
    /// The last error of a [`Failed`](ShardState::Failed) shard. Only of shards that this consumer has
    /// tried to read: other processes do not share their errors.
    pub failure: Option<ShardFailure>,
    /// How far it is finished, as stored; `None` where nothing is stored of it.
    pub position: Option<Checkpoint>,
    /// The worker that has its lease.
    pub owner: Option<String>,
    /// Of the lease, as in [`Record::epoch`](crate::Record::epoch).
    pub epoch: u64,
    /// The shards that it was split or merged from.
    pub parents: Vec<ShardId>,
    /// How far the reader is behind the newest record, in milliseconds: as the last answer of Kinesis
    /// said, or, while records are fetched and not delivered, as far as the oldest of them is by now.
    /// Only of shards that this consumer reads, from its first answer on.
    pub millis_behind_latest: Option<i64>,
    /// How many records are delivered and not acknowledged. Only of shards that this consumer reads.
    pub unacknowledged: Option<usize>,
    /// How long ago the oldest of them was delivered, to the second; `None` where there is none.
    pub oldest_unacknowledged: Option<Duration>,
    /// The in-flight limit because of which the shard delivers no record until one is acknowledged;
    /// `None` where none does. Only of shards that this consumer reads.
    #[cfg_attr(feature = "serde", serde(default))]
    pub held_by: Option<InFlightLimit>,
}

/// What becomes of a shard.
///
/// ```
/// use kinestream::ShardState;
///
/// assert_ne!(ShardState::Finished, ShardState::Lost);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum ShardState {
    /// Its parents are not finished yet.
    Waiting,
    /// It may be read, and no worker has it.
    Unassigned,
    /// A worker has it.
    Reading,
    /// An error keeps this consumer from reading it, and no other worker has it. This consumer retries
    /// with a back-off of up to 5 min. Consumers of other processes see it as
    /// [`Free`](Self::Free).
    Failed,
    /// A worker has it, and is handing it over to another one.
    HandingOff,
    /// Every record of it is finished.
    Finished,
    /// It left retention before it was read to its end, or its position belongs to an earlier stream of
    /// the name. It is read again, or passed over, after a start with another
    /// [`on_trimmed`](crate::ConsumerBuilder::on_trimmed), and when it is listed again.
    Expired,
    /// The store cannot read the lease or the position of it: it is not read, and its children wait,
    /// until the stored text is corrected or [`set_position`](Consumer::set_position) replaces it.
    Unreadable,
}

impl Consumer {
    /// How the application stands with the stream: each shard's state, position, owner and lag.
    /// Asks the store, and joins nothing.
    ///
    /// # Errors
    ///
    /// The store's.
    ///
    /// # Cancel safety
    ///
    /// It changes nothing.
    pub async fn status(&self) -> Result<ApplicationStatus> {
        let inner = &self.inner;
        let table = self.table().await?;
        let ordering = inner.settings.rules.ordering;
        let me = &inner.settings.rules.worker_id;
        let shards = table.leases.iter().map(|(id, lease)| {
            let is_mine = lease.owner.as_ref().is_none_or(|owner| owner == me);
            let failure = inner.telemetry.failure(id).filter(|_| is_mine);
            let state = match &lease.owner {
                _ if lease.is_finished() => ShardState::Finished,
                _ if lease.unreadable.is_some() => ShardState::Unreadable,
                _ if lease.is_shard_expired => ShardState::Expired,
                Some(_) if lease.next_owner.is_some() => ShardState::HandingOff,
                Some(_) if failure.is_some() => ShardState::Failed,
                Some(_) => ShardState::Reading,
                None if is_readable(&table, lease, ordering) => match failure {
                    Some(_) => ShardState::Failed,
                    None => ShardState::Unassigned,
                },
                None => ShardState::Waiting,
            };
            let in_flight = inner.telemetry.in_flight(id);
            let status = ShardStatus {
                state,
                failure: failure.filter(|_| state == ShardState::Failed),
                position: lease.checkpoint.clone(),
                owner: lease.owner.as_deref().map(str::to_owned),
                epoch: lease.epoch,
                parents: lease.parents.clone().unwrap_or_default(),
                millis_behind_latest: inner.telemetry.millis_behind_latest(id),
                unacknowledged: in_flight.map(|in_flight| in_flight.unacknowledged),
                oldest_unacknowledged: in_flight.and_then(|in_flight| in_flight.oldest),
                held_by: in_flight.and_then(|in_flight| in_flight.held_by),
            };
            (id.clone(), status)
        });
        Ok(ApplicationStatus {
            stream: inner.scope.stream_name().to_owned(),
            application: inner.scope.application().to_owned(),
            workers: table.workers.keys().map(ToString::to_string).collect(),
            shards: shards.collect(),
        })
    }
}
