//! The records that a fleet of worker processes has read, and checks of them.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The reads of a shard in one epoch: the worker, and the time of each record.
struct EpochReads {
    worker: String,
    read: Vec<Duration>,
}

/// The reads that the workers have reported.
#[derive(Default)]
pub(super) struct FleetTally {
    /// The number of reads of each record.
    pub(super) read: BTreeMap<usize, usize>,
    /// The reads in each epoch of each shard.
    epoch_reads: BTreeMap<(String, u64), EpochReads>,
    /// The number of suspensions of each worker.
    pub(super) suspended: BTreeMap<String, usize>,
    /// The periods in which workers may not yet have noticed that the store lost its data.
    pub(super) data_losses: Vec<(Duration, Duration)>,
    pub(super) findings: Vec<String>,
}

impl FleetTally {
    pub(super) fn record_read(
        &mut self,
        worker: &str,
        shard: &str,
        epoch: u64,
        at: Duration,
        number: usize,
    ) {
        *self.read.entry(number).or_default() += 1;
        let new = || EpochReads { worker: worker.to_owned(), read: Vec::new() };
        let reads = self.epoch_reads.entry((shard.to_owned(), epoch)).or_insert_with(new);
        reads.read.push(at);
        if reads.worker != worker {
            let finding =
                format!("{} and {worker} both read {shard} in epoch {epoch}", reads.worker);
            self.findings.push(finding);
        }
    }

    /// Returns the time from `since` until this number of shards was read again; `None` if fewer were.
    pub(super) fn read_again(&self, shards: usize, since: Duration) -> Option<Duration> {
        let mut first: BTreeMap<&str, Duration> = BTreeMap::new();
        for ((shard, _), reads) in &self.epoch_reads {
            for at in reads.read.iter().filter(|at| **at > since) {
                let first = first.entry(shard).or_insert(*at);
                *first = (*first).min(*at);
            }
        }
        let is_read = first.len() == shards;
        is_read.then(|| first.into_values().max().unwrap().saturating_sub(since))
    }

    pub(super) fn repeated(&self) -> usize {
        self.read.values().map(|times| times - 1).sum()
    }

    /// Counts the records that each worker has read after the first read in a later epoch of the
    /// shard.
    ///
    /// Such records are counted separately, as excused, if the store had lost the owner of the shard. A
    /// worker notices this loss with its next renewal.
    pub(super) fn late(&self) -> (BTreeMap<&str, usize>, usize) {
        let (mut late, mut excused) = (BTreeMap::new(), 0);
        for ((shard, epoch), reads) in &self.epoch_reads {
            let later = (shard.clone(), epoch + 1)..=(shard.clone(), u64::MAX);
            let later =
                self.epoch_reads.range(later).filter_map(|(_, later)| later.read.iter().min());
            let Some(over) = later.min() else { continue };
            for at in reads.read.iter().filter(|at| *at > over) {
                if self.data_losses.iter().any(|(from, to)| from <= at && at <= to) {
                    excused += 1;
                } else {
                    *late.entry(&*reads.worker).or_default() += 1;
                }
            }
        }
        (late, excused)
    }
}

/// Returns the time of the clock that all processes share.
pub(super) fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

/// Asserts that no two workers have read in one epoch, and that no worker has read in an old one,
/// except for the record that was ready when it was suspended.
pub(super) fn assert_epochs_held(tally: &FleetTally, seed: u64) {
    assert_eq!(tally.findings, [""; 0], "FLEET_SEED={seed}");
    let (late, _excused) = tally.late();
    for (worker, late) in late {
        let allowed = tally.suspended.get(worker).copied().unwrap_or(0);
        assert!(
            late <= allowed,
            "expected {worker} to read at most {allowed} records in an old epoch, got {late}; \
             FLEET_SEED={seed}"
        );
    }
}
