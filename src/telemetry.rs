//! What is seen from outside: each happening is told once, here, and becomes a `tracing` event, a
//! typed [`Event`] and a metric.
//!
//! Nothing here blocks. The recorder and the layer are code of the caller: they are called without a lock
//! held, and their panics are contained here.

mod backlog;
mod event;
mod events;
mod failures;
mod health_state;
#[cfg(feature = "metrics")]
mod metrics;
#[cfg(not(feature = "metrics"))]
#[path = "telemetry/no_metrics.rs"]
mod metrics;
mod panic_guard;
mod polls;
mod shard;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::broadcast;
use tokio::time::Instant;

use crate::checkpoint::Watermark;
use crate::error::{Error, Result, contain_call};
use crate::record::ShardId;

pub use event::{Event, Task};
pub use events::Events;
use failures::Failures;
pub use failures::ShardFailure;
use health_state::Liveness;
use metrics::{ConsumerMetrics, ShardMetrics};
use panic_guard::Sink;
pub(crate) use panic_guard::{Spanned, log_line};
pub(crate) use polls::Polls;
use shard::ShardGauges;
pub(crate) use shard::{InFlight, ShardTelemetry};

/// Events that a slow listener may be behind before it misses some.
const LONGEST_BACKLOG: usize = 1024;

/// Delivers an error to the caller, or returns it if there is no stream to deliver it to.
type Complain = dyn Fn(Error) -> Result<()> + Send + Sync;

/// Who is told what happens to one consumer. The clones are one.
#[derive(Clone)]
pub(crate) struct Telemetry(Arc<Inner>);

struct Inner {
    stream: Arc<str>,
    application: Arc<str>,
    /// Made for the first listener: it takes the memory of a whole backlog.
    events: OnceLock<broadcast::Sender<Event>>,
    metrics: ConsumerMetrics,
    recorder: Sink,
    layer: Sink,
    /// How much memory is taken by what is buffered.
    buffered: Mutex<Option<Arc<dyn Fn() -> usize + Send + Sync>>>,
    /// Delivers errors to the caller.
    error_sink: Mutex<Option<Arc<Complain>>>,
    /// Since when positions cannot be saved.
    unsaved: Mutex<Option<Instant>>,
    /// The shards that are read, for as long as they are.
    shards: Mutex<Views>,
    failures: Failures,
    liveness: Liveness,
}

/// The views of shards, less most of those that are over.
#[derive(Default)]
struct Views {
    of: BTreeMap<ShardId, Weak<ShardGauges>>,
    /// The number of views at which those that are over are removed next.
    sweep_at: usize,
}

impl Views {
    /// Adds the view of a shard. Where many are added, each takes a constant time on average. Returns
    /// how many views were visited.
    fn insert(&mut self, id: &ShardId, view: Weak<ShardGauges>) -> usize {
        let mut visited = 0;
        if self.of.len() >= self.sweep_at {
            visited = self.of.len();
            self.of.retain(|_, view| view.strong_count() > 0);
            self.sweep_at = 2 * self.of.len() + 1;
        }
        self.of.insert(id.clone(), view);
        visited
    }
}

impl Telemetry {
    pub(crate) fn new(stream: &Arc<str>, application: &Arc<str>) -> Self {
        let metrics = contain_call(|| ConsumerMetrics::new(stream, application));
        Self(Arc::new(Inner {
            stream: Arc::clone(stream),
            application: Arc::clone(application),
            metrics: metrics.unwrap_or_else(|_| ConsumerMetrics::none(stream, application)),
            recorder: Sink::new(),
            layer: Sink::new(),
            buffered: Mutex::default(),
            error_sink: Mutex::default(),
            unsaved: Mutex::default(),
            events: OnceLock::new(),
            shards: Mutex::default(),
            failures: Failures::default(),
            liveness: Liveness::new(),
        }))
    }

    /// Something has happened.
    pub(crate) fn emit(&self, event: Event) {
        match event.is_call_failed() {
            Some(true) => self.call_failed(),
            Some(false) => self.call_succeeded(),
            None => {}
        }
        self.contain(Task::Tracing, || event.trace(&self.0.stream, &self.0.application));
        self.contain(Task::Metrics, || self.0.metrics.count(&event));
        self.send(event);
    }

    /// Sends an event to the listeners, whose wakers may panic.
    fn send(&self, event: Event) {
        if let Some(events) = self.0.events.get() {
            // Without a listener the event is dropped.
            let _unheard = contain_call(|| events.send(event));
        }
    }

    /// Sets where errors are delivered to the caller.
    pub(crate) fn set_error_sink(&self, sink: impl Fn(Error) -> Result<()> + Send + Sync + 'static) {
        let before = lock(&self.0.error_sink).replace(Arc::new(sink));
        drop(before);
    }

    /// Delivers an error to the caller, even while it waits for records. Returns the error if there is no
    /// stream to deliver it to.
    pub(crate) fn report_error(&self, error: Error) -> Result<()> {
        let sink = lock(&self.0.error_sink).clone();
        match sink {
            // The error is queued even if the caller's waker panics.
            Some(sink) => contain_call(|| sink(error)).unwrap_or(Ok(())),
            None => Err(error),
        }
    }

    /// What happens from now on.
    pub(crate) fn events(&self) -> Events {
        let events = self.0.events.get_or_init(|| broadcast::Sender::new(LONGEST_BACKLOG));
        Events::new(events.subscribe())
    }

    /// How much is buffered, from now on, is to be asked there.
    pub(crate) fn ask_for_buffered(&self, bytes: impl Fn() -> usize + Send + Sync + 'static) {
        let before = lock(&self.0.buffered).replace(Arc::new(bytes));
        drop(before);
    }

    /// So many positions were saved in one write; none, where there was nothing to write.
    pub(crate) fn saved(&self, positions: usize) {
        *lock(&self.0.unsaved) = None;
        if positions > 0 {
            self.contain(Task::Metrics, || self.0.metrics.saved(positions));
        }
    }

    /// Positions could not be saved, which was begun then.
    pub(crate) fn save_failed(&self, began: Instant) {
        lock(&self.0.unsaved).get_or_insert(began);
        self.contain(Task::Metrics, || self.0.metrics.save_failed());
    }

    /// Measures what is not told when it happens, for a worker that has so many shards.
    pub(crate) fn measure(&self, leases: usize) {
        let buffered = lock(&self.0.buffered).clone();
        let buffered = buffered.map_or(0, |bytes| bytes());
        let unsaved = lock(&self.0.unsaved).map_or(Duration::ZERO, |since| since.elapsed());
        self.contain(Task::Metrics, || self.0.metrics.measure(leases, buffered, unsaved));
        for view in self.views() {
            self.contain(Task::Metrics, || view.measure());
        }
    }

    /// The shards that are read.
    fn views(&self) -> Vec<Arc<ShardGauges>> {
        lock(&self.0.shards).of.values().filter_map(Weak::upgrade).collect()
    }

    /// A shard that is read from now on.
    pub(crate) fn shard(&self, id: &ShardId, watermark: &Arc<Watermark>) -> ShardTelemetry {
        let metrics = self.contain(Task::Metrics, || self.0.metrics.shard(id));
        let metrics = metrics.unwrap_or_else(ShardMetrics::none);
        let telemetry = ShardTelemetry::new(self.clone(), id.clone(), watermark, metrics);
        lock(&self.0.shards).insert(id, Arc::downgrade(telemetry.view()));
        telemetry
    }

    /// Returns the lag of a shard in milliseconds; `None` for a shard that is not read here or was not
    /// fetched yet.
    pub(crate) fn millis_behind_latest(&self, id: &ShardId) -> Option<i64> {
        self.view(id)?.millis_behind_latest()
    }

    /// Returns the records in flight of a shard; `None` for a shard that is not read here.
    pub(crate) fn in_flight(&self, id: &ShardId) -> Option<InFlight> {
        Some(self.view(id)?.in_flight())
    }

    /// Returns the view of a shard, to be used without the lock: it may be the last reference.
    fn view(&self, id: &ShardId) -> Option<Arc<ShardGauges>> {
        lock(&self.0.shards).of.get(id).and_then(Weak::upgrade)
    }

    /// What goes on in a shard happens within it.
    fn span(&self, id: &ShardId) -> tracing::Span {
        let (stream, application) = (&*self.0.stream, &*self.0.application);
        let span = || tracing::info_span!("shard", stream, application, shard = %id);
        self.contain(Task::Tracing, span).unwrap_or_else(tracing::Span::none)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Telemetry {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (stream, application) = (&self.0.stream, &self.0.application);
        write!(formatter, "Observer({application} of {stream})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_shards_visit_few_others_and_remove_those_that_are_over() {
        let telemetry = Telemetry::new(&"orders".into(), &"billing".into());
        let mut views = Views::default();
        let (mut visited, mut kept) = (0, Vec::new());
        for number in 0..4000 {
            let id: ShardId = format!("shardId-{number:012}").parse().unwrap();
            let watermark = Arc::new(Watermark::new(|_| {}));
            let shard =
                ShardTelemetry::new(telemetry.clone(), id.clone(), &watermark, ShardMetrics::none());
            visited += views.insert(&id, Arc::downgrade(shard.view()));
            kept.push(shard);
        }
        assert!(visited < 2 * 4000, "{visited}");
        kept.clear();
        for number in 4000..20_000 {
            let id: ShardId = format!("shardId-{number:012}").parse().unwrap();
            views.insert(&id, Weak::new());
        }
        assert!(views.of.len() <= 2 * 4096, "{}", views.of.len());
    }
}
