//! The sink: accepts records from the workers, fenced by epoch, and counts them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::worker::micros;

/// The time over which rates are averaged.
const WINDOW: Duration = Duration::from_secs(2);

#[derive(Default)]
pub(crate) struct Tally {
    written: BTreeSet<u64>,
    accepted: BTreeSet<u64>,
    pub(crate) read: usize,
    pub(crate) repeated: usize,
    /// Records with a lower epoch than an earlier record of their shard.
    pub(crate) refused: usize,
    /// Changes of a shard from one epoch to another.
    pub(crate) moves: usize,
    pub(crate) shards: BTreeMap<Arc<str>, Shard>,
    pub(crate) by_worker: BTreeMap<Arc<str>, usize>,
    /// Violated guarantees.
    pub(crate) findings: Vec<String>,
    recent: VecDeque<(Instant, Arc<str>, Arc<str>)>,
}

/// The counts of one shard.
#[derive(Default)]
pub(crate) struct Shard {
    pub(crate) written: usize,
    pub(crate) accepted: usize,
    /// The highest epoch of a received record.
    pub(crate) epoch: u64,
    /// Every known epoch.
    epochs: BTreeMap<u64, EpochOwner>,
}

/// An epoch of a shard.
struct EpochOwner {
    worker: Arc<str>,
    /// The time at which the epoch was first seen, in microseconds since 1970.
    first_seen: u128,
}

/// A record as a worker reports it.
pub(crate) struct DeliveredRecord<'a> {
    pub(crate) shard: &'a str,
    pub(crate) epoch: u64,
    pub(crate) number: u64,
    /// The time at which the worker polled for it, in microseconds since 1970.
    pub(crate) polled: u128,
}

impl<'a> DeliveredRecord<'a> {
    pub(crate) fn parse(line: &'a str) -> Option<Self> {
        let mut words = line.split(' ');
        Some(Self {
            shard: words.next()?,
            epoch: words.next()?.parse().ok()?,
            number: words.next()?.parse().ok()?,
            polled: words.next()?.parse().ok()?,
        })
    }
}

impl Tally {
    pub(crate) fn write(&mut self, shard: &str, number: u64) {
        if self.written.insert(number) {
            self.shard(shard).1.written += 1;
        }
    }

    /// Returns true if the sink accepts the record.
    pub(crate) fn accept(&mut self, worker: &Arc<str>, record: &DeliveredRecord) -> bool {
        self.observe(worker, record.shard, record.epoch);
        let (name, shard) = self.shard(record.shard);
        let later = shard.epochs.range(record.epoch + 1..);
        if let Some(first_seen) = later.map(|(_, owner)| owner.first_seen).min()
            && record.polled > first_seen
        {
            let late = Duration::from_micros(
                u64::try_from(record.polled - first_seen).unwrap_or(u64::MAX),
            );
            self.findings.push(format!(
                "{worker} received record {} of {} {late:.1?} after another worker acquired the shard",
                record.number, record.shard
            ));
        }
        let (_, shard) = self.shard(record.shard);
        if record.epoch < shard.epoch {
            self.refused += 1;
            return false;
        }
        shard.epoch = record.epoch;
        self.read += 1;
        if self.accepted.insert(record.number) {
            self.shard(record.shard).1.accepted += 1;
        } else {
            self.repeated += 1;
        }
        *self.by_worker.entry(Arc::clone(worker)).or_default() += 1;
        self.recent.push_back((Instant::now(), Arc::clone(worker), name));
        true
    }

    /// Notes that a worker owns a shard in this epoch.
    pub(crate) fn observe(&mut self, worker: &str, name: &str, epoch: u64) {
        let (_, shard) = self.shard(name);
        let first_seen = micros(SystemTime::now());
        match shard.epochs.get(&epoch) {
            Some(owner) if &*owner.worker == worker => {}
            Some(owner) => {
                let finding =
                    format!("{worker} and {} both own {name} in epoch {epoch}", owner.worker);
                if !self.findings.contains(&finding) {
                    self.findings.push(finding);
                }
            }
            None => {
                let is_move = !shard.epochs.is_empty();
                shard.epochs.insert(epoch, EpochOwner { worker: worker.into(), first_seen });
                self.moves += usize::from(is_move);
            }
        }
    }

    pub(crate) fn written(&self) -> usize {
        self.written.len()
    }

    /// Returns the number of written records that are not read.
    pub(crate) fn unread(&self) -> usize {
        self.written.difference(&self.accepted).count()
    }

    /// Returns the recent records per second, by worker and by shard.
    pub(crate) fn rates(&mut self) -> BTreeMap<Arc<str>, usize> {
        while self.recent.front().is_some_and(|(at, ..)| at.elapsed() > WINDOW) {
            self.recent.pop_front();
        }
        let mut counts = BTreeMap::<_, usize>::new();
        for (_, worker, shard) in &self.recent {
            *counts.entry(Arc::clone(worker)).or_default() += 1;
            *counts.entry(Arc::clone(shard)).or_default() += 1;
        }
        for count in counts.values_mut() {
            *count = count.div_ceil(2);
        }
        counts
    }

    fn shard(&mut self, name: &str) -> (Arc<str>, &mut Shard) {
        let name = match self.shards.get_key_value(name) {
            Some((known, _)) => Arc::clone(known),
            None => name.into(),
        };
        (Arc::clone(&name), self.shards.entry(name).or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(epoch: u64, number: u64, polled: u128) -> DeliveredRecord<'static> {
        DeliveredRecord { shard: "shard", epoch, number, polled }
    }

    #[test]
    fn late_delivery_and_shared_epoch_are_found() {
        let (first, second): (Arc<str>, Arc<str>) = ("w1".into(), "w2".into());
        let (early, late) = (0, u128::MAX);
        let mut tally = Tally::default();
        for number in 0..4 {
            tally.write("shard", number);
        }
        assert!(tally.accept(&first, &record(1, 0, early)));
        assert!(tally.accept(&second, &record(2, 1, early)));
        assert!(tally.accept(&second, &record(2, 1, early)));
        // Delivered before the lease moved: refused, but no violation.
        assert!(!tally.accept(&first, &record(1, 2, early)));
        assert_eq!((tally.read, tally.repeated, tally.refused, tally.unread()), (3, 1, 1, 2));
        assert_eq!(tally.findings, [] as [&str; 0]);
        assert!(!tally.accept(&first, &record(1, 2, late)));
        assert_eq!(tally.findings.len(), 1, "a record delivered too late is found");
        tally.accept(&first, &record(2, 2, early));
        assert_eq!(tally.findings.len(), 2, "two owners in one epoch are found");
    }
}
