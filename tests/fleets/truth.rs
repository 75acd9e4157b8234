//! What is true in a simulated world, and the promises that it is held to.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use kinestream::{Checkpoint, SequenceNumber, ShardId};
use tokio::time::Instant;

use crate::link::{Health, Life};
use crate::seeds::Story;
use crate::trace::Told;

/// What must hold, whatever happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Promise {
    /// Every record is read and finished in the end, and none is passed before.
    NothingIsLost,
    /// In a shard each record follows the one before it, as long as one worker has the lease.
    Order,
    /// A shard begins when all its parents are finished, whoever read them.
    ParentsFirst,
    /// No position is stored beyond a record that is not finished.
    NotPastUnfinished,
    /// A shard of which the lease or the position cannot be read is not read.
    Damaged,
    /// A position goes back only where the store has lost data.
    NeverBackwards,
    /// No two workers read a shard in the same epoch.
    OneReader,
    /// Epochs go back only as long as their reader cannot know: see `records.rs`.
    Fencing,
    /// Nobody reads when its leases may be another's.
    OnlyWhileValid,
    /// What is told happens, and what happens is told.
    Told,
    /// Who has sought reads nothing of before.
    Sought,
    /// Nothing is taken from one whose lease is another's.
    NoZombies,
    /// A shard is handed over when its records are finished, or after the time for that.
    Handover,
    /// What was saved, or had the time to be, does not come again.
    FewRepeats,
    /// What is to be read is read in time.
    Progress,
    /// A fleet at rest makes no moves.
    Rest,
    /// A worker does not acquire a shard again at once that it could not read.
    FailedRests,
    /// Shares differ by one at most.
    Evenness,
    /// One worker lists for all.
    FewListings,
    /// Kinesis refuses nothing for being asked wrongly.
    CallLimits,
    /// Only what no retry cures is told.
    FewErrors,
    /// Each panic in the store and in the client is reported as an event.
    PanicsAreReported,
    /// After the end no call and no task is left.
    NothingLeftRunning,
}

/// Where a record stands, and in which epoch it was yielded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) shard: usize,
    pub(crate) number: usize,
    pub(crate) epoch: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Shard {
    pub(crate) parents: Vec<usize>,
    /// Of each record, whether somebody has finished it since the shard was moved last, or it was
    /// passed over then.
    pub(crate) records: Vec<bool>,
    /// When each of them was put.
    pub(crate) arrivals: Vec<SystemTime>,
    /// Of each record, whether it was ever done with.
    pub(crate) ever: Vec<bool>,
    /// The highest epoch in which a record was yielded.
    pub(crate) top: u64,
    /// The first epoch that counts, since the shard was moved.
    pub(crate) since: u64,
    /// Which of all moves was its last.
    pub(crate) moved: u64,
    /// Its lease could not be read once. Whoever replaced it did not know its owner.
    pub(crate) had_damaged_lease: bool,
}

impl Shard {
    pub(crate) fn is_finished(&self) -> bool {
        self.records.iter().all(|finished| *finished)
    }
}

/// What was yielded of a shard in one epoch.
#[derive(Debug)]
pub(crate) struct Tenancy {
    pub(crate) worker: usize,
    /// The place of the first record.
    pub(crate) first: usize,
    /// When each record was finished in this epoch.
    pub(crate) finished: Vec<Option<Instant>>,
    /// Its caller dropped the stream.
    pub(crate) is_dropped: bool,
    /// When its worker gave it back.
    pub(crate) released: Option<Instant>,
    /// There is a later epoch.
    pub(crate) is_over: bool,
}

/// Everything that is true. Its clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Truth(Arc<Mutex<Facts>>);

#[derive(Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(crate) struct Facts {
    pub(crate) began: Instant,
    told: Told,
    pub(crate) shards: Vec<Shard>,
    pub(crate) places: BTreeMap<SequenceNumber, (usize, usize)>,
    /// By shard and epoch.
    pub(crate) tenancies: BTreeMap<(usize, u64), Tenancy>,
    /// When the owner of an epoch was told to hand over.
    pub(crate) offers: BTreeMap<(usize, u64), Instant>,
    /// How many records were stored as passed when an epoch began.
    pub(crate) bases: BTreeMap<(usize, u64), usize>,
    /// Every worker that there ever was.
    pub(crate) lives: Vec<Life>,
    /// How the store is for all.
    pub(crate) store: Health,
    /// How often positions were moved.
    pub(crate) moves: u64,
    /// The last epoch of before everything was cleared.
    pub(crate) cleared: u64,
    /// The store has lost data.
    pub(crate) lost_data: bool,
    /// The store's clock was moved.
    pub(crate) clock_moved: bool,
    /// The shards that cannot be read now, and the last epoch of each before.
    pub(crate) damaged: BTreeMap<usize, u64>,
    /// There was one.
    pub(crate) had_damage: bool,
    /// Calls were blocked for so long that a shard may have failed.
    pub(crate) were_blocked: bool,
}

impl Truth {
    pub(crate) fn new(shards: usize) -> Self {
        Self(Arc::new(Mutex::new(Facts {
            began: Instant::now(),
            told: Told::new(),
            shards: (0..shards).map(|_| Shard::default()).collect(),
            places: BTreeMap::new(),
            tenancies: BTreeMap::new(),
            offers: BTreeMap::new(),
            bases: BTreeMap::new(),
            lives: Vec::new(),
            store: Health::Well,
            moves: 0,
            cleared: 0,
            lost_data: false,
            clock_moved: false,
            damaged: BTreeMap::new(),
            had_damage: false,
            were_blocked: false,
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

    pub(crate) fn breaks(&mut self, promise: Promise, detail: fmt::Arguments<'_>) {
        self.told.breaks(&promise, detail);
    }

    /// The end of the story.
    pub(crate) fn end(&mut self, calls: usize) -> Story {
        let records = self.shards.iter().map(|shard| shard.records.len()).sum();
        self.told.end(records, calls)
    }

    pub(crate) fn put(&mut self, shard: usize, number: SequenceNumber, arrival: SystemTime) {
        let facts = &mut self.shards[shard];
        self.places.insert(number, (shard, facts.records.len()));
        facts.records.push(false);
        facts.ever.push(false);
        facts.arrivals.push(arrival);
    }

    /// A record is finished by whoever reads in this epoch.
    pub(crate) fn finish(&mut self, Place { shard, number, epoch }: Place) {
        let facts = &mut self.shards[shard];
        facts.records[number] |= epoch >= facts.since;
        facts.ever[number] = true;
        if let Some(tenancy) = self.tenancies.get_mut(&(shard, epoch)) {
            tenancy.finished[number - tenancy.first].get_or_insert_with(Instant::now);
        }
    }

    /// A worker's caller reads a shard no more.
    pub(crate) fn drop_stream(&mut self, worker: usize, shard: usize) {
        for (_, tenancy) in self.tenancies.range_mut((shard, 0)..=(shard, u64::MAX)) {
            tenancy.is_dropped |= tenancy.worker == worker;
        }
    }

    /// How many records of its shard a checkpoint has passed.
    pub(crate) fn passed(&self, shard: usize, checkpoint: Option<&Checkpoint>) -> usize {
        match checkpoint {
            Some(
                Checkpoint::AfterSequenceNumber { sequence_number, .. }
                | Checkpoint::CaughtUp { after: Some(sequence_number), .. },
            ) => {
                let mut before = self.places.range(..=sequence_number).rev().map(|found| found.1);
                before.find(|place| place.0 == shard).map_or(0, |place| place.1 + 1)
            }
            Some(Checkpoint::ShardEnd) => self.shards[shard].records.len(),
            Some(Checkpoint::AtTimestamp(time) | Checkpoint::CaughtUp { until: time, .. }) => {
                self.shards[shard].arrivals.partition_point(|arrival| arrival < time)
            }
            _ => 0,
        }
    }
}

pub(crate) fn index_of(id: &ShardId) -> usize {
    id.as_str()[8..].parse().expect("the name of a shard of the model")
}
