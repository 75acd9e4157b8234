//! How long a stream keeps its records, looked up once for the readers of all its shards.

use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until};

use crate::cooldown::Cooldown;
use crate::error::{ClassifiedError, RetryAction};
use crate::telemetry::log_line;

/// Records are kept for so long at least:
/// <https://docs.aws.amazon.com/streams/latest/dev/kinesis-extended-retention.html>.
pub(super) const SHORTEST_RETENTION: Duration = Duration::from_secs(24 * 3600);

/// How old the retention period may be that shows whether a reader is near its end, and how long the shortest one
/// is assumed after a refusal.
pub(super) const PERIOD_WITHIN: Duration = Duration::from_secs(60);

/// How long a stream keeps its records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Period {
    pub(super) length: Duration,
    /// Kinesis has said so; otherwise it is the shortest period that a stream can have.
    pub(super) is_known: bool,
}

/// The pause between two lookups, which answer the readers of all shards.
const LOOK_UP_EACH: Duration = Duration::from_secs(1);

/// The earliest moment at which a lookup may have begun that is no older than `within`.
pub(super) fn looked_up_within(within: Duration) -> Instant {
    let now = Instant::now();
    now.checked_sub(within).unwrap_or(now)
}

/// The last retention period of a stream.
#[derive(Debug, Default)]
pub(super) struct RetentionPeriod(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// The last period, and when its lookup began.
    period: Option<(Period, Instant)>,
    cooldown: Cooldown,
    /// The log says that the lookup is refused.
    is_logged: bool,
}

impl RetentionPeriod {
    /// The retention period, by `describe` where the last lookup did not begin after `since`: an operator
    /// may change it, and `DescribeStreamSummary` allows 20 calls per second and account
    /// (<https://docs.aws.amazon.com/kinesis/latest/APIReference/API_DescribeStreamSummary.html>). Where
    /// Kinesis refuses the call, the shortest period that a stream can have is assumed for a minute.
    ///
    /// The readers of all shards wait for one lookup, and share its failure: none waits for longer than the
    /// timeout of one call.
    ///
    /// Cancel safe: a dropped call is repeated by the next reader.
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
            sleep_until(begun + LOOK_UP_EACH).await;
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

impl Known {
    fn log_refusal(&mut self, refused: &ClassifiedError) {
        if !std::mem::replace(&mut self.is_logged, true) {
            log_line!(warn, error = %refused.error, "the retention period is unknown: records that leave \
                retention while a reader lags by a day or more may be lost without a report; grant \
                kinesis:DescribeStreamSummary");
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
    async fn retention_period_is_looked_up_once_in_a_while() {
        let known = RetentionPeriod::default();
        assert_eq!(
            known.get(looked_up_within(PERIOD_WITHIN), async || Ok(WEEK)).await.unwrap().length,
            WEEK
        );
        assert_eq!(
            known
                .get(looked_up_within(PERIOD_WITHIN), async || panic!("it is known"))
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
                panic!("a refused call is not repeated at once")
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
                .get(looked_up_within(PERIOD_WITHIN), async || panic!("it backs off"))
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
    async fn readers_of_one_moment_share_a_lookup_a_second_after_the_last_one() {
        let known = RetentionPeriod::default();
        known.get(Instant::now(), async || Ok(WEEK)).await.unwrap();
        let began = Instant::now();
        assert_eq!(known.get(began, async || Ok(2 * WEEK)).await.unwrap().length, 2 * WEEK);
        assert_eq!(began.elapsed(), LOOK_UP_EACH);
        let shared = known.get(began, async || panic!("it was looked up since")).await;
        assert_eq!(shared.unwrap().length, 2 * WEEK);
    }
}
