//! A store wrapper that returns panics as errors.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use futures::FutureExt;
use futures::future::BoxFuture;

use super::Scope;
use super::lease::{
    AdminEdit, EditOutcome, FencedCheckpoint, HeartbeatRequest, HeartbeatResponse, IfLeased,
    LeaseStore, LeaseTable, SaveOutcome,
};
use crate::error::{Error, ErrorKind, Panic, Result, TOLERATED_PANICS, contain};
use crate::telemetry::{Event, Task, Telemetry};

/// Wraps the store of a consumer. The first two panics in a row are returned as temporary errors,
/// further panics as errors of kind `Panicked`.
#[derive(Debug)]
pub(crate) struct GuardedStore {
    store: Arc<dyn LeaseStore>,
    telemetry: Telemetry,
    /// The number of consecutive exchanges, and of consecutive saves, that panicked.
    exchanges: AtomicU32,
    saves: AtomicU32,
}

impl GuardedStore {
    pub(crate) fn new(store: Arc<dyn LeaseStore>, telemetry: Telemetry) -> Self {
        Self { store, telemetry, exchanges: AtomicU32::new(0), saves: AtomicU32::new(0) }
    }

    /// Makes a call that a background task retries.
    async fn retried<T>(&self, task: Task, call: impl Future<Output = Result<T>>) -> Result<T> {
        let (panics, action) = match task {
            Task::Checkpoints => (&self.saves, "saving checkpoints"),
            _ => (&self.exchanges, "a lease exchange"),
        };
        let panic = match contain(call).await {
            Ok(result) => {
                panics.store(0, Ordering::Relaxed);
                return result;
            }
            Err(panic) => panic,
        };
        let message = panic.to_string();
        self.telemetry.emit(Event::TaskRestarted { task, shard_id: None, message });
        let before = panics.fetch_add(1, Ordering::Relaxed);
        let kind = if before < TOLERATED_PANICS {
            ErrorKind::StoreUnavailable
        } else {
            ErrorKind::Panicked
        };
        Err(error(kind, action, panic))
    }
}

fn error(kind: ErrorKind, action: &str, panic: Panic) -> Error {
    let message = format!(
        "the checkpoint store panicked in {action}; fix the store; the call is retried: {panic}"
    );
    Error::new(kind, message).with_source(panic)
}

/// Makes a call for a caller that waits for the result.
async fn once<T>(action: &str, call: impl Future<Output = Result<T>>) -> Result<T> {
    let result = contain(call).await;
    result.unwrap_or_else(|panic| {
        let message = format!("the checkpoint store panicked in {action}: {panic}");
        Err(Error::new(ErrorKind::Panicked, message).with_source(panic))
    })
}

// Each call is made inside the guarded future, since a store may panic before it returns a future.
impl LeaseStore for GuardedStore {
    fn exchange<'a>(
        &'a self,
        scope: &'a Scope,
        request: &'a HeartbeatRequest,
    ) -> BoxFuture<'a, Result<HeartbeatResponse>> {
        self.retried(Task::Leases, async { self.store.exchange(scope, request).await }).boxed()
    }

    fn save_fenced<'a>(
        &'a self,
        scope: &'a Scope,
        positions: &'a [FencedCheckpoint],
    ) -> BoxFuture<'a, Result<Vec<SaveOutcome>>> {
        let save = async { self.store.save_fenced(scope, positions).await };
        self.retried(Task::Checkpoints, save).boxed()
    }

    fn table<'a>(&'a self, scope: &'a Scope) -> BoxFuture<'a, Result<LeaseTable>> {
        once("reading the leases", async { self.store.table(scope).await }).boxed()
    }

    fn edit<'a>(
        &'a self,
        scope: &'a Scope,
        edit: &'a AdminEdit,
        if_leased: IfLeased,
    ) -> BoxFuture<'a, Result<EditOutcome>> {
        once("editing positions", async move { self.store.edit(scope, edit, if_leased).await })
            .boxed()
    }
}
