//! Distribution of shards over workers, by load and with few moves.
//!
//! Every worker that reads the table computes the distribution for the whole fleet, and all workers
//! compute the same one. The store applies it only to the table that it was computed from. So the
//! first worker that sees a change rebalances the fleet in one pass. A balanced table needs no
//! changes, so a fleet at rest moves no leases.
//!
//! A shard has a [weight](super::weights), and a worker the sum of the weights of its shards, in
//! relation to its size. Free leases go to the lightest workers, the heaviest lease first. Then
//! leases move from the heaviest worker to the lightest one, as few as even the two out, and so on,
//! until no such transfer gains the [least gain](Weights::least_gain). Then workers exchange a heavy
//! lease for lighter ones if that gains twice as much. With equal weights, the numbers of shards differ
//! by at most one after that.

mod evening;
mod shares;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;

use self::shares::Fleet;
use super::exclusions::Exclusions;
use super::moves::Moves;
use super::weights::Weights;
use crate::record::ShardId;
use crate::store::lease::{Change, Lease, LeaseTable};

/// In one pass, load moves at most this part of the shards.
const MOVED_PART: usize = 8;

/// Returns the changes that balance the table. A free lease is assigned only if its shard is in
/// `readable`. No lease goes to a worker for which `exclusions` excludes its shard.
pub(super) fn balance(
    table: &LeaseTable,
    readable: &BTreeSet<ShardId>,
    exclusions: &Exclusions,
    weights: &Weights<'_>,
    moves: Moves,
) -> Vec<Change> {
    let mut fleet = Fleet::new(table, exclusions, weights);
    let free = fleet.free(readable);
    let count = fleet.set_shares(&free);
    let mut homeless = fleet.take_excess();
    homeless.extend(free);
    fleet.place(homeless);
    let limit = match moves {
        _ if weights.are_even() || fleet.is_urgent() => usize::MAX,
        Moves::Urgent => 0,
        Moves::ByLoad => (count / MOVED_PART).max(2),
    };
    fleet.even_out(limit);
    fleet.changes
}

/// Returns the changes by which worker `me`, which reads only the shards that it `selects`, takes its
/// share of them.
///
/// The table does not show which shards other workers select. So the worker makes changes for itself
/// only: it takes each free shard that it reads, and then leases of the workers that hold more of
/// its shards than it does. Each move makes two workers more equal, so no moves alternate, whatever
/// the workers select. A worker that holds none of the shards takes its share itself.
pub(super) fn pull(
    table: &LeaseTable,
    readable: &BTreeSet<ShardId>,
    selects: impl Fn(&ShardId) -> bool,
    exclusions: &Exclusions,
    me: &Arc<str>,
) -> Vec<Change> {
    let holder = |lease: &Lease| {
        lease.holder().filter(|holder| table.workers.contains_key(*holder)).cloned()
    };
    let is_free = |shard: &&ShardId| {
        let lease = table.leases.get(*shard);
        lease.is_some_and(|lease| holder(lease).is_none()) && !exclusions.has(shard, me)
    };
    let free = readable.iter().filter(is_free);
    let taken = free.map(|shard| Change::Assign { shard: shard.clone(), to: Arc::clone(me) });
    let taken: Vec<Change> = taken.collect();
    if !taken.is_empty() {
        return taken;
    }
    let mut view = table.clone();
    view.leases.retain(|shard, lease| selects(shard) && holder(lease).is_some());
    let holders: BTreeSet<Arc<str>> = view.leases.values().filter_map(&holder).collect();
    view.workers.retain(|worker, _| worker == me || holders.contains(worker));
    for worker in view.workers.values_mut().filter(|worker| worker.capacity > 0) {
        // A worker that names its shards declares what it holds.
        worker.capacity = u32::MAX;
    }
    let mut changes = balance(&view, readable, exclusions, &Weights::even(), Moves::Urgent);
    changes.retain(|change| matches!(change, Change::Offer { to, .. } if to == me));
    changes
}
