//! Checks each record of a worker at the moment of its delivery.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, ready};

use futures::{FutureExt, Stream, StreamExt};
use kinestream::store::Scope;
use kinestream::store::lease::{LeaseStore, LeaseTable};
use kinestream::{CheckpointOn, MemoryStore, Record, Result, ShardId, ShardOrdering};

use crate::hearing::Hearing;
use crate::merged::Merged;
use crate::truth::{Place, Truth};

/// The events of one worker, shared by its stream and its caller.
#[derive(Clone)]
pub(crate) struct SharedHearing(Arc<Mutex<Hearing>>);

impl SharedHearing {
    pub(crate) fn new(hearing: Hearing) -> Self {
        Self(Arc::new(Mutex::new(hearing)))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Hearing> {
        self.0.lock().expect("nothing panics under the lock")
    }
}

pub(crate) struct Judged {
    pub(crate) merged: Merged,
    pub(crate) hearing: SharedHearing,
    pub(crate) truth: Truth,
    pub(crate) stored: MemoryStore,
    pub(crate) life: usize,
    pub(crate) ordering: ShardOrdering,
    pub(crate) mode: CheckpointOn,
}

impl Judged {
    pub(crate) fn drop_one(&mut self, some: usize) -> Option<ShardId> {
        self.merged.drop_one(some)
    }

    /// Returns the lease table that the store holds at this moment.
    fn stored_table(&self) -> LeaseTable {
        let scope = Scope::new("default", "orders");
        let table = self.stored.table(&scope).now_or_never();
        table.expect("the memory store never waits").expect("the memory store never fails")
    }

    fn judge(&mut self, record: &Record) -> Place {
        self.hearing.lock().listen();
        let table = self.stored_table();
        let place = self.truth.lock().judge(self.life, self.ordering, record, &table);
        self.hearing.lock().check_record(place.shard, place.epoch);
        if self.mode == CheckpointOn::Pull {
            self.merged.hold(place);
        }
        place
    }
}

impl Stream for Judged {
    type Item = Result<(Record, Place)>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let next = ready!(this.merged.poll_next_unpin(context));
        let mut judge = |record| {
            let place = this.judge(&record);
            (record, place)
        };
        Poll::Ready(next.map(|next| next.map(&mut judge)))
    }
}
