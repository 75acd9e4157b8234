//! Shares one call and its failures among the readers of all shards.

use tokio::time::Instant;

use crate::backoff::{Backoff, SHARED_CALLS};
use crate::error::{ClassifiedError, Error, ErrorKind, RetryAction, SharedFailures};

/// Keeps tasks that share one call from retrying it one after the other: after a failure, the
/// attempts of all tasks are refused until the back-off is over.
///
/// A refusal repeats a failure that a retry may never fix. Most readers never make the call
/// themselves, and the repeated failure makes them release their leases as well.
#[derive(Debug)]
pub(crate) struct Cooldown {
    backoff: Backoff,
    until: Option<Instant>,
    last: Option<LastFailure>,
    failures: SharedFailures,
    /// The number of consecutive calls that panicked.
    panics: u32,
}

/// The last failure, which a refusal repeats.
#[derive(Debug)]
struct LastFailure {
    action: RetryAction,
    kind: ErrorKind,
    message: String,
}

impl Default for Cooldown {
    fn default() -> Self {
        let backoff = Backoff::new(SHARED_CALLS);
        Self { backoff, until: None, last: None, failures: SharedFailures::default(), panics: 0 }
    }
}

impl Cooldown {
    /// Starts an attempt. It counts as failed until [`succeeded`](Self::succeeded) is called, since
    /// it may be dropped.
    ///
    /// # Errors
    ///
    /// Fails during the back-off. Repeats the last failure if a retry may never fix it. Otherwise
    /// the message is that of the last failure, or `what` if its outcome is unknown, and the time
    /// limits of the reader keep running.
    pub(crate) fn begin(&mut self, what: &str) -> Result<(), ClassifiedError> {
        let now = Instant::now();
        if self.until.is_some_and(|until| now < until) {
            return Err(self.refusal(what));
        }
        // The outcome of a dropped call is unknown.
        self.last = None;
        self.back_off();
        Ok(())
    }

    /// Counts a failed attempt. The back-off begins now. Returns the failure for the reader that
    /// made the call. The caller receives one error of each kind, from the first shard that yields
    /// it.
    pub(crate) fn failed(&mut self, mut failure: ClassifiedError) -> ClassifiedError {
        self.back_off();
        failure.action = failure.action_after(&mut self.panics);
        failure.error = failure.error.shared(Some(self.failures.clone()));
        let (action, error) = (failure.action, &failure.error);
        self.last = Some(LastFailure { action, kind: error.kind(), message: error.to_string() });
        failure
    }

    /// Ends the back-off.
    pub(crate) fn succeeded(&mut self) {
        *self = Self::default();
    }

    fn back_off(&mut self) {
        self.until = Some(Instant::now() + self.backoff.failed());
    }

    /// Returns the failure for a reader that is refused.
    fn refusal(&self, what: &str) -> ClassifiedError {
        let (action, kind, message) = match &self.last {
            Some(last) if last.action.lasts() => (last.action, last.kind, last.message.clone()),
            last => {
                let message = last.as_ref().map_or(what, |last| &last.message);
                let message = format!("{message}; backing off");
                (RetryAction::CoolDown, ErrorKind::Unavailable, message)
            }
        };
        let error = Error::new(kind, message).shared(Some(self.failures.clone()));
        ClassifiedError { action, error, answered: None }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::error::{Panic, TOLERATED_PANICS};

    fn failure(action: RetryAction) -> ClassifiedError {
        ClassifiedError {
            action,
            error: Error::new(ErrorKind::Denied, "no permission"),
            answered: None,
        }
    }

    async fn fail(cooldown: &mut Cooldown, failure: ClassifiedError) -> RetryAction {
        tokio::time::advance(Duration::from_secs(5)).await;
        cooldown.begin("the call failed").unwrap();
        cooldown.failed(failure).action
    }

    #[tokio::test(start_paused = true)]
    async fn attempt_is_refused_until_the_backoff_is_over() {
        let mut cooldown = Cooldown::default();
        cooldown.begin("the call failed").unwrap();
        let refused = cooldown.begin("the call failed").unwrap_err();
        assert_eq!(refused.action, RetryAction::CoolDown);
        assert_eq!(refused.error.to_string(), "the call failed; backing off");
        tokio::time::advance(Duration::from_secs(5)).await;
        cooldown.begin("the call failed").unwrap();
        cooldown.succeeded();
        cooldown.begin("the call failed").unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn refusal_repeats_failures_that_a_retry_may_never_fix() {
        for (action, expected) in [
            (RetryAction::Report, RetryAction::Report),
            (RetryAction::RetryThenReport, RetryAction::RetryThenReport),
            (RetryAction::RestartListing, RetryAction::RestartListing),
            (RetryAction::Gone, RetryAction::Gone),
            (RetryAction::Retry, RetryAction::CoolDown),
            (RetryAction::SlowDown, RetryAction::CoolDown),
        ] {
            let mut cooldown = Cooldown::default();
            assert_eq!(fail(&mut cooldown, failure(action)).await, action);
            let refused = cooldown.begin("the call failed").unwrap_err();
            assert_eq!(refused.action, expected);
            let expected = match expected {
                RetryAction::CoolDown => "no permission; backing off",
                _ => "no permission",
            };
            assert_eq!(refused.error.to_string(), expected, "{action:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn caller_receives_each_kind_of_error_once_until_a_success() {
        let mut cooldown = Cooldown::default();
        let mut claims = async |kind| {
            let error = Error::new(kind, "no");
            let failure =
                ClassifiedError { action: RetryAction::RetryThenReport, error, answered: None };
            tokio::time::advance(Duration::from_secs(5)).await;
            cooldown.begin("the call failed").unwrap();
            let made = cooldown.failed(failure).error;
            let repeated = cooldown.begin("the call failed").unwrap_err().error;
            // The shard of the reader that made the call may be dropped before it is polled.
            let claims = [repeated.claim(1), made.claim(1)];
            if kind == ErrorKind::Rejected {
                cooldown.succeeded();
            }
            claims
        };
        assert_eq!(claims(ErrorKind::Denied).await, [true, false]);
        assert_eq!(claims(ErrorKind::Unavailable).await, [true, false]);
        assert_eq!(claims(ErrorKind::Denied).await, [false, false]);
        assert_eq!(claims(ErrorKind::Rejected).await, [true, false]);
        assert_eq!(claims(ErrorKind::Denied).await, [true, false]);
    }

    #[tokio::test(start_paused = true)]
    async fn repeated_panics_of_any_reader_are_reported() {
        let mut cooldown = Cooldown::default();
        let panicked = || ClassifiedError::panicked("ListShards", Panic::new(Box::new("lost")));
        for _ in 0..TOLERATED_PANICS {
            assert_eq!(fail(&mut cooldown, panicked()).await, RetryAction::Retry);
        }
        assert_eq!(fail(&mut cooldown, panicked()).await, RetryAction::Report);
        assert_eq!(cooldown.begin("the call failed").unwrap_err().action, RetryAction::Report);
    }

    #[tokio::test(start_paused = true)]
    async fn dropped_attempt_clears_the_previous_failure() {
        let mut cooldown = Cooldown::default();
        assert_eq!(fail(&mut cooldown, failure(RetryAction::Report)).await, RetryAction::Report);
        tokio::time::advance(Duration::from_secs(5)).await;
        cooldown.begin("the call failed").unwrap();
        assert_eq!(cooldown.begin("the call failed").unwrap_err().action, RetryAction::CoolDown);
    }
}
