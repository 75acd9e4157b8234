//! Checks each record of a worker at the moment of its delivery.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, ready};

use futures::{FutureExt, Stream, StreamExt};
use kinestream::store::Scope;
use kinestream::store::lease::LeaseTable;
use kinestream::{CheckpointOn, MemoryStore, Record, Result, ShardId, ShardOrdering};
use tokio::task::coop::unconstrained;

use crate::events::EventChecker;
use crate::lease_access::LeaseAccess;
use crate::merged::Merged;
use crate::truth::{Place, Truth};

/// The events of one worker, shared by its stream and its caller.
#[derive(Clone)]
pub(crate) struct SharedEventChecker(Arc<Mutex<EventChecker>>);

impl SharedEventChecker {
    pub(crate) fn new(events: EventChecker) -> Self {
        Self(Arc::new(Mutex::new(events)))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, EventChecker> {
        self.0.lock().expect("nothing panics under the lock")
    }
}

pub(crate) struct CheckedStream {
    pub(crate) merged: Merged,
    pub(crate) events: SharedEventChecker,
    pub(crate) truth: Truth,
    pub(crate) stored: MemoryStore,
    pub(crate) ordinal: usize,
    pub(crate) ordering: ShardOrdering,
    pub(crate) mode: CheckpointOn,
}

impl CheckedStream {
    pub(crate) fn drop_one(&mut self, some: usize) -> Option<ShardId> {
        self.merged.drop_one(some)
    }

    /// Returns the lease table that the store holds at this moment.
    fn stored_table(&self) -> LeaseTable {
        let scope = Scope::new("default", "orders");
        // A lock of tokio waits if the task has used up its budget.
        let table = unconstrained(self.stored.table(&scope)).now_or_never();
        table.expect("the memory store never waits").expect("the memory store never fails")
    }

    /// Checks a record. Returns `None` if it is not a record of the stream.
    fn check(&mut self, record: &Record) -> Option<Place> {
        self.events.lock().process_events();
        let table = self.stored_table();
        let place =
            self.truth.lock().check_delivery(self.ordinal, self.ordering, record, &table)?;
        self.events.lock().check_record(place.shard, place.epoch);
        if self.mode == CheckpointOn::Pull {
            self.merged.hold(place);
        }
        Some(place)
    }
}

impl Stream for CheckedStream {
    type Item = Result<(Record, Place)>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        Poll::Ready(match ready!(this.merged.poll_next_unpin(context)) {
            Some(Ok(record)) => match this.check(&record) {
                Some(place) => Some(Ok((record, place))),
                // The promise that is broken ends the run.
                None => return Poll::Pending,
            },
            Some(Err(error)) => Some(Err(error)),
            None => None,
        })
    }
}
