//! A store whose panics are errors.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use futures::FutureExt;
use futures::future::BoxFuture;

use super::Scope;
use super::lease::{Answer, Edit, Fenced, LeaseStore, Request, Table, Verdict};
use crate::error::{Error, ErrorKind, Panic, Result, TOLERATED, contain};
use crate::observe::{Event, Observer, Task};

/// The store that a consumer was built with. A call that panics has failed: it is retried as one to a
/// store that does not answer, until it has panicked three times in a row.
#[derive(Debug)]
pub(crate) struct Contained {
    store: Arc<dyn LeaseStore>,
    observer: Observer,
    /// How many exchanges, and how many saves, have panicked in a row.
    exchanges: AtomicU32,
    saves: AtomicU32,
}

impl Contained {
    pub(crate) fn new(store: Arc<dyn LeaseStore>, observer: Observer) -> Self {
        Self { store, observer, exchanges: AtomicU32::new(0), saves: AtomicU32::new(0) }
    }

    /// The answer of a call that is retried.
    async fn retried<T>(&self, task: Task, call: impl Future<Output = Result<T>>) -> Result<T> {
        let (panics, action) = match task {
            Task::Checkpoints => (&self.saves, "saving checkpoints"),
            _ => (&self.exchanges, "an exchange of leases"),
        };
        let panic = match contain(call).await {
            Ok(answer) => {
                panics.store(0, Ordering::Relaxed);
                return answer;
            }
            Err(panic) => panic,
        };
        let message = panic.to_string();
        self.observer.tell(Event::TaskRestarted { task, shard_id: None, message });
        let before = panics.fetch_add(1, Ordering::Relaxed);
        let kind =
            if before < TOLERATED { ErrorKind::StoreUnavailable } else { ErrorKind::Panicked };
        Err(error(kind, action, panic))
    }
}

fn error(kind: ErrorKind, action: &str, panic: Panic) -> Error {
    let message = format!(
        "the checkpoint store panicked in {action}; the store is to be fixed, and is called again \
         meanwhile: {panic}"
    );
    Error::new(kind, message).with_source(panic)
}

/// The answer of a call that its caller waits for.
async fn once<T>(action: &str, call: impl Future<Output = Result<T>>) -> Result<T> {
    let answer = contain(call).await;
    answer.unwrap_or_else(|panic| {
        let message = format!("the checkpoint store panicked in {action}: {panic}");
        Err(Error::new(ErrorKind::Panicked, message).with_source(panic))
    })
}

// The calls are made within the futures: a store may panic before it has made one.
impl LeaseStore for Contained {
    fn exchange<'a>(
        &'a self,
        scope: &'a Scope,
        request: &'a Request,
    ) -> BoxFuture<'a, Result<Answer>> {
        self.retried(Task::Leases, async { self.store.exchange(scope, request).await }).boxed()
    }

    fn save_fenced<'a>(
        &'a self,
        scope: &'a Scope,
        positions: &'a [Fenced],
    ) -> BoxFuture<'a, Result<Vec<Verdict>>> {
        let save = async { self.store.save_fenced(scope, positions).await };
        self.retried(Task::Checkpoints, save).boxed()
    }

    fn table<'a>(&'a self, scope: &'a Scope) -> BoxFuture<'a, Result<Table>> {
        once("reading the leases", async { self.store.table(scope).await }).boxed()
    }

    fn edit<'a>(
        &'a self,
        scope: &'a Scope,
        edit: &'a Edit,
        forced: bool,
    ) -> BoxFuture<'a, Result<Option<Arc<str>>>> {
        once("editing positions", async move { self.store.edit(scope, edit, forced).await }).boxed()
    }
}
