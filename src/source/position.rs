use std::time::{SystemTime, UNIX_EPOCH};

use super::kinesis::MAX_CLOCK_SKEW;
use crate::checkpoint::Checkpoint;
use crate::record::SequenceNumber;

/// The action to take if a checkpoint has left the stream's retention, so that records were lost
/// before they were read.
///
/// ```no_run
/// # fn example(client: aws_sdk_kinesis::Client) -> kinestream::Result<()> {
/// use kinestream::{Consumer, OnTrimmed};
///
/// let consumer = Consumer::builder(client, "orders").on_trimmed(OnTrimmed::TrimHorizon).build()?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum OnTrimmed {
    /// Fails. The stream of the shard yields one error of kind
    /// [`Trimmed`](crate::ErrorKind::Trimmed) and ends; [`records()`](crate::Consumer::records)
    /// continues with the other shards. The lease is released. Workers retry the shard with a
    /// back-off of 10 s to 5 min and yield no second error, so a position that is set with
    /// [`set_position`](crate::Consumer::set_position) takes effect without a restart. The children
    /// of the shard wait.
    #[default]
    Fail,
    /// Continues with the oldest kept record, and emits [`Event::Gap`](crate::Event::Gap).
    TrimHorizon,
    /// Continues with the records that arrive after the decision, and emits
    /// [`Event::Gap`](crate::Event::Gap). Older records that the stream still keeps are not
    /// delivered.
    ///
    /// The decision is stored with the next write of checkpoints, as
    /// [`Checkpoint::CaughtUp`](crate::Checkpoint::CaughtUp): `until` is the time of the decision
    /// by the clock of Kinesis, and `after` is the last record before the loss. A restart reads
    /// from there, and delivers the records that arrived while the program was down. After a crash
    /// between the decision and the write, the next worker decides again, at a later time.
    ///
    /// The arrival times of records come from several hosts, and their clocks may differ. A restart
    /// therefore also delivers records that arrived up to 5 min before the decision.
    ///
    /// A restart before the next record is read emits the event again if the stream still keeps
    /// records that were left out.
    Latest,
}

/// The position at which a source continues reading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Position {
    TrimHorizon,
    AtTimestamp(SystemTime),
    AtSequenceNumber(SequenceNumber),
    /// After this record, or after the user record with this number in it.
    AfterSequenceNumber(SequenceNumber, Option<u64>),
    /// After this record, if any was read, and after all records that had arrived by `until`.
    CaughtUp {
        after: Option<SequenceNumber>,
        until: SystemTime,
    },
}

impl Position {
    /// Returns the position at which reading continues after a checkpoint; `None` at the end of a
    /// shard.
    pub(crate) fn of(checkpoint: Checkpoint) -> Option<Self> {
        match checkpoint {
            Checkpoint::TrimHorizon => Some(Self::TrimHorizon),
            Checkpoint::AtTimestamp(time) => Some(Self::AtTimestamp(time)),
            Checkpoint::AfterSequenceNumber { sequence_number, sub_sequence_number } => {
                Some(Self::AfterSequenceNumber(sequence_number, sub_sequence_number))
            }
            Checkpoint::CaughtUp { after, until } => Some(Self::CaughtUp { after, until }),
            Checkpoint::ShardEnd => None,
        }
    }

    /// Returns the checkpoint that stores this position; `None` if only the sequence number of the
    /// first record to read is known.
    pub(crate) fn checkpoint(&self) -> Option<Checkpoint> {
        match self {
            Self::TrimHorizon => Some(Checkpoint::TrimHorizon),
            Self::AtTimestamp(time) => Some(Checkpoint::AtTimestamp(*time)),
            Self::AtSequenceNumber(_) => None,
            Self::CaughtUp { after, until } => Some(Checkpoint::caught_up(after.clone(), *until)),
            Self::AfterSequenceNumber(number, part) => Some(Checkpoint::AfterSequenceNumber {
                sequence_number: number.clone(),
                sub_sequence_number: *part,
            }),
        }
    }

    /// Returns the sequence number of the record that the position is at or after, if it names one.
    pub(crate) fn number(&self) -> Option<&SequenceNumber> {
        match self {
            Self::AtSequenceNumber(number) | Self::AfterSequenceNumber(number, _) => Some(number),
            Self::CaughtUp { after, .. } => after.as_ref(),
            Self::TrimHorizon | Self::AtTimestamp(_) => None,
        }
    }

    /// Returns the time up to which no other record had arrived.
    pub(super) fn quiet_until(&self) -> Option<SystemTime> {
        match self {
            Self::CaughtUp { until, .. } => Some(*until),
            _ => None,
        }
    }

    /// Returns the time to begin at, if the position names a time and no record.
    pub(crate) fn time(&self) -> Option<SystemTime> {
        match self {
            Self::AtTimestamp(time) => Some(*time),
            // Arrival times come from hosts whose clocks differ.
            Self::CaughtUp { after: None, until } => until.checked_sub(MAX_CLOCK_SKEW),
            _ => None,
        }
    }

    /// Returns true if a record that a newly placed iterator returned precedes this position.
    ///
    /// This happens if the iterator was placed at the last record read, or if a server that finds
    /// no record at the requested time begins with the records it has. Later records are new,
    /// regardless of the arrival time that the clock of another host gave them.
    pub(crate) fn is_past(&self, place: &SequenceNumber, arrival: Option<SystemTime>) -> bool {
        match self {
            Self::AfterSequenceNumber(number, None)
            | Self::CaughtUp { after: Some(number), .. } => place <= number,
            Self::AfterSequenceNumber(number, Some(_)) | Self::AtSequenceNumber(number) => {
                place < number
            }
            // The time may be truncated to seconds, so only seconds are compared.
            Self::AtTimestamp(_) | Self::CaughtUp { after: None, .. } => {
                let begin = self.time().map_or(0, seconds);
                arrival.is_some_and(|at| seconds(at) < begin)
            }
            Self::TrimHorizon => false,
        }
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
