//! Reachability of Kinesis from this worker, judged by its calls: fetches and listings.
//!
//! ```text
//!              all calls fail for `patience`
//!   reachable ───────────────────────────────► unreachable: capacity 0, other workers
//!       ▲                                      acquire its leases; it keeps listing
//!       └────────── a call succeeds ◄───────────────┘
//! ```
//!
//! A lease moves from a worker that cannot reach Kinesis only to a worker that has reached Kinesis
//! for `trial` without a long interruption, and only after every worker has had the time to declare
//! that it cannot reach Kinesis either. So no lease moves during an outage of Kinesis for all
//! workers, nor when the outage ends. A worker that makes no calls proves nothing: an idle worker
//! lists the stream while another worker cannot reach Kinesis.

use std::time::Duration;

use tokio::time::Instant;

/// The shortest time of failures that counts. A fetch backs off for up to 25.6 s, so failures over
/// a shorter time prove little.
const SHORTEST_PATIENCE: Duration = Duration::from_secs(30);

/// After an outage each worker reaches Kinesis within this time: a call fails after 30 s at the
/// latest, and the next one follows within 25.6 s.
const SHORTEST_TRIAL: Duration = Duration::from_secs(60);

/// The reachability of Kinesis, as the calls of this worker show it.
#[derive(Debug)]
pub(super) struct Reachability {
    /// Kinesis is unreachable after failures for this time: three lease durations, at least 30 s.
    patience: Duration,
    /// Leases may move here after successes for this time: three lease durations, at least 60 s.
    trial: Duration,
    /// The end of the last interruption. A time without successful calls is an interruption, even
    /// if no call has failed.
    steady: Instant,
    is_out: bool,
}

impl Reachability {
    pub(super) fn new(lease_duration: Duration, now: Instant) -> Self {
        let patience = (3 * lease_duration).max(SHORTEST_PATIENCE);
        Self { patience, trial: patience.max(SHORTEST_TRIAL), steady: now, is_out: false }
    }

    /// Notes the outcome of the calls. `interruption` is the longest interruption between two
    /// successful calls that ended since the last note.
    pub(super) fn note(&mut self, calls: CallOutcomes, interruption: Duration, now: Instant) {
        self.is_out = calls.failing_for.is_some_and(|time| self.is_out || time >= self.patience);
        let limit = self.patience / 3;
        if self.is_out || !calls.succeeded_within(limit) || interruption >= limit {
            self.steady = now;
        }
    }

    /// Returns true if the last calls have failed, so that a listing is needed as another test.
    pub(super) fn is_doubtful(&self, calls: CallOutcomes) -> bool {
        calls.failing_for.is_some() && !calls.succeeded_within(self.patience / 3)
    }

    /// Returns true if all calls have failed for `patience`.
    pub(super) fn is_out(&self) -> bool {
        self.is_out
    }

    /// Returns true if leases may move to this worker from one that cannot reach Kinesis.
    pub(super) fn may_take_over(&self, calls: CallOutcomes, now: Instant) -> bool {
        now.duration_since(self.steady) >= self.trial && calls.succeeded_within(self.patience / 3)
    }

    /// Returns true if the last successful call is so old that another one is needed to stay
    /// [able to acquire such leases](Self::may_take_over).
    pub(super) fn needs_listing(&self, calls: CallOutcomes) -> bool {
        !calls.succeeded_within(self.patience / 6)
    }
}

/// The recent outcome of this worker's calls.
#[derive(Debug, Clone, Copy)]
pub(super) struct CallOutcomes {
    /// The time from the first to the last failure since the last success; `None` without a
    /// failure.
    pub(super) failing_for: Option<Duration>,
    /// The time since the last success.
    pub(super) succeeded: Option<Duration>,
}

impl CallOutcomes {
    fn succeeded_within(&self, limit: Duration) -> bool {
        self.succeeded.is_some_and(|time| time < limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(20);
    const SECOND: Duration = Duration::from_secs(1);

    /// Returns calls that have all failed for this time.
    fn failing_for(seconds: u32) -> CallOutcomes {
        CallOutcomes {
            failing_for: Some(seconds * SECOND),
            succeeded: Some((seconds + 1) * SECOND),
        }
    }

    /// Returns calls of which the last succeeded this long ago.
    fn succeeded(seconds: u32) -> CallOutcomes {
        CallOutcomes { failing_for: None, succeeded: Some(seconds * SECOND) }
    }

    #[test]
    fn kinesis_is_unreachable_after_three_lease_durations_of_failures_until_a_call_succeeds() {
        let now = Instant::now();
        let mut reach = Reachability::new(LEASE, now);
        reach.note(failing_for(59), Duration::ZERO, now);
        assert!(!reach.is_out() && reach.is_doubtful(failing_for(59)));
        reach.note(failing_for(60), Duration::ZERO, now);
        assert!(reach.is_out());
        reach.note(failing_for(1), Duration::ZERO, now);
        assert!(reach.is_out(), "the last call has failed");
        reach.note(succeeded(1), Duration::ZERO, now);
        assert!(!reach.is_out());
        let mut short = Reachability::new(2 * SECOND, now);
        short.note(failing_for(29), Duration::ZERO, now);
        assert!(!short.is_out(), "a fetch backs off for up to 25.6 s");
    }

    #[test]
    fn leases_may_move_here_only_after_a_trial_without_interruption() {
        let began = Instant::now();
        let mut reach = Reachability::new(LEASE, began);
        assert!(!reach.may_take_over(succeeded(1), began));
        let later = began + 60 * SECOND;
        reach.note(failing_for(1), Duration::ZERO, later);
        assert!(reach.may_take_over(succeeded(1), later), "one failure is no interruption");
        let never = CallOutcomes { failing_for: None, succeeded: None };
        assert!(!reach.may_take_over(never, later));
        assert!(!reach.may_take_over(succeeded(20), later), "the success is too old");
        assert!(
            reach.needs_listing(succeeded(10)),
            "a listing is due before the success is too old"
        );
        let hung = CallOutcomes { failing_for: Some(Duration::ZERO), succeeded: Some(30 * SECOND) };
        reach.note(hung, Duration::ZERO, later);
        reach.note(succeeded(0), Duration::ZERO, later + SECOND);
        assert!(!reach.may_take_over(succeeded(0), later + SECOND));
        assert!(reach.may_take_over(succeeded(0), later + 60 * SECOND));
        // The failure and the success that ended it came between two notes.
        let end = later + 90 * SECOND;
        reach.note(succeeded(0), 20 * SECOND, end);
        assert!(!reach.may_take_over(succeeded(0), end + 59 * SECOND));
        assert!(reach.may_take_over(succeeded(0), end + 60 * SECOND));
        reach.note(succeeded(0), 19 * SECOND, end + 60 * SECOND);
        assert!(reach.may_take_over(succeeded(0), end + 61 * SECOND), "the interruption was short");
    }

    /// The worker called Kinesis at its start and owns no shard, so an outage passes without a call.
    #[test]
    fn worker_without_calls_takes_over_only_after_a_trial() {
        let began = Instant::now();
        let mut reach = Reachability::new(LEASE, began);
        reach.note(succeeded(0), Duration::ZERO, began);
        let later = began + 300 * SECOND;
        reach.note(succeeded(300), Duration::ZERO, later);
        reach.note(succeeded(0), Duration::ZERO, later + SECOND);
        assert!(!reach.may_take_over(succeeded(0), later + SECOND), "it has just listed");
        assert!(reach.may_take_over(succeeded(0), later + 60 * SECOND));
    }
}
