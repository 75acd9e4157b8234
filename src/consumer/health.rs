//! How a consumer is, seen from its own process.

use std::sync::PoisonError;
use std::time::Duration;

use super::Consumer;

/// For how long a caller that is ready may hold records, and ask for none.
const READY_STALL: Duration = Duration::from_secs(60);

/// For how long a caller that is alive may.
const LIVE_STALL: Duration = Duration::from_secs(5 * 60);

/// How a consumer is: what its own process knows, without any call of the store or of Kinesis.
///
/// Made by [`Consumer::health`]. The guide has a page on [probes](crate::guide::probes). With the cargo
/// feature `serde` it can be written and read.
///
/// ```no_run
/// # fn respond(status: u16) {}
/// # async fn example(consumer: kinestream::Consumer) {
/// let health = consumer.health();
/// respond(if health.is_live() { 200 } else { 503 });
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Health {
    /// Whether the tasks of the stream that is being read are alive. `false` while none is read, and
    /// after the tokio runtime of the stream has shut down.
    pub is_running: bool,
    /// Whether the consumer was closed.
    pub is_closed: bool,
    /// How many shards this worker holds the lease of.
    pub leases_held: usize,
    /// How long a lease lasts without a renewal.
    pub lease_duration: Duration,
    /// How long ago the stream was polled for the first time; `None` while none is read.
    pub since_start: Option<Duration>,
    /// How long ago the worker renewed last, and saw the lease table; `None` before the first time.
    pub since_renewal: Option<Duration>,
    /// How long ago the caller polled a stream last, to the second; `None` while no stream is alive.
    /// A caller that waits for a record is not polled: see [`silent_for`](Self::silent_for).
    pub since_poll: Option<Duration>,
    /// How long ago Kinesis answered a fetch last, with or without records; `None` before the first
    /// answer.
    pub since_fetch: Option<Duration>,
    /// How long ago the oldest record was delivered that is not acknowledged, to the second; `None`
    /// where there is none. With [`CheckpointOn::Pull`](crate::CheckpointOn::Pull) that is the record
    /// that the caller works on.
    pub oldest_unacknowledged: Option<Duration>,
    /// For how long the caller of a stream has not asked for more, although it holds the last record
    /// or there are records to deliver; `None` while it waits for records.
    pub silent_for: Option<Duration>,
    /// How long ago the oldest position was reached that is not stored; `None` where all are.
    pub checkpoint_age: Option<Duration>,
}

impl Health {
    /// Whether this consumer reads as it should: for a readiness probe.
    ///
    /// `true` where the tasks are alive, the worker has joined the fleet, has seen the lease table and
    /// has renewed within `lease_duration`, the caller has polled, and nothing has
    /// [stalled](Self::stalled_for) for 60 s. It says nothing of how many shards the worker holds: one
    /// in a fleet with more workers than shards is ready with none.
    pub fn is_ready(&self) -> bool {
        self.is_running
            && !self.is_closed
            && self.since_renewal.is_some_and(|since| since <= self.lease_duration)
            && self.since_poll.is_some()
            && self.stalled_for() < READY_STALL
    }

    /// Whether a restart of the process would help no more than waiting: for a liveness probe.
    ///
    /// `false` where, of a stream that is being read, the tasks are gone, no renewal has succeeded for
    /// twice `lease_duration`, or something has [stalled](Self::stalled_for) for five minutes. A consumer
    /// that nobody reads yet, or any more, is alive. Where the handler of a record or a batch may take
    /// longer than five minutes, use [`is_live_within`](Self::is_live_within).
    pub fn is_live(&self) -> bool {
        self.is_live_within(LIVE_STALL)
    }

    /// [`is_live`](Self::is_live), where the caller may stall for less than `stall`.
    pub fn is_live_within(&self, stall: Duration) -> bool {
        let Some(since_start) = self.since_start else { return true };
        let since_renewal = self.since_renewal.unwrap_or(since_start);
        let is_renewed = since_renewal <= self.lease_duration.saturating_mul(2);
        self.is_closed || self.is_running && is_renewed && self.stalled_for() < stall
    }

    /// For how long the caller has held things up: the longer of
    /// [`oldest_unacknowledged`](Self::oldest_unacknowledged) and [`silent_for`](Self::silent_for).
    pub fn stalled_for(&self) -> Duration {
        let held = self.oldest_unacknowledged.unwrap_or_default();
        held.max(self.silent_for.unwrap_or_default())
    }
}

impl Consumer {
    /// How this consumer is: whether its tasks run, when it last renewed, fetched and was polled, and
    /// for how long its caller has held records. Asks neither the store nor Kinesis.
    ///
    /// ```no_run
    /// # async fn example(consumer: kinestream::Consumer) {
    /// let health = consumer.health();
    /// println!("ready: {}, live: {}", health.is_ready(), health.is_live());
    /// # }
    /// ```
    pub fn health(&self) -> Health {
        let inner = &self.inner;
        let writer = inner.writer.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let vitals = inner.observer.vitals();
        Health {
            is_running: vitals.is_running
                && writer.as_ref().is_some_and(crate::store::Writer::is_running),
            is_closed: inner.closing.is_closed(),
            leases_held: vitals.leases,
            lease_duration: inner.settings.rules.lease_duration,
            since_start: vitals.begun,
            since_renewal: vitals.renewed,
            since_poll: vitals.polled,
            since_fetch: vitals.fetched,
            oldest_unacknowledged: vitals.unacknowledged,
            silent_for: vitals.silent,
            checkpoint_age: writer.and_then(|writer| writer.unsaved_for()),
        }
    }
}
