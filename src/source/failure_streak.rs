//! Counts consecutive failures, or consecutive useless responses.

use std::time::Duration;

use tokio::time::Instant;

/// The time for which calls are retried if only the caller can fix their failure, or if their
/// responses are useless. After this time the source ends, and the lease of the shard is released.
pub(super) const GIVE_UP_AFTER: Duration = Duration::from_secs(60);

/// The minimum number of failures in that time, since the caller may not have polled for most of
/// it.
const MIN_FAILURES: u32 = 4;

/// The number of consecutive failures, and the time of the first one.
#[derive(Debug, Default)]
pub(super) struct FailureStreak {
    since: Option<Instant>,
    failures: u32,
}

impl FailureStreak {
    /// Counts a failure. Returns true if at least [`MIN_FAILURES`] have occurred and the first one
    /// was at least [`GIVE_UP_AFTER`] ago.
    pub(super) fn lasts(&mut self) -> bool {
        self.note();
        self.has_lasted(GIVE_UP_AFTER)
    }

    /// Counts a failure.
    pub(super) fn note(&mut self) {
        self.failures = self.failures.saturating_add(1);
        self.since.get_or_insert_with(Instant::now);
    }

    /// Returns true if at least [`MIN_FAILURES`] have occurred and the first one was at least
    /// `time` ago.
    pub(super) fn has_lasted(&self, time: Duration) -> bool {
        self.failures >= MIN_FAILURES && self.age() >= time
    }

    /// Returns the time since the first failure.
    pub(super) fn age(&self) -> Duration {
        self.since.map(|since| since.elapsed()).unwrap_or_default()
    }

    pub(super) fn since(&self) -> Option<Instant> {
        self.since
    }

    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// Returns true before the first failure.
    pub(super) fn is_empty(&self) -> bool {
        self.failures == 0
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn streak_lasts_after_a_minute_and_four_failures() {
        let mut streak = FailureStreak::default();
        assert!(!streak.lasts());
        advance(GIVE_UP_AFTER).await;
        // The caller did not poll for a minute.
        assert!(!streak.lasts());
        assert!(!streak.lasts());
        assert!(streak.lasts());
        let mut quick = FailureStreak::default();
        assert!((0..100).all(|_| !quick.lasts()));
    }
}
