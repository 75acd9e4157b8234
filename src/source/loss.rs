//! Handles positions that have, or may have, left the stream's retention.

use std::time::SystemTime;

use tokio::time::Instant;

use super::failure_streak::{FailureStreak, GIVE_UP_AFTER};
use super::fetch_state::{FetchState, Interrupt};
use super::oldest_record::Probe;
use super::retention::PlacementStart;
use super::{OnTrimmed, Position};
use crate::checkpoint::Checkpoint;
use crate::error::{ClassifiedError, Error, ErrorKind, RetryAction};
use crate::record::SequenceNumber;
use crate::telemetry::Event;

/// A streak of failures of the calls that show whether records were lost.
pub(super) struct FailedLossCheck {
    streak: FailureStreak,
    error: Error,
}

impl FetchState {
    /// Backs off after the failure of a call that is needed to tell whether records were lost. Ends
    /// the source if such calls have failed for [`GIVE_UP_AFTER`].
    pub(super) fn recover_judgement(&mut self, failure: ClassifiedError) -> Result<(), Interrupt> {
        let before = self.state.retention.unjudged.take();
        self.state.retention.unjudged = Some(self.recover_lookup(before, failure)?);
        Ok(())
    }

    /// Returns true if retention may have overtaken the reader. A failed lookup does not rule this
    /// out: the result is true, and the failure is handled as in
    /// [`recover_judgement`](Self::recover_judgement).
    pub(super) fn checked(
        &mut self,
        checked: Result<bool, ClassifiedError>,
    ) -> Result<bool, Interrupt> {
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
        before: Option<FailedLossCheck>,
        failure: ClassifiedError,
    ) -> Result<FailedLossCheck, Interrupt> {
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
            // Another reader made the call and received its error.
            Some(before) if failure.action == RetryAction::CoolDown => before,
            Some(before) => FailedLossCheck { error: failure.error, ..before },
            None => FailedLossCheck { streak: FailureStreak::default(), error: failure.error },
        };
        if unjudged.streak.lasts() {
            return Err(Interrupt::Failed(self.unjudged(unjudged.error)));
        }
        self.state.failed += 1;
        self.telemetry.emit(retry);
        Ok(unjudged)
    }

    fn unjudged(&self, cause: Error) -> Error {
        let message = format!(
            "cannot determine whether records after the position have left retention: the calls that \
             show it have failed for {} s (see the source); if they are denied, grant \
             kinesis:ListShards and kinesis:DescribeStreamSummary, or set another position with \
             set_position",
            GIVE_UP_AFTER.as_secs()
        );
        let kind = match cause.kind() {
            ErrorKind::Denied => ErrorKind::Denied,
            _ => ErrorKind::Unavailable,
        };
        let shared = cause.shared_failures().cloned();
        self.error(kind, &message).shared(shared).with_source(cause)
    }

    /// Handles a sequence number that Kinesis rejects. A single rejection proves nothing: the
    /// oldest kept record shows whether the position has left retention.
    pub(super) fn trimmed(&mut self, error: Error) -> Result<(), Interrupt> {
        if self.position.number().is_none() || self.begins_before() {
            // The call named no sequence number, or one before the position.
            self.state.retention.approached = None;
            let failure = ClassifiedError { action: RetryAction::Retry, error, answered: None };
            return self.recover_judgement(failure);
        }
        self.pace.failed();
        self.emit_retry(&error);
        if self.is_verified() {
            self.state.retention.start = PlacementStart::Horizon;
        } else {
            self.state.retention.probe = Some(Probe::after(error));
        }
        Ok(())
    }

    /// Applies `on_trimmed` to a position that has left retention, and reports the loss.
    ///
    /// The position keeps its sequence number. If nothing was lost after all, no record up to it is
    /// delivered twice. A new placement must follow.
    ///
    /// # Errors
    ///
    /// [`Interrupt::Moved`] with [`OnTrimmed::Latest`], so that the position is stored at once.
    pub(super) fn lose(&mut self, error: Error) -> Result<(), Interrupt> {
        let now = self.server_time_at(Instant::now());
        let (start, checkpoint) = match self.on_trimmed {
            OnTrimmed::Fail => return Err(Interrupt::Failed(error)),
            OnTrimmed::TrimHorizon => (PlacementStart::Horizon, Checkpoint::TrimHorizon),
            OnTrimmed::Latest => (PlacementStart::Time(now), Checkpoint::AtTimestamp(now)),
        };
        let after = self.position.number().cloned();
        let is_moved = self.on_trimmed == OnTrimmed::Latest;
        if is_moved {
            // A restart must also read the records that arrive from now on.
            self.move_to(Position::CaughtUp { after: after.clone(), until: now });
        }
        let retention = &mut self.state.retention;
        (retention.start, retention.read_until) = (start, Some(now));
        // The calls that the judgement needed have succeeded.
        (retention.verified, retention.unjudged) = (None, None);
        self.report_gap(after.clone(), checkpoint);
        if is_moved { Err(Interrupt::Moved { after, until: now }) } else { Ok(()) }
    }

    pub(super) fn position_trimmed_error(&self, until: SystemTime) -> Error {
        let until = Checkpoint::AtTimestamp(until);
        let message = format!(
            "the position {until} has left the stream's retention, and records may be lost; set \
             on_trimmed to choose where reading continues"
        );
        self.error(ErrorKind::Trimmed, &message)
    }

    pub(super) fn late_shard_error(&self, since: SystemTime) -> Error {
        let since = Checkpoint::AtTimestamp(since);
        let message = format!(
            "the shard is read for the first time, but has been known ({since}) for about the stream's \
             retention period or longer: it waited for its parents or for a worker, and records may be \
             lost; set on_trimmed to choose where reading continues"
        );
        self.error(ErrorKind::Trimmed, &message)
    }

    pub(super) fn number_trimmed_error(&self, number: &SequenceNumber) -> Error {
        let message = format!(
            "the position after {number} has left the stream's retention: the oldest kept record is \
             later, and the records between them may be lost; set on_trimmed to choose where reading \
             continues"
        );
        self.error(ErrorKind::Trimmed, &message)
    }
}
