//! The store of a worker that crashes between any two calls or within one.

use std::collections::HashMap;
use std::fmt;
use std::future::pending;
use std::sync::{Arc, Mutex};

use fastrand::Rng;
use futures::FutureExt;
use futures::future::BoxFuture;
use kinestream::store::Scope;
use kinestream::store::lease::{
    AdminEdit, EditOutcome, FencedCheckpoint, HeartbeatRequest, HeartbeatResponse, IfLeased,
    LeaseStore, LeaseTable, SaveOutcome,
};
use kinestream::{Checkpoint, CheckpointStore, Error, ErrorKind, MemoryStore, Result, ShardId};
use tokio::task::JoinHandle;

/// A worker and its store, which crash together.
pub(crate) struct MortalWorker {
    pub(crate) store: MortalStore,
    pub(crate) reading: JoinHandle<()>,
}

impl MortalWorker {
    pub(crate) fn kill(self) {
        self.store.die();
        self.reading.abort();
    }
}

#[derive(Clone)]
pub(crate) struct MortalStore {
    stored: MemoryStore,
    life: Arc<Mutex<Life>>,
}

struct Life {
    rng: Rng,
    /// The number of calls before the crash; `None` for no crash.
    calls: Option<u32>,
    is_dead: bool,
    is_well: bool,
}

/// The fate of a call.
enum Fate {
    Served,
    /// The connection is lost; true if the call was carried out before.
    Fails(bool),
    /// The call never returns; true if it was carried out before.
    Dies(bool),
}

impl MortalStore {
    pub(crate) fn new(stored: MemoryStore, calls: Option<u32>, seed: u64) -> Self {
        let rng = Rng::with_seed(seed);
        Self {
            stored,
            life: Arc::new(Mutex::new(Life { rng, calls, is_dead: false, is_well: false })),
        }
    }

    pub(crate) fn die(&self) {
        self.life.lock().unwrap().is_dead = true;
    }

    pub(crate) fn be_well(&self) {
        self.life.lock().unwrap().is_well = true;
    }

    fn fate(&self) -> Fate {
        let mut life = self.life.lock().unwrap();
        let is_carried_out = life.rng.bool();
        if life.is_dead {
            return Fate::Dies(false);
        }
        if let Some(left) = life.calls {
            life.is_dead = left == 0;
            life.calls = Some(left.saturating_sub(1));
            if left == 0 {
                return Fate::Dies(is_carried_out);
            }
        }
        if !life.is_well && life.rng.u8(..10) == 0 {
            return Fate::Fails(is_carried_out);
        }
        Fate::Served
    }

    async fn reach<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T> {
        let fate = self.fate();
        if matches!(fate, Fate::Served | Fate::Fails(true) | Fate::Dies(true)) {
            let answer = call.await;
            if matches!(fate, Fate::Served) {
                return answer;
            }
        }
        match fate {
            Fate::Dies(_) => pending().await,
            _ => Err(Error::new(ErrorKind::StoreUnavailable, "the store cannot be reached")
                .with_source("the connection was lost")),
        }
    }
}

impl fmt::Debug for MortalStore {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("MortalStore")
    }
}

impl CheckpointStore for MortalStore {
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

impl LeaseStore for MortalStore {
    fn exchange<'a>(
        &'a self,
        scope: &'a Scope,
        request: &'a HeartbeatRequest,
    ) -> BoxFuture<'a, Result<HeartbeatResponse>> {
        self.reach(async { self.stored.exchange(scope, request).await }).boxed()
    }

    fn save_fenced<'a>(
        &'a self,
        scope: &'a Scope,
        positions: &'a [FencedCheckpoint],
    ) -> BoxFuture<'a, Result<Vec<SaveOutcome>>> {
        self.reach(async { self.stored.save_fenced(scope, positions).await }).boxed()
    }

    fn table<'a>(&'a self, scope: &'a Scope) -> BoxFuture<'a, Result<LeaseTable>> {
        self.reach(async { self.stored.table(scope).await }).boxed()
    }

    fn edit<'a>(
        &'a self,
        scope: &'a Scope,
        edit: &'a AdminEdit,
        if_leased: IfLeased,
    ) -> BoxFuture<'a, Result<EditOutcome>> {
        self.reach(async move { self.stored.edit(scope, edit, if_leased).await }).boxed()
    }
}
