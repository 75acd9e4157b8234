//! Decides how to handle a failed listing: retry, report an error to the caller, or end.

use std::time::Duration;

use tokio::time::Instant;

use crate::error::{ClassifiedError, ErrorKind, RetryAction};

/// The time for which the first listing may fail before the caller gets an error: a wrong endpoint
/// or region looks the same as a brief outage.
const FIRST_RESPONSE: Duration = Duration::from_secs(5);

/// The time for which unusable responses may last before the caller gets an error.
const LASTING: Duration = Duration::from_secs(60);

/// The time for which a stream must be missing, and the number of responses that must show it,
/// before it counts as nonexistent: at the first start of an application, when the name may be a
/// mistake, and later.
const NEVER_FOUND: (Duration, u32) = (Duration::from_secs(2), 3);
const NOT_FOUND: (Duration, u32) = (Duration::from_secs(30), 3);

/// The failures of one listing since its last success.
#[derive(Debug)]
pub(super) struct FailurePatience {
    /// True if this worker has not begun to read.
    begins: bool,
    /// True if the application knows no shard of the stream.
    is_new: bool,
    began: Instant,
    reported: Option<ErrorKind>,
    /// The start and the number of consecutive responses that the stream does not exist.
    missing: Option<(Instant, u32)>,
    /// The time since which Kinesis responds and no response is usable.
    useless: Option<Instant>,
}

/// The way to handle a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FailureVerdict {
    /// Retry.
    Retry,
    /// Report the error to the caller, and retry.
    Report,
    /// The stream does not exist: report the error, and end.
    Gone,
}

impl FailurePatience {
    pub(super) fn new(begins: bool, is_new: bool, now: Instant) -> Self {
        Self { begins, is_new, began: now, reported: None, missing: None, useless: None }
    }

    pub(super) fn judge(&mut self, failure: &ClassifiedError, now: Instant) -> FailureVerdict {
        if failure.action == RetryAction::Gone {
            let (since, times) = self.missing.unwrap_or((now, 0));
            self.missing = Some((since, times + 1));
            let (time, least) = if self.is_new { NEVER_FOUND } else { NOT_FOUND };
            let is_gone = now.duration_since(since) >= time && times + 1 >= least;
            return if is_gone { FailureVerdict::Gone } else { FailureVerdict::Retry };
        }
        self.missing = None;
        let is_useless =
            matches!(failure.action, RetryAction::RestartListing | RetryAction::RetryThenReport);
        if is_useless {
            self.useless.get_or_insert(now);
        } else if failure.action == RetryAction::Retry {
            self.useless = None;
        }
        let lasting = self.useless.map_or(Duration::ZERO, |since| now.duration_since(since));
        let kind = failure.error.kind();
        let failing = now.duration_since(self.began);
        let is_due = match failure.action {
            RetryAction::Report => self.reported != Some(kind),
            RetryAction::RetryThenReport if self.begins => {
                self.reported.is_none() && failing >= FIRST_RESPONSE
            }
            RetryAction::RestartListing | RetryAction::RetryThenReport => {
                self.reported.is_none() && lasting >= LASTING
            }
            RetryAction::Retry => {
                self.reported.is_none() && self.begins && failing >= FIRST_RESPONSE
            }
            _ => false,
        };
        if !is_due {
            return FailureVerdict::Retry;
        }
        self.reported = Some(kind);
        FailureVerdict::Report
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    fn failure(action: RetryAction) -> ClassifiedError {
        ClassifiedError { action, error: Error::new(ErrorKind::Unavailable, "no"), answered: None }
    }

    /// Returns the verdicts for a failure that repeats each second.
    fn judged(
        mut patience: FailurePatience,
        action: RetryAction,
        seconds: u64,
    ) -> Vec<FailureVerdict> {
        let began = patience.began;
        let judge = |second| patience.judge(&failure(action), began + Duration::from_secs(second));
        (0..seconds).map(judge).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn missing_stream_is_gone_after_2_s_if_new_and_after_30_s_if_known() {
        let first = |is_new| {
            let patience = FailurePatience::new(true, is_new, Instant::now());
            let judged = judged(patience, RetryAction::Gone, 60);
            judged.iter().position(|verdict| *verdict == FailureVerdict::Gone)
        };
        assert_eq!((first(true), first(false)), (Some(2), Some(30)));
    }

    #[tokio::test(start_paused = true)]
    async fn missing_stream_is_not_gone_while_other_failures_alternate() {
        let now = Instant::now();
        let mut patience = FailurePatience::new(true, true, now);
        for second in 0..100 {
            let action = if second % 2 == 0 { RetryAction::Gone } else { RetryAction::SlowDown };
            let verdict = patience.judge(&failure(action), now + Duration::from_secs(second));
            assert_eq!(verdict, FailureVerdict::Retry, "after {second} s");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn unusable_responses_count_from_the_last_outage() {
        let now = Instant::now();
        let mut patience = FailurePatience::new(false, false, now);
        let mut judge = |action, second| {
            patience.judge(&failure(action), now + Duration::from_secs(second))
                == FailureVerdict::Report
        };
        for (action, second, is_reported) in [
            (RetryAction::Retry, 0, false),
            (RetryAction::RetryThenReport, 70, false),
            (RetryAction::Retry, 71, false),
            (RetryAction::RestartListing, 80, false),
            (RetryAction::SlowDown, 100, false),
            (RetryAction::RetryThenReport, 139, false),
            (RetryAction::RestartListing, 140, true),
        ] {
            assert_eq!(judge(action, second), is_reported, "{action:?} after {second} s");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn lasting_failure_is_reported_once() {
        for (action, begins, expected) in [
            (RetryAction::Retry, true, Some(5)),
            (RetryAction::Retry, false, None),
            (RetryAction::RestartListing, false, Some(60)),
            (RetryAction::RetryThenReport, true, Some(5)),
            (RetryAction::RetryThenReport, false, Some(60)),
            (RetryAction::Report, false, Some(0)),
            (RetryAction::SlowDown, true, None),
        ] {
            let judged = judged(FailurePatience::new(begins, false, Instant::now()), action, 200);
            let reported: Vec<usize> = judged
                .iter()
                .enumerate()
                .filter(|(_, verdict)| **verdict == FailureVerdict::Report)
                .map(|(second, _)| second)
                .collect();
            assert_eq!(reported, Vec::from_iter(expected), "{action:?}");
        }
    }
}
