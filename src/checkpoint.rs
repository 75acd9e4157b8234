//! Checkpoints: the position of a shard, its text form and its order.

mod in_flight;
mod watermark;

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::error::{Error, ErrorKind};
use crate::record::{Record, SequenceNumber};

pub use in_flight::InFlightLimit;
pub(crate) use in_flight::{Allowance, ByteAllowance, InFlightConfig};
pub(crate) use watermark::{Advance, QuietPosition, Watermark};

/// The stored position of one shard, as a [`CheckpointStore`](crate::CheckpointStore) keeps it.
///
/// `RedisStore` stores the text form, which [`Display`](fmt::Display) writes and [`FromStr`]
/// parses. The text form is stable:
///
/// | checkpoint | text |
/// |---|---|
/// | [`TrimHorizon`](Self::TrimHorizon) | `TRIM_HORIZON` |
/// | [`AtTimestamp`](Self::AtTimestamp) | `AT_TIMESTAMP:1767225600000`, milliseconds since 1970 |
/// | [`AfterSequenceNumber`](Self::AfterSequenceNumber) | `AFTER_SEQUENCE_NUMBER:49590338`, followed by `:7` inside an aggregated record |
/// | [`CaughtUp`](Self::CaughtUp) | `CAUGHT_UP:1767225600000:49590338`, or `CAUGHT_UP:1767225600000` if no record was acknowledged |
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
#[doc(alias("offset", "committed offset"))]
#[non_exhaustive]
pub enum Checkpoint {
    /// No record is read yet. Reading starts at the oldest record in retention.
    TrimHorizon,
    /// No record is read yet. Reading starts at the first record that arrived at or after this
    /// time.
    ///
    /// Stored with millisecond precision, as Kinesis does. The text form holds times from 1970 to
    /// 2^64 milliseconds later. A time outside this range is written as the nearest time in it.
    AtTimestamp(SystemTime),
    /// This record and all records before it are acknowledged.
    AfterSequenceNumber {
        /// The last acknowledged record.
        sequence_number: SequenceNumber,
        /// Inside an aggregated record of which not all user records are acknowledged: the last
        /// acknowledged user record.
        sub_sequence_number: Option<u64>,
    },
    /// All records up to `after` are acknowledged, and no other record had arrived by `until`. This
    /// is the checkpoint of a quiet shard: `after` may leave retention without a loss.
    CaughtUp {
        /// The last acknowledged record, or a later position up to which the server reported no
        /// other record. `None` if no record was acknowledged.
        after: Option<SequenceNumber>,
        /// A time by the server's clock, to the millisecond.
        until: SystemTime,
    },
    /// Every record of the shard is acknowledged, and the shard is closed: it is never read again.
    ShardEnd,
}

impl Checkpoint {
    /// Returns true if a store that holds `stored` is to replace it with `self`.
    ///
    /// A position never moves backwards. A starting position never replaces another one: the first
    /// starting position that is stored applies to all workers.
    pub fn supersedes(&self, stored: &Self) -> bool {
        self.order() > stored.order()
    }

    fn order(&self) -> Progress<'_> {
        match self {
            Self::TrimHorizon | Self::AtTimestamp(_) => Progress::Start,
            Self::CaughtUp { after: None, until } => Progress::Quiet(millis_of(*until)),
            // A whole record is further than any of its user records. With a time, it is further
            // still.
            Self::CaughtUp { after: Some(number), until } => {
                Progress::After(number, u64::MAX, Some(millis_of(*until)))
            }
            Self::AfterSequenceNumber { sequence_number, sub_sequence_number } => {
                Progress::After(sequence_number, sub_sequence_number.unwrap_or(u64::MAX), None)
            }
            Self::ShardEnd => Progress::End,
        }
    }

    /// Returns the last acknowledged record, if there is one.
    pub(crate) fn sequence_number(&self) -> Option<&SequenceNumber> {
        match self {
            Self::AfterSequenceNumber { sequence_number, .. } => Some(sequence_number),
            Self::CaughtUp { after, .. } => after.as_ref(),
            _ => None,
        }
    }

    /// Returns the checkpoint of a shard in which no record had arrived by `until`.
    pub(crate) fn caught_up(after: Option<SequenceNumber>, until: SystemTime) -> Self {
        Self::CaughtUp { after, until: UNIX_EPOCH + Duration::from_millis(millis_of(until)) }
    }
}

impl Record {
    /// Returns the position after this record. Store it once this record, and all records delivered
    /// before it, are processed.
    ///
    /// The position is exact inside an aggregated record too. Store it together with the results of
    /// your records, and start from it with
    /// [`starting_position_for`](crate::ConsumerBuilder::starting_position_for). The guide to
    /// [delivery](crate::guide::delivery) has the whole recipe. [`Checkpoint::supersedes`] compares
    /// the positions of two records of a shard.
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
enum Progress<'a> {
    Start,
    Quiet(u64),
    After(&'a SequenceNumber, u64, Option<u64>),
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

/// Returns the time as the text form holds it.
pub(crate) fn stored_time(time: SystemTime) -> SystemTime {
    UNIX_EPOCH.checked_add(Duration::from_millis(millis_of(time))).unwrap_or(time)
}

/// Returns the milliseconds since 1970, within the range that [`FromStr`] parses.
pub(crate) fn millis_of(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl FromStr for Checkpoint {
    type Err = Error;

    /// # Errors
    ///
    /// [`ErrorKind::StoreCorrupt`] if the text does not have one of the five forms. The kind is that
    /// of a store's error, so that a store can return it unchanged.
    fn from_str(text: &str) -> Result<Self, Error> {
        let parsed = match text.split_once(':') {
            None if text == "TRIM_HORIZON" => Some(Self::TrimHorizon),
            None if text == "SHARD_END" => Some(Self::ShardEnd),
            Some(("AT_TIMESTAMP", millis)) => parse_time(millis).map(Self::AtTimestamp),
            Some(("CAUGHT_UP", quiet)) => parse_caught_up(quiet),
            Some(("AFTER_SEQUENCE_NUMBER", place)) => parse_after_sequence(place),
            _ => None,
        };
        parsed.ok_or_else(|| {
            let shown: String = text.chars().take(60).collect();
            let message = format!(
                "{shown:?} is not a checkpoint; expected a text such as TRIM_HORIZON or \
                 AFTER_SEQUENCE_NUMBER:49590338"
            );
            Error::new(ErrorKind::StoreCorrupt, message)
        })
    }
}

fn parse_after_sequence(place: &str) -> Option<Checkpoint> {
    let (number, part) = match place.split_once(':') {
        Some((number, part)) => (number, Some(parse_digits(part)?)),
        None => (place, None),
    };
    Some(Checkpoint::AfterSequenceNumber {
        sequence_number: number.parse().ok()?,
        sub_sequence_number: part,
    })
}

fn parse_caught_up(quiet: &str) -> Option<Checkpoint> {
    let (millis, after) = match quiet.split_once(':') {
        Some((millis, number)) => (millis, Some(number.parse().ok()?)),
        None => (quiet, None),
    };
    Some(Checkpoint::CaughtUp { after, until: parse_time(millis)? })
}

fn parse_time(millis: &str) -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(Duration::from_millis(parse_digits(millis)?))
}

/// Parses digits only: `u64::from_str` accepts a sign.
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
        fn text_form_parses_to_the_same_checkpoint(checkpoint in any_checkpoint()) {
            prop_assert_eq!(checkpoint.to_string().parse::<Checkpoint>().unwrap(), checkpoint);
        }

        #[test]
        fn other_text_is_rejected(text in ".{0,200}") {
            let error = text.parse::<Checkpoint>().unwrap_err().to_string();
            prop_assert!(error.contains("expected a text such as TRIM_HORIZON"), "{}", error);
        }

        #[test]
        fn supersedes_is_a_strict_partial_order(checkpoints in prop::collection::vec(any_checkpoint(), 3)) {
            let [a, b, c] = &checkpoints[..] else { unreachable!() };
            prop_assert!(!a.supersedes(a));
            prop_assert!(!(a.supersedes(b) && b.supersedes(a)));
            prop_assert!(!(a.supersedes(b) && b.supersedes(c)) || a.supersedes(c));
        }
    }

    #[test]
    fn timestamp_out_of_range_is_written_as_the_nearest() {
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
    fn whole_record_supersedes_its_user_records() {
        let whole: Checkpoint = "AFTER_SEQUENCE_NUMBER:7".parse().unwrap();
        let part: Checkpoint = "AFTER_SEQUENCE_NUMBER:7:3".parse().unwrap();
        assert!(whole.supersedes(&part));
        assert!(!part.supersedes(&whole));
        assert!("AFTER_SEQUENCE_NUMBER:7:+3".parse::<Checkpoint>().is_err());
    }
}
