//! What is seen from outside: each happening is told once, here, and becomes a `tracing` event, a
//! typed [`Event`] and a metric.
//!
//! Nothing here waits for anybody.

mod event;
mod events;
#[cfg(feature = "metrics")]
mod metrics;
#[cfg(not(feature = "metrics"))]
#[path = "observe/no_metrics.rs"]
mod metrics;
mod shard;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::broadcast;
use tokio::time::Instant;

use crate::checkpoint::Watermark;
use crate::record::ShardId;

pub use event::Event;
pub use events::Events;
use metrics::ConsumerMetrics;
pub(crate) use shard::ShardObserver;
use shard::View;

/// Events that a slow listener may be behind before it misses some.
const LONGEST_BACKLOG: usize = 1024;

/// Who is told what happens to one consumer. The clones are one.
#[derive(Clone)]
pub(crate) struct Observer(Arc<Inner>);

struct Inner {
    stream: Arc<str>,
    application: Arc<str>,
    /// Made for the first listener: it takes the memory of a whole backlog.
    events: OnceLock<broadcast::Sender<Event>>,
    metrics: ConsumerMetrics,
    /// How much memory is taken by what is buffered.
    buffered: Mutex<Option<Box<dyn Fn() -> usize + Send + Sync>>>,
    /// Since when positions cannot be saved.
    unsaved: Mutex<Option<Instant>>,
    /// The shards that are read, for as long as they are.
    shards: Mutex<BTreeMap<ShardId, Weak<View>>>,
}

impl Observer {
    pub(crate) fn new(stream: &Arc<str>, application: &Arc<str>) -> Self {
        Self(Arc::new(Inner {
            stream: Arc::clone(stream),
            application: Arc::clone(application),
            metrics: ConsumerMetrics::new(stream, application),
            buffered: Mutex::default(),
            unsaved: Mutex::default(),
            events: OnceLock::new(),
            shards: Mutex::default(),
        }))
    }

    /// Something has happened.
    pub(crate) fn tell(&self, event: Event) {
        event.trace(&self.0.stream, &self.0.application);
        self.0.metrics.count(&event);
        if let Some(events) = self.0.events.get() {
            // Nobody listens any more: then it is gone.
            let _unheard = events.send(event);
        }
    }

    /// What happens from now on.
    pub(crate) fn events(&self) -> Events {
        let events = self.0.events.get_or_init(|| broadcast::Sender::new(LONGEST_BACKLOG));
        Events::new(events.subscribe())
    }

    /// How much is buffered, from now on, is to be asked there.
    pub(crate) fn ask_for_buffered(&self, bytes: impl Fn() -> usize + Send + Sync + 'static) {
        *lock(&self.0.buffered) = Some(Box::new(bytes));
    }

    /// So many positions were saved in one write; none, where there was nothing to write.
    pub(crate) fn saved(&self, positions: usize) {
        *lock(&self.0.unsaved) = None;
        if positions > 0 {
            self.0.metrics.saved(positions);
        }
    }

    /// Positions could not be saved, which was begun then.
    pub(crate) fn save_failed(&self, began: Instant) {
        lock(&self.0.unsaved).get_or_insert(began);
        self.0.metrics.save_failed();
    }

    /// Measures what is not told when it happens, for a worker that has so many shards.
    pub(crate) fn measure(&self, leases: usize) {
        let buffered = lock(&self.0.buffered).as_ref().map_or(0, |bytes| bytes());
        let unsaved = lock(&self.0.unsaved).map_or(Duration::ZERO, |since| since.elapsed());
        self.0.metrics.measure(leases, buffered, unsaved);
        for view in lock(&self.0.shards).values().filter_map(Weak::upgrade) {
            view.measure();
        }
    }

    /// A shard that is read from now on.
    pub(crate) fn shard(&self, id: &ShardId, watermark: &Arc<Watermark>) -> ShardObserver {
        let metrics = self.0.metrics.shard(id);
        let observer = ShardObserver::new(self.clone(), id.clone(), watermark, metrics);
        let mut shards = lock(&self.0.shards);
        shards.retain(|_, view| view.strong_count() > 0);
        shards.insert(id.clone(), Arc::downgrade(observer.view()));
        observer
    }

    /// How far behind the newest record of a shard its reader was when it asked last, in
    /// milliseconds; `None` of a shard that is not read here, or has not answered yet.
    pub(crate) fn millis_behind_latest(&self, id: &ShardId) -> Option<i64> {
        lock(&self.0.shards).get(id)?.upgrade()?.millis_behind_latest()
    }

    /// What goes on in a shard happens within it.
    pub(crate) fn span(&self, id: &ShardId) -> tracing::Span {
        let (stream, application) = (&*self.0.stream, &*self.0.application);
        tracing::info_span!("shard", stream, application, shard = %id)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Observer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (stream, application) = (&self.0.stream, &self.0.application);
        write!(formatter, "Observer({application} of {stream})")
    }
}
