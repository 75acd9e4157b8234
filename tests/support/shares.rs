//! The numbers of shards that the workers of a fleet own.

use std::collections::BTreeMap;

use kinestream::store::lease::LeaseTable;

/// Returns the number of shards of each owner.
pub(crate) fn shares_of(table: &LeaseTable) -> BTreeMap<&str, usize> {
    let mut shares = BTreeMap::new();
    for owner in table.leases.values().filter_map(|lease| lease.owner.as_deref()) {
        *shares.entry(owner).or_default() += 1;
    }
    shares
}

/// Returns true if all shards have owners, all workers are owners, and the shares differ by at most
/// one.
pub(crate) fn are_even(owned: &BTreeMap<&str, usize>, shards: usize, workers: usize) -> bool {
    let least = owned.values().min().copied().unwrap_or(0);
    let most = owned.values().max().copied().unwrap_or(0);
    owned.values().sum::<usize>() == shards && owned.len() == workers && most <= least + 1
}
