//! Limits the rate of the calls for one shard.

use std::time::Duration;

use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use crate::backoff::{Backoff, REPORTED_CALLS, SHARD_CALLS};

/// The shortest interval between calls. Kinesis allows five calls per second and shard:
/// <https://docs.aws.amazon.com/kinesis/latest/APIReference/API_GetRecords.html>.
pub(crate) const SHORTEST_PAUSE: Duration = Duration::from_millis(200);

/// Added to each interval, so that five calls take 50 ms longer than a second: Kinesis counts calls
/// when they arrive, and network delays vary.
const MARGIN: Duration = Duration::from_millis(10);

/// Two mebibytes per second and shard, from the same page: after a response of 10 MiB, the calls of
/// the next 5 seconds fail.
const BYTES_PER_SECOND: u64 = 2 * 1024 * 1024;

/// The highest call rate, in calls per second.
///
/// Several readers share the limit of a shard, and a reader detects the others only by being
/// throttled. Each throttled call reduces its rate by 30 %, and each second without throttling
/// raises it by 0.25 calls per second. Rates with additive increase and multiplicative decrease
/// converge: <https://doi.org/10.1016/0169-7552(89)90019-6>.
const MAX_CALL_RATE: f64 = 5.0;
/// The lowest call rate: one call in 2.5 s.
const MIN_CALL_RATE: f64 = 0.4;
const DECREASE_FACTOR: f64 = 0.7;
const INCREASE_PER_SECOND: f64 = 0.25;

/// The random part of the pause of a shard that is behind, as a fraction of the shortest pause. A
/// reader that called exactly at the limit would leave the other readers no gap for their calls.
const GAP: f64 = 0.1;

/// The age at which a new subscription may replace the previous one:
/// <https://docs.aws.amazon.com/kinesis/latest/APIReference/API_SubscribeToShard.html>. It includes
/// 100 ms because the client and the server measure from different moments.
const RESUBSCRIBE_PAUSE: Duration = Duration::from_millis(5100);

/// Limits the rate of the calls for one shard: at most five calls per second, and at most the bytes
/// that Kinesis allows. The rate is lower if there is nothing to read, after throttling and after
/// failures.
///
/// The pause after a response counts from the call, so a slow response causes no further delay. The
/// pause after a failure counts from the failure, and the pause for the bytes of a response counts
/// from the end of its read.
#[derive(Debug)]
pub(crate) struct Pace {
    ticks: Interval,
    /// The pause while the shard has nothing new.
    idle: Duration,
    /// The time of the last call.
    asked: Instant,
    /// The earliest time of the next call: the limit allows further bytes, and the last
    /// subscription may be replaced.
    earliest: Option<Instant>,
    /// The time between the last two calls.
    since: Duration,
    /// The rate that throttling allows, in calls per second.
    rate: f64,
    failures: Backoff,
    reports: Backoff,
}

impl Pace {
    /// Creates a pace with a random delay before the first call, since many shards start together.
    pub(crate) fn new(idle: Duration) -> Self {
        let start = Instant::now() + SHORTEST_PAUSE.mul_f64(fastrand::f64());
        let mut ticks = interval_at(start, SHORTEST_PAUSE);
        // A late tick is not made up for: two calls would be made at the same time.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            ticks,
            idle,
            asked: start,
            earliest: None,
            since: Duration::ZERO,
            rate: MAX_CALL_RATE,
            failures: Backoff::new(SHARD_CALLS),
            reports: Backoff::new(REPORTED_CALLS),
        }
    }

    /// Waits until a call is allowed.
    ///
    /// Cancel safe: a turn that was not taken remains available to the next caller.
    pub(crate) async fn ready(&mut self) {
        self.ticks.tick().await;
    }

    /// Notes that a call is made now.
    pub(crate) fn note_call(&mut self) {
        let now = Instant::now();
        self.since = now.saturating_duration_since(self.asked);
        self.asked = now;
    }

    /// Notes a response. `behind` is true if there is more to read. [`read`](Self::read) counts the
    /// bytes.
    pub(crate) fn answered(&mut self, behind: bool) {
        self.failures.succeeded();
        self.rate = (self.rate + INCREASE_PER_SECOND * self.since.as_secs_f64()).min(MAX_CALL_RATE);
        let gap = SHORTEST_PAUSE.mul_f64(GAP * fastrand::f64());
        let wanted = if behind { SHORTEST_PAUSE + gap } else { self.idle };
        self.pause(wanted.max(self.throttle()));
    }

    /// Counts the bytes of a response. Kinesis counts all of them, even if the response was cut
    /// short.
    pub(crate) fn read(&mut self, bytes: usize) {
        let earned = Duration::from_millis((bytes as u64 * 1000).div_ceil(BYTES_PER_SECOND));
        self.earliest = self.earliest.max(Some(Instant::now() + earned));
    }

    /// Waits for the turn of a call that is repeated, and notes it. The response to the first call,
    /// of `bytes` bytes, is discarded.
    ///
    /// Cancel safe: a turn that was not taken remains available to the next caller.
    pub(crate) async fn repeat(&mut self, bytes: usize) {
        self.read(bytes);
        self.pause(self.throttle());
        self.ready().await;
        self.note_call();
    }

    /// Lowers the rate after Kinesis has throttled a call.
    pub(crate) fn throttled(&mut self) {
        self.rate = (self.rate * DECREASE_FACTOR).max(MIN_CALL_RATE);
        self.pause(self.throttle());
    }

    /// Notes that a subscription has started, possibly long after its turn. The next one may
    /// replace it after five seconds.
    pub(crate) fn subscribed(&mut self) {
        self.failures.succeeded();
        // This applies even if the subscription fails.
        self.earliest = self.earliest.max(Some(Instant::now() + RESUBSCRIBE_PAUSE));
        self.pause_from_now(RESUBSCRIBE_PAUSE);
    }

    /// Backs off because another subscription to the shard must end first. A new attempt shows
    /// after five seconds at the earliest whether it has.
    pub(crate) fn back_off_for_other_subscription(&mut self) {
        self.pause_from_now(RESUBSCRIBE_PAUSE.mul_f64(1.0 + fastrand::f64() / 2.0));
    }

    /// Backs off after a failed call that may succeed later.
    pub(crate) fn failed(&mut self) {
        let pause = self.failures.failed();
        self.pause_from_now(pause);
    }

    /// Backs off after a failed call that only the caller can fix.
    pub(crate) fn reported(&mut self) {
        let pause = self.reports.failed();
        self.pause_from_now(pause);
    }

    /// Returns the pause at the current rate. Below the highest rate it varies randomly by 25 % in
    /// either direction. Otherwise, two readers of a shard would keep colliding.
    fn throttle(&self) -> Duration {
        if self.rate >= MAX_CALL_RATE {
            return SHORTEST_PAUSE + MARGIN;
        }
        let pause = Duration::from_secs_f64((0.75 + fastrand::f64() / 2.0) / self.rate);
        pause.max(SHORTEST_PAUSE + MARGIN)
    }

    fn pause(&mut self, pause: Duration) {
        let due = (self.asked + pause).max(Instant::now());
        self.ticks.reset_at(self.earliest.map_or(due, |earliest| earliest.max(due)));
    }

    /// Pauses from now on instead of from the call, so that a call that failed late is not retried
    /// immediately.
    fn pause_from_now(&mut self, pause: Duration) {
        let due = Instant::now() + pause;
        self.ticks.reset_at(self.earliest.map_or(due, |earliest| earliest.max(due)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn pause_after(pace: &mut Pace, outcome: impl FnOnce(&mut Pace)) -> Duration {
        pace.ready().await;
        pace.note_call();
        let asked = Instant::now();
        outcome(pace);
        pace.ready().await;
        // The turn that was just taken belongs to the next call.
        pace.note_call();
        asked.elapsed()
    }

    fn assert_near(pause: Duration, expected: Duration) {
        // tokio's timer counts whole milliseconds, and never fires early.
        let most = expected.mul_f64(1.0 + GAP) + Duration::from_millis(2);
        assert!(pause >= expected && pause <= most, "{pause:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn pause_is_shortest_when_behind_and_the_interval_when_caught_up() {
        let mut pace = Pace::new(Duration::from_secs(1));
        let behind = pause_after(&mut pace, |pace| pace.answered(true)).await;
        assert_near(behind, Duration::from_millis(210));
        let idle = pause_after(&mut pace, |pace| pace.answered(false)).await;
        assert_near(idle, Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn failed_subscription_is_retried_after_five_seconds() {
        let mut pace = Pace::new(Duration::from_secs(1));
        let pause = pause_after(&mut pace, |pace| {
            pace.subscribed();
            pace.failed();
        });
        assert_near(pause.await, RESUBSCRIBE_PAUSE);
    }

    #[tokio::test(start_paused = true)]
    async fn ten_mebibytes_cause_a_pause_of_five_seconds() {
        let mut pace = Pace::new(Duration::from_secs(1));
        let pause = pause_after(&mut pace, |pace| {
            pace.read(10 << 20);
            pace.answered(true);
        })
        .await;
        assert_near(pause, Duration::from_secs(5));
    }

    /// Kinesis allows five calls per second, and the network may delay the first call by 50 ms more
    /// than the sixth.
    #[tokio::test(start_paused = true)]
    async fn calls_at_the_shortest_interval_keep_a_margin() {
        let mut pace = Pace::new(SHORTEST_PAUSE);
        let mut calls = Vec::new();
        for behind in [false, true].repeat(30) {
            pace.ready().await;
            pace.note_call();
            calls.push(Instant::now());
            pace.answered(behind);
        }
        for six in calls.windows(6) {
            assert!(six[5] - six[0] >= Duration::from_millis(1050), "{:?}", six[5] - six[0]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn pause_for_bytes_counts_from_the_end_of_the_read() {
        let mut pace = Pace::new(Duration::from_secs(1));
        pace.ready().await;
        pace.note_call();
        tokio::time::sleep(Duration::from_secs(3)).await;
        pace.read(10 << 20);
        pace.answered(true);
        let read = Instant::now();
        pace.ready().await;
        assert_near(read.elapsed(), Duration::from_secs(5));
        // A response that was cut short counts in full.
        pace.note_call();
        pace.read(4 << 20);
        pace.failed();
        let failed = Instant::now();
        pace.ready().await;
        assert_near(failed.elapsed(), Duration::from_secs(2));
    }

    #[tokio::test(start_paused = true)]
    async fn repeated_call_waits_for_its_turn_and_for_the_bytes_of_the_first() {
        for (bytes, pause) in [(0, 210), (4 << 20, 2000)] {
            let mut pace = Pace::new(SHORTEST_PAUSE);
            pace.ready().await;
            pace.note_call();
            let asked = Instant::now();
            pace.repeat(bytes).await;
            assert_near(asked.elapsed(), Duration::from_millis(pause));
            let repeated = Instant::now();
            pace.answered(true);
            pace.ready().await;
            assert_near(repeated.elapsed(), Duration::from_millis(210));
        }
    }

    fn assert_rate(pause: Duration, rate: f64) {
        let pause = pause.as_secs_f64() * rate;
        assert!((0.74..1.26).contains(&pause), "{pause} times the pause at {rate} calls/s");
    }

    #[tokio::test(start_paused = true)]
    async fn throttling_lowers_the_rate_and_time_raises_it() {
        let mut pace = Pace::new(Duration::from_secs(1));
        let mut rate = MAX_CALL_RATE;
        for _ in 0..10 {
            rate = (rate * 0.7).max(0.4);
            assert_rate(pause_after(&mut pace, Pace::throttled).await, rate);
        }
        let began = Instant::now();
        // From 0.4 to 5 calls per second, at 0.25 calls per second more in each second.
        while began.elapsed() < Duration::from_secs(19) {
            pace.ready().await;
            pace.note_call();
            pace.answered(true);
        }
        let recovered = pause_after(&mut pace, |pace| pace.answered(true)).await;
        assert!(recovered <= Duration::from_millis(232), "{recovered:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn late_caller_gets_no_missed_turns() {
        let mut pace = Pace::new(Duration::from_secs(1));
        pace.ready().await;
        pace.note_call();
        pace.answered(true);
        tokio::time::sleep(Duration::from_secs(60)).await;
        pace.ready().await;
        pace.note_call();
        let asked = Instant::now();
        pace.answered(true);
        pace.ready().await;
        assert_near(asked.elapsed(), Duration::from_millis(210));
    }
}
