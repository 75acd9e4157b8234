//! The expected state of a simulated environment, and the promises that are checked against it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kinestream::{Checkpoint, Record, SequenceNumber, ShardId};
use tokio::time::Instant;

use crate::retention::Lost;
use crate::seeds::SeedResult;
use crate::trace::Trace;
use crate::world::BEGINNING;

/// A guarantee of the crate that must hold under all faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Promise {
    /// Every record that is put after the start is read and finished eventually.
    NothingIsLost,
    /// The records of a shard are delivered in order.
    Order,
    /// Each record is delivered with the payload, partition key and arrival time that it was put
    /// with.
    NothingIsAltered,
    /// A consumer falls back from CBOR to JSON at most once, and only for the reason that the server
    /// gives.
    FallbacksAreTrue,
    /// A shard is delivered only after all its parents are finished.
    ParentsFirst,
    /// No stored position is past an unfinished record.
    NotPastUnfinished,
    /// No reader stores a position that precedes one that it has stored.
    NeverBackwards,
    /// Records that were saved, or that had the time to be saved, are not delivered again.
    FewRepeats,
    /// The end of a finished shard is stored, and the shard is never read again.
    EndsAreKept,
    /// No record from before the start is delivered.
    NotBeforeTheStart,
    /// No record that arrived after the ending position is delivered.
    NotAfterTheEnding,
    /// The caller never holds more records of a shard than the in-flight limit allows.
    InFlight,
    /// No call exceeds the rate limits of Kinesis or is malformed.
    CallLimits,
    /// The buffered bytes stay within the memory budget.
    MemoryBudget,
    /// Delivery resumes after the faults are over.
    Progress,
    /// Only errors that no retry can resolve are yielded, each once.
    FewErrors,
    /// Each panic in code of the caller is reported as an event.
    PanicsAreReported,
    /// Each loss of records is reported once, before the next delivered record, and nothing else is
    /// reported as a loss.
    LossesAreReported,
    /// A shard that cannot be read releases its lease.
    UnreadAreReleased,
    /// Each shard that the in-flight limit blocks is reported as stalled, and no other shard is.
    StallsAreReported,
    /// The health that the consumer reports matches the state of the handler.
    HealthIsTrue,
    /// With a checkpoint interval of zero, each position is saved before the next record is
    /// delivered.
    EachIsSaved,
    /// No call and no task is left after the end.
    NothingLeftRunning,
}

/// The shard of a record, and its index in that shard.
pub(crate) type Place = (usize, usize);

/// The content of a record, as it was put.
#[derive(Debug)]
pub(crate) struct Content {
    /// The value of each byte of the payload, and their number.
    byte: u8,
    pub(crate) size: usize,
    pub(crate) key: String,
}

impl Content {
    /// Returns the content of a record with the key that [`kinestream::testing::Shard::put`] sets.
    /// The byte of the payload depends on `number`.
    pub(crate) fn new(number: usize, size: usize) -> Self {
        Self::with_key("key".to_owned(), number, size)
    }

    pub(crate) fn with_key(key: String, number: usize, size: usize) -> Self {
        Self { byte: number.to_le_bytes()[0], size, key }
    }

    pub(crate) fn data(&self) -> Vec<u8> {
        vec![self.byte; self.size]
    }
}

/// One record.
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is independent of the others")]
pub(crate) struct Fact {
    pub(crate) content: Content,
    /// The caller has finished the record.
    pub(crate) finished: bool,
    /// The checkpoint that was delivered with the record: the position after it.
    pub(crate) checkpoint: Option<Checkpoint>,
    /// The time at which the caller of the current reader finished the record.
    pub(crate) finished_here: Option<Instant>,
    /// The record was put after the start, so it must be delivered.
    pub(crate) required: bool,
    /// The record was put before a start at `Latest`, so it must not be delivered.
    pub(crate) old: bool,
    /// The record was trimmed before it was read.
    pub(crate) lost: bool,
    pub(crate) arrival: SystemTime,
}

impl Fact {
    pub(crate) fn size(&self) -> usize {
        self.content.size
    }

    /// Returns true if the record is delivered as it was put.
    fn is_unaltered(&self, record: &Record) -> bool {
        let Content { byte, size, key } = &self.content;
        record.data().len() == *size
            && record.data().iter().all(|data| data == byte)
            && record.partition_key() == Some(key)
            && record.approximate_arrival().map(millis) == Some(millis(self.arrival))
    }

    pub(crate) fn is_passed(&self) -> bool {
        self.lost || self.finished
    }
}

#[derive(Debug, Default)]
pub(crate) struct Shard {
    pub(crate) parents: Vec<usize>,
    pub(crate) records: Vec<Fact>,
    /// The first record that was ever delivered. Earlier records do not count.
    pub(crate) start: Option<usize>,
    /// The number of records that the stored position had passed when the current reader started.
    pub(crate) base: Option<usize>,
    /// The time up to which the shard was stored as caught up when the current reader started.
    pub(crate) caught_up: Option<SystemTime>,
    /// The number of trimmed records.
    pub(crate) trimmed: usize,
    /// The shard has left retention.
    pub(crate) expired: bool,
    /// The shard had a stored position when a reader started.
    pub(crate) was_stored: bool,
    /// The end of the shard was stored when the current reader started.
    pub(crate) ended: bool,
    pub(crate) lost: Lost,
}

impl Shard {
    /// Returns the first record before `end` that counts and is not finished.
    fn unfinished(&self, end: usize) -> Option<usize> {
        let counts = |place: usize| {
            self.records[place].required || self.start.is_some_and(|start| place >= start)
        };
        let is_open = |place: usize| !self.records[place].finished && !self.records[place].lost;
        (0..end).find(|index| counts(*index) && is_open(*index))
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.unfinished(self.records.len()).is_none()
    }
}

/// The shared expected state. Clones refer to the same state.
#[derive(Debug, Clone)]
pub(crate) struct Truth(Arc<Mutex<Facts>>);

#[derive(Debug)]
pub(crate) struct Facts {
    trace: Trace,
    pub(crate) shards: Vec<Shard>,
    /// The place of each record, by sequence number and by its number within an aggregated record.
    places: BTreeMap<(SequenceNumber, u64), Place>,
    /// The application has started: records that are put from now on must be delivered.
    pub(crate) started: bool,
    /// Records that are put now precede a start at `Latest`.
    pub(crate) too_early: bool,
    began: Instant,
}

impl Truth {
    pub(crate) fn new(shards: usize) -> Self {
        let shards = (0..shards).map(|_| Shard::default()).collect();
        Self(Arc::new(Mutex::new(Facts {
            trace: Trace::new(),
            shards,
            places: BTreeMap::new(),
            started: false,
            too_early: false,
            began: Instant::now(),
        })))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Facts> {
        self.0.lock().expect("nothing panics under the lock")
    }

    /// Adds a line to the trace.
    pub(crate) fn log(&self, line: fmt::Arguments<'_>) {
        self.lock().log(line);
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.lock().trace.is_broken()
    }

    pub(crate) fn breaks(&self, promise: Promise, detail: fmt::Arguments<'_>) {
        self.lock().breaks(promise, detail);
    }
}

impl Facts {
    pub(crate) fn log(&mut self, line: fmt::Arguments<'_>) {
        self.trace.log(line);
    }

    pub(crate) fn log_at(&mut self, at: Instant, line: fmt::Arguments<'_>) {
        self.trace.log_at(at, line);
    }

    pub(crate) fn breaks(&mut self, promise: Promise, detail: fmt::Arguments<'_>) {
        self.trace.breaks(&promise, detail);
    }

    /// Ends the run, and returns its trace and result.
    pub(crate) fn end(&mut self, calls: usize) -> SeedResult {
        let records = self.shards.iter().map(|shard| shard.records.len()).sum();
        self.trace.end(records, calls)
    }

    /// Registers a record, or a user record of an aggregated one.
    pub(crate) fn put(
        &mut self,
        shard: usize,
        number: SequenceNumber,
        part: u64,
        content: Content,
    ) {
        let arrival = self.now();
        let records = &mut self.shards[shard].records;
        self.places.insert((number, part), (shard, records.len()));
        let (required, old) = (self.started, self.too_early);
        records.push(Fact {
            content,
            finished: false,
            checkpoint: None,
            finished_here: None,
            required,
            old,
            lost: false,
            arrival,
        });
    }

    fn now(&self) -> SystemTime {
        UNIX_EPOCH + BEGINNING + self.began.elapsed()
    }

    pub(crate) fn place(&self, number: &SequenceNumber, part: u64) -> Place {
        self.places[&(number.clone(), part)]
    }

    /// Returns the place of a record that is delivered as it was put. A record that is altered
    /// breaks a promise.
    pub(crate) fn place_of(&mut self, record: &Record) -> Option<Place> {
        let number = (record.sequence_number().clone(), record.sub_sequence_number());
        let place = self.places.get(&number).copied();
        let is_unaltered = place.is_some_and(|(shard, place)| {
            record.shard_id() == &id_of(shard)
                && self.shards[shard].records[place].is_unaltered(record)
        });
        if is_unaltered {
            return place;
        }
        self.breaks(
            Promise::NothingIsAltered,
            format_args!(
                "{} delivers record {number:?} ({place:?}) with key {:?}, arrival {:?} and {} bytes",
                record.shard_id(),
                record.partition_key(),
                record.approximate_arrival(),
                record.data().len()
            ),
        );
        None
    }

    pub(crate) fn finish(&mut self, (shard, place): Place) {
        let fact = &mut self.shards[shard].records[place];
        fact.finished = true;
        fact.finished_here.get_or_insert_with(Instant::now);
    }

    /// Finishes a record of an earlier epoch: its shard has been started again since, and the
    /// current epoch does not count it.
    pub(crate) fn finish_late(&mut self, (shard, place): Place) {
        self.shards[shard].records[place].finished = true;
    }

    /// Registers that a shard is read again from this record.
    pub(crate) fn begin_again(&mut self, (shard, place): Place) {
        for fact in &mut self.shards[shard].records[place..] {
            fact.finished_here = None;
        }
    }

    pub(crate) fn all_finished(&self) -> bool {
        self.shards.iter().all(Shard::is_finished)
    }

    /// Returns how many records of the shard a checkpoint has passed; `None` for a starting
    /// position.
    pub(crate) fn passed(&self, shard: usize, checkpoint: &Checkpoint) -> Option<usize> {
        match checkpoint {
            Checkpoint::CaughtUp { after: Some(number), .. } => Some(self.places_of(shard, number)),
            Checkpoint::CaughtUp { after: None, until } => {
                let records = &self.shards[shard].records;
                Some(records.partition_point(|record| record.arrival < *until))
            }
            Checkpoint::AfterSequenceNumber { sequence_number, sub_sequence_number } => {
                Some(self.parts_of(shard, sequence_number, *sub_sequence_number))
            }
            Checkpoint::ShardEnd => Some(self.shards[shard].records.len()),
            _ => None,
        }
    }

    /// Stores the checkpoint that a record is delivered with. It must be the position directly
    /// after the record.
    pub(crate) fn delivered(&mut self, (shard, place): Place, checkpoint: Checkpoint) {
        if self.passed(shard, &checkpoint) != Some(place + 1) {
            self.breaks(
                Promise::NothingIsLost,
                format_args!(
                    "record {place} of shard {shard} is delivered with checkpoint {checkpoint}"
                ),
            );
        }
        self.shards[shard].records[place].checkpoint = Some(checkpoint);
    }

    /// Returns, for each shard, the checkpoint of the last record that is finished together with
    /// all records before it: the content of a database of the caller.
    pub(crate) fn database(&self) -> BTreeMap<ShardId, Checkpoint> {
        let last = |shard: &Shard| {
            let read = &shard.records[shard.start?..];
            read.iter().take_while(|fact| fact.finished).last()?.checkpoint.clone()
        };
        let shards = self.shards.iter().enumerate();
        shards.filter_map(|(index, shard)| Some((id_of(index), last(shard)?))).collect()
    }

    /// Returns how many records of the shard have sequence numbers up to this one.
    pub(crate) fn places_of(&self, shard: usize, number: &SequenceNumber) -> usize {
        self.parts_of(shard, number, None)
    }

    fn parts_of(&self, shard: usize, number: &SequenceNumber, part: Option<u64>) -> usize {
        let last = (number.clone(), part.unwrap_or(u64::MAX));
        let mut before = self.places.range(..=last).rev().map(|found| found.1);
        before.find(|place| place.0 == shard).map_or(0, |place| place.1 + 1)
    }

    /// Checks a position that is being stored.
    pub(crate) fn check_position(&mut self, id: &ShardId, checkpoint: &Checkpoint) {
        let shard = index_of(id);
        let Some(passed) = self.passed(shard, checkpoint) else { return };
        if let Some(place) = self.shards[shard].unfinished(passed) {
            self.breaks(
                Promise::NotPastUnfinished,
                format_args!(
                    "shard {shard} is stored as {checkpoint}, but record {place} is not finished"
                ),
            );
        }
    }

    /// Registers that a reader starts at these positions.
    pub(crate) fn begin_reader(&mut self, positions: &BTreeMap<ShardId, Checkpoint>) {
        for (index, shard) in self.shards.iter_mut().enumerate() {
            (shard.base, shard.caught_up, shard.ended) = (None, None, false);
            shard.lost.is_reported = false;
            // Without a stored position there is nothing to compare. A start at a named position
            // that read nothing leaves none.
            shard.was_stored |= positions.contains_key(&id_of(index));
            shard.lost.is_due &= shard.was_stored;
            for fact in &mut shard.records {
                fact.finished_here = None;
            }
        }
        for (id, checkpoint) in positions {
            let shard = index_of(id);
            let base = self.passed(shard, checkpoint);
            self.shards[shard].base = base;
            // The caller may name a position behind the records that were lost after the stored
            // one.
            let lost = &mut self.shards[shard].lost;
            lost.is_due &= base.is_none_or(|base| base < lost.end);
            self.shards[shard].ended = *checkpoint == Checkpoint::ShardEnd;
            if let Checkpoint::CaughtUp { until, .. } = checkpoint {
                self.shards[shard].caught_up = Some(*until);
            }
        }
    }

    /// Registers that the store of the current reader is empty. The next reader finds no position
    /// for a shard that this reader does not read.
    pub(crate) fn forget_stored(&mut self) {
        self.shards.iter_mut().for_each(|shard| shard.was_stored = false);
    }

    /// Returns the end of the run of records that have been finished for at least `time` without a
    /// gap.
    pub(crate) fn finished_for(&self, shard: usize, time: Duration) -> usize {
        let shard = &self.shards[shard];
        let Some(base) = shard.base.or(shard.start) else { return 0 };
        let long_finished = |fact: &Fact| fact.finished_here.is_some_and(|at| at.elapsed() >= time);
        let records = &shard.records[base..];
        let passed = records.iter().take_while(|fact| fact.lost || long_finished(fact)).count();
        // A reader passes lost records only when it finishes a record behind them.
        let last = records[..passed].iter().rposition(long_finished);
        base + last.map_or(0, |last| last + 1)
    }
}

/// Returns the time as Kinesis has it.
fn millis(time: SystemTime) -> u128 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()
}

pub(crate) fn id_of(index: usize) -> ShardId {
    format!("shardId-{index:012}").parse().expect("shard ids of the model end in a number")
}

pub(crate) fn index_of(id: &ShardId) -> usize {
    id.as_str()[8..].parse().expect("shard ids of the model end in a number")
}
