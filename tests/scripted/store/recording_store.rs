//! A store of positions that records its saves and can be slow or down.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use kinestream::store::Scope;
use kinestream::{Checkpoint, CheckpointStore, Error, ErrorKind, MemoryStore, Result, ShardId};
use tokio::time::{Instant, sleep};

/// A store of positions without leases that records its saves, delays its calls, and fails while it
/// is set down.
#[derive(Debug, Clone, Default)]
pub(crate) struct RecordingStore {
    stored: MemoryStore,
    latency: Duration,
    /// The checkpoint interval that the store states; `None` for the default of the trait.
    interval: Option<Duration>,
    saves: Arc<Mutex<Vec<(Instant, usize)>>>,
    down: Arc<AtomicBool>,
    attempts: Arc<AtomicUsize>,
}

impl CheckpointStore for RecordingStore {
    fn load<'a>(&'a self, scope: &'a Scope) -> BoxFuture<'a, Result<HashMap<ShardId, Checkpoint>>> {
        async move {
            self.pause().await;
            self.stored.load(scope).await
        }
        .boxed()
    }

    fn save<'a>(
        &'a self,
        scope: &'a Scope,
        checkpoints: &'a [(ShardId, Checkpoint)],
    ) -> BoxFuture<'a, Result<()>> {
        async move {
            self.attempts.fetch_add(1, Ordering::SeqCst);
            self.pause().await;
            if self.down.load(Ordering::SeqCst) {
                return Err(Error::new(ErrorKind::StoreUnavailable, "the store is down")
                    .with_source("injected by the test"));
            }
            self.saves.lock().unwrap().push((Instant::now(), checkpoints.len()));
            self.stored.save(scope, checkpoints).await?;
            self.pause().await;
            Ok(())
        }
        .boxed()
    }

    fn default_checkpoint_interval(&self) -> Duration {
        let default = || self.stored.default_checkpoint_interval();
        self.interval.unwrap_or_else(default)
    }
}

impl RecordingStore {
    /// Creates a store that waits for `latency` before each call takes effect, and again before a
    /// save returns.
    pub(crate) fn slow(latency: Duration) -> Self {
        Self { latency, ..Self::default() }
    }

    /// Creates a store that states this default of the checkpoint interval.
    pub(crate) fn with_interval(interval: Duration) -> Self {
        Self { interval: Some(interval), ..Self::default() }
    }

    pub(crate) async fn position(&self, shard: usize) -> Option<String> {
        let scope = Scope::new("default", "orders");
        let shard = format!("shardId-{shard:012}").parse().unwrap();
        self.stored.load(&scope).await.unwrap().get(&shard).map(ToString::to_string)
    }

    pub(crate) fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::SeqCst);
    }

    /// Returns the time and the number of shards of each save that was carried out.
    pub(crate) fn saves(&self) -> Vec<(Instant, usize)> {
        self.saves.lock().unwrap().clone()
    }

    /// Returns the number of attempted saves.
    pub(crate) fn attempts(&self) -> usize {
        self.attempts.load(Ordering::SeqCst)
    }

    async fn pause(&self) {
        if !self.latency.is_zero() {
            sleep(self.latency).await;
        }
    }
}
