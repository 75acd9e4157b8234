//! The shared store as one worker sees it.

use std::collections::HashMap;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use kinestream::store::Scope;
use kinestream::store::lease::{
    AdminEdit, EditOutcome, FencedCheckpoint, HeartbeatRequest, HeartbeatResponse, IfLeased,
    LeaseStore, LeaseTable, SaveOutcome,
};
use kinestream::{Checkpoint, CheckpointStore, Error, ErrorKind, MemoryStore, Result, ShardId};
use tokio::time::{Instant, sleep};

use crate::link::Condition;
use crate::panics::{Panics, Part};
use crate::truth::Truth;

#[derive(Debug, Clone)]
pub(crate) struct SimulatedStore {
    pub(crate) stored: MemoryStore,
    pub(crate) truth: Truth,
    pub(crate) worker: usize,
    pub(crate) panics: Panics,
}

impl SimulatedStore {
    /// Makes a call of the worker under the conditions of its connection and of the store.
    async fn reach<T: Send + 'static>(
        &self,
        call: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        self.maybe_panic(Part::Store);
        let condition = self.condition();
        match condition {
            Condition::Late(time) => return detached_after(time, call).await,
            Condition::Slow(time) => sleep(time / 2).await,
            Condition::Down => return Err(unavailable("no connection")),
            Condition::Hangs => pending().await,
            Condition::Healthy | Condition::Forgetful => {}
        }
        if self.truth.lock().workers[self.worker].is_killed {
            pending::<()>().await;
        }
        let response = call.await?;
        self.maybe_panic(Part::StoreAfter);
        self.after(condition).await?;
        Ok(response)
    }

    async fn after(&self, condition: Condition) -> Result<()> {
        match condition {
            Condition::Slow(time) => sleep(time / 2).await,
            Condition::Forgetful => return Err(unavailable("the connection was lost")),
            _ => {}
        }
        // The process has ended or is suspended.
        if self.condition() == Condition::Hangs {
            pending::<()>().await;
        }
        Ok(())
    }

    /// Panics if a panic is due, and counts it as a failure of the store. A process that does not
    /// run does not panic.
    fn maybe_panic(&self, part: Part) {
        if self.panics.is_armed(part) && self.condition() != Condition::Hangs {
            self.truth.lock().note_failure(self.worker);
            self.panics.maybe(part);
        }
    }

    pub(crate) fn condition(&self) -> Condition {
        self.truth.lock().condition(self.worker)
    }

    async fn table_now(&self, scope: &Scope) -> LeaseTable {
        self.stored.table(scope).await.expect("the memory store never fails")
    }

    async fn carry_out(
        &self,
        scope: &Scope,
        request: &HeartbeatRequest,
    ) -> Result<HeartbeatResponse> {
        let before = self.table_now(scope).await;
        let response = self.stored.exchange(scope, request).await?;
        let after = self.table_now(scope).await;
        self.truth.lock().check_exchange(self.worker, request, &response, &before, &after);
        Ok(response)
    }

    async fn carry_out_save(
        &self,
        scope: &Scope,
        positions: &[FencedCheckpoint],
    ) -> Result<Vec<SaveOutcome>> {
        let before = self.table_now(scope).await;
        let verdicts = self.stored.save_fenced(scope, positions).await?;
        let after = self.table_now(scope).await;
        self.truth.lock().check_save(self.worker, positions, &verdicts, &before, &after);
        Ok(verdicts)
    }

    async fn carry_out_edit(
        &self,
        scope: &Scope,
        edit: &AdminEdit,
        if_leased: IfLeased,
    ) -> Result<EditOutcome> {
        let before = self.table_now(scope).await;
        let outcome = self.stored.edit(scope, edit, if_leased).await?;
        if outcome == EditOutcome::Applied {
            let after = self.table_now(scope).await;
            self.truth.lock().check_edit(self.worker, edit, &before, &after);
        }
        Ok(outcome)
    }
}

/// Carries out a call in a separate task, even if the caller no longer waits for it.
async fn detached_after<T: Send + 'static>(
    time: Duration,
    call: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    let carried_out = tokio::spawn(async move {
        sleep(time).await;
        call.await
    });
    carried_out.await.expect("the call does not panic")
}

fn unavailable(why: &str) -> Error {
    Error::new(ErrorKind::StoreUnavailable, "the store cannot be reached").with_source(why)
}

impl CheckpointStore for SimulatedStore {
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

impl LeaseStore for SimulatedStore {
    fn exchange<'a>(
        &'a self,
        scope: &'a Scope,
        request: &'a HeartbeatRequest,
    ) -> BoxFuture<'a, Result<HeartbeatResponse>> {
        async move {
            self.note_task();
            let sent = (Instant::now(), self.truth.lock().workers[self.worker].wall.now());
            let (store, scope, request) = (self.clone(), scope.clone(), request.clone());
            let response =
                self.reach(async move { store.carry_out(&scope, &request).await }).await?;
            self.truth.lock().note_heartbeat(self.worker, sent, &response);
            Ok(response)
        }
        .boxed()
    }

    fn save_fenced<'a>(
        &'a self,
        scope: &'a Scope,
        positions: &'a [FencedCheckpoint],
    ) -> BoxFuture<'a, Result<Vec<SaveOutcome>>> {
        let (store, scope, saved) = (self.clone(), scope.clone(), positions.to_vec());
        let call = async move { store.carry_out_save(&scope, &saved).await };
        async move {
            let outcomes = self.reach(call).await?;
            self.delay_end(positions, &outcomes).await;
            Ok(outcomes)
        }
        .boxed()
    }

    fn table<'a>(&'a self, scope: &'a Scope) -> BoxFuture<'a, Result<LeaseTable>> {
        self.stored.table(scope)
    }

    fn edit<'a>(
        &'a self,
        scope: &'a Scope,
        edit: &'a AdminEdit,
        if_leased: IfLeased,
    ) -> BoxFuture<'a, Result<EditOutcome>> {
        // A panic is returned to the caller of the edit and not reported as an event.
        let store = Self { panics: self.panics.of_one(), ..self.clone() };
        let (carrier, scope, edit) = (store.clone(), scope.clone(), edit.clone());
        let call = async move { carrier.carry_out_edit(&scope, &edit, if_leased).await };
        async move { store.reach(call).await }.boxed()
    }
}
