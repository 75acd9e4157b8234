//! Records that are trimmed, either finished or unread.

use std::collections::BTreeSet;

use fastrand::Rng;
use kinestream::testing::Shard;
use kinestream::{Checkpoint, Event, OnTrimmed, SequenceNumber};

use crate::truth::{Fact, Facts, Promise, index_of};
use crate::world::World;

/// Chooses the unread records that are trimmed. The generator is separate from the main generator,
/// so that the scenarios without such losses stay the same.
pub(crate) struct Losses {
    rng: Rng,
    /// Unread records may be trimmed in this scenario.
    is_possible: bool,
    /// Kinesis accepts a sequence number that was trimmed.
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

/// The lost records of a shard, and the losses that its readers have reported.
#[derive(Debug, Default)]
pub(crate) struct Lost {
    /// The stored positions behind which records were lost.
    after: BTreeSet<SequenceNumber>,
    /// The place behind the last record that was lost.
    pub(crate) end: usize,
    /// A loss has not been reported yet.
    pub(crate) is_due: bool,
    /// The current reader has reported a loss.
    pub(crate) is_reported: bool,
}

impl World {
    /// Trims finished records up to the record of a stored position. If the shard is stored as
    /// caught up, the record of the position is trimmed as well.
    pub(crate) async fn leave_retention(&mut self) {
        // A shard that restarts after a panic starts at the last save that the reader knows to be
        // stored.
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
                    self.truth.log(format_args!("shard {} is trimmed to {number}", shard.index()));
                    // A caller that names the record before the stored position gets an error if
                    // that record is trimmed.
                    let kept = self.named(&shard).unwrap_or(usize::MAX);
                    self.trim(&shard, behind(&shard, &number).min(kept));
                }
                _ => {}
            }
        }
    }

    /// Returns the index of the record of a shard that the next caller may name.
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

    /// Trims the first `records` records of a shard.
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
            // Children are younger than their parents and expire later.
            parents.iter().all(|parent| facts.shards[*parent].expired)
        };
        if !oldest || shard.is_open() {
            return;
        }
        self.truth.log(format_args!("shard {} expires", shard.index()));
        self.truth.lock().shards[shard.index()].expired = true;
        shard.expire();
    }

    /// Trims unread records behind stored positions while no reader runs.
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
            facts.log(format_args!("shard {} loses {:?}", shard.index(), &numbers[from..to]));
            facts.lose(shard.index(), &numbers[to - 1]);
            let in_database = facts.database().remove(&id);
            let lost = &mut facts.shards[shard.index()].lost;
            lost.after.insert(after);
            lost.is_due = true;
            // A reader cannot know whether a trimmed position was followed by other trimmed
            // records.
            if let Some(Checkpoint::AfterSequenceNumber { sequence_number, .. }) = in_database
                && sequence_number <= numbers[to - 1]
            {
                lost.after.insert(sequence_number);
            }
        }
    }
}

/// Returns the number of records of a shard up to this sequence number.
fn behind(shard: &Shard, number: &SequenceNumber) -> usize {
    shard.sequence_numbers().partition_point(|other| other <= number)
}

impl Facts {
    /// Checks a loss that a reader reports.
    pub(crate) fn note_gap(&mut self, event: &Event) {
        let Event::Gap { shard_id, after, .. } = event else { return };
        let shard = index_of(shard_id);
        self.log(format_args!("gap: shard {shard} after {after:?}"));
        let lost = &mut self.shards[shard].lost;
        if after.as_ref().is_some_and(|after| lost.after.contains(after)) {
            (lost.is_due, lost.is_reported) = (false, true);
        } else {
            self.breaks(
                Promise::LossesAreReported,
                format_args!("shard {shard} reports a loss after {after:?}, but no record is lost"),
            );
        }
    }

    /// Excuses missing reports: the receiver of events has lagged, so some reports may have been
    /// dropped.
    pub(crate) fn miss_events(&mut self) {
        for shard in &mut self.shards {
            (shard.lost.is_due, shard.lost.is_reported) = (false, true);
        }
    }

    /// Marks the unfinished records up to this one as lost.
    fn lose(&mut self, shard: usize, last: &SequenceNumber) {
        let end = self.places_of(shard, last);
        self.shards[shard].lost.end = end;
        for record in &mut self.shards[shard].records[..end] {
            record.lost |= !record.finished;
        }
    }

    /// Returns true if all these records are lost or finished and the reader has reported a loss.
    pub(crate) fn are_reported(&self, shard: usize, places: std::ops::Range<usize>) -> bool {
        let shard = &self.shards[shard];
        shard.lost.is_reported && shard.records[places].iter().all(Fact::is_passed)
    }

    /// Returns true if these records have been trimmed, each of them is finished or reported as
    /// lost, and the reader correctly starts behind them. That is the case if no position of the
    /// shard is stored, for example after a start at named positions that read nothing from the
    /// shard, or if the shard was stored as caught up at a time when all of them had arrived.
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
