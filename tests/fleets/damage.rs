//! Stored leases and positions that cannot be read for a while.
//!
//! A separate generator chooses them, for some seeds only, so that the other scenarios stay the
//! same.

use std::time::Duration;

use fastrand::Rng;
use kinestream::ShardId;
use kinestream::store::Scope;
use kinestream::store::lease::LeaseTable;
use tokio::time::Instant;

use crate::truth::{Facts, Promise, index_of};
use crate::world::World;

/// Mixed with the seed for this generator.
const MIX: u64 = 0xda_3a6e_5eed;

/// The generator of the damage, and the current damage.
#[derive(Debug)]
pub(crate) struct Damage {
    rng: Rng,
    is_on: bool,
    /// The damaged shards, each with the time of its repair.
    damaged: Vec<(ShardId, Instant)>,
}

impl Damage {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed ^ MIX);
        let is_on = rng.u8(..3) == 0;
        Self { rng, is_on, damaged: Vec::new() }
    }
}

fn scope() -> Scope {
    Scope::new("default", "orders")
}

impl World {
    /// Damages stored fields in a step. A store that loses data would restore damaged fields, so a
    /// scenario has at most one of the two.
    pub(crate) async fn damage_fields(&mut self) {
        if !self.damage.is_on || self.scene.loses_data {
            return;
        }
        self.repair(false);
        let table = self.table().await;
        if table.leases.is_empty() || self.damage.rng.u8(..4) > 0 {
            return;
        }
        let place = self.damage.rng.usize(..table.leases.len());
        let (shard, lease) = table.leases.iter().nth(place).expect("the index is within the table");
        let is_lease = self.damage.rng.bool();
        let time = Duration::from_millis(self.damage.rng.u64(..120_000));
        // A shard with only a stored position has no lease to damage.
        let is_stored = if is_lease { lease.parents.is_some() } else { lease.checkpoint.is_some() };
        if lease.unreadable.is_some() || !is_stored {
            return;
        }
        let part = if is_lease { "lease" } else { "position" };
        self.truth.log(format_args!("the {part} of {shard} is damaged for {time:?}"));
        self.stored.damage(&scope(), shard, is_lease);
        self.truth.lock().damage(shard, &table, is_lease);
        self.damage.damaged.push((shard.clone(), Instant::now() + time));
    }

    /// Repairs the damage that is due, or all damage at once.
    pub(crate) fn repair(&mut self, at_once: bool) {
        let now = Instant::now();
        for (shard, _) in self.damage.damaged.extract_if(.., |(_, until)| at_once || *until <= now)
        {
            self.truth.log(format_args!("{shard} is repaired"));
            self.stored.repair(&scope(), &shard);
            self.truth.lock().damaged.remove(&index_of(&shard));
        }
    }
}

impl Facts {
    /// Registers that the fields of a shard in this table cannot be read from now on.
    pub(crate) fn damage(&mut self, id: &ShardId, table: &LeaseTable, is_lease: bool) {
        self.had_damage = true;
        let shard = index_of(id);
        // Workers that have not seen the last clear still read in an epoch from before the clear.
        let last = table.leases[id].epoch.max(table.cleared);
        self.damaged.insert(shard, last);
        self.shards[shard].had_damaged_lease |= is_lease;
        // The owner of the shard cannot save from now on.
        for (_, delivered) in self.deliveries.range_mut((shard, 0)..=(shard, u64::MAX)) {
            delivered.is_over = true;
            delivered.is_dropped = true;
        }
    }

    /// Checks that a record of this shard and epoch may be delivered in spite of damage.
    pub(crate) fn check_damaged(&mut self, worker: usize, shard: usize, epoch: u64) {
        let name = self.workers[worker].name.clone();
        if self.damaged.get(&shard).is_some_and(|last| epoch > *last) {
            self.breaks(
                Promise::Damaged,
                format_args!(
                    "{name} starts shard {shard} in epoch {epoch}, although it cannot be read"
                ),
            );
        }
        if self.workers[worker].unreadable.contains(&shard) {
            self.breaks(
                Promise::Damaged,
                format_args!(
                    "{name} reads shard {shard}, but has seen that the shard cannot be read"
                ),
            );
        }
    }
}
