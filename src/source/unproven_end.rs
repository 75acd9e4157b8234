//! Answers that prove nothing: an end without evidence, a record that cannot be placed, a shard that
//! is not found. The position stays where it is, and the shard is fetched again from there.

use std::time::Duration;

use tokio::time::Instant;

use super::absent_listings::AbsentListings;
use super::failure_streak::{FailureStreak, GIVEN_UP_AFTER};
use super::fetch_state::{FetchState, StreamError};
use super::{KnownShard, OnTrimmed};
use crate::checkpoint::Checkpoint;
use crate::error::{ClassifiedError, Error, ErrorKind, RetryAction};
use crate::telemetry::Event;

/// How many answers in a row that say where to go on undo a doubt.
const CERTAIN_ANSWERS: u32 = 3;

/// How often, and for how long, an empty answer repeats before it is believed: an end that says that there
/// is more to read, or a shard that keeps no record.
pub(super) const BEHIND_ANSWERS: u32 = 4;
pub(super) const BEHIND_FOR: Duration = Duration::from_secs(2);

/// How long a shard is not found before a listing is asked whether it is gone. Far longer than a
/// server that has just started, or a change of a stream, takes.
const GONE_AFTER: Duration = Duration::from_secs(30);

/// How much later than the last listing that lacks the shard the next one begins at least.
const NEXT_LISTING: Duration = Duration::from_millis(1);

/// How old the listing may be that says so, or that says whether a shard has ended.
const LISTED_WITHIN: Duration = Duration::from_secs(5);

pub(super) const UNPROVEN_END: &str = "the answer names no next position, but nothing proves that \
     the shard has ended: no child shard, no EndingSequenceNumber in ListShards; reading on from the \
     last record";

const LACKS_RECORDS: &str = "the answer lacks its records, and may withhold some; reading on from the \
     last record";

pub(super) const MISNUMBERED: &str = "a record has no valid sequence number; reading on from the \
     record before it";

/// The answers that prove nothing, and what has come of them.
#[derive(Debug, Default)]
pub(super) struct UnprovenEnds {
    answers: FailureStreak,
    /// Answers in a row that say where to go on.
    certain: u32,
    is_reported: bool,
    /// The last answer had neither a next position nor a proof of the end.
    open_end: bool,
    /// The listings that could prove the end, and have failed for a reason that lasts.
    unlisted: FailureStreak,
}

/// An answer that names no next position.
pub(super) struct OpenEnd {
    /// Nothing behind the position was in it.
    pub(super) is_empty: bool,
    /// It held records, if only such as the position is behind.
    pub(super) has_records: bool,
    /// `MillisBehindLatest`, where it is in it.
    pub(super) lag: Option<i64>,
}

/// The earliest moment at which a listing may have been made that is believed now.
pub(super) fn lately() -> Instant {
    let now = Instant::now();
    now.checked_sub(LISTED_WITHIN).unwrap_or(now)
}

impl FetchState {
    /// An answer that says where to go on has come.
    ///
    /// One without records does not undo a doubt: ferrokinesis gives one before each end of an
    /// iterator that is placed at the end of a closed shard. Finished records do not count either:
    /// a new placement brings as many of them as its beginning is behind the position.
    pub(super) fn is_certain(&mut self, is_empty: bool, has_records: bool) {
        let Some(doubt) = &mut self.state.doubt else { return };
        if is_empty && has_records {
            return;
        }
        doubt.certain += 1;
        if !is_empty || doubt.certain >= CERTAIN_ANSWERS {
            self.state.doubt = None;
        }
    }

    /// Notes that the shard is read again, unless the answers leave a doubt or a loss behind the position is
    /// not ruled out yet. Records do so as they are delivered.
    pub(super) fn is_cured(&self, is_empty: bool) {
        if is_empty && self.state.doubt.is_none() && self.is_sound() {
            self.telemetry.succeeded();
        }
    }

    /// Notes an answer that proves nothing: an event, and an error if such answers last.
    ///
    /// The error ends the source, so that the lease is released, unless the answer brings new records:
    /// then the shard is read on, and the caller receives the error once.
    pub(super) fn doubt(&mut self, what: &str, is_empty: bool) -> Result<(), StreamError> {
        let doubt = self.state.doubt.get_or_insert_default();
        let lasts = doubt.answers.lasts();
        let attempt = doubt.answers.failures();
        doubt.certain = 0;
        let is_due = lasts && (is_empty || !doubt.is_reported);
        doubt.is_reported |= is_due;
        let error = self.error(ErrorKind::Rejected, what);
        if is_due {
            return Err(StreamError { error, is_last: is_empty });
        }
        let shard_id = Some(self.shard_id().clone());
        self.telemetry.emit(Event::retried(shard_id, &error, attempt));
        Ok(())
    }

    /// Notes an answer without the member `Records`, not even an empty one: whatever else it says, records
    /// may be missing.
    pub(super) fn lacks_records(&mut self) -> Result<(), StreamError> {
        let outcome = self.doubt(LACKS_RECORDS, true);
        if let Some(doubt) = &mut self.state.doubt {
            doubt.open_end = false;
        }
        outcome
    }

    /// The children of the shard, where it is proven that an answer without a next position is its
    /// end.
    ///
    /// A listing proves that the shard is closed, not that it is read to its end: the answer must
    /// repeat where the position was placed afresh.
    pub(super) async fn proven_end(
        &mut self,
        end: &OpenEnd,
    ) -> Result<Option<Vec<KnownShard>>, StreamError> {
        let repeats_since = self.state.doubt.as_ref().filter(|doubt| {
            let repeats = match end.lag {
                Some(..=0) => true,
                // The limits of an answer may have kept out the records behind those that it holds.
                Some(_) if end.has_records => false,
                // ferrokinesis counts the lag of a closed shard on.
                Some(_) => {
                    let answers = &doubt.answers;
                    answers.failures() >= BEHIND_ANSWERS && answers.age() >= BEHIND_FOR
                }
                // What lacks its lag may lack records as well, however often it repeats.
                None => false,
            };
            doubt.open_end && end.is_empty && repeats
        });
        if let Some(since) = repeats_since.and_then(|doubt| doubt.answers.since()) {
            // A listing that does not show the end may be stale, so that it is made again.
            match self.kinesis.standing(self.telemetry.shard_id(), since.max(lately())).await {
                Ok(standing) if standing.has_ended => return Ok(Some(standing.children)),
                Ok(_) => {
                    if let Some(doubt) = &mut self.state.doubt {
                        doubt.unlisted = FailureStreak::default();
                    }
                }
                // The source asks again, and the same answer repeats.
                Err(failure) => return self.recover_listing(failure).await.map(|()| None),
            }
        }
        let outcome = self.doubt(UNPROVEN_END, end.is_empty);
        if let Some(doubt) = &mut self.state.doubt {
            doubt.open_end = true;
        }
        outcome.map(|()| None)
    }

    /// Handles a failed listing that could have proven the end. Ends the source where such failures last for
    /// [`GIVEN_UP_AFTER`]: the successful answers between them reset the other limits.
    async fn recover_listing(&mut self, failure: ClassifiedError) -> Result<(), StreamError> {
        if failure.action.lasts()
            && let Some(doubt) = &mut self.state.doubt
            && doubt.unlisted.lasts()
        {
            return Err(StreamError::at_last(self.here(failure.error)));
        }
        self.recover(failure).await
    }

    /// Handles a call that did not find the shard, or what is named with it: it is retried until listings
    /// confirm that the shard is gone.
    pub(super) async fn not_found(&mut self, error: Error) -> Result<(), StreamError> {
        self.state.not_found.note();
        if self.state.not_found.age() >= GONE_AFTER {
            // A listing counts once.
            let next = self.state.absence.as_ref().map(|absence| absence.last() + NEXT_LISTING);
            let listed_since = next.map_or_else(lately, |next| next.max(lately()));
            match self.kinesis.standing(self.telemetry.shard_id(), listed_since).await {
                Ok(standing) if !standing.is_listed => {
                    let now = Instant::now();
                    let absence =
                        self.state.absence.get_or_insert_with(|| AbsentListings::begin(now));
                    absence.note(now);
                    if absence.is_proven(self.discovery_interval, now) {
                        return self.left_retention(standing.children);
                    }
                }
                Ok(_) => self.state.absence = None,
                Err(failure) if failure.action == RetryAction::Gone => {
                    return Err(StreamError::at_last(error));
                }
                Err(failure) => self.note_panic(&failure.error),
            }
        }
        self.pace.failed();
        // The end of the source ends the proof as well.
        let (is_known, reported_after) = match self.state.absence {
            Some(_) => (false, self.discovery_interval.saturating_add(GONE_AFTER + GIVEN_UP_AFTER)),
            None => (self.is_reported(&error), GIVEN_UP_AFTER),
        };
        if is_known || self.state.not_found.has_lasted(reported_after) {
            return Err(StreamError::at_last(error));
        }
        self.retries(&error);
        Ok(())
    }

    /// The whole shard has left retention while it was read: the policy decides, and with it the
    /// children come next.
    fn left_retention(&mut self, children: Vec<KnownShard>) -> Result<(), StreamError> {
        if self.on_trimmed == OnTrimmed::Fail {
            return Err(StreamError::at_last(self.error(
                ErrorKind::Trimmed,
                "the shard left the stream's retention while it was read, and records may be lost; \
                 on_trimmed decides whether to go on with its children",
            )));
        }
        self.report_gap(self.position.number().cloned(), Checkpoint::ShardEnd);
        self.state.ended = Some(children);
        Ok(())
    }

    pub(super) fn error(&self, kind: ErrorKind, message: &str) -> Error {
        self.here(Error::new(kind, message))
    }
}
