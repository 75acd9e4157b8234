//! Lease tables for unit tests.

use std::time::Duration;

use std::sync::Arc;

use crate::clock::Clock;
use crate::record::ShardId;
use crate::shard::{LeaseDeadline, LeaseHandle};
use crate::store::lease::{Lease, LeaseTable, WorkerEntry};

pub(super) fn shard(number: usize) -> ShardId {
    format!("shardId-{number:012}").parse().unwrap()
}

/// Returns a table of workers with these incarnations and of shards with these owners in epoch 7.
pub(super) fn table(workers: &[(&str, u64)], owners: &[Option<&str>]) -> LeaseTable {
    let member = |incarnation| WorkerEntry::new(incarnation, 1, Duration::from_secs(10));
    let lease = |owner: Option<&str>| Lease {
        epoch: 7,
        owner: owner.map(Into::into),
        parents: Some(Vec::new()),
        ..Lease::default()
    };
    LeaseTable {
        workers: workers.iter().map(|(name, life)| ((*name).into(), member(*life))).collect(),
        leases: owners.iter().enumerate().map(|(id, owner)| (shard(id), lease(*owner))).collect(),
        ..LeaseTable::default()
    }
}

/// Returns the handle of a lease in epoch 7.
pub(super) fn lease_handle() -> LeaseHandle {
    LeaseHandle::new(7, Arc::new(LeaseDeadline::new(Clock::default())))
}
