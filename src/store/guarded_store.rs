//! A store wrapper that returns panics as errors.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;

use super::Scope;
use super::lease::{
    EntryKey, Exchange, Exchanged, FencedOutcome, FencedSave, LeaseStore, OtherReader,
};
use crate::error::{Error, ErrorKind, Result, TOLERATED_PANICS, contain, contain_call};
use crate::record::ShardId;
use crate::telemetry::{Event, Task, Telemetry};

/// Wraps the store of a consumer.
///
/// For tasks, which retry their calls, the first two panics in a row are returned as temporary
/// errors, and further panics as errors of kind `Panicked`. A caller that waits for the result gets
/// the latter at once.
#[derive(Debug)]
pub(crate) struct GuardedStore {
    store: Arc<dyn LeaseStore>,
    /// `None` if callers wait for the results.
    tasks: Option<Tasks>,
}

#[derive(Debug)]
struct Tasks {
    telemetry: Telemetry,
    /// The number of consecutive exchanges, and of consecutive saves, that panicked.
    exchanges: AtomicU32,
    saves: AtomicU32,
}

impl GuardedStore {
    pub(crate) fn for_tasks(store: Arc<dyn LeaseStore>, telemetry: Telemetry) -> Self {
        let (exchanges, saves) = (AtomicU32::new(0), AtomicU32::new(0));
        Self { store, tasks: Some(Tasks { telemetry, exchanges, saves }) }
    }

    pub(crate) fn for_callers(store: Arc<dyn LeaseStore>) -> Self {
        Self { store, tasks: None }
    }

    async fn call<T>(&self, task: Task, call: impl Future<Output = Result<T>>) -> Result<T> {
        let panics = self.tasks.as_ref().map(|tasks| match task {
            Task::Checkpoints => (tasks, &tasks.saves),
            _ => (tasks, &tasks.exchanges),
        });
        let panic = match contain(call).await {
            Ok(result) => {
                if let Some((_, panics)) = panics {
                    panics.store(0, Ordering::Relaxed);
                }
                return result;
            }
            Err(panic) => panic,
        };
        let action = match task {
            Task::Checkpoints => "saving checkpoints",
            _ => "a lease exchange",
        };
        let Some((tasks, panics)) = panics else {
            let message = format!("the checkpoint store panicked in {action}: {panic}");
            return Err(Error::new(ErrorKind::Panicked, message).with_source(panic));
        };
        let message = panic.to_string();
        tasks.telemetry.emit(Event::TaskRestarted { task, shard_id: None, message });
        let kind = if panics.fetch_add(1, Ordering::Relaxed) < TOLERATED_PANICS {
            ErrorKind::StoreUnavailable
        } else {
            ErrorKind::Panicked
        };
        let message = format!(
            "the checkpoint store panicked in {action}; fix the store; the call is retried: {panic}"
        );
        Err(Error::new(kind, message).with_source(panic))
    }
}

// Each call is made inside the guarded future, since a store may panic before it returns a future.
impl LeaseStore for GuardedStore {
    fn exchange<'a>(
        &'a self,
        scope: &'a Scope,
        exchange: &'a Exchange,
    ) -> BoxFuture<'a, Result<Exchanged>> {
        self.call(Task::Leases, async { self.store.exchange(scope, exchange).await }).boxed()
    }

    fn save_fenced<'a>(
        &'a self,
        scope: &'a Scope,
        saves: &'a [FencedSave],
    ) -> BoxFuture<'a, Result<Vec<FencedOutcome>>> {
        let save = async { self.store.save_fenced(scope, saves).await };
        self.call(Task::Checkpoints, save).boxed()
    }

    fn forgets_finished_shards(&self) -> bool {
        contain_call(|| self.store.forgets_finished_shards()).unwrap_or_default()
    }

    fn other_reader<'a>(
        &'a self,
        scope: &'a Scope,
        shards: Option<&'a [ShardId]>,
        lease_duration: Duration,
    ) -> BoxFuture<'a, Result<Option<OtherReader>>> {
        let found = async move { self.store.other_reader(scope, shards, lease_duration).await };
        self.call(Task::Leases, found).boxed()
    }

    fn unreadable(&self, scope: &Scope, key: &EntryKey, text: &str) -> String {
        let described = contain_call(|| self.store.unreadable(scope, key, text));
        described.unwrap_or_else(|_panic| text.to_owned())
    }
}
