//! How long a stream keeps its records, looked up once for the readers of all its shards.

use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::backoff::Cooldown;
use crate::error::{Failure, Remedy};

/// Records are kept for so long at least:
/// <https://docs.aws.amazon.com/streams/latest/dev/kinesis-extended-retention.html>.
pub(super) const SHORTEST_RETENTION: Duration = Duration::from_secs(24 * 3600);

/// How old the retention period may be that is compared with a position, and one that may have been lowered
/// since.
pub(super) const PERIOD_WITHIN: Duration = Duration::from_secs(60);
pub(super) const LOWERED_WITHIN: Duration = Duration::from_secs(5);

/// How long a stream keeps its records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Period {
    pub(super) length: Duration,
    /// Kinesis has said so; otherwise it is the shortest period that a stream can have.
    pub(super) is_known: bool,
}

/// The last retention period of a stream.
#[derive(Debug, Default)]
pub(super) struct RetentionPeriod(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    period: Option<(Period, Instant)>,
    cooldown: Cooldown,
}

impl RetentionPeriod {
    /// The retention period, by `describe` where the last answer is older than `within`: an operator may
    /// change it, and `DescribeStreamSummary` allows 20 calls per second and account
    /// (<https://docs.aws.amazon.com/kinesis/latest/APIReference/API_DescribeStreamSummary.html>). Where
    /// Kinesis refuses the call, the shortest period that a stream can have is assumed.
    ///
    /// Cancel safe: a dropped call is repeated by the next reader.
    pub(super) async fn get(
        &self,
        within: Duration,
        describe: impl AsyncFnOnce() -> Result<Duration, Failure>,
    ) -> Result<Period, Failure> {
        let mut known = self.0.lock().await;
        if let Some((period, _)) = known.period.filter(|(_, since)| since.elapsed() < within) {
            return Ok(period);
        }
        known.cooldown.begin("DescribeStreamSummary failed")?;
        let period = match describe().await {
            Ok(length) => Period { length: length.max(SHORTEST_RETENTION), is_known: true },
            Err(failure)
                if matches!(
                    failure.remedy,
                    Remedy::Retry | Remedy::RetryThenReport | Remedy::SlowDown
                ) =>
            {
                known.cooldown.failed();
                return Err(failure);
            }
            Err(_refused) => Period { length: SHORTEST_RETENTION, is_known: false },
        };
        known.cooldown.succeeded();
        known.period = Some((period, Instant::now()));
        Ok(period)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, ErrorKind};

    const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);

    fn failure(remedy: Remedy) -> Failure {
        Failure { remedy, error: Error::new(ErrorKind::Denied, "no"), answered: None }
    }

    #[tokio::test(start_paused = true)]
    async fn retention_period_is_looked_up_once_in_a_while() {
        let known = RetentionPeriod::default();
        assert_eq!(known.get(PERIOD_WITHIN, async || Ok(WEEK)).await.unwrap().length, WEEK);
        assert_eq!(
            known.get(PERIOD_WITHIN, async || panic!("it is known")).await.unwrap().length,
            WEEK
        );
        tokio::time::advance(PERIOD_WITHIN).await;
        assert_eq!(known.get(PERIOD_WITHIN, async || Ok(2 * WEEK)).await.unwrap().length, 2 * WEEK);
    }

    #[tokio::test(start_paused = true)]
    async fn denied_lookup_assumes_the_shortest_period() {
        let known = RetentionPeriod::default();
        let denied = known.get(PERIOD_WITHIN, async || Err(failure(Remedy::Report))).await;
        assert_eq!(denied.unwrap().length, SHORTEST_RETENTION);
        let again = known
            .get(PERIOD_WITHIN, async || panic!("a refused call is not repeated at once"))
            .await;
        assert!(!again.unwrap().is_known);
    }

    #[tokio::test(start_paused = true)]
    async fn failed_lookup_backs_off_and_assumes_nothing() {
        let known = RetentionPeriod::default();
        assert!(known.get(PERIOD_WITHIN, async || Err(failure(Remedy::Retry))).await.is_err());
        assert!(known.get(PERIOD_WITHIN, async || panic!("it backs off")).await.is_err());
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(known.get(PERIOD_WITHIN, async || Ok(WEEK)).await.unwrap().length, WEEK);
    }
}
