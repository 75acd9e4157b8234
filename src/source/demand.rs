//! Signals how urgently the caller wants the next batch of a shard.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// The permission for the next fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Urgency {
    /// No fetch starts: the shard is at its in-flight limit, or the caller took the first record of
    /// a batch and has not polled for the second one yet.
    Held,
    /// The caller still has buffered records to take: a fetch may use memory that is free now.
    Ahead,
    /// The caller waits for this batch: it is fetched however little memory is free.
    Urgent,
}

/// The urgency of one shard, set by its reader and read by its source. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Demand(Arc<DemandState>);

#[derive(Debug, Default)]
struct DemandState {
    /// `HELD`, `AHEAD`, or `URGENT` plus the number of items that the reader has received. The
    /// number ends the urgency as soon as the source has sent the next item.
    state: AtomicU64,
    /// The number of items that the source's task has sent.
    sent: AtomicU64,
    changed: Notify,
}

const HELD: u64 = 0;
const AHEAD: u64 = 1;
const URGENT: u64 = 2;

impl Demand {
    pub(crate) fn hold(&self) {
        self.set(HELD);
    }

    pub(crate) fn fetch_ahead(&self) {
        self.set(AHEAD);
    }

    /// Notes that the reader waits for the item after the first `received` ones.
    pub(crate) fn urge(&self, received: u64) {
        self.set(URGENT + received);
    }

    /// Counts an item that the source's task has sent.
    pub(crate) fn sent(&self) {
        self.0.sent.fetch_add(1, Ordering::AcqRel);
    }

    fn set(&self, state: u64) {
        // Most polls change nothing.
        if self.0.state.load(Ordering::Acquire) != state {
            self.0.state.store(state, Ordering::Release);
            self.0.changed.notify_waiters();
        }
    }

    pub(super) fn urgency(&self) -> Urgency {
        match self.0.state.load(Ordering::Acquire) {
            HELD => Urgency::Held,
            state if state == URGENT + self.0.sent.load(Ordering::Acquire) => Urgency::Urgent,
            _ => Urgency::Ahead,
        }
    }

    pub(super) fn is_urgent(&self) -> bool {
        self.urgency() == Urgency::Urgent
    }

    /// Returns a future that completes at the first change after it was enabled.
    pub(super) fn changed(&self) -> Notified<'_> {
        self.0.changed.notified()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn demand_is_urgent_for_one_item() {
        let demand = Demand::default();
        assert_eq!(demand.urgency(), Urgency::Held);
        demand.urge(0);
        assert_eq!(demand.urgency(), Urgency::Urgent);
        demand.sent();
        assert_eq!(demand.urgency(), Urgency::Ahead, "the item is on its way to the reader");
        demand.urge(1);
        assert_eq!(demand.urgency(), Urgency::Urgent);
        demand.fetch_ahead();
        assert_eq!(demand.urgency(), Urgency::Ahead);
    }
}
