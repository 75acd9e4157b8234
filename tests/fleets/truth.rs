//! The expected state of a simulated fleet, and the promises that are checked against it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use kinestream::{Checkpoint, SequenceNumber, ShardId};
use tokio::time::Instant;

use crate::late_ends::LateEnd;
use crate::link::{Condition, WorkerState};
use crate::seeds::SeedResult;
use crate::stale_reads::StaleReads;
use crate::trace::Trace;

/// A guarantee of the crate that must hold under all faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Promise {
    /// Every record is read and finished eventually, and none is passed before.
    NothingIsLost,
    /// No record that arrived after the ending position is delivered.
    NotAfterTheEnding,
    /// The records of a shard are delivered in order as long as one worker has the lease.
    Order,
    /// Each record is delivered with the payload, partition key and arrival time that it was put
    /// with.
    NothingIsAltered,
    /// A shard is delivered only after all its parents are finished, by any worker.
    ParentsFirst,
    /// No stored position is past an unfinished record.
    NotPastUnfinished,
    /// A shard is not read while its lease or its position cannot be read.
    Damaged,
    /// A position moves back only if the store has lost data.
    NeverBackwards,
    /// No two workers read a shard in the same epoch.
    OneReader,
    /// A worker delivers in an older epoch only if it cannot know the newer one: see `records.rs`.
    Fencing,
    /// A worker delivers only while its leases are valid.
    OnlyWhileValid,
    /// The events and the status of a worker match its behaviour.
    EventsAreTrue,
    /// After a seek, a worker delivers nothing from before the seek.
    NotBeforeTheSeek,
    /// The store accepts no position from a worker that has lost the lease.
    NoZombies,
    /// A shard is handed off when its records are finished, or after the handoff timeout.
    OrderlyHandoff,
    /// Records that were saved, or that had the time to be saved, are not delivered again.
    FewRepeats,
    /// Records are read within the documented time.
    Progress,
    /// A fleet at rest does not change its leases.
    Rest,
    /// A worker does not acquire a shard that it could not read again at once.
    FailedRests,
    /// The numbers of shards of any two workers differ by at most one.
    Evenness,
    /// Only one worker of the fleet lists the shards.
    FewListings,
    /// No call to Kinesis is malformed.
    CallLimits,
    /// Only errors that no retry can resolve are yielded.
    FewErrors,
    /// Each panic in the store and in the client is reported as an event.
    PanicsAreReported,
    /// No call and no task is left after the end.
    NothingLeftRunning,
}

/// The shard of a record, its index there, and the epoch in which it was delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) shard: usize,
    pub(crate) number: usize,
    pub(crate) epoch: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Shard {
    pub(crate) parents: Vec<usize>,
    /// For each record, whether a worker has finished it since the shard was last moved, or whether
    /// that move skipped it.
    pub(crate) records: Vec<bool>,
    /// The arrival time of each record.
    pub(crate) arrivals: Vec<SystemTime>,
    /// For each record, whether it was ever finished or skipped.
    pub(crate) ever: Vec<bool>,
    /// The highest epoch in which a record was delivered.
    pub(crate) top: u64,
    /// The first epoch that counts since the shard was last moved.
    pub(crate) since: u64,
    /// The number of the last move of the shard, counted over all shards.
    pub(crate) moved: u64,
    /// Its lease could not be read at some time. The worker that replaced the lease did not know
    /// its owner.
    pub(crate) had_damaged_lease: bool,
}

impl Shard {
    pub(crate) fn is_finished(&self) -> bool {
        self.records.iter().all(|finished| *finished)
    }
}

/// The records of a shard that were delivered in one epoch.
#[derive(Debug)]
pub(crate) struct EpochDeliveries {
    pub(crate) worker: usize,
    /// The index of the first record.
    pub(crate) first: usize,
    /// The time at which each record was finished in this epoch.
    pub(crate) finished: Vec<Option<Instant>>,
    /// The caller dropped the stream.
    pub(crate) is_dropped: bool,
    /// The time at which the worker released the shard.
    pub(crate) released: Option<Instant>,
    /// A later epoch exists.
    pub(crate) is_over: bool,
}

/// The shared expected state. Clones refer to the same state.
#[derive(Debug, Clone)]
pub(crate) struct Truth(Arc<Mutex<Facts>>);

#[derive(Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is an independent fact")]
pub(crate) struct Facts {
    pub(crate) began: Instant,
    trace: Trace,
    pub(crate) shards: Vec<Shard>,
    pub(crate) places: BTreeMap<SequenceNumber, (usize, usize)>,
    /// The deliveries, by shard and epoch.
    pub(crate) deliveries: BTreeMap<(usize, u64), EpochDeliveries>,
    /// The time at which the store asked the owner of an epoch to hand off its shard, or after which
    /// the shard failed.
    pub(crate) handoffs: BTreeMap<(usize, u64), Instant>,
    /// The releases with unfinished records that neither an offer nor an event explains yet.
    pub(crate) unexplained: BTreeSet<(usize, u64)>,
    /// The number of records that the stored position had passed when an epoch started.
    pub(crate) bases: BTreeMap<(usize, u64), usize>,
    /// All workers, including those that have ended.
    pub(crate) workers: Vec<WorkerState>,
    /// The epochs in which the end of a shard was saved, by shard and epoch.
    pub(crate) saved_ends: BTreeSet<(usize, u64)>,
    /// The fault of the next save of the end of a shard.
    pub(crate) late_end: Option<LateEnd>,
    pub(crate) stale_reads: StaleReads,
    /// The condition of the store for all workers.
    pub(crate) store: Condition,
    /// The number of moves of positions.
    pub(crate) moves: u64,
    /// The last epoch before all positions were cleared.
    pub(crate) cleared: u64,
    /// The store has lost data.
    pub(crate) lost_data: bool,
    /// The store's clock was moved.
    pub(crate) clock_moved: bool,
    /// The shards that cannot be read now, each with its last epoch before the damage.
    pub(crate) damaged: BTreeMap<usize, u64>,
    /// A shard could not be read at some time.
    pub(crate) had_damage: bool,
    /// Calls were blocked, possibly for long enough that a shard has failed.
    pub(crate) were_blocked: bool,
}

impl Truth {
    pub(crate) fn new(seed: u64, shards: usize) -> Self {
        Self(Arc::new(Mutex::new(Facts {
            began: Instant::now(),
            trace: Trace::new(),
            shards: (0..shards).map(|_| Shard::default()).collect(),
            places: BTreeMap::new(),
            deliveries: BTreeMap::new(),
            handoffs: BTreeMap::new(),
            unexplained: BTreeSet::new(),
            bases: BTreeMap::new(),
            workers: Vec::new(),
            saved_ends: BTreeSet::new(),
            late_end: None,
            stale_reads: StaleReads::new(seed),
            store: Condition::Healthy,
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

    pub(crate) fn breaks(&mut self, promise: Promise, detail: fmt::Arguments<'_>) {
        self.trace.breaks(&promise, detail);
    }

    /// Ends the run, and returns its trace and result.
    pub(crate) fn end(&mut self, calls: usize) -> SeedResult {
        let records = self.shards.iter().map(|shard| shard.records.len()).sum();
        self.trace.end(records, calls)
    }

    pub(crate) fn put(&mut self, shard: usize, number: SequenceNumber, arrival: SystemTime) {
        let facts = &mut self.shards[shard];
        self.places.insert(number, (shard, facts.records.len()));
        facts.records.push(false);
        facts.ever.push(false);
        facts.arrivals.push(arrival);
    }

    /// Registers that a record is finished in this epoch.
    pub(crate) fn finish(&mut self, Place { shard, number, epoch }: Place) {
        let facts = &mut self.shards[shard];
        facts.records[number] |= epoch >= facts.since;
        facts.ever[number] = true;
        if let Some(delivered) = self.deliveries.get_mut(&(shard, epoch)) {
            delivered.finished[number - delivered.first].get_or_insert_with(Instant::now);
        }
    }

    /// Registers that the caller of a worker has dropped its stream of a shard.
    pub(crate) fn drop_stream(&mut self, worker: usize, shard: usize) {
        for (_, delivered) in self.deliveries.range_mut((shard, 0)..=(shard, u64::MAX)) {
            delivered.is_dropped |= delivered.worker == worker;
        }
    }

    /// Returns how many records of the shard a checkpoint has passed.
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
    id.as_str()[8..].parse().expect("shard ids of the model end in a number")
}
