//! Records that leave retention, finished or unread.

use std::collections::BTreeSet;

use fastrand::Rng;
use kinestream::testing::Shard;
use kinestream::{Checkpoint, Event, OnTrimmed, SequenceNumber};

use crate::truth::{Fact, Facts, Promise, index_of};
use crate::world::World;

/// Decides what leaves retention unread. Apart from the world's own generator, so that the stories of
/// other worlds stay as they are.
pub(crate) struct Losses {
    rng: Rng,
    /// Unread records leave retention in this world.
    is_possible: bool,
    /// Kinesis accepts a sequence number that has left retention.
    pub(crate) are_accepted: bool,
}

impl Losses {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed ^ 0x7265_7465_6e74);
        let (is_possible, are_accepted) = (rng.u8(..4) == 0, rng.bool());
        Self { rng, is_possible, are_accepted }
    }

    pub(crate) fn policy(&self) -> OnTrimmed {
        if self.is_possible { OnTrimmed::TrimHorizon } else { OnTrimmed::Fail }
    }
}

/// What is lost of a shard, and what the readers have reported of it.
#[derive(Debug, Default)]
pub(crate) struct Lost {
    /// The stored positions behind which records were lost.
    after: BTreeSet<SequenceNumber>,
    /// The place behind the last record that was lost.
    pub(crate) end: usize,
    /// A loss is not reported yet.
    pub(crate) is_due: bool,
    /// The reader of now has reported a loss.
    pub(crate) is_reported: bool,
}

impl World {
    /// Trims finished records, up to the record of a stored position, and with it where the shard is stored
    /// as caught up.
    pub(crate) async fn leave_retention(&mut self) {
        // A shard that restarts after a panic begins at the last save that the reader knows of.
        let positions = if self.panics.are_planned() {
            self.store.known_positions().await
        } else {
            self.store.positions().await
        };
        for (id, checkpoint) in positions {
            let shard = self.orders.shard(index_of(&id));
            match checkpoint {
                Checkpoint::ShardEnd => self.expire(&shard),
                Checkpoint::AfterSequenceNumber { sequence_number, .. } => {
                    let numbers = shard.sequence_numbers();
                    let place = numbers.iter().position(|number| *number == sequence_number);
                    self.trim(&shard, place.unwrap_or(0));
                }
                Checkpoint::CaughtUp { after: Some(number), .. } => {
                    self.truth.tell(format_args!("shard {} is trimmed to {number}", shard.index()));
                    // A caller that names the record before it is told that it has left.
                    let kept = self.named(&shard).unwrap_or(usize::MAX);
                    self.trim(&shard, behind(&shard, &number).min(kept));
                }
                _ => {}
            }
        }
    }

    /// The place of the record of a shard that the next caller may name.
    fn named(&self, shard: &Shard) -> Option<usize> {
        let named =
            self.truth.lock().database().remove(&shard.id()).filter(|_| self.databases.is_kept);
        match named? {
            Checkpoint::AfterSequenceNumber { sequence_number, .. } => {
                Some(behind(shard, &sequence_number).saturating_sub(1))
            }
            _ => None,
        }
    }

    /// Trims this many of the records that were put into a shard.
    fn trim(&self, shard: &Shard, records: usize) {
        shard.trim(records);
        if let Some(last) = shard.sequence_numbers()[..records].last() {
            let mut facts = self.truth.lock();
            let trimmed = facts.places_of(shard.index(), last);
            let known = &mut facts.shards[shard.index()].trimmed;
            *known = trimmed.max(*known);
        }
    }

    fn expire(&mut self, shard: &Shard) {
        let oldest = {
            let facts = self.truth.lock();
            let parents = &facts.shards[shard.index()].parents;
            // Children are younger than their parents, and stay longer.
            parents.iter().all(|parent| facts.shards[*parent].expired)
        };
        if !oldest || shard.is_open() {
            return;
        }
        self.truth.tell(format_args!("shard {} expires", shard.index()));
        self.truth.lock().shards[shard.index()].expired = true;
        shard.expire();
    }

    /// Trims records behind stored positions while no reader runs.
    pub(crate) async fn lose_records(&mut self) {
        if !self.losses.is_possible || self.plan.large {
            return;
        }
        for (id, checkpoint) in self.store.positions().await {
            let Checkpoint::AfterSequenceNumber { sequence_number: after, .. } = checkpoint else {
                continue;
            };
            let shard = self.orders.shard(index_of(&id));
            let (from, numbers) = (behind(&shard, &after), shard.sequence_numbers());
            if from == numbers.len() || self.losses.rng.bool() {
                continue;
            }
            let to = self.losses.rng.usize(from + 1..=numbers.len());
            self.trim(&shard, to);
            let mut facts = self.truth.lock();
            facts.tell(format_args!("shard {} loses {:?}", shard.index(), &numbers[from..to]));
            facts.lose(shard.index(), &numbers[to - 1]);
            let in_database = facts.database().remove(&id);
            let lost = &mut facts.shards[shard.index()].lost;
            lost.after.insert(after);
            lost.is_due = true;
            // Whether records follow a trimmed position that are trimmed as well cannot be known.
            if let Some(Checkpoint::AfterSequenceNumber { sequence_number, .. }) = in_database
                && sequence_number <= numbers[to - 1]
            {
                lost.after.insert(sequence_number);
            }
        }
    }
}

/// Counts the records of a shard up to this number.
fn behind(shard: &Shard, number: &SequenceNumber) -> usize {
    shard.sequence_numbers().partition_point(|other| other <= number)
}

impl Facts {
    /// A reader reports that records were lost.
    pub(crate) fn hear_gap(&mut self, event: &Event) {
        let Event::Gap { shard_id, after, .. } = event else { return };
        let shard = index_of(shard_id);
        self.tell(format_args!("gap: shard {shard} after {after:?}"));
        let lost = &mut self.shards[shard].lost;
        if after.as_ref().is_some_and(|after| lost.after.contains(after)) {
            (lost.is_due, lost.is_reported) = (false, true);
        } else {
            self.breaks(
                Promise::LossesAreReported,
                format_args!("shard {shard} reports a loss after {after:?}, and nothing is lost"),
            );
        }
    }

    /// The reader was too slow to hear all that was reported.
    pub(crate) fn miss_events(&mut self) {
        for shard in &mut self.shards {
            (shard.lost.is_due, shard.lost.is_reported) = (false, true);
        }
    }

    /// Records up to this one are lost, where they are not finished.
    fn lose(&mut self, shard: usize, last: &SequenceNumber) {
        let end = self.places_of(shard, last);
        self.shards[shard].lost.end = end;
        for record in &mut self.shards[shard].records[..end] {
            record.lost |= !record.finished;
        }
    }

    /// These records are all lost or finished, and the reader has reported a loss.
    pub(crate) fn are_reported(&self, shard: usize, places: std::ops::Range<usize>) -> bool {
        let shard = &self.shards[shard];
        shard.lost.is_reported && shard.records[places].iter().all(Fact::is_passed)
    }

    /// These records have left retention, each finished or reported as lost, and the reader begins behind them:
    /// no position of the shard is stored, as after a start that named positions and read nothing of it, or the
    /// shard was stored as caught up when all of them had arrived.
    pub(crate) fn have_left(&self, shard: usize, places: std::ops::Range<usize>) -> bool {
        let shard = &self.shards[shard];
        let records = &shard.records[places.clone()];
        let begins_behind = match shard.caught_up {
            Some(until) => records.iter().all(|record| record.arrival < until),
            None => shard.base.is_none(),
        };
        begins_behind
            && !shard.lost.is_due
            && places.end <= shard.trimmed
            && records.iter().all(Fact::is_passed)
    }
}
