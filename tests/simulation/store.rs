//! A store that is slow, loses its connection, or carries out calls that it reports as failed.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use kinestream::store::Scope;
use kinestream::{Checkpoint, CheckpointStore, Error, ErrorKind, MemoryStore, Result, ShardId};
use tokio::time::{Instant, sleep};

use crate::panics::{Panics, Part};
use crate::truth::{Promise, Truth};

/// The maximum number of consecutive panics that a writer tolerates while it ends: it retries its
/// last save for 10 s.
const MAX_PANICS: usize = 5;

/// The condition of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Condition {
    Healthy,
    /// Every call takes this long, half of the time before it is carried out.
    Slow(Duration),
    /// Every call fails.
    Down,
    /// Every call is carried out, and then fails.
    Forgetful,
    /// No call ever returns.
    Hangs,
}

/// The store as one reader sees it.
#[derive(Debug, Clone)]
pub(crate) struct SimulatedStore {
    state: Arc<Mutex<StoreState>>,
    stored: MemoryStore,
    truth: Truth,
    panics: Panics,
    /// Set when the process of the reader has ended: its calls no longer reach the store.
    cut_off: Arc<AtomicBool>,
    /// The positions that this reader has stored.
    own: Arc<Mutex<BTreeMap<ShardId, Checkpoint>>>,
    /// The positions that this reader has loaded, or has stored with a successful response.
    known: Arc<Mutex<BTreeMap<ShardId, Checkpoint>>>,
}

#[derive(Debug)]
struct StoreState {
    condition: Condition,
    /// The last time at which the store was not healthy.
    unhealthy: Option<Instant>,
    /// The last time at which the store failed or did not respond.
    failed: Option<Instant>,
}

impl SimulatedStore {
    pub(crate) fn new(truth: Truth, panics: Panics) -> Self {
        Self {
            state: Arc::new(Mutex::new(StoreState {
                condition: Condition::Healthy,
                unhealthy: None,
                failed: None,
            })),
            stored: MemoryStore::new(),
            truth,
            panics,
            cut_off: Arc::default(),
            own: Arc::default(),
            known: Arc::default(),
        }
    }

    /// Returns the same store as another process sees it.
    pub(crate) fn for_another(&self) -> Self {
        let (own, known) = (Arc::default(), Arc::default());
        Self { cut_off: Arc::default(), own, known, ..self.clone() }
    }

    /// Returns the store after it has lost everything, as another process sees it.
    pub(crate) fn emptied(&self) -> Self {
        Self { stored: MemoryStore::new(), ..self.for_another() }
    }

    pub(crate) fn set_condition(&self, condition: Condition) {
        let mut state = self.state.lock().unwrap();
        if state.condition != Condition::Healthy {
            state.unhealthy = Some(Instant::now());
        }
        if !matches!(state.condition, Condition::Healthy | Condition::Slow(_)) {
            state.failed = Some(Instant::now());
        }
        state.condition = condition;
    }

    pub(crate) fn condition(&self) -> Condition {
        self.state.lock().unwrap().condition
    }

    /// Returns how long the store has been healthy.
    pub(crate) fn healthy_for(&self) -> Duration {
        if self.panics.left(Part::Store) + self.panics.left(Part::StoreAfter) > MAX_PANICS {
            return Duration::ZERO;
        }
        let state = self.state.lock().unwrap();
        match (state.condition, state.unhealthy) {
            (Condition::Healthy, Some(unhealthy)) => unhealthy.elapsed(),
            (Condition::Healthy, None) => Duration::MAX,
            _ => Duration::ZERO,
        }
    }

    /// Returns how long every call has been answered, however slowly.
    pub(crate) fn answers_for(&self) -> Duration {
        let state = self.state.lock().unwrap();
        match (state.condition, state.failed) {
            (Condition::Healthy | Condition::Slow(_), None) => Duration::MAX,
            (Condition::Healthy | Condition::Slow(_), Some(failed)) => failed.elapsed(),
            _ => Duration::ZERO,
        }
    }

    /// Panics if a panic is due, and counts it as a failure of the store.
    fn maybe_panic(&self, part: Part) {
        if self.panics.is_armed(part) && !self.is_cut_off() {
            let now = Some(Instant::now());
            {
                let mut state = self.state.lock().unwrap();
                (state.unhealthy, state.failed) = (now, now);
            }
            self.panics.maybe(part);
        }
    }

    /// Cuts off the reader, as if its process were killed.
    pub(crate) fn cut_off(&self) {
        self.cut_off.store(true, Ordering::SeqCst);
    }

    /// Returns the stored positions.
    pub(crate) async fn positions(&self) -> BTreeMap<ShardId, Checkpoint> {
        let stored = self.stored.load(&Scope::new("default", "orders")).await;
        stored.expect("the memory store never fails").into_iter().collect()
    }

    /// Returns the stored positions that the reader knows to be stored.
    pub(crate) async fn known_positions(&self) -> BTreeMap<ShardId, Checkpoint> {
        let known = self.known.lock().unwrap().clone();
        let mut stored = self.positions().await;
        stored.retain(|shard, checkpoint| known.get(shard) == Some(checkpoint));
        stored
    }

    fn note_known(&self, checkpoints: impl IntoIterator<Item = (ShardId, Checkpoint)>) {
        self.known.lock().unwrap().extend(checkpoints);
    }

    /// Delays a call before it is carried out. Returns an error if it is not carried out.
    async fn before(&self) -> Result<Condition> {
        self.maybe_panic(Part::Store);
        let condition = if self.is_cut_off() { Condition::Hangs } else { self.condition() };
        match condition {
            Condition::Healthy | Condition::Forgetful => {}
            Condition::Slow(time) => sleep(time / 2).await,
            Condition::Down => return Err(unavailable("no connection")),
            Condition::Hangs => std::future::pending().await,
        }
        if self.is_cut_off() {
            std::future::pending::<()>().await;
        }
        Ok(condition)
    }

    async fn after(&self, condition: Condition) -> Result<()> {
        self.maybe_panic(Part::StoreAfter);
        match condition {
            Condition::Slow(time) => sleep(time / 2).await,
            Condition::Forgetful => return Err(unavailable("the connection was lost")),
            _ => {}
        }
        Ok(())
    }

    fn is_cut_off(&self) -> bool {
        self.cut_off.load(Ordering::SeqCst)
    }

    fn check(&self, checkpoints: &[(ShardId, Checkpoint)]) {
        let mut facts = self.truth.lock();
        let mut own = self.own.lock().unwrap();
        for (shard, checkpoint) in checkpoints {
            facts.check_position(shard, checkpoint);
            if let Some(earlier) = own.insert(shard.clone(), checkpoint.clone())
                && earlier.supersedes(checkpoint)
                // A shard that restarts after a panic saves positions of both epochs, and the store
                // keeps the furthest one.
                && !self.panics.have_fired()
            {
                facts.breaks(
                    Promise::NeverBackwards,
                    format_args!(
                        "{shard} is stored as {checkpoint}, which precedes the stored {earlier}"
                    ),
                );
            }
        }
    }
}

fn unavailable(why: &str) -> Error {
    Error::new(ErrorKind::StoreUnavailable, "the store cannot be reached").with_source(why)
}

impl CheckpointStore for SimulatedStore {
    fn load<'a>(&'a self, scope: &'a Scope) -> BoxFuture<'a, Result<HashMap<ShardId, Checkpoint>>> {
        async move {
            let condition = self.before().await?;
            let loaded = self.stored.load(scope).await?;
            self.truth.log(format_args!("store: loaded {} checkpoints", loaded.len()));
            self.after(condition).await?;
            self.note_known(loaded.clone());
            Ok(loaded)
        }
        .boxed()
    }

    fn save<'a>(
        &'a self,
        scope: &'a Scope,
        checkpoints: &'a [(ShardId, Checkpoint)],
    ) -> BoxFuture<'a, Result<()>> {
        async move {
            let condition = self.before().await?;
            for (shard, checkpoint) in checkpoints {
                self.truth.log(format_args!("store: save {shard} at {checkpoint}"));
            }
            self.check(checkpoints);
            self.stored.save(scope, checkpoints).await?;
            self.truth.lock().started = true;
            self.after(condition).await?;
            self.note_known(checkpoints.iter().cloned());
            Ok(())
        }
        .boxed()
    }
}
