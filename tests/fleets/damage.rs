//! Stored leases and positions that cannot be read for a while.
//!
//! A second generator chooses them, in some worlds only, so that all else in the story of a seed stays
//! as it was.

use std::time::Duration;

use fastrand::Rng;
use kinestream::ShardId;
use kinestream::store::Scope;
use kinestream::store::lease::LeaseTable;
use tokio::time::Instant;

use crate::truth::{Facts, Promise, index_of};
use crate::world::World;

/// Separates the seed of this generator from that of the story.
const MIX: u64 = 0xda_3a6e_5eed;

/// The choices of these stories.
#[derive(Debug)]
pub(crate) struct Damage {
    rng: Rng,
    is_on: bool,
    /// Each damaged shard, and when it is mended.
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
    /// What befalls stored fields in a step. A store that loses data brings back what was damaged, so
    /// that a world has one or the other.
    pub(crate) async fn damage_fields(&mut self) {
        if !self.damage.is_on || self.scene.loses_data {
            return;
        }
        self.mend(false);
        let table = self.table().await;
        if table.leases.is_empty() || self.damage.rng.u8(..4) > 0 {
            return;
        }
        let place = self.damage.rng.usize(..table.leases.len());
        let (shard, lease) = table.leases.iter().nth(place).expect("it is one of them");
        let is_lease = self.damage.rng.bool();
        let time = Duration::from_millis(self.damage.rng.u64(..120_000));
        // A shard of which only a position is stored has no lease to damage.
        let is_stored = if is_lease { lease.parents.is_some() } else { lease.checkpoint.is_some() };
        if lease.unreadable.is_some() || !is_stored {
            return;
        }
        let part = if is_lease { "lease" } else { "position" };
        self.truth.tell(format_args!("the {part} of {shard} is damaged for {time:?}"));
        self.stored.damage(&scope(), shard, is_lease);
        self.truth.lock().damage(shard, &table, is_lease);
        self.damage.damaged.push((shard.clone(), Instant::now() + time));
    }

    /// Has what was damaged as it was before, where its time is over or it is to be so at once.
    pub(crate) fn mend(&mut self, at_once: bool) {
        let now = Instant::now();
        for (shard, _) in self.damage.damaged.extract_if(.., |(_, until)| at_once || *until <= now)
        {
            self.truth.tell(format_args!("{shard} is mended"));
            self.stored.mend(&scope(), &shard);
            self.truth.lock().damaged.remove(&index_of(&shard));
        }
    }
}

impl Facts {
    /// Makes what this table holds of a shard unreadable from now on.
    pub(crate) fn damage(&mut self, id: &ShardId, table: &LeaseTable, is_lease: bool) {
        self.had_damage = true;
        let shard = index_of(id);
        // Workers that have not seen the last clear still read in an epoch from before the clear.
        let last = table.leases[id].epoch.max(table.cleared);
        self.damaged.insert(shard, last);
        self.shards[shard].had_damaged_lease |= is_lease;
        // Its owner cannot save from now on.
        for (_, tenancy) in self.tenancies.range_mut((shard, 0)..=(shard, u64::MAX)) {
            tenancy.is_over = true;
            tenancy.is_dropped = true;
        }
    }

    /// A record comes of a shard, in this epoch.
    pub(crate) fn judge_damaged(&mut self, worker: usize, shard: usize, epoch: u64) {
        let name = self.lives[worker].name.clone();
        if self.damaged.get(&shard).is_some_and(|last| epoch > *last) {
            self.breaks(
                Promise::Damaged,
                format_args!("{name} begins shard {shard} in {epoch}, which cannot be read"),
            );
        }
        if self.lives[worker].unreadable.contains(&shard) {
            self.breaks(
                Promise::Damaged,
                format_args!("{name} reads shard {shard}, and has seen that it cannot be read"),
            );
        }
    }
}
