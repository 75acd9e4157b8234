//! Detects readers that lag so far behind that retention may overtake them.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::fetch_state::FetchState;
use super::kinesis::MAX_CLOCK_SKEW;
use super::retention_period::{PERIOD_WITHIN, Period, SHORTEST_RETENTION, looked_up_within};
use crate::error::ClassifiedError;

/// A reader may be overtaken if its lag is within this time of the retention period. The time is
/// twice the lifetime of an iterator.
pub(super) const NEAR_HORIZON: Duration = Duration::from_secs(10 * 60);

/// The gap between the arrival times of two fetched records above which records between them may
/// have left retention at once, because an operator lowered the period. Periods are whole hours.
const MAX_APART: Duration = Duration::from_secs(60);

/// The unit of retention periods.
const HOUR: Duration = Duration::from_secs(3600);

/// The interval of new subscriptions that check for lost records while the retention period is
/// unknown. Each costs 5 s in which nothing is read.
const CHECK_INTERVAL: Duration = Duration::from_secs(60);

impl FetchState {
    /// Returns true if retention may overtake a reader whose last response was `lag` milliseconds
    /// behind the tip. Assumes the shortest retention period, since an operator may lower that of
    /// the stream at any time.
    pub(super) fn is_near_horizon(lag: Option<i64>) -> bool {
        let lag = Duration::from_millis(lag.and_then(|lag| lag.try_into().ok()).unwrap_or(0));
        lag + NEAR_HORIZON >= SHORTEST_RETENTION
    }

    /// Returns true if records may have left retention between the last record and the next event.
    /// `reached` is the arrival time of the event's first record, or the time that its
    /// `MillisBehindLatest` denotes if it has no record.
    ///
    /// A new subscription at the last record shows whether records were lost, but costs 5 s. If the
    /// retention period is known, a reader does not pay this cost until it is near the end of the
    /// period or the arrival times jump. If the period is unknown, a reader pays it once a minute.
    pub(super) async fn may_be_overtaken(
        &mut self,
        reached: SystemTime,
    ) -> Result<bool, ClassifiedError> {
        let received = Instant::now();
        let Some((since, lag)) = self.known_until(received) else { return Ok(false) };
        let age = lag + NEAR_HORIZON;
        if age < SHORTEST_RETENTION {
            return Ok(false);
        }
        if reached > since + MAX_APART {
            return Ok(true);
        }
        let looked_up =
            if may_end_between(lag) { received } else { looked_up_within(PERIOD_WITHIN) };
        let period = self.look_up(looked_up).await?;
        Ok(if period.is_known { age >= period.length } else { self.is_check_due() })
    }

    /// Returns true if the last record may have left retention before the event just received, and
    /// with it records between the two. Returns false if the retention period is unknown.
    pub(super) async fn may_have_left(&mut self) -> Result<bool, ClassifiedError> {
        let received = Instant::now();
        let Some((_, lag)) = self.known_until(received) else { return Ok(false) };
        let age = lag + MAX_CLOCK_SKEW;
        if age < SHORTEST_RETENTION {
            return Ok(false);
        }
        let period = self.look_up(received).await?;
        Ok(period.is_known && age >= period.length)
    }

    async fn look_up(&mut self, since: Instant) -> Result<Period, ClassifiedError> {
        let period = self.kinesis.retention(since).await?;
        self.state.retention.unchecked = None;
        Ok(period)
    }

    /// Returns the time up to which every record was read or reported as lost, and the age of that
    /// time when the event was received.
    fn known_until(&self, received: Instant) -> Option<(SystemTime, Duration)> {
        let retention = &self.state.retention;
        let until = self.position.quiet_until().max(retention.last_arrival);
        let until = until.max(retention.read_until)?;
        Some((until, self.server_time_at(received).duration_since(until).unwrap_or_default()))
    }

    fn is_check_due(&mut self) -> bool {
        let now = Instant::now();
        let is_due = self.state.retention.next_check.is_none_or(|next| next <= now);
        if is_due {
            self.state.retention.next_check = Some(now + CHECK_INTERVAL);
        }
        is_due
    }
}

/// Returns true if a retention period of whole hours may end between a record of this age and one
/// that arrived at most [`MAX_APART`] later. Allows for the skew between the clocks of the hosts
/// that stamped the records.
fn may_end_between(age: Duration) -> bool {
    let since_hour = (age + MAX_CLOCK_SKEW).as_secs() % HOUR.as_secs();
    since_hour <= (MAX_APART + 2 * MAX_CLOCK_SKEW).as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retention_may_end_between_records_near_a_whole_hour() {
        let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
        for (age, expected) in [
            (minutes(30 * 60 - 6), false),
            (minutes(30 * 60 - 5), true),
            (minutes(30 * 60), true),
            (minutes(30 * 60 + 6), true),
            (minutes(30 * 60 + 7), false),
            (minutes(30 * 60 + 30), false),
        ] {
            assert_eq!(may_end_between(age), expected, "{age:?}");
        }
    }
}
