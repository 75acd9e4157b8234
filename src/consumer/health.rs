//! The health of a consumer, from the state of its own process.

use std::time::Duration;

use super::ConsumerInner;

/// The time for which the caller may stall, or calls of Kinesis may fail, before a consumer is not
/// ready.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// The stall of the caller from which a consumer is not live.
const LIVE_STALL_LIMIT: Duration = Duration::from_secs(5 * 60);

/// The health of a consumer, from the state of its own process, without a call to the store or
/// Kinesis.
///
/// Returned by [`Consumer::health`](crate::Consumer::health). The guide has a page on
/// [probes](crate::guide::probes). With the cargo feature `serde` it can be serialized and
/// deserialized.
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
    /// True if the tasks of the stream that is read are alive. `false` while no stream is read, and
    /// after the tokio runtime of the stream has shut down.
    pub is_running: bool,
    /// True if the consumer is closed.
    pub is_closed: bool,
    /// The number of leases that this worker holds.
    pub leases_held: usize,
    /// The time for which a lease is valid without renewal.
    pub lease_duration: Duration,
    /// The time since the stream was first polled; `None` while no stream is read.
    pub since_start: Option<Duration>,
    /// The time since the worker last renewed its leases and read the lease table; `None` before
    /// the first renewal.
    pub since_renewal: Option<Duration>,
    /// The time since the caller last polled a stream, to the second; `None` before the first poll.
    /// A caller that waits for a record does not poll: see [`silent_for`](Self::silent_for).
    pub since_poll: Option<Duration>,
    /// The time since the last successful fetch, with or without records; `None` before the first.
    pub since_fetch: Option<Duration>,
    /// The time since the first failed call of Kinesis after which no fetch has succeeded; `None`
    /// while calls succeed, and while records that are fetched wait for the caller. Failures are
    /// forgotten 10 min after the last one, for a worker whose shards other workers read since.
    #[cfg_attr(feature = "serde", serde(default))]
    pub failing_for: Option<Duration>,
    /// The time since the oldest unacknowledged record was delivered, to the second; `None` if
    /// there is none. With [`CheckpointOn::Pull`](crate::CheckpointOn::Pull) this is the record
    /// that the caller processes.
    pub oldest_unacknowledged: Option<Duration>,
    /// The time for which the caller has not polled a stream, although it holds the last record or
    /// more records are due; `None` while it waits for records.
    pub silent_for: Option<Duration>,
    /// The age of the oldest checkpoint that is not saved; `None` if all are saved.
    pub checkpoint_age: Option<Duration>,
    /// True if no record is delivered, because the store has failed to save checkpoints for
    /// [`max_unflushed`](crate::ConsumerBuilder::max_unflushed).
    #[cfg_attr(feature = "serde", serde(default))]
    pub is_delivery_paused: bool,
}

impl Health {
    /// Returns true if the consumer is ready, for a readiness probe.
    ///
    /// It is ready if
    ///
    /// - the tasks are alive, the worker has joined the fleet, has read the lease table and has
    ///   renewed within `lease_duration`;
    /// - the caller has polled, and has not [stalled](Self::stalled_for) for 60 s;
    /// - the store [does not pause delivery](Self::is_delivery_paused);
    /// - calls of Kinesis have not [failed](Self::failing_for) for 60 s. If no fetch has succeeded
    ///   yet, the first failed one suffices, so that a deployment with a wrong role or endpoint
    ///   stops at its first pod.
    ///
    /// A worker without a shard, in a fleet with more workers than shards, is ready.
    pub fn is_ready(&self) -> bool {
        self.is_running
            && !self.is_closed
            && self.since_renewal.is_some_and(|since| since <= self.lease_duration)
            && self.since_poll.is_some()
            && self.stalled_for() < READY_LIMIT
            && !self.is_delivery_paused
            && self.can_fetch()
    }

    /// Returns false if nothing is fetched, since calls of Kinesis fail.
    fn can_fetch(&self) -> bool {
        let limit = self.since_fetch.map_or(Duration::ZERO, |_| READY_LIMIT);
        self.failing_for.is_none_or(|time| time < limit)
    }

    /// Returns true unless the process must be restarted, for a liveness probe.
    ///
    /// `false` if a stream is read and its tasks have ended, no renewal has succeeded for twice
    /// `lease_duration`, or the caller has [stalled](Self::stalled_for) for five minutes. A
    /// consumer without a stream that is read is live. If the handler of a record or batch may take
    /// longer than five minutes, use [`is_live_within`](Self::is_live_within).
    pub fn is_live(&self) -> bool {
        self.is_live_within(LIVE_STALL_LIMIT)
    }

    /// Returns the same as [`is_live`](Self::is_live), with `stall` in place of five minutes.
    pub fn is_live_within(&self, stall: Duration) -> bool {
        let Some(since_start) = self.since_start else { return true };
        let since_renewal = self.since_renewal.unwrap_or(since_start);
        let is_renewed = since_renewal <= self.lease_duration.saturating_mul(2);
        self.is_closed || self.is_running && is_renewed && self.stalled_for() < stall
    }

    /// Returns the time for which the caller has stalled: the longer of
    /// [`oldest_unacknowledged`](Self::oldest_unacknowledged) and [`silent_for`](Self::silent_for).
    pub fn stalled_for(&self) -> Duration {
        let held = self.oldest_unacknowledged.unwrap_or_default();
        held.max(self.silent_for.unwrap_or_default())
    }
}

impl ConsumerInner {
    /// Implements [`Consumer::health`](super::Consumer::health).
    pub(super) fn health(&self) -> Health {
        let writer = self.writer.lock().clone();
        let vitals = self.telemetry.health_state();
        Health {
            is_running: vitals.is_running
                && writer.as_ref().is_some_and(crate::store::Writer::is_running),
            is_closed: self.close_signal.is_closed(),
            leases_held: vitals.leases,
            lease_duration: self.settings.worker_config.lease_duration,
            since_start: vitals.begun,
            since_renewal: vitals.renewed,
            since_poll: vitals.polled,
            since_fetch: vitals.fetched,
            failing_for: vitals.failing,
            oldest_unacknowledged: vitals.unacknowledged,
            silent_for: vitals.silent,
            checkpoint_age: writer.as_ref().and_then(crate::store::Writer::unsaved_for),
            is_delivery_paused: writer.is_some_and(|writer| writer.is_gate_shut()),
        }
    }
}
