//! When a shard may be asked again.

use std::time::Duration;

use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

/// Five calls a second and shard:
/// <https://docs.aws.amazon.com/kinesis/latest/APIReference/API_GetRecords.html>.
pub(crate) const SHORTEST_PAUSE: Duration = Duration::from_millis(200);

/// Two mebibytes a second and shard, from the same page: an answer of 10 MiB makes the calls of
/// the next 5 seconds fail.
const BYTES_PER_SECOND: u64 = 2 * 1024 * 1024;

/// A throttled shard doubles its pause each time, to 6.4 s; what is left of a throttled second
/// is then a small part of it.
const MOST_THROTTLED: u32 = 5;

/// A failing server is asked ever more rarely, down to every 25.6 s.
const MOST_FAILED: u32 = 7;

/// How long a caller who was told of an error that no retry cures waits for the next attempt.
const REPORTED_PAUSE: Duration = Duration::from_secs(30);

/// Set when the crate's own benchmark builds it: a shard that is behind is read without a pause, so
/// that what is measured is not waiting. No option of anybody else's, who would be throttled.
const UNPACED: bool = option_env!("KINESTREAM_UNPACED").is_some();

/// The pace of one shard's calls: never more than five in a second, nor more bytes than are
/// granted; slower when there is nothing to read, when throttled and when calls fail.
///
/// Every pause counts from the moment of the last call, so a slow answer costs nothing.
#[derive(Debug)]
pub(crate) struct Pace {
    ticks: Interval,
    /// The pause while the shard has nothing new.
    idle: Duration,
    asked: Instant,
    /// How often the pause is doubled: up with each throttle, down with each answer.
    throttled: u32,
    /// Failures in a row.
    failed: u32,
}

impl Pace {
    /// Many shards start together, so each begins at a moment of its own.
    pub(crate) fn new(idle: Duration) -> Self {
        let start = Instant::now() + SHORTEST_PAUSE.mul_f64(fastrand::f64());
        let mut ticks = interval_at(start, SHORTEST_PAUSE);
        // A late tick must not be made up for: two calls would fall together.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { ticks, idle, asked: start, throttled: 0, failed: 0 }
    }

    /// Waits until the shard may be asked.
    ///
    /// Cancel safe: a turn that was not taken is there for the next call.
    pub(crate) async fn turn(&mut self) {
        self.ticks.tick().await;
    }

    /// A call goes out now.
    pub(crate) fn asks(&mut self) {
        self.asked = Instant::now();
    }

    /// An answer of so many bytes came; `behind` says that there is more to read.
    pub(crate) fn answered(&mut self, bytes: usize, behind: bool) {
        self.failed = 0;
        self.throttled = self.throttled.saturating_sub(1);
        let earned = Duration::from_millis((bytes as u64 * 1000).div_ceil(BYTES_PER_SECOND));
        if UNPACED && behind {
            return self.pause(Duration::ZERO);
        }
        let wanted = if behind { SHORTEST_PAUSE } else { self.idle };
        self.pause(earned.max(wanted).max(self.throttle()));
    }

    /// Kinesis asked for fewer calls.
    pub(crate) fn throttled(&mut self) {
        self.throttled = (self.throttled + 1).min(MOST_THROTTLED);
        self.pause(self.throttle());
    }

    /// The call failed, and may succeed later.
    pub(crate) fn failed(&mut self) {
        self.failed = (self.failed + 1).min(MOST_FAILED);
        self.pause(jitter(SHORTEST_PAUSE * 2_u32.pow(self.failed)));
    }

    /// The call failed, and only the caller can do something about it.
    pub(crate) fn reported(&mut self) {
        self.pause(jitter(REPORTED_PAUSE));
    }

    /// Half of a throttled pause is random, or two readers of a shard would go on colliding.
    fn throttle(&self) -> Duration {
        match self.throttled {
            0 => SHORTEST_PAUSE,
            times => jitter(SHORTEST_PAUSE * 2_u32.pow(times)),
        }
    }

    fn pause(&mut self, pause: Duration) {
        self.ticks.reset_at((self.asked + pause).max(Instant::now()));
    }
}

/// Between half of the pause and all of it.
pub(crate) fn jitter(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + fastrand::f64() / 2.0)
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
        assert!(pause >= expected && pause <= expected + Duration::from_millis(2), "{pause:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn behind_is_five_a_second_and_caught_up_the_interval() {
        let mut pace = Pace::new(Duration::from_secs(1));
        let behind = pause_after(&mut pace, |pace| pace.answered(10, true)).await;
        assert_near(behind, Duration::from_millis(200));
        let idle = pause_after(&mut pace, |pace| pace.answered(0, false)).await;
        assert_near(idle, Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn ten_mebibytes_earn_five_seconds() {
        let mut pace = Pace::new(Duration::from_secs(1));
        let pause = pause_after(&mut pace, |pace| pace.answered(10 << 20, true)).await;
        assert_near(pause, Duration::from_secs(5));
    }

    #[tokio::test(start_paused = true)]
    async fn throttles_add_up_and_answers_take_them_back_one_by_one() {
        let mut pace = Pace::new(Duration::from_secs(1));
        for level in [2, 4, 8, 16, 32, 32] {
            let pause = pause_after(&mut pace, Pace::throttled).await;
            let most = SHORTEST_PAUSE * level;
            assert!(pause >= most / 2 && pause <= most + Duration::from_millis(2), "{pause:?}");
        }
        for level in [16, 8, 4, 2] {
            let pause = pause_after(&mut pace, |pace| pace.answered(1, true)).await;
            let most = SHORTEST_PAUSE * level;
            assert!(pause >= most / 2 && pause <= most + Duration::from_millis(2), "{pause:?}");
        }
        let recovered = pause_after(&mut pace, |pace| pace.answered(1, true)).await;
        assert_near(recovered, Duration::from_millis(200));
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_caller_gets_one_turn_and_not_those_it_missed() {
        let mut pace = Pace::new(Duration::from_secs(1));
        pace.turn().await;
        pace.asks();
        pace.answered(1, true);
        tokio::time::sleep(Duration::from_secs(60)).await;
        pace.turn().await;
        pace.asks();
        let asked = Instant::now();
        pace.answered(1, true);
        pace.turn().await;
        assert_near(asked.elapsed(), Duration::from_millis(200));
    }
}
