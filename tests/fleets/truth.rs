//! What is true in a simulated world, and the promises that it is held to.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use kinestream::{Checkpoint, SequenceNumber, ShardId};
use tokio::time::Instant;

use crate::link::{Health, Life};

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
    /// A position goes back only where the store has lost data.
    NeverBackwards,
    /// No two workers read a shard in the same epoch.
    OneReader,
    /// Epochs go back only as long as their reader cannot know: see `records.rs`.
    Fencing,
    /// Nobody reads when its leases may be another's.
    OnlyWhileValid,
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
    /// Shares differ by one at most.
    Evenness,
    /// One worker lists for all.
    FewListings,
    /// Kinesis refuses nothing for being asked wrongly.
    CallLimits,
    /// Only what no retry cures is told.
    FewErrors,
    /// After the end no call and no task is left.
    NothingLeftRunning,
}

/// A promise that was broken, and the story of how.
#[derive(Debug)]
pub(crate) struct Broken {
    pub(crate) promise: Promise,
    pub(crate) detail: String,
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
    /// Of each record, whether somebody has finished it.
    pub(crate) records: Vec<bool>,
    /// The highest epoch in which a record was yielded.
    pub(crate) top: u64,
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
    /// When its worker gave it back.
    pub(crate) released: Option<Instant>,
    /// There is a later epoch.
    pub(crate) is_over: bool,
}

/// Everything that is true. Its clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Truth(Arc<Mutex<Facts>>);

#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) began: Instant,
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
    /// By how much the clock on the wall was moved.
    pub(crate) wall_moved: Duration,
    /// The store has lost data.
    pub(crate) lost_data: bool,
    /// The store's clock was moved.
    pub(crate) clock_moved: bool,
    trace: Vec<String>,
    broken: Option<Broken>,
}

impl Truth {
    pub(crate) fn new(shards: usize) -> Self {
        Self(Arc::new(Mutex::new(Facts {
            began: Instant::now(),
            shards: (0..shards).map(|_| Shard::default()).collect(),
            places: BTreeMap::new(),
            tenancies: BTreeMap::new(),
            offers: BTreeMap::new(),
            bases: BTreeMap::new(),
            lives: Vec::new(),
            store: Health::Well,
            wall_moved: Duration::ZERO,
            lost_data: false,
            clock_moved: false,
            trace: Vec::new(),
            broken: None,
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
        self.lock().broken.is_some()
    }

    pub(crate) fn breaks(&self, promise: Promise, detail: fmt::Arguments<'_>) {
        self.lock().breaks(promise, detail);
    }

    /// The end of the story.
    pub(crate) fn end(&self) -> (Vec<String>, Option<Broken>) {
        let mut facts = self.lock();
        (std::mem::take(&mut facts.trace), facts.broken.take())
    }
}

impl Facts {
    pub(crate) fn tell(&mut self, line: fmt::Arguments<'_>) {
        let at = self.began.elapsed();
        self.trace.push(format!("{:9.3} s  {line}", at.as_secs_f64()));
    }

    /// The first broken promise counts: what follows may be its consequence.
    pub(crate) fn breaks(&mut self, promise: Promise, detail: fmt::Arguments<'_>) {
        self.tell(format_args!("BROKEN {promise:?}: {detail}"));
        if self.broken.is_none() {
            self.broken = Some(Broken { promise, detail: detail.to_string() });
        }
    }

    pub(crate) fn put(&mut self, shard: usize, number: SequenceNumber) {
        let records = &mut self.shards[shard].records;
        self.places.insert(number, (shard, records.len()));
        records.push(false);
    }

    /// A record is finished by whoever reads in this epoch.
    pub(crate) fn finish(&mut self, Place { shard, number, epoch }: Place) {
        self.shards[shard].records[number] = true;
        if let Some(tenancy) = self.tenancies.get_mut(&(shard, epoch)) {
            tenancy.finished[number - tenancy.first].get_or_insert_with(Instant::now);
        }
    }

    /// How many records of its shard a checkpoint has passed.
    pub(crate) fn passed(&self, shard: usize, checkpoint: Option<&Checkpoint>) -> usize {
        match checkpoint {
            Some(Checkpoint::AfterSequence { sequence_number, .. }) => {
                let mut before = self.places.range(..=sequence_number).rev().map(|found| found.1);
                before.find(|place| place.0 == shard).map_or(0, |place| place.1 + 1)
            }
            Some(Checkpoint::ShardEnd) => self.shards[shard].records.len(),
            _ => 0,
        }
    }
}

pub(crate) fn index_of(id: &ShardId) -> usize {
    id.as_str()[8..].parse().expect("the name of a shard of the model")
}
