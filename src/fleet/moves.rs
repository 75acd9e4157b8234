//! The times at which leases may move to even out load.
//!
//! ```text
//!            a lease moves                     1.5 renewals without a move, and half a
//!   ┌──────────────────────────► resting ─────────────────────────────────────────────┐
//!   │                                          renewal without news of loads          │
//!   └──────────────────────────── ready ◄─────────────────────────────────────────────┘
//! ```
//!
//! After a move, the new owner measures the lease before anything moves again, so that no lease moves
//! back and forth. While loads change all over the fleet, the statements of several workers are waited
//! for, for at most one more renewal.

use std::time::Duration;

use tokio::time::Instant;

use super::weights::Weights;
use crate::store::lease::{Lease, LeaseTable};

/// The moves of leases that may be made at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moves {
    /// Those that do not depend on measured loads: free leases are assigned, and a worker with less
    /// than half of its share of the shards, as after it has joined, receives its share.
    Urgent,
    /// Also those that even out load.
    ByLoad,
}

/// The times of the last changes that this worker has seen in the table.
#[derive(Debug)]
pub(super) struct MoveTimes {
    /// The interval between renewals.
    renewal: Duration,
    /// The last time at which a lease moved or was moving.
    moved: Instant,
    /// The last time at which a worker stated another load.
    stated: Instant,
}

impl MoveTimes {
    pub(super) fn new(renewal: Duration, now: Instant) -> Self {
        Self { renewal, moved: now, stated: now }
    }

    /// Notes what a new table shows.
    pub(super) fn observe(&mut self, before: &LeaseTable, table: &LeaseTable, now: Instant) {
        let has_moved = table.leases.iter().any(|(shard, lease)| {
            let is_known = |known: &Lease| known.owner == lease.owner;
            lease.next_owner.is_some()
                || lease.owner.is_some() && !before.leases.get(shard).is_some_and(is_known)
        });
        if has_moved {
            self.moved = now;
        }
        let has_stated = table
            .workers
            .iter()
            .any(|(name, it)| before.workers.get(name).is_none_or(|known| known.load != it.load));
        if has_stated {
            self.stated = now;
        }
    }

    /// Returns the moves that may be made now in a table with these weights.
    pub(super) fn allowed(&self, weights: &Weights<'_>, now: Instant) -> Moves {
        if weights.are_complete() && self.ready_at() <= now { Moves::ByLoad } else { Moves::Urgent }
    }

    /// Returns the time from which leases may move by load.
    pub(super) fn ready_at(&self) -> Instant {
        let rested = self.moved + self.renewal * 3 / 2;
        let settled = self.stated + self.renewal / 2;
        rested.max(settled.min(rested + self.renewal))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::fixtures::{shard, table};
    use crate::store::lease::WorkerLoad;

    const RENEWAL: Duration = Duration::from_secs(2);

    #[test]
    fn leases_rest_after_a_move_and_after_a_statement() {
        let now = Instant::now();
        let mut times = MoveTimes::new(RENEWAL, now);
        let before = table(&[("a", 1), ("b", 1)], &[Some("a"), Some("a")]);
        times.observe(&before, &before, now + 10 * RENEWAL);
        assert_eq!(
            times.ready_at(),
            now + Duration::from_secs(3),
            "expected no rest without a change"
        );

        let mut offered = before.clone();
        offered.leases.get_mut(&shard(0)).unwrap().next_owner = Some("b".into());
        let at = now + 20 * RENEWAL;
        times.observe(&before, &offered, at);
        times.observe(&offered, &offered, at + RENEWAL);
        assert_eq!(
            times.ready_at(),
            at + Duration::from_secs(5),
            "expected a rest after the handoff"
        );

        let mut stated = before.clone();
        stated.workers.get_mut("a").unwrap().load = Some(WorkerLoad::of([(shard(0), 7)]));
        let at = now + 30 * RENEWAL;
        times.observe(&before, &stated, at);
        assert_eq!(
            times.ready_at(),
            now + 21 * RENEWAL + Duration::from_secs(5),
            "at most one renewal"
        );
        let mut settling = MoveTimes::new(RENEWAL, now);
        settling.observe(&before, &stated, now + Duration::from_millis(2500));
        assert_eq!(settling.ready_at(), now + Duration::from_millis(3500));
    }
}
