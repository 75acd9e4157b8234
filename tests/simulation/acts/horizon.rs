//! The retention of the records of an act, and the losses that a consumer reports.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use futures::StreamExt;
use kinestream::testing::{Kinesis, Shard, Stream};
use kinestream::{Checkpoint, Consumer, Event, SequenceNumber};
use tokio::time::Instant;

use super::Act;
use crate::truth::{Truth, index_of};

pub(super) const HOUR: Duration = Duration::from_secs(3600);

/// The shortest retention period of a stream.
pub(super) const DAY: Duration = Duration::from_secs(24 * 3600);

/// The maximum clock skew: a stored time is compared with times of other hosts.
pub(super) const CLOCK_SKEW: Duration = Duration::from_secs(5 * 60);

/// The time for which a reader that has read everything must be polled to be known to have received
/// a response that shows it. It includes throttled calls and occupied shards.
pub(super) const TIP_AFTER: Duration = Duration::from_secs(150);

/// The time for which a reader that was at the tip knows that nothing is lost: a small part of the
/// shortest period.
const TIP_FOR: Duration = HOUR;

/// The records of an act by shard, and which of them have been trimmed. Clones share the state.
#[derive(Clone)]
pub(super) struct Horizon(Arc<Mutex<State>>);

struct State {
    kinesis: Kinesis,
    orders: Stream,
    truth: Truth,
    /// The retention periods, each with the time from which it applies.
    periods: Vec<(SystemTime, Duration)>,
    /// The shard of each record and its index there, by the number in its payload.
    places: Vec<(usize, usize)>,
    /// The arrival times of the records of each shard.
    arrivals: BTreeMap<usize, Vec<SystemTime>>,
    /// The number of records of each shard that were trimmed regardless of their age.
    trimmed: BTreeMap<usize, usize>,
    /// The trims: the time, the shard, and the number of its records that had been trimmed by then.
    removals: Vec<(SystemTime, usize, usize)>,
    gaps: Vec<Gap>,
    tips: BTreeMap<usize, Tip>,
}

/// The total time for which a reader that has read the whole shard was polled, and the time of the
/// last poll.
#[derive(Clone, Copy)]
struct Tip {
    polled: Duration,
    until: Instant,
}

/// A reported loss.
#[derive(Debug, Clone)]
pub(super) struct Gap {
    pub(super) shard: usize,
    /// The number of records up to the position at which records are lost; `None` if the position
    /// names no record.
    pub(super) passed: Option<usize>,
    /// The number of records that had been trimmed at the time of the report. If the position names
    /// no record, only its time shows the loss, and the clocks of hosts may differ.
    pub(super) left: usize,
    pub(super) position: Checkpoint,
    /// The reader could not know that nothing was lost, even if no record was.
    pub(super) is_excused: bool,
}

impl Horizon {
    pub(super) fn new(act: &Act, period: Duration) -> Self {
        act.set_retention(period);
        Self(Arc::new(Mutex::new(State {
            kinesis: act.kinesis.clone(),
            orders: act.orders.clone(),
            truth: act.truth.clone(),
            periods: vec![(SystemTime::UNIX_EPOCH, period)],
            places: Vec::new(),
            arrivals: BTreeMap::new(),
            trimmed: BTreeMap::new(),
            removals: Vec::new(),
            gaps: Vec::new(),
            tips: BTreeMap::new(),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nothing panics under the lock")
    }

    /// Puts the next record with this arrival time.
    pub(super) fn put_at(&self, shard: &Shard, arrival: SystemTime) -> usize {
        self.put_long_at(shard, arrival, 0)
    }

    /// Puts the next record with this arrival time, and with this number of leading zeros in its
    /// payload.
    pub(super) fn put_long_at(&self, shard: &Shard, arrival: SystemTime, zeros: usize) -> usize {
        let mut state = self.lock();
        let number = state.places.len();
        shard.put_at(arrival, "0".repeat(zeros) + &number.to_string());
        let arrivals = state.arrivals.entry(shard.index()).or_default();
        arrivals.push(arrival);
        let place = arrivals.len() - 1;
        state.tips.remove(&shard.index());
        state.places.push((shard.index(), place));
        let age = state.kinesis.now().duration_since(arrival).unwrap_or_default();
        state.truth.log(format_args!("put: {number} into shard {}, {age:?} old", shard.index()));
        number
    }

    pub(super) fn lower(&self, period: Duration) {
        let mut state = self.lock();
        state.truth.log(format_args!("the retention period is {period:?}"));
        let now = state.kinesis.now();
        state.periods.push((now, period));
        state.kinesis.set_retention(period);
    }

    pub(super) fn trim(&self, shard: &Shard, records: usize) {
        let mut state = self.lock();
        state.truth.log(format_args!("shard {} is trimmed to {records}", shard.index()));
        shard.trim(records);
        let trimmed = state.trimmed.entry(shard.index()).or_default();
        *trimmed = records.max(*trimmed);
        let now = state.kinesis.now();
        let left = state.left(shard.index(), now);
        state.removals.push((now, shard.index(), left));
    }

    /// Returns the time at which a record was trimmed, if it was.
    pub(super) fn left_at(&self, shard: usize, place: usize) -> Option<SystemTime> {
        let state = self.lock();
        let removed = state.removals.iter().find(|(_, of, left)| *of == shard && *left > place);
        let aged = state.aged_at(*state.arrivals.get(&shard)?.get(place)?);
        removed.map(|(at, ..)| *at).into_iter().chain(aged).min()
    }

    /// Returns the shard of a record and its index there.
    pub(super) fn place(&self, number: usize) -> (usize, usize) {
        self.lock().places[number]
    }

    pub(super) fn shards(&self) -> Vec<usize> {
        self.lock().arrivals.keys().copied().collect()
    }

    /// Returns the number of records of a shard up to a position, if the position names a record.
    pub(super) fn passed(&self, shard: usize, checkpoint: &Checkpoint) -> Option<usize> {
        let state = self.lock();
        match checkpoint {
            Checkpoint::AfterSequenceNumber { sequence_number: number, .. }
            | Checkpoint::CaughtUp { after: Some(number), .. } => Some(state.passed(shard, number)),
            _ => None,
        }
    }

    /// Returns [`Horizon::passed`] for all stored positions.
    pub(super) fn passed_by(&self, stored: &BTreeMap<usize, Checkpoint>) -> BTreeMap<usize, usize> {
        let passed = |(shard, at): (&usize, &Checkpoint)| Some((*shard, self.passed(*shard, at)?));
        stored.iter().filter_map(passed).collect()
    }

    pub(super) fn arrivals(&self, shard: usize) -> Vec<SystemTime> {
        self.lock().arrivals.get(&shard).cloned().unwrap_or_default()
    }

    /// Returns the number of trimmed records of a shard.
    pub(super) fn left(&self, shard: usize) -> usize {
        let state = self.lock();
        state.left(shard, state.kinesis.now())
    }

    /// Registers that a reader that has read the whole shard was polled for this time.
    pub(super) fn polled_at_tip(&self, shard: usize, time: Duration) {
        let mut state = self.lock();
        let until = Instant::now();
        let tip = state.tips.entry(shard).or_insert(Tip { polled: Duration::ZERO, until });
        *tip = Tip { polled: tip.polled + time, until };
    }

    /// Returns true if a reader cannot know that nothing behind its first `passed` records was
    /// lost, although nothing was: more records had arrived, or the shard was trimmed up to there,
    /// or the reader was not at the tip shortly before.
    pub(super) fn excuses(&self, shard: usize, passed: usize) -> bool {
        self.lock().excuses(shard, passed)
    }

    /// Returns the losses that were reported since the last reader started.
    pub(super) fn gaps(&self, shard: usize) -> Vec<Gap> {
        self.lock().gaps.iter().filter(|gap| gap.shard == shard).cloned().collect()
    }

    /// Registers each loss at the time at which a new reader reports it.
    pub(super) fn listen(&self, consumer: &Consumer) {
        let mut state = self.lock();
        (state.gaps, state.tips) = Default::default();
        drop(state);
        let (mut events, horizon) = (consumer.events(), self.clone());
        tokio::spawn(async move {
            while let Some(event) = events.next().await {
                if let Event::Gap { shard_id, after, position } = event {
                    horizon.lock().note(index_of(&shard_id), after.as_ref(), position);
                }
            }
        });
    }
}

impl State {
    /// Returns the number of records of a shard that have been trimmed at this time.
    fn left(&self, shard: usize, now: SystemTime) -> usize {
        let period = self.periods.last().map_or(Duration::ZERO, |(_, period)| *period);
        let aged = |arrival: &&SystemTime| **arrival + period < now;
        let arrivals = self.arrivals.get(&shard).into_iter().flatten();
        let trimmed = self.trimmed.get(&shard).copied().unwrap_or_default();
        arrivals.take_while(aged).count().max(trimmed)
    }

    /// Returns when a record with this arrival time exceeded the retention period.
    fn aged_at(&self, arrival: SystemTime) -> Option<SystemTime> {
        let later = self.periods[1..].iter().map(|(from, _)| *from);
        let ends = later.chain([self.kinesis.now()]);
        let mut aged = self.periods.iter().zip(ends).filter_map(|((from, period), end)| {
            let at = arrival + *period;
            (at < end).then_some(at.max(*from))
        });
        aged.next()
    }

    fn passed(&self, shard: usize, after: &SequenceNumber) -> usize {
        // The position of a shard that is read by enhanced fan-out need not be that of a record.
        self.orders.shard(shard).sequence_numbers().partition_point(|number| number <= after)
    }

    fn excuses(&self, shard: usize, passed: usize) -> bool {
        let arrived = self.arrivals.get(&shard).map_or(0, Vec::len);
        let trimmed = self.trimmed.get(&shard).copied().unwrap_or_default();
        let is_at_tip = |tip: &Tip| tip.polled >= TIP_AFTER && tip.until.elapsed() < TIP_FOR;
        arrived > passed || trimmed >= passed || !self.tips.get(&shard).is_some_and(is_at_tip)
    }

    fn note(&mut self, shard: usize, after: Option<&SequenceNumber>, position: Checkpoint) {
        let passed = after.map(|after| self.passed(shard, after));
        let skew = if passed.is_none() { CLOCK_SKEW } else { Duration::ZERO };
        let left = self.left(shard, self.kinesis.now() + skew);
        self.truth.log(format_args!(
            "gap: shard {shard} after {passed:?} records, {left} trimmed; {position}"
        ));
        let is_excused = passed.is_none_or(|passed| self.excuses(shard, passed));
        self.gaps.push(Gap { shard, passed, left, position, is_excused });
    }
}
