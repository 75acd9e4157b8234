//! Looks up a stream's retention period, once for the readers of all its shards.

use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until};

use crate::cooldown::Cooldown;
use crate::error::{ClassifiedError, RetryAction};
use crate::telemetry::log_line;

/// The shortest retention period that a stream can have:
/// <https://docs.aws.amazon.com/streams/latest/dev/kinesis-extended-retention.html>.
pub(super) const SHORTEST_RETENTION: Duration = Duration::from_secs(24 * 3600);

/// The maximum age of the retention period that shows whether a reader is near its end. Also the
/// time for which the shortest period is assumed after Kinesis refused the lookup.
pub(super) const PERIOD_WITHIN: Duration = Duration::from_secs(60);

/// The retention period of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Period {
    pub(super) length: Duration,
    /// True if Kinesis returned the period; otherwise it is the shortest period that a stream can
    /// have.
    pub(super) is_known: bool,
}

/// The minimum time between the starts of two lookups, each of which serves the readers of all
/// shards.
const LOOKUP_INTERVAL: Duration = Duration::from_secs(1);

/// Returns the instant `within` ago: a lookup that began after it is recent enough.
pub(super) fn looked_up_within(within: Duration) -> Instant {
    let now = Instant::now();
    now.checked_sub(within).unwrap_or(now)
}

/// The last retention period of a stream.
#[derive(Debug, Default)]
pub(super) struct RetentionPeriod(Mutex<KnownPeriod>);

#[derive(Debug, Default)]
struct KnownPeriod {
    /// The last period, and when its lookup began.
    period: Option<(Period, Instant)>,
    cooldown: Cooldown,
    /// The refusal of the lookup was logged.
    is_logged: bool,
}

impl RetentionPeriod {
    /// Returns the retention period. Calls `describe` if the last lookup did not begin after
    /// `since`, since an operator may change the period.
    ///
    /// `DescribeStreamSummary` allows 20 calls per second and account
    /// (<https://docs.aws.amazon.com/kinesis/latest/APIReference/API_DescribeStreamSummary.html>).
    /// If Kinesis refuses the call, the shortest period that a stream can have is assumed for a
    /// minute.
    ///
    /// The readers of all shards wait for one lookup and share its failure, so no reader waits
    /// longer than the timeout of one call.
    ///
    /// Cancel safe: the next reader repeats a dropped call.
    pub(super) async fn get(
        &self,
        since: Instant,
        describe: impl AsyncFnOnce() -> Result<Duration, ClassifiedError>,
    ) -> Result<Period, ClassifiedError> {
        let mut known = self.0.lock().await;
        if let Some((period, begun)) = known.period {
            let is_assumed = !period.is_known && begun.elapsed() < PERIOD_WITHIN;
            if begun > since || is_assumed {
                return Ok(period);
            }
            sleep_until(begun + LOOKUP_INTERVAL).await;
        }
        known.cooldown.begin("DescribeStreamSummary failed")?;
        let begun = Instant::now();
        let period = match describe().await {
            Ok(length) => Period { length: length.max(SHORTEST_RETENTION), is_known: true },
            Err(failure)
                if matches!(
                    failure.action,
                    RetryAction::Retry | RetryAction::RetryThenReport | RetryAction::SlowDown
                ) =>
            {
                return Err(known.cooldown.failed(failure));
            }
            Err(refused) => {
                known.log_refusal(&refused);
                Period { length: SHORTEST_RETENTION, is_known: false }
            }
        };
        known.is_logged &= !period.is_known;
        known.cooldown.succeeded();
        known.period = Some((period, begun));
        Ok(period)
    }
}

impl KnownPeriod {
    fn log_refusal(&mut self, refused: &ClassifiedError) {
        if !std::mem::replace(&mut self.is_logged, true) {
            log_line!(warn, error = %refused.error, "retention period lookup refused: records that \
                leave retention while a reader lags by a day or more may be lost without a report; \
                grant kinesis:DescribeStreamSummary");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, ErrorKind};

    const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);

    fn failure(action: RetryAction) -> ClassifiedError {
        ClassifiedError { action, error: Error::new(ErrorKind::Denied, "no"), answered: None }
    }

    #[tokio::test(start_paused = true)]
    async fn period_is_looked_up_again_after_its_maximum_age() {
        let known = RetentionPeriod::default();
        assert_eq!(
            known.get(looked_up_within(PERIOD_WITHIN), async || Ok(WEEK)).await.unwrap().length,
            WEEK
        );
        assert_eq!(
            known
                .get(looked_up_within(PERIOD_WITHIN), async || panic!("the known period is reused"))
                .await
                .unwrap()
                .length,
            WEEK
        );
        tokio::time::advance(PERIOD_WITHIN).await;
        assert_eq!(
            known.get(looked_up_within(PERIOD_WITHIN), async || Ok(2 * WEEK)).await.unwrap().length,
            2 * WEEK
        );
    }

    #[tokio::test(start_paused = true)]
    async fn denied_lookup_assumes_the_shortest_period() {
        let known = RetentionPeriod::default();
        let denied = known
            .get(looked_up_within(PERIOD_WITHIN), async || Err(failure(RetryAction::Report)))
            .await;
        assert_eq!(denied.unwrap().length, SHORTEST_RETENTION);
        let again = known
            .get(looked_up_within(PERIOD_WITHIN), async || {
                panic!("a refused call is not retried at once")
            })
            .await;
        assert!(!again.unwrap().is_known);
    }

    #[tokio::test(start_paused = true)]
    async fn failed_lookup_backs_off_and_assumes_nothing() {
        let known = RetentionPeriod::default();
        assert!(
            known
                .get(looked_up_within(PERIOD_WITHIN), async || Err(failure(RetryAction::Retry)))
                .await
                .is_err()
        );
        assert!(
            known
                .get(looked_up_within(PERIOD_WITHIN), async || panic!(
                    "a failed call is not retried during the back-off"
                ))
                .await
                .is_err()
        );
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(
            known.get(looked_up_within(PERIOD_WITHIN), async || Ok(WEEK)).await.unwrap().length,
            WEEK
        );
    }

    #[tokio::test(start_paused = true)]
    async fn concurrent_readers_share_one_lookup_per_second() {
        let known = RetentionPeriod::default();
        known.get(Instant::now(), async || Ok(WEEK)).await.unwrap();
        let began = Instant::now();
        assert_eq!(known.get(began, async || Ok(2 * WEEK)).await.unwrap().length, 2 * WEEK);
        assert_eq!(began.elapsed(), LOOKUP_INTERVAL);
        let shared = known.get(began, async || panic!("the newer lookup is reused")).await;
        assert_eq!(shared.unwrap().length, 2 * WEEK);
    }
}
