//! What a record that is yielded is held to.
//!
//! # Who may yield
//!
//! A worker may yield while its leases are its own as far as it can know: less than its lease
//! duration after it *asked* in the last exchange that was answered, by tokio's clock and by the one
//! on the wall of its host, whichever has gone further. That holds for the only worker as well. And
//! it may not yield a shard that the store has given to another worker, which is looked up in the
//! store itself.
//!
//! # Epochs
//!
//! In one epoch of a shard one worker yields. Where another has yielded in a higher one, a worker
//! yields in a lower one only where it cannot know, and that takes something special: the store's
//! clock was moved or its data lost, so that leases ran out early, or everything was cleared.
//! Otherwise whoever takes a lease waits until its last owner has stopped by itself. In no case does
//! a worker yield that has seen a table with a higher epoch.

use std::collections::btree_map::Entry;
use std::sync::Arc;

use kinestream::store::lease::LeaseTable;
use kinestream::{Record, ShardOrdering};

use crate::truth::{Facts, Place, Promise, Tenancy};

impl Facts {
    /// Holds a record to the promises.
    pub(crate) fn judge(
        &mut self,
        worker: usize,
        ordering: ShardOrdering,
        record: &Record,
        table: &LeaseTable,
    ) -> Place {
        let (shard, place) = self.places[record.sequence_number()];
        let epoch = record.epoch();
        let name = self.lives[worker].name.clone();
        self.tell(format_args!("{name} yields shard {shard} record {place} in epoch {epoch}"));
        let stored = table.leases.get(record.shard_id());
        let stored = stored.map(|lease| (lease.epoch, lease.owner.clone()));
        self.judge_right(worker, shard, epoch, stored.as_ref());
        self.judge_damaged(worker, shard, epoch);
        let top = self.shards[shard].top;
        self.shards[shard].top = top.max(epoch);
        match self.tenancies.entry((shard, epoch)) {
            Entry::Occupied(mut entry) => {
                let tenancy = entry.get_mut();
                let (owner, expected) = (tenancy.worker, tenancy.first + tenancy.finished.len());
                if owner != worker {
                    let other = self.lives[owner].name.clone();
                    self.breaks(
                        Promise::OneReader,
                        format_args!("{name} and {other} read shard {shard} in epoch {epoch}"),
                    );
                } else if place == expected {
                    tenancy.finished.push(None);
                } else {
                    self.breaks(
                        Promise::Order,
                        format_args!("shard {shard}: record {place} comes and not {expected}"),
                    );
                }
            }
            Entry::Vacant(entry) => {
                let is_damaged = self.damaged.contains_key(&shard);
                let is_over = self.bases.range((shard, epoch + 1)..=(shard, u64::MAX)).count() > 0;
                entry.insert(Tenancy {
                    worker,
                    first: place,
                    finished: vec![None],
                    is_dropped: is_damaged,
                    released: None,
                    is_over: is_over || is_damaged,
                });
                self.judge_first(shard, place, epoch, ordering);
            }
        }
        Place { shard, number: place, epoch }
    }

    fn judge_right(
        &mut self,
        worker: usize,
        shard: usize,
        epoch: u64,
        stored: Option<&(u64, Option<Arc<str>>)>,
    ) {
        let life = &self.lives[worker];
        let name = life.name.clone();
        let is_valid = life.is_valid();
        let told = life.told.get(&shard).copied().unwrap_or(0);
        let sought = life.sought.get(&shard).copied().unwrap_or(0);
        let top = self.shards[shard].top;
        if !is_valid {
            self.breaks(
                Promise::OnlyWhileValid,
                format_args!("{name} reads shard {shard}, although its leases have run out"),
            );
        }
        if told > epoch {
            self.breaks(
                Promise::Fencing,
                format_args!("{name} reads shard {shard} in epoch {epoch}, and has seen {told}"),
            );
        }
        if sought > epoch {
            self.breaks(
                Promise::Sought,
                format_args!(
                    "{name} reads shard {shard} in epoch {epoch}, and has sought to {sought}"
                ),
            );
        }
        // Where everything is cleared, nothing is left of who had what.
        let is_cleared = epoch <= self.cleared;
        let was_damaged = self.shards[shard].had_damaged_lease;
        let is_excused = is_cleared || was_damaged || self.lost_data || self.clock_moved;
        if epoch < top && !is_excused {
            self.breaks(
                Promise::Fencing,
                format_args!(
                    "{name} reads shard {shard} in epoch {epoch}, and {top} was there before"
                ),
            );
        }
        if let Some((stored, owner)) = stored
            && *stored > epoch
            // An operator who moves a shard to its end frees its lease, and nobody else reads it.
            && owner.as_deref().is_some_and(|owner| *owner != *name)
            && !is_excused
        {
            self.breaks(
                Promise::OneReader,
                format_args!(
                    "{name} reads shard {shard} in epoch {epoch}, and the store has given it to \
                     {owner:?} in {stored}"
                ),
            );
        }
    }

    /// The first record of a shard in an epoch.
    fn judge_first(&mut self, shard: usize, place: usize, epoch: u64, ordering: ShardOrdering) {
        if epoch < self.shards[shard].since {
            // It was moved since, and its worker has not heard of it.
            return;
        }
        if let Some(skipped) = self.shards[shard].records[..place].iter().position(|done| !done) {
            self.breaks(
                Promise::NothingIsLost,
                format_args!("shard {shard} begins with record {place}, and skips {skipped}"),
            );
        }
        let base = self.bases.get(&(shard, epoch)).copied().unwrap_or(0);
        if place < base {
            self.breaks(
                Promise::FewRepeats,
                format_args!("shard {shard} was stored at record {base}, and begins at {place}"),
            );
        }
        if ordering == ShardOrdering::ParentFirst {
            // One that was moved later than its child is for whoever moved it.
            let moved = self.shards[shard].moved;
            let mut parents = self.shards[shard].parents.clone();
            parents.retain(|parent| {
                let parent = &self.shards[*parent];
                !parent.is_finished() && parent.moved <= moved
            });
            for parent in parents {
                self.breaks(
                    Promise::ParentsFirst,
                    format_args!("shard {shard} begins before its parent {parent} is finished"),
                );
            }
        }
    }
}
