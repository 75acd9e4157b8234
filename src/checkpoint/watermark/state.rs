//! Turns acknowledgements in any order into one position that only advances.
//!
//! Records are numbered in the order in which their shard delivers them. Records are ordered by
//! this number, not by sequence number, since sequence numbers have gaps.
//!
//! ```text
//!  acknowledged    gap    island     gap
//! ├──────────────┤......├────────┤.......┤
//! 0          prefix                      numbered
//! ```
//!
//! An acknowledged record either extends the prefix, which is the checkpoint, or joins an island: a
//! run of acknowledged records after an unacknowledged one. An island stores its end and not its
//! records, so a record that is never acknowledged costs no memory for the records after it.

use std::collections::BTreeMap;
use std::task::Waker;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::times::DeliveryTimes;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::in_flight::InFlightCounter;
use crate::record::{RecordPosition, SequenceNumber};

/// The change after a record is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Advance {
    /// The position of the shard advanced. `is_first` is true if this is the first advance since
    /// the position was last taken.
    Position { is_first: bool },
    /// The shard is closed and read to its end, and every record is acknowledged.
    End,
}

#[derive(Default)]
pub(super) struct WatermarkState {
    /// Every record below this number is acknowledged.
    pub(super) prefix: u64,
    /// The checkpoint to store before any record is acknowledged.
    pub(super) start: Option<Checkpoint>,
    /// The last record of the prefix, or a position after it that was passed.
    pub(super) position: Option<RecordPosition>,
    /// No record after the position had arrived by this time.
    pub(super) until: Option<SystemTime>,
    /// Acknowledged records after a gap, by the first number of each run.
    pub(super) islands: BTreeMap<u64, Island>,
    /// A position that follows the record before this number, with no records between them.
    pub(super) passed: Option<(u64, QuietPosition)>,
    /// Every record below this number is delivered, or belongs to the run in delivery.
    pub(super) numbered: u64,
    pub(super) in_flight: InFlightCounter,
    pub(super) times: DeliveryTimes,
    /// The shard is closed and its last record has been delivered.
    pub(super) ended: bool,
    /// The time at which the checkpoint first differed from the one last taken.
    pub(super) changed_at: Option<Instant>,
    /// Delivery has stopped, because the lease is being released.
    pub(super) retired: bool,
    /// The stream that waits until records are acknowledged.
    pub(super) waiting: Option<Waker>,
    /// The task that waits until all records are acknowledged.
    pub(super) settling: Option<Waker>,
}

/// The read position of a quiet shard: every record up to `after`, and every record that had
/// arrived by `until`, is in delivery.
#[derive(Clone)]
pub(crate) struct QuietPosition {
    pub(crate) after: Option<SequenceNumber>,
    pub(crate) until: SystemTime,
}

pub(super) struct Island {
    /// The number after the last record.
    end: u64,
    last: RecordPosition,
}

impl WatermarkState {
    /// Notes that all records below this number are delivered.
    pub(super) fn note_delivered(&mut self, delivered: u64) {
        self.times.note(delivered, self.prefix);
    }

    pub(super) fn unacknowledged(&mut self, delivered: u64) -> (usize, Option<Duration>) {
        self.note_delivered(delivered);
        self.times.forget(self.prefix);
        let undelivered = self.numbered.saturating_sub(delivered);
        let undelivered = usize::try_from(undelivered).unwrap_or(usize::MAX);
        let records = self.in_flight.records().saturating_sub(undelivered);
        (records, self.times.oldest().filter(|_| records > 0))
    }

    /// Returns true if this is the first change since the checkpoint was last taken.
    pub(super) fn note_changed(&mut self, has_changed: bool) -> bool {
        let is_first = has_changed && self.changed_at.is_none();
        if is_first {
            self.changed_at = Some(Instant::now());
        }
        is_first
    }

    pub(super) fn checkpoint(&self) -> Option<Checkpoint> {
        if self.is_complete() {
            return Some(Checkpoint::ShardEnd);
        }
        let position = self.position.as_ref();
        if let Some(until) = self.until {
            let after = position.map(|position| position.number.clone());
            return Some(Checkpoint::caught_up(after, until));
        }
        let after = position.map(|position| Checkpoint::AfterSequenceNumber {
            sequence_number: position.number.clone(),
            sub_sequence_number: position.part,
        });
        after.or_else(|| self.start.clone())
    }

    /// Moves the position to the passed one, if all records before it are acknowledged. Returns
    /// true if the position moved.
    #[inline]
    pub(super) fn reach_passed(&mut self) -> bool {
        let is_reached = self.passed.as_ref().is_some_and(|(number, _)| *number <= self.prefix);
        is_reached && self.take_passed()
    }

    fn take_passed(&mut self) -> bool {
        let Some((number, QuietPosition { after, until })) = self.passed.take() else {
            return false;
        };
        if number < self.prefix {
            return false;
        }
        if let Some(number) = after {
            self.position = Some(RecordPosition { number, part: None });
        }
        self.until = Some(until);
        true
    }

    /// Returns the task that waits for all records to be acknowledged, if they are.
    pub(super) fn settled(&mut self) -> Option<Waker> {
        if self.in_flight.records() == 0 { self.settling.take() } else { None }
    }

    pub(super) fn is_complete(&self) -> bool {
        self.ended && self.prefix == self.numbered
    }

    #[inline]
    pub(super) fn is_acknowledged(&self, number: u64) -> bool {
        number < self.prefix || (!self.islands.is_empty() && self.is_in_island(number))
    }

    fn is_in_island(&self, number: u64) -> bool {
        self.islands.range(..=number).next_back().is_some_and(|(_, run)| number < run.end)
    }

    /// Marks an unacknowledged number as acknowledged. Returns true if the prefix has become
    /// longer.
    #[inline]
    pub(super) fn insert(&mut self, number: u64, position: &RecordPosition) -> bool {
        // The common case, one record after another, does not access the map.
        if number == self.prefix && self.islands.is_empty() {
            self.prefix += 1;
            self.until = None;
            self.position = Some(position.clone());
            return true;
        }
        let (end, last) = match self.islands.remove(&(number + 1)) {
            Some(next) => (next.end, next.last),
            None => (number + 1, position.clone()),
        };
        if number == self.prefix {
            self.prefix = end;
            self.until = None;
            self.position = Some(last);
            return true;
        }
        match self.islands.range_mut(..number).next_back() {
            Some((_, run)) if run.end == number => *run = Island { end, last },
            _ => {
                self.islands.insert(number, Island { end, last });
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unacknowledged_record_costs_no_memory_for_those_after_it() {
        let mut state = WatermarkState { numbered: 1001, ..WatermarkState::default() };
        let position = || RecordPosition { number: SequenceNumber::of_digits(b"7"), part: None };
        for number in 1..=1000 {
            assert!(!state.insert(number, &position()));
        }
        assert_eq!((state.islands.len(), state.prefix), (1, 0));
        assert!(state.insert(0, &position()));
        assert_eq!((state.islands.len(), state.prefix), (0, 1001));
    }
}
