//! When a shard may be asked again.

use std::time::Duration;

use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use crate::backoff::{Backoff, REPORTED_CALLS, SHARD_CALLS};

/// Five calls a second and shard:
/// <https://docs.aws.amazon.com/kinesis/latest/APIReference/API_GetRecords.html>.
pub(crate) const SHORTEST_PAUSE: Duration = Duration::from_millis(200);

/// Calls are this much further apart, so that five of them are 50 ms longer under way than a second:
/// Kinesis counts when they arrive, and the network delays one more than another.
const MARGIN: Duration = Duration::from_millis(10);

/// Two mebibytes a second and shard, from the same page: an answer of 10 MiB makes the calls of
/// the next 5 seconds fail.
const BYTES_PER_SECOND: u64 = 2 * 1024 * 1024;

/// Several readers share a shard's calls, and none knows of the others but by being refused. Each
/// takes three tenths off its rate when it is, and adds a quarter of a call a second to it in each
/// second that it is not: rates that shrink by a part and grow by a sum draw near each other,
/// <https://doi.org/10.1016/0169-7552(89)90019-6>. At a call in 2.5 s it goes on asking.
const MOST_CALLS: f64 = 5.0;
const FEWEST_CALLS: f64 = 0.4;
const SLOWER: f64 = 0.7;
const FASTER: f64 = 0.25;

/// The longest pause between calls of a shard that is behind is so much longer than the shortest:
/// one who kept to the limit exactly would leave the others no gap in which to be heard.
const GAP: f64 = 0.1;

/// A subscription that is younger is not taken over:
/// <https://docs.aws.amazon.com/kinesis/latest/APIReference/API_SubscribeToShard.html>. A tenth of a
/// second more, since the two clocks count from other moments.
const RESUBSCRIBE_PAUSE: Duration = Duration::from_millis(5100);

/// Set by the compiler flag with which the crate's own benchmarks are built: a shard that is behind is
/// read without a pause, so that they measure no waiting. No environment variable and no feature sets
/// it.
const UNPACED: bool = cfg!(kinestream_unpaced);

/// The pace of one shard's calls: never more than five in a second, nor more bytes than are
/// granted; slower when there is nothing to read, when throttled and when calls fail.
///
/// A pause after an answer counts from the moment of the call, so a slow answer costs nothing; one after
/// a failure counts from the failure, and one for the bytes of an answer from when it was read.
#[derive(Debug)]
pub(crate) struct Pace {
    ticks: Interval,
    /// The pause while the shard has nothing new.
    idle: Duration,
    asked: Instant,
    /// When the bytes read so far are paid for, and the last subscription may be taken over.
    earliest: Option<Instant>,
    /// How long before it the call before it was.
    since: Duration,
    /// Calls a second, as far as throttling lets it.
    rate: f64,
    failures: Backoff,
    reports: Backoff,
}

impl Pace {
    /// Many shards start together, so each begins at a moment of its own.
    pub(crate) fn new(idle: Duration) -> Self {
        let start = Instant::now() + SHORTEST_PAUSE.mul_f64(fastrand::f64());
        let mut ticks = interval_at(start, SHORTEST_PAUSE);
        // A late tick must not be made up for: two calls would fall together.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            ticks,
            idle,
            asked: start,
            earliest: None,
            since: Duration::ZERO,
            rate: MOST_CALLS,
            failures: Backoff::new(SHARD_CALLS),
            reports: Backoff::new(REPORTED_CALLS),
        }
    }

    /// Waits until the shard may be asked.
    ///
    /// Cancel safe: a turn that was not taken is there for the next call.
    pub(crate) async fn turn(&mut self) {
        self.ticks.tick().await;
    }

    /// A call goes out now.
    pub(crate) fn asks(&mut self) {
        let now = Instant::now();
        self.since = now.saturating_duration_since(self.asked);
        self.asked = now;
    }

    /// Notes an answer; `behind` states that there is more to read. [`read`](Self::read) counts its bytes.
    pub(crate) fn answered(&mut self, behind: bool) {
        self.failures.succeeded();
        self.rate = (self.rate + FASTER * self.since.as_secs_f64()).min(MOST_CALLS);
        if UNPACED && behind {
            return self.pause(Duration::ZERO);
        }
        let gap = SHORTEST_PAUSE.mul_f64(GAP * fastrand::f64());
        let wanted = if behind { SHORTEST_PAUSE + gap } else { self.idle };
        self.pause(wanted.max(self.throttle()));
    }

    /// Counts the bytes of an answer. Kinesis counts all of them, also where the answer was cut short.
    pub(crate) fn read(&mut self, bytes: usize) {
        if UNPACED {
            return;
        }
        let earned = Duration::from_millis((bytes as u64 * 1000).div_ceil(BYTES_PER_SECOND));
        self.earliest = self.earliest.max(Some(Instant::now() + earned));
    }

    /// Kinesis asked for fewer calls.
    pub(crate) fn throttled(&mut self) {
        self.rate = (self.rate * SLOWER).max(FEWEST_CALLS);
        self.pause(self.throttle());
    }

    /// A subscription has begun, maybe long after its turn: the next one may take over after five
    /// seconds.
    pub(crate) fn subscribed(&mut self) {
        self.failures.succeeded();
        // Whatever comes of the subscription.
        self.earliest = self.earliest.max(Some(Instant::now() + RESUBSCRIBE_PAUSE));
        self.pause_from_now(RESUBSCRIBE_PAUSE);
    }

    /// Somebody else has subscribed, and must let go: that is seen after five seconds.
    pub(crate) fn occupied(&mut self) {
        self.pause_from_now(RESUBSCRIBE_PAUSE.mul_f64(1.0 + fastrand::f64() / 2.0));
    }

    /// The call failed, and may succeed later.
    pub(crate) fn failed(&mut self) {
        let pause = self.failures.failed();
        self.pause_from_now(pause);
    }

    /// The call failed, and only the caller can do something about it.
    pub(crate) fn reported(&mut self) {
        let pause = self.reports.failed();
        self.pause_from_now(pause);
    }

    /// A throttled pause is random by a quarter either way, or two readers of a shard would go on
    /// colliding.
    fn throttle(&self) -> Duration {
        if self.rate >= MOST_CALLS {
            return SHORTEST_PAUSE + MARGIN;
        }
        let pause = Duration::from_secs_f64((0.75 + fastrand::f64() / 2.0) / self.rate);
        pause.max(SHORTEST_PAUSE + MARGIN)
    }

    fn pause(&mut self, pause: Duration) {
        let due = (self.asked + pause).max(Instant::now());
        self.ticks.reset_at(self.earliest.map_or(due, |earliest| earliest.max(due)));
    }

    /// A call that failed late is not retried at once.
    fn pause_from_now(&mut self, pause: Duration) {
        let due = Instant::now() + pause;
        self.ticks.reset_at(self.earliest.map_or(due, |earliest| earliest.max(due)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn pause_after(pace: &mut Pace, outcome: impl FnOnce(&mut Pace)) -> Duration {
        pace.turn().await;
        pace.asks();
        let asked = Instant::now();
        outcome(pace);
        pace.turn().await;
        // The turn just taken is the next call's.
        pace.asks();
        asked.elapsed()
    }

    fn assert_near(pause: Duration, expected: Duration) {
        // tokio's timer counts whole milliseconds, and never fires early.
        let most = expected.mul_f64(1.0 + GAP) + Duration::from_millis(2);
        assert!(pause >= expected && pause <= most, "{pause:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn behind_is_five_a_second_and_caught_up_the_interval() {
        let mut pace = Pace::new(Duration::from_secs(1));
        let behind = pause_after(&mut pace, |pace| pace.answered(true)).await;
        assert_near(behind, Duration::from_millis(210));
        let idle = pause_after(&mut pace, |pace| pace.answered(false)).await;
        assert_near(idle, Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn subscription_that_fails_at_once_is_followed_after_five_seconds() {
        let mut pace = Pace::new(Duration::from_secs(1));
        let pause = pause_after(&mut pace, |pace| {
            pace.subscribed();
            pace.failed();
        });
        assert_near(pause.await, RESUBSCRIBE_PAUSE);
    }

    #[tokio::test(start_paused = true)]
    async fn ten_mebibytes_earn_five_seconds() {
        let mut pace = Pace::new(Duration::from_secs(1));
        let pause = pause_after(&mut pace, |pace| {
            pace.read(10 << 20);
            pace.answered(true);
        })
        .await;
        assert_near(pause, Duration::from_secs(5));
    }

    /// Kinesis allows five calls a second, and the network may delay the first by 50 ms more than
    /// the sixth.
    #[tokio::test(start_paused = true)]
    async fn calls_at_the_shortest_interval_keep_a_margin() {
        let mut pace = Pace::new(SHORTEST_PAUSE);
        let mut calls = Vec::new();
        for behind in [false, true].repeat(30) {
            pace.turn().await;
            pace.asks();
            calls.push(Instant::now());
            pace.answered(behind);
        }
        for six in calls.windows(6) {
            assert!(six[5] - six[0] >= Duration::from_millis(1050), "{:?}", six[5] - six[0]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_are_paid_for_from_when_they_were_read() {
        let mut pace = Pace::new(Duration::from_secs(1));
        pace.turn().await;
        pace.asks();
        tokio::time::sleep(Duration::from_secs(3)).await;
        pace.read(10 << 20);
        pace.answered(true);
        let read = Instant::now();
        pace.turn().await;
        assert_near(read.elapsed(), Duration::from_secs(5));
        // An answer that was cut short counts as a whole.
        pace.asks();
        pace.read(4 << 20);
        pace.failed();
        let failed = Instant::now();
        pace.turn().await;
        assert_near(failed.elapsed(), Duration::from_secs(2));
    }

    fn assert_rate(pause: Duration, rate: f64) {
        let pause = pause.as_secs_f64() * rate;
        assert!((0.74..1.26).contains(&pause), "{pause} times the pause of {rate} calls a second");
    }

    #[tokio::test(start_paused = true)]
    async fn throttles_take_a_part_off_the_rate_and_time_adds_to_it() {
        let mut pace = Pace::new(Duration::from_secs(1));
        let mut rate = MOST_CALLS;
        for _ in 0..10 {
            rate = (rate * 0.7).max(0.4);
            assert_rate(pause_after(&mut pace, Pace::throttled).await, rate);
        }
        let began = Instant::now();
        // From 0.4 calls to five, at a quarter of a call more each second.
        while began.elapsed() < Duration::from_secs(19) {
            pace.turn().await;
            pace.asks();
            pace.answered(true);
        }
        let recovered = pause_after(&mut pace, |pace| pace.answered(true)).await;
        assert!(recovered <= Duration::from_millis(232), "{recovered:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_caller_gets_one_turn_and_not_those_it_missed() {
        let mut pace = Pace::new(Duration::from_secs(1));
        pace.turn().await;
        pace.asks();
        pace.answered(true);
        tokio::time::sleep(Duration::from_secs(60)).await;
        pace.turn().await;
        pace.asks();
        let asked = Instant::now();
        pace.answered(true);
        pace.turn().await;
        assert_near(asked.elapsed(), Duration::from_millis(210));
    }
}
