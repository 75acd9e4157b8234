//! Checks of a delivered record.
//!
//! # The right to deliver
//!
//! A worker may deliver while its leases are valid as far as it can know: for less than its lease
//! duration since it *sent* the last heartbeat that was answered. The time is measured by tokio's
//! clock and by the wall clock of its host, and the clock that has advanced further counts. This
//! also applies to the only worker of a fleet. In addition, a worker may not deliver from a shard
//! that the store has assigned to another worker. The check reads the store itself.
//!
//! # Epochs
//!
//! In one epoch of a shard, one worker delivers. After another worker has delivered in a higher
//! epoch, a worker may deliver in a lower one only if it cannot know the higher one. That requires
//! an exceptional event: the clock of the store was moved or its data lost, so that leases expired
//! early, or all positions were cleared. Otherwise the new owner of a lease waits until the
//! previous owner has stopped. A worker that has seen a table with a higher epoch never delivers.

use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use kinestream::store::lease::LeaseTable;
use kinestream::{Record, ShardOrdering};

use crate::truth::{EpochDeliveries, Facts, Place, Promise, index_of};

/// The payload of each record, and the partition key that [`kinestream::testing::Shard::put`] sets.
pub(crate) const PAYLOAD: &str = "one";
const PARTITION_KEY: &str = "key";

/// Returns the time as Kinesis has it.
fn millis(time: SystemTime) -> u128 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()
}

impl Facts {
    /// Checks a delivered record against the promises.
    pub(crate) fn check_delivery(
        &mut self,
        worker: usize,
        ordering: ShardOrdering,
        record: &Record,
        table: &LeaseTable,
    ) -> Option<Place> {
        let (shard, place) = self.place_of(record)?;
        let epoch = record.epoch();
        let name = self.workers[worker].name.clone();
        self.log(format_args!("{name} delivers shard {shard} record {place} in epoch {epoch}"));
        let stored = table.leases.get(record.shard_id());
        let stored = stored.map(|lease| (lease.epoch, lease.owner.clone()));
        self.check_right_to_deliver(worker, shard, epoch, stored.as_ref());
        self.check_damaged(worker, shard, epoch);
        let top = self.shards[shard].top;
        self.shards[shard].top = top.max(epoch);
        match self.deliveries.entry((shard, epoch)) {
            Entry::Occupied(mut entry) => {
                let delivered = entry.get_mut();
                let (owner, expected) =
                    (delivered.worker, delivered.first + delivered.finished.len());
                if owner != worker {
                    let other = self.workers[owner].name.clone();
                    self.breaks(
                        Promise::OneReader,
                        format_args!("{name} and {other} read shard {shard} in epoch {epoch}"),
                    );
                } else if place == expected {
                    delivered.finished.push(None);
                } else {
                    self.breaks(
                        Promise::Order,
                        format_args!(
                            "shard {shard}: record {place} is delivered, expected {expected}"
                        ),
                    );
                }
            }
            Entry::Vacant(entry) => {
                let is_damaged = self.damaged.contains_key(&shard);
                let is_over = self.bases.range((shard, epoch + 1)..=(shard, u64::MAX)).count() > 0;
                entry.insert(EpochDeliveries {
                    worker,
                    first: place,
                    finished: vec![None],
                    is_dropped: is_damaged,
                    released: None,
                    is_over: is_over || is_damaged,
                });
                self.check_first(shard, place, epoch, ordering);
            }
        }
        Some(Place { shard, number: place, epoch })
    }

    /// Returns the place of a record that is delivered as it was put. A record that is altered
    /// breaks a promise.
    fn place_of(&mut self, record: &Record) -> Option<(usize, usize)> {
        let place = self.places.get(record.sequence_number()).copied();
        let is_unaltered = place.is_some_and(|(shard, place)| {
            index_of(record.shard_id()) == shard
                && record.data() == PAYLOAD.as_bytes()
                && record.partition_key() == Some(PARTITION_KEY)
                && record.approximate_arrival().map(millis)
                    == Some(millis(self.shards[shard].arrivals[place]))
        });
        if is_unaltered {
            return place;
        }
        self.breaks(
            Promise::NothingIsAltered,
            format_args!(
                "{} delivers record {} ({place:?}) with payload {:?}, key {:?} and arrival {:?}",
                record.shard_id(),
                record.sequence_number(),
                record.data(),
                record.partition_key(),
                record.approximate_arrival()
            ),
        );
        None
    }

    fn check_right_to_deliver(
        &mut self,
        worker: usize,
        shard: usize,
        epoch: u64,
        stored: Option<&(u64, Option<Arc<str>>)>,
    ) {
        let state = &self.workers[worker];
        let name = state.name.clone();
        let is_valid = state.is_valid();
        let known = state.known_epochs.get(&shard).copied().unwrap_or(0);
        let seek_epoch = state.seek_epochs.get(&shard).copied().unwrap_or(0);
        let top = self.shards[shard].top;
        if !is_valid {
            self.breaks(
                Promise::OnlyWhileValid,
                format_args!("{name} reads shard {shard}, although its leases have expired"),
            );
        }
        if known > epoch {
            self.breaks(
                Promise::Fencing,
                format_args!(
                    "{name} reads shard {shard} in epoch {epoch}, but has seen epoch {known}"
                ),
            );
        }
        if seek_epoch > epoch {
            self.breaks(
                Promise::NotBeforeTheSeek,
                format_args!(
                    "{name} reads shard {shard} in epoch {epoch}, but its seek began epoch {seek_epoch}"
                ),
            );
        }
        // After all positions are cleared, the store knows no earlier owners.
        let is_cleared = epoch <= self.cleared;
        let was_damaged = self.shards[shard].had_damaged_lease;
        let is_excused = is_cleared || was_damaged || self.lost_data || self.clock_moved;
        if epoch < top && !is_excused {
            self.breaks(
                Promise::Fencing,
                format_args!(
                    "{name} reads shard {shard} in epoch {epoch} after a delivery in epoch {top}"
                ),
            );
        }
        if let Some((stored, owner)) = stored
            && *stored > epoch
            // An operator that moves a shard to its end frees its lease, and no other worker reads
            // it.
            && owner.as_deref().is_some_and(|owner| *owner != *name)
            && !is_excused
        {
            self.breaks(
                Promise::OneReader,
                format_args!(
                    "{name} reads shard {shard} in epoch {epoch}, but the store has assigned it to \
                     {owner:?} in epoch {stored}"
                ),
            );
        }
    }

    /// Checks the first record of a shard in an epoch.
    fn check_first(&mut self, shard: usize, place: usize, epoch: u64, ordering: ShardOrdering) {
        if epoch < self.shards[shard].since {
            // The position was moved since, and the worker does not know it yet.
            return;
        }
        if let Some(skipped) = self.shards[shard].records[..place].iter().position(|done| !done) {
            self.breaks(
                Promise::NothingIsLost,
                format_args!(
                    "shard {shard} starts with record {place}, and skips record {skipped}"
                ),
            );
        }
        let base = self.bases.get(&(shard, epoch)).copied().unwrap_or(0);
        if place < base {
            self.breaks(
                Promise::FewRepeats,
                format_args!("shard {shard} was stored at record {base}, but starts at {place}"),
            );
        }
        if ordering == ShardOrdering::ParentFirst {
            // A parent that was moved later than its child does not count: the operator has chosen
            // that order.
            let moved = self.shards[shard].moved;
            let mut parents = self.shards[shard].parents.clone();
            parents.retain(|parent| {
                let parent = &self.shards[*parent];
                !parent.is_finished() && parent.moved <= moved
            });
            for parent in parents {
                self.breaks(
                    Promise::ParentsFirst,
                    format_args!("shard {shard} starts before its parent {parent} is finished"),
                );
            }
        }
    }
}
