//! A store that is slow, loses its connection, or carries out what it then says has failed.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use kinestream::store::Scope;
use kinestream::{Checkpoint, CheckpointStore, Error, MemoryStore, Result, ShardId};
use tokio::time::{Instant, sleep};

use crate::panics::{Panics, Part};
use crate::truth::{Promise, Truth};

/// The most panics in a row that a writer that ends outlasts: it retries its last save for 10 s.
const MOST_PANICS: usize = 5;

/// How the store is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Health {
    Well,
    /// Every call takes so long, half of it before it is carried out.
    Slow(Duration),
    /// Every call fails.
    Down,
    /// Every call is carried out, and then fails.
    Forgetful,
    /// No call ever answers.
    Hangs,
}

/// What a reader sees of the store.
#[derive(Debug, Clone)]
pub(crate) struct SimulatedStore {
    shared: Arc<Mutex<Shared>>,
    stored: MemoryStore,
    truth: Truth,
    panics: Panics,
    /// The reader's process has ended: nothing that it does reaches the store any more.
    cut_off: Arc<AtomicBool>,
    /// What this reader has stored.
    own: Arc<Mutex<BTreeMap<ShardId, Checkpoint>>>,
    /// What this reader has loaded, or has stored with an answer.
    known: Arc<Mutex<BTreeMap<ShardId, Checkpoint>>>,
}

#[derive(Debug)]
struct Shared {
    health: Health,
    /// When the store was last anything but well.
    unwell: Option<Instant>,
    /// When it last failed, or did not answer.
    failed: Option<Instant>,
}

impl SimulatedStore {
    pub(crate) fn new(truth: Truth, panics: Panics) -> Self {
        Self {
            shared: Arc::new(Mutex::new(Shared {
                health: Health::Well,
                unwell: None,
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

    /// The same store, as another process sees it.
    pub(crate) fn for_another(&self) -> Self {
        let (own, known) = (Arc::default(), Arc::default());
        Self { cut_off: Arc::default(), own, known, ..self.clone() }
    }

    /// The same store after it has lost everything, as another process sees it.
    pub(crate) fn emptied(&self) -> Self {
        Self { stored: MemoryStore::new(), ..self.for_another() }
    }

    pub(crate) fn set_health(&self, health: Health) {
        let mut shared = self.shared.lock().unwrap();
        if shared.health != Health::Well {
            shared.unwell = Some(Instant::now());
        }
        if !matches!(shared.health, Health::Well | Health::Slow(_)) {
            shared.failed = Some(Instant::now());
        }
        shared.health = health;
    }

    pub(crate) fn health(&self) -> Health {
        self.shared.lock().unwrap().health
    }

    /// How long the store has been well for.
    pub(crate) fn well_for(&self) -> Duration {
        if self.panics.left(Part::Store) + self.panics.left(Part::StoreAfter) > MOST_PANICS {
            return Duration::ZERO;
        }
        let shared = self.shared.lock().unwrap();
        match (shared.health, shared.unwell) {
            (Health::Well, Some(unwell)) => unwell.elapsed(),
            (Health::Well, None) => Duration::MAX,
            _ => Duration::ZERO,
        }
    }

    /// How long every call has been answered for, however slowly.
    pub(crate) fn answers_for(&self) -> Duration {
        let shared = self.shared.lock().unwrap();
        match (shared.health, shared.failed) {
            (Health::Well | Health::Slow(_), None) => Duration::MAX,
            (Health::Well | Health::Slow(_), Some(failed)) => failed.elapsed(),
            _ => Duration::ZERO,
        }
    }

    /// Panics if it is to, which is one way to fail.
    fn maybe_panic(&self, part: Part) {
        if self.panics.is_armed(part) && !self.is_cut_off() {
            let now = Some(Instant::now());
            {
                let mut shared = self.shared.lock().unwrap();
                (shared.unwell, shared.failed) = (now, now);
            }
            self.panics.maybe(part);
        }
    }

    /// As when the reader's process is killed.
    pub(crate) fn cut_off(&self) {
        self.cut_off.store(true, Ordering::SeqCst);
    }

    /// What is stored.
    pub(crate) async fn positions(&self) -> BTreeMap<ShardId, Checkpoint> {
        let stored = self.stored.load(&Scope::new("default", "orders")).await;
        stored.expect("never fails").into_iter().collect()
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

    /// Waits before a call is carried out; an error where it is not.
    async fn before(&self) -> Result<Health> {
        self.maybe_panic(Part::Store);
        let health = if self.is_cut_off() { Health::Hangs } else { self.health() };
        match health {
            Health::Well | Health::Forgetful => {}
            Health::Slow(time) => sleep(time / 2).await,
            Health::Down => return Err(unavailable("no connection")),
            Health::Hangs => std::future::pending().await,
        }
        if self.is_cut_off() {
            std::future::pending::<()>().await;
        }
        Ok(health)
    }

    async fn after(&self, health: Health) -> Result<()> {
        self.maybe_panic(Part::StoreAfter);
        match health {
            Health::Slow(time) => sleep(time / 2).await,
            Health::Forgetful => return Err(unavailable("the connection was lost")),
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
                // A shard that restarts after a panic saves positions of both epochs. The store keeps
                // the furthest.
                && !self.panics.have_fired()
            {
                facts.breaks(
                    Promise::NeverBackwards,
                    format_args!("{shard} is stored as {checkpoint} after {earlier}"),
                );
            }
        }
    }
}

fn unavailable(why: &str) -> Error {
    Error::store_unavailable("the store is out of reach", why)
}

impl CheckpointStore for SimulatedStore {
    fn load<'a>(&'a self, scope: &'a Scope) -> BoxFuture<'a, Result<HashMap<ShardId, Checkpoint>>> {
        async move {
            let health = self.before().await?;
            let loaded = self.stored.load(scope).await?;
            self.truth.tell(format_args!("store: {} checkpoints are loaded", loaded.len()));
            self.after(health).await?;
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
            let health = self.before().await?;
            for (shard, checkpoint) in checkpoints {
                self.truth.tell(format_args!("store: {shard} is {checkpoint}"));
            }
            self.check(checkpoints);
            self.stored.save(scope, checkpoints).await?;
            self.truth.lock().started = true;
            self.after(health).await?;
            self.note_known(checkpoints.iter().cloned());
            Ok(())
        }
        .boxed()
    }
}
