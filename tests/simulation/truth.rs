//! What is true in a simulated world, and the promises that it is held to.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kinestream::{Checkpoint, SequenceNumber, ShardId};
use tokio::time::Instant;

use crate::retention::Lost;
use crate::seeds::Story;
use crate::trace::Told;
use crate::world::BEGINNING;

/// What must hold, whatever happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Promise {
    /// Every record put since the start is read and finished in the end.
    NothingIsLost,
    /// In a shard each record follows the one before it.
    Order,
    /// A shard begins when all its parents are finished.
    ParentsFirst,
    /// No position is stored beyond a record that is not finished.
    NotPastUnfinished,
    /// No reader stores a position behind one that it has stored.
    NeverBackwards,
    /// What was saved, or had the time to be, does not come again.
    FewRepeats,
    /// A finished shard is stored as finished, and never read again.
    EndsAreKept,
    /// No record from before the start comes.
    NotBeforeTheStart,
    /// No more records of a shard are with the caller than was allowed.
    InFlight,
    /// Kinesis refuses nothing for being asked too often or wrongly.
    CallLimits,
    /// No more is buffered than was allowed.
    MemoryBudget,
    /// The stream goes on when what was wrong is over.
    Progress,
    /// Only what no retry cures is told, and only once.
    FewErrors,
    /// Each panic in code of the caller's is told as an event.
    PanicsAreReported,
    /// Records that are lost are reported before what comes behind them, once, and no others.
    LossesAreReported,
    /// A shard that is not read does not keep its lease.
    UnreadAreReleased,
    /// A shard that the in-flight limit holds is reported, and no other.
    StallsAreReported,
    /// The health of a consumer is that of its handler.
    HealthIsTrue,
    /// Where each position is to be saved before the next record, it is.
    EachIsSaved,
    /// After the end no call and no task is left.
    NothingLeftRunning,
}

/// Where a record stands: its shard, and its place there.
pub(crate) type Place = (usize, usize);

/// One record.
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each may hold whatever the others do")]
pub(crate) struct Fact {
    pub(crate) size: usize,
    /// The caller has finished with it.
    pub(crate) finished: bool,
    /// The position after it, as it was delivered with it.
    pub(crate) checkpoint: Option<Checkpoint>,
    /// When the caller of this reader had finished with it.
    pub(crate) finished_here: Option<Instant>,
    /// It must be read: it was put after the start.
    pub(crate) required: bool,
    /// It must not be read: it was put before a start at the latest.
    pub(crate) old: bool,
    /// It has left retention unread.
    pub(crate) lost: bool,
    pub(crate) arrival: SystemTime,
}

impl Fact {
    pub(crate) fn is_passed(&self) -> bool {
        self.lost || self.finished
    }
}

#[derive(Debug, Default)]
pub(crate) struct Shard {
    pub(crate) parents: Vec<usize>,
    pub(crate) records: Vec<Fact>,
    /// The first record that was ever read, which is the first that counts.
    pub(crate) start: Option<usize>,
    /// How many records were stored as passed when this reader began.
    pub(crate) base: Option<usize>,
    /// The time up to which it was stored as caught up when this reader began.
    pub(crate) caught_up: Option<SystemTime>,
    /// How many of its records have left retention.
    pub(crate) trimmed: usize,
    /// It has left retention.
    pub(crate) expired: bool,
    /// It had a stored position when a reader began.
    pub(crate) was_stored: bool,
    /// It was stored as finished when this reader began.
    pub(crate) ended: bool,
    pub(crate) lost: Lost,
}

impl Shard {
    /// The first record before `end` that counts and is not finished.
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

/// Everything that is true. Its clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Truth(Arc<Mutex<Facts>>);

#[derive(Debug)]
pub(crate) struct Facts {
    told: Told,
    pub(crate) shards: Vec<Shard>,
    /// By sequence number, and by number within a packed record.
    places: BTreeMap<(SequenceNumber, u64), Place>,
    /// The application has begun: what is put from now on is to be read.
    pub(crate) started: bool,
    /// What is put now comes before a start at the latest.
    pub(crate) too_early: bool,
    began: Instant,
}

impl Truth {
    pub(crate) fn new(shards: usize) -> Self {
        let shards = (0..shards).map(|_| Shard::default()).collect();
        Self(Arc::new(Mutex::new(Facts {
            told: Told::new(),
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

    /// A line of the story.
    pub(crate) fn tell(&self, line: fmt::Arguments<'_>) {
        self.lock().tell(line);
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.lock().told.is_broken()
    }

    pub(crate) fn breaks(&self, promise: Promise, detail: fmt::Arguments<'_>) {
        self.lock().breaks(promise, detail);
    }
}

impl Facts {
    pub(crate) fn tell(&mut self, line: fmt::Arguments<'_>) {
        self.told.tell(line);
    }

    pub(crate) fn tell_at(&mut self, at: Instant, line: fmt::Arguments<'_>) {
        self.told.tell_at(at, line);
    }

    pub(crate) fn breaks(&mut self, promise: Promise, detail: fmt::Arguments<'_>) {
        self.told.breaks(&promise, detail);
    }

    /// The end of the story.
    pub(crate) fn end(&mut self, calls: usize) -> Story {
        let records = self.shards.iter().map(|shard| shard.records.len()).sum();
        self.told.end(records, calls)
    }

    /// A record, or a part of a packed one.
    pub(crate) fn put(&mut self, shard: usize, number: SequenceNumber, part: u64, size: usize) {
        let arrival = self.now();
        let records = &mut self.shards[shard].records;
        self.places.insert((number, part), (shard, records.len()));
        let (required, old) = (self.started, self.too_early);
        records.push(Fact {
            size,
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

    pub(crate) fn finish(&mut self, (shard, place): Place) {
        let fact = &mut self.shards[shard].records[place];
        fact.finished = true;
        fact.finished_here.get_or_insert_with(Instant::now);
    }

    /// A record is finished in an epoch that is over: its shard has been opened again since, and does
    /// not count it.
    pub(crate) fn finish_late(&mut self, (shard, place): Place) {
        self.shards[shard].records[place].finished = true;
    }

    /// A shard is read again from this record.
    pub(crate) fn begin_again(&mut self, (shard, place): Place) {
        for fact in &mut self.shards[shard].records[place..] {
            fact.finished_here = None;
        }
    }

    pub(crate) fn all_finished(&self) -> bool {
        self.shards.iter().all(Shard::is_finished)
    }

    /// How many records of its shard a checkpoint has passed; `None` for a starting position.
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

    /// Keeps the checkpoint that a record is delivered with, which must lie just after the record.
    pub(crate) fn delivered(&mut self, (shard, place): Place, checkpoint: Checkpoint) {
        if self.passed(shard, &checkpoint) != Some(place + 1) {
            self.breaks(
                Promise::NothingIsLost,
                format_args!("record {place} of shard {shard} has checkpoint {checkpoint}"),
            );
        }
        self.shards[shard].records[place].checkpoint = Some(checkpoint);
    }

    /// Returns the checkpoint of the last record of each shard that is finished with all records before
    /// it: what the caller's own database holds.
    pub(crate) fn database(&self) -> BTreeMap<ShardId, Checkpoint> {
        let last = |shard: &Shard| {
            let read = &shard.records[shard.start?..];
            read.iter().take_while(|fact| fact.finished).last()?.checkpoint.clone()
        };
        let shards = self.shards.iter().enumerate();
        shards.filter_map(|(index, shard)| Some((id_of(index), last(shard)?))).collect()
    }

    /// How many records of its shard are not behind this sequence number.
    pub(crate) fn places_of(&self, shard: usize, number: &SequenceNumber) -> usize {
        self.parts_of(shard, number, None)
    }

    fn parts_of(&self, shard: usize, number: &SequenceNumber, part: Option<u64>) -> usize {
        let last = (number.clone(), part.unwrap_or(u64::MAX));
        let mut before = self.places.range(..=last).rev().map(|found| found.1);
        before.find(|place| place.0 == shard).map_or(0, |place| place.1 + 1)
    }

    /// A position is being stored.
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

    /// A reader begins at these positions.
    pub(crate) fn begin_reader(&mut self, positions: &BTreeMap<ShardId, Checkpoint>) {
        for (index, shard) in self.shards.iter_mut().enumerate() {
            (shard.base, shard.caught_up, shard.ended) = (None, None, false);
            shard.lost.is_reported = false;
            // Without a position, as after a start that named it and read nothing, there is nothing to compare.
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
            // A caller may name a position behind what was lost behind the stored one.
            let lost = &mut self.shards[shard].lost;
            lost.is_due &= base.is_none_or(|base| base < lost.end);
            self.shards[shard].ended = *checkpoint == Checkpoint::ShardEnd;
            if let Checkpoint::CaughtUp { until, .. } = checkpoint {
                self.shards[shard].caught_up = Some(*until);
            }
        }
    }

    /// The reader that has just begun has an empty store. The next one finds no position of a shard of which this
    /// one reads nothing.
    pub(crate) fn forget_stored(&mut self) {
        self.shards.iter_mut().for_each(|shard| shard.was_stored = false);
    }

    /// How many records of a shard have been finished, one behind the other, for so long.
    pub(crate) fn finished_for(&self, shard: usize, time: Duration) -> usize {
        let shard = &self.shards[shard];
        let Some(base) = shard.base.or(shard.start) else { return 0 };
        let long_finished = |fact: &Fact| fact.finished_here.is_some_and(|at| at.elapsed() >= time);
        let records = &shard.records[base..];
        let passed = records.iter().take_while(|fact| fact.lost || long_finished(fact)).count();
        // A reader passes lost records by finishing one behind them.
        let last = records[..passed].iter().rposition(long_finished);
        base + last.map_or(0, |last| last + 1)
    }
}

pub(crate) fn id_of(index: usize) -> ShardId {
    format!("shardId-{index:012}").parse().expect("the name of a shard of the model")
}

pub(crate) fn index_of(id: &ShardId) -> usize {
    id.as_str()[8..].parse().expect("the name of a shard of the model")
}
