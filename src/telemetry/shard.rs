use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::Instant;

use super::backlog::Backlog;
use super::metrics::ShardMetrics;
use super::{Event, Spanned, Task, Telemetry, log_line};
use crate::checkpoint::{InFlightLimit, Watermark};
use crate::error::{Error, ErrorKindSet};
use crate::mutex::Mutex;
use crate::record::ShardId;

/// The lag before the first response that has one.
const UNKNOWN: i64 = -1;

/// The telemetry of one shard that is being read. Clones share their state.
#[derive(Debug, Clone)]
pub(crate) struct ShardTelemetry {
    telemetry: Telemetry,
    gauges: Arc<ShardGauges>,
}

/// The observable state of a shard that is being read.
pub(super) struct ShardGauges {
    id: ShardId,
    /// The lag of the last response, in milliseconds, or [`UNKNOWN`].
    millis_behind_latest: AtomicI64,
    /// The bytes of all responses.
    fetched_bytes: AtomicU64,
    /// The arrival time up to which the responses reach: that of the last one, less its lag.
    reached: Mutex<Option<Instant>>,
    backlog: Backlog,
    /// True if a user record was left out.
    left_out: AtomicBool,
    /// True if the shard was read to the ending position.
    has_reached: AtomicBool,
    /// True if the shard has failed and was not read since.
    has_failed: AtomicBool,
    watermark: Weak<Watermark>,
    metrics: ShardMetrics,
}

/// The records of a shard that are in flight or due.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct InFlight {
    /// The number of records in flight.
    pub(crate) unacknowledged: usize,
    /// The time since the oldest of them was delivered.
    pub(crate) oldest: Option<Duration>,
    /// The limit that holds the shard.
    pub(crate) held_by: Option<InFlightLimit>,
    /// The age of the oldest fetched batch with an undelivered record; `None` while an in-flight
    /// limit holds the shard.
    pub(crate) undelivered: Option<Duration>,
}

/// The progress of reading a shard since it was opened.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reading {
    /// The bytes of all responses.
    pub(crate) bytes: u64,
    /// The number of records fetched and of records delivered.
    pub(crate) records: u64,
    pub(crate) delivered: u64,
    /// The arrival time up to which the responses reach; `None` before the first one.
    pub(crate) reached: Option<Instant>,
    /// True if the caller has not taken or acknowledged all that was fetched.
    pub(crate) is_held_up: bool,
}

impl ShardGauges {
    fn delivered(&self) -> u64 {
        // Without a watermark the shard is not read, and no record is due.
        self.watermark.upgrade().map_or(u64::MAX, |watermark| watermark.delivered())
    }

    /// Returns the lag of the oldest undelivered record, or of the last response if that is larger.
    pub(super) fn millis_behind_latest(&self) -> Option<i64> {
        let last = self.millis_behind_latest.load(Ordering::Relaxed);
        let oldest = self.backlog.oldest(self.delivered()).map(|(_, millis)| millis);
        (last != UNKNOWN).then(|| oldest.unwrap_or(last).max(last))
    }

    pub(super) fn reading(&self) -> Reading {
        let in_flight = self.in_flight();
        let records = self.backlog.count();
        Reading {
            bytes: self.fetched_bytes.load(Ordering::Relaxed),
            records,
            delivered: self.delivered().min(records),
            reached: *self.reached.lock(),
            is_held_up: in_flight.held_by.is_some() || in_flight.undelivered.is_some(),
        }
    }

    pub(super) fn has_reached(&self) -> bool {
        self.has_reached.load(Ordering::Relaxed)
    }

    pub(super) fn in_flight(&self) -> InFlight {
        let Some(watermark) = self.watermark.upgrade() else { return InFlight::default() };
        let (unacknowledged, oldest) = watermark.unacknowledged();
        let held_by = watermark.held_by();
        let undelivered = if held_by.is_some() {
            None
        } else {
            self.backlog.oldest(watermark.delivered()).map(|(age, _)| age)
        };
        InFlight { unacknowledged, oldest, held_by, undelivered }
    }

    /// Returns an event if an in-flight limit has held the shard for `time`, once per stall.
    pub(super) fn stalled(&self, time: Duration) -> Option<Event> {
        let (limit, unacknowledged, oldest) = self.watermark.upgrade()?.stalled(time)?;
        Some(Event::Stalled { shard_id: self.id.clone(), limit, unacknowledged, oldest })
    }

    pub(super) fn measure(&self) {
        let InFlight { unacknowledged, oldest, .. } = self.in_flight();
        self.metrics.measure(unacknowledged, oldest);
        self.metrics.behind(self.millis_behind_latest().unwrap_or(0));
    }
}

impl fmt::Debug for ShardGauges {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("ShardGauges").field(&self.id).finish()
    }
}

impl ShardTelemetry {
    pub(super) fn new(
        telemetry: Telemetry,
        id: ShardId,
        watermark: &Arc<Watermark>,
        metrics: ShardMetrics,
    ) -> Self {
        let millis_behind_latest = AtomicI64::new(UNKNOWN);
        let watermark = Arc::downgrade(watermark);
        let backlog = Backlog::default();
        let (left_out, has_reached) = (AtomicBool::new(false), AtomicBool::new(false));
        let has_failed = AtomicBool::new(telemetry.0.failures.contain(&id));
        let gauges = ShardGauges {
            id,
            millis_behind_latest,
            fetched_bytes: AtomicU64::new(0),
            reached: Mutex::new(None),
            backlog,
            left_out,
            has_reached,
            has_failed,
            watermark,
            metrics,
        };
        let gauges = Arc::new(gauges);
        Self { telemetry, gauges }
    }

    pub(super) fn gauges(&self) -> &Arc<ShardGauges> {
        &self.gauges
    }

    pub(crate) fn shard_id(&self) -> &ShardId {
        &self.gauges.id
    }

    /// Adds the stream and the shard to an error.
    pub(crate) fn locate(&self, error: Error) -> Error {
        error.in_stream(&self.telemetry.0.stream).in_shard(self.shard_id())
    }

    pub(crate) fn emit(&self, event: Event) {
        self.telemetry.emit(event);
    }

    /// Notes an error that retries have not fixed. Returns true if the caller should receive it,
    /// and false if the caller has received an error of this kind and no record since.
    pub(crate) fn failed(&self, error: &Error) -> bool {
        self.gauges.has_failed.store(true, Ordering::Relaxed);
        self.telemetry.0.failures.note(self.shard_id(), error)
    }

    /// Returns true if no shard has yielded the error in this session, so that the caller should
    /// receive it.
    pub(crate) fn claims(&self, error: &Error) -> bool {
        error.claim(self.telemetry.session())
    }

    /// Returns the kinds of errors that the caller has received since the last record.
    pub(crate) fn known_failures(&self) -> ErrorKindSet {
        self.telemetry.0.failures.kinds(self.shard_id())
    }

    /// Notes that the shard is being read again, which clears its failure.
    #[inline]
    pub(crate) fn succeeded(&self) {
        if self.gauges.has_failed.load(Ordering::Relaxed) {
            self.gauges.has_failed.store(false, Ordering::Relaxed);
            self.telemetry.0.failures.clear(self.shard_id());
        }
    }

    /// Notes that the shard was read to the ending position. Its lag is no longer known, since no
    /// further response shows it.
    pub(crate) fn reached(&self) {
        self.succeeded();
        self.gauges.has_reached.store(true, Ordering::Relaxed);
        self.gauges.millis_behind_latest.store(UNKNOWN, Ordering::Relaxed);
        self.emit(Event::EndingReached { shard_id: self.shard_id().clone() });
    }

    /// Returns the future, to run within the span of the shard.
    pub(crate) fn within_span<F: Future>(&self, future: F) -> Spanned<F> {
        Spanned::new(future, self.telemetry.span(self.shard_id()), self.telemetry.clone())
    }

    /// Notes a failed fetch that no event reports.
    pub(crate) fn fetch_failed(&self) {
        self.telemetry.fetch_failed();
    }

    /// Notes `records` fetched records that are not delivered yet.
    pub(crate) fn fetched(&self, records: usize, millis_behind_latest: i64) {
        let delivered = self.gauges.delivered();
        self.gauges.backlog.fetched(records, millis_behind_latest.max(0), delivered);
    }

    /// Counts user records that are not delivered because their hash keys belong to another shard.
    /// Logs a warning the first time, since the records are lost unless their producer puts them
    /// again.
    pub(crate) fn left_out(&self, records: usize) {
        if records == 0 {
            return;
        }
        self.telemetry.contain(Task::Metrics, || self.gauges.metrics.left_out(records));
        if !self.gauges.left_out.swap(true, Ordering::Relaxed) {
            let (stream, application) = (&*self.telemetry.0.stream, &*self.telemetry.0.application);
            log_line!(
                warn,
                stream,
                application,
                shard = %self.shard_id(),
                records,
                "user records left out: their hash keys belong to another shard, as after a reshard; \
                 the KPL puts them again, other producers may lose them (logged once each time the \
                 shard is opened)"
            );
        }
    }

    /// Notes a response and its lag in milliseconds. Returns the last known lag, which is never
    /// negative, or 0 before any is known.
    ///
    /// A response without a lag keeps the last known lag, and does not show that the shard is
    /// caught up.
    pub(crate) fn answered(&self, records: usize, bytes: usize, lag: Option<i64>) -> i64 {
        let lag = lag.map(|millis| millis.max(0));
        self.telemetry.fetched();
        self.gauges.fetched_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        let before = self.gauges.millis_behind_latest.load(Ordering::Relaxed);
        let last = lag.unwrap_or(before);
        self.gauges.millis_behind_latest.store(last, Ordering::Relaxed);
        let lag_time = Duration::from_millis(u64::try_from(last).unwrap_or(0));
        if let Some(reached) = Instant::now().checked_sub(lag_time) {
            *self.gauges.reached.lock() = Some(reached);
        }
        let behind = self.gauges.millis_behind_latest().unwrap_or(0);
        self.telemetry
            .contain(Task::Metrics, || self.gauges.metrics.answered(records, bytes, behind));
        if lag == Some(0) && before != 0 {
            self.emit(Event::CaughtUp { shard_id: self.shard_id().clone() });
        }
        last.max(0)
    }
}
