//! Signals whether, and how urgently, the caller wants the next item of a shard.
//!
//! ```text
//!   reader: add_permits ──► permits ──► source: permit ──► fetch ──► item ──► sent
//!           forget_permits ◄──┘                 (kept if a fetch brings nothing)
//! ```
//!
//! A polled shard takes a permit at the last moment, when the turn of its call has come: a caller
//! that is fast enough then never wakes its task. With enhanced fan-out, a shard takes it before it
//! waits for an event or subscribes. A permit that is taken stays with the source: only the demand
//! prevents its call.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::sync::futures::Notified;
use tokio::sync::{Notify, Semaphore};

/// The permission for the next fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Urgency {
    /// No call is made: the shard is at its in-flight limit, or the caller took the first record of
    /// a batch and has not polled for the second one yet.
    Held,
    /// The caller still has buffered records to take: a fetch may use memory that is free now.
    Ahead,
    /// The caller waits for this batch: it is fetched however little memory is free.
    Urgent,
}

/// The urgency of one shard, set by its reader and read by its source. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Demand(Arc<DemandState>);

#[derive(Debug)]
struct DemandState {
    /// One for each item that may be sent.
    permits: Semaphore,
    /// The source has taken the permit of the next item.
    has_permit: AtomicBool,
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
    /// Permits the source to send `items` more items.
    pub(crate) fn add_permits(&self, items: usize) {
        self.0.permits.add_permits(items);
    }

    /// Takes back up to `items` permits that the source has not taken. Returns their number.
    pub(crate) fn forget_permits(&self, items: usize) -> usize {
        self.0.permits.forget_permits(items)
    }

    /// Waits for the permit of the next item. Returns at once if the source has already taken it.
    ///
    /// Cancel safe: a permit that was not taken remains available.
    pub(super) async fn permit(&self) {
        if !self.0.has_permit.load(Ordering::Relaxed)
            // The semaphore is never closed.
            && let Ok(permit) = self.0.permits.acquire().await
        {
            permit.forget();
            self.0.has_permit.store(true, Ordering::Relaxed);
        }
    }

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

    /// Counts an item that the source's task has sent, and spends its permit.
    pub(crate) fn sent(&self) {
        self.0.has_permit.store(false, Ordering::Relaxed);
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

impl Default for Demand {
    fn default() -> Self {
        Self(Arc::new(DemandState {
            permits: Semaphore::new(0),
            has_permit: AtomicBool::new(false),
            state: AtomicU64::new(HELD),
            sent: AtomicU64::new(0),
            changed: Notify::new(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn permit_is_kept_until_an_item_is_sent() {
        let demand = Demand::default();
        assert!(demand.permit().now_or_never().is_none());
        demand.add_permits(2);
        assert!(demand.permit().now_or_never().is_some());
        assert!(demand.permit().now_or_never().is_some(), "the first fetch brought nothing");
        assert_eq!(demand.forget_permits(2), 1, "the other one is taken");
        demand.sent();
        assert!(demand.permit().now_or_never().is_none());
    }

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
