//! The store of a worker that crashes between any two calls or within one.

use std::collections::HashMap;
use std::fmt;
use std::future::pending;
use std::sync::{Arc, Mutex};

use fastrand::Rng;
use futures::FutureExt;
use futures::future::BoxFuture;
use kinestream::store::Scope;
use kinestream::store::lease::{Exchange, Exchanged, FencedOutcome, FencedSave, LeaseStore};
use kinestream::{Checkpoint, CheckpointStore, Error, ErrorKind, MemoryStore, Result, ShardId};
use tokio::task::JoinHandle;

/// A worker and its store, which crash together.
pub(crate) struct CrashingWorker {
    pub(crate) store: CrashingStore,
    pub(crate) reading: JoinHandle<()>,
}

impl CrashingWorker {
    pub(crate) fn kill(self) {
        self.store.crash();
        self.reading.abort();
    }
}

#[derive(Clone)]
pub(crate) struct CrashingStore {
    stored: MemoryStore,
    schedule: Arc<Mutex<Schedule>>,
}

struct Schedule {
    rng: Rng,
    /// The number of calls before the crash; `None` for no crash.
    calls: Option<u32>,
    has_crashed: bool,
    is_reliable: bool,
}

/// The outcome of a call.
enum CallOutcome {
    Served,
    /// The connection is lost; true if the call was carried out before.
    Fails(bool),
    /// The call never returns; true if it was carried out before.
    Crashes(bool),
}

impl CrashingStore {
    pub(crate) fn new(stored: MemoryStore, calls: Option<u32>, seed: u64) -> Self {
        let rng = Rng::with_seed(seed);
        Self {
            stored,
            schedule: Arc::new(Mutex::new(Schedule {
                rng,
                calls,
                has_crashed: false,
                is_reliable: false,
            })),
        }
    }

    pub(crate) fn crash(&self) {
        self.schedule.lock().unwrap().has_crashed = true;
    }

    pub(crate) fn stop_faults(&self) {
        self.schedule.lock().unwrap().is_reliable = true;
    }

    fn outcome(&self) -> CallOutcome {
        let mut schedule = self.schedule.lock().unwrap();
        let is_carried_out = schedule.rng.bool();
        if schedule.has_crashed {
            return CallOutcome::Crashes(false);
        }
        if let Some(left) = schedule.calls {
            schedule.has_crashed = left == 0;
            schedule.calls = Some(left.saturating_sub(1));
            if left == 0 {
                return CallOutcome::Crashes(is_carried_out);
            }
        }
        if !schedule.is_reliable && schedule.rng.u8(..10) == 0 {
            return CallOutcome::Fails(is_carried_out);
        }
        CallOutcome::Served
    }

    async fn carry_out<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T> {
        let outcome = self.outcome();
        if matches!(
            outcome,
            CallOutcome::Served | CallOutcome::Fails(true) | CallOutcome::Crashes(true)
        ) {
            let answer = call.await;
            if matches!(outcome, CallOutcome::Served) {
                return answer;
            }
        }
        match outcome {
            CallOutcome::Crashes(_) => pending().await,
            _ => Err(Error::new(ErrorKind::StoreUnavailable, "the store cannot be reached")
                .with_source("the connection was lost")),
        }
    }
}

impl fmt::Debug for CrashingStore {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("CrashingStore")
    }
}

impl CheckpointStore for CrashingStore {
    fn load<'a>(&'a self, scope: &'a Scope) -> BoxFuture<'a, Result<HashMap<ShardId, Checkpoint>>> {
        self.stored.load(scope)
    }

    fn save<'a>(
        &'a self,
        scope: &'a Scope,
        checkpoints: &'a [(ShardId, Checkpoint)],
    ) -> BoxFuture<'a, Result<()>> {
        self.stored.save(scope, checkpoints)
    }

    fn leases(self: Arc<Self>) -> Option<Arc<dyn LeaseStore>> {
        Some(self)
    }
}

impl LeaseStore for CrashingStore {
    fn exchange<'a>(
        &'a self,
        scope: &'a Scope,
        exchange: &'a Exchange,
    ) -> BoxFuture<'a, Result<Exchanged>> {
        self.carry_out(async { self.stored.exchange(scope, exchange).await }).boxed()
    }

    fn save_fenced<'a>(
        &'a self,
        scope: &'a Scope,
        saves: &'a [FencedSave],
    ) -> BoxFuture<'a, Result<Vec<FencedOutcome>>> {
        self.carry_out(async { self.stored.save_fenced(scope, saves).await }).boxed()
    }
}
