//! How far a shard has been read, and how far it may be said to have been.

mod in_flight;
mod watermark;

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::error::{Error, ErrorKind};
use crate::record::{Record, SequenceNumber};

pub use in_flight::InFlightLimit;
pub(crate) use in_flight::{Allowance, ByteAllowance, InFlightConfig};
pub(crate) use watermark::{Advance, Passed, Watermark};

/// How far one shard has been read: what a [`CheckpointStore`](crate::CheckpointStore) keeps.
///
/// Its text form, by [`Display`](fmt::Display) and [`FromStr`], is what `RedisStore` writes and
/// is stable:
///
/// | checkpoint | text |
/// |---|---|
/// | [`TrimHorizon`](Self::TrimHorizon) | `TRIM_HORIZON` |
/// | [`AtTimestamp`](Self::AtTimestamp) | `AT_TIMESTAMP:1767225600000`, milliseconds since 1970 |
/// | [`AfterSequence`](Self::AfterSequenceNumber) | `AFTER_SEQUENCE_NUMBER:49590338`, with `:7` behind it inside an aggregated record |
/// | [`CaughtUp`](Self::CaughtUp) | `CAUGHT_UP:1767225600000:49590338`, or `CAUGHT_UP:1767225600000` if no record was finished |
/// | [`ShardEnd`](Self::ShardEnd) | `SHARD_END` |
///
/// ```
/// use kinestream::Checkpoint;
///
/// let read: Checkpoint = "AFTER_SEQUENCE_NUMBER:49590338".parse()?;
/// assert!(read.supersedes(&Checkpoint::TrimHorizon));
/// assert!(Checkpoint::ShardEnd.supersedes(&read));
/// assert!(!read.supersedes(&Checkpoint::ShardEnd));
/// # Ok::<(), kinestream::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Checkpoint {
    /// Nothing is read yet: begin with the oldest record that is kept.
    TrimHorizon,
    /// Nothing is read yet: begin with the first record that arrived at this time or later.
    /// Kept, as Kinesis keeps it, to the millisecond. Its text form holds times from 1970 to 2^64
    /// milliseconds later; a time outside of them is written as the nearest one inside.
    AtTimestamp(SystemTime),
    /// This record, and all before it, are finished.
    AfterSequenceNumber {
        /// The last finished record.
        sequence_number: SequenceNumber,
        /// Where the record is an aggregate that is not finished as a whole: the last of its
        /// parts that is.
        sub_sequence_number: Option<u64>,
    },
    /// All records up to `after` are finished, and no other record had arrived by `until`. A quiet
    /// shard is stored so: `after` may leave retention without a loss.
    CaughtUp {
        /// The last finished record, or a later position up to which the server reported no other
        /// record; `None` if no record was finished.
        after: Option<SequenceNumber>,
        /// A time by the server's clock, to the millisecond.
        until: SystemTime,
    },
    /// Every record of the shard is finished, and the shard is closed: it is never read again.
    ShardEnd,
}

impl Checkpoint {
    /// Whether a store that holds `stored` is to hold `self` instead.
    ///
    /// A position never moves backwards, and a starting position never replaces another one:
    /// whoever pinned the start first has pinned it for all.
    pub fn supersedes(&self, stored: &Self) -> bool {
        self.order() > stored.order()
    }

    fn order(&self) -> Order<'_> {
        match self {
            Self::TrimHorizon | Self::AtTimestamp(_) => Order::Start,
            Self::CaughtUp { after: None, until } => Order::Quiet(millis_of(*until)),
            // A whole record is further than any part of it, and with a time further still.
            Self::CaughtUp { after: Some(number), until } => {
                Order::Behind(number, u64::MAX, Some(millis_of(*until)))
            }
            Self::AfterSequenceNumber { sequence_number, sub_sequence_number } => {
                Order::Behind(sequence_number, sub_sequence_number.unwrap_or(u64::MAX), None)
            }
            Self::ShardEnd => Order::End,
        }
    }

    /// The last record that is finished, where there is one.
    pub(crate) fn sequence_number(&self) -> Option<&SequenceNumber> {
        match self {
            Self::AfterSequenceNumber { sequence_number, .. } => Some(sequence_number),
            Self::CaughtUp { after, .. } => after.as_ref(),
            _ => None,
        }
    }

    /// A shard that was quiet until then.
    pub(crate) fn caught_up(after: Option<SequenceNumber>, until: SystemTime) -> Self {
        Self::CaughtUp { after, until: UNIX_EPOCH + Duration::from_millis(millis_of(until)) }
    }
}

impl Record {
    /// Returns the position after this record: its shard is read to here once this record, and all
    /// records delivered before it, are processed.
    ///
    /// It is exact inside an aggregated record too. Store it with the results of your records, and
    /// start from it with [`starting_position_for`](crate::ConsumerBuilder::starting_position_for); the
    /// guide to [delivery](crate::guide::delivery) has the whole recipe. [`Checkpoint::supersedes`]
    /// compares the positions of two records of a shard.
    ///
    /// ```no_run
    /// # async fn example(consumer: kinestream::Consumer) -> kinestream::Result<()> {
    /// use futures::StreamExt;
    ///
    /// let mut records = consumer.records();
    /// while let Some(record) = records.next().await {
    ///     let record = record?;
    ///     println!("{} is read to {}", record.shard_id(), record.checkpoint());
    /// }
    /// # Ok(()) }
    /// ```
    pub fn checkpoint(&self) -> Checkpoint {
        Checkpoint::AfterSequenceNumber {
            sequence_number: self.sequence_number.clone(),
            sub_sequence_number: self.is_inner.then_some(self.sub_sequence_number),
        }
    }
}

/// Orders checkpoints by progress. Starting positions are equal: none replaces another.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Order<'a> {
    Start,
    Quiet(u64),
    Behind(&'a SequenceNumber, u64, Option<u64>),
    End,
}

impl fmt::Display for Checkpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TrimHorizon => formatter.write_str("TRIM_HORIZON"),
            Self::AtTimestamp(time) => {
                write!(formatter, "AT_TIMESTAMP:{}", millis_of(*time))
            }
            Self::AfterSequenceNumber { sequence_number, sub_sequence_number } => {
                write!(formatter, "AFTER_SEQUENCE_NUMBER:{sequence_number}")?;
                match sub_sequence_number {
                    Some(part) => write!(formatter, ":{part}"),
                    None => Ok(()),
                }
            }
            Self::CaughtUp { after, until } => {
                write!(formatter, "CAUGHT_UP:{}", millis_of(*until))?;
                match after {
                    Some(number) => write!(formatter, ":{number}"),
                    None => Ok(()),
                }
            }
            Self::ShardEnd => formatter.write_str("SHARD_END"),
        }
    }
}

/// Milliseconds since 1970, within what [`FromStr`] reads.
pub(crate) fn millis_of(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl FromStr for Checkpoint {
    type Err = Error;

    /// # Errors
    ///
    /// [`ErrorKind::StoreCorrupt`] if the text does not have one of the five forms.
    fn from_str(text: &str) -> Result<Self, Error> {
        let parsed = match text.split_once(':') {
            None if text == "TRIM_HORIZON" => Some(Self::TrimHorizon),
            None if text == "SHARD_END" => Some(Self::ShardEnd),
            Some(("AT_TIMESTAMP", millis)) => parse_time(millis).map(Self::AtTimestamp),
            Some(("CAUGHT_UP", quiet)) => parse_quiet(quiet),
            Some(("AFTER_SEQUENCE_NUMBER", place)) => parse_place(place),
            _ => None,
        };
        parsed.ok_or_else(|| {
            let shown: String = text.chars().take(60).collect();
            Error::new(ErrorKind::StoreCorrupt, format!("{shown:?} is not a checkpoint"))
        })
    }
}

fn parse_place(place: &str) -> Option<Checkpoint> {
    let (number, part) = match place.split_once(':') {
        Some((number, part)) => (number, Some(parse_digits(part)?)),
        None => (place, None),
    };
    Some(Checkpoint::AfterSequenceNumber {
        sequence_number: number.parse().ok()?,
        sub_sequence_number: part,
    })
}

fn parse_quiet(quiet: &str) -> Option<Checkpoint> {
    let (millis, after) = match quiet.split_once(':') {
        Some((millis, number)) => (millis, Some(number.parse().ok()?)),
        None => (quiet, None),
    };
    Some(Checkpoint::CaughtUp { after, until: parse_time(millis)? })
}

fn parse_time(millis: &str) -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(Duration::from_millis(parse_digits(millis)?))
}

/// Digits alone: `u64::from_str` would let a sign through.
fn parse_digits(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_checkpoint() -> impl Strategy<Value = Checkpoint> {
        prop_oneof![
            Just(Checkpoint::TrimHorizon),
            (0..u64::from(u32::MAX)).prop_map(|millis| {
                Checkpoint::AtTimestamp(UNIX_EPOCH + Duration::from_millis(millis))
            }),
            ("[1-9][0-9]{0,2}", prop::option::of(0..9_u64)).prop_map(|(number, part)| {
                Checkpoint::AfterSequenceNumber {
                    sequence_number: number.parse().unwrap(),
                    sub_sequence_number: part,
                }
            }),
            (0..9_u64, prop::option::of("[1-9][0-9]{0,2}")).prop_map(|(millis, number)| {
                let after = number.map(|number| number.parse().unwrap());
                Checkpoint::CaughtUp { after, until: UNIX_EPOCH + Duration::from_millis(millis) }
            }),
            Just(Checkpoint::ShardEnd),
        ]
    }

    proptest! {
        #[test]
        fn is_read_back_as_it_was_written(checkpoint in any_checkpoint()) {
            prop_assert_eq!(checkpoint.to_string().parse::<Checkpoint>().unwrap(), checkpoint);
        }

        #[test]
        fn refuses_what_is_not_one(text in ".{0,200}") {
            prop_assert!(text.parse::<Checkpoint>().is_err());
        }

        #[test]
        fn superseding_never_goes_round(checkpoints in prop::collection::vec(any_checkpoint(), 3)) {
            let [a, b, c] = &checkpoints[..] else { unreachable!() };
            prop_assert!(!a.supersedes(a));
            prop_assert!(!(a.supersedes(b) && b.supersedes(a)));
            prop_assert!(!(a.supersedes(b) && b.supersedes(c)) || a.supersedes(c));
        }
    }

    #[test]
    fn timestamp_out_of_range_is_written_as_nearest_one() {
        let far = UNIX_EPOCH + Duration::from_secs(u64::MAX / 1000 + 1_000_000);
        for (time, text) in [
            (far, "AT_TIMESTAMP:18446744073709551615"),
            (UNIX_EPOCH - Duration::from_secs(1), "AT_TIMESTAMP:0"),
        ] {
            let written = Checkpoint::AtTimestamp(time).to_string();
            assert_eq!(written, text);
            assert!(written.parse::<Checkpoint>().is_ok());
        }
    }

    #[test]
    fn a_whole_record_is_further_than_a_part_of_it() {
        let whole: Checkpoint = "AFTER_SEQUENCE_NUMBER:7".parse().unwrap();
        let part: Checkpoint = "AFTER_SEQUENCE_NUMBER:7:3".parse().unwrap();
        assert!(whole.supersedes(&part));
        assert!(!part.supersedes(&whole));
        assert!("AFTER_SEQUENCE_NUMBER:7:+3".parse::<Checkpoint>().is_err());
    }
}
