//! A lease store behind a gate, which passes, delays or fails each call.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use kinestream::store::Scope;
use kinestream::store::lease::{
    Exchange, Exchanged, FencedOutcome, FencedSave, LeaseStore, OtherReader,
};
use kinestream::{Checkpoint, CheckpointStore, Result, ShardId};

/// The kind of a call that passes the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GatedCall {
    Exchange,
    Save,
    Edit,
}

type Gate = dyn Fn(GatedCall) -> BoxFuture<'static, Result<()>> + Send + Sync;

/// Sends the calls of workers and operators through the gate. Calls that only observe the store
/// bypass it.
#[derive(Clone)]
pub(crate) struct Gated<S> {
    stored: S,
    gate: Arc<Gate>,
}

impl<S> Gated<S> {
    pub(crate) fn new(
        stored: S,
        gate: impl Fn(GatedCall) -> BoxFuture<'static, Result<()>> + Send + Sync + 'static,
    ) -> Self {
        Self { stored, gate: Arc::new(gate) }
    }
}

impl<S: fmt::Debug> fmt::Debug for Gated<S> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Gated").field(&self.stored).finish()
    }
}

impl<S: CheckpointStore + LeaseStore> CheckpointStore for Gated<S> {
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

impl<S: LeaseStore> LeaseStore for Gated<S> {
    fn exchange<'a>(
        &'a self,
        scope: &'a Scope,
        exchange: &'a Exchange,
    ) -> BoxFuture<'a, Result<Exchanged>> {
        async move {
            // Only workers renew. A request without a step or a worker only observes.
            let call = match exchange.step {
                _ if !exchange.renewals.is_empty() => Some(GatedCall::Exchange),
                Some(_) => Some(GatedCall::Edit),
                None => None,
            };
            if let Some(call) = call {
                (self.gate)(call).await?;
            }
            self.stored.exchange(scope, exchange).await
        }
        .boxed()
    }

    fn save_fenced<'a>(
        &'a self,
        scope: &'a Scope,
        saves: &'a [FencedSave],
    ) -> BoxFuture<'a, Result<Vec<FencedOutcome>>> {
        async move {
            (self.gate)(GatedCall::Save).await?;
            self.stored.save_fenced(scope, saves).await
        }
        .boxed()
    }

    fn forgets_finished_shards(&self) -> bool {
        self.stored.forgets_finished_shards()
    }

    fn other_reader<'a>(
        &'a self,
        scope: &'a Scope,
        shards: Option<&'a [ShardId]>,
        lease_duration: Duration,
    ) -> BoxFuture<'a, Result<Option<OtherReader>>> {
        self.stored.other_reader(scope, shards, lease_duration)
    }
}
