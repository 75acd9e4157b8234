//! The tracked shards, and the positions that have changed.
//!
//! A save visits the shards that have changed and up to [`SHARDS_PER_SWEEP`] others, regardless of
//! the number of shards.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::checkpoint::{Checkpoint, Watermark};
use crate::close_signal::CloseSignal;
use crate::record::ShardId;
use crate::worker_message::WorkerMessage;

/// The number of tracked shards that a sweep visits. Each save sweeps, at most once per checkpoint
/// interval, so 4,000 shards are visited within about a minute.
const SHARDS_PER_SWEEP: usize = 64;

/// A shard and the epoch of its lease. A worker tracks each pair only once, since it never acquires
/// the same epoch again.
pub(super) type ShardEpoch = (ShardId, u64);

/// A shard with a position that is saved as it advances.
pub(super) struct TrackedShard {
    pub(super) shard: ShardId,
    pub(super) epoch: u64,
    pub(super) watermark: Arc<Watermark>,
    /// Closed when the store refuses a position, since the lease is then over.
    pub(super) lease_over: CloseSignal,
    /// Receives each outcome that concerns the lease.
    pub(super) worker: mpsc::UnboundedSender<WorkerMessage>,
}

impl std::fmt::Debug for TrackedShard {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} in epoch {}", self.shard, self.epoch)
    }
}

/// All tracked shards.
#[derive(Debug, Default)]
pub(super) struct TrackedShards {
    watched: BTreeMap<ShardEpoch, TrackedShard>,
    /// The shards and epochs of positions that have changed since they were last taken.
    changed: Vec<ShardEpoch>,
    /// The last shard and epoch that a sweep has visited; `None` before the first.
    swept: Option<ShardEpoch>,
    /// The number of visits to tracked shards.
    #[cfg(test)]
    visits: usize,
}

impl TrackedShards {
    /// Adds a shard. Returns the previous entry of this shard and epoch.
    pub(super) fn insert(&mut self, watched: TrackedShard) -> Option<TrackedShard> {
        self.watched.insert((watched.shard.clone(), watched.epoch), watched)
    }

    pub(super) fn get(&self, place: &ShardEpoch) -> Option<&TrackedShard> {
        self.watched.get(place)
    }

    pub(super) fn remove(&mut self, place: &ShardEpoch) -> Option<TrackedShard> {
        self.watched.remove(place)
    }

    /// Notes that the position of a shard has changed.
    pub(super) fn note_changed(&mut self, place: &ShardEpoch) {
        self.changed.push(place.clone());
    }

    /// Takes the positions that have changed, each with the time since which it has.
    pub(super) fn take_changed(&mut self) -> Vec<(ShardEpoch, Checkpoint, Instant)> {
        let changed = std::mem::take(&mut self.changed);
        #[cfg(test)]
        {
            self.visits += changed.len();
        }
        let taken = changed.into_iter().filter_map(|place| {
            let (checkpoint, since) = self.watched.get(&place)?.watermark.take_changed()?;
            Some((place, checkpoint, since))
        });
        taken.collect()
    }

    /// Returns the age of the oldest change that was not taken.
    pub(super) fn changed_for(&self) -> Option<Duration> {
        let watched = self.changed.iter().filter_map(|place| self.watched.get(place));
        watched.filter_map(|it| it.watermark.changed_for()).max()
    }

    /// Visits up to [`SHARDS_PER_SWEEP`] shards in turn. Removes and returns each that has no `pending`
    /// position and cannot advance any further.
    pub(super) fn sweep(&mut self, pending: impl Fn(&ShardEpoch) -> bool) -> Vec<TrackedShard> {
        let from = self.swept.take().map_or(Bound::Unbounded, Bound::Excluded);
        let visited = self.watched.range((from, Bound::Unbounded)).take(SHARDS_PER_SWEEP);
        let visited: Vec<(ShardEpoch, bool)> = visited
            .map(|(place, it)| {
                // No stream and no record that could advance it is left.
                let is_over = Arc::strong_count(&it.watermark) == 1 && !pending(place);
                (place.clone(), is_over)
            })
            .collect();
        #[cfg(test)]
        {
            self.visits += visited.len();
        }
        if visited.len() == SHARDS_PER_SWEEP {
            self.swept = visited.last().map(|(place, _)| place.clone());
        }
        let over = visited.into_iter().filter(|(_, is_over)| *is_over);
        over.filter_map(|(place, _)| self.watched.remove(&place)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::checkpoint::{Advance, QuietPosition};

    fn place(number: usize) -> ShardEpoch {
        (format!("shardId-{number:012}").parse().unwrap(), 1)
    }

    fn watch(list: &mut TrackedShards, number: usize) -> Arc<Watermark> {
        let (shard, epoch) = place(number);
        let (watermark, lease_over) = (Arc::default(), CloseSignal::new());
        let (worker, _messages) = mpsc::unbounded_channel();
        let kept = Arc::clone(&watermark);
        list.insert(TrackedShard { shard, epoch, watermark, lease_over, worker });
        kept
    }

    #[test]
    fn save_visits_changed_shards_and_a_few_others() {
        let mut list = TrackedShards::default();
        let watermarks: Vec<_> = (0..4000).map(|number| watch(&mut list, number)).collect();
        for second in 1..=10 {
            let until = SystemTime::UNIX_EPOCH + Duration::from_secs(second);
            for _ in 0..3 {
                let advance = watermarks[1234].note_passed(QuietPosition { after: None, until });
                if advance == Some(Advance::Position { is_first: true }) {
                    list.note_changed(&place(1234));
                }
            }
            let taken = list.take_changed();
            assert_eq!(taken.len(), 1, "{taken:?}");
            assert!(list.sweep(|_| false).is_empty());
        }
        assert_eq!(list.visits, 10 * (1 + SHARDS_PER_SWEEP));
    }

    #[test]
    fn sweep_removes_shards_that_cannot_advance() {
        let mut list = TrackedShards::default();
        let kept = watch(&mut list, 100);
        for number in (0..200).filter(|number| *number != 100) {
            drop(watch(&mut list, number));
        }
        let is_pending = |(shard, _): &ShardEpoch| shard.as_str().ends_with("150");
        let removed: usize = (0..4).map(|_| list.sweep(is_pending).len()).sum();
        assert_eq!((removed, list.watched.len()), (198, 2));
        drop(kept);
        assert_eq!((0..4).map(|_| list.sweep(|_| false).len()).sum::<usize>(), 2);
    }
}
