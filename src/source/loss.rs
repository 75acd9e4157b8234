//! Handles positions that have left retention, or may have.

use std::time::SystemTime;

use tokio::time::Instant;

use super::failure_streak::{FailureStreak, GIVEN_UP_AFTER};
use super::fetch_state::{FetchState, StreamError};
use super::oldest_record::Probe;
use super::retention::Start;
use super::{OnTrimmed, Position};
use crate::checkpoint::Checkpoint;
use crate::error::{ClassifiedError, Error, ErrorKind, RetryAction};
use crate::record::SequenceNumber;
use crate::telemetry::Event;

/// Calls that the judgement of a loss needs, and that have failed.
pub(super) struct Unjudged {
    streak: FailureStreak,
    error: Error,
}

impl FetchState {
    /// Backs off after a call that the judgement of a loss needs has failed. Ends the source where such calls
    /// have failed for [`GIVEN_UP_AFTER`].
    pub(super) fn recover_judgement(
        &mut self,
        failure: ClassifiedError,
    ) -> Result<(), StreamError> {
        let before = self.state.retention.unjudged.take();
        self.state.retention.unjudged = Some(self.recover_lookup(before, failure)?);
        Ok(())
    }

    /// Returns true if retention may have overtaken the reader. A lookup that failed does not rule it out, and is
    /// handled as in [`recover_judgement`](Self::recover_judgement).
    pub(super) fn checked(
        &mut self,
        checked: Result<bool, ClassifiedError>,
    ) -> Result<bool, StreamError> {
        let failure = match checked {
            Ok(is_overtaken) => return Ok(is_overtaken),
            Err(failure) => failure,
        };
        let before = self.state.retention.unchecked.take();
        self.state.retention.unchecked = Some(self.recover_lookup(before, failure)?);
        Ok(true)
    }

    fn recover_lookup(
        &mut self,
        before: Option<Unjudged>,
        failure: ClassifiedError,
    ) -> Result<Unjudged, StreamError> {
        match failure.action {
            RetryAction::SlowDown => self.pace.throttled(),
            _ => self.pace.failed(),
        }
        let retry = Event::retried(
            Some(self.shard_id().clone()),
            &failure.error,
            self.state.failed.saturating_add(1),
        );
        let mut unjudged = match before {
            // Another reader has made the call, and has its error.
            Some(before) if failure.action == RetryAction::CoolDown => before,
            Some(before) => Unjudged { error: failure.error, ..before },
            None => Unjudged { streak: FailureStreak::default(), error: failure.error },
        };
        if unjudged.streak.lasts() {
            return Err(StreamError::at_last(self.unjudged(unjudged.error)));
        }
        self.state.failed += 1;
        self.telemetry.emit(retry);
        Ok(unjudged)
    }

    fn unjudged(&self, cause: Error) -> Error {
        let message = format!(
            "whether records behind the position have left retention is unknown: calls that show it have \
             failed for {} s (see the source); if they are denied, allow kinesis:ListShards and \
             kinesis:DescribeStreamSummary, or set another position by set_position",
            GIVEN_UP_AFTER.as_secs()
        );
        let kind = match cause.kind() {
            ErrorKind::Denied => ErrorKind::Denied,
            _ => ErrorKind::Unavailable,
        };
        let shared = cause.shared_failures().cloned();
        self.error(kind, &message).shared(shared).with_source(cause)
    }

    /// Handles a sequence number that Kinesis refuses. A single refusal proves nothing: the oldest kept
    /// record shows whether the position has left retention.
    pub(super) fn trimmed(&mut self, error: Error) -> Result<(), StreamError> {
        if self.position.number().is_none() || self.begins_before() {
            // The call held no number, or one before the position.
            self.state.retention.approached = None;
            let failure = ClassifiedError { action: RetryAction::Retry, error, answered: None };
            return self.recover_judgement(failure);
        }
        self.pace.failed();
        self.retries(&error);
        if self.is_verified() {
            self.state.retention.start = Start::Horizon;
        } else {
            self.state.retention.probe = Some(Probe::after(error));
        }
        Ok(())
    }

    /// Applies `on_trimmed` to a position that has left retention, and reports the loss.
    ///
    /// The position keeps its number, so that no record up to it is delivered twice should the loss be
    /// none.
    pub(super) fn lose(&mut self, error: Error) -> Result<(), StreamError> {
        let now = self.server_time_at(Instant::now());
        let (start, checkpoint) = match self.on_trimmed {
            OnTrimmed::Fail => return Err(StreamError::at_last(error)),
            OnTrimmed::TrimHorizon => (Start::Horizon, Checkpoint::TrimHorizon),
            OnTrimmed::Latest => (Start::Time(now), Checkpoint::AtTimestamp(now)),
        };
        let after = self.position.number().cloned();
        if self.on_trimmed == OnTrimmed::Latest {
            // A restart is to read what arrives from now on, too.
            self.move_to(Position::CaughtUp { after: after.clone(), until: now });
            self.state.decided = Some((after.clone(), now));
        }
        let retention = &mut self.state.retention;
        (retention.start, retention.read_until) = (start, Some(now));
        retention.verified = None;
        self.report_gap(after, checkpoint);
        Ok(())
    }

    pub(super) fn outlived(&self, until: SystemTime) -> Error {
        let until = Checkpoint::AtTimestamp(until);
        let message = format!(
            "the position {until} has left the stream's retention, and records may be lost; on_trimmed \
             decides where to go on"
        );
        self.error(ErrorKind::Trimmed, &message)
    }

    pub(super) fn waited(&self, since: SystemTime) -> Error {
        let since = Checkpoint::AtTimestamp(since);
        let message = format!(
            "the shard is read for the first time, but has been known ({since}) for about the stream's \
             retention period or longer: it waited for its parents or for a worker, and records may be \
             lost; on_trimmed decides where to go on"
        );
        self.error(ErrorKind::Trimmed, &message)
    }

    pub(super) fn accepted(&self, number: &SequenceNumber) -> Error {
        let message = format!(
            "the position after {number} has left the stream's retention: the oldest kept record is \
             behind it, and records between them may be lost; on_trimmed decides where to go on"
        );
        self.error(ErrorKind::Trimmed, &message)
    }
}
