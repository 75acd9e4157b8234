//! Leases for a store that keeps positions only: one worker reads every shard.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::time::Instant;

use super::lease::{
    EntryChange, EntryKey, Exchange, Exchanged, FencedOutcome, FencedSave, LeaseStore, Step,
};
use super::{CheckpointStore, MemoryStore, Scope, with_timeout};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::mutex::Mutex;
use crate::record::ShardId;
use crate::telemetry::log_line;

/// Keeps a consumer's leases in memory, on top of a store without lease support. Once a worker has
/// started, it uses the store only to save positions.
#[derive(Debug)]
pub(super) struct SingleWorkerLeases {
    store: Arc<dyn CheckpointStore>,
    table: MemoryStore,
    /// The scopes that are loaded from the store into the table.
    loaded: Mutex<HashSet<Scope>>,
    /// The time of the last load, which shows the unreadable positions.
    last_loaded: Mutex<Instant>,
}

/// The interval at which unreadable positions are loaded again.
const RELOAD_INTERVAL: Duration = Duration::from_secs(30);

impl SingleWorkerLeases {
    pub(super) fn new(store: Arc<dyn CheckpointStore>) -> Self {
        let (loaded, last_loaded) = (Mutex::default(), Mutex::new(Instant::now()));
        Self { store, table: MemoryStore::new(), loaded, last_loaded }
    }

    fn lock(&self) -> MutexGuard<'_, Instant> {
        self.last_loaded.lock()
    }

    fn loaded(&self) -> MutexGuard<'_, HashSet<Scope>> {
        self.loaded.lock()
    }

    async fn load(&self, scope: &Scope) -> Result<()> {
        let stored = with_timeout(self.store.load_each(scope)).await?;
        let text = |error: Error| error.to_string().into();
        let stored = stored.into_iter().map(|(shard, found)| (shard, found.map_err(text)));
        self.table.merge_loaded(scope, &stored.collect());
        *self.lock() = Instant::now();
        self.loaded().insert(scope.clone());
        Ok(())
    }

    /// Stores the starting positions of shards before the shards are added. The first process that
    /// stores a starting position pins it for all, so the stored positions are then loaded. Returns
    /// the step that remains.
    async fn store_starting_positions(&self, scope: &Scope, step: &Step) -> Result<Step> {
        let start = |change: &EntryChange| match (&change.key, &change.expected, &change.text) {
            (EntryKey::Position(shard), None, Some(text)) => {
                Some((shard.clone(), text.parse().ok()?))
            }
            _ => None,
        };
        let pins: Vec<(ShardId, Checkpoint)> = step.entries.iter().filter_map(start).collect();
        let mut rest = step.clone();
        if pins.is_empty() {
            return Ok(rest);
        }
        // If this future is dropped from here on, the stored positions are unknown.
        self.loaded().remove(scope);
        with_timeout(self.store.save(scope, &pins)).await?;
        self.load(scope).await?;
        for change in rest.entries.iter_mut().filter(|change| start(change).is_some()) {
            let EntryKey::Position(shard) = &change.key else { continue };
            // Another position conflicts with the step.
            let stored =
                self.table.position(scope, shard).filter(|it| Some(it) == change.text.as_ref());
            change.expected = stored;
        }
        // The load changes the version, but no other worker uses this table.
        rest.version = None;
        Ok(rest)
    }

    /// Saves positions. Returns the shards with a stored position that is unreadable and cannot be
    /// replaced.
    async fn save(
        &self,
        scope: &Scope,
        positions: &[(ShardId, Checkpoint)],
    ) -> Result<HashMap<ShardId, Arc<str>>> {
        let error = match self.store.save(scope, positions).await {
            Err(error) if error.kind() == ErrorKind::StoreCorrupt => error,
            saved => return saved.map(|()| HashMap::new()),
        };
        // The error may concern a single shard.
        let mut refused = HashMap::new();
        for position in positions {
            match self.store.save(scope, std::slice::from_ref(position)).await {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::StoreCorrupt => {
                    refused.insert(position.0.clone(), error.to_string().into());
                }
                Err(error) => return Err(error),
            }
        }
        if refused.len() == positions.len() {
            let Ok(found) = self.store.load_each(scope).await else { return Err(error) };
            if !refused.keys().all(|shard| found.get(shard).is_some_and(Result::is_err)) {
                return Err(error);
            }
        }
        Ok(refused)
    }

    /// Returns true if unreadable positions are due to be loaded again.
    fn is_reload_due(&self, scope: &Scope, exchange: &Exchange) -> bool {
        let is_due = self.lock().elapsed() >= RELOAD_INTERVAL;
        is_due && exchange.known.is_none() && self.table.has_unreadable(scope)
    }
}

impl LeaseStore for SingleWorkerLeases {
    fn exchange<'a>(
        &'a self,
        scope: &'a Scope,
        exchange: &'a Exchange,
    ) -> BoxFuture<'a, Result<Exchanged>> {
        async move {
            let is_loaded = self.loaded().contains(scope);
            let is_read = exchange.known.is_none() && exchange.renewals.is_empty();
            if !is_loaded || is_read {
                self.load(scope).await?;
            } else if self.is_reload_due(scope, exchange)
                && let Err(error) = self.load(scope).await
            {
                // Not fatal: the other shards use the store only to save positions.
                log_line!(debug, %error, "checkpoint reload failed");
            }
            let step = match &exchange.step {
                Some(step) => Some(self.store_starting_positions(scope, step).await?),
                None => None,
            };
            self.table.exchange(scope, &Exchange { step, ..exchange.clone() }).await
        }
        .boxed()
    }

    fn save_fenced<'a>(
        &'a self,
        scope: &'a Scope,
        saves: &'a [FencedSave],
    ) -> BoxFuture<'a, Result<Vec<FencedOutcome>>> {
        async move {
            let accepted = self.table.accepted(scope, saves).into_iter();
            let position = |save: FencedSave| Some((save.shard, save.text.parse().ok()?));
            let positions: Vec<_> = accepted.filter_map(position).collect();
            if !positions.is_empty() {
                let refused = self.save(scope, &positions).await?;
                if !refused.is_empty() {
                    self.table.mark_unreadable(scope, refused);
                    *self.lock() = Instant::now();
                }
            }
            self.table.save_fenced(scope, saves).await
        }
        .boxed()
    }

    fn unreadable(&self, _scope: &Scope, _key: &EntryKey, text: &str) -> String {
        // The text is the reason.
        text.to_owned()
    }
}
