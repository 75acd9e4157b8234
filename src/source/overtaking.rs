//! Readers that lag by so much that retention may overtake them.

use std::time::Duration;

use aws_sdk_kinesis::types;
use tokio::time::Instant;

use super::progress::Progress;
use super::retention::arrival;
use super::retention_period::{PERIOD_WITHIN, SHORTEST_RETENTION};

/// A reader may be overtaken if its lag is within this time of the retention period: twice the life of an
/// iterator.
pub(super) const NEAR_HORIZON: Duration = Duration::from_secs(10 * 60);

/// How much later than the last record the next one arrived where records between them may have left
/// retention at once, since an operator has lowered the period. Periods are whole hours.
const MAX_APART: Duration = Duration::from_secs(60);

impl Progress {
    /// Whether retention may overtake a reader whose last answer was `lag` milliseconds behind the tip: by
    /// the shortest retention period, since an operator may lower that of the stream at any time.
    pub(super) fn is_near_horizon(lag: Option<i64>) -> bool {
        let lag = Duration::from_millis(lag.and_then(|lag| lag.try_into().ok()).unwrap_or(0));
        lag + NEAR_HORIZON >= SHORTEST_RETENTION
    }

    /// Whether records may have left retention between the last record and `first`, the one that was pushed
    /// behind it.
    ///
    /// A new subscription at the last record shows whether they have, but costs five seconds. Where the
    /// retention period is known, a reader does not pay them before it is near the end of the period or the
    /// arrival times leap.
    pub(super) async fn may_be_overtaken(&mut self, first: &types::Record) -> bool {
        let Some(since) = self.position.quiet_until().max(self.state.retention.last_arrival) else {
            return false;
        };
        let now = self.server_time_at(Instant::now());
        let age = now.duration_since(since).unwrap_or_default() + NEAR_HORIZON;
        if age < SHORTEST_RETENTION {
            return false;
        }
        if arrival(first).is_none_or(|arrived| arrived > since + MAX_APART) {
            self.state.retention.may_be_lowered = true;
            return true;
        }
        match self.kinesis.retention(PERIOD_WITHIN).await {
            Ok(period) => !period.is_known || age >= period.length,
            Err(_) => true,
        }
    }
}
