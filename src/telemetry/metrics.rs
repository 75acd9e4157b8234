//! Metrics through the `metrics` facade. The caller installs a recorder to collect them.

use std::sync::Arc;
use std::time::Duration;

use metrics::{
    Counter, Gauge, Label, SharedString, Unit, counter, describe_counter, describe_gauge, gauge,
};

use super::Event;
use crate::error::{ErrorKind, contain_call};
use crate::record::ShardId;

const RECORDS: &str = "kinestream_records_fetched_total";
const BYTES: &str = "kinestream_bytes_fetched_total";
const BATCHES: &str = "kinestream_batches_fetched_total";
const LEFT_OUT: &str = "kinestream_user_records_left_out_total";
const BEHIND: &str = "kinestream_millis_behind_latest";
const UNACKNOWLEDGED: &str = "kinestream_unacknowledged_records";
const OLDEST: &str = "kinestream_oldest_unacknowledged_seconds";
const RETRIES: &str = "kinestream_retries_total";
const GAPS: &str = "kinestream_gaps_total";
const POSITIONS: &str = "kinestream_checkpoints_saved_total";
const SAVES: &str = "kinestream_checkpoint_writes_total";
const FAILED_SAVES: &str = "kinestream_checkpoint_failures_total";
const UNSAVED: &str = "kinestream_checkpoint_age_seconds";
const BUFFERED: &str = "kinestream_buffered_bytes";
const LEASES: &str = "kinestream_leases_held";
const MOVES: &str = "kinestream_lease_moves_total";

/// The metrics of one consumer.
pub(super) struct ConsumerMetrics {
    stream: Arc<str>,
    application: Arc<str>,
    gaps: Counter,
    positions: Counter,
    saves: Counter,
    failed_saves: Counter,
    unsaved: Gauge,
    buffered: Gauge,
    leases: Gauge,
}

impl ConsumerMetrics {
    pub(super) fn new(stream: &Arc<str>, application: &Arc<str>) -> Self {
        describe();
        let labels = || labels(stream, application);
        Self {
            stream: Arc::clone(stream),
            application: Arc::clone(application),
            gaps: counter!(GAPS, labels()),
            positions: counter!(POSITIONS, labels()),
            saves: counter!(SAVES, labels()),
            failed_saves: counter!(FAILED_SAVES, labels()),
            unsaved: gauge!(UNSAVED, labels()),
            buffered: gauge!(BUFFERED, labels()),
            leases: gauge!(LEASES, labels()),
        }
    }

    /// Metrics for a recorder that panicked.
    pub(super) fn none(stream: &Arc<str>, application: &Arc<str>) -> Self {
        Self {
            stream: Arc::clone(stream),
            application: Arc::clone(application),
            gaps: Counter::noop(),
            positions: Counter::noop(),
            saves: Counter::noop(),
            failed_saves: Counter::noop(),
            unsaved: Gauge::noop(),
            buffered: Gauge::noop(),
            leases: Gauge::noop(),
        }
    }

    pub(super) fn shard(&self, id: &ShardId) -> ShardMetrics {
        let labels = || self.labels_and(Label::new("shard", SharedString::from(id.shared())));
        ShardMetrics {
            records: counter!(RECORDS, labels()),
            bytes: counter!(BYTES, labels()),
            batches: counter!(BATCHES, labels()),
            left_out: counter!(LEFT_OUT, labels()),
            behind: gauge!(BEHIND, labels()),
            unacknowledged: gauge!(UNACKNOWLEDGED, labels()),
            oldest: gauge!(OLDEST, labels()),
        }
    }

    fn labels_and(&self, another: Label) -> Vec<Label> {
        let mut labels = labels(&self.stream, &self.application);
        labels.push(another);
        labels
    }

    /// Increments the counter of an event that has one.
    pub(super) fn count(&self, event: &Event) {
        let with = |name, value| self.labels_and(Label::from_static_parts(name, value));
        match event {
            Event::Throttled { .. } => {
                counter!(RETRIES, with("kind", as_label(ErrorKind::Throttled))).increment(1);
            }
            Event::Retried { kind, .. } => {
                counter!(RETRIES, with("kind", as_label(*kind))).increment(1);
            }
            Event::TaskRestarted { .. } => {
                counter!(RETRIES, with("kind", as_label(ErrorKind::Panicked))).increment(1);
            }
            Event::LeaseGained { .. } => counter!(MOVES, with("move", "gained")).increment(1),
            Event::LeaseReleased { .. } => {
                counter!(MOVES, with("move", "released")).increment(1);
            }
            Event::LeaseLost { .. } => counter!(MOVES, with("move", "lost")).increment(1),
            Event::Gap { .. } => self.gaps.increment(1),
            _ => {}
        }
    }

    pub(super) fn saved(&self, positions: usize) {
        self.saves.increment(1);
        self.positions.increment(positions as u64);
    }

    pub(super) fn save_failed(&self) {
        self.failed_saves.increment(1);
    }

    #[allow(clippy::cast_precision_loss, reason = "exact up to 8 PiB")]
    pub(super) fn measure(&self, leases: usize, buffered: usize, unsaved: Duration) {
        self.leases.set(leases as f64);
        self.buffered.set(buffered as f64);
        self.unsaved.set(unsaved.as_secs_f64());
    }
}

/// The metrics of one shard that is being read. The gauges are set to 0 when it is no longer read.
pub(super) struct ShardMetrics {
    records: Counter,
    bytes: Counter,
    batches: Counter,
    left_out: Counter,
    behind: Gauge,
    unacknowledged: Gauge,
    oldest: Gauge,
}

impl ShardMetrics {
    /// Metrics for a recorder that panicked.
    pub(super) fn none() -> Self {
        Self {
            records: Counter::noop(),
            bytes: Counter::noop(),
            batches: Counter::noop(),
            left_out: Counter::noop(),
            behind: Gauge::noop(),
            unacknowledged: Gauge::noop(),
            oldest: Gauge::noop(),
        }
    }

    #[allow(clippy::cast_precision_loss, reason = "exact up to a lag of 285,000 years")]
    pub(super) fn answered(&self, records: usize, bytes: usize, millis_behind_latest: i64) {
        if records > 0 {
            self.records.increment(records as u64);
            self.bytes.increment(bytes as u64);
            self.batches.increment(1);
        }
        self.behind.set(millis_behind_latest as f64);
    }

    pub(super) fn left_out(&self, records: usize) {
        self.left_out.increment(records as u64);
    }

    #[allow(clippy::cast_precision_loss, reason = "exact up to a lag of 285,000 years")]
    pub(super) fn behind(&self, millis_behind_latest: i64) {
        self.behind.set(millis_behind_latest as f64);
    }

    #[allow(clippy::cast_precision_loss, reason = "exact up to 2^53 records")]
    pub(super) fn measure(&self, unacknowledged: usize, oldest: Option<Duration>) {
        self.unacknowledged.set(unacknowledged as f64);
        self.oldest.set(oldest.unwrap_or_default().as_secs_f64());
    }
}

impl Drop for ShardMetrics {
    fn drop(&mut self) {
        let _ = contain_call(|| {
            self.behind.set(0);
            self.measure(0, None);
        });
    }
}

fn labels(stream: &Arc<str>, application: &Arc<str>) -> Vec<Label> {
    let label = |name, value: &Arc<str>| Label::new(name, SharedString::from(Arc::clone(value)));
    vec![label("stream", stream), label("application", application)]
}

fn as_label(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Configuration => "configuration",
        ErrorKind::NotFound => "not_found",
        ErrorKind::Denied => "denied",
        ErrorKind::Rejected => "rejected",
        ErrorKind::Trimmed => "trimmed",
        ErrorKind::Throttled => "throttled",
        ErrorKind::Unavailable => "unavailable",
        ErrorKind::StoreUnavailable => "store_unavailable",
        ErrorKind::StoreCorrupt => "store_corrupt",
        ErrorKind::InUse => "in_use",
        ErrorKind::LeaseLost => "lease_lost",
        ErrorKind::Panicked => "panicked",
        ErrorKind::RuntimeShutdown => "runtime_shutdown",
    }
}

fn describe() {
    describe_counter!(RECORDS, Unit::Count, "Records fetched from a shard");
    describe_counter!(BYTES, Unit::Bytes, "Payload and partition key bytes fetched from a shard");
    describe_counter!(BATCHES, Unit::Count, "Responses that held records of a shard");
    describe_counter!(
        LEFT_OUT,
        Unit::Count,
        "User records left out because their hash keys belong to another shard"
    );
    describe_gauge!(
        BEHIND,
        Unit::Milliseconds,
        "Lag of the last response or of the oldest undelivered record"
    );
    describe_gauge!(UNACKNOWLEDGED, Unit::Count, "Records delivered and not acknowledged");
    describe_gauge!(
        OLDEST,
        Unit::Seconds,
        "Time since the oldest unacknowledged record was delivered"
    );
    describe_counter!(
        RETRIES,
        Unit::Count,
        "Retried calls of Kinesis, contained panics, and retried store calls of a migration"
    );
    describe_counter!(GAPS, Unit::Count, "Times that records were lost before they were read");
    describe_counter!(POSITIONS, Unit::Count, "Checkpoints saved");
    describe_counter!(SAVES, Unit::Count, "Writes of checkpoints to the store");
    describe_counter!(FAILED_SAVES, Unit::Count, "Writes of checkpoints that failed");
    describe_gauge!(UNSAVED, Unit::Seconds, "Time for which checkpoints could not be saved");
    describe_gauge!(BUFFERED, Unit::Bytes, "Memory used by fetched and undelivered records");
    describe_gauge!(LEASES, Unit::Count, "Leases that the worker holds");
    describe_counter!(MOVES, Unit::Count, "Leases gained, released and lost");
}
