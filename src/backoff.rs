//! The crate's only retry back-off: exponential, with full jitter, and with a floor.
//!
//! ```text
//!   retry n after a failure: uniform in [floor, min(cap, base * 2^n)]      n = 0, 1, 2, …
//! ```
//!
//! Full jitter spreads retries best (<https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/>),
//! but on its own may pick a pause of zero. The floor guarantees that every retry loop pauses.

use std::time::Duration;

/// The bounds of one back-off.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// The shortest pause of any retry.
    floor: Duration,
    /// The longest pause of the first retry; it doubles with each further one.
    base: Duration,
    /// The longest pause of any retry.
    cap: Duration,
}

/// Calls for one shard: at most 5 `GetRecords` and 5 `GetShardIterator` calls per second
/// (<https://docs.aws.amazon.com/streams/latest/dev/service-sizes-and-limits.html>), so a retry
/// waits at least 210 ms.
pub(crate) const SHARD_CALLS: Limits = Limits::millis(210, 400, 25_600);

/// Calls that failed for a reason that only the caller can fix, such as missing permissions.
pub(crate) const REPORTED_CALLS: Limits = Limits::millis(15_000, 30_000, 30_000);

/// Listings: `ListShards` allows 1,000 calls per second and stream
/// (<https://docs.aws.amazon.com/kinesis/latest/APIReference/API_ListShards.html>), shared by all
/// workers of all applications.
pub(crate) const LISTINGS: Limits = Limits::millis(100, 200, 20_000);

/// Registration of a consumer: 5 `RegisterStreamConsumer` and 20 `DescribeStreamConsumer` calls per
/// second (<https://docs.aws.amazon.com/kinesis/latest/APIReference/API_RegisterStreamConsumer.html>,
/// <https://docs.aws.amazon.com/kinesis/latest/APIReference/API_DescribeStreamConsumer.html>), shared
/// by all workers. A consumer becomes ACTIVE within about a minute.
pub(crate) const REGISTRATIONS: Limits = Limits::millis(500, 1_000, 3_000);

/// Calls that one task makes on behalf of all shards. Each shard backs off separately as well.
pub(crate) const SHARED_CALLS: Limits = Limits::millis(500, 1_000, 5_000);

/// Checkpoint saves: no store limits their rate, and a recovered store is used again within
/// seconds.
pub(crate) const SAVES: Limits = Limits::millis(50, 200, 5_000);

/// Lease renewals. The cap is lowered to the renewal interval if that is shorter.
pub(crate) const EXCHANGES: Limits = Limits::millis(50, 200, 10_000);

/// Connection attempts of one store. Its callers back off much longer; these limits bound the
/// attempts of many callers together.
#[cfg(feature = "redis")]
pub(crate) const CONNECTIONS: Limits = Limits::millis(50, 100, 100);

/// Calls to DynamoDB: the AWS SDKs use a base of 50 ms
/// (<https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Programming.Errors.html>).
/// The callers of the store back off as well.
#[cfg(feature = "dynamodb")]
pub(crate) const DYNAMODB_CALLS: Limits = Limits::millis(10, 50, 800);

/// Attempts to read a shard after a fatal error: the worker acquires the shard again after the
/// pause unless another worker has acquired it.
pub(crate) const FAILED_SHARDS: Limits = Limits::millis(10_000, 20_000, 300_000);

/// Conditional lease updates that conflicted with the update of another worker: one round trip to
/// the store takes milliseconds.
pub(crate) const CONFLICTS: Limits = Limits::millis(5, 20, 320);

impl Limits {
    const fn millis(floor: u64, base: u64, cap: u64) -> Self {
        let millis = Duration::from_millis;
        Self { floor: millis(floor), base: millis(base), cap: millis(cap) }
    }

    /// Returns the limits with their cap lowered to `cap`, but not below the floor.
    pub(crate) fn capped(self, cap: Duration) -> Self {
        Self { cap: self.cap.min(cap).max(self.floor), ..self }
    }

    /// Returns the pause after `failures` earlier failures, for a `random` number from 0 to 1.
    fn pause(&self, failures: u32, random: f64) -> Duration {
        let doubled = self.base.saturating_mul(2_u32.saturating_pow(failures));
        let ceiling = doubled.min(self.cap).max(self.floor);
        self.floor + ceiling.saturating_sub(self.floor).mul_f64(random)
    }
}

/// Counts the consecutive failures of one loop, and computes the pause after each.
#[derive(Debug)]
pub(crate) struct Backoff {
    limits: Limits,
    failures: u32,
}

impl Backoff {
    pub(crate) const fn new(limits: Limits) -> Self {
        Self { limits, failures: 0 }
    }

    /// Counts a failure and returns the pause before the retry.
    pub(crate) fn failed(&mut self) -> Duration {
        let pause = self.limits.pause(self.failures, fastrand::f64());
        self.failures = self.failures.saturating_add(1);
        pause
    }

    /// Starts over after a success.
    pub(crate) fn succeeded(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: &[Limits] = &[
        SHARD_CALLS,
        REPORTED_CALLS,
        LISTINGS,
        REGISTRATIONS,
        SHARED_CALLS,
        SAVES,
        EXCHANGES,
        CONFLICTS,
        FAILED_SHARDS,
        #[cfg(feature = "redis")]
        CONNECTIONS,
    ];

    #[test]
    fn pause_doubles_up_to_the_cap() {
        let limits = Limits::millis(100, 200, 1_500);
        let longest: Vec<u128> =
            (0..6).map(|failures| limits.pause(failures, 1.0).as_millis()).collect();
        assert_eq!(longest, [200, 400, 800, 1_500, 1_500, 1_500]);
    }

    #[test]
    fn pause_is_at_least_the_floor_and_at_most_the_cap() {
        for limits in ALL {
            assert!(limits.floor > Duration::ZERO, "{limits:?} must pause");
            assert!(limits.floor <= limits.base && limits.base <= limits.cap, "{limits:?}");
            for failures in [0, 1, 31, 32, 64, u32::MAX] {
                assert_eq!(limits.pause(failures, 0.0), limits.floor);
                assert!(limits.pause(failures, 1.0) <= limits.cap, "{limits:?}, {failures}");
            }
        }
    }

    #[test]
    fn lowered_cap_stays_above_the_floor() {
        let limits = EXCHANGES.capped(Duration::from_millis(1));
        assert_eq!(limits.pause(20, 1.0), EXCHANGES.floor);
        let limits = EXCHANGES.capped(Duration::from_secs(1));
        assert_eq!(limits.pause(20, 1.0), Duration::from_secs(1));
        let limits = EXCHANGES.capped(Duration::from_secs(60));
        assert_eq!(limits.pause(20, 1.0), EXCHANGES.cap);
    }

    #[test]
    fn backoff_starts_over_after_a_success() {
        let mut backoff = Backoff::new(SHARD_CALLS);
        for _ in 0..20 {
            backoff.failed();
        }
        backoff.succeeded();
        assert!(backoff.failed() <= SHARD_CALLS.base, "the first pause is at most the base");
    }
}
