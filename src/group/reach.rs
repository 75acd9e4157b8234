//! Whether this worker reaches Kinesis, judged by its calls: fetches and listings.
//!
//! ```text
//!            all calls fail for `patience`
//!   reaches ───────────────────────────────► out of reach: capacity 0, and other workers
//!      ▲                                     acquire its leases; it goes on listing
//!      └─────────── a call succeeds ◄───────────────┘
//! ```
//!
//! A lease moves from a worker that is out of reach only to one that has reached Kinesis for `trial`
//! without a long interruption, and only after each worker has had the time to declare that it does not.
//! So no lease moves while Kinesis is away for all workers, nor when it returns. A worker that makes no
//! calls proves nothing: an idle worker lists the stream while another worker is out of reach.

use std::time::Duration;

use tokio::time::Instant;

/// A fetch backs off for up to 25.6 s, so failures of a shorter time prove little.
const SHORTEST_PATIENCE: Duration = Duration::from_secs(30);

/// After an outage each worker reaches Kinesis within this time: a call fails after 30 s at the latest, and
/// the next one follows within 25.6 s.
const SHORTEST_TRIAL: Duration = Duration::from_secs(60);

/// What the calls of this worker say about its access to Kinesis.
#[derive(Debug)]
pub(super) struct Reach {
    /// Three lease durations, at least 30 s.
    patience: Duration,
    /// The same, at least 60 s.
    trial: Duration,
    /// The end of the last interruption. A time without successful calls is an interruption, even if no
    /// call has failed.
    steady: Instant,
    is_out: bool,
}

impl Reach {
    pub(super) fn new(lease_duration: Duration, now: Instant) -> Self {
        let patience = (3 * lease_duration).max(SHORTEST_PATIENCE);
        Self { patience, trial: patience.max(SHORTEST_TRIAL), steady: now, is_out: false }
    }

    /// Notes how calls have gone. `interruption` is the longest time between two successful calls that is over
    /// since the last note.
    pub(super) fn note(&mut self, calls: Calls, interruption: Duration, now: Instant) {
        self.is_out = calls.failing.is_some_and(|time| self.is_out || time >= self.patience);
        let limit = self.patience / 3;
        if self.is_out || !calls.succeeded_within(limit) || interruption >= limit {
            self.steady = now;
        }
    }

    /// Whether a listing must show if all calls fail: the last ones have.
    pub(super) fn is_doubtful(&self, calls: Calls) -> bool {
        calls.failing.is_some() && !calls.succeeded_within(self.patience / 3)
    }

    /// Whether all calls have failed for three lease durations.
    pub(super) fn is_out(&self) -> bool {
        self.is_out
    }

    /// Whether leases may move to this worker from one that is out of reach.
    pub(super) fn may_take_over(&self, calls: Calls, now: Instant) -> bool {
        now.duration_since(self.steady) >= self.trial && calls.succeeded_within(self.patience / 3)
    }

    /// Whether the last successful call is old enough that another one is needed to stay
    /// [able to take over](Self::may_take_over).
    pub(super) fn needs_listing(&self, calls: Calls) -> bool {
        !calls.succeeded_within(self.patience / 6)
    }
}

/// How the calls of this worker have gone.
#[derive(Debug, Clone, Copy)]
pub(super) struct Calls {
    /// The time from the first to the last failure since a call has succeeded; `None` without a failure
    /// since.
    pub(super) failing: Option<Duration>,
    /// The time since a call has succeeded.
    pub(super) succeeded: Option<Duration>,
}

impl Calls {
    fn succeeded_within(&self, limit: Duration) -> bool {
        self.succeeded.is_some_and(|time| time < limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(20);
    const SECOND: Duration = Duration::from_secs(1);

    /// All calls have failed for this time.
    fn failing(seconds: u32) -> Calls {
        Calls { failing: Some(seconds * SECOND), succeeded: Some((seconds + 1) * SECOND) }
    }

    /// The last call succeeded this long ago.
    fn succeeded(seconds: u32) -> Calls {
        Calls { failing: None, succeeded: Some(seconds * SECOND) }
    }

    #[test]
    fn worker_is_out_of_reach_after_three_lease_durations_until_a_call_succeeds() {
        let now = Instant::now();
        let mut reach = Reach::new(LEASE, now);
        reach.note(failing(59), Duration::ZERO, now);
        assert!(!reach.is_out() && reach.is_doubtful(failing(59)));
        reach.note(failing(60), Duration::ZERO, now);
        assert!(reach.is_out());
        reach.note(failing(1), Duration::ZERO, now);
        assert!(reach.is_out(), "the last call has failed");
        reach.note(succeeded(1), Duration::ZERO, now);
        assert!(!reach.is_out());
        let mut short = Reach::new(2 * SECOND, now);
        short.note(failing(29), Duration::ZERO, now);
        assert!(!short.is_out(), "a fetch backs off for up to 25.6 s");
    }

    #[test]
    fn worker_takes_over_only_after_reaching_kinesis_without_interruption() {
        let began = Instant::now();
        let mut reach = Reach::new(LEASE, began);
        assert!(!reach.may_take_over(succeeded(1), began));
        let later = began + 60 * SECOND;
        reach.note(failing(1), Duration::ZERO, later);
        assert!(reach.may_take_over(succeeded(1), later), "one failure is no interruption");
        let never = Calls { failing: None, succeeded: None };
        assert!(!reach.may_take_over(never, later));
        assert!(!reach.may_take_over(succeeded(20), later), "the success is too old");
        assert!(reach.needs_listing(succeeded(10)), "before the success is too old");
        let hung = Calls { failing: Some(Duration::ZERO), succeeded: Some(30 * SECOND) };
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
        assert!(reach.may_take_over(succeeded(0), end + 61 * SECOND), "it was short");
    }

    /// The worker called Kinesis at its start and owns no shard, so an outage passes without a call.
    #[test]
    fn worker_without_calls_takes_over_only_after_a_trial() {
        let began = Instant::now();
        let mut reach = Reach::new(LEASE, began);
        reach.note(succeeded(0), Duration::ZERO, began);
        let later = began + 300 * SECOND;
        reach.note(succeeded(300), Duration::ZERO, later);
        reach.note(succeeded(0), Duration::ZERO, later + SECOND);
        assert!(!reach.may_take_over(succeeded(0), later + SECOND), "it has just listed");
        assert!(reach.may_take_over(succeeded(0), later + 60 * SECOND));
    }
}
