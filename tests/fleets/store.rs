//! The shared store as one worker sees it.

use std::collections::HashMap;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use kinestream::store::Scope;
use kinestream::store::lease::{
    Exchange, Exchanged, FencedOutcome, FencedSave, LeaseStore, LeaseTable,
};
use kinestream::{Checkpoint, CheckpointStore, Error, ErrorKind, MemoryStore, Result, ShardId};
use tokio::time::{Instant, sleep};

use crate::lease_access::LeaseAccess;
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

    /// Reads the store under the conditions of the connection. A reading call neither panics nor
    /// loses its answer.
    async fn observe(&self, scope: &Scope, exchange: &Exchange) -> Result<Exchanged> {
        match self.condition() {
            Condition::Late(time) | Condition::Slow(time) => sleep(time).await,
            Condition::Down => return Err(unavailable("no connection")),
            Condition::Hangs => pending().await,
            Condition::Healthy | Condition::Forgetful => {}
        }
        let replica = {
            let mut facts = self.truth.lock();
            let replica = facts.stale_reads.replica();
            if replica.is_some() {
                let name = facts.workers[self.worker].name.clone();
                facts.log(format_args!("a replica answers {name}"));
            }
            replica
        };
        let source = replica.as_ref().unwrap_or(&self.stored);
        let answer = source.exchange(scope, exchange).await?;
        let after = source.table(scope).await.expect("the memory store never fails");
        self.truth.lock().note_read(self.worker, &answer, &after);
        Ok(answer)
    }

    async fn table_now(&self, scope: &Scope) -> LeaseTable {
        self.stored.table(scope).await.expect("the memory store never fails")
    }

    async fn carry_out(
        &self,
        scope: &Scope,
        exchange: &Exchange,
    ) -> Result<(Exchanged, LeaseTable)> {
        let before = self.table_now(scope).await;
        let answer = self.stored.exchange(scope, exchange).await?;
        let after = self.table_now(scope).await;
        self.truth.lock().check_exchange(self.worker, exchange, &answer, &before, &after);
        Ok((answer, after))
    }

    async fn carry_out_saves(
        &self,
        scope: &Scope,
        saves: &[FencedSave],
    ) -> Result<Vec<FencedOutcome>> {
        let before = self.table_now(scope).await;
        let outcomes = self.stored.save_fenced(scope, saves).await?;
        let after = self.table_now(scope).await;
        self.truth.lock().check_saves(self.worker, saves, &outcomes, &before, &after);
        Ok(outcomes)
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
        exchange: &'a Exchange,
    ) -> BoxFuture<'a, Result<Exchanged>> {
        async move {
            if exchange.renewals.is_empty() && exchange.step.is_none() {
                return self.observe(scope, exchange).await;
            }
            if !exchange.renewals.is_empty() {
                self.note_task();
            }
            let sent = (Instant::now(), self.truth.lock().workers[self.worker].wall.now());
            let mut store = self.clone();
            if exchange.renewals.is_empty() {
                // A panic is returned to the caller of an edit and not reported as an event.
                store.panics = self.panics.of_one();
            }
            let (carrier, scope, request) = (store.clone(), scope.clone(), exchange.clone());
            let call = async move { carrier.carry_out(&scope, &request).await };
            let (answer, after) = store.reach(call).await?;
            self.truth.lock().note_heartbeat(self.worker, sent, exchange, &answer, &after);
            Ok(answer)
        }
        .boxed()
    }

    fn save_fenced<'a>(
        &'a self,
        scope: &'a Scope,
        saves: &'a [FencedSave],
    ) -> BoxFuture<'a, Result<Vec<FencedOutcome>>> {
        let (store, scope, sent) = (self.clone(), scope.clone(), saves.to_vec());
        let call = async move { store.carry_out_saves(&scope, &sent).await };
        async move {
            let outcomes = self.reach(call).await?;
            self.delay_end(saves, &outcomes).await;
            Ok(outcomes)
        }
        .boxed()
    }
}
