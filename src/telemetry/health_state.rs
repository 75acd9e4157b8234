//! The state behind [`Consumer::health`](crate::Consumer::health), and a periodic check of the
//! consumer.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{PollCounter, Telemetry, lock};

use crate::mutex::Mutex;

/// The interval of the check.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The interval of measurements, in checks. Renewals measure as well, but may be hours apart.
const CHECKS_PER_MEASUREMENT: u32 = 5;

/// The time after the last failed call from which earlier failures no longer count: twice the
/// longest pause before this worker reads a failed shard again. The shard is then read by another
/// worker, and this one has none.
const FAILURE_EXPIRY: Duration = Duration::from_secs(10 * 60);

/// The time for which an in-flight limit holds a shard before
/// [`Event::Stalled`](super::Event::Stalled).
const STALLED_AFTER: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct HealthTracker {
    began: Instant,
    /// The time of the last successful fetch, in milliseconds since `began` plus one; 0 before the
    /// first fetch.
    fetched: AtomicU64,
    /// The first and the last failed fetch since then.
    fetch_failures: FailureTimes,
    calls: CallHealth,
    state: Mutex<HealthRecords>,
}

/// The times of calls to Kinesis, in the same format as [`HealthTracker::fetched`].
#[derive(Debug, Default)]
struct CallHealth {
    /// The last successful call.
    succeeded: AtomicU64,
    /// The first and the last failed call since then.
    failures: FailureTimes,
    /// The longest time between two successful calls with failed calls between them, in
    /// milliseconds.
    interrupted: AtomicU64,
}

/// The times of the first and the last failure since the last success, in the same format as
/// [`HealthTracker::fetched`].
#[derive(Debug, Default)]
struct FailureTimes {
    first: AtomicU64,
    last: AtomicU64,
}

impl FailureTimes {
    /// Notes a failure.
    fn failed(&self, stamp: u64) {
        self.last.store(stamp, Ordering::Relaxed);
        // An earlier failure remains the first.
        let (relaxed, first) = (Ordering::Relaxed, &self.first);
        let _earlier = first.compare_exchange(0, stamp, relaxed, relaxed);
    }

    /// Forgets the failures. Returns true if there was one.
    fn clear(&self) -> bool {
        self.has_failed() && self.first.swap(0, Ordering::Relaxed) > 0
    }

    fn has_failed(&self) -> bool {
        self.first.load(Ordering::Relaxed) > 0
    }
}

#[derive(Debug, Default)]
struct HealthRecords {
    /// The number of the current session, so that a session that ends late does not end the next
    /// one.
    session: u64,
    /// The start of the current session.
    since: Option<Instant>,
    /// True if the tasks of the session were dropped before it ended.
    is_broken: bool,
    renewed: Option<Instant>,
    leases: usize,
    polls: Vec<Weak<PollCounter>>,
}

/// The state of a consumer, as known in its own process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HealthState {
    pub(crate) is_running: bool,
    pub(crate) leases: usize,
    /// The time since the start, and since the last renewal, poll and fetch.
    pub(crate) begun: Option<Duration>,
    pub(crate) renewed: Option<Duration>,
    pub(crate) polled: Option<Duration>,
    pub(crate) fetched: Option<Duration>,
    /// The time since the first failed call after which no fetch has succeeded.
    pub(crate) failing: Option<Duration>,
    /// The age of the oldest record in flight.
    pub(crate) unacknowledged: Option<Duration>,
    /// The longest time for which the caller of a stream has not polled it, although it holds a
    /// record or a record is due.
    pub(crate) silent: Option<Duration>,
}

/// A guard of the current session. If it is dropped with its runtime, it marks the consumer as
/// dead.
pub(crate) struct SessionGuard {
    telemetry: Telemetry,
    session: u64,
    has_ended: bool,
}

impl SessionGuard {
    /// Ends the session in an orderly way.
    pub(crate) fn end(mut self) {
        self.has_ended = true;
    }
}

impl Drop for SessionGuard {
    fn drop(&mut self) {
        let mut state = lock(&self.telemetry.0.liveness.state);
        if state.session == self.session {
            if self.has_ended {
                (state.since, state.renewed, state.leases) = (None, None, 0);
            } else {
                state.is_broken = true;
            }
        }
    }
}

impl HealthTracker {
    pub(super) fn new() -> Self {
        let (fetched, fetch_failures, calls, state) = Default::default();
        Self { began: Instant::now(), fetched, fetch_failures, calls, state }
    }

    fn stamp(&self) -> u64 {
        let millis = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        millis.saturating_add(1)
    }

    /// Returns the time since a stamp was stored.
    fn since(&self, stamp: &AtomicU64) -> Option<Duration> {
        let millis = stamp.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.began.elapsed().saturating_sub(Duration::from_millis(millis)))
    }

    /// Returns the time since the first of these failures; `None` if there is none, or if the last
    /// one is so long ago that it no longer counts.
    fn failing(&self, failures: &FailureTimes) -> Option<Duration> {
        let is_recent = self.since(&failures.last)? < FAILURE_EXPIRY;
        self.since(&failures.first).filter(|_| is_recent)
    }
}

impl Telemetry {
    /// Starts a session, which lasts until the returned guard ends it.
    pub(crate) fn begin_session(&self) -> SessionGuard {
        // Failures of an earlier session do not apply to this one.
        self.0.liveness.calls.failures.clear();
        self.0.liveness.fetch_failures.clear();
        self.0.failures.clear_all();
        let mut state = lock(&self.0.liveness.state);
        state.session += 1;
        (state.since, state.is_broken) = (Some(Instant::now()), false);
        (state.renewed, state.leases) = (None, 0);
        SessionGuard { telemetry: self.clone(), session: state.session, has_ended: false }
    }

    /// Returns the number of the last session.
    pub(super) fn session(&self) -> u64 {
        lock(&self.0.liveness.state).session
    }

    /// Notes a renewal by a worker that holds `leases`.
    pub(crate) fn renewed(&self, leases: usize) {
        let mut state = lock(&self.0.liveness.state);
        (state.renewed, state.leases) = (Some(Instant::now()), leases);
    }

    /// Notes a successful fetch.
    pub(super) fn fetched(&self) {
        let liveness = &self.0.liveness;
        liveness.fetched.store(liveness.stamp(), Ordering::Relaxed);
        liveness.fetch_failures.clear();
        self.call_succeeded();
    }

    /// Notes a failed fetch of a shard.
    pub(super) fn fetch_failed(&self) {
        let liveness = &self.0.liveness;
        liveness.fetch_failures.failed(liveness.stamp());
    }

    /// Notes a successful call to Kinesis.
    pub(crate) fn call_succeeded(&self) {
        let (liveness, relaxed) = (&self.0.liveness, Ordering::Relaxed);
        let (calls, stamp) = (&liveness.calls, liveness.stamp());
        if calls.failures.has_failed() {
            // Two calls may succeed at once. Only the first one ends the interruption.
            let _state = lock(&liveness.state);
            if calls.failures.clear() {
                let before = calls.succeeded.load(relaxed);
                calls.interrupted.fetch_max(stamp.saturating_sub(before), relaxed);
            }
        }
        calls.succeeded.store(stamp, relaxed);
    }

    /// Returns the longest time between two successful calls to Kinesis with failed calls between
    /// them, since the last call of this method.
    pub(crate) fn take_interruption(&self) -> Duration {
        let millis = self.0.liveness.calls.interrupted.swap(0, Ordering::Relaxed);
        Duration::from_millis(millis)
    }

    /// Notes a failed call to Kinesis.
    pub(super) fn call_failed(&self) {
        let liveness = &self.0.liveness;
        liveness.calls.failures.failed(liveness.stamp());
    }

    /// Returns the time since the last successful call to Kinesis.
    pub(crate) fn since_success(&self) -> Option<Duration> {
        self.0.liveness.since(&self.0.liveness.calls.succeeded)
    }

    /// Returns the time from the first to the last failed call to Kinesis since the last success;
    /// `None` if no call has failed since.
    pub(crate) fn failing_for(&self) -> Option<Duration> {
        let FailureTimes { first, last } = &self.0.liveness.calls.failures;
        let (first, last) = (first.load(Ordering::Relaxed), last.load(Ordering::Relaxed));
        (first > 0).then(|| Duration::from_millis(last.saturating_sub(first)))
    }

    /// Returns the counter of polls for a new stream.
    pub(crate) fn polls(&self) -> Arc<PollCounter> {
        let polls = Arc::new(PollCounter::default());
        let mut state = lock(&self.0.liveness.state);
        state.polls.retain(|polls| polls.strong_count() > 0);
        state.polls.push(Arc::downgrade(&polls));
        polls
    }

    fn all_polls(&self) -> Vec<Arc<PollCounter>> {
        lock(&self.0.liveness.state).polls.iter().filter_map(Weak::upgrade).collect()
    }

    /// Checks the consumer once a second. Runs in a task, since the caller of a stalled shard may
    /// not poll.
    pub(crate) async fn watch(&self) {
        let mut looks = 0_u32;
        loop {
            sleep(CHECK_INTERVAL).await;
            looks = looks.wrapping_add(1);
            for polls in self.all_polls() {
                polls.look();
            }
            for gauges in self.all_gauges() {
                // Also notes the time of the last deliveries.
                let _in_flight = gauges.in_flight();
                if let Some(stalled) = gauges.stalled(STALLED_AFTER) {
                    self.emit(stalled);
                }
            }
            if looks.is_multiple_of(CHECKS_PER_MEASUREMENT) {
                let leases = lock(&self.0.liveness.state).leases;
                self.measure(leases);
            }
        }
    }

    pub(crate) fn health_state(&self) -> HealthState {
        let liveness = &self.0.liveness;
        let fetched = liveness.since(&liveness.fetched);
        let in_flight: Vec<_> = self.all_gauges().iter().map(|gauges| gauges.in_flight()).collect();
        let undelivered = in_flight.iter().filter_map(|shard| shard.undelivered).max();
        // While fetched records wait for the caller, other shards need not fetch.
        let unfetched =
            liveness.failing(&liveness.fetch_failures).filter(|_| undelivered.is_none());
        let failing = unfetched.max(liveness.failing(&liveness.calls.failures));
        let polls = self.all_polls();
        let silent = polls.iter().filter_map(|polls| polls.silent_for(undelivered)).max();
        let state = lock(&liveness.state);
        HealthState {
            is_running: state.since.is_some() && !state.is_broken,
            leases: state.leases,
            begun: state.since.map(|at| at.elapsed()),
            renewed: state.renewed.map(|at| at.elapsed()),
            polled: polls.iter().filter_map(|polls| polls.last()).min(),
            fetched,
            failing,
            unacknowledged: in_flight.iter().filter_map(|shard| shard.oldest).max(),
            silent,
        }
    }
}
