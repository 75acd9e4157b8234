//! Where a shard begins that has no checkpoint.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use crate::checkpoint::Checkpoint;
use crate::record::{SequenceNumber, ShardId};
use crate::shard::time_on_the_wall;
use crate::source::{MOST_CLOCK_SKEW, Position};

/// Where an application begins to read a stream of which it has no checkpoint at all.
///
/// It counts once: at the very first start every shard that exists is given this position in the
/// store, before anything is read. From then on the checkpoints rule, and shards that come later
/// are children, which are read from their beginning.
///
/// ```no_run
/// # fn example(client: aws_sdk_kinesis::Client) -> kinestream::Result<()> {
/// use std::time::{Duration, SystemTime};
///
/// use kinestream::{Consumer, StartingPosition};
///
/// let an_hour_ago = SystemTime::now() - Duration::from_secs(3600);
/// let consumer = Consumer::builder(client, "orders")
///     .starting_position(StartingPosition::AtTimestamp(an_hour_ago))
///     .build()?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum StartingPosition {
    /// What arrives from now on. `now` is the second of the first start, by Kinesis's clock: it
    /// is kept in the store, so that a retry or a restart skips nothing. What arrived earlier in
    /// that second comes as well.
    ///
    /// A store with leases has the moment before the first call of `ListShards`. A worker that
    /// crashes before a listing is complete is replaced by one that begins at that moment; its clock
    /// may have been up to five minutes ahead of Kinesis's, so records of the five minutes before are
    /// delivered as well. A [`CheckpointStore`](crate::CheckpointStore) without leases holds
    /// nothing before the first complete listing: a process that dies before then begins at its next
    /// start, and skips what arrived in between.
    #[default]
    Latest,
    /// The oldest record that is kept.
    TrimHorizon,
    /// The first record that arrived at this time or later, to the millisecond. A time before
    /// retention means the oldest record that is kept.
    AtTimestamp(SystemTime),
}

/// Where one shard begins that has no checkpoint.
///
/// Any [`Checkpoint`] is one, by `From`.
///
/// ```no_run
/// # fn example(client: aws_sdk_kinesis::Client) -> kinestream::Result<()> {
/// use kinestream::{Checkpoint, Consumer, ShardPosition};
///
/// // The checkpoint of the last record, stored beside the data in the caller's own database.
/// let stored: Checkpoint = "AFTER_SEQUENCE_NUMBER:49590338271490256608559692538361571095:7".parse()?;
/// let consumer = Consumer::builder(client, "orders")
///     .starting_position_for("shardId-000000000000".parse()?, stored)
///     .starting_position_for("shardId-000000000001".parse()?, ShardPosition::TrimHorizon)
///     .build()?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ShardPosition {
    /// As [`StartingPosition::Latest`].
    Latest,
    /// As [`StartingPosition::TrimHorizon`].
    TrimHorizon,
    /// As [`StartingPosition::AtTimestamp`].
    AtTimestamp(SystemTime),
    /// This record.
    AtSequenceNumber(SequenceNumber),
    /// The record behind this one. Skips the rest of an aggregated record: see
    /// [`AfterUserRecord`](Self::AfterUserRecord).
    AfterSequenceNumber(SequenceNumber),
    /// The user record after this one of an aggregated record.
    AfterUserRecord {
        /// The sequence number of the aggregated record.
        sequence_number: SequenceNumber,
        /// The sub-sequence number of the last user record that is finished.
        sub_sequence_number: u64,
    },
    /// As [`Checkpoint::CaughtUp`]: the record behind `after`, or the first one that had not arrived by
    /// `until`.
    CaughtUp {
        /// The last finished record, if there is one.
        after: Option<SequenceNumber>,
        /// A time by the clock of Kinesis.
        until: SystemTime,
    },
    /// The end of the shard, which is not read. Its children are read from their beginning.
    ShardEnd,
}

impl From<StartingPosition> for ShardPosition {
    fn from(position: StartingPosition) -> Self {
        match position {
            StartingPosition::Latest => Self::Latest,
            StartingPosition::TrimHorizon => Self::TrimHorizon,
            StartingPosition::AtTimestamp(time) => Self::AtTimestamp(time),
        }
    }
}

impl From<Checkpoint> for ShardPosition {
    fn from(checkpoint: Checkpoint) -> Self {
        match checkpoint {
            Checkpoint::TrimHorizon => Self::TrimHorizon,
            Checkpoint::AtTimestamp(time) => Self::AtTimestamp(time),
            Checkpoint::AfterSequenceNumber { sequence_number, sub_sequence_number: None } => {
                Self::AfterSequenceNumber(sequence_number)
            }
            Checkpoint::AfterSequenceNumber { sequence_number, sub_sequence_number: Some(number) } => {
                Self::AfterUserRecord { sequence_number, sub_sequence_number: number }
            }
            Checkpoint::CaughtUp { after, until } => Self::CaughtUp { after, until },
            Checkpoint::ShardEnd => Self::ShardEnd,
        }
    }
}

/// Where shards without a checkpoint begin.
#[derive(Debug, Clone, Default)]
pub(crate) struct Start {
    pub(crate) all: StartingPosition,
    pub(crate) each: HashMap<ShardId, ShardPosition>,
}

/// A starting position, made exact.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ExactStart {
    /// Kept in the store before the shard is read.
    Kept(Checkpoint),
    /// The caller names it at every start.
    Named(Position),
}

impl Start {
    /// The start of a shard. `first` says that the application has no checkpoint of the stream;
    /// `now` is a moment by the server's clock.
    pub(super) fn pin(&self, shard: &ShardId, first: bool, now: SystemTime) -> ExactStart {
        let position = match self.each.get(shard) {
            Some(position) => position.clone(),
            None if first => self.all.into(),
            None => ShardPosition::TrimHorizon,
        };
        match position {
            ShardPosition::Latest => ExactStart::Kept(Checkpoint::AtTimestamp(now)),
            ShardPosition::TrimHorizon => ExactStart::Kept(Checkpoint::TrimHorizon),
            ShardPosition::AtTimestamp(time) => ExactStart::Kept(Checkpoint::AtTimestamp(time)),
            ShardPosition::AtSequenceNumber(number) => {
                ExactStart::Named(Position::AtSequenceNumber(number))
            }
            ShardPosition::AfterSequenceNumber(number) => {
                ExactStart::Named(Position::AfterSequenceNumber(number, None))
            }
            ShardPosition::AfterUserRecord { sequence_number, sub_sequence_number } => {
                ExactStart::Named(Position::AfterSequenceNumber(sequence_number, Some(sub_sequence_number)))
            }
            ShardPosition::CaughtUp { after, until } => {
                ExactStart::Named(Position::CaughtUp { after, until })
            }
            ShardPosition::ShardEnd => ExactStart::Kept(Checkpoint::ShardEnd),
        }
    }

    /// Returns the time that the caller names as the start of the shard.
    pub(crate) fn time_of(&self, shard: &ShardId) -> Option<SystemTime> {
        match (self.each.get(shard), self.all) {
            (Some(ShardPosition::AtTimestamp(time)), _) => Some(*time),
            (None, StartingPosition::AtTimestamp(time)) => Some(time),
            _ => None,
        }
    }

    /// Whether any shard begins at the moment of the first poll.
    pub(super) fn is_relative(&self) -> bool {
        self.all == StartingPosition::Latest
            || self.each.values().any(|position| *position == ShardPosition::Latest)
    }

    /// The time from which shards can hold anything to read, at a first start.
    pub(super) fn since(&self, now: SystemTime) -> Option<SystemTime> {
        match self.all {
            StartingPosition::Latest => Some(now),
            StartingPosition::AtTimestamp(time) => Some(time),
            StartingPosition::TrimHorizon => None,
        }
    }
}

/// The moment at which a reading was polled first.
#[derive(Debug, Clone, Copy)]
pub(super) struct FirstPoll {
    at: Instant,
    on_the_wall: SystemTime,
}

impl FirstPoll {
    pub(super) fn now() -> Self {
        Self { at: Instant::now(), on_the_wall: time_on_the_wall() }
    }

    /// Returns that moment by the server's clock, or one before it, where an answer of that time
    /// has just come. Of the two clocks of this host the one that has gone further counts: the
    /// monotonic one stands still while some machines sleep.
    pub(super) fn before(&self, answered: SystemTime) -> SystemTime {
        let on_the_wall = time_on_the_wall().duration_since(self.on_the_wall).unwrap_or_default();
        floor(answered.checked_sub(self.at.elapsed().max(on_the_wall)).unwrap_or(UNIX_EPOCH))
    }

    /// The same, where no answer has come yet. It is not rounded.
    pub(super) fn by_own_clock(&self) -> SystemTime {
        self.on_the_wall.checked_sub(MOST_CLOCK_SKEW).unwrap_or(UNIX_EPOCH)
    }
}

/// The second of a time: a server may keep times of arrival to the second.
pub(super) fn floor(time: SystemTime) -> SystemTime {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    UNIX_EPOCH + Duration::from_secs(since.as_secs())
}
