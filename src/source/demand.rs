//! How urgently a shard's caller wants the next batch.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// What a fetch may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Urgency {
    /// No fetch begins: the shard is at its in-flight limit, or its caller has the first record of
    /// a batch and has not come back for the second.
    Held,
    /// The caller still has records to take: a fetch may use memory that is free now.
    Ahead,
    /// The caller waits for this batch: it is fetched whatever memory is free.
    Urgent,
}

/// The urgency of one shard, set by its reader and read by its source. The clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Demand(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// `HELD`, `AHEAD`, or `URGENT` and how many items the reader has received: what came in
    /// meanwhile was not urgent twice.
    state: AtomicU64,
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

    /// The reader waits for the item behind the `received` ones.
    pub(crate) fn urge(&self, received: u64) {
        self.set(URGENT + received);
    }

    /// The source's task has sent an item.
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

    /// Completes at the first change after it was enabled.
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
        assert_eq!(demand.urgency(), Urgency::Ahead, "the item is under way to the reader");
        demand.urge(1);
        assert_eq!(demand.urgency(), Urgency::Urgent);
        demand.fetch_ahead();
        assert_eq!(demand.urgency(), Urgency::Ahead);
    }
}
