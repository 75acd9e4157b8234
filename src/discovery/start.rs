//! Starting positions of shards without a checkpoint.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use crate::checkpoint::{Checkpoint, stored_time};
use crate::clock::Clock;
use crate::record::{SequenceNumber, ShardId};
use crate::source::{MAX_CLOCK_SKEW, Position};

/// The position at which an application starts to read a stream of which it has no checkpoint.
///
/// The starting position is used once. At the first start it is stored for every existing shard,
/// before anything is read. From then on the stored checkpoints are used. Shards that are created
/// later are children, which are read from their first record.
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
    /// The records that arrive from now on. "Now" is the second of the first start, by Kinesis's
    /// clock. It is stored, so that a retry or a restart skips no record. Records that arrived
    /// earlier in that second are delivered as well.
    ///
    /// A store with leases has the moment before the first `ListShards` call. If a worker crashes
    /// before a listing is complete, its replacement starts at that moment. The clock of the
    /// crashed worker may have been up to five minutes ahead of Kinesis's clock, so records of the
    /// five minutes before are delivered as well. A [`CheckpointStore`](crate::CheckpointStore)
    /// without leases holds no moment before the first complete listing: if the process crashes
    /// before that, reading starts at its next start, and the records that arrived in between are
    /// skipped.
    #[default]
    Latest,
    /// The oldest record in retention.
    TrimHorizon,
    /// The first record that arrived at this time or later, to the millisecond. A time before
    /// retention means the oldest record in retention.
    AtTimestamp(SystemTime),
}

/// The position at which one shard without a checkpoint starts.
///
/// Any [`Checkpoint`] converts to a `ShardPosition`.
///
/// ```no_run
/// # fn example(client: aws_sdk_kinesis::Client) -> kinestream::Result<()> {
/// use kinestream::{Checkpoint, Consumer, ShardPosition};
///
/// // The checkpoint of the last record, stored with the data in the caller's own database.
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
    /// The same as [`StartingPosition::Latest`].
    Latest,
    /// The same as [`StartingPosition::TrimHorizon`].
    TrimHorizon,
    /// The same as [`StartingPosition::AtTimestamp`].
    AtTimestamp(SystemTime),
    /// The record with this sequence number.
    AtSequenceNumber(SequenceNumber),
    /// The record after the one with this sequence number. Skips the rest of an aggregated record:
    /// see [`AfterUserRecord`](Self::AfterUserRecord).
    AfterSequenceNumber(SequenceNumber),
    /// The user record after the given one of an aggregated record.
    AfterUserRecord {
        /// The sequence number of the aggregated record.
        sequence_number: SequenceNumber,
        /// The sub-sequence number of the last acknowledged user record.
        sub_sequence_number: u64,
    },
    /// The same as [`Checkpoint::CaughtUp`]: the record after `after`, or the first record that had
    /// not arrived by `until`.
    CaughtUp {
        /// The last acknowledged record, if there is one.
        after: Option<SequenceNumber>,
        /// A time by the clock of Kinesis.
        until: SystemTime,
    },
    /// The end of the shard. The shard is not read, and its children are read from their first
    /// record.
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
            Checkpoint::AfterSequenceNumber {
                sequence_number,
                sub_sequence_number: Some(number),
            } => Self::AfterUserRecord { sequence_number, sub_sequence_number: number },
            Checkpoint::CaughtUp { after, until } => Self::CaughtUp { after, until },
            Checkpoint::ShardEnd => Self::ShardEnd,
        }
    }
}

/// The starting positions that the caller has set.
#[derive(Debug, Clone, Default)]
pub(crate) struct Start {
    pub(crate) all: StartingPosition,
    pub(crate) each: HashMap<ShardId, ShardPosition>,
}

/// A starting position that is resolved to an exact one.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ExactStart {
    /// A checkpoint that is stored before the shard is read.
    Stored(Checkpoint),
    /// A position that is not stored, since the caller sets it at every start.
    Given(Position),
}

impl Start {
    /// Returns the exact start of a shard. `first` is true if the application has no checkpoint of
    /// the stream. `now` is a moment by the server's clock.
    pub(super) fn resolve(&self, shard: &ShardId, first: bool, now: SystemTime) -> ExactStart {
        let position = match self.each.get(shard) {
            Some(position) => position.clone(),
            None if first => self.all.into(),
            None => ShardPosition::TrimHorizon,
        };
        match position {
            ShardPosition::Latest => ExactStart::Stored(Checkpoint::AtTimestamp(now)),
            ShardPosition::TrimHorizon => ExactStart::Stored(Checkpoint::TrimHorizon),
            ShardPosition::AtTimestamp(time) => ExactStart::Stored(Checkpoint::AtTimestamp(time)),
            ShardPosition::AtSequenceNumber(number) => {
                ExactStart::Given(Position::AtSequenceNumber(number))
            }
            ShardPosition::AfterSequenceNumber(number) => {
                ExactStart::Given(Position::AfterSequenceNumber(number, None))
            }
            ShardPosition::AfterUserRecord { sequence_number, sub_sequence_number } => {
                ExactStart::Given(Position::AfterSequenceNumber(
                    sequence_number,
                    Some(sub_sequence_number),
                ))
            }
            ShardPosition::CaughtUp { after, until } => {
                ExactStart::Given(Position::CaughtUp { after, until })
            }
            ShardPosition::ShardEnd => ExactStart::Stored(Checkpoint::ShardEnd),
        }
    }

    /// Returns the time that the caller has set as the start of the shard, as a store keeps it.
    pub(crate) fn time_of(&self, shard: &ShardId) -> Option<SystemTime> {
        match (self.each.get(shard), self.all) {
            (Some(ShardPosition::AtTimestamp(time)), _) => Some(stored_time(*time)),
            (None, StartingPosition::AtTimestamp(time)) => Some(stored_time(time)),
            _ => None,
        }
    }

    /// Returns true if any shard may start at the moment of the first poll.
    pub(super) fn is_relative(&self) -> bool {
        self.all == StartingPosition::Latest
            || self.each.values().any(|position| *position == ShardPosition::Latest)
    }

    /// Returns the time before which a new application reads nothing; `None` if it reads
    /// everything.
    pub(super) fn since(&self, now: SystemTime) -> Option<SystemTime> {
        match self.all {
            StartingPosition::Latest => Some(now),
            StartingPosition::AtTimestamp(time) => Some(time),
            StartingPosition::TrimHorizon => None,
        }
    }
}

/// The moment at which a session was polled first.
#[derive(Debug, Clone)]
pub(super) struct FirstPoll {
    at: Instant,
    on_the_wall: SystemTime,
    clock: Clock,
}

impl FirstPoll {
    pub(super) fn now(clock: Clock) -> Self {
        Self { at: Instant::now(), on_the_wall: clock.now(), clock }
    }

    /// Returns the wall clock of the host.
    pub(super) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Returns the moment by the server's clock, or one before it. `answered` is the server's time
    /// of a response that has just arrived. Of the two clocks of this host, the one that has
    /// advanced further is used: on some machines the monotonic clock stops during sleep.
    pub(super) fn before(&self, answered: SystemTime) -> SystemTime {
        let on_the_wall = self.clock.now().duration_since(self.on_the_wall).unwrap_or_default();
        floor(answered.checked_sub(self.at.elapsed().max(on_the_wall)).unwrap_or(UNIX_EPOCH))
    }

    /// Returns the moment by the clock of this host less the largest clock skew, before any
    /// response has arrived. It is not rounded.
    pub(super) fn by_own_clock(&self) -> SystemTime {
        self.on_the_wall.checked_sub(MAX_CLOCK_SKEW).unwrap_or(UNIX_EPOCH)
    }
}

/// Rounds a time down to the second, since a server may keep arrival times in whole seconds.
pub(super) fn floor(time: SystemTime) -> SystemTime {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    UNIX_EPOCH + Duration::from_secs(since.as_secs())
}
