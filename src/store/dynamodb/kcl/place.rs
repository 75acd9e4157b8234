//! The position of a shard, as a KCL keeps it, and the position of this crate that belongs to it.
//!
//! A KCL stores a sequence number or a sentinel, and the number of the last user record in it:
//!
//! | position | KCL: `checkpoint`, `checkpointSubSequenceNumber` |
//! |---|---|
//! | `AFTER_SEQUENCE_NUMBER:n:p` | `n`, `p`; a KCL writes `n`, 0 for a record that is not aggregated |
//! | `AFTER_SEQUENCE_NUMBER:n`, `CAUGHT_UP:t:n` | `n`, [`WHOLE`] |
//! | `TRIM_HORIZON` | `TRIM_HORIZON`, 0 |
//! | `AT_TIMESTAMP:t`, `CAUGHT_UP:t` | `TRIM_HORIZON`, 0: a KCL has no time, and with `LATEST` it passes over the records since `t` |
//! | `SHARD_END` | `SHARD_END`, 0, once the children have rows; until then the position before it |
//!
//! The exact position is a [note] that includes the KCL's position. The note counts while the KCL's
//! position is the included one. A KCL does not know the note, and does not update it.
//!
//! [note]: super::row::Row::note

use crate::checkpoint::Checkpoint;
use crate::record::SequenceNumber;

const TRIM_HORIZON: &str = "TRIM_HORIZON";
const LATEST: &str = "LATEST";
const AT_TIMESTAMP: &str = "AT_TIMESTAMP";
const SHARD_END: &str = "SHARD_END";

/// The number of the last user record of a record that is acknowledged as a whole: the largest
/// `long` of Java. A KCL resumes at the record and drops its user records up to this number.
pub(super) const WHOLE: u64 = i64::MAX as u64;

/// A position, as a KCL reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// A sequence number or a sentinel.
    pub(super) checkpoint: String,
    /// The last acknowledged user record. A KCL counts a missing number as 0.
    pub(super) sub_sequence_number: Option<u64>,
}

/// The meaning of a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Meaning {
    /// The text of this position.
    Position(String),
    /// The shard was assigned at its tip, and no position in it was ever stored.
    Latest,
    /// It has no position of this crate, for this reason.
    Unreadable(String),
}

impl Place {
    fn new(checkpoint: impl Into<String>, sub_sequence_number: u64) -> Self {
        let sub_sequence_number = Some(sub_sequence_number.min(WHOLE));
        Self { checkpoint: checkpoint.into(), sub_sequence_number }
    }

    /// Returns the place of a shard that is to be read from its oldest record.
    pub(super) fn trim_horizon() -> Self {
        Self::new(TRIM_HORIZON, 0)
    }

    /// Returns the place of a finished shard.
    pub(super) fn shard_end() -> Self {
        Self::new(SHARD_END, 0)
    }

    /// Returns the place at which a KCL resumes from a position. `self` is the present place, which
    /// stays if the position is the shard's end, or is unreadable.
    pub(super) fn at(&self, position: &str) -> Self {
        match position.parse() {
            Ok(
                Checkpoint::TrimHorizon
                | Checkpoint::AtTimestamp(_)
                | Checkpoint::CaughtUp { after: None, .. },
            ) => Self::trim_horizon(),
            Ok(Checkpoint::CaughtUp { after: Some(number), .. }) => {
                Self::new(number.as_str(), WHOLE)
            }
            Ok(Checkpoint::AfterSequenceNumber { sequence_number, sub_sequence_number }) => {
                Self::new(sequence_number.as_str(), sub_sequence_number.unwrap_or(WHOLE))
            }
            Ok(Checkpoint::ShardEnd) | Err(_) => {
                Self::new(&*self.checkpoint, self.sub_sequence_number.unwrap_or(0))
            }
        }
    }

    /// Returns what a KCL means by this place.
    pub(super) fn meaning(&self) -> Meaning {
        let text = match &*self.checkpoint {
            TRIM_HORIZON | SHARD_END => self.checkpoint.clone(),
            LATEST => return Meaning::Latest,
            AT_TIMESTAMP => {
                let why = "its checkpoint is AT_TIMESTAMP, and the time of it is known to the \
                           configuration of the KCL alone";
                return Meaning::Unreadable(why.to_owned());
            }
            number if number.parse::<SequenceNumber>().is_ok() => match self.sub_sequence_number {
                Some(WHOLE) => format!("AFTER_SEQUENCE_NUMBER:{number}"),
                part => format!("AFTER_SEQUENCE_NUMBER:{number}:{}", part.unwrap_or(0)),
            },
            other => {
                let shown: String = other.chars().take(60).collect();
                let why = format!("its checkpoint {shown:?} is neither a number nor a sentinel");
                return Meaning::Unreadable(why);
            }
        };
        Meaning::Position(text)
    }

    /// Returns the note of a position at this place. The position is empty if the shard has none.
    pub(super) fn note(&self, position: &str) -> String {
        format!("{position}{}", self.suffix())
    }

    /// Returns the position in a note, if the note was written at this place.
    pub(super) fn position_of<'a>(&self, note: &'a str) -> Option<&'a str> {
        note.strip_suffix(&*self.suffix())
    }

    fn suffix(&self) -> String {
        format!(" @ {} {}", self.checkpoint, self.sub_sequence_number.unwrap_or(0))
    }

    /// Returns true if a KCL counts the shard as finished.
    pub(super) fn is_end(&self) -> bool {
        self.checkpoint == SHARD_END
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn place(checkpoint: &str, part: u64) -> Place {
        Place::new(checkpoint, part)
    }

    #[test]
    fn positions_have_the_places_of_the_table_above() {
        let before = place("5", 3);
        for (position, checkpoint, part) in [
            ("AFTER_SEQUENCE_NUMBER:7:2", "7", 2),
            ("AFTER_SEQUENCE_NUMBER:7:18446744073709551614", "7", WHOLE),
            ("AFTER_SEQUENCE_NUMBER:7", "7", WHOLE),
            ("CAUGHT_UP:1000:7", "7", WHOLE),
            ("CAUGHT_UP:1000", "TRIM_HORIZON", 0),
            ("AT_TIMESTAMP:1000", "TRIM_HORIZON", 0),
            ("TRIM_HORIZON", "TRIM_HORIZON", 0),
            ("SHARD_END", "5", 3),
            ("damaged", "5", 3),
        ] {
            assert_eq!(before.at(position), place(checkpoint, part), "{position}");
        }
    }

    #[test]
    fn places_of_a_kcl_have_a_meaning() {
        let position = |text: &str| Some(text.to_owned());
        for (checkpoint, part, expected) in [
            ("7", Some(0), position("AFTER_SEQUENCE_NUMBER:7:0")),
            ("7", None, position("AFTER_SEQUENCE_NUMBER:7:0")),
            ("7", Some(3), position("AFTER_SEQUENCE_NUMBER:7:3")),
            ("7", Some(WHOLE), position("AFTER_SEQUENCE_NUMBER:7")),
            ("TRIM_HORIZON", Some(0), position("TRIM_HORIZON")),
            ("SHARD_END", Some(0), position("SHARD_END")),
            ("AT_TIMESTAMP", Some(0), None),
            ("", Some(0), None),
            ("07", Some(0), None),
            ("-7", Some(0), None),
            ("shard_end", Some(0), None),
            // A position of this crate in the attribute of the KCL.
            ("CAUGHT_UP:1000", Some(0), None),
        ] {
            let found = Place { checkpoint: checkpoint.to_owned(), sub_sequence_number: part };
            match (found.meaning(), expected) {
                (Meaning::Position(found), Some(expected)) => assert_eq!(found, expected),
                (Meaning::Unreadable(why), None) => assert!(!why.is_empty()),
                other => panic!("{checkpoint:?} {part:?}: {other:?}"),
            }
        }
        assert_eq!(place(LATEST, 0).meaning(), Meaning::Latest);
    }

    /// Returns the position from which a KCL reads, as a number that rises: of a record, and of a
    /// user record in it.
    fn progress(place: &Place) -> (u64, u64) {
        match &*place.checkpoint {
            TRIM_HORIZON => (0, 0),
            SHARD_END => (u64::MAX, 0),
            number => (number.parse().unwrap(), place.sub_sequence_number.unwrap_or(0)),
        }
    }

    proptest! {
        #[test]
        fn further_position_never_has_an_earlier_place(
            numbers in prop::array::uniform2(1..9_u64),
            parts in prop::array::uniform2(prop::option::of(0..3_u64)),
            kinds in prop::array::uniform2(0..5_u8),
        ) {
            let [one, two] = [0, 1].map(|index| {
                let (number, part) = (numbers[index], parts[index]);
                match (kinds[index], part) {
                    (0, _) => "TRIM_HORIZON".to_owned(),
                    (1, _) => format!("AT_TIMESTAMP:{number}"),
                    (2, None) => format!("CAUGHT_UP:{number}"),
                    (2, Some(_)) => format!("CAUGHT_UP:{number}:{number}"),
                    (3, Some(part)) => format!("AFTER_SEQUENCE_NUMBER:{number}:{part}"),
                    _ => format!("AFTER_SEQUENCE_NUMBER:{number}"),
                }
            });
            let [before, after]: [Checkpoint; 2] = [one.parse().unwrap(), two.parse().unwrap()];
            let start = Place::trim_horizon();
            if after.supersedes(&before) {
                prop_assert!(progress(&start.at(&two)) >= progress(&start.at(&one)));
            }
        }

        #[test]
        fn note_counts_only_at_its_place(
            position in "[A-Z_:0-9 @]{0,12}",
            checkpoints in prop::array::uniform2("[1-9][0-9]{0,2}|TRIM_HORIZON"),
            parts in prop::array::uniform2(0..3_u64),
        ) {
            let [one, two] = [0, 1].map(|index| place(&checkpoints[index], parts[index]));
            let note = one.note(&position);
            prop_assert_eq!(one.position_of(&note), Some(&*position));
            prop_assert_eq!(two.position_of(&note).is_some(), one == two);
        }

        #[test]
        fn place_means_the_position_that_it_was_made_for(number in 1..99_u64, part in 0..9_u64) {
            for position in [
                format!("AFTER_SEQUENCE_NUMBER:{number}:{part}"),
                format!("AFTER_SEQUENCE_NUMBER:{number}"),
                "TRIM_HORIZON".to_owned(),
            ] {
                let place = Place::trim_horizon().at(&position);
                prop_assert_eq!(place.meaning(), Meaning::Position(position));
            }
        }
    }
}
