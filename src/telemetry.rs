//! Telemetry: the `tracing` events, typed [`Event`]s, metrics and health of a consumer.
//!
//! Each occurrence is emitted once, and becomes a `tracing` event, a typed event and a metric.
//! Nothing here blocks. The metrics recorder and the tracing layer are user code. They are called
//! without a lock held, and their panics are contained here.

mod backlog;
mod event;
mod events;
mod failures;
mod fallback_reason;
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
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, MutexGuard, OnceLock, Weak};
use std::time::Duration;

use tokio::sync::broadcast;
use tokio::time::Instant;

use crate::checkpoint::Watermark;
use crate::error::{Error, ErrorReporter, Result, contain_call};
use crate::mutex::Mutex;
use crate::record::ShardId;

pub use event::{Event, Task};
pub use events::Events;
use failures::Failures;
pub use failures::ShardFailure;
pub use fallback_reason::FallbackReason;
use health_state::HealthTracker;
use metrics::{ConsumerMetrics, ShardMetrics};
use panic_guard::Sink;
pub(crate) use panic_guard::{Spanned, log_line};
pub(crate) use polls::PollCounter;
use shard::ShardGauges;
pub(crate) use shard::{InFlight, Reading, ShardTelemetry};

/// The number of events by which a listener may lag behind before it misses events.
const LONGEST_BACKLOG: usize = 1024;

/// The telemetry of one consumer. Clones share their state.
#[derive(Clone)]
pub(crate) struct Telemetry(Arc<TelemetryInner>);

struct TelemetryInner {
    stream: Arc<str>,
    application: Arc<str>,
    /// Created for the first listener, since it allocates the whole backlog.
    events: OnceLock<broadcast::Sender<Event>>,
    metrics: ConsumerMetrics,
    recorder: Sink,
    layer: Sink,
    /// The number of buffered bytes, as the memory budget of the last session counts it.
    buffered: Mutex<Arc<AtomicUsize>>,
    /// Reports errors to the caller; `None` before the first session.
    error_reporter: Mutex<Option<ErrorReporter>>,
    /// The time since which checkpoints cannot be saved.
    unsaved: Mutex<Option<Instant>>,
    /// The gauges of the shards that are being read.
    shards: Mutex<GaugeRegistry>,
    failures: Failures,
    liveness: HealthTracker,
}

/// The gauges of shards. Those of shards that are no longer read are removed from time to time.
#[derive(Default)]
struct GaugeRegistry {
    of: BTreeMap<ShardId, Weak<ShardGauges>>,
    /// The number of entries at which those of ended shards are removed next.
    sweep_at: usize,
}

impl GaugeRegistry {
    /// Adds the gauges of a shard, in constant time on average. Returns the number of entries that
    /// were visited.
    fn insert(&mut self, id: &ShardId, gauges: Weak<ShardGauges>) -> usize {
        let mut visited = 0;
        if self.of.len() >= self.sweep_at {
            visited = self.of.len();
            self.of.retain(|_, gauges| gauges.strong_count() > 0);
            self.sweep_at = 2 * self.of.len() + 1;
        }
        self.of.insert(id.clone(), gauges);
        visited
    }
}

impl Telemetry {
    pub(crate) fn new(stream: &Arc<str>, application: &Arc<str>) -> Self {
        let metrics = contain_call(|| ConsumerMetrics::new(stream, application));
        Self(Arc::new(TelemetryInner {
            stream: Arc::clone(stream),
            application: Arc::clone(application),
            metrics: metrics.unwrap_or_else(|_| ConsumerMetrics::none(stream, application)),
            recorder: Sink::new(),
            layer: Sink::new(),
            buffered: Mutex::default(),
            error_reporter: Mutex::default(),
            unsaved: Mutex::default(),
            events: OnceLock::new(),
            shards: Mutex::default(),
            failures: Failures::default(),
            liveness: HealthTracker::new(),
        }))
    }

    /// Emits an event to the tracing layer, the metrics recorder and the listeners.
    pub(crate) fn emit(&self, event: Event) {
        match event.is_call_failed() {
            Some(true) => self.call_failed(),
            Some(false) => self.call_succeeded(),
            None => {}
        }
        if event.is_fetch_failed() {
            self.fetch_failed();
        }
        self.contain(Task::Tracing, || event.trace(&self.0.stream, &self.0.application));
        self.contain(Task::Metrics, || self.0.metrics.count(&event));
        self.send(event);
    }

    /// Sends an event to the listeners, and contains panics of their wakers.
    fn send(&self, event: Event) {
        if let Some(events) = self.0.events.get() {
            // Without a listener the event is dropped.
            let _panicked = contain_call(|| drop(events.send(event)));
        }
    }

    /// Sets the reporter of errors to the caller's current stream.
    pub(crate) fn set_error_reporter(&self, reporter: ErrorReporter) {
        let before = lock(&self.0.error_reporter).replace(reporter);
        // Dropped without the lock, since it may be the last sender.
        drop(before);
    }

    /// Reports an error to the caller, even while it waits for records. Returns the error if there
    /// is no stream that yields it.
    pub(crate) fn report_error(&self, error: Error) -> Result<()> {
        let reporter = lock(&self.0.error_reporter).clone();
        match reporter {
            Some(reporter) => reporter.report(error),
            None => Err(error),
        }
    }

    /// Returns a stream of the events from now on.
    pub(crate) fn events(&self) -> Events {
        let events = self.0.events.get_or_init(|| broadcast::Sender::new(LONGEST_BACKLOG));
        Events::new(events.subscribe())
    }

    /// Sets the counter of buffered bytes.
    pub(crate) fn set_buffered_bytes(&self, bytes: Arc<AtomicUsize>) {
        *lock(&self.0.buffered) = bytes;
    }

    /// Notes that one write saved this number of positions; 0 if there was nothing to write.
    pub(crate) fn saved(&self, positions: usize) {
        *lock(&self.0.unsaved) = None;
        if positions > 0 {
            self.contain(Task::Metrics, || self.0.metrics.saved(positions));
        }
    }

    /// Notes a failed write of positions that began at `began`.
    pub(crate) fn save_failed(&self, began: Instant) {
        lock(&self.0.unsaved).get_or_insert(began);
        self.contain(Task::Metrics, || self.0.metrics.save_failed());
    }

    /// Updates the periodically sampled gauges of a worker that holds this number of leases.
    pub(crate) fn measure(&self, leases: usize) {
        let buffered = lock(&self.0.buffered).load(Ordering::Relaxed);
        let unsaved = lock(&self.0.unsaved).map_or(Duration::ZERO, |since| since.elapsed());
        self.contain(Task::Metrics, || self.0.metrics.measure(leases, buffered, unsaved));
        for gauges in self.all_gauges() {
            self.contain(Task::Metrics, || gauges.measure());
        }
    }

    /// Returns the gauges of the shards that are being read.
    fn all_gauges(&self) -> Vec<Arc<ShardGauges>> {
        lock(&self.0.shards).of.values().filter_map(Weak::upgrade).collect()
    }

    /// Returns the telemetry of a shard that is read from now on.
    pub(crate) fn shard(&self, id: &ShardId, watermark: &Arc<Watermark>) -> ShardTelemetry {
        let metrics = self.contain(Task::Metrics, || self.0.metrics.shard(id));
        let metrics = metrics.unwrap_or_else(ShardMetrics::none);
        let telemetry = ShardTelemetry::new(self.clone(), id.clone(), watermark, metrics);
        lock(&self.0.shards).insert(id, Arc::downgrade(telemetry.gauges()));
        telemetry
    }

    /// Returns the lag of a shard in milliseconds; `None` for a shard that is not read here or was
    /// not fetched yet.
    pub(crate) fn millis_behind_latest(&self, id: &ShardId) -> Option<i64> {
        self.gauges(id)?.millis_behind_latest()
    }

    /// Returns what this consumer has read of a shard; `None` for a shard that is not read here.
    pub(crate) fn reading(&self, id: &ShardId) -> Option<Reading> {
        Some(self.gauges(id)?.reading())
    }

    /// Returns the records in flight of a shard; `None` for a shard that is not read here.
    pub(crate) fn in_flight(&self, id: &ShardId) -> Option<InFlight> {
        Some(self.gauges(id)?.in_flight())
    }

    /// Returns true if this consumer holds the shard and has read it to the ending position.
    pub(crate) fn has_reached(&self, id: &ShardId) -> bool {
        self.gauges(id).is_some_and(|gauges| gauges.has_reached())
    }

    /// Returns the gauges of a shard. They must be used without the lock, since this may be the
    /// last reference.
    fn gauges(&self, id: &ShardId) -> Option<Arc<ShardGauges>> {
        lock(&self.0.shards).of.get(id).and_then(Weak::upgrade)
    }

    /// Returns the span of a shard, within which its reader runs.
    fn span(&self, id: &ShardId) -> tracing::Span {
        let (stream, application) = (&*self.0.stream, &*self.0.application);
        let span = || tracing::info_span!("shard", stream, application, shard = %id);
        self.contain(Task::Tracing, span).unwrap_or_else(tracing::Span::none)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}

impl fmt::Debug for Telemetry {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (stream, application) = (&self.0.stream, &self.0.application);
        write!(formatter, "Telemetry({application} of {stream})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adding_shards_visits_few_entries_and_removes_ended_ones() {
        let telemetry = Telemetry::new(&"orders".into(), &"billing".into());
        let mut views = GaugeRegistry::default();
        let (mut visited, mut kept) = (0, Vec::new());
        for number in 0..4000 {
            let id: ShardId = format!("shardId-{number:012}").parse().unwrap();
            let watermark = Arc::new(Watermark::default());
            let shard = ShardTelemetry::new(
                telemetry.clone(),
                id.clone(),
                &watermark,
                ShardMetrics::none(),
            );
            visited += views.insert(&id, Arc::downgrade(shard.gauges()));
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
